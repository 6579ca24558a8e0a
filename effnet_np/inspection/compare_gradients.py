"""Gradients beside PyTorch's: the first that differs in the order of the way back, and why, where the mistake is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from effnet_np.inspection.foreign_names import Pairs, pairs_of
from effnet_np.inspection.measure import measure
from effnet_np.inspection.report import Comparison
from effnet_np.tracing.trace import INPUT, Trace
from effnet_np.training.backward import Gradients, backward

NEARLY_NONE = 1e-6  # a gradient below this share of the largest is 0 but for rounding, as that of a bias before a batch norm


def compare_gradients(
    model: Any,
    hf_model: Any,
    pixel_values: np.ndarray,
    labels: np.ndarray | None = None,
    output_gradient: np.ndarray | None = None,
    layers: str | Sequence[str] = "*",
    tolerance: float = 1e-4,
) -> Comparison:
    """Both models forward and back on the same input; rows in the order of the way back: see `compare_with_torch`.

    After an activation's gradient come those of its layer's parameters, and last the pixels'. Both must be in the same mode;
    in training mode dropout must be off, whose masks could not be the same. Raises ImportError, ValueError.
    """
    if model.training != hf_model.training:
        modes = " and ".join("training" if m.training else "eval" for m in (model, hf_model))
        raise ValueError(f"ours and theirs are in {modes} mode: gradients can be equal in the same mode only")
    dropping = [
        name
        for network, rates in ((hf_model, ("p", "drop_prob")), (model, ("rate",)))
        for name, module in network.named_modules()
        if module.training and any(getattr(module, rate, 0) for rate in rates)
    ]
    if dropping:
        raise ValueError(f"dropout is on in training mode ({dropping[0]}): its masks differ, so set the rates to 0")
    theirs = torch_gradients(hf_model, pixel_values, labels, output_gradient)
    ours = backward(model, pixel_values, labels, output_gradient, activations="*")
    return compared(in_backward_order(ours), in_backward_order(theirs), layers, tolerance)


def compared(
    ours: Mapping[str, np.ndarray],
    theirs: Mapping[str, np.ndarray],
    layers: str | Sequence[str] = "*",
    tolerance: float = 1e-4,
) -> Comparison:
    """Two sets of gradients by name, each in the order of the way back -> Comparison; `theirs` is the reference."""
    wanted = Trace(layers=layers).wants
    names = [name for name in theirs if wanted(name) or wanted(name.rpartition(".")[0])]
    if not names:
        raise ValueError(f"there is nothing to compare: the reference has no gradient that matches {layers!r}")
    result = Comparison([measure(name, ours.get(name), theirs[name], tolerance) for name in names], tolerance)
    largest = max((float(np.abs(array).max()) for array in theirs.values() if array.size), default=0.0)
    for row in result.rows:
        rounding = row.status in ("DIFF", "ZERO") and np.abs(theirs[row.name]).max() <= NEARLY_NONE * largest
        if rounding and np.abs(ours[row.name] - theirs[row.name]).max() <= tolerance * largest:
            row.status, row.note = "OK", "no gradient but rounding, on both sides"
    first = result.first_divergence
    result.hints = [] if first is None or first.name not in ours else hints(first.name, ours, theirs, tolerance)
    return result


def in_backward_order(gradients: Gradients) -> dict[str, np.ndarray]:
    """One mapping: each activation's gradient, then those of its layer's parameters; at the end the pixels'."""
    order: dict[str, np.ndarray] = {}
    for name, gradient in gradients.activations.items():
        if name != INPUT:
            order[name] = gradient
        order |= {f"{name}.{kind}": gradients.parameters[f"{name}.{kind}"] for kind in ("weight", "bias")
                  if f"{name}.{kind}" in gradients.parameters}  # fmt: skip
    order |= {name: gradient for name, gradient in gradients.parameters.items() if name not in order}
    return order if gradients.pixel_values is None else order | {INPUT: gradients.pixel_values}


