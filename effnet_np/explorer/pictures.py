"""A picture as the page needs it: what the browser shows, what the network is given, and where the one lies in the other."""

from __future__ import annotations

import hashlib
import io
from typing import Any, NamedTuple

import numpy as np

from effnet_np.images.processor import EfficientNetImageProcessor
from effnet_np.inference.stream import load_pixels
from effnet_np.inspection.explain import seen_region

SHOWN = 1024  # pixels, the larger side of what the browser shows


class Picture(NamedTuple):
    """A picture's own bytes, a name for people, its size in pixels, upright, and a WebP of it for the browser."""

    key: str
    name: str
    data: bytes
    height: int
    width: int
    webp: bytes


class Seen(NamedTuple):
    """What of a picture reaches a network: its pixels, resized, uint8 (h, w, C); their place: (top, left, height, width)."""

    pixels: np.ndarray
    region: tuple[float, float, float, float]


def read_picture(model: Any, data: bytes, name: str, max_pixels: int) -> Picture:
    """Raises what `load_image` raises: ValueError for what is no picture, is damaged or too large."""
    pixels = load_pixels(model, data, max_pixels)
    key = hashlib.sha256(data).hexdigest()[:16]
    return Picture(key, name, data, pixels.shape[0], pixels.shape[1], webp(pixels, SHOWN, 85))


def webp(pixels: np.ndarray, side: int, quality: int) -> bytes:
    """Pixels (H, W, C) as a WebP whose larger side is at most `side`."""
    import PIL.Image

    picture = PIL.Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    picture.thumbnail((side, side))
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=quality)
    return file.getvalue()


def see(model: Any, picture: Picture, max_pixels: int) -> Seen:
    """The picture through the model's own processor, up to the last step that moves pixels."""
    pixels = load_pixels(model, picture.data, max_pixels)
    processor = model.image_processor
    steps = {"do_rescale": False, "do_normalize": False, "include_top": False}
    seen = processor([pixels], input_data_format="channels_last", data_format="channels_last", **steps)["pixel_values"][0]
    return Seen(seen, seen_region(processor, *pixels.shape[:2]))


def numbers(model: Any, pixels: np.ndarray) -> np.ndarray:
    """The rest of the processor's steps, which move no pixel: uint8 (h, w, C) -> network input (1, C, h, w)."""
    still = {"do_resize": False, "do_center_crop": False, "crop_fraction": None}
    processor = EfficientNetImageProcessor.from_dict(model.image_processor.to_dict() | still)
    return processor([pixels], input_data_format="channels_last", return_tensors="np")["pixel_values"]


def blurred(pixels: np.ndarray, radius: float) -> np.ndarray:
    """A Gaussian of that standard deviation, in pixels."""
    import PIL.Image
    import PIL.ImageFilter

    picture = PIL.Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return np.asarray(picture.filter(PIL.ImageFilter.GaussianBlur(radius))).reshape(pixels.shape)


def greyed(pixels: np.ndarray, share: float) -> np.ndarray:
    """From the picture (0) to its brightness alone (1), by ITU-R BT.601's weights."""
    if pixels.shape[2] < 3:
        return pixels
    grey = pixels[:, :, :3] @ np.array([0.299, 0.587, 0.114])
    mixed = (1 - share) * pixels[:, :, :3] + share * grey[:, :, None]
    return np.concatenate([mixed.round().clip(0, 255).astype(np.uint8), pixels[:, :, 3:]], axis=2)
