"""What a file of answers was begun with: the model, its preprocessing, what computed it, what was kept of it.

It stands beside the file, in `<name>.run.json`, so that the file stays plain; in a Parquet file's metadata, where it has a
place. `--resume` compares it with what the run would do, and refuses to mix. A file without it is resumed without a claim.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from effnet_np.checkpoints.files import read_json, replacing
from effnet_np.module import Module

SUFFIX = ".run.json"
KEY = b"effnet_np"  # in Parquet's metadata


def facts_of(runner: Any, model: Any, name: str, processor: str | None, output: str, columns: int, backend: str | None) -> dict:
    """name, processor: as the command line has them. output, columns: "predictions" or "embedding", and how many of them.

    model: what holds the weights. backend: of a run elsewhere, where `runner` does not answer; None where nobody knows it.
    """
    if runner is not None:
        by_numpy = isinstance(runner, Module) or getattr(runner, "_reference", None) is not None
        backend = "numpy" if by_numpy else "numba"
    return {
        "model": name,
        "weights": _digest(model),
        "processor": processor,
        "preprocessing": _digest_of(model.image_processor.to_dict()),
        "backend": backend,
        "output": output,
        "top_k": columns if output == "predictions" else None,
    }


def _digest(model: Any) -> str:
    """Of a model's numbers and its configuration, labels included."""
    digest = hashlib.sha256(_digest_of(model.config.to_dict()).encode())
    for name, array in model.state_dict().items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]


def _digest_of(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:32]


def beside(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


def note(path: Path, facts: dict[str, Any]) -> None:
    """Write it beside a file that is about to be begun."""
    with replacing(beside(path)) as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def noted(path: Path) -> dict[str, Any] | None:
    """What stands beside a file, or None. Raises ValueError for what is no such thing."""
    try:
        return read_json(beside(path))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{error}; without {beside(path)}, {path} is resumed as it is") from error


def check(path: Path, before: dict[str, Any] | None, now: dict[str, Any]) -> None:
    """Raise ValueError where the file was begun otherwise: what was, what is asked, and what to do."""
    found = _differences(before or {}, now)
    if found:
        hint = f"ask for the same, or write to another file ({beside(path)} says it all)"
        raise ValueError(f"{path} was begun with {'; '.join(found)}: answers of both would be mixed. To go on, {hint}")


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    def differs(key: str) -> bool:
        return before.get(key) is not None and now[key] is not None and before[key] != now[key]

    found = []
    if differs("weights"):
        if differs("model"):
            found.append(f"--model {before['model']}, and this run asks for {now['model']}")
        else:
            found.append(f"--model {now['model']} as it was then, and its weights or its configuration have changed since")
    elif differs("preprocessing"):
        was, is_ = (facts.get("processor") or "the model's own" for facts in (before, now))
        change = "has changed since" if was == is_ else f"and this run asks for {is_}"
        found.append(f"--processor {was}, {change}" if was != is_ else f"preprocessing ({was}) that {change}")
    if differs("output"):
        words = {"predictions": "labels", "embedding": "--embed"}
        was, is_ = (words.get(facts["output"], facts["output"]) for facts in (before, now))
        found.append(f"{was}, and this run gives {is_}")
    if differs("top_k"):
        found.append(f"--top-k {before['top_k']}, and this run has {now['top_k']}")
    if differs("backend"):
        found.append(f"--backend {before['backend']}, and in this run {now['backend']} answers")
    return found
