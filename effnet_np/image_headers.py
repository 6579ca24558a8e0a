"""What a picture's bytes say before anything is decoded: format, size, orientation, and what decoding would cost.

Pillow is never shown what the pixels do not need. Each reader below walks over its format's parts (segments, chunks, blocks,
boxes, directory entries) once, in time proportional to the bytes, and gives back the picture without EXIF, XMP, ICC profiles,
texts, comments, thumbnails and further frames. So no decoder can be led astray by them; the one fact that matters in them,
the orientation, is read here.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

MAX_PIXELS = 89_478_485  # where Pillow starts to warn: 268 MB of RGB; counted before anything is decoded
MAX_SIDE = 1 << 16  # pixels; JPEG has no more
MAX_SCANS = 64  # of a JPEG; progressive ones have about ten, and each costs as much as the whole picture
MAX_LARGE_SCANS = 24  # of a picture as large as the limit: a progressive one of four colours has 18
MAX_PIECES = 1 << 16  # strips or tiles of a TIFF

# How a file begins. What is known and not read is named; all else is never shown to a decoder, so none can be attacked.
BEGINNINGS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8[79]a", "GIF"),
    (b"BM", "BMP"),
    (b"P[456]\\s", "PPM"),
    (b"II[*+]\0|MM\0[*+]", "TIFF"),
    (b"RIFF....WEBP", "WEBP"),
    (b"P[123]\\s", "PPM written as text (of PPM, only the kinds P4, P5 and P6 are read)"),
    (b"P[Ff7]\\s", "PFM or PAM (of PPM, only the kinds P4, P5 and P6 are read)"),
    (b"\0\0\0\x0cjP  \r\n|\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL"),
    (b"....ftypcrx ", "Canon CR3 (raw sensor data)"),
    (b"....ftyp", "film (MP4, MOV or the like)"),
    (b"\x1aE\xdf\xa3|RIFF....AVI ", "film (MKV, WebM or AVI)"),
    (b"FUJIFILMCCD-RAW", "Fuji RAF (raw sensor data)"),
    (b"IIU\0", "JPEG XR or Panasonic RW2 (raw sensor data)"),
    (b"8BPS", "Photoshop (PSD)"),
    (b"%PDF", "PDF"),
    (b"%!PS|\xc5\xd0\xd3\xc6", "PostScript (EPS)"),
    (b"\\s*(<\\?xml[^>]*>\\s*)?(<!--.*?-->\\s*)*(<!DOCTYPE svg[^>]*>\\s*)?<svg", "SVG (a drawing, not pixels)"),
    (b"(?i:\\s*<(!doctype )?html)", "web page (the address of a picture often leads to a page about it)"),
    (b"\0\0[\1\2]\0[\1-\x40]\0", "Windows icon or cursor (ICO)"),
    (b"icns", "ICNS"),
    (b"DDS ", "DDS"),
    (b"qoif", "QOI"),
    (b"v/1\1", "OpenEXR"),
    (b"#\\?RADIANCE", "Radiance HDR"),
    (b"SIMPLE  =", "FITS"),
    (b"PK\3\4", "zip archive"),
    (b"\x1f\x8b", "gzip archive"),
    (b"\x93NUMPY", "NumPy array (load it with numpy.load, and pass that)"),
)  # fmt: skip
BEGINNINGS_COMPILED = tuple((re.compile(pattern, re.DOTALL), name) for pattern, name in BEGINNINGS)
AVIF_BRANDS, HEIC_BRANDS = {b"avif", b"avis"}, {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


class Header(NamedTuple):
    """A picture without what is said about it, and its EXIF orientation: 1 to 8, where 1 is upright."""

    data: bytes
    orientation: int = 1


def recognise(data: bytes) -> str | None:
    """The format by a file's first bytes, of those in READERS or another that has a name; None for what is unknown."""
    if data[4:8] == b"ftyp":  # the ISO container of AVIF, HEIC and films: a main brand and compatible ones
        size = min(int.from_bytes(data[:4], "big"), 256)
        brands = {data[8:12], *(data[at : at + 4] for at in range(16, size - 3, 4))}
        if brands & AVIF_BRANDS:
            return "AVIF"
        if brands & HEIC_BRANDS:
            return "HEIC"
    start = data[:1024]
    return next((name for pattern, name in BEGINNINGS_COMPILED if pattern.match(start)), None)


