"""Class activation maps are exact; the picture that shows one is whole, and colours what the network sees."""

import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest
import torch

import effnet_np
from effnet_np import class_activation_map
from effnet_np.inference.stream import preprocess
from effnet_np.inspection.explain import resize_bilinear, save_explanation, seen_region

from helpers import CHELSEA, COFFEE, assert_same, pair, pixels, tiny_config


@pytest.fixture(scope="module")
def lite():
    return effnet_np.EfficientNetForImageClassification.from_pretrained("lite0")


@pytest.mark.parametrize("class_index", [None, 0, [3, 1], np.array([4, 4])])
def test_the_mean_of_a_map_is_the_logit(class_index):
    config = tiny_config(image_size=160)
    model = pair(config)[1]
    image = pixels(config, batch=2)
    logits = model(image).logits
    maps = class_activation_map(model, image, class_index, size=(5, 5))
    chosen = logits.argmax(1) if class_index is None else np.broadcast_to(class_index, 2)
    assert maps.shape == (2, 5, 5)
    assert maps.dtype == np.float32
    assert maps.std() > 1e-3
    np.testing.assert_allclose(maps.mean(axis=(1, 2)), logits[[0, 1], chosen], rtol=1e-4, atol=1e-5)


def test_a_map_is_the_classifier_at_each_position():
    """Against PyTorch: the classifier as a 1x1 convolution of the last features, upsampled by PyTorch."""
    config = tiny_config(image_size=96)
    theirs, ours = pair(config)
    image = pixels(config, 2, 96, 160)
    with torch.no_grad():
        features = theirs.efficientnet(torch.from_numpy(image)).last_hidden_state
        scores = torch.nn.functional.conv2d(features, theirs.classifier.weight[:, :, None, None], theirs.classifier.bias)
        expected = torch.nn.functional.interpolate(scores, (96, 160), mode="bilinear")[:, 2]
    assert_same(class_activation_map(ours, image, 2), expected)


def test_bilinear_is_pytorchs():
    maps = np.random.default_rng(0).standard_normal((2, 3, 7), np.float32)
    for size in ((3, 7), (1, 1), (10, 7), (224, 224), (2, 30)):
        expected = torch.nn.functional.interpolate(torch.from_numpy(maps)[:, None], size, mode="bilinear")[:, 0]
        assert_same(resize_bilinear(maps, size), expected, str(size), tolerance=1e-5)
    assert resize_bilinear(maps[:, :1, :1], (4, 5)).shape == (2, 4, 5)


def test_models_that_have_no_such_map():
    config = tiny_config()
    image = pixels(config)
    with pytest.raises(ValueError, match="this EfficientNetModel has none"):
        class_activation_map(effnet_np.EfficientNetModel(config), image)
    with pytest.raises(ValueError, match="pooling_type is 'max'"):
        class_activation_map(effnet_np.EfficientNetForImageClassification(tiny_config(pooling_type="max")), image)
    model = effnet_np.EfficientNetForImageClassification(config, seed=0)
    for wrong in (5, -1, [0, 1], "cat", 1.0):
        with pytest.raises(ValueError, match="class_index must"):
            class_activation_map(model, image, wrong)


def test_the_region_that_is_seen():
    processor = effnet_np.EfficientNetImageProcessor
    assert seen_region(processor.preset("b0"), 300, 451) == (0, 0, 300, 451)
    assert seen_region(processor.preset("lite0"), 300, 451) == (19, 94, 262, 262)
    both = processor(do_center_crop=True, size=256, crop_size=128)
    assert seen_region(both, 100, 200) == (25, 50, 50, 100)
    assert seen_region(processor(do_center_crop=True, do_resize=False, crop_size=50), 100, 200) == (25, 75, 50, 50)


@pytest.mark.parametrize(("picture", "label"), [(CHELSEA, "tiger cat"), (COFFEE, "espresso")])
def test_explain_colours_where_the_map_is_high(picture, label, lite):
    drawn = np.asarray(effnet_np.explain(picture, lite)).astype(int)
    assert drawn.shape[1] == 1136
    assert (drawn[:, :20] == 255).all(), "the margins are empty: nothing is cut"
    assert (drawn[:, -20:] == 255).all()
    assert (drawn[-16:] == 255).all()
    overlay = drawn[66:410, 584:1104]
    redness = overlay[:, :, 0] - overlay[:, :, 1]
    region = redness[24:320, 112:406]
    outside = np.concatenate([redness[:, :104].ravel(), redness[:, 416:].ravel()])
    assert np.abs(outside).max() == 0, "what the network does not see stays grey"
    pixel_values = preprocess(lite, picture)[None]
    logits = lite(pixel_values).logits
    assert lite.config.id2label[int(logits.argmax())] == label
    heat = class_activation_map(lite, pixel_values, size=region.shape)[0]
    assert np.corrcoef(heat.ravel(), region.ravel())[0, 1] > 0.8, "the colours follow the map"


