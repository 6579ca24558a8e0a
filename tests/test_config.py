"""The configuration against HF's: fields, defaults, files, compound scaling, and what is refused."""

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import transformers

import effnet_np
from effnet_np.architecture import round_filters, round_repeats
from effnet_np.hf_config import BEYOND_HF
from effnet_np.presets import PRESETS

from helpers import hf_model, tiny_config

# The published networks: blocks, state-dict entries, channels of stem and head, image size, dropout, depthwise_padding.
# From HF's conversion script and the checkpoints on the hub; written down again, so that a slip in PRESETS shows.
PUBLISHED = {
    "b0": (16, 360, 32, 1280, 224, 0.2, []),
    "b1": (23, 508, 32, 1280, 240, 0.2, [16]),
    "b2": (23, 508, 32, 1408, 260, 0.3, [5, 8, 16]),
    "b3": (26, 574, 40, 1536, 300, 0.3, [5, 18]),
    "b4": (32, 706, 48, 1792, 380, 0.4, [6]),
    "b5": (39, 854, 48, 2048, 456, 0.4, [13, 27]),
    "b6": (45, 986, 56, 2304, 528, 0.5, [31]),
    "b7": (55, 1200, 64, 2560, 600, 0.5, [18]),
}


def test_every_field_and_default_is_hfs():
    theirs, ours = transformers.EfficientNetConfig(), effnet_np.EfficientNetConfig()
    given = set(inspect.signature(effnet_np.EfficientNetConfig).parameters) - {"unknown", *BEYOND_HF}
    assert given >= set(theirs.to_dict()) & set(vars(ours)) - {"num_hidden_layers"}
    for name in given | {"num_hidden_layers"}:
        expected = getattr(theirs, name)
        assert getattr(ours, name) == (list(expected) if isinstance(expected, tuple) else expected), name
    assert ours.blocks() == effnet_np.EfficientNetConfig.preset("b7", depthwise_padding=[]).blocks()


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets(name):
    config = effnet_np.EfficientNetConfig.preset(name)
    entries = len(effnet_np.EfficientNetForImageClassification(config, initialize=False).state_dict())
    shape = (len(config.blocks()), entries, config.stem_channels, config.head_channels)
    assert (*shape, config.image_size, config.dropout_rate, config.depthwise_padding) == PUBLISHED[name]
    assert (config.num_labels, config.id2label[281]) == (1000, "tabby, tabby cat")


def test_lite0_is_b0_without_squeeze_excite_and_with_relu6():
    lite, b0 = (effnet_np.EfficientNetConfig.preset(name) for name in ("lite0", "b0"))
    assert lite.hidden_act == "relu6"
    assert all(block.squeeze_channels == 0 for block in lite.blocks())
    for ours, theirs in zip(lite.blocks(), b0.blocks(), strict=True):
        assert (ours.in_channels, ours.out_channels, ours.padding) == (theirs.in_channels, theirs.out_channels, theirs.padding)


def test_stem_and_head_that_are_not_scaled():
    """Lite4, as TensorFlow's efficientnet/lite builds it: 32 and 1280 channels, one block in the first and the last stage."""
    config = effnet_np.EfficientNetConfig(
        width_coefficient=1.4, depth_coefficient=1.8, fix_head_stem=True, hidden_dim=1280, squeeze_expansion_ratio=0
    )
    blocks = config.blocks()
    assert (config.stem_channels, config.head_channels, blocks[0].in_channels) == (32, 1280, 32)
    per_stage = [sum(block.stage == stage for block in blocks) for stage in range(7)]
    assert per_stage == [1, 4, 4, 6, 6, 8, 1]
    assert config.to_dict()["fix_head_stem"] is True
    assert "fix_head_stem" not in effnet_np.EfficientNetConfig().to_dict()  # HF has no such field


def test_compound_scaling():
    assert [round_filters(c, 2.0) for c in (32, 16, 320, 1280)] == [64, 32, 640, 2560]
    assert round_filters(24, 1.1) == 24  # 26.4 rounds to 24, which is less than 10% down
    assert round_filters(10, 1.0, 8) == 16  # 10 rounds to 8, which is more than 10% down, so the next multiple
    assert [round_repeats(n, 3.1) for n in (1, 2, 3, 4)] == [4, 7, 10, 13]


