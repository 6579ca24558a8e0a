"""classify(): every kind of picture, batches, scores like HF's pipeline, and pictures that are none."""

import functools
import http.server
import io
import os
import shutil
import sys
import threading
import urllib.request
import warnings
import zlib

import numpy as np
import PIL.Image
import pytest
import transformers

import effnet_np
from effnet_np.images.io import load_image
from effnet_np.images.processor import EfficientNetImageProcessor
from effnet_np.inference.classify import find_class, get_model

from helpers import CHELSEA, COFFEE, hf_model, pair, tiny_config

RGB = np.asarray(PIL.Image.open(CHELSEA).convert("RGB"))


def saved(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_every_kind_of_source_is_the_same_picture():
    sources = [str(CHELSEA), CHELSEA, CHELSEA.read_bytes(), bytearray(CHELSEA.read_bytes()), memoryview(CHELSEA.read_bytes())]
    sources += [io.BytesIO(CHELSEA.read_bytes()), PIL.Image.open(CHELSEA), RGB, RGB.transpose(2, 0, 1), RGB.astype(np.int64)]
    sources += [RGB / 255, (RGB / 255).astype(np.float32), RGB.astype(np.float32), RGB.astype(np.uint16) * 257]
    with open(CHELSEA, "rb") as file:
        np.testing.assert_array_equal(load_image(file), RGB)
    for source in sources:
        pixels = load_image(source)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, RGB)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    """The eight ways to hold a camera: each stored picture must come out upright."""
    transpose = PIL.Image.Transpose
    undo = {2: transpose.FLIP_LEFT_RIGHT, 3: transpose.ROTATE_180, 4: transpose.FLIP_TOP_BOTTOM, 5: transpose.TRANSPOSE}
    undo |= {6: transpose.ROTATE_90, 7: transpose.TRANSVERSE, 8: transpose.ROTATE_270}
    upright = PIL.Image.fromarray(RGB)
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(load_image(saved(stored, "PNG", exif=exif)), RGB)


def test_grey_palette_and_other_colour_spaces():
    image = PIL.Image.fromarray(RGB)
    grey = image.convert("L")
    expected = np.repeat(np.asarray(grey)[:, :, None], 3, 2)
    np.testing.assert_array_equal(load_image(saved(grey, "PNG")), expected)
    np.testing.assert_array_equal(load_image(np.asarray(grey)), expected)
    np.testing.assert_array_equal(load_image(np.asarray(grey)[:, :, None]), expected)
    palette = image.quantize(64)
    np.testing.assert_array_equal(load_image(saved(palette, "PNG")), np.asarray(palette.convert("RGB")))
    cmyk = image.convert("CMYK")
    np.testing.assert_array_equal(load_image(saved(cmyk, "TIFF")), np.asarray(cmyk.convert("RGB")))
    assert np.abs(load_image(saved(cmyk, "JPEG", quality=95)).astype(int) - RGB).mean() < 4  # not a negative
    bilevel = image.convert("1")
    np.testing.assert_array_equal(load_image(saved(bilevel, "PNG")), np.asarray(bilevel.convert("RGB")))
    np.testing.assert_array_equal(load_image(np.asarray(bilevel)), np.asarray(bilevel.convert("RGB")))
    np.testing.assert_array_equal(load_image(CHELSEA, channels=1)[:, :, 0], np.asarray(grey))


def test_transparent_pixels_are_composed_over_white():
    rgba = np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)])
    rgba[:100, :, 3], rgba[100:200, :, 3] = 0, 128
    for source in (
        rgba,
        saved(PIL.Image.fromarray(rgba), "PNG"),
        saved(PIL.Image.fromarray(rgba), "WEBP", lossless=True, exact=True),
    ):
        pixels = load_image(source).astype(int)
        assert (pixels[:100] == 255).all()
        assert np.abs(pixels[100:200] - (RGB[100:200] * (128 / 255) + 255 * (127 / 255))).max() <= 1
        np.testing.assert_array_equal(pixels[200:], RGB[200:])
    np.testing.assert_array_equal(load_image(rgba, channels=4), rgba)  # a network of four channels sees alpha itself
    palette = PIL.Image.fromarray(RGB).quantize(8)
    transparent = saved(palette, "PNG", transparency=palette.getpixel((0, 0)))
    assert (load_image(transparent)[0, 0] == 255).all()


