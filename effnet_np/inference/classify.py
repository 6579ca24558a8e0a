"""classify(): a picture in, labels and scores out."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import threading
import warnings
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from effnet_np.checkpoints import hub
from effnet_np.images.io import MAX_PIXELS, is_picture
from effnet_np.images.processor import find_processor
from effnet_np.inference.stream import FUNCTIONS, KINDS, check_errors, stream
from effnet_np.model import EfficientNetForImageClassification
from effnet_np.module import Module
from effnet_np.printable import printable

DEFAULT_MODEL = "lite0"  # embedded: installed with the package, needs no network
NO_PROCESSOR = """it has no preprocessor_config.json. Say which preprocessing its weights were trained with, for example B0's:
    classify(..., image_processor="b0"), or on the shell --processor b0
or once and for all: EfficientNetImageProcessor.preset("b0").save_pretrained(folder)"""

_kept: dict[tuple, _Kept] = {}  # the model of the last call, for the next one
_runners: weakref.WeakKeyDictionary[Any, dict[tuple, Any]] = weakref.WeakKeyDictionary()  # kept models -> what runs them
_hinted: list[str] = []  # the hint that was given, once in a process
_lock = threading.Lock()
if hasattr(os, "register_at_fork"):  # a child must not inherit a lock that another thread of its parent holds

    def _new_lock() -> None:
        global _lock
        _lock = threading.Lock()

    os.register_at_fork(after_in_child=_new_lock)


def classify(
    images: Any,
    model: str | os.PathLike | EfficientNetForImageClassification = DEFAULT_MODEL,
    top_k: int | None = 5,
    *,
    batch_size: int = 8,
    function_to_apply: str | None = None,
    errors: str = "raise",
    backend: str = "auto",
    threads: int | None = None,
    image_processor: Any = None,
    max_pixels: int = MAX_PIXELS,
    **hub_options: Any,
) -> Any:
    """What is in a picture: [{"label": "tiger cat", "index": 282, "score": 0.39}, ...], the `top_k` highest scores.

    images: a path, bytes, a binary file object, a PIL image or an array (see `images.io.load_image` for what each means), or a
    list of them (or an array (N, H, W, C)): then a list of such lists comes back, in order. Any other iterable of them, such as
    a generator, may be endless: then a lazy iterator comes back, in order, which reads some dozens of images ahead.
    model: "lite0" (embedded), "b0".."b7" or another hub id, a folder or file, or a model that carries its `image_processor`.
    The scores are softmax probabilities, or sigmoid ones for one label and for multi-label models, or as
    `function_to_apply` ("softmax", "sigmoid", "none") says. backend: "numpy", "numba" (the compiled kernels), or "auto": the
    kernels where their machine code is on disk already, otherwise NumPy at once, and a hint. threads: of the kernels, by
    default all cores. image_processor: a processor, "b0".."b7", "lite0", a folder or a file, in place of the one that comes
    with the weights. errors: "raise" ends at the first image that fails with FileNotFoundError, TypeError, ValueError or
    MemoryError, which names the image of a list; "return" gives the exception in the place of its predictions. hub_options:
    as in `from_pretrained`, and `architecture`, by another library's name, for a file of weights that does not say it.
    """
    if top_k is not None:
        check_count("top_k", top_k, "None or ")
    check_count("batch_size", batch_size)
    check_errors(errors)
    check_count("max_pixels", max_pixels)
    if function_to_apply is not None and function_to_apply not in FUNCTIONS:
        raise ValueError(f"function_to_apply must be None or one of {', '.join(FUNCTIONS)}, got {function_to_apply!r}")
    unknown = set(hub_options) - {*hub.OPTIONS, "architecture"}
    if unknown:
        raise TypeError(f"classify() has no option {', '.join(sorted(unknown))}")
    runner = get_runner(model, backend, threads, image_processor, **hub_options)
    answers = partial(
        stream,
        runner,
        top_k=top_k,
        function_to_apply=function_to_apply,
        batch_size=batch_size,
        max_pixels=max_pixels,
    )
    if isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4:  # PIL images have no ndim
        return list(answers(list(images), errors=errors))
    if isinstance(images, Iterable) and not is_picture(images):
        return answers(images, errors=errors)
    try:
        (answer,) = answers([images], errors=errors)
        return answer
    except KINDS as error:
        named = error
    raise named.__cause__ or named  # without "images[0]": there is no list


def check_count(name: str, value: Any, also: str = "") -> None:
    """Raise TypeError or ValueError where an argument is no whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be {also}a whole number of at least 1, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be {also}at least 1, got {value}")


# -- models -----------------------------------------------------------------------------------------------------------


