"""Pictures slightly otherwise each time that they are shown: a random crop, perhaps mirrored, in a little other colours.

All randomness comes from the generator that is passed in, so a seed gives the same pictures again.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

SCALE = (0.35, 1.0)  # the share of the picture's area that a crop has
RATIO = (3 / 4, 4 / 3)  # its width over its height
COLOUR = 0.2  # brightness, contrast and saturation by up to this much more or less


def augment(pixels: np.ndarray, size: tuple[int, int], resample: int, generator: np.random.Generator) -> np.ndarray:
    """A random crop resized to `size` (height, width), mirrored half of the time, other colours: uint8 (H, W, C) -> the same.

    resample: Pillow's number of a filter, as in the image processor.
    """
    left, top, width, height = random_box(pixels.shape[1], pixels.shape[0], generator)
    cropped = resized(pixels, (left, top, left + width, top + height), size, resample)
    if generator.random() < 0.5:
        cropped = cropped[:, ::-1]
    return colour(cropped, generator)


def random_box(width: int, height: int, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a crop whose area and shape are random; the whole picture where none of ten tries fits."""
    for _ in range(10):
        area = width * height * generator.uniform(*SCALE)
        ratio = math.exp(generator.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            return int(generator.integers(width - across + 1)), int(generator.integers(height - down + 1)), across, down
    return 0, 0, width, height


def resized(pixels: np.ndarray, box: tuple[int, int, int, int], size: tuple[int, int], resample: int) -> np.ndarray:
    """The part of a picture within `box` (left, top, right, bottom), in `size` (height, width): uint8 (H, W, C) -> the same."""
    import PIL.Image

    image = PIL.Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    result = np.asarray(image.resize((size[1], size[0]), PIL.Image.Resampling(resample), box=box))
    return result[:, :, None] if result.ndim == 2 else result


def colour(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Brightness, contrast (around the mean grey) and saturation (around each pixel's grey), each times 1 +- COLOUR."""
    brightness, contrast, saturation = generator.uniform(1 - COLOUR, 1 + COLOUR, 3).astype(np.float32)
    image = pixels[:, :, :3].astype(np.float32) * brightness
    weights = np.array([0.299, 0.587, 0.114], np.float32) if image.shape[2] == 3 else np.ones(1, np.float32)
    grey = (image @ weights)[:, :, None]
    image = grey + (image - grey) * saturation
    image = grey.mean() + (image - grey.mean()) * contrast
    result = pixels.copy()  # an alpha channel stays
    result[:, :, :3] = np.clip(np.rint(image), 0, 255)
    return result


def input_size(processor: Any) -> tuple[int, int]:
    """(height, width) of what a processor makes of every picture. Raises ValueError where it leaves them as they come."""
    if processor.do_center_crop:
        return processor.crop_size["height"], processor.crop_size["width"]
    if not processor.do_resize or "shortest_edge" in processor.size:
        raise ValueError("this model's image processor does not resize, so its pictures do not fit into one batch")
    return processor.size["height"], processor.size["width"]


def without_geometry(processor: Any) -> Any:
    """The same processor for pictures that have their size already: it scales and normalises numbers, nothing else."""
    fields = {"do_resize": False, "do_center_crop": False, "crop_fraction": None}
    return type(processor).from_dict(processor.to_dict() | fields)