def test_16_bits_are_scaled_and_not_clipped_to_white():
    grey = np.asarray(PIL.Image.open(CHELSEA).convert("L"))
    deep = PIL.Image.fromarray(grey.astype(np.uint16) * 257)
    expected = np.repeat(grey[:, :, None], 3, 2)
    for data in (saved(deep, "PNG"), saved(deep, "TIFF")):
        np.testing.assert_array_equal(load_image(data), expected)
    floats = PIL.Image.fromarray((grey / 255).astype(np.float32))
    np.testing.assert_array_equal(load_image(saved(floats, "TIFF")), expected)
    np.testing.assert_array_equal(load_image(PIL.Image.fromarray(grey.astype(np.int32) * 257)), expected)


def test_16_bits_round_to_the_nearest_of_8():
    generator = np.random.default_rng(0)
    deep = generator.integers(0, 65536, (64, 64), np.uint16)
    expected = np.round(deep / 257).astype(np.uint8)
    np.testing.assert_array_equal(load_image(deep)[:, :, 0], expected)
    np.testing.assert_array_equal(load_image(saved(PIL.Image.fromarray(deep), "PNG"))[:, :, 0], expected)
    floats = generator.random((64, 64))
    np.testing.assert_array_equal(load_image(floats)[:, :, 0], np.round(floats * 255).astype(np.uint8))


def test_32_bit_pictures_of_8_bit_numbers_are_not_black():
    grey = np.asarray(PIL.Image.open(CHELSEA).convert("L"))
    for source in (PIL.Image.fromarray(grey.astype(np.int32)), saved(PIL.Image.fromarray(grey.astype(np.int32)), "TIFF")):
        np.testing.assert_array_equal(load_image(source)[:, :, 0], grey)


def test_first_frame_of_an_animation():
    frames = [PIL.Image.fromarray(RGB).quantize(64), PIL.Image.new("P", RGB.shape[1::-1])]
    gif = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.abs(load_image(gif).astype(int) - np.asarray(frames[0].convert("RGB"))).mean() < 1


def test_a_pil_image_is_not_changed():
    image = PIL.Image.open(CHELSEA)
    before = image.mode, image.size, image.tobytes()
    effnet_np.classify(image)
    assert (image.mode, image.size, image.tobytes()) == before


