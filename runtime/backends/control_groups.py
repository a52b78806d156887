"""The quota of processor time that control groups give to this process, as container engines set it."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator

_ROOT = pathlib.Path("/")


def cpu_quota(root: pathlib.Path = _ROOT) -> float | None:
    """Return how many processors' time this process may use, such as 1.5. None if there is no quota.

    A quota of a control group is that of all groups within it, so the least one on the path from the mount to the
    group of this process counts. Versions 1 and 2 of control groups are read, whichever is mounted.

    Args:
        root: The folder that holds `proc` and the mounted control groups.
    """
    quotas = [quota for folder in _group_folders(root) for quota in (_quota_v2(folder), _quota_v1(folder)) if quota]
    return min(quotas, default=None)


def _group_folders(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield the folder of each control group of this process that can limit processors, and its parents."""
    groups = dict(_groups(root / "proc/self/cgroup"))
    for mounted, mount_point, is_v2 in _mounts(root / "proc/self/mountinfo"):
        group = groups.get("" if is_v2 else "cpu")
        if group is None:
            continue
        top = root / mount_point.relative_to("/")
        # Without a namespace of its own, a container sees only its group, mounted as the top.
        inside = group.is_relative_to(mounted) and ".." not in group.parts
        folder = top / group.relative_to(mounted) if inside else top
        while True:
            yield folder
            if folder == top:
                break
            folder = folder.parent


def _groups(file: pathlib.Path) -> Iterator[tuple[str, pathlib.PurePosixPath]]:
    """Yield each controller of this process with its group. The controller of version 2 is "" (proc/self/cgroup)."""
    for line in _lines(file):
        _, _, rest = line.partition(":")
        controllers, separator, group = rest.partition(":")
        if separator:
            yield from ((controller, pathlib.PurePosixPath(group)) for controller in controllers.split(","))


def _mounts(file: pathlib.Path) -> Iterator[tuple[pathlib.PurePosixPath, pathlib.PurePosixPath, bool]]:
    """Yield the mounts of control groups with the controller cpu: group, mount point, and whether it is version 2."""
    for line in _lines(file):
        mount, _, filesystem = line.partition(" - ")
        fields, (kind, *options) = mount.split(" "), filesystem.split(" ")
        limits = kind == "cgroup2" or (kind == "cgroup" and "cpu" in ",".join(options).split(","))
        if limits and len(fields) >= 5:
            yield _path(fields[3]), _path(fields[4]), kind == "cgroup2"


def _path(field: str) -> pathlib.PurePosixPath:
    """Return a path of mountinfo, which writes a space as its octal code."""
    return pathlib.PurePosixPath(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), field))


def _quota_v2(folder: pathlib.Path) -> float | None:
    """Return the quota in `cpu.max`, which holds "max" or microseconds, and the period: "150000 100000"."""
    return _ratio(" ".join(_lines(folder / "cpu.max")).split())


def _quota_v1(folder: pathlib.Path) -> float | None:
    """Return the quota in `cpu.cfs_quota_us`, which is -1 for none, over `cpu.cfs_period_us`."""
    return _ratio([*_lines(folder / "cpu.cfs_quota_us"), *_lines(folder / "cpu.cfs_period_us")])


def _ratio(numbers: list[str]) -> float | None:
    if len(numbers) != 2 or not all(number.isdecimal() and int(number) > 0 for number in numbers):
        return None
    return int(numbers[0]) / int(numbers[1])


def _lines(file: pathlib.Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
