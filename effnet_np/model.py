"""EfficientNet put together, class for class and name for name as in HF's `modeling_efficientnet.py`.

Lay the two files side by side: an attribute here is the attribute there, so it is the key in the state dict and the
name of the activation. What differs: the shape of every block comes from `config.blocks()`, and padding is written
as (top and left, bottom and right).

pixel_values (N, C, H, W) -> stem (N, 32, H/2, W/2) -> blocks -> head (N, 1280, H/32, W/32) -> pooled (N, 1280) -> logits
(channels of B0).
"""

from __future__ import annotations

import inspect
import os
from typing import Any

import numpy as np

from effnet_np import ops
from effnet_np.config_checks import check_config
from effnet_np.hf_config import BlockSpec, EfficientNetConfig
from effnet_np.layers import BatchNorm2d, Conv2d, Dropout, Function, Linear, ZeroPad2d, activation
from effnet_np.module import Module, ModuleList

# -- what a forward gives back ----------------------------------------------------------------------------------------


class ModelOutput(dict):
    """A dictionary, also read by attribute and by position, as in HF. What is None is no entry, and None as an attribute."""

    def __init__(self, **fields: Any):
        super().__init__({name: value for name, value in fields.items() if value is not None})

    def __getattr__(self, name: str) -> Any:
        if name not in self and name not in inspect.signature(type(self)).parameters:
            raise AttributeError(f"{type(self).__name__} has no {name!r}, only {', '.join(self)}")
        return self.get(name)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple:
        return tuple(self.values())


class BaseModelOutput(ModelOutput):
    """last_hidden_state (N, hidden_dim, H/32, W/32), pooler_output (N, hidden_dim), hidden_states: stem's and each block's."""

    def __init__(self, last_hidden_state=None, pooler_output=None, hidden_states=None):
        super().__init__(last_hidden_state=last_hidden_state, pooler_output=pooler_output, hidden_states=hidden_states)


class ImageClassifierOutput(ModelOutput):
    """loss () where labels were given, logits (N, num_labels), hidden_states: the stem's output and each block's."""

    def __init__(self, loss=None, logits=None, hidden_states=None):
        super().__init__(loss=loss, logits=logits, hidden_states=hidden_states)


# -- the parts --------------------------------------------------------------------------------------------------------


class EfficientNetEmbeddings(Module):
    """The stem: a 3x3 convolution of stride 2. (N, C, H, W) -> (N, stem channels, H/2, W/2)"""

    def __init__(self, config: EfficientNetConfig):
        super().__init__()
        self.padding = ZeroPad2d((0, 1))
        self.convolution = Conv2d(config.num_channels, config.stem_channels, 3, stride=2)
        self.batchnorm = BatchNorm2d(config.stem_channels, config.batch_norm_eps, config.batch_norm_momentum)
        self.activation = activation(config.hidden_act)

    def forward(self, pixel_values):
        features = self.padding(pixel_values)
        features = self.convolution(features)
        features = self.batchnorm(features)
        return self.activation(features)


class EfficientNetExpansionLayer(Module):
    """A 1x1 convolution to more channels. (N, C, H, W) -> (N, expanded, H, W)"""

    def __init__(self, config: EfficientNetConfig, block: BlockSpec):
        super().__init__()
        self.expand_conv = Conv2d(block.in_channels, block.expanded_channels, 1)
        self.expand_bn = BatchNorm2d(block.expanded_channels, config.batch_norm_eps)  # HF leaves PyTorch's momentum here
        self.expand_act = activation(config.hidden_act)

    def forward(self, hidden_states):
        hidden_states = self.expand_conv(hidden_states)
        hidden_states = self.expand_bn(hidden_states)
        return self.expand_act(hidden_states)


