"""EfficientNet put together, class for class and name for name as in HF's `modeling_efficientnet.py`.

Lay the two files side by side: an attribute here is the attribute there, so it is the key in the state dict and the
name of the activation. What differs: the shape of every block comes from `architecture.py`, and padding is written
as (top and left, bottom and right).

pixel_values (N, C, H, W) -> stem (N, 32, H/2, W/2) -> blocks -> head (N, 1280, H/32, W/32) -> pooled (N, 1280) -> logits
(channels of B0).
"""

from __future__ import annotations

import numpy as np

from effnet_np import ops
from effnet_np.architecture import BlockSpec, HeadSpec, StemSpec
from effnet_np.config_checks import check_config
from effnet_np.hf_config import EfficientNetConfig
from effnet_np.layers import Activation, BatchNorm2d, Conv2d, Dropout, GlobalPool, Identity, Linear, ZeroPad2d
from effnet_np.module import Module, ModuleList
from effnet_np.outputs import BaseModelOutput, ImageClassifierOutput, ModelOutput
from effnet_np.pretrained import PreTrainedModel, check_pixel_values, classification_loss

# -- the parts --------------------------------------------------------------------------------------------------------


class EfficientNetEmbeddings(Module):
    """The stem: a 3x3 convolution of stride 2. (N, C, H, W) -> (N, stem channels, H/2, W/2)"""

    def __init__(self, config: EfficientNetConfig, stem: StemSpec):
        super().__init__()
        self.padding = ZeroPad2d(stem)
        self.convolution = Conv2d(stem.in_channels, stem.out_channels, stem.kernel_size, stride=stem.stride)
        self.batchnorm = BatchNorm2d(stem.out_channels, config.batch_norm_eps, config.batch_norm_momentum)
        self.activation = Activation(config.hidden_act)

    def forward(self, pixel_values):
        features = self.padding(pixel_values)
        features = self.convolution(features)
        features = self.batchnorm(features)
        return self.activation(features)


class EfficientNetExpansionLayer(Module):
    """A convolution to more channels: 1x1 or, in a fused block, the K x K one. (N, C, H, W) -> (N, expanded, H, W)"""

    def __init__(self, config: EfficientNetConfig, block: BlockSpec):
        super().__init__()
        kernel_size, stride, padding = (block.kernel_size, block.stride, block.padding) if block.fused else (1, 1, (0, 0))
        self.expand_conv = Conv2d(block.in_channels, block.expanded_channels, kernel_size, stride=stride, padding=padding)
        self.expand_bn = BatchNorm2d(block.expanded_channels, config.batch_norm_eps)  # HF leaves PyTorch's momentum here
        self.expand_act = Activation(config.hidden_act)

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
        self.depthwise_conv_pad = ZeroPad2d(block)
        self.depthwise_conv = Conv2d(channels, channels, block.kernel_size, stride=block.stride, padding=same, groups=channels)
        self.depthwise_norm = BatchNorm2d(channels, config.batch_norm_eps, config.batch_norm_momentum)
        self.depthwise_act = Activation(config.hidden_act)

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
        self.squeeze = GlobalPool()
        self.reduce = Conv2d(block.expanded_channels, block.squeeze_channels, 1, bias=True)
        self.expand = Conv2d(block.squeeze_channels, block.expanded_channels, 1, bias=True)
        self.act_reduce = Activation(config.hidden_act)
        self.act_expand = Activation(ops.sigmoid)

    def forward(self, hidden_states):
        gate = self.squeeze(hidden_states)  # (N, expanded, H, W) -> (N, expanded, 1, 1)
        gate = self.act_reduce(self.reduce(gate))  # -> (N, squeezed, 1, 1)
        gate = self.act_expand(self.expand(gate))  # -> (N, expanded, 1, 1)
        return ops.scale_channels(hidden_states, gate)


class EfficientNetFinalBlockLayer(Module):
    """1x1 to fewer channels, not activated, or a fused block's only convolution; then the residual. -> (N, out, H, W)"""

    def __init__(self, config: EfficientNetConfig, block: BlockSpec, generator: np.random.Generator):
        super().__init__()
        self.residual, self.activated = block.residual, block.fused and block.expand_ratio == 1
        kernel_size, stride, padding = (block.kernel_size, block.stride, block.padding) if self.activated else (1, 1, (0, 0))
        self.project_conv = Conv2d(block.expanded_channels, block.out_channels, kernel_size, stride=stride, padding=padding)
        self.project_bn = BatchNorm2d(block.out_channels, config.batch_norm_eps, config.batch_norm_momentum)
        if self.activated:
            self.project_act = Activation(config.hidden_act)
        self.dropout = Dropout(block.drop_rate, generator)

    def forward(self, embeddings, hidden_states):
        hidden_states = self.project_conv(hidden_states)
        hidden_states = self.project_bn(hidden_states)
        if self.activated:
            hidden_states = self.project_act(hidden_states)
        if self.residual:
            hidden_states = ops.add(self.dropout(hidden_states), embeddings)
        return hidden_states


