"""The classifier: a matrix product of one position, logits = pooled @ B + bias."""

from __future__ import annotations

from dataclasses import dataclass

from effnet_np.kernels.kernel import kernel
from effnet_np.kernels.product import Epilogue, Panel, Shape, pack_matrix, panel, panel_at, product, vector
from effnet_np.kernels.record import Address, Count, Function, Step
from effnet_np.kernels.tiling import IDENTITY, ahead_of, blocks_of, cut, share_of


@dataclass(frozen=True, kw_only=True)
class Classify(Step):
    """A task: a group of blocks of labels."""

    inputs: Count
    labels: Count
    source: Address
    matrix: Panel
    target: Address
    product: Function = "product"

    @property
    def label(self):
        return "classifier"

    @property
    def flops(self):
        return 2 * self.inputs * self.labels

    @property
    def floats(self):
        return self.inputs * self.labels


def pack(weights) -> None:
    config, state = weights.config, weights.state

    def dense():
        return state["classifier.weight"], state["classifier.bias"]

    if "classifier.weight" in state:
        pack_matrix(weights, "classifier", config.hidden_dim, config.num_labels, dense)


def plan(net, pooled: Address, logits: Address) -> Classify:
    inputs, labels = net.config.hidden_dim, net.config.num_labels
    matrix = panel(net.weights, "classifier", inputs)
    return Classify(cut=cut(blocks_of(labels)), inputs=inputs, labels=labels, source=pooled, matrix=matrix, target=logits)


@kernel(Classify)
def classify(step, task, scratch):
    share = share_of(step.cut, task)
    matrix, ahead = panel_at(step.matrix, share.first_block), ahead_of(step.cut, step.matrix, share, task + step.threads)
    target = vector(step.target, share.first_block)
    product(step.product, Shape(2 * share.vectors, 1, 1), vector(step.source, 0), matrix, target, ahead, Epilogue(0, IDENTITY))
