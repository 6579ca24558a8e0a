"""Optimisers, schedules, clipping and averages against PyTorch or the formula written out; then 30 steps of a network."""

import math

import numpy as np
import pytest
import torch
from test_backward import both

from effnet_np.training import optimizers
from effnet_np.training.backward import backward
from effnet_np.training.optimizers import SGD, AdamW, MovingAverage, RMSProp

from helpers import pixels, state_of, tiny_config

STEPS = 50


def start(dtype=np.float64):
    generator = np.random.default_rng(0)
    return {
        name: generator.standard_normal(shape).astype(dtype)
        for name, shape in (("conv.weight", (4, 3, 2, 2)), ("conv.bias", (4,)))
    }


def gradients(step):
    generator = np.random.default_rng((1, step))
    return {name: generator.standard_normal(array.shape) * 2.0 ** (step % 5 - 3) for name, array in start().items()}


def run(optimizer, schedule=None):
    for step in range(STEPS):
        optimizer.step(gradients(step), None if schedule is None else schedule(step))
    return optimizer.parameters


def run_torch(make, weight_decay=0.0, schedule=None):
    """The same steps; weights decay, biases do not."""
    arrays = {name: torch.nn.Parameter(torch.from_numpy(array)) for name, array in start().items()}
    groups = [
        {"params": [arrays["conv.weight"]], "weight_decay": weight_decay},
        {"params": [arrays["conv.bias"]], "weight_decay": 0.0},
    ]
    optimizer = make(groups)
    scheduler = schedule(optimizer) if schedule else None
    rates = []
    for step in range(STEPS):
        for name, gradient in gradients(step).items():
            arrays[name].grad = torch.from_numpy(gradient)
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if scheduler:
            scheduler.step()
    return {name: array.detach().numpy() for name, array in arrays.items()}, rates


def assert_equal(ours, theirs):
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, rtol=1e-9, atol=1e-12, err_msg=name)
        assert np.abs(array - start()[name]).max() > 0.1  # it went somewhere


@pytest.mark.parametrize(
    ("ours", "theirs", "decay"),
    [
        (lambda p: SGD(p, 0.1), lambda g: torch.optim.SGD(g, 0.1), 0.0),
        (lambda p: SGD(p, 0.1, momentum=0.9, weight_decay=0.01), lambda g: torch.optim.SGD(g, 0.1, 0.9), 0.01),
        (
            lambda p: SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
            lambda g: torch.optim.SGD(g, 0.1, 0.9, nesterov=True),
            0.01,
        ),
        (lambda p: AdamW(p, 0.01, weight_decay=0.1), lambda g: torch.optim.AdamW(g, 0.01), 0.1),
        (lambda p: AdamW(p, 0.01, (0.8, 0.9), 1e-4, 0.0), lambda g: torch.optim.AdamW(g, 0.01, (0.8, 0.9), 1e-4), 0.0),
    ],
    ids=["sgd", "momentum", "nesterov", "adamw", "adamw-options"],
)
def test_the_same_weights_as_torch_optim(ours, theirs, decay):
    assert_equal(run(ours(start())), run_torch(theirs, decay)[0])


def test_rmsprop_is_tensorflows():
    """tf.compat.v1.train.RMSPropOptimizer's rule, number by number in plain Python."""
    ours = run(RMSProp(start(), 0.05, weight_decay=0.01))
    for name, array in start().items():
        expected = array.copy()
        for index in np.ndindex(array.shape):
            w, square, velocity = float(array[index]), 1.0, 0.0
            for step in range(STEPS):
                g = float(gradients(step)[name][index]) + (0.01 * w if array.ndim > 1 else 0.0)
                square = 0.9 * square + 0.1 * g * g
                velocity = 0.9 * velocity + 0.05 * g / math.sqrt(square + 0.001)
                w -= velocity
            expected[index] = w
        np.testing.assert_allclose(ours[name], expected, rtol=1e-9, atol=1e-12)


