"""classify(): a picture in, labels and scores out."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from effnet_np import hub, ops
from effnet_np.image_io import MAX_PIXELS, load_image
from effnet_np.model import EfficientNetForImageClassification
from effnet_np.module import Module

DEFAULT_MODEL = "lite0"  # embedded: installed with the package, needs no network
FUNCTIONS = {"softmax": ops.softmax, "sigmoid": ops.sigmoid, "none": lambda logits: logits}

_kept: dict[tuple, _Kept] = {}  # the model of the last call, for the next one
_runners: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()  # kept models -> what runs them
_hinted: list[str] = []  # the hint that was given, once in a process
_lock = threading.Lock()
if hasattr(os, "register_at_fork"):  # a child must not inherit a lock that another thread of its parent holds

    def _new_lock() -> None:
        global _lock
        _lock = threading.Lock()

    os.register_at_fork(after_in_child=_new_lock)

Prediction = dict[str, Any]


def classify(
    images: Any,
    model: str | os.PathLike | EfficientNetForImageClassification = DEFAULT_MODEL,
    top_k: int | None = 5,
    *,
    batch_size: int = 8,
    function_to_apply: str | None = None,
    backend: str = "auto",
    max_pixels: int = MAX_PIXELS,
    **hub_options: Any,
) -> list[Prediction] | list[list[Prediction]]:
    """What is in a picture: [{"label": "tiger cat", "score": 0.39}, ...], the highest score first, at most `top_k`.

    images: a path, bytes, a binary file object, a PIL image or an array (see `image_io.load_image` for what each means), or a
    list of them (or an array (N, H, W, C)): then a list of such lists comes back, in order, `batch_size` images at a time.
    model: "lite0" (embedded), "b0".."b7" or another hub id, a folder or file, or a model that carries its `image_processor`.
    The scores are softmax probabilities, or sigmoid ones for one label and for multi-label models, or as
    `function_to_apply` ("softmax", "sigmoid", "none") says. backend: "numpy", "numba" (the compiled kernels), or "auto": the
    kernels where their machine code is on disk already, otherwise NumPy at once, and a hint. Raises FileNotFoundError,
    TypeError or ValueError.
    """
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be None or at least 1, got {top_k}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if function_to_apply is not None and function_to_apply not in FUNCTIONS:
        raise ValueError(f"function_to_apply must be None or one of {', '.join(FUNCTIONS)}, got {function_to_apply!r}")
    if not set(hub_options) <= set(hub.OPTIONS):
        raise TypeError(f"classify() has no option {', '.join(sorted(set(hub_options) - set(hub.OPTIONS)))}")
    runner = get_runner(model, backend, **hub_options)
    many = isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4  # PIL images have no ndim
    queue = list(images) if many else [images]
    results: list[list[Prediction]] = []
    for first in range(0, len(queue), batch_size):
        batch = [preprocess(runner, image, max_pixels) for image in queue[first : first + batch_size]]
        results += predict(runner, batch, top_k, function_to_apply)
    return results if many else results[0]


def get_runner(source: Any, backend: str = "auto", **hub_options: Any) -> Any:
    """What answers for the model that `source` names: itself, or its compiled form, which is kept with it.

    A model that is passed as an object answers itself unless backend="numba" is asked for, which then compiles it at each
    call: compile it once with `effnet_np.compile`, and pass that.
    """
    from effnet_np.kernels.backend import BACKENDS, choose

    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    model = get_model(source, **hub_options)
    if model is source:
        return choose(model, "numba")[0] if backend == "numba" and isinstance(model, Module) else model
    if model not in _runners or backend not in _runners[model]:
        runner, hint = choose(model, backend)
        if hint is not None:  # not kept: the kernels may be warm at the next call
            if not _hinted:
                _hinted.append(hint)
                warnings.warn(hint, UserWarning, stacklevel=3)
            return runner
        _runners.setdefault(model, {})[backend] = runner
    return _runners[model][backend]


def get_model(source: Any, **hub_options: Any) -> EfficientNetForImageClassification:
    """The model that `source` names, loaded, or kept from the last call if its files have not changed since."""
    if not isinstance(source, (str, os.PathLike)):
        classifies = hasattr(source, "classifier") or getattr(source, "classifies", False)  # the second: compiled
        if not classifies or getattr(source, "image_processor", None) is None:
            wanted = "a name, a path, or an image classifier with its image_processor set"
            raise TypeError(f"model must be {wanted}; this {type(source).__name__} does not know its preprocessing")
        return source
    key = (os.fspath(source), tuple(sorted(hub_options.items())))
    with _lock:
        if key in _kept and _kept[key].is_current():  # the hub is not asked again
            return _kept[key].model
        path = hub.resolve(source, weights=True, **hub_options)
        fingerprint = _fingerprint(path)  # before loading: a change during it shows at the next call
        model = EfficientNetForImageClassification.from_pretrained(path)
        if model.image_processor is None:
            hint = "add its preprocessor_config.json, or pass a model whose image_processor you have set"
            raise ValueError(f"{source} does not say how its images are preprocessed: {hint}")
        _kept.clear()  # one model is kept, not every model of a long session
        _kept[key] = _Kept(path, fingerprint, model)
        return model


@dataclass(frozen=True)
class _Kept:
    path: Path
    fingerprint: tuple
    model: EfficientNetForImageClassification

    def is_current(self) -> bool:
        return self.path.exists() and _fingerprint(self.path) == self.fingerprint


def _fingerprint(path: Path) -> tuple:
    entries: Iterable[Path] = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = ((entry.name, entry.stat()) for entry in entries if entry.is_file())
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats)


def preprocess(model: EfficientNetForImageClassification, image: Any, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """One picture of any accepted kind -> network input (C, H, W)."""
    pixels = load_image(image, model.config.num_channels, max_pixels)
    return model.image_processor([pixels], input_data_format="channels_last")["pixel_values"][0]


def predict(model, batch: list[np.ndarray], top_k: int | None, function_to_apply: str | None = None) -> list[list[Prediction]]:
    """Network inputs -> for each the labels by falling score."""
    if len({inputs.shape for inputs in batch}) > 1:  # a processor that does not resize
        return [prediction for inputs in batch for prediction in predict(model, [inputs], top_k, function_to_apply)]
    return ranked(model.config, model(np.stack(batch), return_dict=True).logits, top_k, function_to_apply)


def ranked(config: Any, logits: np.ndarray, top_k: int | None, function_to_apply: str | None = None) -> list[list[Prediction]]:
    """Logits (N, num_labels) -> for each row the labels by falling score."""
    if function_to_apply is None:
        sigmoid = config.problem_type == "multi_label_classification" or config.num_labels == 1
        function_to_apply = "sigmoid" if sigmoid else "softmax"
    if not np.isfinite(logits).all():
        raise ValueError("the network's output is not finite: its weights are damaged, or do not fit its configuration")
    scores = FUNCTIONS[function_to_apply](logits)
    results = []
    for row in scores:
        order = np.argsort(-row, kind="stable")[:top_k]
        results.append([{"label": config.id2label[int(index)], "score": float(row[index])} for index in order])
    return results
