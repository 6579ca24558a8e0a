"""The figures of the course. A notebook computes, and hands arrays to a function of this file; what it shows is written there.

Functions draw with Matplotlib in the look of course.mplstyle, and call plt.show(); `ax` is a set of axes made elsewhere.
"""

import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image

plt.style.use(Path(__file__).parent / "course.mplstyle")

PARTS = ["pixels", "stem", *(f"block {index}" for index in range(16)), "head", "pool", "classifier", "softmax"]
CHANNELS = [3, 32, 16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320, 1280, 1280, 1000, 1000]


def here(*parts, note=""):
    """The network from left to right, and where in it you are: `parts` are names of PARTS, or "all"."""
    unknown = set(parts) - {*PARTS, "all"}
    assert not unknown, f"no such part: {unknown}"
    fig, ax = plt.subplots(figsize=(10, 1.35))
    for place, (part, channels) in enumerate(zip(PARTS, CHANNELS, strict=True)):
        height, chosen = 0.25 + 0.2 * np.log10(channels), part in parts or "all" in parts
        ax.add_patch(plt.Rectangle((place, 0.5 - height / 2), 0.72, height, color="C1" if chosen else "#cfd8dc"))
        label = part.replace("block ", "") if part != "classifier" else "classi-\nfier"
        ax.text(place + 0.36, -0.02, label, ha="center", va="top", fontsize=7.5, color="C1" if chosen else "C6")
    ax.text(9.4, 1.02, "the 16 blocks", ha="center", fontsize=7.5, color="C6")
    ax.set(xlim=(-0.2, len(PARTS)), ylim=(-0.4, 1.1), title=f"You are here{': ' + note if note else ''}")
    ax.axis("off")
    plt.show()


def bars(values, unit, title="", labels=None, log=False, colour="C0"):
    """One bar a name, the first on top: values {name: number}; labels: what stands behind each bar."""
    names, numbers = list(values)[::-1], list(values.values())[::-1]
    texts = [f" {number:.3g}" for number in numbers] if labels is None else [f" {label}" for label in list(labels)[::-1]]
    fig, ax = plt.subplots(figsize=(9, 0.7 + 0.32 * len(values)))
    ax.bar_label(ax.barh(names, numbers, color=colour), labels=texts)
    ax.set(xscale="log" if log else "linear", xlabel=unit, title=title)
    ax.set_xlim(right=(3 if log else 1.2) * max(numbers))
    plt.show()


def pictures(rows, titles=None, labels=None, **look):
    """A grid of pictures: rows is a list of lists of arrays (H, W) or (H, W, 3); titles above, labels at the left."""
    fig, axes = plt.subplots(
        len(rows), len(rows[0]), figsize=(1.55 * len(rows[0]) + 0.3, 1.65 * len(rows) + 0.3), squeeze=False
    )
    for line, row in zip(axes, rows, strict=True):
        for ax, picture in zip(line, row, strict=True):
            ax.imshow(picture, **(look if np.ndim(picture) == 2 else {}))
            ax.set(xticks=[], yticks=[])
    for ax, title in zip(axes[0], titles or [], strict=False):
        ax.set_title(title, loc="center", fontsize=9)
    for ax, label in zip(axes[:, 0], labels or [], strict=False):
        ax.set_ylabel(label, fontsize=9)
    plt.show()


def visible(pixel_values):
    """Network input of Lite0 back to a picture: (3, H, W), about -1 to 1 -> (H, W, 3), 0 to 1."""
    return np.clip(pixel_values.transpose(1, 2, 0) * 128 + 127, 0, 255) / 255


def band(ax, x, curves, label, colour):
    """The median of several curves (curves, points), and their middle half as a band."""
    low, middle, high = np.percentile(np.asarray(curves), (25, 50, 75), axis=0)
    ax.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    ax.plot(x, middle, "o-", markersize=3, color=colour, label=label)


# -- 00 · A photograph, classified ------------------------------------------------------------------------------------


def network_input(photo, small, pixel_values, top, left, side):
    """The photograph and its crop, what the crop is resized to, and how the network input is distributed."""
    fig, axes = plt.subplots(1, 3, figsize=(10, 3.2), width_ratios=[1.5, 1, 1.2])
    axes[0].imshow(photo)
    axes[0].add_patch(plt.Rectangle((left, top), side, side, fill=False, color="white", linewidth=2))
    axes[0].set(title=f"photograph, {photo.shape[1]} × {photo.shape[0]} pixels, and the crop", xlabel="column", ylabel="row")
    axes[1].imshow(small)
    axes[1].set(title="resized to 224 × 224", xlabel="column")
    for channel, name, colour in zip(range(3), ("red", "green", "blue"), ("C1", "C2", "C0"), strict=True):
        axes[2].hist(pixel_values[0, channel].ravel(), bins=64, range=(-1, 1), histtype="step", color=colour, label=name)
    axes[2].set(title="the numbers that the network gets", xlabel="(x − 127) / 128", ylabel="pixels")
    axes[2].legend()
    plt.show()


def one_channel(small, liveliest):
    """The input, and one channel at each of several depths: liveliest is a list of (name, channel, maps (C, H, W))."""
    fig, axes = plt.subplots(1, 1 + len(liveliest), figsize=(12, 2.7))
    axes[0].imshow(small)
    axes[0].set(title="input", xlabel="3 × 224 × 224")
    for ax, (name, channel, maps) in zip(axes[1:], liveliest, strict=True):
        image = ax.imshow(maps[channel], cmap="viridis")
        fig.colorbar(image, ax=ax, orientation="horizontal", shrink=0.9, pad=0.02)
        ax.set(title=f"{name}, channel {channel}", xlabel=" × ".join(map(str, maps.shape)))
    for ax in axes:
        ax.set(xticks=[], yticks=[])
    fig.suptitle("At five depths the channel that varies most: maps shrink, channels multiply (channels × height × width)")
    plt.show()


def logits_and_probabilities(logits, probabilities, best, short):
    """How 1,000 logits are distributed, with the first ones marked, and the largest probabilities."""
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.2))
    axes[0].hist(logits, bins=60, color="#b0bec5")
    for rank, index in enumerate(best[:3]):
        axes[0].axvline(logits[index], color=f"C{rank + 1}", label=f"{short(index)}, {logits[index]:.2f}")
    axes[0].set(title="1,000 logits; lines: the three largest", xlabel="logit", ylabel="classes", yscale="log")
    axes[0].legend(fontsize=8, loc="upper right", bbox_to_anchor=(0.9, 1))
    names, shares = [short(index) for index in best][::-1], 100 * probabilities[best][::-1]
    axes[1].bar_label(axes[1].barh(names, shares), labels=[f" {share:.1f}%" for share in shares])
    axes[1].set(title="after softmax, the five largest", xlabel="probability, percent", xlim=(0, 46))
    plt.show()


def gallery(inputs, captions, columns=6):
    """Photographs as the network sees them: inputs {name: (3, H, W)}, with a text below each."""
    rows = -(-len(inputs) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(11, 2.75 * rows), squeeze=False)
    for ax in axes.ravel():
        ax.axis("off")
    for ax, (name, pixel_values), caption in zip(axes.ravel(), inputs.items(), captions, strict=False):
        ax.axis("on")
        ax.imshow(visible(pixel_values))
        ax.set(xticks=[], yticks=[])
        ax.set_title(name, loc="center", fontsize=9)
        ax.set_xlabel(caption, fontsize=8)
    plt.show()


# -- 01 · Convolution, three ways -------------------------------------------------------------------------------------


def edges_and_mean(grey, edges, mean):
    """A picture, what a left-to-right kernel makes of it, and a mean over 9 × 9 pixels."""
    fig, axes = plt.subplots(1, 3, figsize=(10, 3.4))
    axes[0].imshow(grey, cmap="gray")
    axes[0].set(title="input, 224 × 224", xlabel="column", ylabel="row")
    image = axes[1].imshow(edges, cmap="RdBu_r", vmin=-2, vmax=2)
    axes[1].set(title="left-to-right changes, 222 × 222", xlabel="column")
    fig.colorbar(image, ax=axes[1], label="darker ← → brighter", shrink=0.8, extend="both")
    axes[2].imshow(mean, cmap="gray")
    axes[2].set(title="mean of 9 × 9 pixels, 216 × 216", xlabel="column")
    plt.show()


def stem_kernels(weights, size, maps, shown):
    """Kernels (32, 3, 3, 3) as colours on one scale, and what the six largest of them make of a photograph, maps (32, H, W)."""
    fig = plt.figure(figsize=(11, 3.9))
    left, right = fig.subfigures(1, 2, width_ratios=[1.25, 1])
    largest = size.max()
    left.suptitle(f"the 32 kernels, by size; mid grey is 0, one scale for all: ±{largest:.1f}")
    for ax, o in zip(left.subplots(4, 8).ravel(), shown, strict=True):
        ax.imshow(0.5 + 0.5 * weights[o] / largest)
        ax.set(xticks=[], yticks=[])
        ax.set_title(f"{o}", fontsize=7, pad=1, loc="center")
    right.suptitle("what the six largest make of the cat")
    for ax, o in zip(right.subplots(2, 3).ravel(), shown[:6], strict=True):
        limit = np.abs(maps[o]).max()
        image = ax.imshow(maps[o], cmap="RdBu_r", vmin=-limit, vmax=limit)
        right.colorbar(image, ax=ax, shrink=0.8)
        ax.set(xticks=[], yticks=[])
        ax.set_title(f"channel {o}", loc="center", pad=2)
    plt.show()


