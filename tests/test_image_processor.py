"""The image processor against live transformers: random options, layouts, files, overrides; and what is refused."""

import sys

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import effnet_np
from effnet_np.images import processor as image_processor
from effnet_np.images.processor import EfficientNetImageProcessor

from helpers import CHELSEA, COFFEE

PHOTO = np.asarray(PIL.Image.open(CHELSEA).convert("RGB"))[40:240, 100:330]  # 200 x 230, so that both axes show

# From 5.0 on the plain name is a torchvision class, and the one on Pillow has a name of its own. It gives channels first
# whatever it is asked for, and pads a crop that is short of an odd number of pixels: there, only what is alike is compared.
SINCE_5 = hasattr(transformers, "EfficientNetImageProcessorPil")
HF = transformers.EfficientNetImageProcessorPil if SINCE_5 else transformers.EfficientNetImageProcessor
LAYOUTS = ["channels_first"] if SINCE_5 else ["channels_first", "channels_last"]
SIZES = [{"height": h, "width": w} for h, w in ((1, 1), (40, 33), (64, 64), (77, 190), (289, 346), (500, 300))]
OPTIONS = {
    "do_resize": st.booleans(),
    "size": st.sampled_from(SIZES),
    "resample": st.integers(0, 5),
    "do_center_crop": st.booleans(),
    "crop_size": st.sampled_from(SIZES[1:]),
    "do_rescale": st.booleans(),
    "rescale_factor": st.sampled_from([1 / 255, 1 / 127.5, 2.0]),
    "rescale_offset": st.booleans(),
    "do_normalize": st.booleans(),
    "image_mean": st.sampled_from([0.4, [0.485, 0.456, 0.406]]),
    "image_std": st.sampled_from([0.5, [0.47853944, 0.4732864, 0.47434163]]),
    "include_top": st.booleans(),
}
IMAGES = {
    "uint8, channels last": PHOTO,
    "uint8, channels first": np.ascontiguousarray(PHOTO.transpose(2, 0, 1)),
    "float32 from 0 to 1": (PHOTO / 255).astype(np.float32),
    "float64 from 0 to 1": PHOTO / 255,
    "float32 from 0 to 255": PHOTO.astype(np.float32),
    "int64": PHOTO.astype(np.int64),
    "one channel": PHOTO[:, :, :1],
    "PIL": PIL.Image.fromarray(PHOTO),
}


def run(processor, image, **options):
    return processor.preprocess(image, return_tensors="np", **options)["pixel_values"]


def short_of_an_odd_number(have, want):
    return any(want[side] > have[side] and (want[side] - have[side]) % 2 for side in ("height", "width"))


def assert_equal(ours, theirs):
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6 * np.abs(theirs).max())


@pytest.mark.filterwarnings("ignore:these pixels lie between 0 and 1")
@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.fixed_dictionaries(OPTIONS), st.sampled_from(list(IMAGES)), st.sampled_from(LAYOUTS))
def test_random_options(options, kind, data_format):
    image = IMAGES[kind]
    have = options["size"] if options["do_resize"] else {"height": 200, "width": 230}
    assume(not (SINCE_5 and options["do_center_crop"] and short_of_an_odd_number(have, options["crop_size"])))
    if kind == "one channel":
        options |= {"image_mean": 0.4, "image_std": 0.5}
    theirs = run(HF(**options), image, data_format=data_format)
    assert_equal(run(EfficientNetImageProcessor(**options), image, data_format=data_format), theirs)
    assert_equal(run(EfficientNetImageProcessor(), image, data_format=data_format, **options), theirs)  # overrides


@pytest.mark.parametrize("resample", range(6))
def test_each_filter_on_a_whole_photograph(resample):
    image = PIL.Image.open(COFFEE).convert("RGB")
    options = {"resample": resample, "size": {"height": 224, "width": 260}}
    assert_equal(run(EfficientNetImageProcessor(**options), image), run(HF(**options), image))


