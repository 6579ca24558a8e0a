"""A network of ours in another library's file: renamed, turned, and written whole or not at all.

`.safetensors` and, where PyTorch is installed, `.pth` for the libraries on PyTorch; `.weights.h5` as Keras 3 writes it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from effnet_np.checkpoints.files import replacing
from effnet_np.checkpoints.h5_writer import save_keras_h5
from effnet_np.weights.dialect import DEPTHWISE, LINEAR, NORM, Block, Dialect, kind_of

CLASSES = {LINEAR: "dense", NORM: "batch_normalization", DEPTHWISE: "depthwise_conv2d"}  # of Keras' layers; else conv2d
TORCH_SUFFIXES = (".safetensors", ".pth")
KERAS_SUFFIX = ".weights.h5"


def foreign_state(state: Mapping[str, np.ndarray], dialect: Dialect, blocks: Iterable[Block]) -> dict[str, np.ndarray]:
    """A classifier's state dict under the library's names and in its layout, in our order."""
    names = dialect.tensor_names(dialect.modules(blocks))
    found = {}
    for ours, array in state.items():
        if ours in names:  # Keras does not count batches
            axes = dialect.transposition(ours)
            found[names[ours]] = array.transpose(np.argsort(axes)) if axes else array
    return found


def save_torch(state: Mapping[str, np.ndarray], path: str | os.PathLike) -> None:
    """A state dict as .safetensors or, by PyTorch, which must be installed, as .pth. Raises ValueError for another ending."""
    path = Path(path)
    arrays = {name: np.array(array, order="C") for name, array in state.items()}
    if path.suffix == ".safetensors":
        from safetensors.numpy import save

        data = save(arrays, metadata={"format": "pt"})
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    elif path.suffix == ".pth":
        try:
            import torch
        except ImportError as error:
            raise ImportError("a .pth file is written by PyTorch: pip install torch, or write .safetensors") from error
        with replacing(path) as temporary:
            torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, temporary)
    else:
        raise ValueError(f"the output must end in {' or '.join(TORCH_SUFFIXES)}, got {path}")


def save_keras(
    state: Mapping[str, np.ndarray], path: str | os.PathLike, ours: Mapping[str, str], statistics: Mapping[str, np.ndarray]
) -> None:
    """Keras' weights {"layer.variable": array} as `.weights.h5`; `ours` are our modules by layer, which say its class.

    statistics: "mean", "variance" and "count" of its layer Normalization, or nothing, for a model whose layer holds its own.
    """
    if not os.fspath(path).endswith(KERAS_SUFFIX):
        raise ValueError(f"the output must end in {KERAS_SUFFIX}, got {path}")
    arrays: dict[str, np.ndarray] = {}
    named: dict[str, str] = {}
    counts: dict[str, int] = {}
    for layer, module in ours.items():
        variables = {name.rpartition(".")[2]: array for name, array in state.items() if name.rpartition(".")[0] == layer}
        kind = CLASSES.get(kind_of(module), "conv2d")
        number = counts[kind] = counts.get(kind, -1) + 1
        group = f"layers/{kind}_{number}/vars" if number else f"layers/{kind}/vars"
        named[group] = layer
        order = [name for name in ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance") if name in variables]
        arrays |= {f"{group}/{index}": variables[name] for index, name in enumerate(order)}
    if statistics:
        named["layers/normalization/vars"] = "normalization"
        arrays |= {f"layers/normalization/vars/{index}": array for index, array in enumerate(statistics.values())}
    save_keras_h5(path, arrays, named)
