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