def oriented(shares):
    """How much of a kernel lies in its first direction: {name: 32 numbers}, as dots."""
    fig, ax = plt.subplots(figsize=(9, 1.9))
    for row, values in enumerate(shares.values()):
        ax.plot(np.sort(values), np.full(len(values), row) + np.linspace(-0.25, 0.25, len(values)), "o", markersize=4)
        ax.plot([np.median(values)] * 2, [row - 0.35, row + 0.35], color="k", linewidth=1)
    ax.set(
        yticks=range(len(shares)),
        ylim=(len(shares) - 0.5, -0.5),
        xlabel="cosine; dots are kernels, lines medians",
    )
    ax.set_yticklabels(list(shares))
    ax.set_title("How much neighbouring weights resemble each other")
    plt.show()


def times_cheaper(full, separable, limit):
    """Cost of a full convolution over that of a separable one, for kernels of 3, 5 and 7 and up to `limit` channels."""
    channels = np.arange(1, 513)
    fig, ax = plt.subplots(figsize=(7, 3))
    for k in (3, 5, 7):
        (line,) = ax.plot(channels, full(k, channels, channels) / separable(k, channels, channels), label=f"kernel {k} × {k}")
        ax.axhline(k * k, color=line.get_color(), linestyle=":", linewidth=1)
        ax.annotate(
            f"{full(k, limit, limit) / separable(k, limit, limit):.1f}", (limit - 6, 0.99 * k * k), ha="right", va="bottom"
        )
    ax.axvline(limit, color="C6", linewidth=0.8)
    ax.set(xlabel="channels in and out", ylabel="times cheaper", yscale="log", xlim=(0, 520))
    ax.set_title(f"full ÷ separable; dotted: the limit K²; numbers: at {limit} channels")
    ax.set_yticks([1, 3, 9, 25, 49], ["1", "3", "9", "25", "49"])
    ax.legend(loc="lower right")
    plt.show()


# -- 02 · Batch norm, swish, squeeze-excite ---------------------------------------------------------------------------


def batch_norm_boxes(before, normalised, after):
    """Each channel of a photograph before batch norm, after the division, and after scale and shift, as boxes."""

    def spread(ax, x, title):
        """A box for each channel: the middle half of its numbers, and whiskers to the 1st and 99th percentile."""
        box = ax.boxplot(list(x[0].reshape(32, -1)), whis=(1, 99), showfliers=False, patch_artist=True, widths=0.7)
        for patch in box["boxes"]:
            patch.set(facecolor="C5", edgecolor="C0", linewidth=0.8)
        for line in box["medians"]:
            line.set(color="C1")
        ax.set(title=title, xlabel="channel")
        ax.set_xticks(range(1, 33, 4), range(0, 32, 4))
        ax.axhline(0, color="C6", linewidth=0.6)

    fig, axes = plt.subplots(1, 3, figsize=(11, 3.2))
    spread(axes[0], before, "before batch norm")
    spread(axes[1], normalised, "after (x − μ) / √(σ² + ε)")
    spread(axes[2], after, "after scale γ and shift β")
    axes[0].set_ylabel("values in the cat's stem")
    plt.show()


def dead_channels(norms):
    """How many channels of each block's expansion have no variance; the depthwise norms after it repeat them."""
    counts = {"stem": int((norms[0][1].running_var < 1e-6).sum())}
    for name, norm in norms:
        if name.endswith("expand_bn"):
            counts[name.split(".")[2]] = int((norm.running_var < 1e-6).sum())
    fig, ax = plt.subplots(figsize=(10, 2.4))
    ax.bar_label(ax.bar(list(counts), list(counts.values())))
    ax.set(title="Dead channels: practically no variance in the training set", xlabel="stem, and the expansion of each block")
    ax.set(ylabel="channels", ylim=(0, 14), yticks=range(0, 15, 4))
    plt.show()


def eps_by_norm(alone, kinds):
    """What a wrong eps in one batch norm alone does to the logits: alone (norms, photographs), kinds as many names."""
    fig, ax = plt.subplots(figsize=(10, 3))
    for colour, kind in enumerate(dict.fromkeys(kinds)):
        places = np.flatnonzero([other == kind for other in kinds])
        low, middle, high = np.percentile(100 * alone[places], (0, 50, 100), axis=1)
        ax.vlines(places, low, high, color=f"C{colour}", linewidth=1.2)
        ax.plot(places, middle, "o", markersize=4, color=f"C{colour}", label=kind)
    ax.set(xlabel="batch norm, from the stem to the head", ylabel="change of the logits, percent", yscale="log")
    ax.set_title(f"A wrong ε in one batch norm only; dot: median of {alone.shape[1]} photographs, line: all of them")
    ax.legend(fontsize=8)
    plt.show()


def bends(x, relu, relu6, swish):
    """ReLU, ReLU6 and swish, their slopes, and the dip of swish."""
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.2), width_ratios=[1.2, 1.2, 1])
    for name, function, look in (
        ("ReLU", relu, {"linewidth": 6, "alpha": 0.35}),
        ("ReLU6", relu6, {}),
        ("swish", swish, {}),
    ):
        axes[0].plot(x, function(x), label=name, **look)
        axes[1].plot(x[:-1], np.diff(function(x)) / np.diff(x), label=name, **look)
    axes[0].set(title="the function", xlabel="x", ylabel="f(x)")
    axes[1].set(title="its slope", xlabel="x", ylabel="f′(x)")
    axes[0].legend()
    near = np.linspace(-5, 1.2, 62001)
    axes[2].plot(near, swish(near), color="C2")
    lowest = near[swish(near).argmin()]
    axes[2].plot(lowest, swish(near).min(), "o", color="C2")
    dip = f"({lowest:.3f}, {swish(near).min():.3f})".replace("-", "−")
    axes[2].annotate(dip, (lowest, swish(near).min()), (-4.6, 0.12), arrowprops={"arrowstyle": "-", "color": "C6"})
    axes[2].axhline(0, color="C6", linewidth=0.6)
    axes[2].set(title="swish near zero: the dip", xlabel="x", ylim=(-0.35, 0.5))
    plt.show()


def clipped(zero, six):
    """What share of the numbers ReLU6 sets to 0 and to 6, by layer: two arrays (layers, photographs), in percent."""
    fig, ax = plt.subplots(figsize=(10, 2.8))
    layers = np.arange(len(zero))
    band(ax, layers, zero.T, "exactly 0", "C6")
    band(ax, layers, six.T, "exactly 6", "C1")
    ax.set(title="What ReLU6 cuts off, layer after layer (median and middle half of the photographs)", ylabel="percent")
    ax.set(xlabel="activation layer, from the stem to the head", xlim=(-0.5, len(zero) - 0.5), ylim=(0, 100))
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    plt.show()


def gates(by_photo):
    """Gates {photograph: (C,)} as a grid of colours, and how far each channel's gate moves over the photographs."""
    table = np.stack(list(by_photo.values()))
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(10, 4.6), height_ratios=[2.2, 1], sharex=True)
    image = top.imshow(table, vmin=0, vmax=1, aspect="auto", cmap="viridis")
    fig.colorbar(image, ax=top, label="gate")
    top.set(title="Gates of squeeze-excite, a row a photograph (random weights)", yticks=range(len(by_photo)))
    top.set_yticklabels(list(by_photo), fontsize=8)
    bottom.bar(range(table.shape[1]), table.max(axis=0) - table.min(axis=0))
    bottom.set(xlabel="channel", ylabel="largest − smallest")
    plt.show()


# -- 03 · MBConv, number by number ------------------------------------------------------------------------------------


def block(expansion, depthwise, projection):
    """Block 4 as bars: height is the number of channels, and the residual goes round below."""
    fig, ax = plt.subplots(figsize=(10.5, 4))
    stages = [
        ("input", 40, "C0"),
        ("widened", 240, "C5"),
        ("filtered", 240, "C5"),
        ("narrowed", 40, "C0"),
        ("output", 40, "C0"),
    ]
    arrows = [
        "1 × 1 convolution\nbatch norm, ReLU6",
        "5 × 5 depthwise\nbatch norm, ReLU6",
        "1 × 1 convolution\nbatch norm",
        "+ input",
    ]
    weights = [expansion.expand_conv, depthwise.depthwise_conv, projection.project_conv]
    for i, (name, channels, colour) in enumerate(stages):
        ax.add_patch(plt.Rectangle((2 * i, -channels / 2), 0.6, channels, color=colour))
        ax.text(2 * i + 0.3, channels / 2 + 8, f"{name}\n{channels} × 28 × 28", ha="center", va="bottom")
    for i, text in enumerate(arrows):
        ax.annotate("", (2 * i + 1.95, 0), (2 * i + 0.65, 0), arrowprops={"arrowstyle": "->"})
        note = f"\n{weights[i].weight.size:,} weights" if i < 3 else ""
        ax.text(2 * i + 1.3, -12, text + note, ha="center", va="top", fontsize=8)
    ax.plot([0.3, 0.3, 8.3], [-22, -150, -150], color="C1", linewidth=1.5)
    ax.annotate("", (8.3, -22), (8.3, -151), arrowprops={"arrowstyle": "->", "color": "C1", "linewidth": 1.5})
    ax.text(4.3, -172, "the residual: the input itself, unchanged", ha="center", color="C1")
    ax.set(
        xlim=(-0.5, 9.2), ylim=(-180, 170), title="Block 4 of EfficientNet-Lite0; the height of a bar is its number of channels"
    )
    ax.axis("off")
    plt.show()


