"""`.to(...)` as PyTorch's users write it: the one device here is the CPU, and networks compute in float32 or float64."""

from __future__ import annotations

from typing import Any

import numpy as np

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def wanted_dtype(*args: Any, **kwargs: Any) -> np.dtype | None:
    """The dtype that `to("cpu")`, `to(np.float64)`, `to("cpu", dtype=torch.float32)` ask for; None where they name none.

    Raises ValueError for another device than the CPU, and TypeError for a dtype that networks here do not compute in.
    """
    if not set(kwargs) <= {"device", "dtype", "non_blocking", "copy"}:
        raise TypeError(f"to() has no option {', '.join(sorted(set(kwargs) - {'device', 'dtype', 'non_blocking', 'copy'}))}")
    found = None
    for value in (*args, kwargs.get("device"), kwargs.get("dtype")):
        if value is None or isinstance(value, bool):  # non_blocking, by position
            continue
        name = str(value).removeprefix("torch.")  # torch.float64 is "torch.float64"; torch is not imported for it
        if isinstance(value, int) or type(value).__name__ == "device" or name.split(":")[0] in ("cpu", "cuda", "mps", "xpu"):
            if name.split(":")[0] != "cpu":
                raise ValueError(no_device(f"to({value!r})"))
            continue
        found = _dtype(name if name != str(value) else value)
    return found


def _dtype(value: Any) -> np.dtype:
    try:
        dtype: Any = np.dtype(value)
    except TypeError:
        dtype = value if isinstance(value, str) else f"a {type(value).__name__}"
    if dtype not in DTYPES:
        raise TypeError(
            f"a model computes in float32 or float64, not {dtype}: effnet_np is NumPy on the CPU, without half precision"
        )
    return dtype


def no_device(call: str) -> str:
    """The sentence for a call that asks for another device."""
    return f"effnet_np is NumPy on the CPU, without a GPU: leave out {call}; effnet_np.compile(model) is the fast form there"
