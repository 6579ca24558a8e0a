"""Pictures of the gradient: against PyTorch's autograd, and against what each method promises."""

import numpy as np
import pytest
import torch

import effnet_np
from effnet_np.cli import main
from effnet_np.inference.stream import preprocess
from effnet_np.inspection.explain import METHODS, class_activation_map, evidence
from effnet_np.training.evidence import LAST, occlusion

from helpers import CHELSEA, assert_same, pair, pixels, tiny_config


@pytest.fixture(scope="module")
def lite():
    return effnet_np.EfficientNetForImageClassification.from_pretrained("lite0")


@pytest.fixture(scope="module")
def chelsea(lite):
    return preprocess(lite, CHELSEA)[None]


def test_gradcam_at_the_last_layer_is_the_cam_up_to_relu_and_scale(lite, chelsea):
    found = evidence(lite, chelsea, method="gradcam", size=(7, 7))
    cam = class_activation_map(lite, chelsea, size=(7, 7))
    first = int(lite(chelsea).logits.argmax())
    assert_same(found, np.maximum(cam - lite.classifier.bias[first], 0) / 49, tolerance=1e-5)
    assert (found > 0).mean() > 0.1


def test_against_autograd():
    config = tiny_config(image_size=96)
    theirs, ours = pair(config)
    layer, image, classes = "efficientnet.encoder.blocks.3.projection.project_bn", pixels(config, 2), [1, 3]
    kept = []
    handle = dict(theirs.named_modules())[layer].register_forward_hook(lambda module, inputs, output: kept.append(output))
    tensor = torch.from_numpy(image).requires_grad_()
    chosen = theirs(tensor).logits[[0, 1], classes].sum()
    handle.remove()
    gradient, pixel_gradient = torch.autograd.grad(chosen, [kept[0], tensor])
    maps = torch.relu((kept[0] * gradient.mean(dim=(2, 3), keepdim=True)).sum(dim=1)).detach()
    assert_same(evidence(ours, image, classes, "gradcam", layer, maps.shape[1:]), maps, alive=False)
    assert_same(evidence(ours, image, classes, "saliency"), pixel_gradient.abs().amax(dim=1), alive=False)


def test_integrated_gradients_add_up_to_the_logit():
    config = tiny_config()
    model = pair(config)[1]
    image = pixels(config, 2)
    found = evidence(model, image, [1, 3], "integrated-gradients")
    assert found.shape == (2, 64, 64)
    difference = (model(image).logits - model(np.zeros_like(image)).logits)[[0, 1], [1, 3]]
    np.testing.assert_allclose(found.sum(axis=(1, 2)), difference, atol=0.05 * np.abs(difference).max())


def test_occlusion_is_what_covering_does():
    """One square over everything: the whole fall. Squares of half the side: the mean of those that cover a pixel."""
    config = tiny_config()
    model = pair(config)[1]
    image, classes = pixels(config, 2), np.array([1, 3])
    fall = (model(image).logits - model(np.zeros_like(image)).logits)[[0, 1], classes]
    np.testing.assert_allclose(
        occlusion(model, image, classes, squares=2), np.broadcast_to(fall[:, None, None], (2, 64, 64)), 1e-4
    )
    covered = image.copy()
    covered[:, :, :32, :32] = 0
    corner = (model(image).logits - model(covered).logits)[[0, 1], classes]
    np.testing.assert_allclose(occlusion(model, image, classes, squares=4)[:, 0, 0], corner, 1e-4)


def test_every_method_draws_and_the_command_takes_it(lite, tmp_path, capsys):
    assert METHODS == ("cam", "gradcam", "saliency", "integrated-gradients", "occlusion")
    pictures = {
        method: np.asarray(effnet_np.explain(CHELSEA, lite, method=method)) for method in ("cam", "gradcam", "saliency")
    }
    assert (pictures["cam"] != pictures["gradcam"]).any()
    assert (pictures["cam"] != pictures["saliency"]).any()
    layer = "efficientnet.encoder.blocks.10"
    command = ["explain", str(CHELSEA), "-o", str(tmp_path / "why.png"), "--method", "gradcam", "--layer"]
    assert main([*command, layer]) == 0
    assert (tmp_path / "why.png").exists()
    assert main([*command, "efficientnet.encoder.blocks.99"]) == 1
    assert "no layer of this model matches" in capsys.readouterr().err


def test_wrong_calls(lite, chelsea):
    with pytest.raises(ValueError, match="method must be one of cam, gradcam, saliency"):
        evidence(lite, chelsea, method="lime")
    with pytest.raises(ValueError, match='layer is for the method "gradcam", and this is'):
        evidence(lite, chelsea, method="saliency", layer=LAST)
    with pytest.raises(ValueError, match=r"one layer that gives maps \(N, C, h, w\), such as"):
        evidence(lite, chelsea, method="gradcam", layer="classifier")
    with pytest.raises(ValueError, match="class_index must lie between 0 and 999"):
        evidence(lite, chelsea, 1000, method="saliency")
    with pytest.raises(ValueError, match="saliency needs a model with a classifier"):
        evidence(lite.efficientnet, chelsea, method="saliency")