def read_header(data: bytes, format: str, max_pixels: int) -> Header:
    """Judge a picture of a format of READERS. Raises ValueError for one whose decoding could cost more than its pixels do."""
    try:
        return READERS[format](data, max_pixels)
    except (struct.error, IndexError, OverflowError):  # offsets of 64 bits, too
        raise ValueError(f"cannot be read as a picture: its {format} header is cut off") from None


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ValueError(f"has {width} x {height} pixels, more than max_pixels = {max_pixels}; raise it if you trust the file")
    if max(size) > MAX_SIDE:
        raise ValueError(f"has {width} x {height} pixels, more than {MAX_SIDE} on one side")
    if width < 1 or height < 1:
        raise ValueError(f"has no pixels ({width} x {height})")


# -- orientation --------------------------------------------------------------------------------------------------------


def orientation_of(exif: bytes, xmp: bytes = b"") -> int:
    """The orientation in the first directory of an EXIF block, or else in an XMP text, as Pillow looks for it; 1 for none."""
    return _exif_orientation(exif.removeprefix(b"Exif\0\0")) or _xmp_orientation(xmp) or 1


def _exif_orientation(block: bytes) -> int | None:
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None or len(block) < 10:
        return None
    (at,) = struct.unpack_from(order + "I", block, 4)
    if at + 2 > len(block):
        return None
    (count,) = struct.unpack_from(order + "H", block, at)
    entries = block[at + 2 : at + 2 + 12 * count]
    orientation = None
    for tag, kind, number, value in struct.iter_unpack(order + "HHI4s", entries[: len(entries) // 12 * 12]):
        if tag == 0x0112 and kind in (3, 4) and number == 1:  # a short or a long
            (orientation,) = struct.unpack_from(order + " HI"[kind - 2], value)
    return orientation


def _xmp_orientation(text: bytes) -> int | None:
    found = re.search(rb'tiff:Orientation(?:="|>)([1-8])', text)
    return int(found[1]) if found else None


# -- JPEG ---------------------------------------------------------------------------------------------------------------

# The markers that have a length, and the end, FF D9. The others have none: FF 00 is a number of the picture, D0 to D7 are
# restarts, D8 is the start, and 01 to BF are skipped by the decoder alone, not what follows them.
MARKER = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])")
FRAME_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15: size and kind of compression
DECODING_MARKERS = {*range(0xC0, 0xD0), 0xDB, 0xDD, 0xE0, 0xEE}  # those, tables, restarts, JFIF, Adobe's colour transform


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start of what it holds, its end) of each segment, up to the end of the picture."""
    position = 0
    while found := MARKER.search(data, position):
        marker, start = found[1][0], found.end()
        if marker == 0xD9:
            yield marker, start, start
            return
        position = start + max(2, int.from_bytes(data[start : start + 2], "big"))
        yield marker, start + 2, position


def read_jpeg(data: bytes, max_pixels: int) -> Header:
    """Also of an MPO, a JPEG with further pictures behind it: phones write those, and the first picture is meant."""
    kept: list[bytes | memoryview] = [b"\xff\xd8"]
    view, exif, xmp, size, scans = memoryview(data), b"", b"", (0, 0), 0
    first_scan, end_of_picture = None, len(data)
    for marker, start, end in jpeg_segments(data):
        if marker == 0xD9:
            end_of_picture = end
        elif marker == 0xDA:
            scans += 1
            first_scan = start - 4 if first_scan is None else first_scan
        elif first_scan is not None:
            continue  # what stands between two scans is copied with them
        elif marker == 0xE1:
            if data.startswith(b"Exif\0\0", start):
                exif = exif or data[start:end]
            elif data.startswith(b"http://ns.adobe.com/xap/1.0/\0", start):
                xmp = xmp or data[start:end]
        elif marker in DECODING_MARKERS:
            kept.append(view[start - 4 : end])
            if marker in FRAME_MARKERS and size == (0, 0):
                height, width = struct.unpack_from(">HH", data, start + 1)
                size = (width, height)
    check_size(size, max_pixels)
    check_scans(scans, size[0] * size[1], max_pixels)
    if first_scan is not None:
        kept.append(view[first_scan:end_of_picture])
    return Header(b"".join(kept), orientation_of(exif, xmp))


def check_scans(scans: int, pixels: int, max_pixels: int, kind: str = "JPEG") -> None:
    if scans > MAX_SCANS or scans * pixels > MAX_LARGE_SCANS * max(max_pixels, MAX_PIXELS):
        raise ValueError(f"is a {kind} of {scans} scans at {pixels} pixels each, far more than photographs have")


# -- PNG ----------------------------------------------------------------------------------------------------------------


def read_png(data: bytes, max_pixels: int) -> Header:
    check_size(struct.unpack_from(">II", data, 16), max_pixels)
    kept, exif, xmp, position = [data[:8]], b"", b"", 8
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        start, end = position + 8, position + 12 + length
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(data[position:end])
        elif kind == b"eXIf":
            exif = exif or data[start : end - 4]
        elif kind in (b"tEXt", b"zTXt"):
            exif = exif or _raw_profile(kind, data[start : end - 4])
        elif kind == b"iTXt" and data.startswith(b"XML:com.adobe.xmp\0\0", start):  # the second zero: not compressed
            xmp = xmp or data[start : end - 4]
        if kind == b"IEND":
            break
        position = end
    return Header(b"".join(kept), orientation_of(exif, xmp))


def _raw_profile(kind: bytes, text: bytes) -> bytes:
    """EXIF as older ImageMagick writes it: hexadecimal, in a text, whose first lines are a name and a length."""
    keyword = b"Raw profile type exif\0"
    if not text.startswith(keyword):
        return b""
    text = text[len(keyword) :]
    try:
        if kind == b"zTXt":
            text = zlib.decompressobj().decompress(text[1:], 1 << 16)  # the orientation stands at the beginning
        return bytes.fromhex("".join(text.decode("latin-1").split("\n")[3:])[: 1 << 15])
    except (zlib.error, ValueError):
        return b""


# -- GIF ----------------------------------------------------------------------------------------------------------------

GIF_BLOCK = re.compile(rb"[!,;]")  # extension, frame, end; other bytes between blocks are skipped


def read_gif(data: bytes, max_pixels: int) -> Header:
    """The first frame, with its transparency."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + (6 << (flags & 7) if flags & 128 else 0)
    colours, control = data[10:position], b""
    while found := GIF_BLOCK.search(data, position):
        position = found.start()
        if found[0] == b";":
            break
        if found[0] == b",":
            left, top, across, down = struct.unpack_from("<HHHH", data, position + 1)
            size = (max(width, left + across), max(height, top + down))
            check_size(size, max_pixels)
            screen = data[:6] + struct.pack("<HH", *(min(side, 65535) for side in size))
            return Header(screen + colours + control + data[position:])
        if data[position + 1] == 0xF9 and data[position + 2] == 4:  # of its flags, only the transparency matters
            control = b"!\xf9\x04" + bytes([data[position + 3] & 1]) + data[position + 4 : position + 7] + b"\0"
        position += 2
        while length := data[position]:
            position += 1 + length
        position += 1
    raise ValueError("cannot be read as a picture: it is a GIF without a frame")