def huge_png(side):
    """A picture of side x side pixels in 45 bytes: a valid header, and no pixels behind it."""
    chunks = [b"IHDR" + side.to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00", b"IDAT"]
    lengths_and_checks = [((len(c) - 4).to_bytes(4, "big"), zlib.crc32(c).to_bytes(4, "big")) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(n + c + check for c, (n, check) in zip(chunks, lengths_and_checks, strict=True))


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("no/such/photo.jpg", FileNotFoundError, "no/such/photo.jpg"),
        (os.path.dirname(CHELSEA), IsADirectoryError, "images"),
        (b"", ValueError, "the picture of 0 bytes is empty"),
        (b"GIF89a", ValueError, "no picture of a known format|cannot be read"),
        (b"not a picture at all", ValueError, r"is no picture of a known format \(JPEG, PNG"),
        (CHELSEA.read_bytes()[:100_000], ValueError, "is damaged or cut off"),
        (saved(PIL.Image.fromarray(RGB), "JPEG")[:9000], ValueError, "is damaged or cut off"),
        (
            huge_png(11_000),
            ValueError,
            "11000 x 11000 pixels, more than max_pixels = 89478485; raise it",
        ),
        (huge_png(50_000), ValueError, "50000 x 50000 pixels, more than max_pixels"),
        (saved(PIL.Image.fromarray(RGB), "TGA"), ValueError, "is no picture of a known format"),
        (io.StringIO("text"), TypeError, 'gave str, not bytes: open it in binary mode, "rb"'),
        (42, TypeError, "a picture must be a path, bytes, .* got int"),
        (None, TypeError, "got NoneType"),
        (np.zeros((0, 5, 3), np.uint8), ValueError, r"hold pixels, got shape \(0, 5, 3\)"),
        (np.zeros(5, np.uint8), ValueError, r"must be \(H, W\), \(H, W, C\) or \(C, H, W\)"),
        (np.zeros((5, 5, 2), np.uint8), ValueError, "must have 1, 3 or 4 channels"),
        (np.full((5, 5, 3), np.nan), ValueError, "NaN or infinite"),
        (np.full((5, 5, 3), 256), ValueError, "between 0 and 255, or 0 and 1; got 256"),
        (np.full((5, 5, 3), -1.0), ValueError, "got -1.0"),
        (RGB / 200, ValueError, "floats must lie between 0 and 1, or hold whole numbers from 0 to 255; these lie between"),
        (np.full((5, 5, 3), 1j), TypeError, "must hold numbers, got complex128"),
        (np.full((5, 5, 3), "x"), TypeError, "must hold numbers"),
    ],
)
def test_what_is_no_picture(source, error, message):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
        with pytest.raises(error, match=message):
            effnet_np.classify(source)


def test_limit_of_pixels_is_checked_before_decoding():
    with pytest.raises(ValueError, match=r"451 x 300 pixels, more than max_pixels = 1000; raise it if you trust the file"):
        effnet_np.classify(CHELSEA, max_pixels=1000)
    assert effnet_np.classify(CHELSEA, max_pixels=451 * 300)[0]["label"] == "tiger cat"


def test_one_pixel_and_extreme_shapes_are_pictures():
    for shape in ((1, 1, 3), (1, 3000, 3), (3000, 2)):
        assert len(effnet_np.classify(np.zeros(shape, np.uint8))) == 5


# -- calls -------------------------------------------------------------------------------------------------------------


def test_lists_come_back_in_order_whatever_the_batch():
    one, two = effnet_np.classify(CHELSEA), effnet_np.classify(COFFEE)
    assert isinstance(one[0]["score"], float)
    assert [prediction["score"] for prediction in one] == sorted((prediction["score"] for prediction in one), reverse=True)
    for batch_size in (1, 2, 8):
        results = effnet_np.classify([CHELSEA, COFFEE, CHELSEA], batch_size=batch_size)
        for result, expected in zip(results, [one, two, one], strict=True):
            assert [p["label"] for p in result] == [p["label"] for p in expected]
            np.testing.assert_allclose([p["score"] for p in result], [p["score"] for p in expected], rtol=1e-4)
    assert effnet_np.classify([]) == []
    assert len(effnet_np.classify([CHELSEA])) == 1
    batch = np.stack([RGB, RGB])
    assert [result[0]["label"] for result in effnet_np.classify(batch)] == ["tiger cat", "tiger cat"]