def test_explain_takes_what_classify_takes(lite):
    bars = [effnet_np.explain(CHELSEA, lite, top_k=k).height for k in (1, 5, 1000)]
    assert bars[0] < bars[1] < bars[2]
    for shape in ((1, 1, 3), (3, 900, 3), (900, 3, 3), (40, 2000), (64, 48, 1), (30, 20, 4)):
        array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        picture = effnet_np.explain(array, lite, class_index=999)
        assert picture.mode == "RGB"
        assert picture.width >= 2 * 440
        assert picture.height < 1200
    assert effnet_np.explain(CHELSEA.read_bytes(), lite).size == effnet_np.explain(PIL.Image.open(CHELSEA), "lite0").size
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        effnet_np.explain(CHELSEA, lite, top_k=0)
    with pytest.raises(ValueError, match="class_index must lie between 0 and 999"):
        effnet_np.explain(CHELSEA, lite, class_index=1000)


def explained(model, label):
    """The picture where every class has that label."""
    before = model.config.id2label
    model.config.id2label = dict.fromkeys(range(1000), label)
    try:
        return np.asarray(effnet_np.explain(CHELSEA, model))
    finally:
        model.config.id2label = before


def test_labels_of_any_length_and_kind(lite):
    """What a stranger's config.json may hold; a quadratic cut took three minutes for 8,000 letters."""
    long = explained(lite, "x" * 8_000)
    began = time.perf_counter()
    np.testing.assert_array_equal(explained(lite, "x" * 2_000_000), long)
    assert time.perf_counter() - began < 20
    np.testing.assert_array_equal(explained(lite, 42), explained(lite, "42"))
    np.testing.assert_array_equal(explained(lite, "two\nlines"), explained(lite, "two\\nlines"))
    np.testing.assert_array_equal(explained(lite, "red\x1b[31m\u202e"), explained(lite, "red\\x1b[31m\\u202e"))
    assert (explained(lite, "") != long).any()


def test_a_class_by_its_name(lite):
    for name in ("tabby", "TABBY CAT", "281", 281, np.int64(281)):
        np.testing.assert_array_equal(
            np.asarray(effnet_np.explain(COFFEE, lite, class_index=name)), np.asarray(effnet_np.explain(COFFEE, lite, 5, 281))
        )
    with pytest.raises(ValueError, match="give the index: 134 crane; 517 crane"):
        effnet_np.explain(CHELSEA, lite, class_index="crane")
    with pytest.raises(TypeError, match=r"top_k must be a whole number of at least 1, got 2.0"):
        effnet_np.explain(CHELSEA, lite, top_k=2.0)


@pytest.mark.parametrize("shape", [(10, 10_000, 3), (10_000, 10, 3), (1, 60_000), (60_000, 1, 3), (7, 5_000)])
@pytest.mark.parametrize("processor", ["b0", "lite0", "centre"])
def test_extreme_shapes(shape, processor, lite):
    """The network may see less than a pixel of what is drawn: then the frame is one pixel."""
    centre = {"do_center_crop": True, "size": {"height": 300, "width": 3000}, "crop_size": 224}
    preset = effnet_np.EfficientNetImageProcessor(**centre) if processor == "centre" else processor
    model = lite if processor == "lite0" else effnet_np.EfficientNetForImageClassification(tiny_config(), seed=0)
    if processor != "lite0":
        model.image_processor = preset if processor == "centre" else effnet_np.EfficientNetImageProcessor.preset(preset)
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    drawn = effnet_np.explain(array, model)
    assert 900 < drawn.width < 1200
    assert drawn.height < 1200


def test_long_labels_are_cut_and_the_numbers_stay_clear(lite):
    drawn = explained(lite, "a very long label, " * 20)
    assert (drawn[:, -20:] == 255).all()
    assert (drawn[:60, 552:584] == 255).all(), "the title of a panel stays above it"


def test_pictures_are_written_whole_or_not_at_all(lite, tmp_path):
    picture = effnet_np.explain(CHELSEA, lite)
    for name, format in (("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.webp", "WEBP")):
        save_explanation(picture, tmp_path / name)
        with PIL.Image.open(tmp_path / name) as image:
            assert (image.format, image.size) == (format, picture.size)
    with pytest.raises(ValueError, match=r"must end in \.png"):
        save_explanation(picture, tmp_path / "a.gif")
    assert len(list(tmp_path.iterdir())) == 3


def test_the_command(tmp_path):
    command = [sys.executable, "-m", "effnet_np.cli", "explain"]
    done = subprocess.run([*command, CHELSEA, "-o", tmp_path / "out.png"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'out.png'}: 1136 x 728 pixels\n"
    with PIL.Image.open(tmp_path / "out.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(effnet_np.explain(CHELSEA)))
    done = subprocess.run([*command, tmp_path / "no.png", "-o", tmp_path / "b.png"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "b.png").exists()