class EfficientNetDepthwiseLayer(Module):
    """A K x K convolution of each channel alone. (N, expanded, H, W) -> (N, expanded, H/stride, W/stride)"""

    def __init__(self, config: EfficientNetConfig, block: BlockSpec):
        super().__init__()
        channels, self.stride = block.expanded_channels, block.stride
        same = block.padding if block.stride == 1 else (0, 0)  # stride 2 is padded by the module of its own
        self.depthwise_conv_pad = ZeroPad2d(block.padding)
        self.depthwise_conv = Conv2d(channels, channels, block.kernel_size, stride=block.stride, padding=same, groups=channels)
        self.depthwise_norm = BatchNorm2d(channels, config.batch_norm_eps, config.batch_norm_momentum)
        self.depthwise_act = activation(config.hidden_act)

    def forward(self, hidden_states):
        if self.stride == 2:
            hidden_states = self.depthwise_conv_pad(hidden_states)
        hidden_states = self.depthwise_conv(hidden_states)
        hidden_states = self.depthwise_norm(hidden_states)
        return self.depthwise_act(hidden_states)


class EfficientNetSqueezeExciteLayer(Module):
    """Each channel is scaled by a number between 0 and 1 that all channels' means decide (Hu et al., arXiv 1709.01507).

    (N, expanded, H, W) -> the same
    """

    def __init__(self, config: EfficientNetConfig, block: BlockSpec):
        super().__init__()
        self.squeeze = Function(ops.global_average_pool)
        self.reduce = Conv2d(block.expanded_channels, block.squeeze_channels, 1, bias=True)
        self.expand = Conv2d(block.squeeze_channels, block.expanded_channels, 1, bias=True)
        self.act_reduce = activation(config.hidden_act)
        self.act_expand = Function(ops.sigmoid)

    def forward(self, hidden_states):
        gate = self.squeeze(hidden_states)  # (N, expanded, H, W) -> (N, expanded, 1, 1)
        gate = self.act_reduce(self.reduce(gate))  # -> (N, squeezed, 1, 1)
        gate = self.act_expand(self.expand(gate))  # -> (N, expanded, 1, 1)
        return hidden_states * gate


class EfficientNetFinalBlockLayer(Module):
    """A 1x1 convolution to fewer channels, without activation; then the residual. (N, expanded, H, W) -> (N, out, H, W)"""

    def __init__(self, config: EfficientNetConfig, block: BlockSpec, generator: np.random.Generator):
        super().__init__()
        self.residual = block.residual
        self.project_conv = Conv2d(block.expanded_channels, block.out_channels, 1)
        self.project_bn = BatchNorm2d(block.out_channels, config.batch_norm_eps, config.batch_norm_momentum)
        self.dropout = Dropout(block.drop_rate, generator)

    def forward(self, embeddings, hidden_states):
        hidden_states = self.project_conv(hidden_states)
        hidden_states = self.project_bn(hidden_states)
        if self.residual:
            hidden_states = self.dropout(hidden_states) + embeddings
        return hidden_states


class EfficientNetBlock(Module):
    """MBConv (Sandler et al., arXiv 1801.04381): widen, filter each channel, weigh the channels, narrow, add the input."""

    def __init__(self, config: EfficientNetConfig, block: BlockSpec, generator: np.random.Generator):
        super().__init__()
        self.expand = block.expand_ratio != 1
        if self.expand:
            self.expansion = EfficientNetExpansionLayer(config, block)
        self.depthwise_conv = EfficientNetDepthwiseLayer(config, block)
        self.has_squeeze_excite = block.squeeze_channels > 0
        if self.has_squeeze_excite:
            self.squeeze_excite = EfficientNetSqueezeExciteLayer(config, block)
        self.projection = EfficientNetFinalBlockLayer(config, block, generator)

    def forward(self, hidden_states):
        embeddings = hidden_states
        if self.expand:
            hidden_states = self.expansion(hidden_states)
        hidden_states = self.depthwise_conv(hidden_states)
        if self.has_squeeze_excite:
            hidden_states = self.squeeze_excite(hidden_states)
        return self.projection(embeddings, hidden_states)