@pytest.mark.parametrize("name", [f"b{n}" for n in range(8)])
def test_presets_make_the_usual_normalisation(name):
    """The roots of ImageNet's deviations, divided by twice, are ImageNet's deviations."""
    processor = EfficientNetImageProcessor.preset(name)
    size = effnet_np.EfficientNetConfig.preset(name).image_size
    resized = np.asarray(PIL.Image.fromarray(PHOTO).resize((size, size), PIL.Image.Resampling.NEAREST))
    expected = (resized / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(run(processor, PHOTO)[0], expected.transpose(2, 0, 1), atol=2e-5)


@pytest.mark.parametrize("crop", [(h, w) for h in (3, 4, 5, 6, 7) for w in (4, 7, 8)])
def test_center_crop_of_images_that_are_too_small(crop):
    """Where an odd number of pixels is wanting HF's result is one pixel short; so is ours."""
    image = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3) + 1
    size = {"height": crop[0], "width": crop[1]}
    if SINCE_5 and short_of_an_odd_number({"height": 5, "width": 6}, size):
        pytest.skip("transformers 5 pads one pixel more; this project reproduces 4.37.2, with which this runs")
    options = {"do_resize": False, "do_center_crop": True, "crop_size": size}
    assert_equal(run(EfficientNetImageProcessor(**options), image), run(HF(**options), image))


def test_defaults_are_hfs():
    ours, theirs = EfficientNetImageProcessor().to_dict(), HF().to_dict()
    for name in OPTIONS:  # the options of HF's class, above
        if name != "resample" or not SINCE_5:  # 5.x has changed that default to bicubic
            assert ours[name] == (list(theirs[name]) if isinstance(theirs[name], tuple) else theirs[name]), name


def test_positional_options_are_hfs():
    assert EfficientNetImageProcessor(False, 32, 2).to_dict()["size"] == {"height": 32, "width": 32}


def test_processors_share_no_lists():
    first = EfficientNetImageProcessor.preset("b0")
    first.image_std[0] = 5
    assert EfficientNetImageProcessor.preset("b1").image_std[0] == 0.47853944
    plain = EfficientNetImageProcessor()
    plain.image_mean[0] = 9
    assert plain.image_std == EfficientNetImageProcessor().image_mean == [0.5, 0.5, 0.5]


def test_numpys_numbers_become_pythons(tmp_path):
    processor = EfficientNetImageProcessor(size=np.int64(20), image_mean=np.array([0.1, 0.2, 0.3]), image_std=np.float64(0.5))
    assert processor == EfficientNetImageProcessor(size=20, image_mean=[0.1, 0.2, 0.3], image_std=0.5)
    processor.save_pretrained(tmp_path)


def test_floats_between_the_grid_of_255ths():
    image = np.random.default_rng(0).random((50, 60, 3))
    options = {"size": {"height": 64, "width": 64}, "resample": 2}
    assert_equal(
        run(EfficientNetImageProcessor(**options), image, do_rescale=False), run(HF(**options), image, do_rescale=False)
    )


@pytest.mark.parametrize("side", [301, 305, 300])
def test_crop_fraction_rounds_down(side):
    image = np.random.default_rng(0).integers(0, 255, (side, side + 40, 3), np.uint8)
    kept = int(side * 224 / 256)
    top, left = (side - kept) // 2, (side + 40 - kept) // 2
    expected = PIL.Image.fromarray(image[top : top + kept, left : left + kept]).resize((224, 224), PIL.Image.Resampling.BICUBIC)
    ours = run(EfficientNetImageProcessor.preset("lite0"), image)[0]
    np.testing.assert_allclose(ours, ((np.asarray(expected, np.float32) - 127) / 128).transpose(2, 0, 1), atol=1e-6)


def test_batches_and_lists():
    processor = EfficientNetImageProcessor(size=32)
    one = run(processor, PHOTO)
    np.testing.assert_array_equal(run(processor, [PHOTO, PHOTO]), np.concatenate([one, one]))
    np.testing.assert_array_equal(run(processor, np.stack([PHOTO, PHOTO])), np.concatenate([one, one]))
    batch = processor([PHOTO])
    assert isinstance(batch["pixel_values"], list)
    np.testing.assert_array_equal(batch.pixel_values[0], one[0])
    with pytest.raises(AttributeError, match="no 'labels', only pixel_values"):
        batch.labels  # noqa: B018


def test_tensors():
    tensor = EfficientNetImageProcessor(size=32)(PHOTO, return_tensors="pt").pixel_values
    assert isinstance(tensor, torch.Tensor)
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(
        EfficientNetImageProcessor(size=32)(torch.from_numpy(PHOTO)).pixel_values[0], tensor[0].numpy()
    )


@pytest.mark.parametrize(("framework", "package"), [("tf", "tensorflow"), ("jax", "jax"), ("pt", "torch")])
def test_missing_framework(framework, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"needs {package}, which is not installed: pip install {package}"):
        EfficientNetImageProcessor(size=32)(PHOTO, return_tensors=framework)


