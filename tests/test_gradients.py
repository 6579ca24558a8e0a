"""Each derivative against PyTorch's autograd in both dtypes, and against finite differences on random shapes in float64."""

import ast
import inspect

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from effnet_np import ops
from effnet_np.training import gradients

TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}  # of the largest number


def draw(shapes, dtype, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(shape).astype(dtype) for shape in shapes]


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


def check(name, theirs, *shapes, options=(), scale=1.0, tolerance=TOLERANCE):
    """gradients.name of random arrays is what autograd gives for `theirs`; `options` are what follows the arrays."""
    for dtype in (np.float32, np.float64):
        arrays = [array * dtype(scale) for array in draw(shapes, dtype)]
        tensors = [torch.from_numpy(array.copy()).requires_grad_() for array in arrays]
        y = theirs(*tensors)
        dy = np.random.default_rng(1).standard_normal(y.shape).astype(dtype)
        y.backward(torch.from_numpy(dy))
        for array in (dy, *arrays):
            array.flags.writeable = False
        ours = as_tuple(getattr(gradients, name)(dy[()], *arrays, *options))
        for index, (gradient, tensor) in enumerate(zip(ours, tensors, strict=False)):
            reference = tensor.grad.numpy()
            assert gradient.shape == reference.shape, f"argument {index}"
            assert gradient.dtype == dtype, f"argument {index}"
            error = np.abs(gradient - reference).max() / max(np.abs(reference).max(), 1e-3)
            assert error <= tolerance[dtype], f"argument {index}: {error:.1e} of the largest"


def test_a_derivative_for_each_operation_in_the_same_order():
    def functions(module):
        return [node.name for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.FunctionDef)]

    extra = {"elementwise", "sum_of_channels"}
    helpers = {"pieces", "in_pieces"}
    assert [name for name in functions(gradients) if name not in extra] == [
        name for name in functions(ops) if name not in helpers
    ]


# -- against autograd -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (0, 1, 0, 1), (2, 2, 2, 2), (-1, 0, -1, 2)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", ["full", "pointwise", "depthwise"])
def test_convolution(kind, stride, padding):
    top, bottom, left, right = padding
    groups = 6 if kind == "depthwise" else 1
    kernel = 1 if kind == "pointwise" else 3
    weight = (6, 1, 3, 3) if kind == "depthwise" else (8, 6, kernel, kernel)

    def theirs(x, w, b):
        return F.conv2d(F.pad(x, (left, right, top, bottom)), w, b, stride=stride, groups=groups)

    check("conv2d", theirs, (2, 6, 9, 12), weight, weight[:1], options=(stride, padding, groups))


def test_depthwise_in_more_than_one_cache_block():
    assert ops.CACHE_BLOCK < 130 * 130 * 20

    def theirs(x, w):
        return F.conv2d(x, w, stride=2, groups=20)

    check("conv2d", theirs, (1, 20, 130, 131), (20, 1, 5, 5), options=(None, 2, (0, 0, 0, 0), 20))


def test_batch_norm_with_stored_statistics():
    for dtype in (np.float32, np.float64):
        x, dy, mean, weight, bias = draw([(3, 5, 7, 6)] * 2 + [(5,)] * 3, dtype)
        variance = np.abs(draw([(5,)], dtype, 7)[0]) + dtype(0.1)
        tensors = [torch.from_numpy(array.copy()).requires_grad_() for array in (x, mean, variance, weight, bias)]
        t, m, v, w, b = (tensor if tensor.ndim == 4 else tensor[:, None, None] for tensor in tensors)
        ((t - m) / torch.sqrt(v + 1e-3) * w + b).backward(torch.from_numpy(dy))
        for ours, tensor in zip(gradients.batch_norm(dy, x, mean, variance, weight, bias, 1e-3), tensors, strict=True):
            assert np.abs(ours - tensor.grad.numpy()).max() <= TOLERANCE[dtype] * tensor.grad.abs().max().item()


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_batch_norm_with_the_batchs_statistics(offset):
    """batch_statistics' share is what makes the sum over a channel of dx zero; an offset must not cost digits."""
    for dtype in (np.float32, np.float64):
        x, dy, weight, bias = draw([(3, 5, 7, 6)] * 2 + [(5,)] * 2, dtype)
        x += dtype(offset)
        tensors = [torch.from_numpy(array.copy()).double().requires_grad_() for array in (x, weight, bias)]
        F.batch_norm(tensors[0], None, None, tensors[1], tensors[2], training=True, eps=1e-3).backward(torch.from_numpy(dy))
        mean, variance = ops.batch_statistics(x)
        dx, dmean, dvariance, dweight, dbias = gradients.batch_norm(dy, x, mean, variance, weight, bias, 1e-3)
        dx = dx + gradients.batch_statistics((dmean, dvariance), x)
        for ours, tensor in zip((dx, dweight, dbias), tensors, strict=True):
            assert np.abs(ours - tensor.grad.numpy()).max() <= 10 * TOLERANCE[dtype] * tensor.grad.abs().max().item()