def test_blocks_are_those_that_hf_builds():
    config = tiny_config(width_coefficient=0.3, depth_coefficient=1.4, depthwise_padding=[2, 5], hidden_dim=384)
    theirs = hf_model(config).efficientnet.encoder.blocks
    assert len(config.blocks()) == len(theirs)
    for spec, block in zip(config.blocks(), theirs, strict=True):
        depthwise = block.depthwise_conv
        assert spec.in_channels * spec.expand_ratio == spec.expanded_channels == depthwise.depthwise_conv.in_channels
        assert spec.out_channels == block.projection.project_conv.out_channels
        assert spec.squeeze_channels == block.squeeze_excite.dim_se
        assert (spec.kernel_size, spec.stride) == (depthwise.depthwise_conv.kernel_size[0], depthwise.stride)
        if spec.stride == 2:
            assert spec.zeros(64, 64) == depthwise.depthwise_conv_pad.padding
        assert spec.residual == block.projection.apply_dropout
        assert spec.drop_rate == block.projection.dropout.p


def test_dictionary_and_file_round_trip(tmp_path):
    config = effnet_np.EfficientNetConfig.preset("b3", num_labels=4, out_features=["stage1"], problem_type="regression")
    assert effnet_np.EfficientNetConfig.from_dict(config.to_dict()) == config
    path = config.save_pretrained(tmp_path / "new" / "folder")
    assert effnet_np.EfficientNetConfig.from_pretrained(tmp_path / "new" / "folder").to_dict() == json_of(path)
    assert effnet_np.EfficientNetConfig.from_pretrained(path).out_features == ["stage1"]


def json_of(path):
    fields = json.loads(Path(path).read_text())
    fields["id2label"] = {int(index): label for index, label in fields["id2label"].items()}
    return fields


def test_hf_reads_our_file_and_we_read_hfs(tmp_path):
    config = effnet_np.EfficientNetConfig.preset("b2", num_labels=3, problem_type="multi_label_classification")
    config.save_pretrained(tmp_path / "ours")
    theirs = transformers.EfficientNetConfig.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    back = effnet_np.EfficientNetConfig.from_pretrained(tmp_path / "theirs")
    for name in config.to_dict():
        if name not in ("architectures", "transformers_version", "dtype", "torch_dtype"):
            assert getattr(theirs, name) == getattr(config, name), name
            assert getattr(back, name) == getattr(config, name), name


def test_unknown_keys_are_kept_and_known_ones_overridden():
    fields = {"out_features": ["a"], "stage_names": ["b"], "num_hidden_layers": 3, **effnet_np.EfficientNetConfig().to_dict()}
    config = effnet_np.EfficientNetConfig.from_dict(fields, dropout_rate=0.1)
    assert (config.out_features, config.stage_names, config.dropout_rate) == (["a"], ["b"], 0.1)
    assert config.num_hidden_layers == 64  # computed, whatever the file says
    assert config.to_dict()["stage_names"] == ["b"]
    assert fields["dropout_rate"] == 0.5  # the caller's dictionary is not changed


def test_fields_that_are_nearly_right():
    near = r"ignore_mismatched_size \(do you mean ignore_mismatched_sizes\?\), use_safetensors: leave it out"
    with pytest.raises(TypeError, match=near):
        effnet_np.EfficientNetConfig.from_pretrained("lite0", ignore_mismatched_size=True, use_safetensors=True)


