"""stream(): pictures without an end -> labels, logits, features or pixel values; in order, in bounded memory."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from functools import partial
from typing import Any

import numpy as np

from effnet_np import ops
from effnet_np.images.io import MAX_PIXELS, load_image
from effnet_np.images.processor import EfficientNetImageProcessor
from effnet_np.inference.pipeline import run
from effnet_np.kernels.cores import default_threads
from effnet_np.module import Module

OUTPUTS = ("labels", "logits", "features", "pixel_values")
ERRORS = ("raise", "return")
FUNCTIONS = {"softmax": ops.softmax, "sigmoid": ops.sigmoid, "none": lambda logits: logits}
WINDOW = 24  # sources that are read ahead, for each thread: those of three calls of a compiled network,
LARGEST_WINDOW = 63  # and in all: the first result of an endless iterator comes before its 64th picture is read
AT_ONCE = 8  # pictures that a thread preprocesses in one go, where that is all, if so many wait

# Of what a picture may be at fault for; anything else is a fault of ours.
KINDS = (FileNotFoundError, IsADirectoryError, PermissionError, OSError, TypeError, MemoryError, ValueError)

Prediction = dict[str, Any]


def stream(
    runner: Any,
    sources: Iterable[Any],
    output: str = "labels",
    *,
    top_k: int | None = 5,
    function_to_apply: str | None = None,
    batch_size: int = 8,
    errors: str = "raise",
    threads: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Any]:
    """For each picture, in order, its result: a lazy iterator, which reads at most some dozens of sources ahead of it.

    runner: what `get_runner` gives: a model or a compiled one, with its `image_processor`. sources: pictures of any kind that
    `images.io.load_image` takes. output: "labels" (a list of `top_k` predictions), "logits" (num_labels,), "pixel_values"
    (C, H, W), or "features": pooled, (hidden_dim,), of a runner that `get_runner(..., features=True)` gave.
    errors: "raise" ends with the first picture that fails, and names it; "return" gives the exception in its place.
    batch_size: of the NumPy model; the kernels take each picture by itself. threads: how many prepare pictures and, compiled,
    answer; by default the runner's, or all cores. Sources are read in the thread that reads the results; closing or dropping
    the iterator ends the others.
    """
    if output not in OUTPUTS:
        raise ValueError(f"output must be one of {', '.join(OUTPUTS)}, got {output!r}")
    check_errors(errors)
    answer = partial(_answer, output=output, top_k=top_k, function_to_apply=function_to_apply)
    lanes, group, threads, window, most = _divide(runner, sources, output, batch_size, threads)
    prepare = partial(preprocess, runner, max_pixels=max_pixels)
    names: deque[Any] = deque()  # of the sources that are on their way
    results = run(_noting(sources, names), prepare, [partial(answer, lane) for lane in lanes], group, threads, window, most)
    return _in_turn(results, names, errors)


def check_errors(errors: Any) -> None:
    """Raise ValueError for what says nothing about errors."""
    if errors not in ERRORS:
        raise ValueError(f'errors must be "raise" or "return", got {errors!r}')


def _divide(
    runner: Any, sources: Any, output: str, batch_size: int, threads: int | None
) -> tuple[list[Any], int, int, int, int]:
    """(what answers at the same time, pictures in a group, threads, pictures read ahead, groups for a call at most)"""
    threads = threads or getattr(runner, "threads", None) or default_threads()
    if isinstance(sources, Sized):
        threads = min(threads, len(sources))
    if threads <= 1 and isinstance(sources, Sized) and len(sources) <= 1:
        return [runner], 1, 0, 1, 1  # by the caller's thread
    lanes, group, most = [runner], min(batch_size, sys.maxsize), 1
    if output == "pixel_values":
        lanes, group, most = [runner] * threads, 1, AT_ONCE
    elif hasattr(runner, "lanes") and (twins := runner.lanes(threads)) != [runner]:
        lanes, group, most = twins, 1, runner.together
    return lanes, group, threads, max(2 * group, min(WINDOW * threads, LARGEST_WINDOW)), most


def _noting(sources: Iterable[Any], names: deque) -> Iterator[Any]:
    for source in sources:
        names.append(source if isinstance(source, (str, os.PathLike)) else None)
        yield source


def _in_turn(results: Generator[Any, None, None], names: deque, errors: str) -> Iterator[Any]:
    with contextlib.closing(results):  # at once: an exception that is kept keeps this frame
        for index, result in enumerate(results):
            name = names.popleft()
            if isinstance(result, BaseException) and (errors == "raise" or not isinstance(result, Exception)):
                raise _naming(result, index, name)
            if isinstance(result, KINDS):
                _let_go(result)
            yield result


def _let_go(error: BaseException) -> None:
    """Take its tracebacks from an exception: they hold what was read and decoded, for as long as somebody keeps it."""
    chain: BaseException | None = error
    while chain is not None and chain.__traceback__ is not None:
        chain.__traceback__ = None
        chain = chain.__cause__ or chain.__context__


def _naming(error: BaseException, index: int, image: Any) -> BaseException:
    """The same kind of exception, with the image of the list that it is about."""
    kind = next((kind for kind in KINDS if isinstance(error, kind)), None)
    if kind is None:  # a fault of ours: as it is
        return error
    path = f" ({os.fspath(image)})" if isinstance(image, (str, os.PathLike)) and str(image) not in str(error) else ""
    named = kind(f"images[{index}]{path}: {error}")
    named.__cause__ = error
    return named


# -- one picture ------------------------------------------------------------------------------------------------------


def preprocess(model: Any, image: Any, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """One picture of any accepted kind -> network input (C, H, W)."""
    pixels = load_pixels(model, image, max_pixels, gaps=hasattr(model, "network_input"))
    if type(model.image_processor) is EfficientNetImageProcessor:
        return getattr(model, "network_input", model.image_processor.network_input)(pixels)
    return model.image_processor([pixels], input_data_format="channels_last")["pixel_values"][0]


def load_pixels(model: Any, image: Any, max_pixels: int = MAX_PIXELS, gaps: bool = False) -> np.ndarray:
    """One picture of any accepted kind -> uint8 (H, W, C), of as many channels as the model takes; `gaps`: see `load_image`."""
    if isinstance(image, str) and image.lower().startswith(("http://", "https://")):
        hint = f"on the shell, effnet-np classify {shlex.quote(image)} does; in Python, pass what urllib.request.urlopen gives"
        raise ValueError(f"{image} is an address, and effnet_np fetches no pictures here: {hint}")
    return load_image(image, model.config.num_channels, max_pixels, gaps)


# -- answers ----------------------------------------------------------------------------------------------------------


def _answer(model: Any, inputs: list[np.ndarray], output: str, top_k: int | None, function_to_apply: str | None) -> list[Any]:
    """Network inputs -> for each what is asked for."""
    if output == "pixel_values":
        return inputs
    if len({array.shape for array in inputs}) > 1:  # a processor that does not resize
        return [_answer(model, [array], output, top_k, function_to_apply)[0] for array in inputs]
    network = _backbone(model) if output == "features" else model
    if hasattr(network, "of_each"):
        logits = network.of_each(inputs)
    else:
        pixel_values = np.stack(inputs) if len(inputs) > 1 else inputs[0][None]
        answer = network(pixel_values, return_dict=True)
        logits = answer.pooler_output if output == "features" else answer.logits
    if output == "features":
        return _finite(logits)
    return _finite(logits) if output == "logits" else ranked(model.config, logits, top_k, function_to_apply)


def _backbone(model: Any) -> Callable:
    backbone = getattr(model, "efficientnet", model) if isinstance(model, Module) else model
    if getattr(backbone, "classifies", False):
        raise TypeError("a compiled classifier keeps no features: compile its backbone, get_runner(..., features=True)")
    return backbone


def _finite(rows: np.ndarray) -> list[np.ndarray]:
    if not np.isfinite(rows).all():
        raise ValueError("the network's output is not finite: its weights are damaged, or do not fit its configuration")
    return list(rows)


def ranked(config: Any, logits: np.ndarray, top_k: int | None, function_to_apply: str | None = None) -> list[list[Prediction]]:
    """Logits (N, num_labels) -> for each row the labels by falling score."""
    if function_to_apply is None:
        sigmoid = config.problem_type == "multi_label_classification" or config.num_labels == 1
        function_to_apply = "sigmoid" if sigmoid else "softmax"
    scores = FUNCTIONS[function_to_apply](np.stack(_finite(logits)))
    return [
        [{"label": config.id2label[index], "index": index, "score": score} for index, score in best_of(row, top_k)]
        for row in scores
    ]


def best_of(row: np.ndarray, top_k: int | None) -> list[tuple[int, float]]:
    """(index, score) of the `top_k` highest scores, or of all, by falling score; of equal ones the lower index first."""
    falling = -row
    among = np.arange(len(row))
    if top_k is not None and top_k < len(row):  # to sort a few is quicker than to sort all
        among = np.flatnonzero(falling <= np.partition(falling, top_k - 1)[top_k - 1])
    order = among[np.argsort(falling[among], kind="stable")[:top_k]]
    return list(zip(order.tolist(), row[order].tolist(), strict=True))
