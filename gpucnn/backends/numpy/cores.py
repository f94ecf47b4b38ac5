"""The number of cores that this process may use: its affinity, and the CPU quota of its container.

A container's CPU limit (`docker run --cpus`, a limit of Kubernetes) is a quota of time: microseconds of computing in
each period, on any cores. More threads than that would be stopped for the rest of each period. The quota is set in the
process's control group, or in one above it; the smallest counts.
"""

import math
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath


def usable_cores() -> int:
    """Return the number of cores that this process may use; in a container it can be less than the machine has.

    From Python 3.13 on, `PYTHON_CPU_COUNT` and `-X cpu_count` count as well.
    """
    if hasattr(os, "process_cpu_count"):
        cores = os.process_cpu_count() or 1
    elif hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _own_quota()
    return int(cores if quota is None else min(cores, max(1, math.ceil(quota))))


@cache
def _own_quota() -> float | None:
    return quota(Path("/proc/self"))


def quota(process: Path) -> float | None:
    """Return the CPU quota of a process in /proc, in cores, by its control groups; None without a limit."""
    try:
        groups = (process / "cgroup").read_text().splitlines()
        mounts = (process / "mountinfo").read_text().splitlines()
    except (OSError, UnicodeDecodeError):  # not Linux, or hidden
        return None
    limits = []
    for line in groups:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for root, place in _mounted(mounts, second_version=not controllers):
            limits += [_limit(folder) for folder in _upwards(place, root, group)]
    return min((limit for limit in limits if limit is not None), default=None)


def _mounted(mounts: list[str], second_version: bool) -> Iterator[tuple[str, Path]]:
    """Yield the groups of the CPU hierarchy that are mounted, and where."""
    for line in mounts:
        before, _, after = line.partition(" - ")
        kind, _, options = (*after.split(), "", "", "")[:3]
        matches = kind == "cgroup2" if second_version else kind == "cgroup" and "cpu" in options.split(",")
        if matches:
            root, place = before.split()[3:5]
            yield root, Path(re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), place))  # a space is \040


def _upwards(place: Path, root: str, group: str) -> Iterator[Path]:
    """Yield the folder of a group, and those above it that are mounted."""
    inside = PurePosixPath(group)
    if inside.is_relative_to(root):
        inside = PurePosixPath("/") / inside.relative_to(root)
    if ".." in inside.parts:  # in a part of the hierarchy that is not mounted here
        inside = PurePosixPath("/")
    for part in (inside, *inside.parents):
        yield place / part.relative_to("/")


def _limit(folder: Path) -> float | None:
    """Return the limit in a control group's folder, in cores; None if it has none."""
    try:
        if (folder / "cpu.max").exists():
            allowed, period = (folder / "cpu.max").read_text().split()
        else:
            allowed = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        cores = int(allowed) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no limit ("max"), or an unreadable one
        return None
    return cores if cores > 0 else None
