"""Workers on a Ray cluster of two machines, which are two nodes of this one: their results, failures and deaths."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from runtime.backends.telemetry import import_library
from runtime.dataset.artifact_model import open_artifact
from runtime.errors import ArtifactError, BackendError, DataError
from runtime.image_records.index import INDEX
from runtime.sampling.settings import Sampling
from runtime.workers import ray_cluster, ray_workers
from runtime.workers.tasks import run_tasks
from runtime.workers.worker_group import Workers
from tests.helpers.command_line import Mar
from tests.helpers.one_ray import one_ray_at_a_time
from tests.helpers.tiny_runs import one_sentence

SETTINGS = "--iterations 4 --diffusion-steps 100 --batch-size 4 --shard-size 8 --count 160"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster with a head of one processor."""
    ray_cluster._set_environment(Workers())
    with (
        one_ray_at_a_time(tmp_path_factory),
        tempfile.TemporaryDirectory(dir="/tmp", prefix="m", ignore_cleanup_errors=True) as folder,
    ):
        os.environ["RAY_TMPDIR"] = folder
        pathlib.Path(folder, "ray").mkdir()
        with ray_cluster._own_signal_handlers():
            utilities = import_library("ray.cluster_utils")
            head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 2**27}
            started = utilities.Cluster(initialize_head=True, head_node_args=head)
        yield started
        started.shutdown()
    del os.environ["RAY_TMPDIR"]  # the others stay, because Ray has read them


@contextlib.contextmanager
def _opened(what: str) -> Iterator[Callable[[int], tuple[int, dict[str, Any]]]]:
    opened_by = os.getpid()

    def task(number: int) -> tuple[int, dict[str, Any]]:
        if number == 3 and what == "fail":
            raise DataError("no three")
        if number == 3 and what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        assert os.getpid() == opened_by
        return opened_by, {"number": number, "list": [number, "text"], "pair": (1, None)}

    yield task


def _task(what: str) -> Any:
    return functools.partial(_opened, what)


def test_objects_come_back_as_they_are_and_the_failure_of_a_task_is_raised_here(cluster: Any) -> None:
    """Ray Data would take dicts and lists apart, and iterate a dict of the batch's length."""
    results: dict[int, tuple[int, dict[str, Any]]] = {}
    with pytest.raises(DataError, match="no three") as caught:
        for number, result in run_tasks(_task("fail"), [5, 8, 3], Workers(1, address=cluster.address)):
            results[number] = result
    assert "in task" in str(caught.value.__cause__)
    assert {number: value for number, (_, value) in results.items()} == {
        number: {"number": number, "list": [number, "text"], "pair": (1, None)} for number in (5, 8)
    }
    (process,) = {process for process, _ in results.values()}  # which opened the task once
    assert process != os.getpid()


def test_a_worker_that_dies_again_and_again_is_one_line(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_workers, "_RESTARTS", 1)
    with pytest.raises(
        BackendError, match=r"workers died again and again .*give the same command to continue"
    ) as caught:
        list(run_tasks(_task("die"), [3], Workers(1, address=cluster.address)))
    one_sentence(caught)


def test_a_machine_that_is_lost_changes_nothing(
    cluster: Any, mar: Mar, pixel_artifact: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Two workers draw, one on each machine; the second machine dies. The dataset is that of one process."""
    second = cluster.add_node(num_cpus=1, object_store_memory=2**27)
    index, lost = tmp_path / "cluster" / INDEX, list[int]()

    def lose() -> None:
        while not index.exists() or index.read_text().count("\n") < 8:
            time.sleep(0.05)
        lost.append(index.read_text().count("\n"))
        cluster.remove_node(second, allow_graceful=False)

    thread = threading.Thread(target=lose, daemon=True)
    thread.start()
    options = f"generate-dataset {SETTINGS} --threads 1"
    ended = mar(f"{options} --ray {cluster.address}", pixel_artifact, "--out", tmp_path / "cluster")
    assert (ended.code, ended.out[:18]) == (0, "160 images written")
    thread.join()
    assert 8 <= lost[0] < 160
    assert mar(options, pixel_artifact, "--out", tmp_path / "one").code == 0
    found, expected = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.png")}
        for name in ("cluster", "one")
    )
    assert {str(path).split("/", 1)[1]: content for path, content in found.items()} == {
        str(path).split("/", 1)[1]: content for path, content in expected.items()
    }
    assert index.read_bytes() == (tmp_path / "one" / INDEX).read_bytes()


@pytest.mark.parametrize(
    ("address", "code", "message"),
    [
        ("127.0.0.1:1", 1, "no Ray cluster answers at 127.0.0.1:1 "),
        ("somewhere", 2, "--ray must be HOST:PORT or auto, found 'somewhere'"),
    ],
)
def test_a_wrong_address_is_one_line(
    mar: Mar, pixel_artifact: pathlib.Path, tmp_path: pathlib.Path, address: str, code: int, message: str
) -> None:
    ended = mar(f"generate-dataset --count 2 --ray {address}", pixel_artifact, "--out", tmp_path / "out")
    assert ended.code == code
    assert ended.err.startswith(f"mar: {message}")
    assert ended.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_long_folder_for_temporary_files_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would fail with the message of a socket."""
    with pytest.raises(BackendError, match="set TMPDIR to a shorter one"):
        ray_cluster._on_this_machine(Workers(2), pathlib.Path("/" + 60 * "a"))


def test_another_artifact_on_a_machine_is_refused(pixel_artifact: pathlib.Path) -> None:
    with (
        pytest.raises(ArtifactError, match=r"is another artifact; copy the same one to every machine"),
        open_artifact(pixel_artifact, "0" * 64, Sampling(), {"threads": 1}),
    ):
        pass