def test_schedules():
    warmup = 10

    def theirs(optimizer):
        schedulers = torch.optim.lr_scheduler
        up = schedulers.LinearLR(optimizer, 1 / warmup, 1.0, warmup - 1)
        down = schedulers.CosineAnnealingLR(optimizer, STEPS - warmup)
        return schedulers.SequentialLR(optimizer, [up, down], [warmup])

    schedule = optimizers.warmup_cosine(0.1, STEPS, warmup)
    weights, rates = run_torch(lambda g: torch.optim.SGD(g, 0.1, 0.9), schedule=theirs)
    np.testing.assert_allclose([schedule(step) for step in range(STEPS)], rates, rtol=1e-6)
    assert schedule(STEPS) < 1e-12
    assert_equal(run(SGD(start(), 1.0, momentum=0.9), schedule), weights)
    # the paper's: x 0.97 every 2.4 epochs of 100 steps, counted from the start
    stairs = optimizers.warmup_staircase(0.256, 100, warmup=300)
    assert [stairs(0), stairs(149), stairs(299)] == pytest.approx([0.256 / 300, 0.128, 0.256])
    assert [stairs(300), stairs(479), stairs(480), stairs(2400)] == pytest.approx(
        [0.256 * 0.97, 0.256 * 0.97, 0.256 * 0.97**2, 0.256 * 0.97**10]
    )
    assert optimizers.constant(0.1)(1000) == 0.1


def test_clipping():
    for scale in (0.001, 10.0):
        ours = {name: array * scale for name, array in start().items()}
        theirs = [torch.nn.Parameter(torch.zeros(array.shape, dtype=torch.float64)) for array in ours.values()]
        for parameter, array in zip(theirs, ours.values(), strict=True):
            parameter.grad = torch.from_numpy(array.copy())
        norm = torch.nn.utils.clip_grad_norm_(theirs, 1.0).item()
        assert optimizers.global_norm(ours) == pytest.approx(norm)
        for clipped, parameter in zip(optimizers.clip_by_global_norm(ours, 1.0).values(), theirs, strict=True):
            np.testing.assert_allclose(clipped, parameter.grad.numpy(), rtol=1e-9)


def test_groups_and_frozen_arrays():
    slow, fast = start(), start()
    SGD(slow, 0.1).step(gradients(0))
    SGD(fast, 0.1, scales={"*.bias": 10.0}).step(gradients(0))
    np.testing.assert_array_equal(slow["conv.weight"], fast["conv.weight"])
    moved = (fast["conv.bias"] - start()["conv.bias"]) / (slow["conv.bias"] - start()["conv.bias"])
    np.testing.assert_allclose(moved, 10)
    frozen = start()
    AdamW(frozen, 0.1, weight_decay=0.5).step({"conv.bias": gradients(0)["conv.bias"]})
    np.testing.assert_array_equal(frozen["conv.weight"], start()["conv.weight"])


@pytest.mark.parametrize("make", [lambda p: SGD(p, 0.1, momentum=0.9), lambda p: AdamW(p, 0.1), lambda p: RMSProp(p, 0.1)])
def test_a_run_that_stops_and_goes_on_is_the_same_run(make):
    whole = make(start())
    for step in range(6):
        whole.step(gradients(step))
    first = make(start())
    for step in range(3):
        first.step(gradients(step))
    second = make({name: array.copy() for name, array in first.parameters.items()})
    second.load_state_dict({key: array.copy() for key, array in first.state_dict().items()})
    for step in range(3, 6):
        second.step(gradients(step))
    for name, array in whole.parameters.items():
        np.testing.assert_array_equal(second.parameters[name], array)


def test_float32_stays_float32():
    for make in (lambda p: SGD(p, 0.1, momentum=0.9), lambda p: AdamW(p, 0.1), lambda p: RMSProp(p, 0.1)):
        optimizer = make(start(np.float32))
        optimizer.step({name: gradient.astype(np.float32) for name, gradient in gradients(0).items()})
        kept = [array for state in optimizer.state.values() for array in state.values()]
        assert {array.dtype.name for array in (*kept, *optimizer.parameters.values())} == {"float32"}