# -- WebP ---------------------------------------------------------------------------------------------------------------


WEBP_CHUNKS = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")


def read_webp(data: bytes, max_pixels: int) -> Header:
    """The first frame. The sizes that chunks claim are added up, so that a file which is cut off still shows it."""
    check_size(_webp_size(data), max_pixels)
    kept, claimed, exif, xmp, framed, position = [b"WEBP"], 4, b"", b"", False, 12
    while position + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        end = position + 8 + length + length % 2
        if kind == b"EXIF":
            exif = exif or data[position + 8 : end]
        elif kind == b"XMP ":
            xmp = xmp or data[position + 8 : end]
        elif kind in WEBP_CHUNKS and not (kind == b"ANMF" and framed):
            kept.append(data[position:end])
            claimed += end - position
            framed |= kind == b"ANMF"
            if kind == b"VP8X":  # its flags no longer announce what is left out, but alpha (16) and animation (2)
                kept[-1] = kept[-1][:8] + bytes([kept[-1][8] & 18]) + kept[-1][9:]
        position = end
    return Header(b"RIFF" + struct.pack("<I", min(claimed, (1 << 32) - 1)) + b"".join(kept), orientation_of(exif, xmp))


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError(f"cannot be read as a picture: its first part is {kind!r}, which no WebP begins with")