def kept_by_width(factors, shares, trained):
    """How much of a block's input can be told from its activations: trained {block: (own, [random], none)}."""
    fig, axes = plt.subplots(1, 2, figsize=(10.5, 3.2), sharey=True)
    axes[0].fill_between(factors, shares.min(axis=1), shares.max(axis=1), color="C0", alpha=0.2, linewidth=0)
    axes[0].plot(factors, np.median(shares, axis=1), "o-", color="C0", label="widened at random, then ReLU6")
    axes[0].set(xlabel="width after ÷ before", ylabel="share of the input that can be told", ylim=(0, 1.03), xticks=factors)
    axes[0].set_title("block 4's input; band: five seeds")
    axes[0].legend(loc="lower right", fontsize=8)
    places = np.arange(len(trained))
    labels = ("the block's own widening (6)", "random ones (6; line: all)", "none")
    for row, label in enumerate(labels):
        middle = [np.median(values[row]) for values in trained.values()]
        axes[1].bar(places + 0.27 * (row - 1), middle, width=0.27, label=label)
    for place, (_, chance, _) in zip(places, trained.values(), strict=True):
        axes[1].plot([place, place], [min(chance), max(chance)], color="k", linewidth=1.5)
    axes[1].set_xticks(places, list(trained))
    axes[1].set(xlabel="block", title="four blocks: input told from ReLU6 after ...")
    axes[1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    plt.show()


def without_parts(residual, size_of_change, results):
    """What taking away a block or its residual does: {network: {part: (blocks, photographs)}}, cosines of the logits."""
    fig, axes = plt.subplots(1, 3, figsize=(11.5, 3.2))
    places = np.arange(len(residual))
    band(axes[0], places, size_of_change.T, "trained", "C0")
    axes[0].set(title="size of the change: ‖narrowed‖ / ‖input‖", ylim=(0, 1))
    for ax, (network, parts) in zip(axes[1:], results.items(), strict=True):
        for colour, (part, cosines) in zip(("C2", "C1"), parts.items(), strict=True):
            band(ax, places, cosines.T, part, colour)
        ax.set(title=f"{network}: cosine of the logits with those before", ylim=(-0.25, 1.05))
    axes[1].legend(fontsize=8, loc="center right", bbox_to_anchor=(1, 0.68))
    for ax in axes:
        ax.set_xticks(places, residual)
        ax.set_xlabel("block")
    plt.show()


def receptive(fields, corner):
    """The side of the square that one number sees, by depth; with the sides that a middle and a corner place need."""
    fig, ax = plt.subplots(figsize=(9, 2.9))
    ax.plot(range(-1, 16), fields, "o-", markersize=4)
    for pixels, text in ((224, "the whole picture, from its middle"), (corner, "the whole picture, from any corner")):
        ax.axhline(pixels, color="C1", linestyle="--", linewidth=1)
        ax.text(-0.8, pixels + 10, f"{text}: {pixels}", color="C1")
    ax.set(xlabel="block (−1: the stem)", ylabel="pixels", xticks=range(-1, 16))
    ax.set_title("Receptive field: the side of the square that one number sees")
    plt.show()


def inside_block(widened, filtered, narrowed, shown, out):
    """Six channels of a block after each of its three steps; the last step has other channels and another scale."""
    fig, axes = plt.subplots(3, 6, figsize=(10, 5.2))
    rows = (("widened", widened, shown), ("filtered", filtered, shown), ("narrowed", narrowed, out))
    for line, (name, tensor, chosen) in zip(axes, rows, strict=True):
        for ax, c in zip(line, chosen, strict=True):
            limits = (
                {"cmap": "viridis", "vmin": 0, "vmax": 6}
                if tensor is not narrowed
                else {"cmap": "RdBu_r", "vmin": -20, "vmax": 20}
            )
            image = ax.imshow(tensor[0, c], **limits)
            ax.set(xticks=[], yticks=[])
            ax.set_title(f"channel {c}", loc="center", fontsize=8, pad=2)
        line[0].set_ylabel(name)
        fig.colorbar(image, ax=line, shrink=0.85)
    fig.suptitle("Inside block 4, on the cat: the same six channels widened and filtered, and six of the result")
    plt.show()


def values_by_step(widened, filtered, narrowed, negative):
    """Histograms of a block's numbers after each of its three steps."""
    fig, axes = plt.subplots(1, 3, figsize=(10.5, 2.8), sharey=True)
    for ax, (name, tensor) in zip(axes, (("widened", widened), ("filtered", filtered), ("narrowed", narrowed)), strict=True):
        ax.hist(tensor.ravel(), bins=60, weights=np.full(tensor.size, 100 / tensor.size))
        ax.set(title=f"{name}: {100 * (tensor == 0).mean():.0f}% exactly zero", xlabel="value", yscale="log")
    axes[0].set_ylabel("percent of the numbers")
    axes[2].axvspan(narrowed.min(), 0, color="C1", alpha=0.2)
    axes[2].set_title(f"narrowed: {negative:.0f}% are negative")
    plt.show()


# -- 04 · Compound scaling --------------------------------------------------------------------------------------------


def grown_alone(factors, grown, expected, base):
    """Arithmetic and size of B0 grown in one way only, against the factor; lines: what the rule expects."""
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.4))
    for (name, results), marker in zip(grown.items(), "osx", strict=True):
        (points,) = axes[0].plot(factors, [s.mult_adds / base.mult_adds for s in results], marker, markersize=5, label=name)
        axes[0].plot(factors, expected[name], color=points.get_color(), linewidth=0.8)
        axes[1].plot(factors, [s.parameters / base.parameters for s in results], marker, markersize=5)
    axes[0].set(title="arithmetic; lines: the factor, and its square", xlabel="factor", ylabel="multiply-adds, times B0's")
    axes[1].set(title="size", xlabel="factor", ylabel="parameters, times B0's")
    axes[0].legend()
    plt.show()


def coefficients(fitted, constants, presets):
    """The published depth, width and resolution of B0 to B7 against the formula's curves."""
    fig, axes = plt.subplots(1, 3, figsize=(10.5, 3))
    phi = np.linspace(0, 7.5, 50)
    parts = [(title, constants[index], index) for index, title in enumerate(("depth d", "width w", "resolution r"))]
    middle = {name: np.mean(phis) for name, phis in fitted.items()} | {"b0": 0.0}
    for ax, (title, constant, index) in zip(axes, parts, strict=True):
        ax.plot(phi, constant**phi, color="C6", linewidth=1, label=f"{constant}$^φ$")
        for name in middle:
            width, depth, image_size = presets[name][:3]
            value = (depth, width, image_size / 224)[index]
            ax.plot(middle[name], value, "o", color="C0", markersize=5)
            if name != "b0":  # at φ = 0, factor 1
                ax.annotate(name, (middle[name], value), (-2, 5), textcoords="offset points", ha="right", fontsize=8)
        ax.set(title=title, xlabel="φ (mean of the three)", ylabel="factor" if index == 0 else "")
        ax.legend(loc="lower right")
    plt.show()


def rounding(channels, rounded, round_repeats):
    """How channels and blocks are rounded."""
    fig, axes = plt.subplots(1, 2, figsize=(10, 3))
    axes[0].plot(channels, channels, color="C6", linewidth=0.8)
    axes[0].step(channels, rounded, where="mid")
    corrected = rounded != (channels + 4) // 8 * 8
    axes[0].plot(channels[corrected], rounded[corrected], "o", color="C1", markersize=4, label="raised by the 10% rule")
    axes[0].set(title="round_filters: multiples of 8", xlabel="channels asked for", ylabel="channels taken")
    axes[0].legend()
    depths = np.linspace(1, 3.2, 200)
    for repeats in (1, 2, 3, 4):
        axes[1].step(depths, [round_repeats(repeats, d) for d in depths], where="mid", label=f"{repeats} in B0")
    axes[1].set(title="round_repeats: always up", xlabel="depth coefficient", ylabel="blocks of a stage")
    axes[1].legend()
    plt.show()


def accuracy(summaries, top1, others):
    """Published accuracy against parameters and multiply-adds, EfficientNets beside what there was in 2019."""
    fig, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for ax, column, unit in ((axes[0], 1, "million parameters"), (axes[1], 2, "billion multiply-adds (logarithmic)")):
        xs = [summaries[n].parameters / 1e6 if column == 1 else summaries[n].mult_adds / 1e9 for n in top1]
        ax.plot(xs, list(top1.values()), "o-", color="C1", label="EfficientNet (sizes counted here)")
        for name, x in zip(top1, xs, strict=True):
            ax.annotate(name.upper(), (x, top1[name]), (5, -11), textcoords="offset points", color="C1")
        ax.plot(
            [o[column] for o in others.values()], [o[0] for o in others.values()], "s", color="C6", markersize=5, label="others"
        )
        for name, other in others.items():
            place = {"xytext": (5, -3)}
            if name in ("Xception", "NASNet-A"):  # so that no two names overlap
                place = {"xytext": (5, 3)} if name == "Xception" else {"xytext": (-5, -3), "ha": "right"}
            ax.annotate(name, (other[column], other[0]), textcoords="offset points", fontsize=8, color="C6", **place)
        ax.set(xlabel=unit)
        ax.grid(True)
    axes[0].set(ylabel="top-1 accuracy on ImageNet, percent", xlim=(0, 190), title="Published accuracy against size")
    axes[1].set(xscale="log", xlim=(0.3, 130), title="and against arithmetic")
    axes[0].legend(loc="lower right")
    plt.show()


def by_stage(shares):
    """Percent of parameters and of multiply-adds by stage: {network: (10, 2)}."""
    labels = ["stem", *(f"stage {i}" for i in range(7)), "head", "classifier"]
    fig, axes = plt.subplots(1, 2, figsize=(10.5, 3.2), sharey=True)
    for ax, column, title in ((axes[0], 0, "parameters"), (axes[1], 1, "multiply-adds")):
        for offset, (name, share) in zip((-0.2, 0.2), shares.items(), strict=True):
            ax.bar(np.arange(10) + offset, share[:, column], width=0.4, label=name.upper())
        ax.set(title=title)
        ax.set_xticks(range(10), labels, rotation=45, ha="right")
    axes[0].set_ylabel("percent of the network")
    axes[0].legend()
    plt.show()


