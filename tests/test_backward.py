"""Every gradient of a network by name, against autograd on HF's own model."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from test_parity import networks

import effnet_np
from effnet_np.hf_config import round_filters
from effnet_np.layers import Dropout
from effnet_np.operation import listener
from effnet_np.training.backward import backward, seed_dropout
from effnet_np.training.tape import Tape

from helpers import pair, pixels, state_of, tiny_config

TORCH = {np.float32: torch.float32, np.float64: torch.float64}


def both(config, dtype=np.float64, training=False, drop=False):
    """(HF's model, ours): live weights, residual branches damped so that a deep network is not chaotic (weight x 0.4)."""
    theirs, ours = pair(config)
    with torch.no_grad():
        for block in theirs.efficientnet.encoder.blocks:
            block.projection.project_bn.weight *= 0.4
    if not drop:
        for module in [*theirs.modules(), *(module for _, module in ours.named_modules())]:
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if isinstance(module, Dropout):
                module.rate = 0.0
    ours.load_state_dict(state_of(theirs))
    return theirs.to(TORCH[dtype]).train(training), ours.to(dtype).train(training)


def autograd(model, pixel_values, labels=None, output_gradient=None):
    """(loss, parameters, activations, pixel_values): what PyTorch says, activations by module name."""
    activations, hooks = {}, []
    for name, module in model.named_modules():

        def keep(module, inputs, output, name=name):
            if torch.is_tensor(output) and output.requires_grad:
                output.retain_grad()
                activations[name] = output

        hooks.append(module.register_forward_hook(keep))
    tensor = torch.from_numpy(pixel_values).requires_grad_()
    model.zero_grad()
    output = model(tensor, labels=None if labels is None else torch.from_numpy(labels))
    if labels is None:
        output.logits.backward(torch.from_numpy(output_gradient))
    else:
        output.loss.backward()
    for hook in hooks:
        hook.remove()
    parameters = {name: parameter.grad.numpy().copy() for name, parameter in model.named_parameters()}
    return output.loss, parameters, {name: array.grad.numpy() for name, array in activations.items()}, tensor.grad.numpy()


def worst(ours, theirs):
    """The largest error, relative to each reference's own largest number.

    A bias before a batch norm by the batch's statistics has the gradient 0, of which both sides have rounding errors only: an
    array below 1e-6 of the largest of all of them counts relative to that one.
    """
    largest = max(np.abs(array).max() for array in theirs.values())
    errors = {}
    for name, reference in theirs.items():
        assert ours[name].shape == reference.shape, name
        assert np.isfinite(ours[name]).all(), name
        own = np.abs(reference).max()
        errors[name] = np.abs(ours[name] - reference).max() / (own if own > 1e-6 * largest else largest)
    return max(errors.items(), key=lambda item: item[1])


def assert_gradients(theirs, ours, pixel_values, tolerance, **given):
    loss, parameters, activations, pixel_gradient = autograd(theirs, pixel_values, **given)
    step = backward(ours, pixel_values, activations="*", **given)
    assert list(step.parameters) == list(parameters)
    assert set(activations) <= set(step.activations)
    assert (loss is None) == (step.loss is None)
    if loss is not None:
        assert abs(loss.item() - float(step.loss)) <= tolerance * abs(loss.item())
    for kind, found, reference in (
        ("parameters", step.parameters, parameters),
        ("activations", step.activations, activations),
        ("pixels", {"pixel_values": step.pixel_values}, {"pixel_values": pixel_gradient}),
    ):
        name, error = worst(found, reference)
        assert error <= tolerance, f"{kind}, {name}: {error:.1e} of its largest"
    return step


def shrunk(name):
    """A preset's own depth and strides at a quarter of its width."""
    width = effnet_np.EfficientNetConfig.preset(name).width_coefficient / 4
    fields = {"width_coefficient": width, "hidden_dim": round_filters(1280, width), "num_labels": 5}
    return effnet_np.EfficientNetConfig.preset(name, **fields)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", [f"b{n}" for n in range(8)])
def test_presets(name, training):
    """float64 to 1e-9. float32, against PyTorch in float64: to 1e-4, or to three times what PyTorch's own float32 is off."""
    config = shrunk(name)
    pixel_values, labels = pixels(config, 4, 64, 80), np.array([3, 0, 4, 1])
    theirs, ours = both(config, np.float64, training)
    exact = autograd(theirs, pixel_values.astype(np.float64), labels)
    step = backward(ours, pixel_values.astype(np.float64), labels, activations="*")
    for key, value in state_of(theirs).items():  # the statistics moved as PyTorch's do, or not at all
        np.testing.assert_allclose(ours.state_dict()[key], value, rtol=1e-9, atol=1e-12, err_msg=key)
    theirs, ours = both(config, np.float32, training)
    single, step32 = autograd(theirs, pixel_values, labels), backward(ours, pixel_values, labels, activations="*")
    assert {array.dtype.name for array in (*step32.parameters.values(), *step32.activations.values())} == {"float32"}
    for found, found32, reference, reference32 in (
        (step.parameters, step32.parameters, exact[1], single[1]),
        (step.activations, step32.activations, exact[2], single[2]),
        ({"": step.pixel_values}, {"": step32.pixel_values}, {"": exact[3]}, {"": single[3]}),
    ):
        assert worst(found, reference)[1] <= 1e-9, worst(found, reference)
        allowed = max(1e-4, 3 * worst(reference32, reference)[1])
        assert allowed < 2e-3
        assert worst(found32, reference)[1] <= allowed, worst(found32, reference)


def test_b0_itself():
    config = effnet_np.EfficientNetConfig.preset("b0")
    theirs, ours = both(config, np.float32)
    step = assert_gradients(theirs, ours, pixels(config, 1), 1e-4, labels=np.array([281]))
    order = list(step.activations)
    assert order.index("efficientnet.encoder.top_bn") < order.index("efficientnet.encoder.blocks.3.expansion.expand_bn")
    assert step.activations["efficientnet.pooler"].shape == (1, 1280, 1, 1)
    assert step.activations["efficientnet.pooler_output"].shape == (1, 1280)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(networks())
def test_random_networks(training, network):
    """All activations and poolings, kernels, strides, paddings; a loss of one's own, by its gradient."""
    config, height, width, batch = network
    try:
        config.check_image_size(height, width)
    except ValueError:
        assume(False)
    assume(not training or (batch > 1 and min(height, width) >= 24))
    theirs, ours = both(config, np.float64, training)
    gradient = np.random.default_rng(3).standard_normal((batch, config.num_labels))
    pixel_values = pixels(config, batch, height, width).astype(np.float64)
    assert_gradients(theirs, ours, pixel_values, 1e-9, output_gradient=gradient)


@pytest.mark.parametrize(
    ("num_labels", "labels"),
    [
        (1, np.array([0.5, -1.0])),
        (3, np.array([[0.5, -1.0, 2.0], [0.0, 1.0, 0.0]])),
        (5, np.array([4, 1])),
        (5, np.array([4, -100])),
    ],
)
def test_losses(num_labels, labels):
    problem = None if num_labels != 3 else "multi_label_classification"
    config = tiny_config(num_labels=num_labels, problem_type=problem, pooling_type="max" if num_labels == 3 else "mean")
    theirs, ours = both(config)
    assert_gradients(theirs, ours, pixels(config, 2).astype(np.float64), 1e-9, labels=labels)


@pytest.mark.parametrize("per_picture", [False, True])
def test_dropout_of_a_seed_is_the_same_mask_forward_and_back(per_picture):
    config = tiny_config(dropout_rate=0.4, drop_connect_rate=0.5)
    theirs, ours = both(config, training=True, drop=True)
    for _, module in ours.named_modules():
        if isinstance(module, Dropout):
            module.per_picture = per_picture
    state = {key: value.copy() for key, value in ours.state_dict().items()}
    pixel_values, labels = pixels(config, 4).astype(np.float64), np.array([0, 1, 2, 3])
    first = backward(ours, pixel_values, labels, seed=7)
    ours.load_state_dict(state)
    second = backward(ours, pixel_values, labels, seed=7)
    ours.load_state_dict(state)
    assert first.loss == second.loss
    assert backward(ours, pixel_values, labels, seed=8).loss != first.loss
    ours.load_state_dict(state)
    modules = dict(ours.named_modules())
    seed_dropout(ours, 7)
    for name, module in theirs.named_modules():
        if isinstance(module, torch.nn.Dropout):

            def masked(x, layer=modules[name]):
                shape = (len(x), *[1] * (x.ndim - 1)) if per_picture else tuple(x.shape)
                keep = layer.generator.random(shape, np.float32) >= layer.rate if layer.rate else np.ones(shape, bool)
                return x * torch.from_numpy(keep) / (1 - layer.rate)

            module.forward = masked
    loss, parameters, _, _ = autograd(theirs, pixel_values, labels)
    assert abs(loss.item() - first.loss) < 1e-12
    assert worst(first.parameters, parameters)[1] < 1e-9


def test_label_smoothing():
    config = tiny_config()
    theirs, ours = both(config)
    pixel_values, labels = pixels(config, 3).astype(np.float64), np.array([0, 4, 2])
    step = backward(ours, pixel_values, labels, label_smoothing=0.1)
    logits = theirs(torch.from_numpy(pixel_values)).logits
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), label_smoothing=0.1)
    loss.backward()
    assert abs(loss.item() - step.loss) < 1e-12
    assert worst(step.parameters, {name: p.grad.numpy() for name, p in theirs.named_parameters()})[1] < 1e-9


