"""What the notebooks share besides their figures: photographs, digits, an untrained network, tests of your own functions."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps

import effnet_np
from effnet_np.hf_config import EfficientNetConfig
from effnet_np.images.io import SUFFIXES, load_image
from effnet_np.inference.stream import preprocess
from effnet_np.layers import BatchNorm2d, Conv2d, Linear
from effnet_np.model import EfficientNetForImageClassification
from effnet_np.training.folder import read_folder

REPOSITORY = "effnet-np/effnet_np"  # owner/name on GitHub: the links that open a notebook ready to run come from here
BRANCH = "main"
IMAGES = Path(__file__).parent / "images"


class Photo(NamedTuple):
    """One photograph of the course, and what a person would call it."""

    file: str
    accepted: frozenset[str] = frozenset()  # ImageNet's words that a person would accept; none where it has no word for it
    colour: bool = True


PHOTOS = {
    "cat": Photo("chelsea.png", frozenset({"tabby", "tiger cat", "Egyptian cat"})),
    "coffee": Photo("coffee.png", frozenset({"espresso", "cup", "coffee mug"})),
    "camera": Photo("camera.png", frozenset({"tripod", "reflex camera"}), colour=False),
    "rocket": Photo("rocket.jpg", frozenset({"missile", "projectile"})),
    "pagoda": Photo("pagoda.jpg", frozenset({"palace", "bell cote", "monastery", "stupa"})),
    "dahlia": Photo("dahlia.jpg"),
    "astronaut": Photo("astronaut.jpg"),
    "retina": Photo("retina.jpg"),
    "galaxies": Photo("hubble.jpg"),
    "bricks": Photo("brick.jpg", colour=False),
    "grass": Photo("grass.jpg", colour=False),
    "gravel": Photo("gravel.jpg", colour=False),
}


def photographs(model: EfficientNetForImageClassification, folder: str | Path | None = None) -> dict[str, np.ndarray]:
    """{name: network input (3, H, W)}: the course's twelve, and after them all pictures of a folder of your own."""
    files = {name: IMAGES / photo.file for name, photo in PHOTOS.items()}
    if folder is not None:
        own = [path for path in sorted(Path(folder).expanduser().iterdir()) if path.suffix.lower() in SUFFIXES]
        if not own:
            raise FileNotFoundError(f"there is no picture in {folder}: expected files such as photo.jpg or photo.png")
        files |= {path.stem: path for path in own}
    return {name: preprocess(model, path) for name, path in files.items()}


def digits() -> tuple[np.ndarray, np.ndarray]:
    """600 handwritten digits, 60 of each: pictures (600, 8, 8) of 0 to 16, labels (600,)."""
    with np.load(IMAGES / "digits.npz") as file:
        return file["pictures"], file["labels"].astype(np.int64)


