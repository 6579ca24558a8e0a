"""What a forward gives back: dictionaries that are also read by attribute and by position, as in HF (`ModelOutput`)."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np


class ModelOutput(dict):
    """A dictionary, also read by attribute and by position. What is None is no entry, and None as an attribute."""

    def __init__(self, **fields: Any):
        super().__init__({name: value for name, value in fields.items() if value is not None})

    def __getattr__(self, name: str) -> Any:
        if name not in self and name not in inspect.signature(type(self)).parameters:
            raise AttributeError(f"{type(self).__name__} has no {name!r}, only {', '.join(self)}")
        return self.get(name)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple:
        return tuple(self.values())


class BaseModelOutput(ModelOutput):
    """last_hidden_state (N, hidden_dim, H/32, W/32), pooler_output (N, hidden_dim), hidden_states: stem's and each block's."""

    def __init__(self, last_hidden_state=None, pooler_output=None, hidden_states=None):
        super().__init__(last_hidden_state=last_hidden_state, pooler_output=pooler_output, hidden_states=hidden_states)


class ImageClassifierOutput(ModelOutput):
    """loss () where labels were given, logits (N, num_labels), hidden_states: the stem's output and each block's."""

    def __init__(self, loss=None, logits=None, hidden_states=None):
        super().__init__(loss=loss, logits=logits, hidden_states=hidden_states)


def read_only(value: Any) -> Any:
    """The same value with every array in it as a view that cannot be written to: what hooks are shown."""
    if isinstance(value, np.ndarray):
        view = value.view()
        view.flags.writeable = False
        return view
    if type(value) is tuple:
        return tuple(read_only(item) for item in value)
    if isinstance(value, ModelOutput):
        return type(value)(**{key: read_only(item) for key, item in value.items()})
    return value