def test_a_backbone_and_a_function_for_the_output_gradient():
    config = tiny_config()
    _, ours = both(config)
    x = pixels(config, 2).astype(np.float64)
    whole = backward(ours, x, np.array([1, 2]), activations="efficientnet.pooler_output")
    backbone = ours.efficientnet
    part = backward(backbone, x, output_gradient=whole.activations["efficientnet.pooler_output"])
    assert (
        worst(part.parameters, {k.removeprefix("efficientnet."): v for k, v in whole.parameters.items() if "class" not in k})[1]
        < 1e-12
    )
    seen = []
    backward(ours, x, output_gradient=lambda logits: seen.append(logits) or logits)
    assert seen[0].shape == (2, 5)


def test_only_what_is_asked_for():
    """A frozen body costs what a forward costs: nothing of it is written down, nothing of it is walked back."""
    config = tiny_config()
    _, ours = both(config, np.float32)
    x, labels = pixels(config, 2), np.array([1, 2])
    everything = backward(ours, x, labels)
    steps = []
    with Tape([ours.classifier.weight]) as tape:
        ours(x)
        steps = [step.name for step in tape._steps]
    assert steps == ["linear"]
    step = backward(ours, x, labels, parameters=("classifier.*", "*.blocks.15.*"), pixel_gradient=False)
    assert step.pixel_values is None
    assert {name.split(".")[0] for name in step.parameters} == {"classifier", "efficientnet"}
    assert all("classifier" in name or ".15." in name for name in step.parameters)
    for name, gradient in step.parameters.items():
        np.testing.assert_array_equal(gradient, everything.parameters[name])
    assert not backward(ours, x, labels, parameters=None).parameters


