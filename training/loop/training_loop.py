"""A run of any training: its steps to the last, reported, saved on the way, left on a signal so that it goes on."""

from __future__ import annotations

import abc
import contextlib
import itertools
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

import click

from runtime.checks import pluralize
from runtime.errors import ConfigError, DataError, MarError
from training.checkpoints.checkpoint import CONFIG_FILE
from training.config import StepConfig
from training.data.latent_dataset import LatentDataset
from training.data.loader import MicroBatch
from training.distributed import Processes
from training.loop.optimizer_step import StepResult, TrainStep, learning_rate
from training.loop.state import save_state
from training.preemption import PreemptedError, Termination
from training.reporting.environment import record_environment
from training.reporting.loss_curve import save_loss_curve
from training.reporting.reporter import LOG_FILE, Reporter

_MOST_SKIPPED_IN_A_ROW = 10

_Step = TypeVar("_Step", bound=TrainStep)


class TrainingLoop(abc.ABC, Generic[_Step]):
    """The folder `run`, at step `step`. Every process of a job does the same."""

    command = "mar train"
    use = "make an artifact of it with mar export {run} --out ARTIFACT"

    def __init__(self, run: pathlib.Path, source: LatentDataset, train_step: _Step, processes: Processes) -> None:
        self.run, self.source, self.train_step, self.processes = run, source, train_step, processes
        self.step = 0
        self._new = not any(run.glob("*"))

    @property
    @abc.abstractmethod
    def _settings(self) -> StepConfig:
        """How it is trained."""

    @abc.abstractmethod
    def _batches(self) -> Iterator[MicroBatch]:
        """This process's micro-batches, from `step` on."""

    @abc.abstractmethod
    def _draw_samples(self, reporter: Reporter | None) -> None:
        """Show what the model can do by now; every process calls it, the first one has a reporter."""

    def train(self) -> None:
        """Train to the last step of the config, with checkpoints, samples and a log on the way.

        Where a new run fails before its first step, it leaves nothing that would be in the way of the next.
        Raises `PreemptedError` after SIGTERM or SIGINT, once all is saved.
        """
        try:
            with Termination(self.processes) as termination, contextlib.ExitStack() as stack:
                reporter = None
                if self.processes.first:
                    record_environment(self.run, self.processes, self.step)
                    reporter = stack.enter_context(Reporter(self.run, self._settings, self.step))
                self._train(termination, reporter)
            if self.processes.first:
                save_loss_curve(self.run / LOG_FILE, self.run / "loss.png")
        except OSError as error:
            again = "begin again" if self._has_nothing else "resume"
            raise MarError(
                f"cannot write to {self.run}: {error.strerror or error}; free some space and {again}"
            ) from error
        finally:
            if self._has_nothing and self.processes.first:
                shutil.rmtree(self.run, ignore_errors=True)

    @property
    def _has_nothing(self) -> bool:
        """Whether it is a new run that has not taken a step."""
        return self._new and self.step == 0

    def _train(self, termination: Termination, reporter: Reporter | None) -> None:
        config, skipped = self._settings, 0
        batches = self._batches()
        self._report_warnings(reporter, self.source.warnings)
        while self.step < config.steps:
            parts = list(itertools.islice(batches, config.accumulate))
            self._report_warnings(reporter, [complaint for part in parts for complaint in part.warnings])
            outcome = self.train_step.update(self.step, parts)
            self.step += 1
            skipped = 0 if outcome.taken else skipped + 1
            if reporter:
                self._report(reporter, outcome)
            if skipped == _MOST_SKIPPED_IN_A_ROW:
                raise self._diverged(
                    f"{skipped} steps in a row had a loss or a gradient that is not finite, the last one a loss of "
                    f"{outcome.loss} and a gradient norm of {outcome.gradient_norm}"
                )
            last, told_to_stop = self.step == config.steps, termination.asked()
            if last or told_to_stop or self.step % config.checkpoint_every == 0:
                self._save(reporter)
            if told_to_stop and not last:
                raise PreemptedError(
                    f"stopped by {told_to_stop.name} after step {self.step} of {config.steps}; all is saved, go on "
                    f"with {self.command} --resume {self.run}",
                    told_to_stop,
                )
            if last or self.step % config.sample_every == 0:
                self._draw_samples(reporter)

    def _report_warnings(self, reporter: Reporter | None, mine: Sequence[str]) -> None:
        """Tell what this and the other processes found wrong with the data, or stop because of it."""
        warnings = self.processes.together(list(mine))
        if warnings and self._settings.bad_data == "stop":
            raise DataError(f"{warnings[0]}; --bad-data report goes on without what cannot be read")
        if reporter:
            for complaint in warnings:
                reporter.bad_data(self.step, complaint)

    def _report(self, reporter: Reporter, outcome: StepResult) -> None:
        if outcome.taken:
            rate = learning_rate(self._settings, self.step - 1)
            reporter.step(self.step, outcome.loss, outcome.gradient_norm, rate, **outcome.parts)
            return
        shown = ", ".join(self.source.name(example) for example in outcome.suspects[:3])
        more = f" and {len(outcome.suspects) - 3} more" if len(outcome.suspects) > 3 else ""
        reporter.skipped(
            self.step,
            f"skipped ({self.train_step.skipped} so far): a loss of {outcome.loss}, a gradient norm of "
            f"{outcome.gradient_norm} by {shown}{more}",
            loss=str(outcome.loss),  # JSON has no word for them
            gradient_norm=str(outcome.gradient_norm),
            examples=list(outcome.suspects),
            so_far=self.train_step.skipped,
        )

    def _save(self, reporter: Reporter | None) -> None:
        if not self.train_step.weights_are_finite():
            raise self._diverged("weights became infinite or not a number")
        if reporter:
            reporter.flush()
        save_state(self.run, self.train_step, self.step)

    def _diverged(self, what: str) -> MarError:
        return MarError(
            f"{what} at step {self.step}; go on from the last checkpoint with {self.command} --resume {self.run} and a "
            "lower --learning-rate, or --precision fp32"
        )


def finish(run: TrainingLoop[Any]) -> None:
    """Train `run` to its last step, and tell what comes next."""
    run.train()
    if run.processes.first:
        click.echo(
            f"{run.run} is finished at step {run.step}; {run.use.format(run=run.run)}, or train on with "
            f"{run.command} --resume {run.run} --steps N"
        )


def check_no_run(run: pathlib.Path) -> None:
    """Refuse to begin where a run is already."""
    if (run / CONFIG_FILE).exists():
        raise MarError(f"{run} already holds a run; continue it with --resume {run}, or choose another --out")


def check_batch(source: LatentDataset, training: StepConfig, processes: Processes) -> None:
    """Refuse too little data, or a batch that cannot be shared out."""
    if len(source.labels) < training.batch_size:
        there = pluralize(len(source.labels), "image")
        raise ConfigError(f"a batch of {training.batch_size} does not fit a dataset of {there}")
    if training.batch_size % (processes.count * training.accumulate):
        raise ConfigError(
            f"batch_size {training.batch_size} cannot be shared out evenly to {pluralize(processes.count, 'process')} in "
            f"{pluralize(training.accumulate, 'micro-batch')} (accumulate)"
        )
