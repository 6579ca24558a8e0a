"""What in a picture speaks for a class: class activation maps, and the picture that shows one of these or other evidence.

After the last convolution come a mean over all positions and a linear layer, and both are sums, which may change places: each
position has a score of its own for a class, and the class's logit is the mean of these scores. That map is exact and needs no
gradient (Zhou et al., "Learning Deep Features for Discriminative Localization", arXiv 1512.04150). The other methods of
`evidence` ask the gradient, or cover things up: training/evidence.py.

Letters: `N` batch, `C` channels, `H` and `W` height and width; `h` and `w` the size of the last feature map (7 x 7 at 224).
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from effnet_np.checkpoints.files import replacing
from effnet_np.images.io import MAX_PIXELS
from effnet_np.inference.classify import DEFAULT_MODEL, check_count, find_class, get_model
from effnet_np.inference.stream import load_pixels, preprocess, ranked
from effnet_np.model import EfficientNetForImageClassification
from effnet_np.pretrained import check_pixel_values
from effnet_np.printable import printable

if TYPE_CHECKING:
    from PIL.Image import Image


def class_activation_map(
    model: EfficientNetForImageClassification,
    pixel_values: np.ndarray,
    class_index: int | Sequence[int] | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Each position's score for a class, in logits: pixel_values (N, C, H, W) -> (N, H, W), in the model's dtype.

    class_index: one class for all pictures, or one for each; None means each picture's first. size: (height, width) of the
    result, bilinear, in place of (H, W); at the feature map's own size (h, w) the mean of a map is the class's logit, to
    rounding. Raises ValueError for a network that does not end in a mean and a linear layer, and for an unknown class.
    """
    if not isinstance(model, EfficientNetForImageClassification) or model.num_labels < 1:
        raise ValueError(f"a class activation map needs a model with a classifier, and this {type(model).__name__} has none")
    if model.config.pooling_type != "mean":
        pooling = model.config.pooling_type
        raise ValueError(f"a class activation map needs global average pooling, and this model's pooling_type is {pooling!r}")
    features = model.efficientnet(pixel_values, return_dict=True).last_hidden_state  # (N, C, h, w)
    classes = classes_of(model, model.classifier(features.mean(axis=(2, 3))), class_index)
    weight, bias = model.classifier.weight, model.classifier.bias  # type: ignore[union-attr]
    scores = np.einsum("nchw,nc->nhw", features, weight[classes]) + bias[classes][:, None, None]  # -> (N, h, w)
    return resize_bilinear(scores, np.shape(pixel_values)[2:] if size is None else size)


def classes_of(model: Any, logits: np.ndarray, class_index: Any) -> np.ndarray:
    """One class a picture, as (N,): what was asked for, or each picture's first."""
    if class_index is None:
        return logits.argmax(axis=1)
    classes = np.asarray(class_index)
    if classes.dtype.kind not in "iu" or classes.ndim > 1 or (classes.ndim == 1 and len(classes) != len(logits)):
        raise ValueError(f"class_index must be a whole number, or {len(logits)} of them, one a picture; got {class_index!r}")
    if (classes < 0).any() or (classes >= model.num_labels).any():
        raise ValueError(f"class_index must lie between 0 and {model.num_labels - 1}, got {class_index!r}")
    return np.broadcast_to(classes, len(logits))


