"""The figures of the course. A notebook computes, and hands arrays to a function of this file; what it shows is written there.

Functions draw with Matplotlib in the look of course.mplstyle, and call plt.show(). `ax` is a set of axes that somebody else made.
"""

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image

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
    fig, axes = plt.subplots(len(rows), len(rows[0]), figsize=(1.55 * len(rows[0]) + 0.3, 1.65 * len(rows) + 0.3), squeeze=False)
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
    fig.suptitle("One channel on its way: the picture shrinks, the number of channels grows (channels × height × width)")
    plt.show()


def logits_and_probabilities(logits, probabilities, best, short):
    """How 1,000 logits are distributed, with the first ones marked, and the largest probabilities."""
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.2))
    axes[0].hist(logits, bins=60, color="#b0bec5")
    for rank, index in enumerate(best[:3]):
        axes[0].axvline(logits[index], color=f"C{rank + 1}", label=f"{short(index)}, {logits[index]:.2f}")
    axes[0].set(title="1,000 logits, and the first three of them", xlabel="logit", ylabel="classes", yscale="log")
    axes[0].legend(fontsize=8, loc="upper center")
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
    fig.colorbar(image, ax=axes[1], label="darker ← → brighter", shrink=0.8)
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
    for row, (name, values) in enumerate(shares.items()):
        ax.plot(np.sort(values), np.full(len(values), row) + np.linspace(-0.25, 0.25, len(values)), "o", markersize=4)
        ax.plot([np.median(values)] * 2, [row - 0.35, row + 0.35], color="k", linewidth=1)
    ax.set(yticks=range(len(shares)), ylim=(len(shares) - 0.5, -0.5), xlabel="1: one smooth pattern; dots are kernels, lines medians")
    ax.set_yticklabels(list(shares))
    ax.set_title("How much neighbouring weights resemble each other (correlation)")
    plt.show()


def times_cheaper(full, separable, limit):
    """Cost of a full convolution over that of a separable one, for kernels of 3, 5 and 7 and up to `limit` channels."""
    channels = np.arange(1, 513)
    fig, ax = plt.subplots(figsize=(7, 3))
    for k in (3, 5, 7):
        (line,) = ax.plot(channels, full(k, channels, channels) / separable(k, channels, channels), label=f"kernel {k} × {k}")
        ax.axhline(k * k, color=line.get_color(), linestyle=":", linewidth=1)
        ax.annotate(f"{full(k, limit, limit) / separable(k, limit, limit):.1f}", (limit - 6, 0.99 * k * k), ha="right", va="bottom")
    ax.axvline(limit, color="C6", linewidth=0.8)
    ax.set(xlabel="channels in and out", ylabel="times cheaper", yscale="log", xlim=(0, 520))
    ax.set_title(f"full ÷ separable; dotted: the limit K²; numbers: at {limit} channels")
    ax.set_yticks([1, 3, 9, 25, 49], ["1", "3", "9", "25", "49"])
    ax.legend(loc="lower right")
    plt.show()
