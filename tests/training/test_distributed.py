"""Several processes: they train like one process, and they stop and resume together."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from runtime.errors import ConfigError
from tests.helpers import several_processes
from tests.helpers.tiny_runs import (
    TINY,
    logged,
    one_sentence,
    one_thread,
    resume,
    skipped_steps,
    tiny_training,
    write_bad_folder,
    write_idx_dataset,
)
from training.checkpoints import checkpoint
from training.checkpoints.tensor_files import read_safetensors
from training.config import RunConfig
from training.data.latent_dataset import LatentDataset, open_latents
from training.data.loader import MicroBatches
from training.distributed import Processes
from training.loop.mar_trainer import MarTrainer

_ROOT = pathlib.Path(__file__).parents[2]
_STATE = "training-state.safetensors"
# The first ends in the middle of an epoch.
_HALF, _ALL = {"steps": 10}, {"steps": 20}
_FSDP = {"fsdp": True, "accumulate": 2}
_ON_TWO = [
    {"run": "ddp", "settings": _ALL},
    {"run": "ddp-accumulated", "settings": {**_ALL, "accumulate": 2}},
    {"run": "fsdp", "settings": _ALL | _FSDP},
    {"run": "ddp-half", "settings": _HALF},
    {"run": "ddp-resumed", "settings": _ALL, "from": "ddp-half"},
    {"run": "fsdp-half", "settings": _HALF | _FSDP},
    {"run": "fsdp-resumed", "settings": _ALL | _FSDP, "from": "fsdp-half"},
    {"run": "ddp-poisoned", "settings": _HALF, "poisoned": 5},
    {"run": "fsdp-poisoned", "settings": _HALF | _FSDP, "poisoned": 5},
    {"run": "bad-data", "settings": {**_HALF, "batch_size": 4}, "data": "images", "colours": 3},
]


def _torchrun(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *map(str, arguments)]


_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> LatentDataset:
    return open_latents(write_idx_dataset(tmp_path_factory.mktemp("data"), images=36), 12)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with the runs above. Read only."""
    folder = tmp_path_factory.mktemp("runs")
    write_idx_dataset(folder / "data", images=36)
    write_bad_folder(folder / "images")
    command = _torchrun(_ROOT / "tests" / "helpers" / "several_processes.py", folder, json.dumps(_ON_TWO))
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    with one_thread():
        several_processes.make(folder, {"run": "one", "settings": _ALL}, Processes())
        several_processes.make(folder, {"run": "one-poisoned", "settings": _HALF, "poisoned": 5}, Processes())
        several_processes.make(folder, {"run": "ddp-on-one", "settings": _ALL, "from": "ddp-half"}, Processes())
    return folder


# Sums of float32 in another order: 6e-8 an addition. AdamW divides by the size of the gradient, so rounding where a
# gradient should be zero (the bias of keys in attention) moves a weight by a share of the learning rate, which is 1e-3.
_LOSS_TOLERANCE, _WEIGHT_TOLERANCE = 1e-6, 5e-6