def test_what_cannot_be():
    with pytest.raises(ValueError, match="nothing to learn"):
        SGD({}, 0.1)
    with pytest.raises(TypeError, match=r"pass dict\(model.named_parameters\(\)\)"):
        SGD(iter(start().values()), 0.1)
    with pytest.raises(ValueError, match="must not be negative"):
        SGD(start(), -0.1)
    with pytest.raises(ValueError, match="nesterov looks ahead along the momentum"):
        SGD(start(), 0.1, nesterov=True)
    with pytest.raises(ValueError, match=r"no parameter matches the group 'head\.\*'"):
        SGD(start(), 0.1, scales={"head.*": 2.0})
    optimizer = SGD(start(), 0.1)
    with pytest.raises(KeyError, match=r"does not have the parameter 'other': ask backward\(..., parameters="):
        optimizer.step({"other": np.zeros(3)})
    bad = gradients(0)
    bad["conv.bias"][1] = np.nan
    with pytest.raises(FloatingPointError, match=r"gradient of conv\.bias is NaN or infinite at step 1"):
        optimizer.step(bad)
    np.testing.assert_array_equal(optimizer.parameters["conv.weight"], start()["conv.weight"])  # nothing moved


def test_moving_average():
    average = MovingAverage({"w": np.zeros(3), "n": np.array(0)}, decay=0.5)
    expected = 0.0
    for step in range(20):
        average.update({"w": np.full(3, step + 1.0), "n": np.array(step)})
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step + 1.0)
    np.testing.assert_allclose(average.average["w"], expected)
    assert average.average["n"] == 19


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda p: SGD(p, 3e-3, momentum=0.9), lambda p: torch.optim.SGD(p, 3e-3, 0.9)),
        (lambda p: AdamW(p, 1e-3, weight_decay=0.0), lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=0.0)),
    ],
    ids=["sgd", "adamw"],
)
def test_thirty_steps_of_training_beside_pytorch(ours, theirs):
    """Batch statistics, dropout off. float64: losses and final weights; float32: as close to that as PyTorch's own is."""
    config = tiny_config()
    labels = np.arange(6) % 5
    losses, weights = {}, {}
    for dtype in (np.float64, np.float32):
        hf, mine = both(config, dtype, training=True)
        optimizer, reference = ours(dict(mine.named_parameters())), theirs(hf.parameters())
        losses[dtype] = [], []
        for step in range(30):
            x = pixels(config, 6, seed=step % 2).astype(dtype)
            gradient = backward(mine, x, labels, pixel_gradient=False)
            optimizer.step(gradient.parameters)
            reference.zero_grad()
            loss = hf(torch.from_numpy(x), labels=torch.from_numpy(labels)).loss
            loss.backward()
            reference.step()
            losses[dtype][0].append(float(gradient.loss))
            losses[dtype][1].append(loss.item())
        weights[dtype] = mine.state_dict(), state_of(hf)
    assert losses[np.float64][1][-1] < 0.7 * losses[np.float64][1][0]  # it learns

    def distance(a, b):
        """Of all final weights together, relative to how far they are from 0."""
        keys = [key for key in b if "tracked" not in key]
        square = sum(float(((a[key].astype(np.float64) - b[key]) ** 2).sum()) for key in keys)
        return math.sqrt(square / sum(float((b[key].astype(np.float64) ** 2).sum()) for key in keys))

    exact_losses, exact = losses[np.float64][1], weights[np.float64][1]
    np.testing.assert_allclose(losses[np.float64][0], exact_losses, rtol=1e-9)
    assert distance(weights[np.float64][0], exact) <= 1e-9
    mine, own = (np.abs(np.array(losses[np.float32][side]) - exact_losses).max() for side in (0, 1))
    assert mine <= 3 * own + 1e-5
    assert distance(weights[np.float32][0], exact) <= 3 * distance(weights[np.float32][1], exact) + 1e-6
    print(
        f"float32 losses: ours {mine:.1e} off, PyTorch {own:.1e}; weights {distance(weights[np.float32][0], exact):.1e}, "
        f"{distance(weights[np.float32][1], exact):.1e}; float64 {distance(weights[np.float64][0], exact):.1e}"
    )