# -- TIFF ---------------------------------------------------------------------------------------------------------------

TIFF_COMPRESSIONS = {1: "raw", 5: "LZW", 7: "JPEG", 8: "deflate", 32773: "PackBits", 32946: "deflate"}
OTHER_COMPRESSIONS = {2: "CCITT", 3: "CCITT fax", 4: "CCITT fax", 6: "old JPEG", 34712: "JPEG 2000", 34925: "LZMA"} | {
    34887: "LERC", 50000: "Zstandard", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL", 65000: "the camera's own kind"
}  # fmt: skip
STRIP_OFFSETS, STRIP_SIZES, TILE_OFFSETS, TILE_SIZES = 273, 279, 324, 325
TIFF_TAGS = {  # what decoding needs, and how many numbers each may have
    **dict.fromkeys((256, 257, 259, 262, 266, 277, 278, 284, 317, 322, 323, 531), 1),  # sizes, kinds of packing
    **dict.fromkeys((258, 338, 339, 529, 530, 532), 16),  # bits, alpha, number format, and YCbCr's facts
    **dict.fromkeys((STRIP_OFFSETS, STRIP_SIZES, TILE_OFFSETS, TILE_SIZES), 4 * MAX_PIECES),  # for each of four planes
    320: 3 << 16,  # palette
    347: 1 << 16,  # bytes of tables for JPEG
}
TIFF_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # those that hold whole numbers


class _Directory:
    """The first directory of a TIFF: the entries that decoding needs. BigTIFF differs in its wider numbers only."""

    def __init__(self, data: bytes):
        self.data, self.order = data, "<" if data[:2] == b"II" else ">"
        self.big = 43 in data[2:4]
        self.word, self.count_format, self.room = ("Q", "Q", 8) if self.big else ("I", "H", 4)
        entry = f"{self.order}HH{self.word}{self.room}s"
        self.place = 8 if self.big else 4  # of the number that says where the directory begins
        (at,) = self._unpack(self.word, self.place)
        (count,) = self._unpack(self.count_format, at)
        at += struct.calcsize(self.order + self.count_format)
        self.entries: dict[int, tuple[int, int, bytes]] = {}
        for _ in range(min(count, 1 << 16)):
            tag, kind, number, value = struct.unpack_from(entry, data, at)
            at += struct.calcsize(entry)
            if tag in TIFF_TAGS:
                if number > TIFF_TAGS[tag]:
                    raise ValueError(f"is a TIFF with {number} numbers in tag {tag}, more than {TIFF_TAGS[tag]}")
                self.entries[tag] = (kind, number, value)
            elif tag == 0x0112 and kind == 3:
                self.entries[tag] = (kind, number, value)

    def _unpack(self, format: str, at: int) -> tuple:
        return struct.unpack_from(self.order + format, self.data, at)

    def numbers(self, tag: int, default: int = 0) -> tuple[int, ...]:
        kind, number, value = self.entries.get(tag, (0, 0, b""))
        if kind not in TIFF_TYPES or not number:
            return (default,)
        format = f"{self.order}{number}{TIFF_TYPES[kind]}"
        if struct.calcsize(format) <= self.room:
            return struct.unpack_from(format, value)
        return struct.unpack_from(format, self.data, struct.unpack(self.order + self.word, value)[0])

    def rewritten(self) -> bytes:
        """The file with a directory of the needed entries behind it, and no other."""
        kept = [(tag, entry) for tag, entry in sorted(self.entries.items()) if tag in TIFF_TAGS]
        format = f"{self.order}HH{self.word}{self.room}s"
        directory = struct.pack(self.order + self.count_format, len(kept))
        directory += b"".join(struct.pack(format, tag, *entry) for tag, entry in kept) + bytes(self.room)
        even = len(self.data) + len(self.data) % 2
        head = self.data[: self.place] + struct.pack(self.order + self.word, even)
        return b"".join((head, memoryview(self.data)[len(head) :], bytes(even - len(self.data)), directory))


