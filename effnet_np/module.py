"""The smallest useful Module: parameters, buffers, names, hooks, train/eval. What torch.nn.Module does, short enough to read.

A module owns arrays and other modules. An attribute that is a Module becomes a child, and its attribute name becomes
its name: `model.encoder.blocks[3].expansion.expand_conv` is "encoder.blocks.3.expansion.expand_conv", in the state
dict, in `named_modules()` and in hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from effnet_np.module_tree import tree
from effnet_np.outputs import read_only
from effnet_np.placement import no_device, wanted_dtype


class LoadResult(NamedTuple):
    """What `load_state_dict` did not find, and what it had no place for, as in PyTorch."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Hook:
    """Handle of a registered forward hook; `remove()` takes it off again."""

    def __init__(self, hooks: list[Hook], function: Callable):
        self._hooks, self.function = hooks, function
        hooks.append(self)

    def remove(self) -> None:
        if self in self._hooks:
            self._hooks.remove(self)


class Module:
    """Base of every layer and of the model. A subclass writes `forward`; calling the module runs it and its hooks."""

    def __init__(self):
        self.training = False  # PyTorch starts in training mode; this library is for inference
        self._children: dict[str, Module] = {}
        self._parameters: list[str] = []  # names of attributes that hold arrays which training would change
        self._buffers: list[str] = []  # names of attributes that hold arrays which it would not
        self._forward_pre_hooks: list[Hook] = []
        self._forward_hooks: list[Hook] = []

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Module):
            self._children[name] = value
        super().__setattr__(name, value)

    def add_parameter(self, name: str, value: np.ndarray) -> None:
        self._parameters.append(name)
        setattr(self, name, value)

    def add_buffer(self, name: str, value: np.ndarray) -> None:
        self._buffers.append(name)
        setattr(self, name, value)

    # -- running --------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} does not define forward()")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for hook in list(self._forward_pre_hooks):
            hook.function(self, read_only(args), {key: read_only(value) for key, value in kwargs.items()})
        output = self.forward(*args, **kwargs)
        for hook in list(self._forward_hooks):
            hook.function(self, read_only(args), read_only(output))
        return output

    def register_forward_hook(self, function: Callable[[Module, tuple, Any], None]) -> Hook:
        """Call function(module, inputs, output) after each forward: positional inputs, as PyTorch has it.

        It sees read-only views of all arrays, and what it returns is ignored.
        """
        return Hook(self._forward_hooks, function)

    def register_forward_pre_hook(self, function: Callable[[Module, tuple, dict], None]) -> Hook:
        """Call function(module, args, kwargs) before each forward: PyTorch's hook of this name, with `with_kwargs=True`."""
        return Hook(self._forward_pre_hooks, function)

    def train(self, mode: bool = True) -> Module:
        """Training mode for this module and all below it: batch statistics in BatchNorm2d, and dropout."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Inference mode, the one that a new model is in."""
        return self.train(False)

    # -- names ----------------------------------------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, Module]]:
        yield from self._children.items()

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module under `prefix` ("" by default), then everything below it, parents first, in PyTorch's order."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, np.ndarray]]:
        for prefix, module in self.named_modules():
            for name in module._parameters:
                yield f"{prefix}.{name}" if prefix else name, getattr(module, name)

    def get_submodule(self, name: str) -> Module:
        """The module of that dotted name. Raises KeyError with the names that exist where it stops."""
        module = self
        for part in name.split(".") if name else ():
            if part not in module._children:
                raise KeyError(f"there is no module {name!r}: no {part!r} among {', '.join(module._children) or 'no children'}")
            module = module._children[part]
        return module

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many numbers training would change (buffers do not count): all, whatever HF's two options say."""
        return sum(array.size for _, array in self.named_parameters())

    # -- state ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, np.ndarray]:
        """Every parameter and buffer by name, in PyTorch's order: the arrays themselves, not copies."""
        return {key: getattr(module, name) for key, module, name in self._state()}

    def _state(self) -> Iterator[tuple[str, Module, str]]:
        for prefix, module in self.named_modules():
            for name in module._parameters + module._buffers:
                yield f"{prefix}.{name}" if prefix else name, module, name

    def load_state_dict(self, state: Mapping[str, np.ndarray], strict: bool = True) -> LoadResult:
        """Copy arrays in by name. All keys and shapes are checked, and all faults listed, before a number is copied.

        Raises ValueError for a shape that differs, and, if `strict`, for a key that is missing or unexpected.
        """
        own = {key: (module, name) for key, module, name in self._state()}
        missing = [key for key in own if key not in state]
        unexpected = [key for key in state if key not in own]
        shapes = {key: np.shape(value) for key, value in state.items() if key in own}
        misshapen = [
            f"{key}: expected {getattr(*own[key]).shape}, got {shape}"
            for key, shape in shapes.items()
            if getattr(*own[key]).shape != shape
        ]
        refuse_mismatch(missing if strict else [], unexpected if strict else [], misshapen)
        for key, (module, name) in own.items():
            if key in state:  # into the array that is there: whoever holds it (an optimiser, a state dict) sees the new numbers
                getattr(module, name)[...] = state[key]
        return LoadResult(missing, unexpected)

    # -- what PyTorch's users call --------------------------------------------------------------------------------

    def to(self, *args: Any, **kwargs: Any) -> Module:
        """Turn every floating parameter and buffer into float32 or float64, in place; give the module back.

        "cpu" and torch.device("cpu") change nothing. Raises ValueError for another device, TypeError for another dtype.
        """
        dtype = wanted_dtype(*args, **kwargs)
        for _, module, name in self._state() if dtype is not None else ():
            array = getattr(module, name)
            if array.dtype.kind == "f":
                setattr(module, name, array.astype(dtype, copy=False))
        return self

    def cpu(self) -> Module:
        return self

    def float(self) -> Module:
        return self.to(np.float32)

    def double(self) -> Module:
        return self.to(np.float64)

    def half(self) -> Module:
        """Always raises TypeError: there is no half precision here."""
        return self.to(np.float16)

    def bfloat16(self) -> Module:
        """Always raises TypeError, as `half`."""
        return self.to("bfloat16")

    def cuda(self, device: Any = None) -> Module:
        """Always raises ValueError: there is no GPU here."""
        raise ValueError(no_device("cuda()"))

    def parameters(self) -> Iterator[np.ndarray]:
        yield from (array for _, array in self.named_parameters())

    def children(self) -> Iterator[Module]:
        yield from self._children.values()

    def modules(self) -> Iterator[Module]:
        yield from (module for _, module in self.named_modules())

    def __repr__(self) -> str:
        """The tree of modules as PyTorch prints it, as deep as a screen has lines."""
        return tree(self)


class ModuleList(Module):
    """Modules in order, named "0", "1", ..."""

    def __init__(self, modules=()):
        super().__init__()
        for index, module in enumerate(modules):
            self._children[str(index)] = module

    def __getitem__(self, index: int) -> Module:
        return list(self._children.values())[index]

    def __len__(self) -> int:
        return len(self._children)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._children.values())


def refuse_mismatch(missing: list[str], unexpected: list[str], misshapen: list[str], where: str = "the state dict") -> None:
    """One ValueError that lists everything in which a state dict and a model differ; nothing where all is well."""
    faults = []
    for title, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", misshapen)):
        if names:
            rest = f"\n    ... and {len(names) - 20} more" if len(names) > 20 else ""
            faults.append(f"  {title} ({len(names)}):\n    " + "\n    ".join(names[:20]) + rest)
    if faults:
        raise ValueError(f"{where} does not fit this model:\n" + "\n".join(faults))
