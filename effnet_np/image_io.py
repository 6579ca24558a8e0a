"""Pictures from anywhere to plain pixels: files, bytes, PIL images and arrays -> uint8 arrays (H, W, C).

What a picture means is decided here, once: it is turned upright by its EXIF orientation; grey, palette, CMYK and other
colour spaces become RGB; **transparent pixels are composed over white**; 16-bit pixels are scaled to 8 bits (not
clipped to white); of an animation the first frame is taken.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow knows some forty formats; a decoder that is never asked cannot be attacked.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
MAX_PIXELS = 100_000_000  # 300 MB of RGB; counted before anything is decoded
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # the picture that a network of so many channels takes


def load_image(source: Any, channels: int = 3, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A picture's pixels, uint8, (H, W, channels); channels 1 (grey), 3 (RGB) or 4 (RGBA, the only one that keeps alpha).

    source: a path, bytes, a binary file object, a PIL image, or an array (H, W), (H, W, C) or (C, H, W) of 1, 3 or 4 channels:
    bool, uint8, uint16 (scaled), other whole numbers from 0 to 255, or floats from 0 to 1 (or whole ones from 0 to 255).
    Raises FileNotFoundError, TypeError, or ValueError for what is no picture, is damaged, or is larger than `max_pixels`.
    """
    if channels not in MODES:
        wanted = "pass pixel_values, made with the image processor, to the model itself"
        raise ValueError(f"a picture has 1, 3 or 4 channels, and this model takes {channels}: {wanted}")
    if hasattr(source, "getbands"):
        name, image = "the PIL image", source
    elif isinstance(source, (str, os.PathLike)):
        name = str(source)
        image = _open(Path(source).read_bytes(), name, max_pixels)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        name = f"the picture of {len(source)} bytes"
        image = _open(bytes(source), name, max_pixels)
    elif hasattr(source, "read"):
        name = str(getattr(source, "name", "the file object"))
        data = source.read()
        if not isinstance(data, bytes):
            raise TypeError(f'{name} gave {type(data).__name__}, not bytes: open it in binary mode, "rb"')
        image = _open(data, name, max_pixels)
    elif hasattr(source, "__array__"):
        name, image = "the array", _from_array(np.asarray(source))
    else:
        kinds = "a path, bytes, a binary file object, a PIL image or an array"
        raise TypeError(f"a picture must be {kinds}, got {type(source).__name__}")
    pixels = np.array(_convert(_decode(image, name), MODES[channels]))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _open(data: bytes, name: str, max_pixels: int) -> Image:
    """The picture's header only: size and format are judged before a pixel is decoded."""
    import PIL.Image

    if not data:
        raise ValueError(f"{name} is empty")
    try:
        image = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
    except PIL.UnidentifiedImageError:
        raise ValueError(f"{name} is no picture of a known format ({', '.join(FORMATS)})") from None
    except Exception as error:  # Pillow raises SyntaxError, struct.error, DecompressionBombError and more for a bad header
        raise ValueError(f"{name} cannot be read as a picture: {error}") from error
    width, height = image.size
    if width * height > max_pixels:
        limit = f"more than max_pixels = {max_pixels}; raise it if you trust the file"
        raise ValueError(f"{name} has {width} x {height} pixels, {limit}")
    if not width or not height:
        raise ValueError(f"{name} has no pixels ({width} x {height})")
    return image


def _decode(image: Image, name: str) -> Image:
    """All pixels, upright."""
    import PIL.ImageOps

    try:
        image.load()
    except Exception as error:  # a damaged file may fail in any decoder's own way
        raise ValueError(f"{name} is damaged or cut off: {error}") from error
    try:
        return PIL.ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block does not make the pixels wrong
        return image


def _convert(image: Image, mode: str) -> Image:
    import PIL.Image

    if image.mode.startswith("I") or image.mode == "F":  # 16 or 32 bits a pixel, grey
        image = _from_array(_sixteen_bits(np.asarray(image)) if image.mode != "F" else np.asarray(image))
    if mode != "RGBA" and image.has_transparency_data:
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = PIL.Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _sixteen_bits(pixels: np.ndarray) -> np.ndarray:
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"the picture's pixels lie between {pixels.min()} and {pixels.max()}, not in 16 bits")
    return pixels.astype(np.uint16)


def _from_array(array: np.ndarray) -> Image:
    """An array of any accepted kind -> the PIL image of its pixels in 8 bits."""
    import PIL.Image

    if array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(f"an image array must be (H, W), (H, W, C) or (C, H, W) and hold pixels, got shape {array.shape}")
    if array.ndim == 3:
        if array.shape[-1] not in MODES and array.shape[0] in MODES:
            array = array.transpose(1, 2, 0)
        if array.shape[-1] not in MODES:
            raise ValueError(f"an image array must have 1, 3 or 4 channels, first or last; got shape {array.shape}")
        array = array[:, :, 0] if array.shape[-1] == 1 else array
    if array.dtype.kind not in "buif":
        raise TypeError(f"an image array must hold numbers, got {array.dtype}")
    if array.dtype == bool:
        array = array * np.uint8(255)
    elif array.dtype == np.uint16:
        array = (array.astype(np.uint32) + 128) // 257  # 65535 = 255 * 257, so both ends are exact
    elif array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ValueError("the image array holds NaN or infinite numbers")
        if array.min() >= 0 and array.max() <= 1:
            array = np.round(array * 255)
    if array.min() < 0 or array.max() > 255:
        raise ValueError(f"an image array's pixels must lie between 0 and 255, or 0 and 1; got {array.min()} to {array.max()}")
    return PIL.Image.fromarray(np.ascontiguousarray(array.astype(np.uint8)))
