"""What the tests share: networks whose activations live, in PyTorch and here, and a comparison that can fail.

A freshly initialised EfficientNet is dead: the logits of HF's B0 have a standard deviation of 1e-26, and any absolute
tolerance passes. So weights are drawn such that every layer keeps its scale, the scale is asserted, NaN fails first, and
tolerances are relative to the largest number of the reference.
"""

from pathlib import Path

import numpy as np
import torch
import transformers
from lively import enliven
from transformers.activations import ACT2CLS

import effnet_np

IMAGES = Path(__file__).parent.parent / "notebooks" / "images"
CHELSEA, COFFEE = IMAGES / "chelsea.png", IMAGES / "coffee.png"
TOLERANCE = 1e-4

# HF's documentation offers "selu", its table of activations lacks it.
transformers.activations.ACT2FN.setdefault("selu", ACT2CLS.setdefault("selu", torch.nn.SELU))


def hf_model(config: effnet_np.EfficientNetConfig, seed: int = 0, backbone: bool = False) -> torch.nn.Module:
    """HF's model for one of our configurations, enlivened."""
    fields = config.to_dict()
    hf_config = transformers.EfficientNetConfig(**{key: fields[key] for key in fields if key != "model_type"})
    cls = transformers.EfficientNetModel if backbone else transformers.EfficientNetForImageClassification
    return enliven(cls(hf_config), seed)


def state_of(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}


def pair(config: effnet_np.EfficientNetConfig, seed: int = 0, backbone: bool = False):
    """(HF's model, ours) with the same live weights."""
    theirs = hf_model(config, seed, backbone)
    cls = effnet_np.EfficientNetModel if backbone else effnet_np.EfficientNetForImageClassification
    ours = cls(config, initialize=False)
    ours.load_state_dict(state_of(theirs))
    return theirs, ours


def pixels(config, batch: int = 1, height: int | None = None, width: int | None = None, seed: int = 0) -> np.ndarray:
    height = height or config.image_size
    shape = (batch, config.num_channels, height, width or height)
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def run_hf(model, pixel_values: np.ndarray, **options):
    with torch.no_grad():
        return model(torch.from_numpy(pixel_values), **options)


def relative_error(ours, theirs) -> float:
    """Largest difference, relative to the largest number of the reference."""
    theirs = theirs.numpy() if isinstance(theirs, torch.Tensor) else theirs
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def assert_same(ours, theirs, name: str = "", tolerance: float = TOLERANCE, alive: bool = True) -> None:
    """Finite, of the same shape and dtype, the reference neither vanished nor exploded, and then: close."""
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
    assert isinstance(ours, (np.ndarray, np.generic)), f"{name}: {type(ours)}"
    assert ours.shape == theirs.shape, f"{name}: shape {ours.shape}, expected {theirs.shape}"
    assert ours.dtype == theirs.dtype, f"{name}: dtype {ours.dtype}, expected {theirs.dtype}"
    assert np.isfinite(theirs).all(), f"{name}: the reference is not finite"
    assert np.isfinite(ours).all(), f"{name}: not finite"
    if alive:
        assert 1e-2 < np.abs(theirs).max() < 1e3, f"{name}: the reference does not live, its largest is {np.abs(theirs).max()}"
    error = relative_error(ours, theirs)
    assert error <= tolerance, f"{name}: differs by {error:.2e} of the largest number, allowed {tolerance:.0e}"


def tiny_config(**fields) -> effnet_np.EfficientNetConfig:
    """B0 at an eighth of its width: every kind of layer, in milliseconds."""
    defaults = {"width_coefficient": 0.125, "image_size": 64, "num_labels": 5}
    defaults["hidden_dim"] = effnet_np.architecture.round_filters(1280, fields.get("width_coefficient", 0.125))
    return effnet_np.EfficientNetConfig.preset("b0", **(defaults | fields))