@pytest.mark.parametrize("name", ["ddp", "ddp-accumulated", "fsdp", "ddp-on-one"])
def test_two_processes_train_like_one_with_the_complete_batch(runs: pathlib.Path, name: str) -> None:
    """Losses, weights, their average and the moments, to the end of five epochs."""
    for key in ("loss", "gradient_norm"):
        actual, expected = (logged(runs / run, key) for run in (name, "one"))
        assert sorted(actual) == list(range(1, 21))
        assert actual == pytest.approx(expected, rel=_LOSS_TOLERANCE)
    actual, expected = (read_safetensors(runs / run / _STATE) for run in (name, "one"))
    assert actual.keys() == expected.keys()
    for parameter in expected:
        torch.testing.assert_close(actual[parameter], expected[parameter], rtol=0, atol=_WEIGHT_TOLERANCE)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_resumed_within_an_epoch_equal_the_uninterrupted_ones(runs: pathlib.Path, kind: str) -> None:
    """To the last bit."""
    whole, resumed = (read_safetensors(runs / run / _STATE) for run in (kind, f"{kind}-resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert logged(runs / kind, "loss") == logged(runs / f"{kind}-resumed", "loss")


def test_runs_of_several_processes_write_the_files_of_one(runs: pathlib.Path) -> None:
    left = [sorted(str(path.relative_to(runs / run)) for path in (runs / run).glob("*")) for run in ("one", "ddp")]
    assert left[0] == left[1]
    weights = [read_safetensors(runs / run / "model.safetensors") for run in ("one", "fsdp")]
    assert {name: tensor.shape for name, tensor in weights[0].items()} == {
        name: tensor.shape for name, tensor in weights[1].items()
    }


@pytest.mark.parametrize(("kind", "suspected"), [("ddp", 4), ("fsdp", 2)])
def test_a_step_that_is_not_finite_in_one_process_is_skipped_by_both(
    runs: pathlib.Path, kind: str, suspected: int
) -> None:
    """It is reported once, with the examples of its micro-batch; other steps are as in one process."""
    together, alone = (skipped_steps(runs / f"{name}-poisoned") for name in (kind, "one"))
    assert together.keys() == alone.keys() != set()
    for step, entry in together.items():
        assert 5 in entry["examples"]
        assert len(entry["examples"]) == suspected
        assert set(entry["examples"]) < set(alone[step]["examples"])
    losses = [logged(runs / f"{name}-poisoned", "loss") for name in (kind, "one")]
    assert losses[0].keys() | together.keys() == set(range(1, 11))
    assert losses[0] == pytest.approx(losses[1], rel=_LOSS_TOLERANCE)
    states = [read_safetensors(runs / f"{name}-poisoned" / _STATE) for name in (kind, "one")]
    for parameter in states[1]:
        torch.testing.assert_close(states[0][parameter], states[1][parameter], rtol=0, atol=_WEIGHT_TOLERANCE)


def test_unreadable_images_of_either_process_are_reported_once_and_counted(runs: pathlib.Path) -> None:
    entries = [json.loads(line) for line in (runs / "bad-data" / "log.jsonl").read_text().splitlines()]
    counts = {entry["event"].split(": ")[0]: entry["bad_data"] for entry in entries if "bad_data" in entry}
    bad = ("bird", "cat/4.png", "dog/7.png", "dog/3.png")
    assert sorted(counts) == sorted(str(runs / "images" / name) for name in bad)
    assert sorted(counts.values()) == [1, 2, 3, 4]
    assert len(logged(runs / "bad-data", "loss")) == 10


@pytest.mark.parametrize(("run", "share"), [("one", 1), ("ddp", 1), ("fsdp", 0.5)])
def test_with_fsdp_each_of_two_processes_holds_half_of_the_weights(runs: pathlib.Path, run: str, share: float) -> None:
    held = [float(file.read_text()) for file in sorted(runs.glob(f"{run}-held-by-*"))]
    assert len(held) == (1 if run == "one" else 2)
    assert held == pytest.approx([share] * len(held), abs=0.03)  # what has an odd size is not halved


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 7))
def test_a_batch_is_the_same_however_it_is_split(
    source: LatentDataset, processes: int, accumulate: int, size: int, step: int
) -> None:
    """Its images, mirrored or not, its labels, masks, timesteps and noise."""

    def batch(processes: int, accumulate: int) -> list[Tensor]:
        config = tiny_training(8, batch_size=whole, accumulate=accumulate)
        parts = [
            MicroBatches(source, TINY, config, rank, processes)[step * accumulate + part]
            for rank in range(processes)
            for part in range(accumulate)
        ]
        examples = torch.cat([part.examples for part in parts])
        of_parts = zip(*(part.batch for part in parts), strict=True)
        dimensions = (0, 0, 0, 1, 1)  # along which latents, labels, orders, timesteps and noise differ
        return [examples, *(torch.cat(field, dim) for field, dim in zip(of_parts, dimensions, strict=True))]

    whole = processes * accumulate * size
    shared, alone = batch(processes, accumulate), batch(1, 1)
    assert all(torch.equal(a, b) for a, b in zip(shared, alone, strict=True))


def test_a_batch_that_cannot_be_split_evenly_is_refused(tmp_path: pathlib.Path) -> None:
    data = write_idx_dataset(tmp_path / "data")
    config = RunConfig(str(data), TINY, tiny_training(1, batch_size=6, accumulate=2))
    with pytest.raises(ConfigError, match=r"batch_size 6.*2 processes in 2 micro-batches") as caught:
        MarTrainer.start(tmp_path / "run", config, Processes(rank=1, world_size=2))
    one_sentence(caught)


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_terminated_job_saves_and_resumes(tmp_path: pathlib.Path, by: signal.Signals) -> None:
    """torchrun hands a signal on to all processes, those that read ahead included."""
    data, run = write_idx_dataset(tmp_path / "data", images=12, side=8, classes=2), tmp_path / "run"
    options = ["--data", data, "--out", run, "--model", "pixel_small", "--image-size", 8, "--batch-size", 4]
    command = _torchrun("-m", "training", *options, "--steps", 100000, "--workers", 1, "--checkpoint-every", 100000)
    with subprocess.Popen(command, text=True, stderr=subprocess.PIPE, env=_ENVIRONMENT) as job:
        log = run / "log.jsonl"
        _wait_for(lambda: log.exists() and log.stat().st_size > 0, job)
        job.send_signal(by)
        _, output = job.communicate(timeout=60)
    assert job.returncode != 0
    assert f"stopped by {by.name} after step" in output
    assert "DataLoader worker" not in output
    step = checkpoint.saved_step(run / _STATE)
    assert step is not None
    assert sorted(logged(run, "loss")) == list(range(1, step + 1))
    with one_thread():
        resume(run, steps=step + 2, workers=0).train()
    assert sorted(logged(run, "loss")) == list(range(1, step + 3))
