"""Photographs of real sizes, as phones, cameras and scanners write them: each is answered, and a cat stays a cat."""

import io
import json
import threading
import warnings

import numpy as np
import PIL.features
import PIL.Image
import pytest

import effnet_np
from effnet_np.cli import main
from effnet_np.images import io as image_io
from effnet_np.images.io import SUFFIXES, load_image
from effnet_np.inference.stream import preprocess

from helpers import CHELSEA

AVIF = "avif" in PIL.features.modules and PIL.features.check("avif")
CATS = {"tiger cat", "Egyptian cat", "tabby, tabby cat", "lynx, catamount"}
CAT = PIL.Image.open(CHELSEA).convert("RGB")  # 451 x 300
ORIENTATION = PIL.Image.Exif()
ORIENTATION[0x0112] = 6  # the camera was held upright


def panorama(width, height):
    """Cats side by side, one of them in the middle."""
    cat = CAT.resize((height * 451 // 300, height))
    picture = PIL.Image.new("RGB", (width, height))
    for left in range((width - cat.width) // 2 % cat.width - cat.width, width, cat.width):
        picture.paste(cat, (left, 0))
    return picture


def upright(width, height):
    """As it is stored by a camera that was held upright: lying on its side."""
    return CAT.crop((75, 0, 300, 300)).resize((width, height)).transpose(PIL.Image.Transpose.ROTATE_90)


PHOTOGRAPHS = {  # name: (what makes it, format, how it is written); sizes in megapixels
    "12.jpg": (lambda: CAT.resize((4032, 3024)), "JPEG", {"quality": 90}),
    "12-upright.jpg": (lambda: upright(3024, 4032), "JPEG", {"exif": ORIENTATION, "progressive": True}),
    "24.tif": (lambda: CAT.resize((6000, 4000)), "TIFF", {"compression": "jpeg"}),
    "25-square.webp": (lambda: CAT.resize((5000, 5000)), "WEBP", {"method": 0}),
    "48.jpg": (lambda: CAT.resize((8064, 6048)), "JPEG", {}),
    "48-panorama.jpg": (lambda: panorama(20_000, 2400), "JPEG", {}),
    "12-phone.mpo": (
        lambda: CAT.resize((4032, 3024)),
        "MPO",
        {"save_all": True, "append_images": [CAT.resize((1008, 756))]},
    ),
    "8.png": (lambda: CAT.resize((3456, 2304)).convert("RGBA"), "PNG", {"compress_level": 1}),
    "16.tif": (lambda: CAT.resize((4900, 3267)), "TIFF", {"compression": "tiff_lzw"}),
}
if AVIF:
    PHOTOGRAPHS["8.avif"] = (lambda: CAT.resize((3264, 2448)), "AVIF", {"speed": 10, "quality": 60})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for name, (make, format, options) in PHOTOGRAPHS.items():
        make().save(folder / name, format, **options)
    return folder


def test_the_command_line_answers_them_all(folder, capsys):
    assert main(["classify", str(folder), "--json", "--backend", "numpy"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    labels = {str(row): row for row in rows}
    assert len(labels) == len(PHOTOGRAPHS)
    for row in rows:
        assert row["predictions"][0]["label"] in CATS, row


def test_explain_and_trace(folder, tmp_path):
    picture = effnet_np.explain(folder / "48-panorama.jpg")
    assert picture.width < 2000
    assert main(["explain", str(folder / "48.jpg"), "-o", str(tmp_path / "heat.png")]) == 0
    assert PIL.Image.open(tmp_path / "heat.png").width > 100
    layers = ["--layers", "*.embeddings.convolution"]
    assert main(["trace", str(folder / "12-upright.jpg"), "-o", str(tmp_path / "trace.npz"), *layers]) == 0
    model = effnet_np.EfficientNetForImageClassification.from_pretrained("lite0")
    pixel_values = preprocess(model, folder / "12-upright.jpg")[None]
    with effnet_np.Trace(model) as trace:
        model(pixel_values)
    with np.load(tmp_path / "trace.npz") as saved:
        (name,) = (name for name in saved if name.endswith("embeddings.convolution"))
        np.testing.assert_array_equal(saved[name], trace["efficientnet.embeddings.convolution"])


@pytest.mark.parametrize("preset", ["lite0", "b0", "b4", "b7"])
def test_each_models_preprocessing(preset):
    """What reaches the network is Pillow's resize of what the processor says, at any size."""
    processor = effnet_np.EfficientNetImageProcessor.preset(preset)
    pixels = np.asarray(CAT.resize((6000, 4000), PIL.Image.Resampling.NEAREST))
    seen, size = PIL.Image.fromarray(pixels), processor.size["height"]
    if preset == "lite0":
        left, top, side = (6000 - 3500) // 2, (4000 - 3500) // 2, 3500
        seen = seen.crop((left, top, left + side, top + side))
    seen = np.asarray(seen.resize((size, size), processor.resample))
    expected = processor(seen, do_resize=False, return_tensors="np").pixel_values if preset != "lite0" else None
    if expected is None:
        expected = ((seen.astype(np.float32) - 127) / 128).transpose(2, 0, 1)[None]
    np.testing.assert_array_equal(processor(pixels, return_tensors="np").pixel_values, expected)


def test_what_has_no_resize_is_bounded():
    processor = effnet_np.EfficientNetImageProcessor(do_resize=False)
    assert processor(np.zeros((2048, 2048, 3), np.uint8))["pixel_values"][0].shape == (3, 2048, 2048)
    with pytest.raises(ValueError, match="without do_resize this image has 2048 x 2049 pixels, more than 4194304 in all: set"):
        processor(np.zeros((2048, 2049, 3), np.uint8))


def stored(format, size=(100, 75), mode="RGB", **options):
    buffer = io.BytesIO()
    CAT.resize(size).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF"])
def test_pillows_own_limit_does_not_count(format, monkeypatch):
    data = stored(format)
    expected = load_image(data)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)  # 7,500 are more than twice as many: Pillow raises
    monkeypatch.setattr(image_io, "BAND", 500)  # the bands of a real size lie far below the real limit
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(load_image(data), expected)
    assert PIL.Image.MAX_IMAGE_PIXELS == 1000


@pytest.mark.parametrize(("format", "options"), [("JPEG", {}), ("TIFF", {"compression": "packbits"})])
def test_beyond_179_million_pixels(format, options):
    data = stored(format, (15_000, 12_000), "L", **options)
    with pytest.raises(ValueError, match="has 15000 x 12000 pixels, more than max_pixels = 89478485; raise it if you trust"):
        load_image(data, 1)
    limit, answers = PIL.Image.MAX_IMAGE_PIXELS, []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        thread = threading.Thread(target=lambda: answers.append(load_image(data, 1, max_pixels=200_000_000).shape))
        thread.start()
        while thread.is_alive():
            assert limit == PIL.Image.MAX_IMAGE_PIXELS  # other threads' pictures are judged as before
            thread.join(0.01)
    assert answers == [(12_000, 15_000, 1)]


@pytest.mark.skipif(not AVIF, reason="this Pillow has no AVIF")
def test_avif_and_its_rotation():
    """EXIF's orientation is written as the container's rotation, which is what counts."""
    size = (120, 80)
    plain = load_image(stored("AVIF", size, quality=90, subsampling="4:4:4"))
    assert np.abs(plain.astype(int) - np.asarray(CAT.resize(size))).mean() < 3
    for orientation, turned in ((6, np.rot90(plain, -1)), (8, np.rot90(plain)), (3, np.rot90(plain, 2)), (2, plain[:, ::-1])):
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        data = stored("AVIF", size, quality=90, subsampling="4:4:4", exif=exif)
        np.testing.assert_array_equal(load_image(data), turned)


def test_heic():
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(CAT).save(buffer, format="HEIF", quality=90)
    pixels = load_image(buffer.getvalue())
    assert np.abs(pixels.astype(int) - np.asarray(CAT)).mean() < 5
    turned = io.BytesIO()
    pillow_heif.from_pillow(CAT).save(turned, format="HEIF", quality=90, exif=ORIENTATION.tobytes())
    assert np.abs(load_image(turned.getvalue()).astype(int) - np.rot90(np.asarray(CAT), -1)).mean() < 5
    with pytest.raises(ValueError, match="451 x 300 pixels, more than max_pixels = 1000"):
        load_image(buffer.getvalue(), max_pixels=1000)
    with pytest.raises(ValueError, match="damaged or cut off|cannot be read"):
        load_image(buffer.getvalue()[:-2000])


def test_tiff_in_jpeg_and_in_tiles_of_both_kinds():
    data = stored("TIFF", (451, 300), compression="jpeg", quality=95)
    assert np.abs(load_image(data).astype(int) - np.asarray(CAT)).mean() < 4
    np.testing.assert_array_equal(load_image(stored("TIFF", (451, 300), big_tiff=True)), np.asarray(CAT))


def test_orientation_where_only_xmp_or_an_old_imagemagick_knows_it():
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    expected = np.rot90(load_image(stored("WEBP", lossless=True)), -1)
    np.testing.assert_array_equal(load_image(stored("WEBP", lossless=True, xmp=xmp)), expected)
    text = PIL.PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n  40\n" + ORIENTATION.tobytes().hex() + "\n", zip=True)
    np.testing.assert_array_equal(load_image(stored("PNG", pnginfo=text)), expected)


def test_too_little_memory_names_the_picture(tmp_path, monkeypatch):
    path = tmp_path / "cat.jpg"
    path.write_bytes(stored("JPEG"))

    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr(PIL.Image.Image, "tobytes", no_memory)
    with pytest.raises(MemoryError, match=r"not enough memory for the pixels of .*cat.jpg"):
        load_image(path)


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_of_both_byte_orders(order):
    deep = np.asarray(CAT.convert("L")).astype(order + "u2") * np.array(257, order + "u2")
    assert deep.dtype == np.dtype(order + "u2")
    np.testing.assert_array_equal(load_image(deep)[:, :, 0], np.asarray(CAT.convert("L")))


def test_folders_show_every_format():
    assert {".jpg", ".mpo", ".png", ".gif", ".bmp", ".ppm", ".tif", ".webp", ".avif", ".heic", ".heif"} <= set(SUFFIXES)