def get_runner(
    source: Any,
    backend: str = "auto",
    threads: int | None = None,
    image_processor: Any = None,
    features: bool = False,
    **hub_options: Any,
) -> Any:
    """What answers for the model that `source` names: itself, or its compiled form, which is kept with it.

    features: its backbone in its place, for the pooled features.

    A model that is passed as an object answers itself unless backend="numba" is asked for, which then compiles it at each
    call: compile it once with `effnet_np.compile`, and pass that.
    """
    from effnet_np.kernels.backend import BACKENDS, choose

    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if threads is not None:
        check_count("threads", threads, "None or ")
    model: Any = get_model(source, image_processor, **hub_options)
    if threads is not None and (backend == "numpy" or (model is source and backend == "auto")):
        hint = "pass effnet_np.compile(model, threads=...)" if model is source else "OPENBLAS_NUM_THREADS is NumPy's"
        raise ValueError(f"threads is for the compiled kernels, and they are not what answers here: {hint}")
    named = model is not source
    if features and hasattr(model, "efficientnet"):
        model.efficientnet.image_processor = model.image_processor
        model = model.efficientnet
    if not named:
        return choose(model, "numba", threads)[0] if backend == "numba" and isinstance(model, Module) else model
    key = (backend, threads)
    if key not in _runners.get(model, {}):
        runner, hint = choose(model, backend, threads)
        if hint is not None:  # not kept: the kernels may be warm at the next call
            if not _hinted:
                _hinted.append(hint)
                warnings.warn(hint, UserWarning, stacklevel=3)
            return runner
        if runner is model and threads is not None:  # Numba is missing, or refuses this NumPy
            warnings.warn("threads is for the compiled kernels, and NumPy answers here", UserWarning, stacklevel=3)
        _runners.setdefault(model, {})[key] = runner
    return _runners[model][key]


def get_model(source: Any, image_processor: Any = None, **hub_options: Any) -> EfficientNetForImageClassification:
    """The model that `source` names, loaded, or kept from the last call if its files have not changed since."""
    if not isinstance(source, (str, os.PathLike)):
        if image_processor is not None:
            raise TypeError("image_processor is for a model given by its name or path: set model.image_processor of this one")
        classifies = hasattr(source, "classifier") or getattr(source, "classifies", False)  # the second: compiled
        if not classifies or getattr(source, "image_processor", None) is None:
            wanted = "a name, a path, or an image classifier with its image_processor set"
            raise TypeError(f"model must be {wanted}; this {type(source).__name__} does not know its preprocessing")
        return source
    processor = find_processor(image_processor)
    key = (os.fspath(source), repr(processor), tuple(sorted(hub_options.items())))
    with _lock:
        if key in _kept and _kept[key].is_current():  # the hub is not asked again
            return _kept[key].model
        architecture = hub_options.pop("architecture", None)
        path = hub.resolve(source, weights=True, **hub_options)
        fingerprint = _fingerprint(path)  # before loading: a change during it shows at the next call
        model = EfficientNetForImageClassification.from_pretrained(path, architecture=architecture)
        if processor is not None:
            model.image_processor = processor
        if model.image_processor is None:
            raise ValueError(f"{source} does not say how its images are preprocessed: {NO_PROCESSOR}")
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
    found = []
    for entry in sorted(path.iterdir()) if path.is_dir() else [path]:
        with contextlib.suppress(FileNotFoundError):  # a save that goes on has renamed it: the next look sees that
            if stat.S_ISREG((facts := entry.stat()).st_mode):
                found.append((entry.name, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns))
    return tuple(found)


# -- classes ----------------------------------------------------------------------------------------------------------


def find_class(config: Any, name: Any) -> int:
    """The index of a class: itself, also as text ("281"), or of the label that is called so, whole or one of its synonyms.

    Labels are compared without regard to case. Raises ValueError for an index out of range, and, with the labels that come
    close, for a name that no class has or several have.
    """
    text = str(name).strip()
    if text.removeprefix("-").isdecimal() or not isinstance(name, str):
        if isinstance(name, bool) or not text.isdecimal() or len(text) > 18 or int(text) >= config.num_labels:
            raise ValueError(f"class_index must lie between 0 and {config.num_labels - 1}, got {name!r:.80}")
        return int(text)
    labels = {index: str(label) for index, label in config.id2label.items()}
    wanted = text.casefold()
    found = [index for index, label in labels.items() if label.casefold() == wanted]
    found = found or [index for index, label in labels.items() if wanted in _synonyms(label)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{len(found)} classes are called {text!r}; give the index: {_listed(labels, found)}")
    close = [index for index, label in labels.items() if wanted in label.casefold()]
    close.sort(key=lambda index: wanted not in re.split(r"\W+", labels[index].casefold()))  # whole words first
    if not close:
        spellings = {synonym: index for index, label in labels.items() for synonym in _synonyms(label)}
        close = list(dict.fromkeys(spellings[match] for match in get_close_matches(wanted, spellings, 5)))
    hint = f"; close to it: {_listed(labels, close)}" if close else ""
    raise ValueError(f"no class is called {text!r}{hint}")


def _synonyms(label: str) -> list[str]:
    """ImageNet's labels list several names: "tabby, tabby cat"."""
    return [synonym.strip() for synonym in label.casefold().split(",")]


def _listed(labels: dict[int, str], indices: list[int]) -> str:
    shown = "; ".join(printable(f"{index} {labels[index]:.60}") for index in indices[:8])
    return shown + (f"; and {len(indices) - 8} more" if len(indices) > 8 else "")
