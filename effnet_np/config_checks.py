"""What a configuration is refused for: fields that describe no network, or one that no machine should build.

Checked when a configuration is made, and again when a model is built from it, since its fields can be changed in between.
"""

from __future__ import annotations

from typing import Any

from effnet_np.architecture import STEM_CHANNELS, architecture
from effnet_np.layer_specs import layer_specs
from effnet_np.presets import PRESETS

ACTIVATION_NAMES = ("swish", "silu", "relu", "relu6", "gelu", "gelu_new", "selu", "mish")
POOLING_TYPES = ("mean", "max")
PADDINGS = ("hf", "same", "static_same", "symmetric")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
# No network comes near these; a configuration beyond them is a mistake or an attack, and is refused before memory is spent.
MAX_WHOLE = 1 << 16  # channels, pixels, repeats, ...
MAX_BLOCKS = 1000  # B7 has 55
MAX_WEIGHTS = 1 << 28  # numbers; B7 has 66 million
MAX_WEIGHTS_L2 = 1 << 29  # of the one published network that has more, 480 million
MAX_LABELS = 100_000


def check_config(config: Any) -> None:
    """Raise ValueError (TypeError for a wrong type) where these fields describe no network."""
    for name in ("num_channels", "image_size", "depth_divisor", "hidden_dim"):
        _check_whole(name, getattr(config, name))
    for name in ("width_coefficient", "depth_coefficient", "batch_norm_eps"):
        _check_number(name, getattr(config, name), above=0.0)
    for name in ("squeeze_expansion_ratio", "initializer_range"):
        _check_number(name, getattr(config, name), at_least=0.0)
    for name in ("dropout_rate", "drop_connect_rate", "batch_norm_momentum"):
        _check_number(name, getattr(config, name), at_least=0.0, at_most=1.0)

    for name in ("fix_head_stem", "output_hidden_states", "return_dict"):
        if not isinstance(getattr(config, name), bool):
            raise TypeError(f"{name} must be true or false, got {getattr(config, name)!r:.80}")
    names = ("kernel_sizes", "in_channels", "out_channels", "strides", "num_block_repeats", "expand_ratios")
    for name in (*names, "depthwise_padding"):
        if not isinstance(getattr(config, name), list):
            raise TypeError(f"{name} must be a list of whole numbers, got {getattr(config, name)!r:.80}")
        if len(getattr(config, name)) > MAX_BLOCKS:
            raise ValueError(f"{name} has {len(getattr(config, name))} entries, more than the {MAX_BLOCKS} allowed")
    lengths = {name: len(getattr(config, name)) for name in names}
    if len(set(lengths.values())) != 1 or not config.in_channels:
        raise ValueError(f"these lists need one entry a stage, the same number in each, at least one; got {lengths}")
    for name in names:
        for position, entry in enumerate(getattr(config, name)):
            _check_whole(f"{name}[{position}]", entry)
    if config.padding not in PADDINGS:
        raise ValueError(f"padding must be one of {', '.join(PADDINGS)}, got {config.padding!r:.80}")
    _check_whole("fused_stages", config.fused_stages, at_least=0)
    if config.fused_stages > len(config.in_channels):
        raise ValueError(f"fused_stages is {config.fused_stages}, but this network has {len(config.in_channels)} stages")
    depth = sum(config.round_repeats(repeats) for repeats in config.num_block_repeats)
    if depth > MAX_BLOCKS:
        raise ValueError(f"num_block_repeats and depth_coefficient make {depth} blocks, more than the {MAX_BLOCKS} allowed")
    for position, stride in enumerate(config.strides):
        if stride not in (1, 2):
            raise ValueError(f"strides[{position}] must be 1 or 2 (HF pads for no other), got {stride}")
    for position, block in enumerate(config.depthwise_padding):
        _check_whole(f"depthwise_padding[{position}]", block, at_least=0)
    for stage in range(len(config.in_channels) - 1):
        if config.round_filters(config.out_channels[stage]) != config.round_filters(config.in_channels[stage + 1]):
            raise ValueError(
                f"out_channels[{stage}] is {config.out_channels[stage]} but in_channels[{stage + 1}] is "
                f"{config.in_channels[stage + 1]}: a stage takes what the one before it gives"
            )
    if config.in_channels[0] != STEM_CHANNELS and not config.fused_stages:
        raise ValueError(
            f"in_channels[0] must be {STEM_CHANNELS}, the stem's channels before scaling, got {config.in_channels[0]}"
        )
    if config.hidden_dim != config.head_channels:
        raise ValueError(
            f"hidden_dim is {config.hidden_dim} but must be {config.head_channels}, which is round_filters(1280) at "
            f"width_coefficient {config.width_coefficient} and depth_divisor {config.depth_divisor}"
        )
    scaling = (config.width_coefficient, config.depth_coefficient)
    most = MAX_WEIGHTS_L2 if scaling == (PRESETS["l2"].width, PRESETS["l2"].depth) else MAX_WEIGHTS
    if num_weights(config) > most:
        raise ValueError(f"this network would have {num_weights(config)} numbers, more than the {most} allowed")
    if not callable(config.hidden_act) and config.hidden_act not in ACTIVATION_NAMES:
        raise ValueError(
            f"hidden_act must be one of {', '.join(ACTIVATION_NAMES)} or a function, got {config.hidden_act!r:.80}"
        )
    if config.pooling_type not in POOLING_TYPES:
        raise ValueError(f"pooling_type must be one of {', '.join(POOLING_TYPES)}, got {config.pooling_type!r:.80}")
    if config.problem_type is not None and config.problem_type not in PROBLEM_TYPES:
        raise ValueError(f"problem_type must be None or one of {', '.join(PROBLEM_TYPES)}, got {config.problem_type!r:.80}")


def num_weights(config: Any, classifier: bool = True) -> int:
    """How many numbers the network holds, batch statistics included, with its classifier or without; nothing is built."""
    layers = layer_specs(architecture(config), MAX_WHOLE, MAX_WHOLE)  # the size of the image makes no difference
    kept = {"conv": 1, "norm": 2, "linear": int(classifier)}  # norms hold mean and variance beside what training changes
    return sum(layer.parameters * kept[layer.kind] for layer in layers)


def _check_whole(name: str, value: Any, at_least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, got {value!r:.80}")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value}")
    if value > MAX_WHOLE:
        raise ValueError(f"{name} must be at most {MAX_WHOLE}, got {value!r:.80}")


def _check_number(name, value, above: float | None = None, at_least: float | None = None, at_most: float | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r:.80}")
    if not abs(value) <= 1e4:  # NaN fails this, too
        raise ValueError(f"{name} must be finite and at most 10000, got {value!r:.80}")
    if above is not None and not value > above:
        raise ValueError(f"{name} must be above {above:g}, got {value!r:.80}")
    if (at_least is not None and value < at_least) or (at_most is not None and value > at_most):
        bounds = f"at least {at_least:g}" if at_most is None else f"between {at_least:g} and {at_most:g}"
        raise ValueError(f"{name} must be {bounds}, got {value!r:.80}")