def test_wrong_calls():
    config = tiny_config()
    model = effnet_np.EfficientNetForImageClassification(config, seed=0)
    x = pixels(config)
    with pytest.raises(ValueError, match="either labels"):
        backward(model, x)
    with pytest.raises(ValueError, match="either labels"):
        backward(model, x, labels=np.array([1]), output_gradient=np.zeros((1, 5)))
    with pytest.raises(ValueError, match=r"output_gradient must hold numbers of shape \(1, 5\), got float64 \(1, 6\)"):
        backward(model, x, output_gradient=np.zeros((1, 6)))
    with pytest.raises(ValueError, match="a backbone has no loss"):
        backward(model.efficientnet, x, labels=np.array([1]))
    with pytest.raises(ValueError, match="no parameter of this model matches 'blocks.3.*'"):
        backward(model, x, labels=np.array([1]), parameters="blocks.3.*")
    with pytest.raises(ValueError, match="no layer of this model matches"):
        backward(model, x, labels=np.array([1]), activations="expand_bn")
    with pytest.raises(TypeError, match="need a model of effnet_np in NumPy, got str"):
        backward("lite0", x, labels=np.array([1]))
    with pytest.raises(ValueError, match=r"labels must lie between 0 and 4, got \[5\]"):
        backward(model, x, labels=np.array([5]))
    assert not [hook for _, module in model.named_modules() for hook in module._forward_hooks]  # nothing stays behind
    assert getattr(listener, "tape", None) is None


def test_an_activation_of_ones_own_learns_by_its_derivative():
    def square(x):
        return x * x / 4

    config = tiny_config(hidden_act=square)
    model = effnet_np.EfficientNetForImageClassification(config, seed=0)
    with pytest.raises(ValueError, match="derivative of the activation square is not known"):
        backward(model, pixels(config), np.array([1]))
    square.derivative = lambda x: x / 2
    assert backward(model, pixels(config), np.array([1])).parameters


def test_another_threads_forward_is_not_written_down():
    config = tiny_config()
    model = effnet_np.EfficientNetForImageClassification(config, seed=0)
    x = pixels(config)
    with Tape([model.classifier.weight]) as tape:
        thread = threading.Thread(target=lambda: model(x))
        thread.start()
        thread.join()
        assert not tape._steps
        with pytest.raises(RuntimeError, match="open in this thread already"), Tape([]):
            pass
        model(x)
    assert len(tape._steps) == 1
