"""Pictures from anywhere to plain pixels: files, bytes, PIL images and arrays -> uint8 arrays (H, W, C).

What a picture means is decided here, once: it is turned upright by its EXIF orientation; grey, palette, CMYK and other
colour spaces become RGB; **transparent pixels are composed over white**; 16-bit pixels are scaled to 8 bits (not
clipped to white); of an animation, and of a file of several pictures, the first is taken.

All of that is done on a band of rows at a time, so that beside the decoded picture and the result nothing is as large.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from effnet_np.images.headers import MAX_PIXELS, READERS, Header, check_size, orientation_of, read_header, recognise

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FORMATS", "MAX_PIXELS", "SUFFIXES", "load_image"]

# Pillow knows some forty formats; a decoder that is never asked cannot be attacked. HEIC is read by pillow-heif.
FORMATS = tuple(READERS)
SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".mpo", ".png", ".gif", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff"),
    *(".webp", ".avif", ".heic", ".heif"),
)
CLASSES = {
    "JPEG": "Jpeg",
    "PNG": "Png",
    "GIF": "Gif",
    "BMP": "Bmp",
    "PPM": "Ppm",
    "TIFF": "Tiff",
    "WEBP": "WebP",
    "AVIF": "Avif",
}
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # the picture that a network of so many channels takes
BAND = 1 << 18  # pixels that are converted at a time


def load_image(source: Any, channels: int = 3, max_pixels: int = MAX_PIXELS, gaps: bool = False) -> np.ndarray:
    """A picture's pixels, uint8, (H, W, channels); channels 1 (grey), 3 (RGB) or 4 (RGBA: keeps alpha). Perhaps read-only.

    gaps: a view will do in which pixels of three bytes lie four bytes apart; it need not be copied out of Pillow's memory.

    source: a path, bytes, a binary file object, a PIL image, or an array (H, W), (H, W, C) or (C, H, W) of 1, 3 or 4 channels:
    bool, uint8, uint16 (scaled), other whole numbers from 0 to 255, or floats from 0 to 1 (or whole ones from 0 to 255).
    Files: JPEG (and MPO), PNG, GIF, BMP, PPM, TIFF, WebP, AVIF (Pillow 11.3 or newer), and HEIC where pillow-heif is installed.
    Raises FileNotFoundError, TypeError, MemoryError, or ValueError for what is no picture, is damaged, is larger than
    `max_pixels`, or is of a format that cannot be read here: the message says what to install.
    """
    if channels not in MODES:
        wanted = "pass pixel_values, made with the image processor, to the model itself"
        raise ValueError(f"a picture has 1, 3 or 4 channels, and this model takes {channels}: {wanted}")
    name, data = _name_and_data(source, max_pixels)
    try:
        if data is not None:
            del source  # not to keep what was read beside what is made of it
            image, orientation = _open(data, name, max_pixels)
            del data
            return _from_image(_decode(image, name), MODES[channels], orientation, gaps)
        if hasattr(source, "getbands"):
            _named(name, check_size, source.size, max_pixels)
            return _from_image(_decode(source, name), MODES[channels], _orientation_of_image(source))
        return _from_array(np.asarray(source), MODES[channels])
    except MemoryError:
        raise MemoryError(f"there is not enough memory for the pixels of {name}; a smaller picture may fit") from None


def is_picture(source: Any) -> bool:
    """Whether `load_image` would take this for one picture, damaged or not."""
    known = (str, os.PathLike, bytes, bytearray, memoryview)
    return isinstance(source, known) or any(hasattr(source, name) for name in ("getbands", "read", "__array__"))


def _name_and_data(source: Any, max_pixels: int) -> tuple[str, bytes | None]:
    """How errors name a source, and its bytes, where it is a file of some kind."""
    if hasattr(source, "getbands"):
        return "the PIL image", None
    if isinstance(source, (str, os.PathLike)):
        return str(source), _read(Path(source), max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"the picture of {len(source)} bytes", bytes(source)
    if hasattr(source, "read"):
        name = str(getattr(source, "name", "the file object"))
        data = source.read(_max_bytes(max_pixels) + 1)
        if not isinstance(data, bytes):
            raise TypeError(f'{name} gave {type(data).__name__}, not bytes: open it in binary mode, "rb"')
        return name, data
    if hasattr(source, "__array__"):
        return "the array", None
    kinds = "a path, bytes, a binary file object, a PIL image or an array"
    raise TypeError(f"a picture must be {kinds}, got {type(source).__name__}")


def _max_bytes(max_pixels: int) -> int:
    """No picture of so many pixels needs more: 8 bytes each (RGBA of 16 bits), and a megabyte of facts about it."""
    return min(8 * max_pixels + (1 << 20), 1 << 34)


def _read(path: Path, max_pixels: int) -> bytes:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        if not path.exists():
            raise FileNotFoundError(f"there is no picture {path}") from None
        raise
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{path} is a folder, not a picture")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path} is a pipe or a device, which could be read for ever")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size  # `read` takes as much memory as it is asked to read, whatever there is
        return file.read(min(size, _max_bytes(max_pixels)) + 1)


def _named(name: str, function: Callable, *arguments: Any) -> Any:
    """Call a function whose errors do not know the picture's name."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from error


