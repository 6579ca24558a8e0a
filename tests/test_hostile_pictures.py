"""Pictures from a stranger: bombs, lies, damage. Refused before they cost anything, or read as what they are."""

import io
import json
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import PIL.features
import PIL.Image
import pytest

from effnet_np.images.headers import MAX_SIDE, jpeg_segments
from effnet_np.images.io import load_image

ROWS = np.arange(12, dtype=np.uint8)[:, None, None]
PIXELS = (ROWS * 9 + np.arange(10, dtype=np.uint8)[None, :, None] * 7 + np.array([0, 60, 120], np.uint8)).astype(np.uint8)
RGB = PIL.Image.fromarray(PIXELS)
AVIF = "avif" in PIL.features.modules and PIL.features.check("avif")
LONG_AGO = 9000  # side of a picture of 81 million pixels, below the limit


def saved(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(*chunks):
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def png_header(width, height):
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


def tiff(width, height, compression, data, **tags):
    """A grey TIFF whose tags say what they like."""
    entries = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 277: 1} | {
        int(key[1:]): value for key, value in tags.items()
    }
    place = 324 if 322 in entries else 273
    entries |= {place: 8 + 2 + 12 * (len(entries) + 2) + 4, {324: 325, 273: 279}[place]: len(data)}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, entries[tag]) for tag in sorted(entries))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + directory + bytes(4) + data


def bmp(width, height, compression, data):
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(data), 0, 0, 54 + 1024) + head + bytes(1024) + data


def many_scans(side, count):
    """A progressive JPEG whose last scan comes again and again: each costs as much as a whole picture."""
    data = saved(PIL.Image.new("L", (side, side), 128), "JPEG", progressive=True, quality=50)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def hidden_scans(side, count, before):
    """The same, with something before each scan that a careless count takes for a segment."""
    data = saved(PIL.Image.new("L", (side, side), 128), "JPEG", progressive=True, quality=50)
    last = data.rindex(b"\xff\xda")
    return data[:last] + (before + data[last:-2]) * count + data[-2:]


def tag_bomb(entries):
    """A directory whose every entry claims the whole of it as its value."""
    size = 8 + 2 + 12 * entries + 4
    entry = [struct.pack("<HHII", 0x9000 + number % 0x6000, 7, size - 8, 8) for number in range(entries)]
    return b"II*\0\x08\0\0\0" + struct.pack("<H", entries) + b"".join(entry) + bytes(4)


def jpeg_with(marker, content, times=1):
    data = saved(RGB, "JPEG", quality=90)
    return data[:2] + (marker + struct.pack(">H", len(content) + 2) + content) * times + data[2:]


def png_with(kind, content, times=1):
    data = saved(RGB, "PNG")
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return data[:33] + chunk * times + data[33:]  # after IHDR


def gif_with_comments(count):
    data = saved(RGB.quantize(8), "GIF")
    first = data.index(b",", 13 + 3 * 8)
    return data[:first] + (b"!\xfe\xff" + b"x" * 255 + b"\0") * count + data[first:]


def tiff_with_a_tag_bomb(entries):
    """A grey TIFF of 10 x 12 pixels, and beside what it needs, entries that each claim all its bytes."""
    needed = {256: 10, 257: 12, 258: 8, 259: 1, 262: 1, 273: 8 + 2 + 12 * (entries + 8) + 4, 277: 1, 279: 120}
    size = needed[273] + 120
    rows = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in needed.items()]
    rows += [struct.pack("<HHII", 0x9000 + number % 0x6000, 7, size - 8, 8) for number in range(entries)]
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(rows)) + b"".join(rows) + bytes(4) + bytes(range(120))


def tiff_in_jpeg(strip, strips, side):
    """A TIFF whose strips are all the same JPEG."""
    tags = {256: side, 257: side * strips, 258: 8, 259: 7, 262: 1, 277: 1, 278: side}
    at = 8 + 2 + 12 * (len(tags) + 2) + 4
    rows = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    offsets, sizes = at, at + 4 * strips
    places = (offsets, sizes) if strips > 1 else (at, len(strip))
    rows += [struct.pack("<HHII", 273, 4, strips, places[0]), struct.pack("<HHII", 279, 4, strips, places[1])]
    numbers = b"" if strips == 1 else struct.pack(f"<{strips}I", *[at + 8 * strips] * strips)
    numbers += b"" if strips == 1 else struct.pack(f"<{strips}I", *[len(strip)] * strips)
    rows.sort()
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(rows)) + b"".join(rows) + bytes(4) + numbers + strip


