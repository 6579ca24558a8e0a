"""The summary against the paper, the models and PyTorch."""

import pytest
import torch

import effnet_np
from effnet_np.summary import PAPER

from helpers import hf_model, pixels, run_hf, tiny_config


@pytest.mark.parametrize("name", PAPER)
def test_totals_reproduce_the_papers_table_2(name):
    summary = effnet_np.summary(name)
    parameters, mult_adds = summary.deviation()
    assert abs(parameters) < 0.02
    assert abs(mult_adds) < 0.05
    config = effnet_np.EfficientNetConfig.preset(name)
    assert summary.parameters == effnet_np.EfficientNetForImageClassification(config, initialize=False).num_parameters()
    assert f"({parameters:+.1%} here)" in str(summary)
    assert f"({mult_adds:+.1%} here)" in str(summary)


def test_rows_are_the_layers_of_the_model_with_their_real_shapes():
    config = tiny_config()
    theirs = hf_model(config)
    shapes, layers = {}, (torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.Linear)
    for name, module in theirs.named_modules():
        if isinstance(module, layers):
            module.register_forward_hook(
                lambda module, inputs, output, name=name: shapes.update({name: tuple(output.shape[1:])})
            )
    run_hf(theirs, pixels(config, 1, 75, 64))
    summary = effnet_np.summary(effnet_np.EfficientNetForImageClassification(config, seed=0), (3, 75, 64))
    rows = {row.name: row for row in summary.rows}
    assert {name for name in rows if not name.endswith("pooler")} == set(shapes)
    parameters = dict(theirs.named_parameters())
    for name, shape in shapes.items():
        assert rows[name].output_shape == shape, name
        own = [value.numel() for key, value in parameters.items() if key.rpartition(".")[0] == name]
        assert rows[name].parameters == sum(own), name


def test_settings_are_those_of_the_layers_that_run():
    """Stride, padding (that of the layer before a stride of 2 included), groups, eps, and the activation that follows."""
    for name, options in (("b0", {}), ("lite0", {}), ("b2", {"width_coefficient": 0.25, "hidden_dim": 320})):
        config = effnet_np.EfficientNetConfig.preset(name, num_labels=5, **options)
        model = effnet_np.EfficientNetForImageClassification(config, initialize=False)
        rows = {row.name: row for row in effnet_np.summary(config, (3, 64, 64)).rows}
        with effnet_np.Trace(model) as trace:
            model(pixels(config, 1, 64, 64))
        layers = list(trace.settings.values())
        seen = set()
        for before, layer, after in zip([None, *layers], layers, [*layers[1:], None], strict=False):
            if layer.name not in rows:
                continue
            row = rows[layer.name]
            seen.add(layer.name)
            if layer.kind == "conv":
                pad = before if before is not None and before.kind == "pad" else layer
                kind = f"Conv2d {layer.kernel}x{layer.kernel}"
                expected = (layer.stride, (pad.pad_before, pad.pad_after), layer.groups, kind)
                assert (row.stride, row.padding, row.groups, row.layer.removesuffix(" depthwise")) == expected, layer
            assert row.eps == layer.eps, layer
            following = after.activation if after is not None and after.kind == "activation" else ""
            assert row.activation == following, layer
        assert seen | {"efficientnet.pooler"} == set(rows)
    text = str(effnet_np.summary("b0"))
    assert "stride padding groups    eps activation" in text.splitlines()[0]
    assert len(set(map(len, text.splitlines()[:-2]))) == 1, "a table"
    assert max(map(len, text.splitlines())) < 180


def test_backbone_and_other_sizes_have_no_row_in_the_paper():
    config = effnet_np.EfficientNetConfig.preset("b0")
    backbone = effnet_np.summary(effnet_np.EfficientNetModel(config, initialize=False))
    assert backbone.rows[-1].name == "pooler"
    assert backbone.deviation() is None
    assert effnet_np.summary(config, (3, 240, 240)).deviation() is None
    assert "paper" not in str(effnet_np.summary("lite0"))


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"must be \(3, height, width\)"):
        effnet_np.summary("b0", (1, 224, 224))
    with pytest.raises(ValueError, match="too small for this network"):
        effnet_np.summary("b0", (3, 16, 16))
