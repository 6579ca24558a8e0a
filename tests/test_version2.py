"""EfficientNetV2 and the four rules of padding: the reference against PyTorch's functions and autograd, its files and tables.

The network in PyTorch is `bench.torch_twin`, a page of functions from the same architecture. The architectures themselves are
held by published numbers here, and against the live libraries where those are installed.
"""

import json
import warnings

import numpy as np
import pytest
import torch

import effnet_np
from effnet_np import EfficientNetConfig, EfficientNetForImageClassification
from effnet_np.architecture import WindowSpec, same_padding
from effnet_np.kernels.bench import torch_twin
from effnet_np.tracing.trace import enliven
from effnet_np.training.backward import backward

from helpers import assert_same, pixels

# Parameters, as torchvision's and timm's documentation publish them.
PARAMETERS = {
    "v2-b0": 7_139_704, "v2-b1": 8_141_052, "v2-b2": 10_096_086, "v2-b3": 14_358_406, "v2-s": 21_458_488, "v2-m": 54_139_356,
    "v2-l": 118_515_272, "lite0": 4_652_008, "lite1": 5_416_680, "lite2": 6_092_072, "lite3": 8_197_096, "lite4": 13_006_568,
    "b8": 87_413_142, "l2": 480_309_308,
}  # fmt: skip
PADDINGS = ("hf", "same", "static_same", "symmetric")
SMALL = {"width_coefficient": 0.25, "hidden_dim": 320, "image_size": 61, "num_labels": 5, "drop_connect_rate": 0.0}


def small(preset="v2-b0", **fields):
    return EfficientNetConfig.preset(preset, **(SMALL | fields))


def live(config, dtype=np.float64):
    model = EfficientNetForImageClassification(config, initialize=False)
    enliven(model)
    return model.to(dtype)


def twin_of(model):
    """(PyTorch's module, its tensors by our names), which learn."""
    tensors = {name: torch.from_numpy(array.copy()) for name, array in model.state_dict().items()}
    for name, _ in model.named_parameters():
        tensors[name].requires_grad_()
    return torch_twin(model.config, tensors), tensors


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes(name):
    assert effnet_np.summary(name).parameters == PARAMETERS[name]


def test_version2_s_is_the_papers_table_4():
    """Operator, stride, channels, layers; squeeze-excite in the later stages alone."""
    network = EfficientNetConfig.preset("v2-s").architecture()
    rows = []
    for stage in range(6):
        blocks = [block for block in network.blocks if block.stage == stage]
        first = blocks[0]
        assert {block.squeeze_channels * 4 == block.in_channels for block in blocks} == {not first.fused}
        rows.append((first.fused, first.expand_ratio, first.kernel_size, first.stride, first.out_channels, len(blocks)))
        assert [block.residual for block in blocks[1:]] == [True] * (len(blocks) - 1)
        assert first.residual == (stage == 0)  # 24 channels in and out
    assert rows == [
        (True, 1, 3, 1, 24, 2), (True, 4, 3, 2, 48, 4), (True, 4, 3, 2, 64, 4),
        (False, 4, 3, 2, 128, 6), (False, 6, 3, 1, 160, 9), (False, 6, 3, 2, 256, 15),
    ]  # fmt: skip
    assert (network.stem.out_channels, network.head.out_channels) == (24, 1280)


def test_version2_rounds_to_the_nearest_multiple():
    assert EfficientNetConfig.preset("v2-b3").blocks()[0].out_channels == 16  # 19.2, of which version 1 makes 24
    assert EfficientNetConfig(width_coefficient=1.2, hidden_dim=1536).blocks()[0].out_channels == 24