def mpf_segment():
    """What makes Pillow say MPO: a directory of two pictures."""
    tags = struct.pack("<HHI4s", 0xB000, 7, 4, b"0100") + struct.pack("<HHII", 0xB001, 4, 1, 2)
    body = b"MPF\0II*\0\x08\0\0\0\3\0" + tags + struct.pack("<HHII", 0xB002, 7, 32, 50) + bytes(4)
    body += struct.pack("<IIIHH", 0x20030000, 100, 0, 0, 0) + struct.pack("<IIIHH", 0, 100, 50, 0, 0)
    return b"\xff\xe2" + struct.pack(">H", len(body) + 2) + body


def webp_of(width, height):
    """A WebP whose canvas is larger than what is on it."""
    data = bytearray(saved(RGB, "WEBP", save_all=True, append_images=[PIL.Image.new("RGB", (10, 12))]))
    at = data.index(b"VP8X") + 12
    data[at : at + 6] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


PICTURES = {
    "PNG of 2.5 billion pixels": (png(png_header(50_000, 50_000), (b"IDAT", b"")), "exceeds limit|more than max_pixels"),
    "PNG of 121 million pixels": (
        png(png_header(11_000, 11_000), (b"IDAT", b"")),
        "more than max_pixels = 89478485; raise it",
    ),
    "PNG of no pixels": (png(png_header(0, 5), (b"IDAT", b"")), "no pixels|cannot be read|no picture"),
    "PNG of 2^31 x 1": (png(png_header((1 << 31) - 1, 1), (b"IDAT", b"")), "exceeds limit|more than max_pixels"),
    "PNG 1 wide, 80 million high": (png(png_header(1, 80_000_000), (b"IDAT", b"")), f"more than {MAX_SIDE} on one side"),
    "PNG whose numbers are missing": (
        png(png_header(LONG_AGO, LONG_AGO), (b"IDAT", b"xx"), (b"IEND", b"")),
        "damaged or cut off",
    ),
    "PNG cut off": (saved(RGB, "PNG")[:-40], "damaged or cut off"),
    "GIF of 65535 x 65535": (
        b"GIF89a" + b"\xff" * 4 + bytes(3) + b"," + bytes(4) + b"\xff" * 4 + b"\0\2\1\0\0;",
        "exceeds limit|max_pixels",
    ),
    "GIF cut off": (saved(RGB.quantize(8), "GIF")[:-30], "damaged or cut off|cannot be read"),
    "JPEG of 1,000 scans": (many_scans(1000, 1000), "is a JPEG of 1[0-9]{3} scans"),
    "JPEG of 50 large scans": (many_scans(9000, 50), "is a JPEG of [0-9]+ scans at 81000000 pixels each"),
    "JPEG of 1,000 scans behind TEM markers": (hidden_scans(1000, 1000, b"\xff\x01"), "is a JPEG of 1[0-9]{3} scans"),
    "JPEG of 1,000 scans behind reserved markers": (hidden_scans(1000, 1000, b"\xff\x05"), "is a JPEG of 1[0-9]{3} scans"),
    "JPEG of 1,000 scans behind a second start": (hidden_scans(1000, 1000, b"\xff\xd8"), "is a JPEG of 1[0-9]{3} scans"),
    "MPO of 1,000 scans": (
        many_scans(1000, 1000).replace(b"\xff\xdb", mpf_segment() + b"\xff\xdb", 1),
        "is a JPEG of 1[0-9]{3} scans",
    ),
    "JPEG cut off": (saved(RGB, "JPEG")[:-100], "damaged or cut off|cannot be read"),
    "TIFF 10 x 10 in a tile of 900 MB": (
        tiff(10, 10, 8, zlib.compress(bytes(100)), t322=30_000, t323=30_000),
        r"in 1 strips or tiles of 30000 x 30000",
    ),
    "TIFF in tiles of no size": (tiff(10, 10, 8, b"x", t322=0, t323=0), "is damaged|cannot be read|in tiles"),
    "TIFF with a strip of 4 GB": (tiff(10, 10, 5, bytes(9), t278=0xFFFFFFFF), "damaged or cut off"),
    "TIFF of 81 million tiles": (tiff(LONG_AGO, LONG_AGO, 8, b"x", t322=1, t323=1), "in 81000000 strips or tiles of 1 x 1"),
    "TIFF of 810,000 offsets": (
        tiff(900, 900, 1, bytes(99)).replace(b"\x11\1\4\0\1\0\0\0", b"\x11\1\4\0\xff\xff\xff\0"),
        "numbers in tag 273",
    ),
    "TIFF in JPEG that is none": (tiff(10, 10, 7, b"x"), "damaged or cut off"),
    "TIFF in JPEG of 1,000 scans": (tiff_in_jpeg(many_scans(1000, 1000), 1, 1000), "TIFF in JPEG, .* of 1[0-9]{3} scans"),
    "TIFF in JPEG, 60,000 strips that are one": (tiff_in_jpeg(saved(RGB, "JPEG"), 5000, 12), "overlap, or are longer"),
    "BigTIFF whose directory is 2^64 bytes away": (b"II+\0\x08\0\0\0" + b"\xff" * 8 + bytes(50), "header is cut off"),
    "TIFF in WebP": (tiff(10, 10, 50001, b"x"), "is a TIFF of the compression 50001 .WebP.; only raw, LZW, JPEG, deflate"),
    "TIFF in old JPEG": (tiff(10, 10, 6, b"x"), "is a TIFF of the compression 6 .old JPEG.; only"),
    "TIFF of 81 million pixels, 2 bytes": (tiff(LONG_AGO, LONG_AGO, 1, b"xx"), "damaged or cut off"),
    "PPM as text": (b"P3 2 1 255\n1 2 3 4 5 6\n", "only the kinds P4, P5 and P6"),
    "PPM as text, 3 MB of comments": (b"P3 10 10 255\n" + b"#a\n" * 1_000_000, "only the kinds P4, P5 and P6"),
    "PFM, floats": (b"Pf\n2 1\n-1.0\n" + struct.pack("<2f", float("nan"), 1.0), "only the kinds P4, P5 and P6"),
    "PPM that is shorter than it says": (b"P6 9000 9000 255\n" + bytes(100), "damaged or cut off"),
    "PPM of negative size": (b"P6 -5 9 255\n" + bytes(100), "cannot be read|no picture|no pixels"),
    "PPM with a maximum of zero": (b"P6 5 9 0\n" + bytes(200), "cannot be read|no picture"),
    "BMP 1 wide, 80 million high, in runs": (bmp(1, 80_000_000, 1, b"\0\0" * 100_000), "on one side"),
    "BMP that is shorter than it says": (bmp(LONG_AGO, LONG_AGO, 0, b"\0\1"), "damaged or cut off"),
    "BMP runs that end early": (bmp(LONG_AGO, LONG_AGO, 1, b"\0\1"), "damaged or cut off"),
    "WebP of 268 million pixels": (webp_of(16383, 16383), "exceeds limit|max_pixels|cannot be read"),
    "WebP cut off": (saved(RGB, "WEBP")[:-20], "damaged or cut off|cannot be read|no picture"),
    "nothing but a name": (b"\x89PNG\r\n\x1a\n", "cannot be read|no picture"),
}
SWITCHED_OFF = ("TGA", "ICO", "PCX", "SGI", "IM", "MSP", "XBM", "DDS", "BLP", "EPS", "PDF", "JPEG2000", "SPIDER", "ICNS", "DIB")