def torch_gradients(
    torch_model: Any, pixel_values: np.ndarray, labels: np.ndarray | None = None, output_gradient: np.ndarray | None = None
) -> Gradients:
    """What autograd gives for a torch model, as `backward` gives it: the modules that give one tensor, the last first.

    The names are ours for another library's model, whose loss is the cross entropy, as such a model has none of its own.
    """
    import torch

    kept: dict[str, torch.Tensor] = {}
    pairs = pairs_of([name for name, _ in torch_model.named_modules()])
    in_place = [module for module in torch_model.modules() if getattr(module, "inplace", False) is True]

    def keep(name: str) -> Any:
        def hook(module: Any, inputs: tuple, output: Any) -> None:
            if torch.is_tensor(output) and output.requires_grad and name:
                output.retain_grad()
                kept[name] = output

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in torch_model.named_modules()]
    parameters = dict(torch_model.named_parameters())
    before = {name: parameter.grad for name, parameter in parameters.items()}
    first = next(iter(parameters.values()))
    tensor = torch.from_numpy(np.array(pixel_values)).to(first.device, first.dtype).requires_grad_()
    answers = None if labels is None else torch.from_numpy(np.asarray(labels))
    loss = None
    try:
        for module in in_place:  # what it changes would have the gradient of what it makes
            module.inplace = False
        torch_model.zero_grad(set_to_none=True)
        output = torch_model(tensor) if labels is None or pairs else torch_model(tensor, labels=answers)
        result = output if torch.is_tensor(output) else output.logits if hasattr(output, "logits") else output.pooler_output
        if answers is None:
            result.backward(torch.from_numpy(np.asarray(output_gradient)).to(result))
        else:
            loss = torch.nn.functional.cross_entropy(result, answers) if pairs else output.loss
            loss.backward()
        found = {name: parameter.grad for name, parameter in parameters.items()}
    finally:
        for module in in_place:
            module.inplace = True
        for handle in handles:
            handle.remove()
        for name, parameter in parameters.items():  # its owner's gradients are not ours to change
            parameter.grad = before[name]

    def numbers(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items() if tensor is not None}

    activations = numbers({name: kept[name].grad for name in reversed(kept)})
    value = None if loss is None else loss.detach().cpu().numpy()
    gradients = Gradients(value, result.detach().cpu().numpy(), numbers(found), activations, tensor.grad.cpu().numpy())
    return renamed(gradients, pairs) if pairs else gradients


def renamed(gradients: Gradients, pairs: Pairs) -> Gradients:
    """Those of another library's model under our names; what has no name here is left out."""
    ours = {output: name for name, (_, output) in pairs.layers.items()}
    activations = {ours[name]: array for name, array in gradients.activations.items() if name in ours}
    known = pairs.dialect.renamed(gradients.parameters)
    parameters = {name: gradients.parameters[theirs] for name, theirs in known.items()}
    return Gradients(gradients.loss, gradients.logits, parameters, activations, gradients.pixel_values)


# -- why --------------------------------------------------------------------------------------------------------------


def hints(name: str, ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], tolerance: float) -> list[str]:
    """Known mistakes of a way back, asked of the first gradient that differs; everything before it was right."""
    mine, reference = ours[name], theirs[name]
    if mine.shape != reference.shape:
        return [f"the shape is {mine.shape}, but a gradient has the shape of what it belongs to, {reference.shape}"]
    largest = np.abs(reference).max()

    def near(candidate: np.ndarray) -> bool:
        return bool(np.abs(mine - candidate).max() <= tolerance * largest)

    if not np.abs(mine).max():
        return ["no gradient arrives here: is the layer frozen, or cut off from the loss?"]
    batch = next((array.shape[0] for array in theirs.values() if array.ndim == 4), 1)
    if near(-reference):
        return ["the sign is turned"]
    for factor, why in ((batch, "the loss is summed over the batch, not averaged"), (1 / batch, "divided by the batch twice")):
        if batch > 1 and near(factor * reference):
            return [f"ours is {factor:g} times the reference, {batch} being the batch: {why}"]
    for other, gradient in theirs.items():
        if other != name and gradient.shape == mine.shape and np.abs(gradient).max() and near(reference - gradient):
            return [f"the gradient that comes back from {other} is not added: an array that is used twice gets the sum of both"]
        if other == name:
            break
    if mine.ndim == 4 and mine[0, 0].size > 1:
        sums = [np.abs(a.sum(axis=(0, 2, 3))).max() / np.abs(a).sum(axis=(0, 2, 3)).max() for a in (mine, reference)]
        if sums[1] < 1e-5 < sums[0]:
            why = "the batch's mean and variance were taken for constants"
            return [f"each channel of the reference adds up to 0, as after a batch norm in training, and ours does not: {why}"]
    if ((mine == 0) != (reference == 0)).mean() > 0.05:
        return ["other numbers are zero than in the reference: another mask, of dropout or of an activation"]
    return []
