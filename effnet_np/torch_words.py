"""The words that PyTorch's users are used to: on a module, and in `.to(...)`. The one device is the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from effnet_np.module_tree import tree

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


class TorchWords:
    """What people call on a torch.nn.Module and a reader of module.py need not know."""

    if TYPE_CHECKING:
        to: Any
        named_parameters: Any
        named_modules: Any
        named_children: Any

    def cpu(self) -> Any:
        return self

    def float(self) -> Any:
        return self.to(np.float32)

    def double(self) -> Any:
        return self.to(np.float64)

    def half(self) -> Any:
        """Always raises TypeError: there is no half precision here."""
        return self.to(np.float16)

    def bfloat16(self) -> Any:
        """Always raises TypeError, as `half`."""
        return self.to("bfloat16")

    def cuda(self, device: Any = None) -> Any:
        """Always raises ValueError: there is no GPU here."""
        raise ValueError(no_device("cuda()"))

    def parameters(self) -> Iterator[np.ndarray]:
        yield from (array for _, array in self.named_parameters())

    def children(self) -> Iterator[Any]:
        yield from (child for _, child in self.named_children())

    def modules(self) -> Iterator[Any]:
        yield from (module for _, module in self.named_modules())

    def __repr__(self) -> str:
        """The tree of modules as PyTorch prints it, as deep as a screen has lines."""
        return tree(self)