# -- files ------------------------------------------------------------------------------------------------------------


def _open(data: bytes, name: str, max_pixels: int) -> tuple[Image, int]:
    """The picture, whose pixels are not decoded yet, and its orientation: format, size and cost are judged before that."""
    if not data:
        raise ValueError(f"{name} is empty")
    if len(data) > _max_bytes(max_pixels):
        limit = f"more than max_pixels = {max_pixels} can need; raise it if you trust the file"
        raise ValueError(f"{name} has more than {_max_bytes(max_pixels)} bytes, {limit}")
    format = recognise(data)
    if format is None:
        raise ValueError(f"{name} is no picture of a known format ({', '.join(FORMATS)})")
    if format not in FORMATS:
        raise ValueError(f"{name} is a {format}, which is not read; convert it to one of {', '.join(FORMATS)}")
    header: Header = _named(name, read_header, data, format, max_pixels)
    del data
    _check_reader(name, format)
    try:
        image, orientation = _open_heic(header.data) if format == "HEIC" else _open_with_pillow(header, format)
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises SyntaxError, struct.error and more for a bad header
        raise ValueError(f"{name} cannot be read as a picture: {error}") from error
    _named(name, check_size, image.size, max_pixels)
    return image, orientation


def _check_reader(name: str, format: str) -> None:
    """Raise ValueError (one picture of a batch, no more) where what reads a format is not installed."""
    import PIL.features

    if format == "AVIF" and not ("avif" in PIL.features.modules and PIL.features.check("avif")):
        raise ValueError(f"{name} is an AVIF picture, which needs Pillow 11.3 or newer: pip install --upgrade pillow")
    if format == "WEBP" and not PIL.features.check("webp"):
        raise ValueError(f"{name} is a WebP picture, and this Pillow was built without WebP: pip install --upgrade pillow")
    if format == "HEIC":
        try:
            importlib.import_module("pillow_heif")
        except ImportError:
            raise ValueError(f"{name} is a HEIC picture, which needs pillow-heif: pip install pillow-heif") from None


def _open_with_pillow(header: Header, format: str) -> tuple[Image, int]:
    """The format's own class, not PIL.Image.open, whose limit of pixels is the whole process's: `max_pixels` is ours."""
    import PIL.ImageFile

    module = importlib.import_module(f"PIL.{CLASSES[format]}ImagePlugin")
    image = getattr(module, f"{CLASSES[format]}ImageFile")(io.BytesIO(header.data))
    if format == "TIFF":  # its own method asks that limit; the sizes of picture and tiles have been judged
        image.load_prepare = functools.partial(PIL.ImageFile.ImageFile.load_prepare, image)
    # AVIF's class makes an EXIF block of its own from the container's rotation.
    return image, orientation_of(image.info.get("exif") or b"") if format == "AVIF" else header.orientation


def _open_heic(data: bytes) -> tuple[Image, int]:
    """pillow-heif turns the picture upright; nothing is registered with Pillow, which other code in the process uses, too."""
    return importlib.import_module("pillow_heif").open_heif(io.BytesIO(data)), 1


def _decode(image: Image, name: str) -> Image:
    """All pixels."""
    try:
        if hasattr(image, "to_pillow"):
            return image.to_pillow()
        image.load()
        return image
    except MemoryError:
        raise
    except Exception as error:  # a damaged file may fail in any decoder's own way
        raise ValueError(f"{name} is damaged or cut off: {error}") from error


def _orientation_of_image(image: Image) -> int:
    """A PIL image that its owner opened: what it knows about itself, read here, not by Pillow's `getexif`."""
    exif, xmp = image.info.get("exif"), image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    xmp = xmp.encode() if isinstance(xmp, str) else xmp
    return orientation_of(exif if isinstance(exif, bytes) else b"", xmp if isinstance(xmp, bytes) else b"")


# -- pixels -----------------------------------------------------------------------------------------------------------


def _from_image(image: Image, mode: str, orientation: int, gaps: bool = False) -> np.ndarray:
    width, height = image.size
    if gaps and image.mode == mode == "RGB" and orientation == 1 and not image.has_transparency_data:
        pixels = _view(image)
        if pixels is not None:
            return pixels

    def band(top: int, bottom: int) -> Image:
        return image if bottom - top == height else image.crop((0, top, width, bottom))

    if image.mode == "F" or image.mode.startswith("I"):

        def numbers(top: int, bottom: int) -> np.ndarray:
            return np.asarray(band(top, bottom))

        dtype = numbers(0, 1).dtype
        range_ = _range(numbers, height, width)
        if image.mode != "F":  # 16 bits, which older Pillow opens as 32; or 32 bits, of which 16 or 8 may be used
            low, high, _ = range_
            if image.mode != "I" or image.format == "PNG" or high > 255:
                if low < 0 or high > 65535:
                    raise ValueError(f"the picture's pixels lie between {low} and {high}, not in 16 bits")
                dtype = np.dtype(np.uint16)
        return _fill(lambda top, bottom: _eight_bits(numbers(top, bottom), dtype, range_), (height, width), mode, orientation)
    return _fill(band, (height, width), mode, orientation)


