"""What the tests against timm, torchvision, lukemelas' package, geffnet and Keras share; without these libraries they skip.

The libraries are the extra `test-families`. They want an environment of their own: beside torch 2.13 torchvision's compiled
operators do not load, and transformers, which the other tests need, fails where torchvision is there.
"""

import functools
import importlib.util
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from lively import enliven  # noqa: F401  (the families' tests ask here)

os.environ.setdefault("KERAS_BACKEND", "torch")
LIBRARIES = ("torchvision", "timm", "efficientnet_pytorch", "geffnet", "keras")
IMAGES = Path(__file__).parent.parent / "notebooks" / "images"
PHOTOGRAPHS = [IMAGES / name for name in ("chelsea.png", "coffee.png", "rocket.jpg")]
TOLERANCE = 1e-4


def require():
    """Skip the module that calls this, saying what is missing, where one of the libraries is not installed."""
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        hint = "in an environment of its own: pip install --no-deps, and the names in setup.cfg's extra test-families"
        pytest.skip(f"not installed: {', '.join(missing)} ({hint})", allow_module_level=True)
    declare_operators()


@functools.cache  # PyTorch takes them once
def declare_operators():
    """Name torchvision's operators, which its Python asks for when it is imported. Its models and timm's call none of them."""
    folder = Path(importlib.util.find_spec("torchvision").origin).parent
    names = {name for path in folder.rglob("*.py") for name in re.findall(r"torchvision::([a-z_0-9]+)", path.read_text())}
    library = torch.library.Library("torchvision", "DEF")
    for name in sorted(names):
        library.define(f"{name}(Tensor x) -> Tensor")
    declare_operators.library = library  # the names go when it does


def enliven_keras(model, seed=0):
    """The same for a model of Keras; its Normalization gets ImageNet's statistics."""
    generator = np.random.default_rng(seed)
    for layer in model.layers:
        filled = []
        for variable, array in zip(layer.weights, layer.get_weights(), strict=True):
            shape, name = array.shape, variable.name
            fan = np.prod(shape[:2] if "Depthwise" in type(layer).__name__ else shape[:-1])
            filled.append(
                {
                    "kernel": lambda shape, fan: generator.standard_normal(shape) * fan**-0.5,
                    "gamma": lambda shape, fan: 1 + 0.2 * generator.standard_normal(shape),
                    "beta": lambda shape, fan: 0.2 * generator.standard_normal(shape),
                    "moving_mean": lambda shape, fan: 0.1 * generator.standard_normal(shape),
                    "moving_variance": lambda shape, fan: 0.5 + 0.5 * generator.random(shape),
                    "mean": lambda shape, fan: np.reshape([0.485, 0.456, 0.406], shape),
                    "variance": lambda shape, fan: np.reshape(np.square([0.229, 0.224, 0.225]), shape),
                    "count": lambda shape, fan: np.zeros(shape),
                    "bias": lambda shape, fan: 0.1 * generator.standard_normal(shape),
                }[name](shape, fan)
            )
        layer.set_weights(filled)
    return model


def noise(size, seed=0):
    shape = (1, 3, *size) if isinstance(size, tuple) else (1, 3, size, size)
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def run(model, x, modules=()):
    """(the model's output, the outputs of those modules)"""
    found = []
    hooks = [module.register_forward_hook(lambda _, inputs, output: found.append(output.numpy().copy())) for module in modules]
    with torch.no_grad():
        output = model(torch.from_numpy(x)).numpy()
    for hook in hooks:
        hook.remove()
    return output, found


def assert_same(ours, theirs, name="", tolerance=TOLERANCE):
    """Finite, of the same shape and dtype, the reference neither vanished nor exploded, and then: close."""
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), name
    assert np.isfinite(theirs).all(), f"{name}: the reference is not finite"
    assert np.isfinite(ours).all(), f"{name}: not finite"
    assert 1e-2 < np.abs(theirs).max() < 1e3, f"{name}: the reference does not live, its largest is {np.abs(theirs).max()}"
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert error <= tolerance, f"{name}: differs by {error:.2e} of the largest number, allowed {tolerance:.0e}"
    return error