def read_tiff(data: bytes, max_pixels: int) -> Header:
    directory = _Directory(data)
    (width,), (height,), (compression,) = directory.numbers(256), directory.numbers(257), directory.numbers(259, 1)
    check_size((width, height), max_pixels)
    if compression not in TIFF_COMPRESSIONS:
        name, read = OTHER_COMPRESSIONS.get(compression, "unknown"), ", ".join(dict.fromkeys(TIFF_COMPRESSIONS.values()))
        raise ValueError(f"is a TIFF of the compression {compression} ({name}); only {read} are read")
    piece = _piece_size(directory, width, height)
    pieces = -(-width // piece[0]) * -(-height // piece[1])
    if piece[0] * piece[1] > max(4 * width * height, 1 << 22) or pieces > MAX_PIECES:
        raise ValueError(f"is a TIFF of {width} x {height} pixels in {pieces} strips or tiles of {piece[0]} x {piece[1]}")
    if compression == 7:
        _check_tiff_scans(directory, piece[0] * piece[1], max_pixels)
    (orientation, *_) = directory.numbers(0x0112, 1)
    return Header(directory.rewritten(), orientation)


def _piece_size(directory: _Directory, width: int, height: int) -> tuple[int, int]:
    """Width and height of a tile, or of a strip, which is as wide as the picture."""
    if 322 in directory.entries or 323 in directory.entries or TILE_OFFSETS in directory.entries:
        (across,), (down,) = directory.numbers(322), directory.numbers(323)
        if across < 1 or down < 1:
            raise ValueError(f"is a TIFF of {width} x {height} pixels in tiles of {across} x {down}")
        return across, down
    (rows,) = directory.numbers(278, height)
    return width, min(max(rows, 1), height)


def _check_tiff_scans(directory: _Directory, pixels: int, max_pixels: int) -> None:
    """Each strip or tile is a JPEG of its own, which may have any number of scans."""
    offsets, sizes = STRIP_OFFSETS, STRIP_SIZES
    if TILE_OFFSETS in directory.entries:
        offsets, sizes = TILE_OFFSETS, TILE_SIZES
    starts, lengths, data = directory.numbers(offsets), directory.numbers(sizes), directory.data
    if sum(lengths) > len(data) or len(starts) != len(lengths):
        raise ValueError("is a TIFF whose strips or tiles overlap, or are longer than the file")
    scans = 0
    for start, length in zip(starts, lengths, strict=True):
        found = sum(marker == 0xDA for marker, _, _ in jpeg_segments(data[start : start + length]))
        check_scans(found, pixels, max_pixels, "TIFF in JPEG, and one of its parts is")
        scans += found
    if scans * pixels > MAX_LARGE_SCANS * max(max_pixels, MAX_PIXELS):
        raise ValueError(f"is a TIFF in JPEG of {scans} scans at {pixels} pixels each, far more than photographs have")


# -- AVIF and HEIC ------------------------------------------------------------------------------------------------------


def read_heif(data: bytes, max_pixels: int) -> Header:
    """The decoder turns by the container's own rotation, and EXIF's does not count: an EXIF item becomes an unknown one."""
    patched = None
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind != b"meta":
            continue
        for inner, inner_start, inner_end in _boxes(data, start + 4, end):
            if inner != b"iinf":
                continue
            wide = data[inner_start] > 0  # version 0 counts its items in 16 bits, others in 32
            for item, at, _ in _boxes(data, inner_start + (8 if wide else 6), inner_end):
                place = at + (8 if data[at] == 2 else 10)  # version, flags, item's number (16 or 32 bits), protection
                if item == b"infe" and data[place : place + 4] == b"Exif":
                    patched = bytearray(data) if patched is None else patched
                    patched[place : place + 4] = b"skip"
    return Header(data if patched is None else bytes(patched))


def _boxes(data: bytes, position: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start of what it holds, its end) of each box between two places."""
    while position + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, position)
        start = position + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start)
            start += 8
        stop = end if size == 0 else min(end, position + size)
        if stop < start:
            return
        yield kind, start, stop
        position = stop


def read_as_it_is(data: bytes, max_pixels: int) -> Header:
    return Header(data)


READERS = {
    "JPEG": read_jpeg,
    "PNG": read_png,
    "GIF": read_gif,
    "BMP": read_as_it_is,
    "PPM": read_as_it_is,
    "TIFF": read_tiff,
    "WEBP": read_webp,
    "AVIF": read_heif,
    "HEIC": read_heif,
}
