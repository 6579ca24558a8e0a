"""Where weights come from: the manifest of published checkpoints, the names of other libraries, and ImageNet's labels."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any


def manifest() -> dict[str, dict[str, Any]]:
    """What is known of each published checkpoint, by short name: see README.md beside this file."""
    return json.loads(resources.files(__name__).joinpath("manifest.json").read_text(encoding="utf-8"))
