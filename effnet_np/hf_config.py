"""The configuration as Hugging Face has it: every field and default, labels, config.json.

What the fields mean is in architecture.py.

Field names, defaults and quirks: transformers 4.37.2, `models/efficientnet/configuration_efficientnet.py`.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import json
import os
import warnings
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

from effnet_np.architecture import HEAD_CHANNELS, Architecture, BlockSpec, architecture, round_filters, round_repeats
from effnet_np.checkpoints import hub
from effnet_np.checkpoints.checkpoint import read_config
from effnet_np.checkpoints.files import naming, write_json
from effnet_np.config_checks import MAX_LABELS, check_config
from effnet_np.identify import identify
from effnet_np.presets import PRESETS

# Fields beyond HF's, and the value with which the network is one of HF's: then config.json does not have the field.
BEYOND_HF = {"fix_head_stem": False, "padding": "hf", "fused_stages": 0}


# What from_pretrained knows beside fields: a typing error may be near to one of these.
OPTIONS = {"allow_nonfinite", "architecture", "ignore_mismatched_sizes", "image_processor", "torch_dtype"}


def _named(unknown: set[str], known: set[str]) -> str:
    """Names that are not known, each with the known one that it resembles most, if there is any."""
    near = {name: difflib.get_close_matches(name, known, 1) for name in sorted(unknown)}
    return ", ".join(f"{name} (do you mean {close[0]}?)" if close else name for name, close in near.items())


class EfficientNetConfig:
    """Every field and default of HF's `EfficientNetConfig`; the bare one is B7. Unknown keys are kept as attributes.

    Beyond HF, and kept in config.json: `squeeze_expansion_ratio=0` means no squeeze-excite. `fix_head_stem=True` leaves the
    channels of stem and head, and the number of blocks in the first and the last stage, unscaled, as the Lite networks do.
    `padding`, of convolutions of stride 2: "hf" (by `depthwise_padding`, for any size); "same", TensorFlow's, worked out for
    each input, as timm's tf_* do; "static_same", the same, but worked out once for `image_size`, as lukemelas does;
    "symmetric", as many zeros on all sides, as torchvision and timm's others do. `fused_stages=3` is EfficientNetV2: the first
    so many stages are of Fused-MBConv blocks without squeeze-excite; `in_channels[0]` is the stem's; channels are rounded
    to the nearest multiple; every block of stride 1 with as many channels out as in has a residual.
    `hidden_act` may be a function from array to array. Raises ValueError or TypeError where the fields describe no network.
    """

    model_type = "efficientnet"

    def __init__(
        self,
        num_channels: int = 3,
        image_size: int = 600,
        width_coefficient: float = 2.0,
        depth_coefficient: float = 3.1,
        depth_divisor: int = 8,
        kernel_sizes: list[int] | None = None,
        in_channels: list[int] | None = None,
        out_channels: list[int] | None = None,
        depthwise_padding: list[int] | None = None,
        strides: list[int] | None = None,
        num_block_repeats: list[int] | None = None,
        expand_ratios: list[int] | None = None,
        squeeze_expansion_ratio: float = 0.25,
        hidden_act: str | Callable = "swish",
        hidden_dim: int = 2560,
        pooling_type: str = "mean",
        initializer_range: float = 0.02,
        batch_norm_eps: float = 0.001,
        batch_norm_momentum: float = 0.99,
        dropout_rate: float = 0.5,
        drop_connect_rate: float = 0.2,
        fix_head_stem: bool = False,
        padding: str = "hf",
        fused_stages: int = 0,
        id2label: dict | None = None,
        label2id: dict | None = None,
        num_labels: int | None = None,
        problem_type: str | None = None,
        output_hidden_states: bool = False,
        return_dict: bool = True,
        **unknown: Any,
    ):
        def stage_list(given, default):
            given = default if given is None else given
            return list(given) if isinstance(given, (list, tuple)) else given  # check_config refuses what is neither

        self.num_channels = num_channels
        self.image_size = image_size
        self.width_coefficient = width_coefficient
        self.depth_coefficient = depth_coefficient
        self.depth_divisor = depth_divisor
        self.kernel_sizes = stage_list(kernel_sizes, [3, 3, 5, 3, 5, 5, 3])
        self.in_channels = stage_list(in_channels, [32, 16, 24, 40, 80, 112, 192])
        self.out_channels = stage_list(out_channels, [16, 24, 40, 80, 112, 192, 320])
        self.depthwise_padding = stage_list(depthwise_padding, [])
        self.strides = stage_list(strides, [1, 2, 2, 2, 1, 2, 1])
        self.num_block_repeats = stage_list(num_block_repeats, [1, 2, 2, 3, 3, 4, 1])
        self.expand_ratios = stage_list(expand_ratios, [1, 6, 6, 6, 6, 6, 6])
        self.squeeze_expansion_ratio = squeeze_expansion_ratio
        self.hidden_act = hidden_act
        self.hidden_dim = hidden_dim
        self.pooling_type = pooling_type
        self.initializer_range = initializer_range
        self.batch_norm_eps = batch_norm_eps
        self.batch_norm_momentum = batch_norm_momentum
        self.dropout_rate = dropout_rate
        self.drop_connect_rate = drop_connect_rate
        self.fix_head_stem = fix_head_stem
        self.padding = padding
        self.fused_stages = fused_stages
        self.problem_type = problem_type
        self.output_hidden_states = output_hidden_states
        self.return_dict = return_dict
        for key in ("num_hidden_layers", "model_type"):  # the first is computed below, the second is the class's own
            unknown.pop(key, None)
        for key, value in unknown.items():
            if key.startswith("__") or hasattr(type(self), key):
                raise ValueError(f"a configuration cannot have a key {key!r}: it would replace a part of the class")
            setattr(self, key, value)
        for key, value in vars(self).items():
            setattr(self, key, value.tolist() if hasattr(value, "tolist") else value)  # NumPy's numbers -> Python's
        self._set_labels(id2label, label2id, num_labels)
        check_config(self)
        self.num_hidden_layers = sum(self.num_block_repeats) * 4  # HF's number; nothing reads it

    # -- labels ---------------------------------------------------------------------------------------------------

    def _set_labels(self, id2label, label2id, num_labels):
        if id2label is None:
            label2id = None  # as in HF: without names there is nothing to number
            count = 2 if num_labels is None else num_labels  # HF's default is two labels
            if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MAX_LABELS:
                raise ValueError(f"num_labels must be a whole number of at least 0 and at most {MAX_LABELS}, got {count!r:.80}")
            id2label = {index: f"LABEL_{index}" for index in range(count)}
        if not isinstance(id2label, dict) or not isinstance(label2id, (dict, type(None))):
            raise TypeError("id2label and label2id must be dictionaries")
        if not all(isinstance(label, (str, int)) for label in id2label.values()):
            raise TypeError("the labels in id2label must be texts")
        if num_labels is not None and num_labels != len(id2label):
            raise ValueError(f"num_labels is {num_labels} but id2label names {len(id2label)} labels: give one of the two")
        # Whole numbers, as keys, can be chosen so that a dictionary of them takes a minute; not the small ones.
        if len(id2label) > MAX_LABELS or any(isinstance(label, int) and abs(label) >= 1 << 32 for label in id2label.values()):
            raise ValueError(f"id2label names more than {MAX_LABELS} labels, or a label is a number of 2^32 or more")
        numbers = [int(index) for index in id2label]
        if any(not 0 <= number < len(numbers) for number in numbers):
            raise ValueError(f"id2label must number its {len(numbers)} labels from 0 without a gap")
        self.id2label = dict(zip(numbers, id2label.values(), strict=True))
        if sorted(self.id2label) != list(range(len(self.id2label))):
            raise ValueError(f"id2label must number its {len(self.id2label)} labels from 0 without a gap")
        self.label2id = dict(label2id) if label2id else {label: index for index, label in self.id2label.items()}

    @property
    def num_labels(self) -> int:
        """Number of classes; setting it to another number makes new labels LABEL_0, LABEL_1, ..."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, count: int):
        if count != len(self.id2label):
            self._set_labels(None, None, count)

    @property
    def use_return_dict(self) -> bool:
        return self.return_dict

    # -- the network that the fields describe -----------------------------------------------------------------------

    def architecture(self) -> Architecture:
        """Stem, blocks and head in plain numbers."""
        return architecture(self)

    def blocks(self) -> list[BlockSpec]:
        """The network between stem and head, block after block."""
        return architecture(self).blocks

    @property
    def stem_channels(self) -> int:
        return architecture(self).stem.out_channels

    @property
    def head_channels(self) -> int:
        return architecture(self).head.out_channels

    def stem_size(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) of the stem's output."""
        return architecture(self).stem.output_size(height, width)

    def check_image_size(self, height: int, width: int) -> None:
        """Raise ValueError where an image of this size leaves nothing for some layer to look at."""
        architecture(self).sizes(height, width)

    def round_filters(self, channels: int) -> int:
        return round_filters(channels, self.width_coefficient, self.depth_divisor, self.fused_stages > 0)

    def round_repeats(self, repeats: int) -> int:
        return round_repeats(repeats, self.depth_coefficient)

    # -- presets and files ----------------------------------------------------------------------------------------

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> EfficientNetConfig:
        """A published network, "b0" to "v2-l" (presets.py), with ImageNet's 1,000 labels; fields may be overridden by name."""
        if name not in PRESETS:
            raise ValueError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}")
        preset = PRESETS[name]
        fields: dict[str, Any] = copy.deepcopy(preset.fields) | {
            "width_coefficient": preset.width,
            "depth_coefficient": preset.depth,
            "image_size": preset.image_size,
            "dropout_rate": preset.dropout,
        }
        head_width = 1.0 if "fix_head_stem" in fields else preset.width
        fields["hidden_dim"] = round_filters(HEAD_CHANNELS, head_width)
        if "num_labels" not in overrides and "id2label" not in overrides:
            fields["id2label"] = imagenet_labels()
        return cls(**(fields | overrides))

    @classmethod
    def from_dict(cls, fields: dict[str, Any], **overrides: Any) -> EfficientNetConfig:
        """A configuration from HF's dictionary (or config.json); overrides win, and must be known fields or among `fields`."""
        if not isinstance(fields, dict):
            raise TypeError(f"a configuration is a dictionary of fields, got {type(fields).__name__}")
        known = set(inspect.signature(cls).parameters) | set(fields)
        if not set(overrides) <= known:
            raise TypeError(f"there is no option or field {_named(set(overrides) - known, known | OPTIONS)}: leave it out")
        fields = copy.deepcopy(fields)
        model_type = fields.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(f"this configuration describes a model of type {model_type!r}, not {cls.model_type!r}")
        if "id2label" in overrides or "num_labels" in overrides:  # a new head brings its own labels
            same = overrides.get("num_labels") == len(fields.get("id2label") or ()) and "id2label" not in overrides
            for key in ("num_labels",) if same else ("id2label", "label2id", "num_labels"):
                fields.pop(key, None)
        fields.update(overrides)
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """Every field in HF's names, ready for JSON. A function as `hidden_act` is refused with TypeError."""
        if not isinstance(self.hidden_act, str):
            raise TypeError(f"hidden_act is a function ({self.hidden_act!r}), which a configuration file cannot hold")
        fields = {key: value for key, value in vars(self).items() if not key.startswith("_")}
        for key, hf in BEYOND_HF.items():
            if fields[key] == hf:
                del fields[key]
        return copy.deepcopy(fields | {"model_type": self.model_type})

    def beyond_hf(self, but: Sequence[str] = ()) -> list[str]:
        """The fields, as texts, of which transformers, which does not know them, would make another network."""
        beyond = [
            f"{key}={getattr(self, key)!r}" for key, hf in BEYOND_HF.items() if getattr(self, key) != hf and key not in but
        ]
        return beyond + ([] if self.squeeze_expansion_ratio else [f"squeeze_expansion_ratio={self.squeeze_expansion_ratio}"])

    def say_what_is_beyond_hf(self) -> None:
        """A UserWarning where there is something of that kind."""
        if beyond := self.beyond_hf():
            text = f"config.json holds {', '.join(beyond)}, which Hugging Face's EfficientNet does not know"
            warnings.warn(f"{text}: effnet_np reads this network again, transformers cannot", UserWarning, stacklevel=3)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike, **options: Any) -> EfficientNetConfig:
        """Read config.json from a folder, a file, a preset's short name or a hub id.

        Hub options (`revision`, `local_files_only`, `cache_dir`, ...) go to the hub; `architecture` is another library's name
        for a network whose file does not say it; all others override fields.
        """
        hub_options, overrides = hub.split_options(options)
        path = hub.resolve(source, **hub_options)
        found = read_config(path, overrides.pop("architecture", None))
        fields = found if isinstance(found, dict) else identify(found, cls.preset)[0].to_dict()
        with naming(path):
            return cls.from_dict(fields, **overrides)

    def save_pretrained(self, folder: str | os.PathLike) -> str:
        """Write `folder`/config.json as HF does, and give its path. A UserWarning names the fields that HF does not have."""
        self.say_what_is_beyond_hf()
        architectures = {"architectures": ["EfficientNetForImageClassification"]}
        return write_json(folder, "config.json", architectures | self.to_dict())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EfficientNetConfig) and vars(self) == vars(other)

    def __repr__(self) -> str:
        fields = {key: value for key, value in vars(self).items() if not key.startswith("_")}
        if self.num_labels > 10:
            fields["id2label"] = fields["label2id"] = f"<{self.num_labels} labels>"
        return f"EfficientNetConfig({', '.join(f'{key}={value!r}' for key, value in fields.items())})"


def imagenet_labels() -> dict[int, str]:
    """The 1,000 ImageNet classes, index to label, as the configurations on the hub have them."""
    text = resources.files("effnet_np.weights").joinpath("imagenet-1k-id2label.json").read_text(encoding="utf-8")
    return {int(index): label for index, label in json.loads(text).items()}
