"""How many cores there are for this process. Imports no compiler: NumPy's path asks, too."""

from __future__ import annotations

import math
import os
from pathlib import Path


def default_threads(cgroups: str = "/sys/fs/cgroup") -> int:
    """How many threads are worth starting: EFFNET_NP_THREADS, or the cores that this process may use (`usable`).

    Raises ValueError for a variable that is no whole number of at least 1.
    """
    chosen = os.environ.get("EFFNET_NP_THREADS")
    if chosen:
        if not chosen.isdecimal() or int(chosen) < 1:
            raise ValueError(f"EFFNET_NP_THREADS must be a whole number of at least 1, got {chosen!r}")
        return int(chosen)
    return usable(cgroups)


def usable(cgroups: str = "/sys/fs/cgroup") -> int:
    """Cores that this process may use: its affinity mask's, and no more than its container's CPU quota, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _quota(Path(cgroups)))))


def _quota(cgroups: Path) -> float:
    """Cores' worth of time that the control group may use: version 2 keeps it in one file, version 1 in two; else infinity."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((cgroups / name).read_text() for name in names).split()[:2]
            return int(quota) / int(period) if quota != "max" and int(quota) > 0 else math.inf
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return math.inf