def test_top_k():
    assert len(effnet_np.classify(CHELSEA, top_k=1)) == 1
    assert len(effnet_np.classify(CHELSEA, top_k=5000)) == 1000
    everything = effnet_np.classify(CHELSEA, top_k=None)
    assert len(everything) == 1000
    assert abs(sum(prediction["score"] for prediction in everything) - 1) < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"function_to_apply": "max"}, "softmax, sigmoid, none"),
        ({"threads": 0, "backend": "numba"}, "threads must be None or at least 1, got 0"),
        ({"threads": 2, "backend": "numpy"}, "threads is for the compiled kernels"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        effnet_np.classify(CHELSEA, **options)


@pytest.mark.parametrize(
    ("name", "value"), [("top_k", 2.0), ("top_k", True), ("top_k", "5"), ("batch_size", 2.0), ("threads", 1.0)]
)
def test_counts_are_whole_numbers(name, value):
    with pytest.raises(TypeError, match=rf"{name} must be .*a whole number of at least 1, got {value!r}"):
        effnet_np.classify(CHELSEA, **{name: value})
    if name == "top_k":
        assert len(effnet_np.classify(CHELSEA, top_k=np.int64(2), backend="numpy")) == 2


def test_each_label_has_its_index():
    """ImageNet's "crane" is a bird, 134, and a machine, 517."""
    everything = effnet_np.classify(CHELSEA, top_k=None, backend="numpy")
    assert list(everything[0]) == ["label", "index", "score"]
    assert (everything[0]["index"], everything[0]["label"]) == (282, "tiger cat")
    assert sorted(p["index"] for p in everything if p["label"] == "crane") == [134, 517]
    assert sorted(p["index"] for p in everything) == list(range(1000))


def test_the_picture_of_a_list_that_failed_is_named(tmp_path):
    cut = tmp_path / "cut.png"
    cut.write_bytes(CHELSEA.read_bytes()[:50_000])
    for bad, error, message in (
        ("no.jpg", FileNotFoundError, r"^images\[2\]: there is no picture no.jpg$"),
        (cut, ValueError, r"^images\[2\]: .*cut.png is damaged or cut off"),
        (b"", ValueError, r"^images\[2\]: the picture of 0 bytes is empty$"),
        (42, TypeError, r"^images\[2\]: a picture must be"),
        (tmp_path, IsADirectoryError, r"^images\[2\]: .* is a folder"),
    ):
        for batch_size in (1, 2, 8):
            with pytest.raises(error, match=message) as caught:
                effnet_np.classify([CHELSEA, COFFEE, bad], batch_size=batch_size, backend="numpy")
        assert isinstance(caught.value.__cause__, error)


def test_the_picture_that_the_network_cannot_take_is_named():
    model = effnet_np.EfficientNetForImageClassification(tiny_config(), seed=0)
    model.image_processor = EfficientNetImageProcessor(do_resize=False)
    with pytest.raises(ValueError, match=r"^images\[1\]: .*too small"):
        effnet_np.classify([RGB, RGB[:8, :8], RGB], model=model)


def test_a_batch_for_which_memory_does_not_suffice_goes_one_by_one(monkeypatch):
    model = pair(tiny_config())[1]
    model.image_processor = EfficientNetImageProcessor(size=64)
    expected = effnet_np.classify([CHELSEA, COFFEE], model=model, batch_size=1)
    forward = model.forward

    def small(pixel_values, **options):
        if len(pixel_values) > 1:
            raise MemoryError
        return forward(pixel_values, **options)

    monkeypatch.setattr(model, "forward", small)
    assert effnet_np.classify([CHELSEA, COFFEE], model=model) == expected
    monkeypatch.setattr(model, "forward", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError, match=r"images\[0\] \(.*chelsea.png\): there is not enough memory for it"):
        effnet_np.classify([CHELSEA, COFFEE], model=model)


def test_a_faults_own_kind_is_kept(monkeypatch):
    def fail(*_):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(sys.modules["effnet_np.inference.stream"], "load_image", fail)
    with pytest.raises(RuntimeError, match="^a fault of ours$"):
        effnet_np.classify([CHELSEA])


def test_threads():
    one, two = (effnet_np.classify(CHELSEA, backend="numba", threads=threads) for threads in (1, 2))
    assert one == two == effnet_np.classify(CHELSEA, backend="numba")
    model = get_model("lite0")
    with pytest.raises(ValueError, match=r"pass effnet_np.compile\(model, threads=...\)"):
        effnet_np.classify(CHELSEA, model=model, threads=2)


def test_an_image_processor_of_ones_own(tmp_path):
    classify = functools.partial(effnet_np.classify, CHELSEA, backend="numpy")
    model = pair(tiny_config())[1]
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r'classify\(..., image_processor="b0"\)'):
        effnet_np.classify(CHELSEA, model=tmp_path)
    model.image_processor = EfficientNetImageProcessor.preset("b0")
    expected = classify(model=model)
    for processor in ("b0", model.image_processor):
        assert classify(model=tmp_path, image_processor=processor) == expected
    other = EfficientNetImageProcessor(size=64)
    assert classify(model=tmp_path, image_processor=other) != expected
    assert classify(model=tmp_path, image_processor="b0") == expected
    with pytest.raises(ValueError, match="does not say how"):
        effnet_np.classify(CHELSEA, model=tmp_path)
    with pytest.raises(TypeError, match="set model.image_processor of this one"):
        effnet_np.classify(CHELSEA, model=model, image_processor="b0")


