"""Answers: what people call on their pictures."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "map":  # a cluster is asked for by few
        from effnet_np.inference.cluster import map

        return map
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
