"""Several runs side by side: how far they are, how well they do, and in which settings they differ."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from runtime.errors import CheckpointError, RequestError
from training.checkpoints import checkpoint
from training.reporting.environment import sessions
from training.reporting.reporter import LOG_FILE

_LAST = 100  # steps that a loss is the mean of, and a rate the median


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """A run: its settings by dotted name, the steps that its log holds, and what its last entries tell."""

    name: str
    settings: dict[str, Any]
    steps: list[dict[str, Any]]
    skipped: int
    bad_data: int
    device: str

    @property
    def step(self) -> int:
        return int(self.steps[-1]["step"]) if self.steps else 0

    @property
    def loss(self) -> float | None:
        return self._last("loss", statistics.fmean)

    @property
    def gradient_norm(self) -> float | None:
        return self._last("gradient_norm", statistics.fmean)

    @property
    def images_per_second(self) -> float | None:
        return self._last("images_per_second", statistics.median)

    def _last(self, key: str, summed_up: Any) -> float | None:
        return float(summed_up([entry[key] for entry in self.steps[-_LAST:]])) if self.steps else None


def find_runs(paths: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """Those of `paths` that are runs, and the runs in those that are folders of runs. Raises `RequestError`."""
    found: list[pathlib.Path] = []
    for path in paths:
        runs = [path] if _is_run(path) else sorted(run for run in path.glob("*") if _is_run(run))
        if not runs:
            raise RequestError(f"{path}: neither a run of mar train nor a folder of runs")
        found += runs
    return list(dict.fromkeys(found))


def summarize(run: pathlib.Path) -> RunSummary:
    """What the folder of a run tells; it may still be training. Raises `CheckpointError`."""
    config = checkpoint.read_run_config(run)
    settings = {"data": config.get("data")}
    for table in ("model", "training"):
        values = config.get(table, {})
        if not isinstance(values, dict):
            raise CheckpointError(f"{run / checkpoint.CONFIG_FILE}: {table} must be an object, found {values!r}")
        settings |= {f"{table}.{name}": value for name, value in values.items()}
    entries = _entries(run / LOG_FILE)
    last_session = (sessions(run) or [{}])[-1]
    return RunSummary(
        str(run),
        settings,
        [entry for entry in entries if "loss" in entry],
        sum("skipped" in entry for entry in entries),
        sum("bad_data" in entry for entry in entries),
        f"{last_session.get('processes', 1)} x {last_session.get('device', 'unknown')}",
    )


def summary_table(runs: Sequence[RunSummary]) -> list[list[str]]:
    """Rows of text, the names of the columns first."""
    rows = [["run", "step", "of", "loss", "gradient", "img/s", "skipped", "bad data", "device"]]
    for run in runs:
        rows.append(
            [
                run.name,
                str(run.step),
                str(run.settings.get("training.steps", "-")),
                _shown(run.loss, ".4f"),
                _shown(run.gradient_norm, ".3f"),
                _shown(run.images_per_second, ".1f"),
                str(run.skipped),
                str(run.bad_data),
                run.device,
            ]
        )
    return rows


def difference_table(runs: Sequence[RunSummary]) -> list[list[str]]:
    """The settings that are not the same in all runs, a row each; a column for each run."""
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
    """The lines of a log; the last one may be half written, or torn by a kill."""
    if not log.is_file():
        return []
    entries = []
    for line in log.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