def resize_bilinear(maps: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Bilinear, pixel centres aligned (PyTorch's align_corners=False), edges extended: (N, h, w) -> (N, *size)."""
    rows, columns = (_bilinear(a, b).astype(maps.dtype) for a, b in zip(maps.shape[1:], size, strict=True))
    return rows @ maps @ columns.T  # (H, h) @ (N, h, w) @ (w, W) -> (N, H, W)


def _bilinear(length: int, target: int) -> np.ndarray:
    """The matrix (target, length) that resizes a line: each row holds the weights of two neighbours."""
    position = np.clip((np.arange(target) + 0.5) * length / target - 0.5, 0, length - 1)
    low = np.minimum(position.astype(int), max(length - 2, 0))
    matrix = np.zeros((target, length))
    matrix[np.arange(target), low] += 1 - (position - low)
    matrix[np.arange(target), np.minimum(low + 1, length - 1)] += position - low
    return matrix


LEGENDS = {
    "cam": "scores; their mean, {logit:+.1f}, is the logit",
    "gradcam": "Grad-CAM of the logit, {logit:+.1f}",
    "saliency": "by how much a pixel moves the logit, {logit:+.1f}",
    "integrated-gradients": "shares of the logit, {logit:+.1f}",
    "occlusion": "by how much the logit, {logit:+.1f}, falls",
}
METHODS = tuple(LEGENDS)


def evidence(
    model: EfficientNetForImageClassification,
    pixel_values: np.ndarray,
    class_index: int | Sequence[int] | None = None,
    method: str = "cam",
    layer: str | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """A map of the evidence for a class: pixel_values (N, C, H, W) -> (N, H, W), in the model's dtype.

    method: "cam" (`class_activation_map`), or "gradcam", "saliency", "integrated-gradients" or "occlusion", whose functions in
    training/evidence.py say what their numbers mean. layer: of "gradcam" only, a module's name, by default the last before the
    pool. class_index, size: as in `class_activation_map`. Raises ValueError for an unknown method, layer or class, and for a
    model without a classifier.
    """
    from effnet_np.training import evidence as methods

    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if layer is not None and method != "gradcam":
        raise ValueError(f'layer is for the method "gradcam", and this is {method!r}')
    if method == "cam":
        return class_activation_map(model, pixel_values, class_index, size)
    if not isinstance(model, EfficientNetForImageClassification) or model.num_labels < 1:
        raise ValueError(f"{method} needs a model with a classifier, in NumPy; this {type(model).__name__} is none")
    pixel_values = check_pixel_values(model.config, pixel_values, model.dtype)
    classes = classes_of(model, model(pixel_values, return_dict=True).logits, class_index)
    if method == "gradcam":
        maps = methods.gradcam(model, pixel_values, classes, layer or methods.LAST)
    else:
        maps = getattr(methods, method.replace("-", "_"))(model, pixel_values, classes)
    return resize_bilinear(maps, pixel_values.shape[2:] if size is None else size)


# -- the picture ------------------------------------------------------------------------------------------------------

PANEL = 520  # the largest side of a panel, in pixels, of the smaller ones a little less
MARGIN, BAR_HEIGHT = 32, 34
INK, QUIET, PAPER, TRACK, BAR = (34, 34, 34), (100, 100, 100), (255, 255, 255), (236, 236, 236), (193, 68, 14)
# From no evidence to all of it; the overlay gets less transparent with it.
HEAT = np.array([[255, 245, 200], [254, 217, 118], [253, 141, 60], [227, 26, 28], [128, 0, 38]], np.float64)


def explain(
    image: Any,
    model: str | os.PathLike | EfficientNetForImageClassification = DEFAULT_MODEL,
    top_k: int = 5,
    class_index: int | str | None = None,
    *,
    method: str = "cam",
    layer: str | None = None,
    image_processor: Any = None,
    max_pixels: int = MAX_PIXELS,
    **hub_options: Any,
) -> Image:
    """Draw a picture, where in it the evidence for a class lies, and bars of the first labels -> a PIL image (RGB).

    image, model, image_processor, max_pixels, hub_options: as `classify` takes them. class_index: the class to show, by index
    or by name ("tabby"); None means the first. method, layer: how the evidence is found, see `evidence`. Only the part that the
    network sees is coloured. Raises as `classify` and `evidence` do.
    """
    check_count("top_k", top_k)
    model = get_model(model, image_processor, **hub_options)
    pixels = load_pixels(model, image, max_pixels)
    pixel_values = preprocess(model, pixels, max_pixels)[None]
    logits = model(pixel_values, return_dict=True).logits
    predictions = ranked(model.config, logits, top_k)[0]
    shown = int(logits[0].argmax()) if class_index is None else find_class(model.config, class_index)
    top, left, height, width = seen_region(model.image_processor, *pixels.shape[:2])
    scale = min(PANEL / max(pixels.shape[:2]), 4.0)
    picture = _shrunk(pixels, scale)
    box = _box((left, top, left + width, top + height), scale, picture.size)
    heat = evidence(model, pixel_values, shown, method, layer, (box[3] - box[1], box[2] - box[0]))[0]
    legend = LEGENDS[method].format(logit=float(logits[0, shown]))
    return _draw(picture, box, heat, model.config.id2label[shown], legend, predictions)


def save_explanation(picture: Image, path: str | os.PathLike) -> None:
    """Write a PIL image as .png, .jpg or .webp; the file is whole or absent."""
    kind = picture_format(path)
    with replacing(path) as temporary:
        picture.save(temporary, kind)


def picture_format(path: str | os.PathLike) -> str:
    """Pillow's name of the format that a file's ending asks for. Raises ValueError for an ending that is none of a picture."""
    formats = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
    suffix = Path(path).suffix.lower()
    if suffix not in formats:
        raise ValueError(f"the picture's name must end in {', '.join(formats)}, got {Path(path).name}")
    return formats[suffix]


def seen_region(processor: Any, height: int, width: int) -> tuple[float, float, float, float]:
    """The part of a picture (height, width) that reaches the network: (top, left, height, width) in the picture's pixels."""
    top = left = 0.0
    seen_height, seen_width = float(height), float(width)
    if processor.crop_fraction is not None:
        side = max(1, int(processor.crop_fraction * min(height, width)))
        top, left, seen_height, seen_width = float((height - side) // 2), float((width - side) // 2), float(side), float(side)
    if processor.do_center_crop:  # after the resize, so its pixels are not the picture's
        resized = processor.resized(seen_height, seen_width) if processor.do_resize else (seen_height, seen_width)
        shares = [min(1.0, processor.crop_size[key] / side) for key, side in zip(("height", "width"), resized, strict=True)]
        top, left = top + seen_height * (1 - shares[0]) / 2, left + seen_width * (1 - shares[1]) / 2
        seen_height, seen_width = seen_height * shares[0], seen_width * shares[1]
    return top, left, seen_height, seen_width


def _shrunk(pixels: np.ndarray, scale: float) -> Image:
    """The picture at the size in which it is drawn, in RGB."""
    import PIL.Image

    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    return PIL.Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB").resize(size)


def _box(edges: Sequence[float], scale: float, size: tuple[int, int]) -> list[int]:
    """(left, top, right, bottom) in the drawn picture's pixels: at least one of them each way, and none outside."""
    box = [round(edge * scale) for edge in edges]
    for low, high, limit in ((0, 2, size[0]), (1, 3, size[1])):
        box[low] = min(box[low], limit - 1)
        box[high] = min(max(box[high], box[low] + 1), limit)
    return box


def _draw(picture: Image, box: list[int], heat: np.ndarray, label: Any, legend: str, predictions: list[dict]) -> Image:
    """Two panels, a legend, and a bar a label, on white; all text is measured, and cut where it would not fit."""
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    title, text = PIL.ImageFont.load_default(20), PIL.ImageFont.load_default(17)
    panel = max(picture.width, 440)  # no less than the legend's text needs
    second = 2 * MARGIN + panel  # where the second panel begins
    panel_top = MARGIN + 34
    below = panel_top + picture.height + 16
    bars_top = below + 70
    canvas_size = (2 * panel + 3 * MARGIN, bars_top + 34 + BAR_HEIGHT * len(predictions) + MARGIN - 6)
    canvas = PIL.Image.new("RGB", canvas_size, PAPER)
    draw = PIL.ImageDraw.Draw(canvas)

    draw.text((MARGIN, MARGIN), "The picture", INK, title)
    draw.text((second, MARGIN), _fit(draw, f"Evidence for: {_line(label)}", title, panel), INK, title)
    canvas.paste(picture, (MARGIN, panel_top))
    canvas.paste(PIL.Image.fromarray(_overlay(np.asarray(picture, np.float64), box, heat)), (second, panel_top))
    if (box[2] - box[0], box[3] - box[1]) != picture.size:
        for left in (MARGIN, second):
            _draw_frame(draw, [box[0] + left, box[1] + panel_top, box[2] + left - 1, box[3] + panel_top - 1])
        draw.text((MARGIN, below), _fit(draw, "Frame: what the network sees", text, panel), QUIET, text)
    _draw_legend(canvas, draw, (second, below), panel, heat, legend, text)
    draw.text((MARGIN, bars_top), f"The first {len(predictions)} labels" if len(predictions) > 1 else "The label", INK, title)
    _draw_bars(draw, bars_top + 34, min(360, panel), canvas.width, predictions, text)
    return canvas


def _draw_frame(draw: Any, edges: list[int]) -> None:
    """A white line inside a dark one, seen on any picture."""
    left, top, right, bottom = edges
    draw.rectangle((left, top, right, bottom), outline=PAPER)
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=INK)


def _draw_legend(canvas: Image, draw: Any, corner: tuple[int, int], width: int, heat: np.ndarray, legend: str, font) -> None:
    """The colours from the least to the greatest number, and what these numbers are."""
    import PIL.Image

    left, top = corner
    ramp = np.broadcast_to(_colours(np.linspace(0, 1, width))[None], (14, width, 3)).astype(np.uint8)
    canvas.paste(PIL.Image.fromarray(np.ascontiguousarray(ramp)), corner)
    draw.text((left, top + 20), f"{heat.min():+.1f}", QUIET, font)
    draw.text((left + width, top + 20), f"{heat.max():+.1f}", QUIET, font, anchor="ra")
    draw.text((left + width // 2, top + 20), legend, QUIET, font, anchor="ma")


def _draw_bars(draw: Any, top: int, labels: int, canvas_width: int, predictions: list[dict], font: Any) -> None:
    """A row a prediction: its label in `labels` pixels, a bar, the score."""
    number = 84  # pixels for the score
    start, full = MARGIN + labels + 16, canvas_width - 2 * MARGIN - labels - 16 - number
    for index, prediction in enumerate(predictions):
        y, share = top + index * BAR_HEIGHT, min(1.0, prediction["score"])
        draw.text((MARGIN, y + 12), _fit(draw, _line(prediction["label"]), font, labels), INK, font, anchor="lm")
        draw.rectangle((start, y + 2, start + full, y + 22), fill=TRACK)
        draw.rectangle((start, y + 2, start + max(1, round(full * share)), y + 22), fill=BAR)
        draw.text((canvas_width - MARGIN, y + 12), f"{prediction['score']:.1%}", INK, font, anchor="rm")


def _overlay(picture: np.ndarray, box: list[int], heat: np.ndarray) -> np.ndarray:
    """The picture in grey, coloured by the heat (scaled to its own least and greatest) where the network sees it."""
    grey = np.repeat((picture @ [0.299, 0.587, 0.114])[:, :, None], 3, axis=2)
    result = 0.5 * grey + 127.5  # what is not seen is pale
    left, top, right, bottom = box
    span = float(heat.max() - heat.min())
    share = ((heat - heat.min()) / (span or 1.0))[: picture.shape[0] - top, : picture.shape[1] - left]
    seen = grey[top:bottom, left:right]
    alpha = (0.1 + 0.6 * share)[:, :, None]
    result[top:bottom, left:right] = (1 - alpha) * seen + alpha * _colours(share)
    return result.round().clip(0, 255).astype(np.uint8)


def _colours(share: np.ndarray) -> np.ndarray:
    """Numbers from 0 to 1 -> colours (..., 3) of HEAT, with straight lines between."""
    stops = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(share, stops, HEAT[:, channel]) for channel in range(3)], axis=-1)


def _line(label: Any) -> str:
    """A label of any kind and length as one line of text: no more of it than a panel could hold."""
    return printable(str(label)[: 4 * PANEL])


def _fit(draw: Any, text: str, font: Any, width: int) -> str:
    """The text, cut with "..." where it is wider than `width` pixels."""
    if draw.textlength(text, font) <= width:
        return text
    fitting = bisect_right(range(len(text)), width, key=lambda count: draw.textlength(text[:count] + "...", font)) - 1
    return text[: max(0, fitting)].rstrip(" ,") + "..."