@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
def test_activations(scale):
    theirs = {name: getattr(F, name, None) for name in ops.ACTIVATIONS if name != "silu"} | {  # the same function as swish
        "sigmoid": torch.sigmoid,
        "swish": F.silu,
        "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
        "softplus": F.softplus,
        "erf": torch.erf,
    }
    assert {function.__name__ for function in ops.ACTIVATIONS.values()} <= set(theirs)
    for name, function in theirs.items():
        # torch's softplus is x beyond 20, and float32 mish and gelu lose digits where they are nearly 0 or 1
        loose = {np.float32: 2e-5, np.float64: 1e-8 if name == "softplus" else 1e-12}
        check(name, function, (2, 5, 33, 21), scale=scale, tolerance=loose)
    check("swish", F.silu, (3, ops.CACHE_BLOCK + 7))


def test_conventions_at_the_kinks_are_pytorchs():
    points = np.array([0.0, 6.0, -0.0, np.nan, np.inf, -np.inf])
    for name, theirs in (("relu", F.relu), ("relu6", F.relu6), ("selu", F.selu)):
        tensor = torch.tensor(points[:3]).requires_grad_()
        theirs(tensor).sum().backward()
        np.testing.assert_allclose(getattr(gradients, name)(np.ones(3), points[:3]), tensor.grad.numpy(), err_msg=name)


def test_a_function_of_ones_own():
    def square(x):
        return x * x

    with pytest.raises(ValueError, match="derivative of the activation square is not known: set its attribute"):
        gradients.custom(np.ones(3), np.arange(3.0), square)
    square.derivative = lambda x: 2 * x
    np.testing.assert_array_equal(gradients.custom(np.ones(3), np.arange(3.0), square), [0, 2, 4])


def test_pools_products_sums_and_linear():
    check("global_average_pool", lambda x: F.adaptive_avg_pool2d(x, 1), (2, 5, 7, 9))
    check("global_max_pool", lambda x: F.adaptive_max_pool2d(x, 1), (2, 5, 7, 9))
    check("pad2d", lambda x: F.pad(x, (-1, 2, 3, 0)), (2, 3, 6, 7), options=((3, 0, -1, 2),))
    check("flatten", lambda x: x.reshape(2, 5), (2, 5, 1, 1))
    check("scale_channels", lambda x, g: x * g, (2, 5, 7, 9), (2, 5, 1, 1))
    check("add", lambda x, y: x + y, (2, 5, 7, 9), (2, 5, 7, 9))
    check("linear", F.linear, (3, 20), (7, 20), (7,))
    check("linear", F.linear, (3, 20), (7, 20))
    keep = np.random.default_rng(2).random((3, 20)) >= 0.3
    check("dropout", lambda x: x * torch.from_numpy(keep) / 0.7, (3, 20), options=(keep, 0.3))


def test_the_first_of_several_maxima_gets_the_gradient():
    x = np.array([[[[1.0, 3.0], [3.0, 2.0]]]])
    np.testing.assert_array_equal(gradients.global_max_pool(np.full((1, 1, 1, 1), 5.0), x), [[[[0, 5], [0, 0]]]])


def test_softmax_and_losses():
    check("softmax", lambda x: F.softmax(x, -1), (4, 10), scale=3)
    check("log_softmax", lambda x: F.log_softmax(x, -1), (4, 10), scale=3)
    labels = np.array([3, 0, -100, 9])
    for smoothing in (0.0, 0.1):
        expected = {"target": torch.from_numpy(labels), "label_smoothing": smoothing}
        check("cross_entropy", lambda x, e=expected: F.cross_entropy(x, **e), (4, 10), options=(labels, -100, smoothing))
        x = draw([(4, 10)], np.float64)[0]
        theirs = F.cross_entropy(torch.from_numpy(x), **expected).item()
        assert abs(ops.cross_entropy(x, labels, label_smoothing=smoothing) - theirs) < 1e-12
    check("mse_loss", F.mse_loss, (4, 10), (4, 10))
    check("bce_with_logits", F.binary_cross_entropy_with_logits, (4, 10), (4, 10), scale=3)