class EfficientNetEncoder(Module):
    """All blocks, then the head's 1x1 convolution."""

    def __init__(self, config: EfficientNetConfig, generator: np.random.Generator):
        super().__init__()
        specs = config.blocks()
        self.blocks = ModuleList(EfficientNetBlock(config, block, generator) for block in specs)
        self.top_conv = Conv2d(specs[-1].out_channels, config.head_channels, 1)
        self.top_bn = BatchNorm2d(config.hidden_dim, config.batch_norm_eps, config.batch_norm_momentum)
        self.top_activation = activation(config.hidden_act)

    def forward(self, hidden_states, output_hidden_states: bool = False):
        """-> last_hidden_state (N, hidden_dim, H/32, W/32) and, if asked for, hidden_states: the stem's and each block's"""
        all_hidden_states = [hidden_states]
        for block in self.blocks:
            hidden_states = block(hidden_states)
            if output_hidden_states:
                all_hidden_states.append(hidden_states)
        hidden_states = self.top_conv(hidden_states)
        hidden_states = self.top_bn(hidden_states)
        hidden_states = self.top_activation(hidden_states)
        kept = tuple(all_hidden_states) if output_hidden_states else None
        return ModelOutput(last_hidden_state=hidden_states, hidden_states=kept)


# -- the models -------------------------------------------------------------------------------------------------------


