"""Names and shapes of a network against those of a file: what can be copied, and everything in which the two differ."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

Shape = tuple[int, ...]


@dataclass
class Match:
    """Names by what can be done with them: none stands in two of these."""

    copy: list[str]  # on both sides, of the same shape
    missing: list[str]
    unexpected: list[str]
    misshapen: dict[str, tuple[Shape, Shape]]  # (the network's, the file's)
    fresh: list[str] = field(default_factory=list)  # left as they are initialised

    def start_fresh(self, names: Collection[str]) -> None:
        """Let these be initialised instead of copied, where they are missing or of another shape."""
        self.fresh += [name for name in dict.fromkeys(names) if name in self.missing or name in self.misshapen]
        self.missing = [name for name in self.missing if name not in self.fresh]
        self.misshapen = {name: shapes for name, shapes in self.misshapen.items() if name not in self.fresh}

    def refuse(self, where: str, hint: str = "") -> None:
        """One ValueError that lists everything in which the two differ; nothing where all is well."""
        misshapen = [f"{name}: expected {own}, got {theirs}" for name, (own, theirs) in self.misshapen.items()]
        faults = []
        for title, names in (("missing", self.missing), ("unexpected", self.unexpected), ("wrong shape", misshapen)):
            if names:
                rest = f"\n    ... and {len(names) - 20} more" if len(names) > 20 else ""
                faults.append(f"  {title} ({len(names)}):\n    " + "\n    ".join(names[:20]) + rest)
        if faults:
            raise ValueError(f"{where} does not fit this model:\n" + "\n".join(faults) + hint)


def match(own: Mapping[str, Shape], theirs: Mapping[str, Shape]) -> Match:
    """Compare the shapes of a network with those of a file, name by name."""
    both = [name for name in own if name in theirs]
    return Match(
        copy=[name for name in both if own[name] == theirs[name]],
        missing=[name for name in own if name not in theirs],
        unexpected=[name for name in theirs if name not in own],
        misshapen={name: (own[name], theirs[name]) for name in both if own[name] != theirs[name]},
    )