# -- 05 · Against PyTorch ---------------------------------------------------------------------------------------------


def by_depth(ax, rows, **look):
    """Relative error of every activation, in call order; what agrees to the last bit is drawn at the bottom."""
    errors = np.array([np.nan if row.relative is None else min(max(row.relative, 1e-9), 10) for row in rows])
    wrong = np.array([row.status not in ("OK", "FORCED") for row in rows])
    ax.plot(np.flatnonzero(~wrong), errors[~wrong], ".", markersize=3, **look)
    ax.plot(np.flatnonzero(wrong), errors[wrong], "o", markersize=3, color="C1")
    ax.set(yscale="log", xlabel="activation, in call order")
    ax.grid(True, axis="y")


def errors_by_depth(titles, comparisons, title, top=20):
    """Comparisons side by side: error of each activation against its place; wrong ones in the second colour."""
    fig, axes = plt.subplots(1, len(comparisons), figsize=(11.5, 3), sharey=True)
    for ax, name, comparison in zip(axes, titles, comparisons, strict=True):
        by_depth(ax, comparison.rows)
        ax.axhline(np.finfo(np.float32).eps, color="C2", linewidth=1, label="float32's precision, 1.2e-7")
        ax.set(title=name, ylim=(5e-10, top))
    axes[0].set_ylabel("error ÷ largest number")
    axes[0].legend(fontsize=7)
    fig.suptitle(f"{title} (exact agreement is drawn at the bottom)")
    plt.show()


def rounding_errors(place, total, own, kinds):
    """Error of layers with all before them (full dots) and of the layer alone (rings): kinds {label: names}."""
    fig, ax = plt.subplots(figsize=(10.5, 3.2))
    for colour, (label, names) in enumerate(kinds.items()):
        at = [place[n] for n in names]
        ax.plot(at, [total[n] for n in names], "o", markersize=4, color=f"C{colour}", label=label)
        alone = [max(own[n], 1e-9) for n in names]
        ax.plot(at, alone, "o", markersize=4, color=f"C{colour}", markerfacecolor="none", label=f"{label}, own error")
    ax.axhline(np.finfo(np.float32).eps, color="C6", linewidth=1, label="float32's precision")
    ax.set(yscale="log", xlabel="activation, in call order", ylabel="error ÷ largest number", ylim=(5e-10, 1e-4))
    ax.set_title("float32 against float64, EfficientNet-Lite0 on the cat (exact agreement is drawn at the bottom)")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    plt.show()


def worst_by_photo(worst):
    """The largest rounding error of each photograph: a dot each."""
    fig, ax = plt.subplots(figsize=(9, 1.6))
    ax.plot(list(worst.values()), np.zeros(len(worst)), "o", alpha=0.6)
    ax.axvline(1e-4, color="C1", linestyle="--")
    ax.text(1e-4, 0.6, " compare's line", color="C1")
    ax.set(
        xscale="log", yticks=[], ylim=(-1, 1), xlim=(1e-7, 1e-3), xlabel="largest error of any activation; a dot a photograph"
    )
    plt.show()


def initialised(deviations, sizes):
    """Deviation of the numbers by depth, for several deviations of the first weights."""
    fig, ax = plt.subplots(figsize=(9.5, 3))
    for name, values in sizes.items():
        ax.plot(range(len(values)), values, "o-", markersize=3, label=name)
    ax.set(yscale="log", xlabel="block", ylabel="standard deviation")
    ax.set_xticks(range(len(values)), ["stem", *range(16), "logits"])
    ax.set_title("How large the numbers are, by depth, in a network that has just been initialised")
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    plt.show()


# -- 06 · What the network sees ---------------------------------------------------------------------------------------


def components(photos, columns, shares):
    """Photographs and, by depth, three principal components as colours: columns {depth: pictures (N, h, w, 3)}."""
    fig, axes = plt.subplots(len(photos), 1 + len(columns), figsize=(11, 1.45 * len(photos)))
    for line, (name, photo) in zip(axes, photos.items(), strict=True):
        line[0].imshow(visible(photo))
        line[0].set_ylabel(name)
    axes[0, 0].set_title("input", loc="center")
    for column, (name, found) in zip(axes.T[1:], columns.items(), strict=True):
        for ax, picture in zip(column, found, strict=False):
            ax.imshow(picture)
        column[0].set_title(name, loc="center")
        column[-1].set_xlabel(f"{found.shape[1]} × {found.shape[2]}\n{shares[name]:.0%} of variance", fontsize=8)
    for ax in axes.ravel():
        ax.set(xticks=[], yticks=[])
    fig.suptitle("Three principal components of the channels, as colours")
    plt.show()


def curves_by_depth(curves, title, ylabel, chance=None):
    """{label: array (photographs or seeds, 18)} by depth, median and middle half; dashed where the label says untrained."""
    fig, ax = plt.subplots(figsize=(9.5, 3.4))
    for colour, (label, values) in enumerate(curves.items()):
        band(ax, range(np.shape(values)[1]), values, label, f"C{colour}")
    if chance is not None:
        ax.axhline(chance, color="C6", linewidth=0.8, linestyle=":")
    ax.set(title=title, xlabel="depth", ylabel=ylabel)
    ax.set_xticks(range(18), ["stem", *range(16), "head"])
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    plt.show()


def alike(trained, untrained):
    """Cosines between a photograph and its variants, by depth, trained beside untrained."""
    fig, axes = plt.subplots(1, 2, figsize=(11.5, 3.4), sharey=True)
    for ax, curves, title in ((axes[0], trained, "trained"), (axes[1], untrained, "untrained")):
        for colour, (label, values) in enumerate(curves.items()):
            band(ax, range(18), values, label, "C6" if label.startswith("another") else f"C{colour}")
        ax.set(title=f"{title}: how alike two pictures are to the network", xlabel="depth", ylim=(-0.1, 1.02))
        ax.set_xticks([*range(0, 18, 2), 17], ["stem", *range(1, 16, 2), "head"], fontsize=8)
    axes[0].set_ylabel("cosine")
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    plt.show()


def channels(photo, depths):
    """The six liveliest channels of several blocks: depths {name: maps (C, H, W)}, each row on one scale."""
    fig, axes = plt.subplots(len(depths), 7, figsize=(10, 1.45 * len(depths)))
    for line, (name, maps) in zip(axes, depths.items(), strict=True):
        line[0].imshow(visible(photo))
        line[0].set_ylabel(f"{name}\n{' × '.join(map(str, maps.shape))}", fontsize=8)
        chosen = np.argsort(-maps.std(axis=(1, 2)))[:6]
        low, high = maps[chosen].min(), maps[chosen].max()
        for ax, c in zip(line[1:], chosen, strict=True):
            image = ax.imshow(maps[c], cmap="viridis", vmin=low, vmax=high)
            ax.set_title(f"channel {c}", loc="center", fontsize=8, pad=2)
        fig.colorbar(image, ax=line, shrink=0.9)
    for ax in axes.ravel():
        ax.set(xticks=[], yticks=[])
    fig.suptitle("The six liveliest channels of five blocks (one scale a row)")
    plt.show()


def contributions(ordered, running, logit, name):
    """What each feature adds to a logit, sorted, and the sum so far."""
    fig, axes = plt.subplots(1, 2, figsize=(10.5, 3), width_ratios=[1, 1.2])
    axes[0].bar(range(len(ordered)), ordered, width=1)
    axes[0].set(title=f"contributions to '{name}', sorted", xlabel="feature, by rank", ylabel="logit")
    axes[0].set_yscale("symlog", linthresh=0.01)
    axes[1].plot(range(1, len(ordered) + 1), running)
    axes[1].axhline(logit, color="C1", linestyle="--", linewidth=1)
    axes[1].text(len(ordered), logit - 0.25, f"the logit, {logit:.1f}", color="C1", ha="right", va="top")
    axes[1].set(title="added up in this order", xlabel="number of features", ylabel="logit so far", xscale="log")
    plt.show()


def enlarged(values, size=224):
    return np.array(PIL.Image.fromarray(np.float32(values)).resize((size, size), PIL.Image.Resampling.BILINEAR))


def over(ax, photo, values, limit):
    """A map over a grey photograph: warm for it, cold against it, one scale from -limit to limit."""
    ax.imshow(visible(photo).mean(axis=2), cmap="gray", vmin=0, vmax=1)
    ax.set(xticks=[], yticks=[])
    return ax.imshow(enlarged(values), cmap="RdBu_r", alpha=0.6, vmin=-limit, vmax=limit)


def activation_maps(photos, maps, titles):
    """Photographs and below each its class activation map, all on one scale."""
    fig, axes = plt.subplots(2, len(photos), figsize=(2.6 * len(photos), 5.3))
    limit = max(np.abs(m).max() for m in maps)
    for (top, bottom), photo, m, title in zip(axes.T, photos, maps, titles, strict=True):
        top.imshow(visible(photo))
        top.set(xticks=[], yticks=[])
        top.set_title(title, loc="center")
        image = over(bottom, photo, m, limit)
        bottom.set_xlabel(f"{m.min():.1f} to {m.max():.1f}, mean {m.mean():.1f}")
    fig.colorbar(image, ax=axes[1], label="logit at a place", shrink=0.9)
    fig.suptitle("Class activation maps of the first answer (warm: speaks for it, cold: against it)")
    plt.show()


