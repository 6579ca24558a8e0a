"""Pictures from a stranger: bombs, lies, damage. Refused before they cost anything, or read as what they are."""

import io
import os
import resource
import struct
import time
import zlib

import numpy as np
import PIL.Image
import pytest

from effnet_np.image_io import FORMATS, MAX_SIDE, _jpeg_scans, load_image

ROWS = np.arange(12, dtype=np.uint8)[:, None, None]
PIXELS = (ROWS * 9 + np.arange(10, dtype=np.uint8)[None, :, None] * 7 + np.array([0, 60, 120], np.uint8)).astype(np.uint8)
RGB = PIL.Image.fromarray(PIXELS)
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
    "PNG text bomb": (
        png(png_header(9, 9), *[(b"zTXt", b"a%d\0\0" % n + zlib.compress(bytes(1_000_000))) for n in range(200)]),
        "text",
    ),
    "PNG with an ICC bomb": (png(png_header(9, 9), (b"iCCP", b"a\0\0" + zlib.compress(bytes(100_000_000)))), "cannot be read"),
    "GIF of 65535 x 65535": (
        b"GIF89a" + b"\xff" * 4 + bytes(3) + b"," + bytes(4) + b"\xff" * 4 + b"\0\2\1\0\0;",
        "exceeds limit|max_pixels",
    ),
    "GIF cut off": (saved(RGB.quantize(8), "GIF")[:-30], "damaged or cut off|cannot be read"),
    "JPEG of 1,000 scans": (many_scans(1000, 1000), "is a JPEG of 1[0-9]{3} scans"),
    "JPEG of 50 large scans": (many_scans(9000, 50), "is a JPEG of [0-9]+ scans at 81000000 pixels each"),
    "JPEG cut off": (saved(RGB, "JPEG")[:-100], "damaged or cut off|cannot be read"),
    "TIFF 10 x 10 in a tile of 900 MB": (
        tiff(10, 10, 8, zlib.compress(bytes(100)), t322=30_000, t323=30_000),
        r"in tiles of \(30000, 30000\)",
    ),
    "TIFF in tiles of no size": (tiff(10, 10, 8, b"x", t322=0, t323=0), "is damaged|cannot be read|in tiles"),
    "TIFF with a strip of 4 GB": (tiff(10, 10, 5, bytes(9), t278=0xFFFFFFFF), "damaged or cut off"),
    "TIFF in JPEG": (tiff(10, 10, 7, b"x"), "is a TIFF of the compression 'jpeg'; only raw, tiff_lzw"),
    "TIFF in WebP": (tiff(10, 10, 50001, b"x"), "is a TIFF of the compression|cannot be read|no picture"),
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
    "a zip": (b"PK\3\4" + bytes(100), "is no picture of a known format"),
    "nothing but a name": (b"\x89PNG\r\n\x1a\n", "cannot be read|no picture"),
}
SWITCHED_OFF = ("TGA", "ICO", "PCX", "SGI", "IM", "MSP", "XBM", "DDS", "BLP", "EPS", "PDF", "JPEG2000", "SPIDER", "ICNS", "DIB")


@pytest.mark.parametrize("name", PICTURES)
def test_refused(name, recwarn):
    data, words = PICTURES[name]
    begun, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=words) as caught:
        load_image(data)
    assert f"the picture of {len(data)} bytes" in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert time.process_time() - begun < 2
    # The declared pixels themselves may be allocated (four bytes each) before the file turns out to be too short.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < (64 + 4 * 81) << 10


@pytest.mark.parametrize("format", SWITCHED_OFF)
def test_formats_that_are_not_needed_are_off(format):
    try:
        data = saved(RGB.convert("1") if format in ("MSP", "XBM") else RGB.resize((32, 32)), format)
    except (OSError, KeyError, ValueError) as error:
        pytest.skip(f"Pillow here cannot write {format}: {error}")
    with pytest.raises(ValueError, match="is no picture of a known format"):
        load_image(data)


def test_only_seven_formats():
    assert set(FORMATS) == {"JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP"}


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


def test_scans_are_counted_and_nothing_else():
    assert _jpeg_scans(saved(RGB, "JPEG")) == 1
    progressive = _jpeg_scans(saved(RGB, "JPEG", progressive=True))
    assert 5 < progressive < 15
    thumbnail = PIL.Image.Exif()
    thumbnail[0x9286] = b"\xff\xda" * 500  # the marker inside a comment is no scan, nor is what follows the end
    assert _jpeg_scans(saved(RGB, "JPEG", exif=thumbnail, progressive=True) + b"\xff\xda\0\2" * 500) == progressive
    np.testing.assert_array_equal(load_image(saved(RGB, "JPEG") + b"\xff\xda\0\2" * 500), load_image(saved(RGB, "JPEG")))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    "block",
    [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 9, b"\xff" * 5000],
)
def test_broken_exif_does_not_change_the_pixels(format, block):
    options = {"lossless": True} if format == "WEBP" else {}
    plain = saved(RGB, format, **options)
    try:
        data = saved(RGB, format, exif=block, **options) if block else plain
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