def test_same_padding_is_the_least_that_gives_an_output_at_every_stride():
    for size in range(1, 30):
        for kernel in (1, 2, 3, 5, 7):
            for stride in (1, 2):
                before, after = same_padding(size, kernel, stride)
                window = WindowSpec(kernel, stride, None)
                assert window.output_size(size, 5)[0] == -(-size // stride)
                assert after - before in (0, 1)
                assert before + after == 0 or (size + before + after - 1 - kernel) // stride + 1 < -(-size // stride)
    assert WindowSpec(3, 2, None).zeros(224, 75) == (0, 1, 1, 1)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("preset", ["v2-b0", "b0", "lite2"])
def test_logits_and_blocks_equal_pytorchs(preset, padding):
    """Native, odd, and not square."""
    fields = {"hidden_dim": 1280} if preset == "lite2" else {}
    model = live(small(preset, padding=padding, **fields), np.float32)
    theirs, _ = twin_of(model)
    for size in ((61, 61), (64, 97), (75, 50)):
        x = pixels(model.config, 2, *size)
        with torch.no_grad():
            assert_same(model(x).logits, theirs(torch.from_numpy(x)), f"{preset} {padding} {size}", tolerance=1e-5)


def test_paddings_differ_where_they_should():
    """Of an even size SAME is HF's for an even size; of an odd one it is symmetric, which "hf" is only in the blocks listed."""
    model = {padding: live(small(padding=padding), np.float32) for padding in PADDINGS}
    for size, alike, different in ((64, "hf", "symmetric"), (33, "symmetric", "hf")):  # 64: 32, 16, 8, 4; 33: 17, 9, 5, 3
        x = pixels(model["hf"].config, 1, size, size)
        logits = {padding: model[padding](x).logits for padding in PADDINGS}
        np.testing.assert_array_equal(logits["same"], logits[alike])
        assert np.abs(logits["same"] - logits[different]).max() > 1e-3
    config = small(padding="static_same", image_size=33)
    static = live(config, np.float32)
    np.testing.assert_array_equal(static(x).logits, logits["same"])
    x = pixels(config, 1, 64, 64)
    assert np.abs(static(x).logits - model["same"](x).logits).max() > 1e-3  # what was built for 33 pixels


@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_gradients_equal_autograds(padding):
    model = live(small(padding=padding))
    theirs, tensors = twin_of(model)
    x, labels = pixels(model.config, 2, 61, 50).astype(np.float64), np.array([1, 3])
    given = torch.from_numpy(x).requires_grad_()
    torch.nn.functional.cross_entropy(theirs(given), torch.from_numpy(labels)).backward()
    model.config.problem_type = "single_label_classification"
    found = backward(model, x, labels)
    assert set(found.parameters) == {name for name, _ in model.named_parameters()}
    for name, gradient in {**found.parameters, "pixels": found.pixel_values}.items():
        expected = (given if name == "pixels" else tensors[name]).grad.numpy()
        assert np.abs(expected).max() > 1e-8, name
        assert np.abs(gradient - expected).max() <= 1e-10 * np.abs(expected).max(), name


def test_a_fused_block_in_training_mode_learns():
    """Batch statistics, stochastic depth, and a step against the gradient, which makes the loss smaller."""
    model = live(small(drop_connect_rate=0.2)).train()
    x, labels = pixels(model.config, 4, 48, 48).astype(np.float64), np.array([0, 1, 2, 3])
    model.config.problem_type = "single_label_classification"
    first = backward(model, x, labels, seed=0)
    for name, array in model.named_parameters():
        array -= 0.02 * first.parameters[name]
    assert backward(model, x, labels, seed=0).loss < first.loss


def test_the_file_keeps_what_hf_does_not_have_and_says_so(tmp_path):
    model = live(small(), np.float32)
    with pytest.warns(UserWarning, match="padding='same', fused_stages=3, which Hugging Face's EfficientNet does not know"):
        model.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert (fields["padding"], fields["fused_stages"], "fix_head_stem" in fields) == ("same", 3, False)
    again = EfficientNetForImageClassification.from_pretrained(tmp_path)
    assert again.config == EfficientNetConfig.from_pretrained(tmp_path)
    x = pixels(model.config, 1, 50, 61)
    np.testing.assert_array_equal(again(x).logits, model(x).logits)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EfficientNetConfig.preset("b0").save_pretrained(tmp_path / "hf")
    assert not {"padding", "fused_stages", "fix_head_stem"} & set(json.loads((tmp_path / "hf" / "config.json").read_text()))


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"padding": "valid"}, ValueError, "padding must be one of hf, same, static_same, symmetric, got 'valid'"),
        ({"padding": 1}, ValueError, "padding must be one of"),
        ({"fused_stages": 8}, ValueError, "fused_stages is 8, but this network has 7 stages"),
        ({"fused_stages": True}, TypeError, "fused_stages must be a whole number"),
        ({"fused_stages": -1}, ValueError, "fused_stages must be at least 0"),
        (
            {"width_coefficient": 4.3, "hidden_dim": 5504, "depth_coefficient": 5.2},
            ValueError,
            "more than the 268435456 allowed",
        ),
    ],
)
def test_refused(fields, error, message):
    with pytest.raises(error, match=message):
        EfficientNetConfig(**fields)


def test_a_golden_trace_has_the_zeros_that_were_added(tmp_path):
    """SAME adds what this image wants: rows and columns may differ."""
    model = live(small(), np.float32)
    with effnet_np.Trace(model) as trace:
        model(pixels(model.config, 1, 64, 61))
    assert "(padding): ZeroPad2d(padding=SAME)" in repr(model)
    rows = {name: str(layer) for name, layer in trace.settings.items()}
    blocks = "efficientnet.encoder.blocks"
    assert rows["efficientnet.embeddings.padding"] == "efficientnet.embeddings.padding pad 0 0 0,1 1,1 0 0.0 -"
    assert rows[f"{blocks}.0.projection.project_conv"] == f"{blocks}.0.projection.project_conv conv 3 1 1 1 1 0.0 -"
    assert rows[f"{blocks}.0.projection.project_act"].endswith("activation 0 0 0 0 0 0.0 swish")
    assert rows[f"{blocks}.1.expansion.expand_conv"] == f"{blocks}.1.expansion.expand_conv conv 3 2 0,1 1,1 1 0.0 -"
    assert f"{blocks}.1.depthwise_conv" not in rows
    assert effnet_np.summary(model.config, (3, 64, 61)).rows[0].padding == (0, 1, 1, 1)