def maps_of_classes(rows):
    """For each photograph, maps of several classes on one scale: rows [(photo, [(title, map)])]."""
    fig, axes = plt.subplots(len(rows), 1 + len(rows[0][1]), figsize=(11, 2.35 * len(rows)))
    for line, (photo, found) in zip(axes, rows, strict=True):
        line[0].imshow(visible(photo))
        line[0].set(xticks=[], yticks=[])
        limit = max(np.abs(m).max() for _, m in found)
        for ax, (title, m) in zip(line[1:], found, strict=True):
            image = over(ax, photo, m, limit)
            ax.set_title(title, loc="center", fontsize=9)
        fig.colorbar(image, ax=line, label="logit", shrink=0.85)
    fig.suptitle("Maps of the first four classes, on one scale a photograph")
    plt.show()


def map_and_paper(photos, maps, falls, correlations):
    """A class activation map beside what a sheet of grey paper does to the logit: both with their scale and sign."""
    if len(photos) == 1:
        fig, axes = plt.subplots(1, 3, figsize=(6.5, 2.7))
        axes = axes[:, None]
    else:
        fig, axes = plt.subplots(3, len(photos), figsize=(1.75 * len(photos), 5.4))
    for column, (name, photo) in zip(axes.T, photos.items(), strict=True):
        column[0].imshow(visible(photo))
        column[0].set_title(name, loc="center", fontsize=9)
        for ax, values, what in ((column[1], maps[name], "map"), (column[2], falls[name], "paper")):
            limit = np.abs(values).max()
            ax.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit)
            ax.set_xlabel(f"{what}: {values.min():.1f} to {values.max():.1f}", fontsize=7)
        column[1].set_title(f"correlation {correlations[name]:.2f}", loc="center", fontsize=8)
    for ax in axes.ravel():
        ax.set(xticks=[], yticks=[])
    plt.show()


# -- 07 · What is in a checkpoint -------------------------------------------------------------------------------------


def megabytes(groups, weights):
    """Megabytes by part of the network, and how weights are distributed; what the axis cuts off is said."""
    fig, axes = plt.subplots(1, 2, figsize=(11, 3.4), width_ratios=[1.4, 1])
    axes[0].bar(list(groups), [size / 1e6 for size in groups.values()])
    axes[0].tick_params(axis="x", rotation=70)
    axes[0].set(ylabel="megabytes", title=f"Where the {sum(groups.values()) / 1e6:.1f} MB are")
    edges = np.linspace(-4, 4, 161)
    for label, values in weights.items():
        share = np.full(values.size, 100 / values.size)
        axes[1].hist(np.clip(values, -4, 4), bins=edges, histtype="step", weights=share, label=label)
    cut = max(float((np.abs(values) > 4).mean()) for values in weights.values())
    outside = f" ({cut:.1%} of a layer at most lies outside)" if cut else ""
    axes[1].set(yscale="log", xlabel=f"weight{outside}", ylabel="percent of the weights")
    axes[1].set_title("What the numbers look like")
    axes[1].legend(fontsize=8)
    plt.show()


def instructions(used):
    """How often each instruction of a pickle is used."""
    fig, ax = plt.subplots(figsize=(9, 5.4))
    ranked = sorted(used.items(), key=lambda item: item[1])
    bars = ax.barh([name for name, _ in ranked], [count for _, count in ranked])
    ax.bar_label(bars, padding=3, fontsize=8)
    ax.tick_params(axis="y", labelsize=8)
    ax.margins(y=0.01)
    ax.set(xscale="log", xlabel="times used (logarithmic)", title="The instructions of Lite0's checkpoint")
    plt.show()


# -- 08 · From NumPy to the speed of the metal ------------------------------------------------------------------------


def roofline(profile, peak, blas, bandwidths):
    """Each step (kind, ms, operations, bytes) by intensity and speed; two roofs, slopes {label: bytes a second}."""
    fig, ax = plt.subplots(figsize=(10.5, 4.6))
    intensity = np.logspace(-1, 2.3, 200)
    for style, (label, bandwidth) in zip(("-", "--"), bandwidths.items(), strict=True):
        line = np.minimum(peak, intensity * bandwidth) / 1e9
        ax.plot(intensity, line, style, color="C6", linewidth=1.2, label=f"{label}, {bandwidth / 1e9:.0f} GB/s")
    for height, label in ((peak, "multiply-adds in registers"), (blas, "NumPy's BLAS")):
        ax.axhline(height / 1e9, color="C6" if height == peak else "C1", linewidth=1)
        ax.text(0.11, height / 1e9 * 1.06, f"{label}: {height / 1e9:.0f}", fontsize=8)
    kinds = list(dict.fromkeys(kind for kind, *_ in profile))
    for number, kind in enumerate(kinds):
        mine = [step for step in profile if step[0] == kind]
        at, speed = [flop / size for _, _, flop, size in mine], [flop / ms / 1e6 for _, ms, flop, _ in mine]
        label = f"{kind} ({sum(step[1] for step in mine):.1f} ms)"
        look = {"color": f"C{number % 6}", "markersize": 6, "alpha": 0.8, "label": label}
        ax.plot(at, speed, "osD^v<>"[number % 7], **look)
    ax.set(xscale="log", yscale="log", xlabel="intensity: operations a byte", ylabel="billion operations a second")
    ax.set_title("Roofline of one core; each point is a step of the compiled network")
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    ax.grid(True)
    plt.show()


def copy_speed(sizes, speeds):
    """Bytes a second of copying arrays of several sizes."""
    fig, ax = plt.subplots(figsize=(8, 2.6))
    ax.plot([size / 1e6 for size in sizes], [speed / 1e9 for speed in speeds], "o-")
    ax.set(
        xscale="log", yscale="log", xlabel="megabytes read and written", ylabel="GB/s", title="Copying an array, by its size"
    )
    ax.grid(True)
    plt.show()


# -- 09 · Backward, by hand -------------------------------------------------------------------------------------------


def judge(judged, computed, ax=None):
    """Gradients against finite differences, on both logarithmic axes with sign."""
    alone = ax is None
    if alone:
        fig, ax = plt.subplots(figsize=(4.6, 3.6))
    limit = 2 * np.abs(judged).max()
    ax.plot([-limit, limit], [-limit, limit], color="C6", linewidth=0.8)
    ax.plot(judged, computed, "o", markersize=4)
    for scale in (ax.set_xscale, ax.set_yscale):
        scale("symlog", linthresh=1e-4)
    ax.set(xlabel="finite differences", ylabel="chain rule")
    if alone:
        ax.set_title(f"{len(judged)} of 4.65 million gradients")
        ax.set_xticks([-1e-2, 0, 1e-2])
        plt.show()
    else:
        ax.set(xticks=[], yticks=[])
        ax.set_title("against finite differences", fontsize=8)


def gradients_by_depth(by_depth, judged, computed):
    """The length of each block's gradient: {network: [16 numbers a seed]}; inset: the gradient against finite differences."""
    fig, ax = plt.subplots(figsize=(10, 4))
    for colour, (title, curves) in enumerate(by_depth.items()):
        band(ax, range(16), curves, f"{title} ({len(curves)} seeds)" if len(curves) > 1 else title, f"C{colour}")
    ax.set(yscale="log", xlabel="block; the gradient comes from the right", ylabel="length of dL/d(output)", xticks=range(16))
    ax.set_title("How much of the loss's gradient arrives at each block")
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.7))
    judge(judged, computed, ax.inset_axes([1.06, 0.02, 0.26, 0.4]))
    plt.show()


def step(rates, downhill, promised, sideways, before):
    """The loss after one step, by rate: along the gradient, as promised by its slope, and in random directions."""
    fig, ax = plt.subplots(figsize=(8.5, 3.2))
    ax.plot(rates, downhill, "o-", label="against the gradient")
    ax.plot(rates[promised > 0], promised[promised > 0], "--", color="C0", linewidth=1, label="what the slope promises")
    for seed, losses in enumerate(sideways):
        ax.plot(rates, losses, ".-", color="C1", alpha=0.6, label="random directions, equally long" if seed == 0 else None)
    ax.axhline(before, color="C6", linewidth=0.8)
    ax.set(xscale="log", yscale="log", xlabel="rate", ylabel="loss", title="One step of all 4.65 million numbers")
    ax.legend(fontsize=8)
    plt.show()


# -- 10 · Optimisers --------------------------------------------------------------------------------------------------


def paths(loss, ways, lowest):
    """The ways of optimisers over one slice of a loss: ways {name: (steps, 2)}, loss (2,) -> (number, gradient)."""
    reach = np.abs(lowest)
    a, b = np.linspace(-0.6, 2.1, 60) * reach[0], np.linspace(-0.6, 1.6, 60) * reach[1]
    surface = np.array([[loss(np.array([u, v]))[0] for u in a] for v in b])
    fig, axes = plt.subplots(1, len(ways), figsize=(max(4.6, 2.2 * len(ways)), 3), sharey=True, squeeze=False)
    axes = axes[0]
    for colour, (ax, (name, way)) in enumerate(zip(axes, ways.items(), strict=True)):
        ax.contour(a, b, surface, levels=np.quantile(surface, np.linspace(0, 0.9, 10)), colors="#cfd8dc", linewidths=0.8)
        ax.plot(way[:, 0], way[:, 1], ".-", markersize=3, linewidth=0.9, color=f"C{colour}")
        ax.plot(*lowest, "k+", markersize=9)
        ax.set(title=name, xlabel="steep direction", xlim=(a[0], a[-1]), ylim=(b[0], b[-1]))
        ax.set_xticks([0, lowest[0]], ["0", f"{lowest[0]:.2f}"])
    axes[0].set_ylabel("flat direction")
    fig.suptitle("40 steps on one real slice of the loss; the cross is its lowest point", fontsize=10)
    plt.show()