# What once cost far more than its pixels, and is read now: name -> (bytes, megabytes that it may cost).
EXPENSIVE = {
    "PNG with an EXIF bomb": (png_with(b"eXIf", tag_bomb(40_000)), 64),
    "JPEG with an EXIF bomb": (jpeg_with(b"\xff\xe1", b"Exif\0\0" + tag_bomb(5_000)), 64),
    "WebP with an EXIF bomb": (saved(RGB, "WEBP", exif=b"Exif\0\0" + tag_bomb(40_000)), 64),
    "JPEG of 200,000 EXIF segments": (jpeg_with(b"\xff\xe1", b"Exif\0\0MM\0*", times=200_000), 96),
    "JPEG of 200,000 comments": (jpeg_with(b"\xff\xfe", b"a comment...", times=200_000), 96),
    "TIFF with a tag bomb": (tiff_with_a_tag_bomb(12_000), 64),
    "PNG text bomb": (png_with(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000)), times=200), 64),
    "PNG with an ICC bomb": (png_with(b"iCCP", b"a\0\0" + zlib.compress(bytes(100_000_000))), 64),
    "PNG with a raw profile that is a bomb": (
        png_with(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\n\n\n" + b"0" * 100_000_000)),
        64,
    ),
    "GIF of 15 MB of comments": (gif_with_comments(60_000), 64),
}
if AVIF:  # put in afterwards, as Pillow reads the block that it is to write
    HARMLESS = b"II*\0\x08\0\0\0" + bytes(len(tag_bomb(40_000)) - 8)
    AVIF_BOMB = saved(RGB, "AVIF", exif=b"Exif\0\0" + HARMLESS).replace(HARMLESS, tag_bomb(40_000))
    EXPENSIVE["AVIF with an EXIF bomb"] = (AVIF_BOMB, 64)