class EfficientNetBlock(Module):
    """MBConv (Sandler et al., arXiv 1801.04381), or fused: widen, filter each channel, weigh the channels, narrow, add."""

    def __init__(self, config: EfficientNetConfig, block: BlockSpec, generator: np.random.Generator):
        super().__init__()
        self.expand, self.fused = block.expand_ratio != 1, block.fused
        if self.expand:
            self.expansion = EfficientNetExpansionLayer(config, block)
        if not self.fused:
            self.depthwise_conv = EfficientNetDepthwiseLayer(config, block)
        self.has_squeeze_excite = block.squeeze_channels > 0
        if self.has_squeeze_excite:
            self.squeeze_excite = EfficientNetSqueezeExciteLayer(config, block)
        self.projection = EfficientNetFinalBlockLayer(config, block, generator)

    def forward(self, hidden_states):
        embeddings = hidden_states
        if self.expand:
            hidden_states = self.expansion(hidden_states)
        if not self.fused:
            hidden_states = self.depthwise_conv(hidden_states)
        if self.has_squeeze_excite:
            hidden_states = self.squeeze_excite(hidden_states)
        return self.projection(embeddings, hidden_states)


class EfficientNetEncoder(Module):
    """All blocks, then the head's 1x1 convolution."""

    def __init__(self, config: EfficientNetConfig, blocks: list[BlockSpec], head: HeadSpec, generator: np.random.Generator):
        super().__init__()
        self.blocks = ModuleList(EfficientNetBlock(config, block, generator) for block in blocks)
        self.top_conv = Conv2d(head.in_channels, head.out_channels, 1)
        self.top_bn = BatchNorm2d(head.out_channels, config.batch_norm_eps, config.batch_norm_momentum)
        self.top_activation = Activation(config.hidden_act)

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


class EfficientNetModel(PreTrainedModel):
    """The backbone: pixel_values (N, C, H, W) -> features (N, hidden_dim, H/32, W/32) and their pool (N, hidden_dim).

    `seed` makes the initial weights and training's dropout repeatable; `initialize=False` leaves the weights zero.
    """

    def __init__(self, config: EfficientNetConfig, seed: int | None = None, initialize: bool = True):
        super().__init__()
        check_config(config)
        self.config = config
        generator, network = np.random.default_rng(seed), config.architecture()  # the first drops, in training
        self.embeddings = EfficientNetEmbeddings(config, network.stem)
        self.encoder = EfficientNetEncoder(config, network.blocks, network.head, generator)
        # HF's AvgPool2d(hidden_dim, ceil_mode=True) has a window larger than any feature map: the mean of all of it.
        self.pooler = GlobalPool(config.pooling_type)
        if initialize:
            self.initialize(seed)

    def forward(self, pixel_values=None, output_hidden_states=None, return_dict=None):
        """-> BaseModelOutput, or its tuple where `return_dict` is False; None means what the configuration says."""
        config = self.config
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return_dict = config.use_return_dict if return_dict is None else return_dict
        features = self.embeddings(check_pixel_values(config, pixel_values, self.dtype))
        encoded = self.encoder(features, output_hidden_states)
        pooled = self.pooler(encoded.last_hidden_state)  # (N, hidden_dim, H/32, W/32) -> (N, hidden_dim, 1, 1)
        output = BaseModelOutput(encoded.last_hidden_state, ops.flatten(pooled), encoded.get("hidden_states"))
        return output if return_dict else output.to_tuple()


class EfficientNetForImageClassification(PreTrainedModel):
    """The backbone and a linear classifier: pixel_values (N, C, H, W) -> logits (N, num_labels)."""

    def __init__(self, config: EfficientNetConfig, seed: int | None = None, initialize: bool = True):
        super().__init__()
        self.config, self.num_labels = config, config.num_labels
        self.efficientnet = EfficientNetModel(config, seed, initialize=False)
        self.dropout = Dropout(config.dropout_rate, np.random.default_rng(seed))
        self.classifier = Linear(config.hidden_dim, self.num_labels) if self.num_labels > 0 else Identity()
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