def learning(rates, loss, right):
    """By rate: loss at the end and held-out accuracy, and the loss by epoch: loss {name: (rates, seeds, epochs)}."""
    fig, axes = plt.subplots(1, 3, figsize=(12, 3.3))
    for colour, name in enumerate(loss):
        band(axes[1], rates, np.minimum(loss[name][:, :, -1], 50).T, name, f"C{colour}")
        band(axes[2], rates, 100 * right[name].T, name, f"C{colour}")
        lowest = int(np.median(loss[name][:, :, -1], axis=1).argmin())
        band(axes[0], range(1, 1 + loss[name].shape[2]), loss[name][lowest], name, f"C{colour}")
    axes[0].set(yscale="log", xlabel="epoch", title="loss, at the rate that ends lowest")
    axes[0].legend(fontsize=8)
    axes[1].set(xscale="log", yscale="log", xlabel="rate", title="loss at the end, by rate")
    axes[2].set(xscale="log", xlabel="rate", title="held out, percent right, by rate")
    fig.suptitle("Median of five seeds; band: the middle half of them", fontsize=9)
    plt.show()


# -- 11 · Fine-tuning -------------------------------------------------------------------------------------------------


def cost(sizes, results, chance):
    """Held-out accuracy against pictures a class: {task: {way: (seeds, sizes)}}; band: the worst seed to the best."""
    fig, axes = plt.subplots(1, len(results), figsize=(11, 3.8), sharey=True)
    for ax, (title, by_way) in zip(axes, results.items(), strict=True):
        for number, (way, shares) in enumerate(by_way.items()):
            percent = 100 * shares
            ax.fill_between(sizes[title], percent.min(axis=0), percent.max(axis=0), color=f"C{number}", alpha=0.2, linewidth=0)
            ax.plot(sizes[title], np.median(percent, axis=0), "o-", color=f"C{number}", label=way)
        ax.axhline(100 * chance[title], color="C6", linewidth=0.8, linestyle=":", label="guessing")
        ax.set(xscale="log", ylim=(0, 100), xlabel="pictures a class (logarithmic)", title=title)
        ax.set_xticks(sizes[title], sizes[title])
        ax.set_xticks([], minor=True)
    axes[0].set_ylabel("held out, percent right")
    axes[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    fig.suptitle("What a class costs: median and range of three seeds")
    plt.show()


def by_rate(shares, head):
    """Held-out accuracy by learning rate, {rate: one a seed}, a dot a seed; the band: the head alone, from worst to best."""
    fig, ax = plt.subplots(figsize=(8, 3))
    rates = list(shares)
    ax.axhspan(100 * min(head), 100 * max(head), color="C2", alpha=0.2, linewidth=0, label="the head alone")
    for rate, values in shares.items():
        ax.plot([rate] * len(values), 100 * np.asarray(values), "o", color="C1", alpha=0.6)
    ax.plot(rates, [100 * np.median(values) for values in shares.values()], color="C1", label="all of it, median")
    ax.set(xscale="log", xlabel="learning rate (logarithmic)", ylabel="held out, percent right", ylim=(0, 100))
    ax.set_xticks(rates, [f"{rate:.0e}" for rate in rates])
    ax.set_xticks([], minor=True)
    ax.set_title("All of the network, five of each digit; a dot a seed")
    ax.legend(fontsize=8)
    plt.show()


# -- 12 · Which evidence survives a test? -----------------------------------------------------------------------------


def evidence(chosen, trained, untrained, shown):
    """Four kinds of evidence for one photograph, and below the same asked of an untrained network."""
    index = list(chosen).index(shown)
    fig, axes = plt.subplots(2, 1 + len(trained), figsize=(11.5, 4.9))
    for line, found, title in zip(axes, (trained, untrained), ("trained", "random weights"), strict=True):
        line[0].imshow(visible(chosen[shown]))
        line[0].set_ylabel(title)
        for ax, (name, maps) in zip(line[1:], found.items(), strict=True):
            image = ax.imshow(maps[index], cmap="inferno", vmin=0)
            ax.set_title(name, loc="center", fontsize=9)
            fig.colorbar(image, ax=ax, shrink=0.75).ax.tick_params(labelsize=6)
    for ax in axes.ravel():
        ax.set(xticks=[], yticks=[])
    fig.suptitle("Evidence for the first answer, and for the same class from a network that has learned nothing (own scales)")
    plt.show()


def likeness(groups):
    """Rank correlations by method: {title: {method: [one a photograph]}}, dots and medians."""
    fig, axes = plt.subplots(1, len(groups), figsize=(12, 2.4), sharey=True)
    for ax, (title, by_method) in zip(axes, groups.items(), strict=True):
        for row, values in enumerate(by_method.values()):
            ax.plot(values, np.full(len(values), row), "o", alpha=0.6)
            ax.plot([np.median(values)] * 2, [row - 0.3, row + 0.3], color="k", linewidth=1)
        ax.axvline(0, color="C6", linewidth=0.8)
        ax.set(title=title, xlabel="rank correlation; a dot a photograph", xlim=(-0.9, 1), ylim=(len(by_method) - 0.5, -0.5))
        ax.set_yticks(range(len(by_method)), list(by_method))
    plt.show()


def falls(by_method, names):
    """How far the logit falls when what a method prefers is covered: a dot a photograph, the line their median."""
    fig, ax = plt.subplots(figsize=(11, 3.2))
    markers = "osD^v<>*"
    for place, values in enumerate(by_method.values()):
        ax.plot([place - 0.3, place + 0.3], [np.median(values)] * 2, color="k", linewidth=1)
        for number, value in enumerate(values):
            label = names[number] if place == 0 else None
            ax.plot(place, value, markers[number % 8], color=f"C{number}", alpha=0.7, label=label)
    ax.set_xticks(range(len(by_method)), list(by_method), fontsize=8)
    ax.axhline(0, color="C6", linewidth=0.8)
    ax.set(ylabel="fall of the logit", title="A fifth of the picture covered, as each method prefers; line: median")
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    plt.show()


# -- 13 · Adversarial examples ----------------------------------------------------------------------------------------


def attacked(photos, changed, before, after):
    """Photographs, what is added to them (made visible, one scale), and the result, each with what the network says."""
    if len(photos) == 1:
        fig, axes = plt.subplots(1, 3, figsize=(7.6, 2.9))
        axes = axes[:, None]
    else:
        fig, axes = plt.subplots(3, len(photos), figsize=(2.5 * len(photos), 7.6))
    for column, x, y, first, then in zip(axes.T, photos, changed, before, after, strict=True):
        column[0].imshow(visible(x))
        column[0].set_title(first, loc="center", fontsize=9)
        column[1].imshow(np.clip(0.5 + 32 * (y - x).transpose(1, 2, 0), 0, 1))
        column[1].set_xlabel("what is added, 32 times", fontsize=8)
        column[2].imshow(visible(y))
        column[2].set_title(then, loc="center", fontsize=9, color="C1" if then.split(",")[0] != first.split(",")[0] else "k")
    for ax in axes.ravel():
        ax.set(xticks=[], yticks=[])
    plt.show()


def survival(sizes, kept, noise):
    """Share of photographs that keep their first answer, by the size of the change; noise (sizes, seeds)."""
    fig, ax = plt.subplots(figsize=(9, 3.4))
    ax.plot(sizes, 100 * kept, "o-", color="C1", label="sign of the gradient, one step")
    ax.fill_between(sizes, 100 * noise.min(axis=1), 100 * noise.max(axis=1), color="C0", alpha=0.2, linewidth=0)
    ax.plot(sizes, 100 * np.median(noise, axis=1), "o-", color="C0", label="random signs (band: five seeds)")
    ax.set(xscale="log", ylim=(-3, 103), xlabel="ε, in steps of brightness (of 255)", ylabel="percent that keep their answer")
    ax.set_xticks(sizes, [f"{size:g}" for size in sizes])
    ax.set_title("How many photographs keep the network's first answer")
    ax.legend(fontsize=8)
    plt.show()


# -- 14 · The same network, six ways ----------------------------------------------------------------------------------


def windows(cases):
    """Where windows of stride 2 lie, with zeros as SAME puts them and on all sides: {title: (side, kernel, zeros of SAME)}."""
    fig, axes = plt.subplots(1, len(cases), figsize=(11 if len(cases) > 1 else 7, 2.6), squeeze=False)
    for ax, (title, (side, kernel, same)) in zip(axes[0], cases.items(), strict=True):
        for row, (before, after) in enumerate((same, (kernel // 2, kernel // 2))):
            for place in range(-before, side + after):
                colour = "#cfd8dc" if 0 <= place < side else "white"
                ax.add_patch(plt.Rectangle((place, -1.9 * row), 1, 0.8, facecolor=colour, edgecolor="C6", linewidth=0.8))
                text = chr(ord("a") + place) if 0 <= place < side else "0"
                ax.text(place + 0.5, -1.9 * row + 0.4, text, ha="center", va="center", fontsize=8)
            for window in range((side + before + after - kernel) // 2 + 1):
                left, low = 2 * window - before, -1.9 * row - 0.15 - 0.22 * (window % (kernel // 2 + 1))
                ax.plot([left + 0.1, left + kernel - 0.1], [low, low], color=f"C{row}", linewidth=3)
        ax.set(
            xlim=(-kernel // 2 - 0.4, side + kernel // 2 + 0.4),
            ylim=(-2.8, 1.1),
            xticks=[],
            yticks=[0.4, -1.5],
            title=f"{title}; lines are windows",
        )
        ax.set_yticklabels(["SAME", "all sides"])
        ax.spines[:].set_visible(False)
    plt.show()


def confusion(names, apart):
    """Logits of one library's network against another's: {side: (names, names, photographs)}, median and range in percent."""
    fig, axes = plt.subplots(1, len(apart), figsize=(12, 4.3))
    for ax, (side, table) in zip(axes, apart.items(), strict=True):
        image = ax.imshow(100 * np.median(table, axis=2), cmap="Blues", vmin=0, vmax=30)
        for (row, column), value in np.ndenumerate(np.median(table, axis=2)):
            low, high = 100 * table[row, column].min(), 100 * table[row, column].max()
            text = f"{100 * value:.0f}%\n{low:.0f} to {high:.0f}" if high > 1e-3 else "0"
            ax.text(column, row, text, ha="center", va="center", fontsize=7, color="w" if value > 0.2 else "k")
        ax.set_xticks(range(len(names)), names, rotation=30)
        ax.set_yticks(range(len(names)), names)
        ax.set(title=f"{side} × {side}", xlabel="the right one", ylabel="read as" if side == min(apart) else None)
        ax.spines[:].set_visible(False)
    fig.colorbar(image, ax=axes, label="largest change of a logit ÷ largest logit, percent", shrink=0.85)
    fig.suptitle("Six libraries' zeros and ε on Lite0's weights: median of the photographs, and their range")
    plt.show()


def stretch(variance, factor, random_variance):
    """By how much a wrong ε stretches each channel, over its variance; below, where the variances lie, here and at random."""
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(9, 4.2), sharex=True, height_ratios=[1.6, 1])
    top.plot(variance, factor, ".", markersize=3)
    top.axhline(1.05, color="C6", linewidth=0.8)
    top.set(ylabel="stretched by", yscale="log", title="A channel of Lite0, read with ε = 0.00001 for 0.001; grey line: 5%")
    top.set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"])
    top.minorticks_off()
    bins = np.logspace(-6, 3, 91)
    for values, label in ((variance, "Lite0, trained"), (random_variance, "B0, random")):
        share = np.full(len(values), 100 / len(values))
        bottom.hist(np.clip(values, bins[0], bins[-1]), bins=bins, weights=share, histtype="step", label=label)
    bottom.set(xscale="log", xlabel="the channel's variance", ylabel="percent of channels")
    bottom.legend(fontsize=8)
    plt.show()


def readings(by_depth, hints, kept, count):
    """The error of each layer (photographs, layers) of each wrong reading, and what `compare` says of it."""
    fig, axes = plt.subplots(2, 3, figsize=(12.5, 6.6), sharey=True, sharex=True)
    for ax, (name, errors) in zip(axes.ravel(), by_depth.items(), strict=True):
        known = np.flatnonzero(~np.isnan(errors).any(axis=0))
        low, middle, high = np.percentile(np.maximum(errors[:, known], 1e-5), (25, 50, 75), axis=0)  # 1e-5: no error
        ax.fill_between(known, low, high, color="C1", alpha=0.25, linewidth=0)
        ax.plot(known, middle, ".", markersize=3, color="C1")
        ax.set(yscale="log", ylim=(7e-6, 4), title=f"{name}: {kept[name]} of {count} answers kept")
        hint = textwrap.fill(textwrap.shorten(hints[name], 175, placeholder=" ..."), 58)
        ax.text(0.03, 0.07, f"hint: {hint}", transform=ax.transAxes, fontsize=7, va="bottom", style="italic")
        ax.grid(True, axis="y")
    for ax in axes[:, 0]:
        ax.set_ylabel("size of the error ÷ size of the signal")
    for ax in axes[1]:
        ax.set_xlabel("layer, in call order")
    fig.suptitle(
        "Lite0 read in six wrong ways: error by depth (median and middle half of the photographs; at the bottom: none)"
    )
    plt.show()


def moved(by_reading, kept, count):
    """What share of the probability moves to other classes, a dot a photograph, by reading; the line is the median."""
    fig, ax = plt.subplots(figsize=(9.5, 2.9))
    for row, values in enumerate(by_reading.values()):
        ax.plot(100 * values, np.full(len(values), row) + np.linspace(-0.2, 0.2, len(values)), "o", markersize=4, alpha=0.7)
        ax.plot([100 * np.median(values)] * 2, [row - 0.35, row + 0.35], color="k", linewidth=1.2)
    labels = [f"{name}\n{kept[name]} of {count} answers kept" for name in by_reading]
    ax.set_yticks(range(len(by_reading)), labels, fontsize=8)
    ax.set(ylim=(len(by_reading) - 0.5, -0.5), xlim=(-2, 102), xlabel="percent of the probability that moves to other classes")
    ax.set_title("What it does to the answers: a dot a photograph, line: median")
    plt.show()


def remembered(further):
    """By how much more than in the right reading channels' means are off: {reading: one number a draw of photographs}."""
    fig, ax = plt.subplots(figsize=(9, 2.1))
    for row, values in enumerate(further.values()):
        low, high = np.percentile(values, (5, 95))
        ax.plot([low, high], [row, row], color=f"C{row}", linewidth=5, alpha=0.35, solid_capstyle="butt")
        ax.plot(np.median(values), row, "o", color=f"C{row}")
    ax.axvline(0, color="k", linewidth=0.8)
    ax.set_yticks(range(len(further)), list(further))
    ax.set(ylim=(len(further) - 0.5, -0.5), xlabel="further from the remembered means than the right reading, in deviations")
    ax.set_title("Which network does the file remember? Dot: median of 200 draws of photographs; bar: nine tenths")
    plt.show()


# -- 15 · EfficientNetV2 ----------------------------------------------------------------------------------------------


def two_networks(networks):
    """Where networks have their multiply-adds and parameters: {network: {part: (multiply-adds, parameters)}}."""
    fig, axes = plt.subplots(1, 2, figsize=(11, 3), sharey=True)
    parts = list(dict.fromkeys(part for found in networks.values() for part in found))
    parts = [part for part in parts if part != "head"] + ["head"]
    for ax, which, unit, scale in zip(axes, (0, 1), ("billion multiply-adds", "million parameters"), (1e9, 1e6), strict=True):
        for number, (name, found) in enumerate(networks.items()):
            values = [found.get(part, (0, 0))[which] / scale for part in parts]
            ax.barh(np.arange(len(parts)) + 0.36 * number - 0.18, values, height=0.34, label=f"{name}: {sum(values):.1f}")
        ax.set(xlabel=unit)
        ax.legend(fontsize=8)
    axes[0].set_yticks(range(len(parts)), parts)
    axes[0].invert_yaxis()
    plt.show()


def price_by_stage(places, arithmetic, ratios):
    """Fused-MBConv over MBConv: arithmetic as bars, measured times (rounds) as points with the middle half of the rounds."""
    fig, ax = plt.subplots(figsize=(10, 4))
    ax.bar(range(len(places)), list(arithmetic.values()), width=0.7, color="#cfd8dc", label="arithmetic")
    for number, (way, by_place) in enumerate(ratios.items()):
        low, middle, high = np.percentile(np.array(list(by_place.values())), (25, 50, 75), axis=1)
        at, errors = np.arange(len(places)) + 0.16 * number - 0.08, (middle - low, high - middle)
        ax.errorbar(at, middle, errors, fmt="os"[number], color=f"C{number}", capsize=3, label=f"time, {way} (middle half)")
    ax.axhline(1, color="k", linewidth=0.8)
    ax.text(len(places) - 0.5, 0.93, "below: Fused is faster", ha="right", va="top", fontsize=8)
    titles = [f"stage {s}\n{c} channels\n{side} × {side}, expand {t}" for s, (c, side, t) in places.items()]
    ax.set_xticks(range(len(places)), titles, fontsize=7)
    ax.set(yscale="log", ylim=(0.5, 8), ylabel="Fused-MBConv ÷ MBConv", title="What the fused block costs, on one core")
    ax.set_yticks([0.5, 1, 2, 4, 8], ["½", "1", "2", "4", "8"])
    ax.minorticks_off()
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    plt.show()


def busy(speed):
    """Billion operations a second of each kind of step: a dot a stage and place."""
    fig, ax = plt.subplots(figsize=(9, 2.4))
    for row, values in enumerate(speed.values()):
        ax.plot(values, np.full(len(values), row), "o", alpha=0.6)
        ax.plot([np.median(values)] * 2, [row - 0.3, row + 0.3], color="k", linewidth=1)
    ax.set_yticks(range(len(speed)), list(speed))
    ax.set(ylim=(len(speed) - 0.5, -0.5), xlim=(0, None), xlabel="billion operations a second (as the layer counts them)")
    ax.set_title("How busy the core is in each kind of step; a dot a stage, line: median")
    plt.show()


def winograd(lost, multiplications):
    """Rounding error over the multiplications that an output costs: {way: errors}, {way: multiplications}."""
    fig, ax = plt.subplots(figsize=(9, 3.2))
    for number, (way, errors) in enumerate(lost.items()):
        low, middle, high = np.percentile(errors, (5, 50, 95))
        ax.errorbar(multiplications[way], middle, [[middle - low], [high - middle]], fmt="o", capsize=3, color=f"C{number}")
        ax.annotate(way, (multiplications[way], middle), (8, 3), textcoords="offset points", fontsize=8, color=f"C{number}")
    ax.set(yscale="log", xlim=(1, 11), xlabel="multiplications for an output (a 3 × 3 kernel, one channel)")
    ax.set(ylabel="error ÷ largest output", title="Fewer multiplications, fewer digits (bars: nine tenths of the draws)")
    ax.grid(True, axis="y")
    plt.show()


def whole(works, answers):
    """Time of whole networks against their arithmetic, the range of the runs as bars; dashed: as B0, for its arithmetic."""
    fig, ax = plt.subplots(figsize=(8.5, 3.4))
    first = next(iter(works))
    ends = np.array([min(works.values()) * 0.7, max(works.values()) * 1.4])
    ax.plot(ends / 1e9, ends / works[first] * np.median(answers[first]), "--", color="C6", linewidth=1)
    for name, values in answers.items():
        middle, colour = np.median(values), "C1" if name.startswith("v2") else "C0"
        span = [[middle - min(values)], [max(values) - middle]]
        ax.errorbar(works[name] / 1e9, middle, span, fmt="o", capsize=3, color=colour)
        ax.annotate(name, (works[name] / 1e9, middle), (7, -9), textcoords="offset points", fontsize=9, color=colour)
    ax.set(xscale="log", yscale="log", xlabel="billion multiply-adds", ylabel="milliseconds a picture")
    ax.set_title(f"Whole networks on one core; bars: all runs; dashed: in proportion to {first}")
    ax.grid(True)
    plt.show()


def phases(work, epochs, constant):
    """Multiply-adds a picture over the epochs of progressive learning: {size: multiply-adds}; beside them the largest size."""
    fig, ax = plt.subplots(figsize=(8.5, 2.8))
    for number, (size, value) in enumerate(work.items()):
        ax.bar((number + 0.5) * epochs, value / 1e9, width=0.97 * epochs)
        ax.text((number + 0.5) * epochs, value / 1e9, f"{size} × {size}", ha="center", va="bottom", fontsize=8)
    ax.axhline(constant / 1e9, color="C6", linewidth=1, linestyle="--")
    ax.set(xlabel="epoch", ylabel="billion multiply-adds", ylim=(0, 1.2 * constant / 1e9))
    ax.set_title("V2-S, a picture forward, as training goes on (dashed: the last size from the beginning)")
    plt.show()


def growth(pairs):
    """Blocks that a large network has beyond the small one, by stage, and where even growth would have put them.

    pairs: {title: (blocks of each stage of the small one, of the large one)}; a stage that the small one lacks has 0.
    """
    fig, axes = plt.subplots(1, len(pairs), figsize=(10, 2.8), sharey=True)
    for ax, (title, (small, large)) in zip(axes, pairs.items(), strict=True):
        ax.bar(range(len(small)), large - small, color="C0", label="added")
        even = small * (large.sum() / small.sum() - 1)
        ax.plot(range(len(small)), even, "D", color="C1", label="if all stages grew alike")
        ax.set(title=title, xlabel="stage", xticks=range(len(small)))
    axes[0].set_ylabel("blocks")
    axes[0].legend(fontsize=8)


# -- 16 · Scaling out -------------------------------------------------------------------------------------------------


def latencies(milliseconds):
    """How the times of one call are distributed, with the median and what 99% stay below."""
    fig, ax = plt.subplots(figsize=(8, 2.6))
    edges = np.geomspace(milliseconds.min(), milliseconds.max() * 1.001, 50)
    ax.hist(milliseconds, bins=edges, color="C0")
    for share, colour in ((50, "C1"), (99, "C2")):
        value = np.percentile(milliseconds, share)
        ax.axvline(value, color=colour, label=f"{share}% within {value:.1f} ms")
    ticks = [tick for tick in (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100, 200) if edges[0] <= tick <= edges[-1]]
    ax.set(xscale="log", xlabel="milliseconds (logarithmic)", ylabel="runs")
    ax.set_title(f"One picture, one core, {len(milliseconds)} times")
    ax.set_xticks(ticks, ticks)
    ax.set_xticks([], minor=True)
    ax.legend(fontsize=8)
    plt.show()


def amdahl(shares, cores, best):
    """Amdahl's line for each serial share {name: s}, and what was measured with 1 and with `cores` cores."""
    fig, ax = plt.subplots(figsize=(8, 3.4))
    n = np.geomspace(1, 64, 100)
    ax.plot(n, n, color="C6", linewidth=0.8, linestyle=":", label="n cores, n times as fast")
    for number, ((name, share), suffix) in enumerate(zip(shares.items(), ("", ", file"), strict=True)):
        label = f"{name}: {share:.0%} serial"
        ax.plot(n, 1 / (share + (1 - share) / n), color=f"C{number}", label=label)
        if cores > 1:
            speedup = best["one" + suffix] / best["all" + suffix]
            ax.plot([1, cores], [1, speedup], "o", color=f"C{number}", markersize=7)
    ax.set(xscale="log", yscale="log", xlabel="cores (logarithmic)", ylabel="times as fast (logarithmic)")
    ax.set_xticks([1, 2, 4, 8, 16, 32, 64], [1, 2, 4, 8, 16, 32, 64])
    ax.set_yticks([1, 2, 4, 8, 16, 32, 64], [1, 2, 4, 8, 16, 32, 64])
    ax.minorticks_off()
    ax.set_title("One picture on n cores: measured (dots), and Amdahl's line")
    ax.legend(fontsize=8)
    plt.show()


def batches(sizes, seconds):
    """Pictures a second by batch, as times of the batch of 1: seconds {name: (sizes, 3)}: best, median, 90th percentile."""
    fig, ax = plt.subplots(figsize=(8, 3.2))
    sizes = np.asarray(sizes)
    for number, (name, times) in enumerate(seconds.items()):
        low, middle, high = (sizes[:, None] / times / (1 / times[0, 1])).T[::-1]
        ax.fill_between(sizes, low, high, color=f"C{number}", alpha=0.2, linewidth=0)
        ax.plot(sizes, middle, "o-", color=f"C{number}", label=name)
    ax.axhline(1, color="C6", linewidth=0.8, linestyle=":")
    ax.set(xscale="log", yscale="log", xlabel="pictures in a call", ylabel="throughput, times that of one")
    ax.set_xticks(sizes, sizes)
    ax.set_yticks([0.5, 1, 2, 4, 8], ["½", 1, 2, 4, 8])
    ax.minorticks_off()
    ax.set_title("What a batch brings, one core; band: the best run to 90%")
    ax.legend(fontsize=8)
    plt.show()


def scaling(sizes, points, alone, share, cores):
    """Throughput against latency: points {way: (batches, 3)} seconds, best, median and 90th percentile; and Amdahl's line."""
    fig, ax = plt.subplots(figsize=(9.5, 4.6))
    for (name, seconds), colour in zip(points.items(), ("C0", "C1", "C2"), strict=False):
        rate = np.asarray(sizes)[:, None] / seconds
        ax.plot(1000 * seconds.T, rate.T, color=colour, alpha=0.3, linewidth=4, solid_capstyle="round")
        ax.plot(1000 * seconds[:, 1], rate[:, 1], "o-", color=colour, label=name)
        for size, x, y in zip(sizes, 1000 * seconds[:, 1], rate[:, 1], strict=True):
            ax.annotate(size, (x, y), textcoords="offset points", xytext=(4, -11), fontsize=7, color=colour)
    n = np.array([1, 2, 4, 8, 16, 64])
    times = alone * (share + (1 - share) / n)
    ax.plot(1000 * times, 1 / times, "k.--", linewidth=1, label=f"Amdahl, one picture, {share:.0%} serial")
    for count, time in zip(n, times, strict=True):
        if count > cores:
            ax.annotate(f"{count} cores", (1000 * time, 1 / time), textcoords="offset points", xytext=(5, 2), fontsize=7)
    ax.plot([1000 * alone] * 2, [1 / alone, 16 / alone], "k:", linewidth=1, label="a picture for each core, up to 16 cores")
    ax.set(xscale="log", yscale="log", xlabel="latency: milliseconds until the call is done", ylabel="pictures a second")
    for set_ticks, (low, high) in ((ax.set_xticks, ax.get_xlim()), (ax.set_yticks, ax.get_ylim())):
        ticks = [tick * 10**power for power in range(-2, 5) for tick in (1, 2, 5) if low <= tick * 10**power <= high]
        set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set_title("Numbers at dots: pictures in the call; bars: the best run to 90%; black: computed, not measured")
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    plt.show()


def queue(loads, waited):
    """Mean waiting time by load, waited {cores: (loads, seeds)}, and Pollaczek and Khinchine's line for one core."""
    fig, ax = plt.subplots(figsize=(8, 3.2))
    line = np.linspace(0.25, 0.96, 100)
    ax.plot(line, line / (2 * (1 - line)), color="C6", linewidth=0.8, linestyle=":", label="the formula, one core")
    for number, (cores, means) in enumerate(waited.items()):
        ax.fill_between(loads, means.min(axis=1), means.max(axis=1), color=f"C{number}", alpha=0.2, linewidth=0)
        ax.plot(loads, np.median(means, axis=1), "o-", color=f"C{number}", label=f"{cores} core{'s' * (cores > 1)}, one queue")
    ax.set(xlabel="load of each core", ylabel="waiting, in pictures' time", title="How long a picture waits; band: three seeds")
    ax.legend(fontsize=8)
    plt.show()


def plan(machines, hours, rate):
    """Hours by number of machines, simulated {pictures: (machines, seeds)}, and N / (3600 r M)."""
    fig, ax = plt.subplots(figsize=(8, 3.4))
    machines = np.asarray(machines)
    for number, (pictures, found) in enumerate(hours.items()):
        ax.plot(machines, pictures / (3600 * rate * machines), color=f"C{number}", linewidth=1, linestyle=":")
        ax.fill_between(machines, found.min(axis=1), found.max(axis=1), color=f"C{number}", alpha=0.2, linewidth=0)
        ax.plot(machines, np.median(found, axis=1), "o-", color=f"C{number}", label=f"{pictures:,} pictures")
    ax.set(xscale="log", yscale="log", xlabel="machines", ylabel="hours until all is done")
    ax.set_title("Simulated (three seeds), and N / (3600 r M), dotted")
    ax.legend(fontsize=8)
    plt.show()