class PreTrainedModel(Module):
    """What both models share: initialisation, loading, saving, and the check of their input."""

    config: EfficientNetConfig
    image_processor: Any = None  # set by from_pretrained: weights carry the preprocessing that they were trained with

    def initialize(self, seed: int | None) -> None:
        """Weights drawn with `config.initializer_range` as deviation, biases zero, as HF; batch norms stay as they are."""
        generator = np.random.default_rng(seed)
        for _, module in self.named_modules():
            if isinstance(module, (Conv2d, Linear)):
                generator.standard_normal(out=module.weight, dtype=np.float32)
                module.weight *= np.float32(self.config.initializer_range)
                if module.bias is not None:
                    module.bias[...] = 0

    def checked(self, pixel_values) -> np.ndarray:
        """pixel_values in the model's dtype; ValueError or TypeError where the model cannot take them."""
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values: an array of shape (batch, channels, height, width)")
        array = np.asarray(pixel_values)
        if array.dtype.kind != "f":
            hint = "run the image processor first, it turns whole-numbered pixels into network input"
            raise TypeError(f"pixel_values must be floating-point, got {array.dtype}: {hint}")
        if array.ndim != 4:
            raise ValueError(f"pixel_values must have 4 dimensions (batch, channels, height, width), got shape {array.shape}")
        if array.shape[1] != self.config.num_channels:
            channels = self.config.num_channels
            hint = "; this looks like channels last, the model takes channels first" if array.shape[3] == channels else ""
            raise ValueError(f"this model takes {channels} channels, got {array.shape[1]} in shape {array.shape}{hint}")
        if 0 in array.shape:
            raise ValueError(f"pixel_values of shape {array.shape} hold no pixels")
        self.config.check_image_size(*array.shape[2:])
        if not np.isfinite(array).all():
            raise ValueError("pixel_values hold NaN or infinite numbers")
        return array.astype(next(self.named_parameters())[1].dtype, copy=False)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike, *, ignore_mismatched_sizes: bool = False, **options: Any):
        """Load a model, in eval mode, with `model.image_processor` where the source has one.

        source: a folder as `save_pretrained` makes it, an .h5 or .pth file, a hub id, or a short name: "b0".."b7" mean
        Google's on the hub, "lite0" the embedded one. `config` is used in place of the source's. Hub options: `revision`,
        `local_files_only`, `cache_dir`, `token`, `force_download`, `subfolder` (of a local folder, too); all others override
        fields of the configuration, such as `num_labels` for a new head, which needs `ignore_mismatched_sizes=True` and is
        initialised with `seed`. NaN and infinite weights are refused unless `allow_nonfinite=True`. Raises FileNotFoundError,
        ValueError, or TypeError for an option that is none of these.
        """
        from effnet_np import checkpoint

        return checkpoint.load_model(cls, source, ignore_mismatched_sizes, options)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write config.json, model.safetensors and, where known, preprocessor_config.json; transformers loads the folder."""
        from effnet_np import checkpoint

        checkpoint.save_model(self, folder)


class EfficientNetModel(PreTrainedModel):
    """The backbone: pixel_values (N, C, H, W) -> features (N, hidden_dim, H/32, W/32) and their pool (N, hidden_dim).

    `seed` makes the initial weights and training's dropout repeatable; `initialize=False` leaves the weights zero.
    """

    def __init__(self, config: EfficientNetConfig, seed: int | None = None, initialize: bool = True):
        super().__init__()
        check_config(config)
        self.config = config
        generator = np.random.default_rng(seed)  # drops, in training
        self.embeddings = EfficientNetEmbeddings(config)
        self.encoder = EfficientNetEncoder(config, generator)
        # HF's AvgPool2d(hidden_dim, ceil_mode=True) has a window larger than any feature map: the mean of all of it.
        self.pooler = Function(ops.global_average_pool if config.pooling_type == "mean" else ops.global_max_pool)
        if initialize:
            self.initialize(seed)

    def forward(self, pixel_values=None, output_hidden_states=None, return_dict=None):
        """-> BaseModelOutput, or its tuple where `return_dict` is False; None means what the configuration says."""
        config = self.config
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return_dict = config.use_return_dict if return_dict is None else return_dict
        features = self.embeddings(self.checked(pixel_values))
        encoded = self.encoder(features, output_hidden_states)
        pooled = self.pooler(encoded.last_hidden_state)  # (N, hidden_dim, H/32, W/32) -> (N, hidden_dim, 1, 1)
        output = BaseModelOutput(encoded.last_hidden_state, pooled.reshape(pooled.shape[:2]), encoded.get("hidden_states"))
        return output if return_dict else output.to_tuple()


class EfficientNetForImageClassification(PreTrainedModel):
    """The backbone and a linear classifier: pixel_values (N, C, H, W) -> logits (N, num_labels)."""

    def __init__(self, config: EfficientNetConfig, seed: int | None = None, initialize: bool = True):
        super().__init__()
        self.config, self.num_labels = config, config.num_labels
        self.efficientnet = EfficientNetModel(config, seed, initialize=False)
        self.dropout = Dropout(config.dropout_rate, np.random.default_rng(seed))
        self.classifier = Linear(config.hidden_dim, self.num_labels) if self.num_labels > 0 else Function(lambda x: x)
        if initialize:
            self.initialize(seed)

    def forward(self, pixel_values=None, labels=None, output_hidden_states=None, return_dict=None):
        """-> ImageClassifierOutput, or its tuple where `return_dict` is False; None means what the configuration says.

        labels: (N,) whole numbers for one label of many, (N, num_labels) numbers otherwise. `config.problem_type` chooses
        the loss, and is set from the labels at the first call where it is None (as HF does).
        """
        return_dict = self.config.use_return_dict if return_dict is None else return_dict
        outputs = self.efficientnet(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None if labels is None else classification_loss(self.config, logits, np.asarray(labels))
        output = ImageClassifierOutput(loss, logits, outputs.hidden_states)
        return output if return_dict else output.to_tuple()


def classification_loss(config: EfficientNetConfig, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """HF's loss by `config.problem_type`, which is set here where it is None. Raises ValueError for labels that do not fit."""
    num_labels = config.num_labels
    if config.problem_type is None:
        if num_labels == 1:
            config.problem_type = "regression"
        elif num_labels > 1 and labels.dtype in (np.int32, np.int64):
            config.problem_type = "single_label_classification"
        else:
            config.problem_type = "multi_label_classification"
    if config.problem_type == "single_label_classification":
        if labels.dtype.kind not in "iu" or labels.size != len(logits):
            wanted = f"{len(logits)} whole numbers, one an image"
            raise ValueError(f"single_label_classification needs labels of {wanted}, got {labels.dtype} {labels.shape}")
        return ops.cross_entropy(logits, labels.reshape(-1))
    if config.problem_type == "regression" and num_labels == 1:
        logits, labels = logits.reshape(-1), labels.reshape(-1)
    if labels.shape != logits.shape:
        raise ValueError(f"{config.problem_type} needs labels of shape {logits.shape}, got {labels.shape}")
    loss = ops.mse_loss if config.problem_type == "regression" else ops.bce_with_logits
    return loss(logits, labels.astype(logits.dtype))