# Runs each file of a folder in a process of its own, forked from one that has decoded a picture of each kind already, and
# prints what came of it, the seconds of processor time, and the megabytes above what that process had.
MEASURE = """
import json, os, resource, sys
from pathlib import Path
from effnet_np.images.io import load_image
folder = Path(sys.argv[1])
for path in sorted(Path(sys.argv[2]).glob("*")):
    if path.suffix != ".avif":  # which older Pillow lacks
        load_image(path)
results = {}
for path in sorted(folder.glob("*")):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff complains there
        idle = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / (1 << 20)
        try:
            answer = {"pixels": load_image(path.read_bytes()).shape}
        except BaseException as error:
            answer = {"error": type(error).__name__, "text": str(error)}
        os.write(write, json.dumps(answer | {"idle": idle}).encode())
        os._exit(0)
    os.close(write)
    answer = json.loads(os.read(read, 1 << 16) or '{"error": "the process died", "text": ""}')
    os.close(read)
    _, _, used = os.wait4(pid, 0)
    idle = answer.pop("idle", 0)  # in the child, as a fork does not take the libraries' pages along
    answer |= {"seconds": used.ru_utime + used.ru_stime, "megabytes": used.ru_maxrss / 1024 - idle}
    results[path.name] = answer
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """name -> what came of each picture of PICTURES and EXPENSIVE, and what it cost."""
    folder, names = tmp_path_factory.mktemp("pictures"), [*PICTURES, *EXPENSIVE]
    for number, name in enumerate(names):
        (folder / f"{number:03}").write_bytes((PICTURES | EXPENSIVE)[name][0])
    corpus = Path(__file__).parent / "corpus" / "pictures"
    command = [sys.executable, "-c", MEASURE, str(folder), str(corpus)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    results = json.loads(done.stdout)
    return {name: results[f"{number:03}"] for number, name in enumerate(names)}


@pytest.mark.parametrize("name", PICTURES)
def test_refused(name, measured):
    data, words = PICTURES[name]
    result = measured[name]
    assert result.get("error") == "ValueError", result
    assert result["text"].startswith(f"the picture of {len(data)} bytes")
    assert re.search(words, result["text"]), result["text"]
    assert len(result["text"]) < 1000
    assert result["seconds"] < 2
    # Where a file turns out to be too short only at its end, its declared pixels may be allocated before: four bytes each.
    assert result["megabytes"] < (64 + 4 * 81 if "damaged or cut off" in words else 64)


@pytest.mark.parametrize("name", EXPENSIVE)
def test_what_is_said_about_a_picture_costs_nothing(name, measured):
    result = measured[name]
    assert result.get("pixels") == [12, 10, 3], result
    assert result["seconds"] < 2
    assert result["megabytes"] < EXPENSIVE[name][1]


@pytest.mark.parametrize("format", SWITCHED_OFF)
def test_formats_that_are_not_needed_are_off(format):
    try:
        data = saved(RGB.convert("1") if format in ("MSP", "XBM") else RGB.resize((32, 32)), format)
    except (OSError, KeyError, ValueError) as error:
        pytest.skip(f"Pillow here cannot write {format}: {error}")
    with pytest.raises(ValueError, match="is no picture of a known format|is a .*, which is not read"):
        load_image(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\0\0\0\x0cjP  \r\n\x87\n", "is a JPEG 2000, which is not read; convert it to one of JPEG, PNG"),
        (b"\xff\x0a\xfa\x1f", "is a JPEG XL, which is not read"),
        (b"%PDF-1.7\n", "is a PDF, which"),
        (b"\0\0\0 ftypisom\0\0\2\0isomiso2", "is a film"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x">', "is a SVG .a drawing, not pixels., which"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"PK\3\4" + bytes(100), "is a zip archive"),
        (b"P3 2 1 255\n1 2 3 4 5 6\n", "of PPM, only the kinds P4, P5 and P6"),
        (b"\x93NUMPY\1\0", "load it with numpy.load"),
        (b"hello, this is text", "is no picture of a known format .JPEG, PNG, GIF, BMP, PPM, TIFF, WEBP, AVIF, HEIC."),
    ],
)
def test_what_is_known_and_not_read_is_named(data, words):
    with pytest.raises(ValueError, match=words):
        load_image(data)


def test_readers_that_are_not_installed_are_named(monkeypatch):
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ValueError, match="is a HEIC picture, which needs pillow-heif: pip install pillow-heif"):
        load_image(heic)
    monkeypatch.setattr("PIL.features.check", lambda feature: False)
    with pytest.raises(ValueError, match="is an AVIF picture, which needs Pillow 11.3 or newer: pip install --upgrade pillow"):
        load_image(b"\0\0\0\x1cftypavif\0\0\0\0mif1avif" + bytes(50))


def test_the_limit_can_be_raised():
    image = PIL.Image.new("L", (2000, 1500))
    data = saved(image, "PNG")
    with pytest.raises(ValueError, match="2000 x 1500 pixels, more than max_pixels = 1000000; raise it if you trust the file"):
        load_image(data, 1, max_pixels=1_000_000)
    assert load_image(data, 1, max_pixels=3_000_000).shape == (1500, 2000, 1)
    with pytest.raises(ValueError, match="the PIL image has 2000 x 1500 pixels, more than max_pixels"):
        load_image(image, 1, max_pixels=1_000_000)


def test_more_bytes_than_the_pixels_can_need():
    data = saved(RGB, "PNG") + bytes(2_000_000)
    for source in (data, io.BytesIO(data)):
        with pytest.raises(ValueError, match=r"bytes, more than max_pixels = 1000 can need"):
            load_image(source, max_pixels=1000)


def test_pipes_and_devices_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero"):
        with pytest.raises(ValueError, match="is a pipe or a device"):
            load_image(path)


def scans(data):
    return sum(marker == 0xDA for marker, _, _ in jpeg_segments(data))


def test_scans_are_counted_and_nothing_else():
    assert scans(saved(RGB, "JPEG")) == 1
    progressive = scans(saved(RGB, "JPEG", progressive=True))
    assert 5 < progressive < 15
    thumbnail = PIL.Image.Exif()
    thumbnail[0x9286] = b"\xff\xda" * 500  # the marker inside a comment is no scan, nor is what follows the end
    assert scans(saved(RGB, "JPEG", exif=thumbnail, progressive=True) + b"\xff\xda\0\2" * 500) == progressive
    np.testing.assert_array_equal(load_image(saved(RGB, "JPEG") + b"\xff\xda\0\2" * 500), load_image(saved(RGB, "JPEG")))


def test_of_an_mpo_the_first_picture_is_read():
    """What phones write: two JPEGs in a file, an MPF segment in the first that says so."""
    data = saved(RGB, "MPO", save_all=True, append_images=[RGB.rotate(180)], quality=90)
    assert PIL.Image.open(io.BytesIO(data)).format == "MPO"
    np.testing.assert_array_equal(load_image(data), load_image(saved(RGB, "JPEG", quality=90)))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    "block",
    [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 9, b"\xff" * 5000],
)
def test_broken_exif_does_not_change_the_pixels(format, block):
    options = {"lossless": True} if format == "WEBP" else {}
    plain = saved(RGB, format, **options)
    try:
        data = saved(RGB, format, exif=block, **options)
    except Exception:  # Pillow will not write it
        data = plain[:20] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + plain[20:] if format == "JPEG" else plain
    np.testing.assert_array_equal(load_image(data), load_image(plain))


def test_orientation_survives_other_broken_tags():
    """The picture is turned although the rest of its EXIF cannot be written again (which Pillow's own function tries)."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes()
    count = struct.unpack_from(">H" if block[6:8] == b"MM" else "<H", block, 14)[0]
    order = ">" if block[6:8] == b"MM" else "<"
    bad = struct.pack(order + "HHII", 0x8769, 4, 1, 0xFFFFFFF0)  # an EXIF directory far outside
    block = block[:14] + struct.pack(order + "H", count + 1) + block[16 : 16 + 12 * count] + bad + block[16 + 12 * count :]
    turned = load_image(saved(RGB, "PNG", exif=block))
    np.testing.assert_array_equal(turned, np.rot90(PIXELS, -1))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_huge_icc_profile_is_ignored(format):
    options = {"lossless": True} if format == "WEBP" else {}
    profile = os.urandom(4_000_000 if format != "PNG" else 900_000)
    np.testing.assert_array_equal(
        load_image(saved(RGB, format, icc_profile=profile, **options)), load_image(saved(RGB, format, **options))
    )


def test_thin_pictures_are_pictures():
    for size in ((1, 1), (1, 60_000), (60_000, 1)):
        assert load_image(saved(PIL.Image.new("RGB", size), "PNG")).shape == (size[1], size[0], 3)


def test_a_palette_that_is_missing():
    """What a damaged file of many kinds can be: the fuzzer found one for which Pillow raised AssertionError."""
    image = PIL.Image.new("P", (4, 4))
    image.palette = None
    with pytest.raises(ValueError, match="it has no palette: it is damaged"):
        load_image(image)
