"""Pictures from anywhere to plain pixels: files, bytes, PIL images and arrays -> uint8 arrays (H, W, C).

What a picture means is decided here, once: it is turned upright by its EXIF orientation; grey, palette, CMYK and other
colour spaces become RGB; **transparent pixels are composed over white**; 16-bit pixels are scaled to 8 bits (not
clipped to white); of an animation the first frame is taken.
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow knows some forty formats; a decoder that is never asked cannot be attacked.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP")
TIFF_COMPRESSIONS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits")
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
MAX_PIXELS = 89_478_485  # where Pillow starts to warn: 268 MB of RGB; counted before anything is decoded
MAX_SIDE = 1 << 16  # pixels; JPEG has no more
MAX_SCANS = 64  # of a JPEG; progressive ones have about ten, and each costs as much as the whole picture
TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}  # EXIF orientation -> what turns it upright; fmt: skip
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
        _check_size(name, image.size, max_pixels)
    elif isinstance(source, (str, os.PathLike)):
        name = str(source)
        image = _open(_read(Path(source), max_pixels), name, max_pixels)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        name = f"the picture of {len(source)} bytes"
        image = _open(bytes(source), name, max_pixels)
    elif hasattr(source, "read"):
        name = str(getattr(source, "name", "the file object"))
        data = source.read(_max_bytes(max_pixels) + 1)
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


def _max_bytes(max_pixels: int) -> int:
    """No picture of so many pixels needs more: 8 bytes each (RGBA of 16 bits), and a megabyte of facts about it."""
    return 8 * max_pixels + (1 << 20)


def _read(path: Path, max_pixels: int) -> bytes:
    if not path.exists():
        raise FileNotFoundError(f"there is no picture {path}")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a picture")
    if not path.is_file():
        raise ValueError(f"{path} is a pipe or a device, which could be read for ever")
    with open(path, "rb") as file:
        return file.read(_max_bytes(max_pixels) + 1)


def _check_size(name: str, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        limit = f"more than max_pixels = {max_pixels}; raise it if you trust the file"
        raise ValueError(f"{name} has {width} x {height} pixels, {limit}")
    if max(size) > MAX_SIDE:
        raise ValueError(f"{name} has {width} x {height} pixels, more than {MAX_SIDE} on one side")
    if not width or not height:
        raise ValueError(f"{name} has no pixels ({width} x {height})")


def _open(data: bytes, name: str, max_pixels: int) -> Image:
    """The picture's header only: size and format are judged before a pixel is decoded."""
    import PIL.Image

    if not data:
        raise ValueError(f"{name} is empty")
    if len(data) > _max_bytes(max_pixels):
        limit = f"more than max_pixels = {max_pixels} can need; raise it if you trust the file"
        raise ValueError(f"{name} has more than {_max_bytes(max_pixels)} bytes, {limit}")
    try:
        image = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
    except PIL.UnidentifiedImageError:
        raise ValueError(f"{name} is no picture of a known format ({', '.join(FORMATS)})") from None
    except PIL.Image.DecompressionBombError as error:
        hint = "beyond 179 million pixels, raise Pillow's own limit, PIL.Image.MAX_IMAGE_PIXELS, as well as max_pixels"
        raise ValueError(f"{name} cannot be read as a picture: {error} ({hint})") from error
    except Exception as error:  # Pillow raises SyntaxError, struct.error and more for a bad header
        raise ValueError(f"{name} cannot be read as a picture: {error}") from error
    _check_size(name, image.size, max_pixels)
    _check_cost(name, image, data)
    return image


def _check_cost(name: str, image: Image, data: bytes) -> None:
    """Raise ValueError for a picture whose decoding would cost far more than its pixels do."""
    pixels = image.width * image.height
    if image.format == "JPEG":
        scans = _jpeg_scans(data)
        if scans > MAX_SCANS or scans * pixels > MAX_SCANS * MAX_PIXELS // 4:
            raise ValueError(f"{name} is a JPEG of {scans} scans at {pixels} pixels each, far more than photographs have")
    if image.format == "PPM" and data[1:2] not in b"456":
        raise ValueError(f"{name} is a PPM written as text or in floats; of PPM, only the kinds P4, P5 and P6 are read")
    if image.format == "TIFF":
        if image.info.get("compression") not in TIFF_COMPRESSIONS:
            kinds = f"only {', '.join(TIFF_COMPRESSIONS)} are read"
            raise ValueError(f"{name} is a TIFF of the compression {image.info.get('compression')!r:.80}; {kinds}")
        tile = (image.tag_v2.get(322, 1), image.tag_v2.get(323, 1))  # type: ignore[attr-defined]
        if not all(isinstance(side, int) for side in tile) or tile[0] * tile[1] > max(4 * pixels, 1 << 22):
            raise ValueError(f"{name} is a TIFF of {image.width} x {image.height} pixels in tiles of {tile!r:.80}")


def _jpeg_scans(data: bytes) -> int:
    """How often the decoder would go over the picture: the SOS segments before the end."""
    scans, position = 0, 2
    while found := re.compile(rb"\xff([^\x00\xff\xd0-\xd7])").search(data, position):
        if found[1] == b"\xd9":
            break
        scans += found[1] == b"\xda"
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2], "big")
    return scans


def _decode(image: Image, name: str) -> Image:
    """All pixels, upright."""
    import PIL.Image

    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # a damaged file may fail in any decoder's own way
        raise ValueError(f"{name} is damaged or cut off: {error}") from error
    try:
        turn = TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # a broken EXIF block does not make the pixels wrong
        turn = None
    return image.transpose(PIL.Image.Transpose[turn]) if turn else image


def _convert(image: Image, mode: str) -> Image:
    import PIL.Image

    if image.mode == "F":
        image = _from_array(np.asarray(image))
    elif image.mode.startswith("I"):  # 16 bits, which older Pillow opens as 32; or 32 bits, of which 16 or 8 may be used
        pixels = np.asarray(image)
        sixteen = image.mode != "I" or image.format == "PNG" or pixels.max() > 255
        image = _from_array(_sixteen_bits(pixels) if sixteen else pixels)
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
        whole = bool((array == np.rint(array)).all())
        if not whole and (array.min() < 0 or array.max() > 1):
            between = f"these lie between {array.min():g} and {array.max():g}"
            raise ValueError(
                f"an image array of floats must lie between 0 and 1, or hold whole numbers from 0 to 255; {between}"
            )
        if array.min() >= 0 and array.max() <= 1:
            array = np.round(array * 255)
    if array.min() < 0 or array.max() > 255:
        raise ValueError(f"an image array's pixels must lie between 0 and 255, or 0 and 1; got {array.min()} to {array.max()}")
    return PIL.Image.fromarray(np.ascontiguousarray(array.astype(np.uint8)))