def test_warns_once_when_pixels_look_rescaled(monkeypatch, recwarn):
    monkeypatch.setattr(image_processor, "_warned_of_scaled_pixels", False)
    processor = EfficientNetImageProcessor(size=32)
    processor(IMAGES["float32 from 0 to 1"], do_rescale=False)
    processor(PHOTO)
    assert not recwarn
    for _ in range(2):
        processor(IMAGES["float32 from 0 to 1"])
    (warning,) = recwarn
    assert "pass do_rescale=False" in str(warning.message)


def test_files_both_ways(tmp_path):
    ours = EfficientNetImageProcessor(size=(50, 60), resample=2, crop_size=40, image_std=0.3, extra_key="kept")
    path = ours.save_pretrained(tmp_path / "ours")
    assert path.endswith("preprocessor_config.json")
    theirs = HF.from_pretrained(tmp_path / "ours")
    assert_equal(run(ours, PHOTO), run(theirs, PHOTO))
    theirs.save_pretrained(tmp_path / "theirs")
    back = EfficientNetImageProcessor.from_pretrained(tmp_path / "theirs", resample=3)
    assert (back.size, back.resample, back.image_std) == ({"height": 50, "width": 60}, 3, 0.3)
    assert EfficientNetImageProcessor.from_pretrained(tmp_path / "ours") == ours
    assert EfficientNetImageProcessor.from_pretrained(path).extra_key == "kept"
    with pytest.raises(TypeError, match="no option do_sharpen"):
        EfficientNetImageProcessor.from_pretrained(path, do_sharpen=True)
    lite = EfficientNetImageProcessor.preset("lite0")
    lite.save_pretrained(tmp_path / "lite")
    assert EfficientNetImageProcessor.from_pretrained(tmp_path / "lite") == lite


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": {"longest_edge": 3}}, "size must be a number, a pair .height, width. or"),
        ({"size": {"shortest_edge": 0}}, "size must be whole numbers between 1 and 65536"),
        ({"crop_size": {"shortest_edge": 3}}, "crop_size must be a number"),
        ({"size": 0}, "size must be whole numbers between 1 and 65536"),
        ({"crop_size": (1, 2, 3)}, "crop_size must be a number"),
        ({"resample": 6}, "resample must be one of 0 nearest, 1 lanczos, .*; got 6"),
        ({"image_mean": [0.1, 0.2]}, "image_mean must be one number or 3"),
        ({"image_std": 0}, "image_std must be finite, and not zero"),
        ({"crop_fraction": 1.5}, "crop_fraction must be None or above 0 and at most 1"),
    ],
)
def test_options_that_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        EfficientNetImageProcessor(**options)(PHOTO)


@pytest.mark.parametrize(
    ("image", "options", "error", "message"),
    [
        ("photo.jpg", {}, TypeError, "must be a PIL image, a NumPy array or a tensor, got str"),
        ([], {}, ValueError, "the list is empty"),
        (PHOTO[:, :, 0], {}, ValueError, r"needs 3 dimensions, .* got shape \(200, 230\)"),
        (np.zeros((20, 20, 4), np.uint8), {}, ValueError, "say which axis holds the channels"),
        (PHOTO, {"data_format": "channels"}, ValueError, "must be 'channels_first' or 'channels_last'"),
        (PHOTO, {"return_tensors": "mx"}, ValueError, "None or one of np, pt, tf, jax, got 'mx'"),
        (PHOTO, {"do_sharpen": True}, TypeError, "no option do_sharpen"),
        (PHOTO.astype(str), {}, TypeError, "pixels must be numbers"),
        (PHOTO.astype(np.int32) * 2, {}, ValueError, "must lie in 0 to 255 for whole numbers"),
        (PHOTO / 200, {}, ValueError, "0 to 1 for other numbers"),
        (np.full((9, 9, 3), np.nan), {}, ValueError, "NaN or infinite"),
        ([PHOTO, PHOTO[:50]], {"do_resize": False, "return_tensors": "np"}, ValueError, "make no batch"),
    ],
)
def test_bad_images(image, options, error, message):
    with pytest.raises(error, match=message):
        EfficientNetImageProcessor(size=32)(image, **options)


def test_four_channels_where_the_axis_is_named():
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 4), np.uint8)
    options = {"size": {"height": 16, "width": 17}, "image_mean": 0.5, "image_std": 0.5, "resample": 2}
    ours = run(EfficientNetImageProcessor(**options), image, input_data_format="channels_last")
    assert_equal(ours, run(HF(**options), image, input_data_format="channels_last"))
