"""Where weights come from: the manifest of published checkpoints, the names of other libraries, and ImageNet's labels."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any


def manifest() -> dict[str, dict[str, Any]]:
    """What is known of each published checkpoint, by short name: see README.md beside this file."""
    return json.loads(resources.files(__name__).joinpath("manifest.json").read_text(encoding="utf-8"))


def wordnet_ids() -> list[str]:
    """ImageNet's 1,000 classes as its folders are named, in class order: their WordNet 3.0 noun offsets, sorted."""
    return json.loads(resources.files(__name__).joinpath("imagenet-1k-wordnet-ids.json").read_text(encoding="utf-8"))