def test_labels():
    config = effnet_np.EfficientNetConfig.from_dict(effnet_np.EfficientNetConfig.preset("b0").to_dict(), num_labels=3)
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    config.num_labels = 1
    assert config.label2id == {"LABEL_0": 0}
    same = effnet_np.EfficientNetConfig.from_dict({"id2label": {"0": "cat", "1": "dog"}}, num_labels=2)
    assert same.id2label == {0: "cat", 1: "dog"}  # as many as before: the names stay
    with pytest.raises(ValueError, match="num_labels is 3 but id2label names 2"):
        effnet_np.EfficientNetConfig(id2label={0: "cat", 1: "dog"}, num_labels=3)
    with pytest.raises(ValueError, match="from 0 without a gap"):
        effnet_np.EfficientNetConfig(id2label={0: "cat", 2: "dog"})


def test_a_function_is_allowed_but_not_saved(tmp_path):
    config = tiny_config(hidden_act=np.tanh)
    with pytest.raises(TypeError, match="hidden_act is a function"):
        config.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kernel_sizes": [3, 3]}, "one entry a stage, the same number in each"),
        ({"hidden_dim": 1280}, r"hidden_dim is 1280 but must be 2560, which is round_filters\(1280\)"),
        ({"hidden_act": "swoosh"}, "hidden_act must be one of swish, silu, .*, got 'swoosh'"),
        ({"pooling_type": "sum"}, "pooling_type must be one of mean, max, got 'sum'"),
        ({"problem_type": "guess"}, "problem_type must be None or one of"),
        ({"num_channels": 0}, "num_channels must be at least 1, got 0"),
        ({"image_size": -1}, "image_size must be at least 1"),
        ({"strides": [1, 2, 2, 3, 1, 2, 1]}, r"strides\[3\] must be 1 or 2"),
        ({"kernel_sizes": [3, 0, 5, 3, 5, 5, 3]}, r"kernel_sizes\[1\] must be at least 1"),
        ({"num_block_repeats": [1, 2, 0, 3, 3, 4, 1]}, r"num_block_repeats\[2\] must be at least 1"),
        ({"in_channels": [32, 16, 24, 48, 80, 112, 192]}, r"out_channels\[2\] is 40 but in_channels\[3\] is 48"),
        ({"in_channels": [64, 16, 24, 40, 80, 112, 192]}, r"in_channels\[0\] must be 32"),
        ({"width_coefficient": float("nan")}, "width_coefficient must be finite"),
        ({"width_coefficient": 0.0}, "width_coefficient must be above 0"),
        ({"dropout_rate": 1.5}, "dropout_rate must be between 0 and 1"),
        ({"squeeze_expansion_ratio": -0.1}, "squeeze_expansion_ratio must be at least 0"),
        ({"num_labels": -1}, "num_labels must be a whole number of at least 0"),
        ({"depthwise_padding": [-1]}, r"depthwise_padding\[0\] must be at least 0"),
    ],
)
def test_values_that_describe_no_network(fields, message):
    with pytest.raises(ValueError, match=message):
        effnet_np.EfficientNetConfig(**fields)


@pytest.mark.parametrize(
    "fields", [{"image_size": 224.0}, {"num_channels": "3"}, {"depth_divisor": True}, {"dropout_rate": "0.2"}]
)
def test_wrong_types(fields):
    with pytest.raises(TypeError, match=f"{next(iter(fields))} must be"):
        effnet_np.EfficientNetConfig(**fields)


def test_a_configuration_that_was_changed_is_checked_again():
    config = tiny_config()
    config.pooling_type = "sum"
    with pytest.raises(ValueError, match="pooling_type"):
        effnet_np.EfficientNetModel(config)


def test_wrong_sources(tmp_path):
    with pytest.raises(ValueError, match=f"no preset 'b9'; choose one of {', '.join(PRESETS)}"):
        effnet_np.EfficientNetConfig.preset("b9")
    with pytest.raises(ValueError, match="model of type 'vit', not 'efficientnet'"):
        effnet_np.EfficientNetConfig.from_dict({"model_type": "vit"})
    with pytest.raises(TypeError, match="dictionary of fields, got list"):
        effnet_np.EfficientNetConfig.from_dict([])
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json does not hold valid JSON"):
        effnet_np.EfficientNetConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="must hold a JSON object, got a list"):
        effnet_np.EfficientNetConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        effnet_np.EfficientNetConfig.from_pretrained(tmp_path)
