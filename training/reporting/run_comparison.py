"""Comparison of training runs: their progress, losses and speeds, and the settings in which they differ."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from runtime.errors import CheckpointError
from runtime.storage.schema import REST, SchemaError, parse_object
from training.checkpoints import run_folder
from training.reporting.environment import ENVIRONMENT_FILE, read_sessions
from training.reporting.run_log import LOG_FILE, LogEntry, read_log

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
    steps: list[LogEntry]
    skipped: int
    bad_data: int
    device: str

    @property
    def step(self) -> int:
        """The number of the last step, 0 before the first."""
        return self.steps[-1].step if self.steps else 0

    @property
    def loss(self) -> float | None:
        """The mean loss of the last 100 steps; None before the first step."""
        return self._over_last_steps(lambda entry: entry.loss, statistics.fmean)

    @property
    def gradient_norm(self) -> float | None:
        """The mean norm of the gradient over the last 100 steps; None before the first step."""
        return self._over_last_steps(lambda entry: entry.gradient_norm, statistics.fmean)

    @property
    def images_per_second(self) -> float | None:
        """The median speed of the last 100 steps; None before the first step."""
        return self._over_last_steps(lambda entry: entry.images_per_second, statistics.median)

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON values, without the single steps."""
        return {
            "run": self.name,
            "step": self.step,
            "steps": self.settings.get("training.steps"),
            "loss": self.loss,
            "gradient_norm": self.gradient_norm,
            "images_per_second": self.images_per_second,
            "skipped": self.skipped,
            "bad_data": self.bad_data,
            "device": self.device,
            "settings": self.settings,
        }

    def _over_last_steps(
        self, value: Callable[[LogEntry], float | None], average: Callable[[Iterable[float]], float]
    ) -> float | None:
        values = [number for entry in self.steps[-_LAST_STEPS:] if (number := value(entry)) is not None]
        return float(average(values)) if values else None


@dataclasses.dataclass(frozen=True)
class _Config:
    """What `mar runs` reads of the config of a run."""

    data: str | None = None
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    others: dict[str, Any] = dataclasses.field(default_factory=dict, metadata={REST: True})


@dataclasses.dataclass(frozen=True)
class _Session:
    """What `mar runs` reads of a session of a run."""

    processes: int = dataclasses.field(default=1, metadata={"least": 1, "most": 10**6})
    device: str = "unknown"
    others: dict[str, Any] = dataclasses.field(default_factory=dict, metadata={REST: True})


def find_runs(paths: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """Find the run folders among `paths`, and those directly inside of `paths`, each once.

    Raises:
        CheckpointError: A path is no run folder and contains none.
    """
    all_runs: list[pathlib.Path] = []
    for path in paths:
        runs = [path] if _is_run(path) else sorted(run for run in path.glob("*") if _is_run(run))
        if not runs:
            raise CheckpointError(f"{path} is neither a run folder of mar train nor a folder that contains run folders")
        all_runs += runs
    return list(dict.fromkeys(all_runs))


def summarize(run: pathlib.Path) -> RunSummary:
    """Read the folder of a run.

    Raises:
        CheckpointError: The config of the run is missing, or a file of it is damaged.
    """
    sessions = read_sessions(run)
    try:
        config = parse_object(_Config, run_folder.read_run_config(run), str(run / run_folder.CONFIG_FILE))
        session = parse_object(_Session, sessions[-1] if sessions else {}, str(run / ENVIRONMENT_FILE))
    except SchemaError as error:
        raise CheckpointError(f"{error}; copy the file again") from None
    settings = {"data": config.data}
    for table in ("model", "training"):
        settings |= {f"{table}.{name}": value for name, value in getattr(config, table).items()}
    entries = read_log(run / LOG_FILE)
    return RunSummary(
        str(run),
        settings,
        [entry for entry in entries if entry.loss is not None],
        sum(entry.skipped is not None for entry in entries),
        sum(entry.bad_data is not None for entry in entries),
        f"{session.processes} x {session.device}",
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


def different_settings(runs: Sequence[RunSummary]) -> list[str]:
    """Return the names of the settings that differ between runs. One that a run does not have differs."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [name for name in names if len({_setting(run, name) for run in runs}) > 1]


def difference_table(runs: Sequence[RunSummary]) -> list[list[str]]:
    """Return one row for each setting that differs between runs, with one column per run, after a row of names."""
    rows = [["setting", *(run.name for run in runs)]]
    return [*rows, *([name, *(_setting(run, name) for run in runs)] for name in different_settings(runs))]


def _setting(run: RunSummary, name: str) -> str:
    """Return a setting of a run as text, `-` if the run does not have it."""
    return json.dumps(run.settings[name]) if name in run.settings else "-"


def _is_run(path: pathlib.Path) -> bool:
    return (path / run_folder.CONFIG_FILE).is_file()


def _format(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
