"""`effnet-np warmup`: compile the kernels once, and leave their machine code on disk for every later process."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable

from effnet_np.kernels import library


def warmup(quiet: bool = False, training: bool = False) -> int:
    """Compile what is not compiled yet, with progress on stderr. Gives the command's exit status, 1 where nothing is kept.

    training: the kernels that learn, too.
    """
    return max(_warm(quiet, part) for part in (library.FORWARD, *([library.TRAINING] if training else [])))


def _warm(quiet: bool, part: str) -> int:
    what = "the kernels of training" if part else "the kernels"
    if library.kernels_cached(part):
        library.addresses(part=part)  # which also notices a damaged file, and compiles then
        _say(quiet, f"{what} are compiled already: {library.cache_file(part)}")
        return 0
    started = time.perf_counter()
    progress, end = (None, lambda: None) if quiet else _progress()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        library.addresses(progress, part)
    end()
    for warning in caught:
        print(f"effnet-np: warning: {warning.message}", file=sys.stderr)
    try:
        kept = library.cache_file(part).is_file()
    except OSError:  # no home folder: the warning said so
        kept = False
    if not kept:
        return 1
    _say(quiet, f"compiled in {time.perf_counter() - started:.0f} s, kept in {library.cache_file(part)}")
    return 0


def _say(quiet: bool, text: str) -> None:
    if not quiet:
        print(text, file=sys.stderr)


def _progress() -> tuple[Callable[[int, int, str], None], Callable[[], None]]:
    """What is called with (done, total, name), and what to call at the end: a bar with tqdm, lines without."""
    try:
        from tqdm import tqdm
    except ImportError:

        def line(done: int, total: int, name: str) -> None:
            if name:
                print(f"compiling kernel {done + 1} of {total}: {name}", file=sys.stderr)

        return line, lambda: None
    bar = tqdm(total=1, desc="compiling kernels", unit="kernel", file=sys.stderr)

    def step(done: int, total: int, name: str) -> None:
        bar.total, bar.n = total, done
        bar.set_postfix_str(name)
        bar.refresh()

    return step, bar.close
