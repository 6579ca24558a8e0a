"""compare_with_torch(gradients=True): equal networks are equal all the way back; each known mistake, made, is named."""

import numpy as np
import pytest
from test_backward import both

from effnet_np import EfficientNetImageProcessor, Trace, compare_with_torch
from effnet_np.cli import main
from effnet_np.inspection.compare_gradients import compared, in_backward_order, torch_gradients

from helpers import pixels, tiny_config


@pytest.fixture(scope="module")
def case():
    """(HF's model, ours, input, labels): training mode, no dropout, three pictures."""
    config = tiny_config()
    return *both(config, np.float64, training=True), pixels(config, 3).astype(np.float64), np.array([1, 4, 0])


def test_equal_networks_all_the_way_back(case):
    theirs, ours, x, labels = case
    before = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    result = compare_with_torch(ours, theirs, x, gradients=True, labels=labels, tolerance=1e-9)
    assert result.ok, str(result)
    names = [row.name for row in result.rows]
    assert names[0] == "classifier"
    assert names[1:3] == ["classifier.weight", "classifier.bias"]
    assert names[-1] == "pixel_values"
    assert names.index("efficientnet.encoder.top_bn.weight") < names.index("efficientnet.encoder.top_conv")
    assert {name for name, _ in ours.named_parameters()} < set(names)
    assert {name: parameter.grad for name, parameter in theirs.named_parameters()} == before  # its owner's
    given = {"output_gradient": np.ones((3, 5)), "layers": "*.blocks.3.*", "tolerance": 1e-9}
    part = compare_with_torch(ours, theirs, x, gradients=True, **given)
    assert part.ok
    assert all(".blocks.3." in row.name for row in part.rows)


def test_the_first_wrong_layer_in_the_order_of_the_way_back(case):
    theirs, ours, x, labels = case
    bn = ours.get_submodule("efficientnet.encoder.blocks.7.expansion.expand_bn")
    bn.eps, eps = 0.3, bn.eps
    try:
        result = compare_with_torch(ours, theirs, x, gradients=True, labels=labels)
    finally:
        bn.eps = eps
    assert result.first_divergence.name == "classifier"  # the forward differs already, so all of the way back does
    assert "classifier" in str(result)


BLOCK = "efficientnet.encoder.blocks.2"  # it has a residual


@pytest.mark.parametrize(
    ("name", "mistake", "hint"),
    [
        ("classifier", lambda g: -g["classifier"], "the sign is turned"),
        ("classifier", lambda g: 3 * g["classifier"], "3 times the reference, 3 being the batch: the loss is summed"),
        ("classifier", lambda g: g["classifier"] / 3, "divided by the batch twice"),
        (f"{BLOCK}.projection.project_conv", lambda g: 0 * g[f"{BLOCK}.projection.project_conv"], "no gradient arrives"),
        (
            f"{BLOCK}.projection.project_conv.weight",
            lambda g: g["classifier"],
            "the shape of what it belongs to",
        ),
        (
            "efficientnet.encoder.blocks.1",
            lambda g: g["efficientnet.encoder.blocks.1"] - g[BLOCK],
            "is not added: an array that is used twice gets the sum",
        ),
        (
            f"{BLOCK}.projection.project_conv",
            lambda g: g[f"{BLOCK}.projection.project_conv"] + 1e-3 * np.abs(g[f"{BLOCK}.projection.project_bn"]),
            "the batch's mean and variance were taken for constants",
        ),
        (
            "efficientnet.pooler_output",
            lambda g: g["efficientnet.pooler_output"] * (np.arange(g["efficientnet.pooler_output"].shape[1]) % 2),
            "another mask",
        ),
    ],
)
def test_known_mistakes(case, name, mistake, hint):
    theirs, _, x, labels = case
    reference = in_backward_order(torch_gradients(theirs, x, labels))
    if name not in reference:  # PyTorch's modules give no field of an output
        reference = {"efficientnet.pooler_output": reference["efficientnet.pooler"][:, :, 0, 0], **reference}
    result = compared(reference | {name: mistake(reference)}, reference)
    assert result.first_divergence.name == name
    assert hint in "; ".join(result.hints)


def test_modes_must_agree(case):
    theirs, ours, x, labels = case
    ours.eval()
    try:
        with pytest.raises(ValueError, match="ours and theirs are in eval and training mode"):
            compare_with_torch(ours, theirs, x, gradients=True, labels=labels)
    finally:
        ours.train()
    for network, rate in ((theirs, "p"), (ours, "rate")):
        setattr(network.dropout, rate, 0.5)
        try:
            with pytest.raises(ValueError, match=r"dropout is on in training mode \(dropout\)"):
                compare_with_torch(ours, theirs, x, gradients=True, labels=labels)
        finally:
            setattr(network.dropout, rate, 0.0)


@pytest.mark.parametrize("form", [("g.h5", []), ("g", ["--format", "npy", "--layout", "NHWC"])])
def test_golden_gradients_in_the_files_of_a_trace(form, tmp_path, capsys):
    """For who ports training: kind `gradient` in the index, PyTorch's numbers, weights' in its layout."""
    name, more = form
    config = tiny_config()
    theirs, ours = both(config, np.float32)
    ours.image_processor = EfficientNetImageProcessor(size=64)
    ours.save_pretrained(tmp_path / "model")
    x = pixels(config)
    np.save(tmp_path / "x.npy", x)
    command = ["trace", "--input", str(tmp_path / "x.npy"), "-o", str(tmp_path / name), "--model", str(tmp_path / "model")]
    assert main([*command, *more, "--gradients", "--label", "3", "--layers", "*.blocks.3.*", "--layers", "pixel_values"]) == 0
    assert " gradients" in capsys.readouterr().out
    trace = Trace.load(tmp_path / name)
    reference = in_backward_order(torch_gradients(theirs, x, np.array([3])))
    assert "pixel_values" in trace.gradients
    assert "efficientnet.encoder.blocks.3.projection.project_conv.weight" in trace.gradients
    assert all(".blocks.3." in key or key == "pixel_values" for key in trace.gradients)
    for key, gradient in trace.gradients.items():
        assert gradient.shape == reference[key].shape
        assert np.abs(gradient - reference[key]).max() <= 1e-4 * np.abs(reference[key]).max(), key