def as_input(pictures: np.ndarray, size: int) -> np.ndarray:
    """Digits (N, 8, 8) as network input (N, 3, size, size), each pixel a square; dark is -1, bright 1."""
    scaled = pictures.astype(np.float32) / 8 - 1
    return np.repeat(scaled.repeat(size // 8, axis=1).repeat(size // 8, axis=2)[:, None], 3, axis=1)


class Task(NamedTuple):
    """Pictures to learn classes from: network input (N, 3, S, S), labels (N,), the classes' names, which are held out (N,)."""

    pictures: np.ndarray
    labels: np.ndarray
    names: list[str]
    held_out: np.ndarray

    def drawn(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Network input and labels of `count` pictures a class, of those that are not held out."""
        shuffled = np.random.default_rng(seed).permutation(np.flatnonzero(~self.held_out))
        rows = np.concatenate([shuffled[self.labels[shuffled] == label][:count] for label in range(len(self.names))])
        return self.pictures[rows], self.labels[rows]

    def judges(self) -> tuple[np.ndarray, np.ndarray]:
        """Network input and labels of the pictures that are held out."""
        return self.pictures[self.held_out], self.labels[self.held_out]


def digit_task(size: int = 64) -> Task:
    """The 600 digits, size x size: of each, 30 to learn from and 30 held out."""
    pictures, labels = digits()
    held_out = np.zeros(len(labels), bool)
    for label in range(10):
        held_out[np.flatnonzero(labels == label)[30:]] = True
    return Task(as_input(pictures, size), labels, [str(label) for label in range(10)], held_out)


def patch_task(size: int = 64, count: int = 30, seed: int = 0) -> Task:
    """Patches size x size, from random places of each photograph: of its left half to learn from, of its right one held out."""
    generator, patches = np.random.default_rng(seed), []
    for photo in PHOTOS.values():
        picture = PIL.Image.open(IMAGES / photo.file).convert("RGB")
        picture.thumbnail((10_000, 288), PIL.Image.Resampling.LANCZOS)  # all 288 high
        pixels = (np.asarray(picture, np.float32).transpose(2, 0, 1) - 127) / 128
        _, height, width = pixels.shape
        for first, last in ((0, width // 2 - size), (width // 2, width - size)):
            for _ in range(count):
                y, x = generator.integers(height - size + 1), generator.integers(first, last + 1)
                patches.append(pixels[:, y : y + size, x : x + size])
    held_out = np.tile(np.repeat([False, True], count), len(PHOTOS))
    return Task(np.stack(patches), np.repeat(np.arange(len(PHOTOS)), 2 * count), list(PHOTOS), held_out)


def own_task(folder: str | Path, size: int = 96, seed: int = 0) -> Task:
    """The middle squares of the pictures in a folder of yours, with a folder for each class; half of each class is held out."""
    found = read_folder(Path(folder).expanduser(), split=0.5, seed=seed)
    squares = []
    for path, _ in [*found.train, *found.val]:
        picture = PIL.Image.fromarray(load_image(path, 3))
        square = PIL.ImageOps.fit(picture, (size, size), PIL.Image.Resampling.BICUBIC)
        squares.append((np.asarray(square, np.float32).transpose(2, 0, 1) - 127) / 128)
    labels = np.array([label for _, label in [*found.train, *found.val]])
    return Task(np.stack(squares), labels, found.classes, np.arange(len(labels)) >= len(found.train))


def compiled(model, **options):
    """effnet_np.compile(model, **options), or without Numba the model itself, which takes the same calls, slowly."""
    try:
        return effnet_np.compile(model, **options)
    except ImportError:
        return model


def untrained(
    pixel_values: np.ndarray, seed: int = 0, residual: bool = True, preset: str = "lite0"
) -> EfficientNetForImageClassification:
    """Lite0 (or another) that has learned nothing, as a control: random weights, and a signal that arrives at the end anyway.

    Weights have the deviation sqrt(2 / inputs) (He et al., arXiv 1502.01852), and each batch norm the statistics of these very
    pictures (N, 3, H, W), so that every layer's numbers have a sane size. Only learning makes the difference.
    `residual=False` leaves the residuals out.
    """
    model = initialised(lambda inputs: np.sqrt(2 / inputs), seed, preset)
    for block in model.efficientnet.encoder.blocks:
        block.projection.residual &= residual
    norms = [module for _, module in model.named_modules() if isinstance(module, BatchNorm2d)]
    for norm in norms:
        norm.training, norm.momentum = True, 1.0
    model(pixel_values)
    for norm in norms:
        norm.training = False
    return model


def initialised(deviation: Callable[[int], float], seed: int = 0, preset: str = "lite0") -> EfficientNetForImageClassification:
    """Lite0 (or another) with random weights of deviation(n), for sums of n products, and batch norms that change nothing."""
    if preset == "lite0":
        model = EfficientNetForImageClassification.from_pretrained("lite0")  # with its labels and image processor
    else:
        model = EfficientNetForImageClassification(EfficientNetConfig.preset(preset), initialize=False)
    generator = np.random.default_rng(seed)
    for _, module in model.named_modules():
        if isinstance(module, (Conv2d, Linear)):
            module.weight[...] = deviation(module.weight[0].size) * generator.standard_normal(module.weight.shape, np.float32)
            if module.bias is not None:
                module.bias[...] = 0
        elif isinstance(module, BatchNorm2d):
            module.weight[...], module.bias[...], module.running_mean[...], module.running_var[...] = 1, 0, 0, 1
    return model


# -- your own functions -----------------------------------------------------------------------------------------------


def check(function: Callable, *cases: tuple) -> bool:
    """Try your function on cases (arguments, expected), and say what is wrong with what it gives, or that it is right."""
    for number, (arguments, expected) in enumerate(cases, start=1):
        where = f"{function.__name__}, case {number} of {len(cases)}"
        try:
            fault = difference(function(*arguments), np.asarray(expected))
        except Exception as error:  # whatever the reader's function does is an answer, too
            fault = f"it stops with {type(error).__name__}: {error}"
        if fault:
            print(f"{where}: {fault}")
            return False
    print(f"{function.__name__}: right, in {len(cases)} cases")
    return True


def difference(found: object, expected: np.ndarray) -> str | None:
    """What is wrong with an array, in words, as far as one can tell from the numbers; None if nothing is."""
    if found is None or found is Ellipsis:
        return "the gap is still open: it gives nothing yet"
    found = np.asarray(found)
    if found.dtype.kind not in "fiub":
        return f"it gives {found.dtype}, expected are numbers"
    if found.shape != expected.shape:
        turned = (
            ", which is the expected one turned around: is something transposed?" if found.shape == expected.T.shape else ""
        )
        return f"its shape is {found.shape}, expected is {expected.shape}{turned}"
    if not np.isfinite(found).all():
        return f"{int((~np.isfinite(found)).sum())} of its numbers are NaN or infinite: a division by zero, or an overflow?"
    scale = max(float(np.abs(expected).max()), 1e-12)
    if close(found, expected, scale):
        return None
    return guess(found.astype(np.float64), expected.astype(np.float64), scale)


def guess(found: np.ndarray, expected: np.ndarray, scale: float) -> str:
    """A mistake that explains the numbers, or the place where they differ most."""
    if found.size == 1:
        return f"it gives {found.item():.5g}, expected is {expected.item():.5g}"
    overlap = float((found * expected).sum()), float((expected * expected).sum())
    factor, offset = overlap[0] / max(overlap[1], 1e-300), float((found - expected).mean())
    if close(found, -expected, scale):
        return "every number has the wrong sign"
    if factor and close(found / factor, expected, scale):
        return f"every number is {factor:.4g} times what it should be"
    if close(found - offset, expected, scale):
        return f"every number is too large by {offset:.4g}" if offset > 0 else f"every number is too small by {-offset:.4g}"
    for axis in range(found.ndim):
        for step in (1, -1):
            if found.shape[axis] > 2 and close(np.roll(found, step, axis), expected, scale):
                return f"everything is shifted by one place along axis {axis}"
    if found.ndim >= 2 and found.shape[-1] == found.shape[-2] and close(found.swapaxes(-1, -2), expected, scale):
        return "rows and columns are exchanged"
    place = np.unravel_index(int(np.abs(found - expected).argmax()), found.shape)
    at = tuple(int(i) for i in place)
    return f"the largest difference is at {at}: it gives {found[place]:.5g}, expected is {expected[place]:.5g}"


def close(a: np.ndarray, b: np.ndarray, scale: float) -> bool:
    return bool((np.abs(a - b) <= 1e-4 * scale).all())


# -- what a page shows ------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """Show Markdown: a sentence whose numbers the cell itself has computed."""
    from IPython.display import Markdown, display

    display(Markdown(text))


def slider(function: Callable, **choices: list) -> None:
    """Call function(name=value) for one choice, with a slider to move it; without ipywidgets, once: a still picture.

    choices: one name and its values; the still picture takes the middle one.
    """
    ((name, values),) = choices.items()
    still = values[len(values) // 2]
    try:
        if os.environ.get("COURSE_STILL"):
            raise ImportError
        import ipywidgets
    except ImportError:
        function(**{name: still})
        return
    handle = ipywidgets.SelectionSlider(options=values, value=still, description=name, continuous_update=False)
    ipywidgets.interact(function, **{name: handle})


def milliseconds(function: Callable[[], object], repeats: int) -> float:
    """The best of some runs: the others were disturbed by something."""
    best = np.inf
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return 1000 * best
