"""Comparison of training runs: their progress, losses and speeds, and the settings in which they differ."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from runtime.errors import CheckpointError, RequestError
from training.checkpoints import checkpoint
from training.reporting.environment import read_sessions
from training.reporting.reporter import LOG_FILE

_LAST_STEPS = 100  # over which losses and speeds are summarized


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """A run as its folder shows it; the run may still be training.

    Attributes:
        name: The path of the run folder.
        settings: The settings by dotted name, such as `training.steps`.
        steps: The log's entries of steps that were not skipped.
        skipped: The number of skipped steps.
        bad_data: The number of warnings about the data.
        device: Number of processes and device of the last session.
    """

    name: str
    settings: dict[str, Any]
    steps: list[dict[str, Any]]
    skipped: int
    bad_data: int
    device: str

    @property
    def step(self) -> int:
        """The number of the last step, 0 before the first."""
        return int(self.steps[-1]["step"]) if self.steps else 0

    @property
    def loss(self) -> float | None:
        """The mean loss of the last 100 steps; None before the first step."""
        return self._over_last_steps("loss", statistics.fmean)

    @property
    def gradient_norm(self) -> float | None:
        """The mean norm of the gradient over the last 100 steps; None before the first step."""
        return self._over_last_steps("gradient_norm", statistics.fmean)

    @property
    def images_per_second(self) -> float | None:
        """The median speed of the last 100 steps; None before the first step."""
        return self._over_last_steps("images_per_second", statistics.median)

    def _over_last_steps(self, key: str, average: Any) -> float | None:
        return float(average([entry[key] for entry in self.steps[-_LAST_STEPS:]])) if self.steps else None


def find_runs(paths: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """Find the run folders among `paths`, and those directly inside of `paths`, each once.

    Raises:
        RequestError: A path is no run folder and contains none.
    """
    all_runs: list[pathlib.Path] = []
    for path in paths:
        runs = [path] if _is_run(path) else sorted(run for run in path.glob("*") if _is_run(run))
        if not runs:
            raise RequestError(f"{path} is neither a run folder of mar train nor a folder that contains run folders")
        all_runs += runs
    return list(dict.fromkeys(all_runs))


def summarize(run: pathlib.Path) -> RunSummary:
    """Read the folder of a run.

    Raises:
        CheckpointError: The config of the run is missing or damaged.
    """
    config = checkpoint.read_run_config(run)
    settings = {"data": config.get("data")}
    for table in ("model", "training"):
        values = config.get(table, {})
        if not isinstance(values, dict):
            raise CheckpointError(f"{run / checkpoint.CONFIG_FILE}: {table} must be an object, found {values!r}")
        settings |= {f"{table}.{name}": value for name, value in values.items()}
    entries = _entries(run / LOG_FILE)
    last_session = (read_sessions(run) or [{}])[-1]
    return RunSummary(
        str(run),
        settings,
        [entry for entry in entries if "loss" in entry],
        sum("skipped" in entry for entry in entries),
        sum("bad_data" in entry for entry in entries),
        f"{last_session.get('processes', 1)} x {last_session.get('device', 'unknown')}",
    )


def summary_table(runs: Sequence[RunSummary]) -> list[list[str]]:
    """Return one row of text for each run, after a row with the names of the columns."""
    rows = [["run", "step", "of", "loss", "gradient", "img/s", "skipped", "bad data", "device"]]
    for run in runs:
        rows.append(
            [
                run.name,
                str(run.step),
                str(run.settings.get("training.steps", "-")),
                _format(run.loss, ".4f"),
                _format(run.gradient_norm, ".3f"),
                _format(run.images_per_second, ".1f"),
                str(run.skipped),
                str(run.bad_data),
                run.device,
            ]
        )
    return rows


def difference_table(runs: Sequence[RunSummary]) -> list[list[str]]:
    """Return one row for each setting that differs between runs, with one column per run, after a row of names."""
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    rows = [["setting", *(run.name for run in runs)]]
    for name in names:
        values = [json.dumps(run.settings[name]) if name in run.settings else "-" for run in runs]
        if len(set(values)) > 1:
            rows.append([name, *values])
    return rows


def _is_run(path: pathlib.Path) -> bool:
    return (path / checkpoint.CONFIG_FILE).is_file()


def _entries(log: pathlib.Path) -> list[dict[str, Any]]:
    """Read the entries of a log up to the first incomplete line; a running or killed process can leave one."""
    if not log.is_file():
        return []
    entries = []
    for line in log.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


def _format(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
