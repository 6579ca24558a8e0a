"""from_pretrained: an opened checkpoint, the configuration that it names, and a model that takes its numbers.

Names and shapes are compared as sets, and only when all of them fit are numbers read, one tensor at a time.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from effnet_np.checkpoints import hub
from effnet_np.checkpoints.checkpoint import Checkpoint
from effnet_np.checkpoints.files import naming
from effnet_np.checkpoints.h5_writer import hash_tensor
from effnet_np.config_checks import num_weights
from effnet_np.hf_config import EfficientNetConfig
from effnet_np.identify import fitting, identify
from effnet_np.images.processor import EfficientNetImageProcessor, find_processor
from effnet_np.match import Match, match
from effnet_np.weights.foreign import HF

HEAD = ("classifier.weight", "classifier.bias")


def load_model(cls: type, source: str | os.PathLike, ignore_mismatched_sizes: bool, options: dict[str, Any]) -> Any:
    """`cls.from_pretrained`: see there."""
    hub_options, overrides = hub.split_options(options)
    seed, allow_nonfinite = overrides.pop("seed", None), overrides.pop("allow_nonfinite", False)
    given, processor = overrides.pop("config", None), find_processor(overrides.pop("image_processor", None))
    dtype = wanted_dtype(overrides.pop("torch_dtype", None), overrides.pop("dtype", None))
    architecture = overrides.pop("architecture", None)
    with Checkpoint(hub.resolve(source, weights=True, **hub_options), architecture) as checkpoint:
        config, preprocessing = _config(checkpoint, given, overrides)
        wanted = num_weights(config, classifier=not ignore_mismatched_sizes)  # a fresh one is not in the file
        if wanted > 2 * checkpoint.numbers + 1_000_000:  # said before such a network is built
            described = f"describes a network of {wanted} numbers, but the weights have {checkpoint.numbers}"
            raise ValueError(f"the configuration of {checkpoint.path} {described}")
        model = cls(config, seed, initialize=False).to(dtype)
        found = _match(model.state_dict(), checkpoint, ignore_mismatched_sizes)
        if found.fresh:
            model.initialize(seed)
        _fill(model.state_dict(), checkpoint, found, allow_nonfinite)
        if processor is None and preprocessing is not None:
            with naming(checkpoint.path):
                processor = EfficientNetImageProcessor.from_dict(preprocessing)
        if processor is not None:
            model.image_processor = processor
    return model


def _config(
    checkpoint: Checkpoint, given: EfficientNetConfig | None, overrides: dict[str, Any]
) -> tuple[EfficientNetConfig, dict[str, Any] | None]:
    """The configuration that the caller gave, or the source's own, with the caller's overrides; and the processor's options."""
    described, preprocessing = checkpoint.config, checkpoint.image_processor
    if given is not None:
        described = given.to_dict()
    elif checkpoint.foreign is not None:
        found, options = identify(checkpoint.foreign, EfficientNetConfig.preset)
        described, preprocessing = found.to_dict(), preprocessing or options
    if described is None:
        hint = "; or say which it is: architecture='b0', for example" if checkpoint.dialect is HF else ""
        text = f"{checkpoint.path} has no config.json beside its weights, so its network is not known{hint}"
        raise FileNotFoundError(text)
    with naming(checkpoint.path):
        return EfficientNetConfig.from_dict(described, **overrides), preprocessing


def _match(own: Mapping[str, np.ndarray], checkpoint: Checkpoint, ignore_mismatched_sizes: bool) -> Match:
    """Which tensors are copied. Raises ValueError where they do not fit, warns of what starts fresh or was unwrapped."""
    checkpoint.rename_for(own)
    if checkpoint.unwrapped:
        warnings.warn(f"{checkpoint.weights_path}: read {checkpoint.unwrapped}", UserWarning, stacklevel=4)
    found = match({name: array.shape for name, array in own.items()}, checkpoint.shapes)
    # Files older than PyTorch 0.4.1 do not count batches, and no inference needs the count.
    found.missing = [name for name in found.missing if not name.endswith("num_batches_tracked")]
    shapes = found.misshapen
    if ignore_mismatched_sizes:
        found.start_fresh([*shapes, *HEAD])
    only_head = {*found.missing, *found.misshapen} <= set(HEAD)
    hint = "\nTo start with a fresh classifier in its place, pass ignore_mismatched_sizes=True." if only_head else ""
    found.refuse(f"the checkpoint {checkpoint.weights_path}", hint or _what_it_is(checkpoint))
    if found.fresh:
        differ = [f"{name} (the file: {shapes[name][1]}, the model: {shapes[name][0]})" if name in shapes else
                  f"{name} (not in the file, the model: {own[name].shape})" for name in found.fresh]  # fmt: skip
        more = f" and {len(differ) - 10} more" if len(differ) > 10 else ""
        fresh = f"not taken from {checkpoint.weights_path} but drawn anew, so to be trained: {', '.join(differ[:10])}{more}"
        warnings.warn(fresh, UserWarning, stacklevel=4)
    return found


def _what_it_is(checkpoint: Checkpoint) -> str:
    """Where a foreign checkpoint does not fit the network that was named: those that it does fit."""
    fits = fitting(checkpoint.foreign, EfficientNetConfig.preset) if checkpoint.foreign is not None else []
    return f"\nBy its names and shapes it is {' or '.join(fits)} of {checkpoint.dialect.library}." if fits else ""


def _fill(own: Mapping[str, np.ndarray], checkpoint: Checkpoint, found: Match, allow_nonfinite: bool) -> None:
    """Copy the numbers in, in the order of names, in which the digest of an .h5 file was made."""
    digest = hashlib.sha256()
    for name in sorted(found.copy):
        numbers = checkpoint.read(name)
        hash_tensor(digest, name, numbers)
        _copy(own[name], numbers, checkpoint.describe(name), allow_nonfinite)
        if name.endswith("running_var") and (own[name] < 0).any():
            raise ValueError(f"{checkpoint.describe(name)} has negative variances: the file is damaged")
    everything = len(found.copy) == len(checkpoint.shapes) == len(own)
    if everything and checkpoint.sha256 and digest.hexdigest() != checkpoint.sha256:
        raise ValueError(f"{checkpoint.path} is damaged: its tensors do not have the sha256 that it was written with")


def _copy(target: np.ndarray, numbers: np.ndarray, name: str, allow_nonfinite: bool) -> None:
    """numbers -> target, of float or int64. NaN and infinity, also those that float64 becomes in float32, are refused."""
    if numbers.dtype.kind != target.dtype.kind:
        raise ValueError(f"{name} holds {numbers.dtype}, where {target.dtype} is expected")
    with np.errstate(over="ignore", invalid="ignore"):
        target[...] = numbers
    if not allow_nonfinite and not np.isfinite(target).all():
        raise ValueError(f"{name} holds NaN or infinite numbers; to load it all the same, pass allow_nonfinite=True")


def wanted_dtype(*wishes: Any) -> np.dtype:
    """What HF's `torch_dtype` or `dtype` asks for, by name or as torch's or NumPy's: float32 (None and "auto", too) or float64.

    Raises TypeError for all else.
    """
    for wish in wishes:
        name = str(getattr(wish, "__name__", wish)).removeprefix("torch.")
        if name in ("float64", "double"):
            return np.dtype(np.float64)
        if name not in ("None", "auto", "float32", "float"):
            also = "files in half precision are read as float32, number for number"
            raise TypeError(f"torch_dtype={name[:80]}: a model computes in float32 (or float64) here; {also}: leave it out")
    return np.dtype(np.float32)
