"""The default number of threads heeds the quota of processor time of the control group."""

from __future__ import annotations

import os
import pathlib

import pytest

from runtime import backends
from runtime.backends import control_groups
from runtime.backends.control_groups import cpu_quota
from tests.helpers.command_line import Mar

V2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 32 0:30 {root} /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
V1_MEMORY = "34 32 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


def tree(root: pathlib.Path, cgroup: str, mountinfo: str, files: dict[str, str]) -> pathlib.Path:
    """Fake folders proc and sys/fs/cgroup; the names of `files` are below the latter."""
    contents = {
        "proc/self/cgroup": cgroup,
        "proc/self/mountinfo": mountinfo,
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({}, None),
        ({"a/b/cpu.max": "400000 100000\n"}, 4),
        ({"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "50000 100000\n", "cpu.max": "max 100000\n"}, 0.5),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 50000\n"}, 4),
        ({"a/c/cpu.max": "100000 100000\n", "a/b/d/cpu.max": "100000 100000\n"}, None),  # other groups
        *(({"a/b/cpu.max": text}, None) for text in ("", "x y", "100000", "0 100000", "1 0", "-1 100000", "1.5 1")),
    ],
)
def test_the_least_quota_on_the_path_of_version_2_counts(
    tmp_path: pathlib.Path, files: dict[str, str], quota: float | None
) -> None:
    assert cpu_quota(tree(tmp_path, "0::/a/b\n", V2, files)) == quota


@pytest.mark.parametrize(
    ("quotas", "quota"),
    [({"a/b": -1}, None), ({"a/b": 250_000}, 2.5), ({"a/b": 250_000, "a": 100_000}, 1), ({"a/b": -1, ".": 300_000}, 3)],
)
def test_the_least_quota_on_the_path_of_version_1_counts(
    tmp_path: pathlib.Path, quotas: dict[str, int], quota: float | None
) -> None:
    files = {}
    for group, microseconds in quotas.items():
        files[f"cpu,cpuacct/{group}/cpu.cfs_quota_us"] = f"{microseconds}\n"
        files[f"cpu,cpuacct/{group}/cpu.cfs_period_us"] = "100000\n"
    files["memory/a/b/cpu.max"] = "1 100000"  # of a hierarchy that limits no processors
    cgroup = "9:name=systemd:/a\n8:memory:/a/b\n4:cpu,cpuacct:/a/b\n0::/\n"
    assert cpu_quota(tree(tmp_path, cgroup, V1_MEMORY + V1.format(root="/"), files)) == quota


@pytest.mark.parametrize("group", ["/docker/0123", "/docker/0123/inner", "/elsewhere", "/../other"])
def test_a_container_sees_its_group_as_the_top(tmp_path: pathlib.Path, group: str) -> None:
    files = {"cpu,cpuacct/cpu.cfs_quota_us": "200000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}
    mountinfo = V1.format(root="/docker/0123")
    assert cpu_quota(tree(tmp_path, f"4:cpu,cpuacct:{group}\n", mountinfo, files)) == 2


def test_both_versions_count_where_both_are_mounted(tmp_path: pathlib.Path) -> None:
    files = {
        "cpu,cpuacct/a/cpu.cfs_quota_us": "200000\n",
        "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
        "a/cpu.max": "100000 100000\n",
    }
    assert cpu_quota(tree(tmp_path, "4:cpu,cpuacct:/a\n0::/a\n", V1.format(root="/") + V2, files)) == 1


def test_a_mount_point_with_spaces_is_read(tmp_path: pathlib.Path) -> None:
    mountinfo = V2.replace("/sys/fs/cgroup", "/sys/fs/cgroup/my\\040groups")
    assert cpu_quota(tree(tmp_path, "0::/\n", mountinfo, {"my groups/cpu.max": "100000 100000"})) == 1


@pytest.mark.parametrize(
    ("cgroup", "mountinfo"), [("", ""), ("nonsense\n\n::\n", "nonsense\n - \n - cgroup2\n"), ("0::/\n", V2)]
)
def test_files_that_say_nothing_give_no_quota(tmp_path: pathlib.Path, cgroup: str, mountinfo: str) -> None:
    assert cpu_quota(tree(tmp_path, cgroup, mountinfo, {})) is None
    assert cpu_quota(tmp_path / "missing") is None


@pytest.mark.parametrize(("quota", "threads"), [(None, 3), (0.2, 1), (1, 1), (1.5, 2), (2, 2), (64, 3)])
def test_available_threads_are_no_more_than_processors_and_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 5})
    monkeypatch.setattr(backends, "cpu_quota", lambda: quota)
    assert backends.available_threads() == threads


@pytest.mark.parametrize(
    ("quota", "setting", "threads"), [(1.0, None, "1"), (1.0, "7", "7"), (None, None, None), (None, "7", "7")]
)
def test_a_command_gives_pytorch_no_more_threads_unless_the_user_does(
    monkeypatch: pytest.MonkeyPatch, mar: Mar, quota: float | None, setting: str | None, threads: str | None
) -> None:
    for module in (backends, control_groups):
        monkeypatch.setattr(module, "cpu_quota", lambda: quota)
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"})
    if setting is not None:
        os.environ["OMP_NUM_THREADS"] = setting
    assert mar("--version").code == 0
    assert os.environ.get("OMP_NUM_THREADS") == threads
