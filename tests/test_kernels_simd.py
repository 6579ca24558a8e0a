"""The vector type and the activations on it, lane by lane against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")
pytest.importorskip("llvmlite")

import os

if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
    pytest.skip("vectors exist only in compiled code", allow_module_level=True)

from numba import njit

from effnet_np import ops
from effnet_np.kernels import activations, simd, sync, table
from effnet_np.kernels.simd import float32xN, int64, staged, void
from effnet_np.kernels.target import BYTES, WIDTH, X86


def elementwise(function):
    """NumPy array in, NumPy array out, for a staged function of one vector."""

    @njit
    def run(source, target, vectors):
        for i in range(vectors):
            simd.store(target + i * BYTES, function(simd.load(source + i * BYTES)))

    def apply(x):
        padded = np.zeros(-(-x.size // WIDTH) * WIDTH, np.float32)
        padded[: x.size] = x
        result = np.empty_like(padded)
        run(padded.ctypes.data, result.ctypes.data, padded.size // WIDTH)
        return result[: x.size]

    return apply


def test_operators_and_fma_work_lane_by_lane():
    @njit
    def run(a, b, c, out):
        x, y, z = simd.load(a), simd.load(b), simd.load(c)
        simd.store(out, x + y)
        simd.store(out + BYTES, x - y)
        simd.store(out + 2 * BYTES, x * y)
        simd.store(out + 3 * BYTES, x / y)
        simd.store(out + 4 * BYTES, simd.fma(x, y, z))
        simd.store(out + 5 * BYTES, simd.maximum(x, y))
        simd.store(out + 6 * BYTES, simd.load_splat(a + 4))

    a, b, c = np.random.default_rng(0).standard_normal((3, WIDTH)).astype(np.float32)
    out = np.zeros(7 * WIDTH, np.float32)
    run(a.ctypes.data, b.ctypes.data, c.ctypes.data, out.ctypes.data)
    expected = [a + b, a - b, a * b, a / b, a * b + c, np.maximum(a, b), np.full(WIDTH, a[1])]
    np.testing.assert_allclose(out.reshape(7, WIDTH), expected, rtol=3e-7, atol=3e-7)


@pytest.mark.skipif(not X86, reason="written for x86's registers")
@pytest.mark.parametrize("count", [1, 3])
def test_what_is_kept_apart_passes_unchanged(count):
    """That it keeps LLVM from spilling shows in the speed alone: tests/compare_kernels.py."""

    @staged(void, int64, int64)
    def write(code, source, target):
        variables = [code.variable(code.load(source, i * BYTES)) for i in range(count)]
        simd.keep_apart(code, variables)
        for i, variable in enumerate(variables):
            code.store(target, variable.get(), i * BYTES)

    @njit
    def run(source, target):
        write(source, target)

    values = np.random.default_rng(0).standard_normal(count * WIDTH).astype(np.float32)
    out = np.zeros_like(values)
    run(values.ctypes.data, out.ctypes.data)
    np.testing.assert_array_equal(out, values)


def test_a_staged_loop_is_unrolled_and_a_loop_of_the_program_is_not():
    @staged(void, int64, int64, int64)
    def sums(code, source, count, target):
        totals = [code.variable(code.vector(0.0)) for _ in range(3)]  # three registers
        with code.loop(count) as i:
            for k in range(3):
                totals[k].set(totals[k].get() + code.load(source + (i * 3 + k) * BYTES))
        for k in range(3):
            code.store(target, totals[k].get(), k * BYTES)

    @njit
    def run(source, count, target):
        sums(source, count, target)

    x = np.random.default_rng(1).standard_normal((7, 3, WIDTH)).astype(np.float32)
    out = np.zeros((3, WIDTH), np.float32)
    run(x.ctypes.data, 7, out.ctypes.data)
    np.testing.assert_allclose(out, x.sum(axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, code in table.CODES.items() if code not in (table.CLAMP, table.SWISH)])
def test_activations_agree_with_the_reference(name):
    number = table.CODES[name]

    @staged(float32xN, float32xN)
    def function(code, x):
        return activations.FUNCTIONS[number](code, x)

    x = np.concatenate([np.linspace(-30, 30, 4001), [0, -0.0, 1e-8, -1e-8, 90, -90, 1e12, -1e12]]).astype(np.float32)
    expected = ops.ACTIVATIONS[name](x.astype(np.float64))
    np.testing.assert_allclose(elementwise(function)(x), expected, rtol=1e-5, atol=2e-6)
    huge = np.array([1e22, 1e30, 3e38], np.float32)
    if name != "gelu_new":  # whose x^3 is infinite there, in NumPy, too
        np.testing.assert_allclose(elementwise(function)(huge), ops.ACTIVATIONS[name](huge), rtol=1e-5)


def test_swish_takes_and_gives_scaled_numbers():
    @staged(float32xN, float32xN)
    def function(code, x):
        return activations.swish(code, x)

    x = np.concatenate([np.linspace(-80, 80, 4001), [0, 200, -200]]).astype(np.float32)
    result = elementwise(function)(x * np.float32(table.INNER)) / np.float32(table.INNER)
    expected = ops.swish(x.astype(np.float64))
    np.testing.assert_allclose(result, expected, rtol=2e-5, atol=1e-6)
    assert np.abs(result - expected).max() < 1e-4


def test_nan_is_not_lost_in_a_clamp():
    @staged(float32xN, float32xN)
    def function(code, x):
        return code.minimum(code.maximum(x, 0.0), 6.0)

    x = np.array([np.nan, -1, 3, 9], np.float32)
    np.testing.assert_array_equal(elementwise(function)(x), [np.nan, 0, 3, 6])


def test_atomics_count_and_exchange():
    @njit
    def run(address):
        first = sync.atomic_add(address, 5)
        second = sync.compare_exchange(address, 5, 9)
        third = sync.compare_exchange(address, 5, 11)
        fourth = sync.atomic_exchange(address, 2)
        return first, second, third, fourth, sync.atomic_load(address)

    word = np.zeros(1, np.int64)
    assert run(word.ctypes.data) == (0, 5, 9, 9, 2)