@pytest.mark.parametrize(
    ("name", "index"),
    [
        (281, 281),
        (np.int64(5), 5),
        ("281", 281),
        ("tabby", 281),
        (" Tabby, Tabby Cat ", 281),
        ("Felis concolor", 286),
        ("chow", 260),
    ],
)
def test_classes_by_name(name, index):
    assert find_class(get_model("lite0").config, name) == index


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("crane", "2 classes are called 'crane'; give the index: 134 crane; 517 crane"),
        ("tigercat", "no class is called 'tigercat'; close to it: 282 tiger cat"),
        ("", "no class is called ''"),
        ("-1", "must lie between 0 and 999"),
        (1000, "must lie between 0 and 999"),
        (True, "must lie between 0 and 999"),
        (1.0, "must lie between 0 and 999"),
        (None, "must lie between 0 and 999"),
    ],
)
def test_classes_that_there_are_not(name, message):
    with pytest.raises(ValueError, match=message):
        find_class(get_model("lite0").config, name)


def test_labels_of_strangers_in_the_error():
    config = tiny_config(num_labels=2)
    config.id2label = {0: "cat\x1b[31m\n" + "x" * 2_000_000, 1: 7}
    assert find_class(config, 1) == 1
    with pytest.raises(ValueError, match=r"close to it: 0 cat\\x1b\[31m\\nx") as caught:
        find_class(config, "cat")
    assert len(str(caught.value)) < 200


def test_pictures_from_an_open_address(tmp_path):
    """What the error for an address recommends: urlopen gives a binary file object."""
    shutil.copy(CHELSEA, tmp_path / "cat.png")
    handler = functools.partial(QuietHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"http://127.0.0.1:{server.server_port}/cat.png") as response:
                assert effnet_np.classify(response, top_k=1)[0]["label"] == "tiger cat"
        finally:
            server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match=r"classify\(\) has no option device, topk"):
        effnet_np.classify(CHELSEA, topk=3, device="cpu")


def test_pictures_of_different_sizes_without_a_resize():
    model = effnet_np.EfficientNetForImageClassification(tiny_config(), seed=0)
    model.image_processor = EfficientNetImageProcessor(do_resize=False)
    one, two = effnet_np.classify([RGB[:100], RGB], model=model)
    assert two == effnet_np.classify(RGB, model=model)