class _ArrowArray(ctypes.Structure):
    """Arrow's C data interface, as its specification lays it out, up to what is read here."""


_ArrowArray._fields_ = [
    *((name, ctypes.c_int64) for name in ("length", "null_count", "offset", "n_buffers", "n_children")),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
]


class _Lent:
    """Memory of a picture, four bytes a pixel, as NumPy asks for it; it stays while the capsule does."""

    def __init__(self, capsule: Any, address: int, height: int, width: int):
        self.capsule = capsule
        shape, strides = (height, width, 3), (4 * width, 4, 1)
        interface = {"version": 3, "typestr": "|u1", "shape": shape, "strides": strides, "data": (address, True)}
        self.__array_interface__ = interface


@functools.cache
def _pointer() -> Callable:
    """Python's own PyCapsule_GetPointer. Raises AttributeError where this Python has none."""
    return ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))


def _view(image: Image) -> np.ndarray | None:
    """An RGB picture's pixels where Pillow has them, or None where it does not lend them (before 11.3, and large ones)."""
    try:
        _, capsule = image.__arrow_c_array__()
        array = _ArrowArray.from_address(_pointer()(capsule, b"arrow_array"))
    except (AttributeError, ValueError):
        return None
    width, height = image.size
    if (array.length, array.offset, array.n_children) != (width * height, 0, 1):
        return None
    pixels = array.children[0].contents
    if (pixels.length, pixels.offset, pixels.n_buffers) != (4 * width * height, 0, 2):
        return None
    return np.asarray(_Lent(capsule, pixels.buffers[1], height, width))


def _from_array(array: np.ndarray, mode: str) -> np.ndarray:
    """An array of any accepted kind -> its pixels in 8 bits."""
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
    height, width = array.shape[:2]
    range_ = _range(lambda top, bottom: array[top:bottom], height, width)
    return _fill(lambda top, bottom: _eight_bits(array[top:bottom], array.dtype, range_), (height, width), mode)


def _bands(height: int, width: int) -> Iterator[tuple[int, int]]:
    rows = max(1, BAND // width)
    for top in range(0, height, rows):
        yield top, min(height, top + rows)


def _fill(band: Callable, size: tuple[int, int], mode: str, orientation: int = 1) -> np.ndarray:
    """Bands of a stored picture (H, W) -> the upright pixels."""
    height, width = size
    upright = np.empty((width, height) if orientation in (5, 6, 7, 8) else (height, width), np.dtype((np.uint8, len(mode))))
    stored = TURNS.get(orientation, TURNS[1])(upright)
    for top, bottom in _bands(height, width):
        pixels = np.asarray(_convert(band(top, bottom), mode))
        if orientation == 1 and pixels.shape == upright.shape:  # one band, which is all of it
            return pixels
        stored[top:bottom] = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return upright


# EXIF orientation -> the upright pixels as they are stored: a view, into which the stored picture is written.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


def _convert(image: Image, mode: str) -> Image:
    import PIL.Image

    if image.mode == "P" and image.palette is None:  # Pillow asserts that there is one
        raise ValueError("the picture's pixels are numbers of a palette's colours, and it has no palette: it is damaged")
    if mode != "RGBA" and image.has_transparency_data:
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = PIL.Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _range(numbers: Callable, height: int, width: int) -> tuple[Any, Any, bool]:
    """(least, greatest, whether all are whole) of a picture's numbers; not finite where one of them is not."""
    low, high, whole = [], [], True
    for top, bottom in _bands(height, width):
        part = numbers(top, bottom)
        low.append(part.min())
        high.append(part.max())
        whole = whole and (part.dtype.kind != "f" or bool((part == np.rint(part)).all()))
    return np.min(low), np.max(high), whole


def _eight_bits(numbers: np.ndarray, dtype: np.dtype, range_: tuple[Any, Any, bool]) -> Image:
    """Some rows of a picture of numbers -> the PIL image of them in 8 bits; the whole picture's type and range say how."""
    import PIL.Image

    low, high, whole = range_
    if dtype.kind == "b":
        numbers = numbers * np.uint8(255)
    elif dtype.kind == "u" and dtype.itemsize == 2:  # of either byte order
        numbers = (numbers.astype(np.uint32) + 128) // 257  # 65535 = 255 * 257, so both ends are exact
    elif dtype.kind == "f" and not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("the image array holds NaN or infinite numbers")
    elif dtype.kind == "f" and low >= 0 and high <= 1:
        numbers = np.round(numbers * 255)
    elif not whole:
        between = f"these lie between {low:g} and {high:g}"
        raise ValueError(f"an image array of floats must lie between 0 and 1, or hold whole numbers from 0 to 255; {between}")
    elif low < 0 or high > 255:
        raise ValueError(f"an image array's pixels must lie between 0 and 255, or 0 and 1; got {low} to {high}")
    return PIL.Image.fromarray(np.ascontiguousarray(numbers, np.uint8))