def test_what_nobody_needs_is_not_computed():
    x, weight, dy = draw([(2, 6, 5, 5), (6, 1, 3, 3), (2, 6, 3, 3)], np.float32)
    dx, dweight, dbias = gradients.conv2d(dy, x, weight, None, 1, (0, 0, 0, 0), 6, needs=(False, True, False))
    assert (dx, dbias) == (None, None)
    assert dweight.shape == weight.shape
    assert gradients.conv2d(dy, x, weight, None, 1, (0, 0, 0, 0), 6, needs=(True, False, False))[1] is None


# -- against finite differences ---------------------------------------------------------------------------------------


def check_differences(name, arrays, *options, learn=None, step=1e-5):
    """d/dt f(x + t v), as the gradient says and as (f(x + h v) - f(x - h v)) / 2h does, for a random direction v."""
    function, generator = getattr(ops, name), np.random.default_rng(5)
    y = function(*arrays, *options)
    dy = generator.standard_normal(np.shape(y[0] if isinstance(y, tuple) else y))
    dy = (dy, generator.standard_normal(dy.shape)) if isinstance(y, tuple) else dy
    found = as_tuple(getattr(gradients, name)(dy if isinstance(dy, tuple) else dy[()], *arrays, *options))

    def loss(moved):
        y = as_tuple(function(*moved, *options))
        return sum((a * b).sum() for a, b in zip(y, as_tuple(dy), strict=True))

    for index in range(len(arrays)) if learn is None else learn:
        direction = generator.standard_normal(arrays[index].shape)
        sides = [
            loss([array + sign * step * direction if i == index else array for i, array in enumerate(arrays)])
            for sign in (1, -1)
        ]
        numeric, exact = (sides[0] - sides[1]) / (2 * step), (found[index] * direction).sum()
        size = np.sqrt((found[index] ** 2).sum() * (direction**2).sum()) + 1e-3
        assert abs(numeric - exact) <= 1e-6 * size, f"{name}, argument {index}: {exact} but differences say {numeric}"


@st.composite
def convolutions(draw):
    kind = draw(st.sampled_from(["full", "pointwise", "depthwise"]))
    n, c, o = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    kernel = (1, 1) if kind == "pointwise" else (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    padding = tuple(draw(st.integers(-2, 3)) for _ in range(4))
    height, width = draw(st.integers(kernel[0] + 4, 12)), draw(st.integers(kernel[1] + 4, 12))
    weight = (c, 1, *kernel) if kind == "depthwise" else (o, c, *kernel)
    return (n, c, height, width), weight, draw(st.integers(1, 3)), padding, c if kind == "depthwise" else 1


@settings(max_examples=150, deadline=None, derandomize=True)
@given(convolutions(), st.booleans())
def test_convolution_by_differences(case, with_bias):
    shape, weight, stride, padding, groups = case
    arrays = draw([shape, weight, weight[:1]], np.float64)
    if with_bias:
        check_differences("conv2d", arrays, stride, padding, groups)
    else:
        check_differences("conv2d", arrays[:2], None, stride, padding, groups)


SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SHAPES, st.integers(0, 1000))
def test_the_rest_by_differences(shape, seed):
    x, other, mean, variance, weight, bias, gate = draw([shape, shape, *[shape[1:2]] * 4, (*shape[:2], 1, 1)], np.float64, seed)
    check_differences("batch_norm", [x, mean, variance**2 + 0.5, weight, bias], 1e-3)
    check_differences("batch_statistics", [x])
    check_differences("global_average_pool", [x])
    check_differences("global_max_pool", [x], step=1e-7)
    check_differences("scale_channels", [x, gate])
    check_differences("add", [x, other])
    check_differences("softmax", [x])
    check_differences("log_softmax", [x])
    check_differences("mse_loss", [x, other], learn=[0])
    check_differences("bce_with_logits", [x, other], learn=[0])
    for name in ("sigmoid", "swish", "gelu", "gelu_new", "mish", "softplus", "erf"):
        check_differences(name, [x])
    away = x + np.sign(x) * 1e-3  # from the kink at 0
    for name in ("relu", "relu6", "selu"):
        check_differences(name, [away])
    rows = x.reshape(-1, shape[-1])
    labels = np.random.default_rng(seed).integers(0, shape[-1], len(rows))
    check_differences("cross_entropy", [rows], labels, -100, 0.1)
    check_differences("linear", [rows, np.random.default_rng(seed).standard_normal((3, shape[-1])), np.ones(3)])