@pytest.mark.parametrize(("num_labels", "problem_type"), [(5, None), (1, None), (5, "multi_label_classification")])
def test_scores_are_those_of_hfs_pipeline(num_labels, problem_type, tmp_path):
    hf_model(tiny_config(num_labels=num_labels, problem_type=problem_type)).save_pretrained(tmp_path)
    EfficientNetImageProcessor(size=64).save_pretrained(tmp_path)
    ours = effnet_np.classify(CHELSEA, model=tmp_path, top_k=3)
    assert len(ours) == min(3, num_labels)
    if int(transformers.__version__.split(".")[0]) < 5:  # from 5.0 on, its pipeline needs torchvision
        processor = transformers.EfficientNetImageProcessor.from_pretrained(tmp_path)
        model = transformers.EfficientNetForImageClassification.from_pretrained(tmp_path)
        pipeline = transformers.pipeline("image-classification", model=model, image_processor=processor, framework="pt")
        theirs = pipeline(PIL.Image.open(CHELSEA).convert("RGB"), top_k=3)
        assert [p["label"] for p in ours] == [p["label"] for p in theirs]
        np.testing.assert_allclose([p["score"] for p in ours], [p["score"] for p in theirs], rtol=1e-4)
    logits = [p["score"] for p in effnet_np.classify(CHELSEA, model=tmp_path, function_to_apply="none")]
    sigmoid = num_labels == 1 or problem_type
    scores = 1 / (1 + np.exp(-np.array(logits))) if sigmoid else np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose([p["score"] for p in ours], scores[:3], rtol=1e-5)


def test_a_model_is_kept_until_its_files_change(tmp_path):
    hf_model(tiny_config()).save_pretrained(tmp_path)
    EfficientNetImageProcessor(size=64).save_pretrained(tmp_path)
    first = get_model(tmp_path)
    assert get_model(str(tmp_path)) is first
    before = effnet_np.classify(CHELSEA, model=tmp_path)
    hf_model(tiny_config(), seed=5).save_pretrained(tmp_path)
    assert get_model(tmp_path) is not first
    assert effnet_np.classify(CHELSEA, model=tmp_path) != before
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds none of model.safetensors"):
        effnet_np.classify(CHELSEA, model=tmp_path)


def test_a_model_object_needs_its_preprocessing(tmp_path):
    model = effnet_np.EfficientNetForImageClassification(tiny_config(), seed=0)
    with pytest.raises(TypeError, match="does not know its preprocessing"):
        effnet_np.classify(CHELSEA, model=model)
    model.image_processor = EfficientNetImageProcessor(size=64)
    assert len(effnet_np.classify(CHELSEA, model=model)) == 5
    backbone = effnet_np.EfficientNetModel(tiny_config(), seed=0)
    backbone.image_processor = model.image_processor
    with pytest.raises(TypeError, match="an image classifier with its image_processor set|does not know"):
        effnet_np.classify(CHELSEA, model=backbone)
    model.image_processor = None
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="does not say how its images are preprocessed: it has no preprocessor_config.json"):
        effnet_np.classify(CHELSEA, model=tmp_path)


@pytest.mark.parametrize("channels", [1, 4])
def test_networks_of_other_channels(channels):
    model = effnet_np.EfficientNetForImageClassification(tiny_config(num_channels=channels), seed=0)
    model.image_processor = EfficientNetImageProcessor(size=64, image_mean=0.5, image_std=0.5)
    assert len(effnet_np.classify(CHELSEA, model=model)) == 5


def test_networks_of_five_channels_take_no_pictures():
    model = effnet_np.EfficientNetForImageClassification(tiny_config(num_channels=5), seed=0)
    model.image_processor = EfficientNetImageProcessor(size=64)
    with pytest.raises(ValueError, match="this model takes 5: pass pixel_values"):
        effnet_np.classify(CHELSEA, model=model)


def test_numbers_beyond_64_bits_are_as_good_as_endless(tmp_path):
    picture = shutil.copy(CHELSEA, tmp_path)
    expected = effnet_np.classify(picture)
    for limit in (10**12, 1 << 70):
        assert effnet_np.classify(picture, batch_size=1 << 70, max_pixels=limit) == expected
    with pytest.raises(TypeError, match="max_pixels must be a whole number"):
        effnet_np.classify(picture, max_pixels=1e6)
    with pytest.raises(ValueError, match="must lie between 0 and 999"):
        find_class(effnet_np.EfficientNetConfig.preset("b0"), "1" * 5000)
