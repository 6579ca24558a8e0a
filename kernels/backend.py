"""Which code answers: the kernels or the NumPy model. Imports nothing before it is asked, so that NumPy alone stays quick."""

from __future__ import annotations

import os

BACKENDS = ("auto", "numpy", "numba")
HINT = "NumPy answers; `effnet-np warmup` compiles the kernels once, and then the answer takes a fraction of the time"


def choose(model, backend: str = "auto", threads: int | None = None):
    """(what to call, a hint for the user or None): the model itself, or its compiled form.

    "auto" compiles where the kernels' machine code is already on disk, and otherwise answers with NumPy at once and hints at
    warm-up. "numba" compiles whatever it takes, and raises ImportError where Numba is missing or refuses this NumPy.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "numpy" or callable(model.config.hidden_act):
        return model, None
    if backend == "auto":
        try:
            from effnet_np.kernels import library
        except ImportError:  # no llvmlite: the extra "numba" is not installed
            return model, None
        if not library.kernels_cached():
            return model, HINT if _numba_works() else None
    try:
        from effnet_np.kernels.compiled import CompiledEfficientNet
    except ImportError as error:
        raise ImportError(f"the numba backend needs Numba ({error}): pip install 'effnet_np[numba]'") from error
    return CompiledEfficientNet(model, threads), None


def learns(model, backend: str = "auto") -> bool:
    """Whether the kernels of training are what a model learns with: by the same choice, of what they can and where they are."""
    if backend == "numpy" or callable(model.config.hidden_act):
        return False
    if backend == "auto":
        try:
            from effnet_np.kernels import library
        except ImportError:
            return False
        return library.kernels_cached() and library.kernels_cached(library.TRAINING)
    return True


def _numba_works() -> bool:
    """Whether warm-up would have a compiler. Looks only whether it is there: importing it takes half a second."""
    from importlib.util import find_spec

    return find_spec("numba") is not None and os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")
