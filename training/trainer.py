"""A run: made or resumed, trained to its last step, saved on the way so that it goes on where it was."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from runtime.errors import CheckpointError, ConfigError, DataError, MarError
from training import checkpoint
from training.codebook import fitted_codebook
from training.config import RunConfig
from training.curve import save_loss_curve
from training.distribution import Processes
from training.environment import record_environment
from training.learner import Learner, Outcome, learning_rate
from training.loader import MicroBatch, MicroBatches, micro_batches
from training.preemption import PreemptedError, Termination
from training.report import LOG_FILE, Reporter
from training.samples import save_sample_grid
from training.source import Source, open_source
from training.state import load_state, save_state

_MOST_SKIPPED_IN_A_ROW = 10


class Trainer:
    """One run: `Trainer.start` or `Trainer.resume`, then `train`. Every process of a job does the same."""

    def __init__(self, run: pathlib.Path, source: Source, config: RunConfig, processes: Processes) -> None:
        check_fit(source, config, processes)
        self.run, self.source, self.config, self.processes = run, source, config, processes
        self.learner = Learner(config.model, config.training, processes)
        self.step = 0

    @classmethod
    def start(cls, run: pathlib.Path, config: RunConfig, processes: Processes | None = None) -> Trainer:
        """A new run; its model has as many classes and channels as the data."""
        processes = processes or Processes()
        if (run / checkpoint.CONFIG_FILE).exists():
            raise MarError(f"{run} already holds a run; continue it with --resume {run}, or choose another --out")
        config, source = fitted(config)
        trainer = cls(run, source, config, processes)
        trainer._begin()
        processes.wait()  # all have seen that there is no run yet
        if processes.first:
            source.save_tokenizer(run)
            trainer._write_config()
        return trainer

    @classmethod
    def resume(
        cls, run: pathlib.Path, processes: Processes | None = None, changes: Mapping[str, Any] | None = None
    ) -> Trainer:
        """The run at its last checkpoint; `changes` to its `TrainConfig`, such as more `steps`, are kept in it."""
        processes = processes or Processes()
        config = read_config(run, changes or {})
        trainer = cls(run, open_source(pathlib.Path(config.data), config.model.img_size), config, processes)
        if (run / checkpoint.STATE_FILE).exists():
            trainer.step = load_state(run, trainer.learner)
        else:
            trainer._begin()
        processes.wait()
        if changes and processes.first:
            trainer._write_config()
        return trainer

    def _begin(self) -> None:
        """What a model needs of its data before the first step."""
        model = self.config.model
        if model.head == "codes":
            self.learner.take_codebook(fitted_codebook(self.source, model, self.config.training.seed))

    def train(self) -> None:
        """Train to the last step of the config, with checkpoints, samples and a log on the way.

        Raises `PreemptedError` after SIGTERM, once all is saved.
        """
        try:
            with Termination(self.processes) as termination, contextlib.ExitStack() as stack:
                reporter = None
                if self.processes.first:
                    record_environment(self.run, self.processes, self.step)
                    reporter = stack.enter_context(Reporter(self.run, self.config.training, self.step))
                self._train(termination, reporter)
            if self.processes.first:
                save_loss_curve(self.run / LOG_FILE, self.run / "loss.png")
        except OSError as error:
            raise MarError(
                f"cannot write to {self.run}: {error.strerror or error}; free some space and resume"
            ) from error

    def _train(self, termination: Termination, reporter: Reporter | None) -> None:
        config, skipped = self.config.training, 0
        batches = self._batches()
        self._complain(reporter, self.source.complaints)
        while self.step < config.steps:
            parts = list(itertools.islice(batches, config.accumulate))
            self._complain(reporter, [complaint for part in parts for complaint in part.complaints])
            outcome = self.learner.update(self.step, parts)
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
                    f"stopped by SIGTERM after step {self.step} of {config.steps}; all is saved, go on with "
                    f"mar train --resume {self.run}"
                )
            if last or self.step % config.sample_every == 0:
                self._draw_samples(reporter)

    def _batches(self) -> Iterator[MicroBatch]:
        me, config = self.processes, self.config
        batches = MicroBatches(self.source, config.model, config.training, me.rank, me.count)
        return micro_batches(batches, self.step, me.device)

    def _complain(self, reporter: Reporter | None, mine: Sequence[str]) -> None:
        """Tell what this and the other processes found wrong with the data, or stop because of it."""
        complaints = self.processes.together(list(mine))
        if complaints and self.config.training.bad_data == "stop":
            raise DataError(f"{complaints[0]}; leave --bad-data stop away to go on without what cannot be read")
        if reporter:
            for complaint in complaints:
                reporter.bad_data(self.step, complaint)

    def _report(self, reporter: Reporter, outcome: Outcome) -> None:
        if outcome.taken:
            rate = learning_rate(self.config.training, self.step - 1)
            reporter.step(self.step, outcome.loss, outcome.gradient_norm, rate)
            return
        shown = ", ".join(self.source.name(example) for example in outcome.suspects[:3])
        more = f" and {len(outcome.suspects) - 3} more" if len(outcome.suspects) > 3 else ""
        reporter.skipped(
            self.step,
            f"skipped ({self.learner.skipped} so far): a loss of {outcome.loss}, a gradient norm of "
            f"{outcome.gradient_norm} by {shown}{more}",
            loss=str(outcome.loss),  # JSON has no word for them
            gradient_norm=str(outcome.gradient_norm),
            examples=list(outcome.suspects),
            so_far=self.learner.skipped,
        )

    def _save(self, reporter: Reporter | None) -> None:
        if not self.learner.weights_are_finite():
            raise self._diverged("weights became infinite or not a number")
        if reporter:
            reporter.flush()
        save_state(self.run, self.learner, self.step)

    def _draw_samples(self, reporter: Reporter | None) -> None:
        model = self.learner.averaged_model()
        if reporter:
            picture = self.run / "samples" / f"step-{self.step:06d}.png"
            save_sample_grid(picture, model, self.source)
            reporter.samples(self.step, picture)

    def _diverged(self, what: str) -> MarError:
        return MarError(
            f"{what} at step {self.step}; go on from the last checkpoint with mar train --resume {self.run} and a "
            "lower --learning-rate, or --precision fp32"
        )

    def _write_config(self) -> None:
        value = {
            **self.config.to_dict(),
            "tokenizer": self.source.tokenizer,
            "class_names": list(self.source.classes),
        }
        checkpoint.write_run_config(self.run, value)


def fitted(config: RunConfig) -> tuple[RunConfig, Source]:
    """The data of `config`, opened, and `config` with a model of as many classes and channels. Raises `DataError`."""
    source = open_source(pathlib.Path(config.data), config.model.img_size)
    model = dataclasses.replace(config.model, vae_embed_dim=source.channels, class_num=len(source.classes))
    return RunConfig(str(pathlib.Path(config.data).resolve()), model, config.training), source


def read_config(run: pathlib.Path, changes: Mapping[str, Any]) -> RunConfig:
    """The config that the run keeps, with `changes` to its `TrainConfig`. Raises `CheckpointError`, `ConfigError`."""
    saved, where = checkpoint.read_run_config(run), run / checkpoint.CONFIG_FILE
    try:
        kept = {name: saved[name] for name in ("data", "model", "training")}
        config = RunConfig.from_dict(kept, str(where))
    except KeyError as error:
        raise CheckpointError(f"{where}: not the config of a run of mar train, it has no {error}") from None
    except ConfigError as error:
        raise CheckpointError(f"{where}: not the config of a run ({error})") from None
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **changes))


def check_fit(source: Source, config: RunConfig, processes: Processes) -> None:
    """Refuse data that is not what the model was made for, too little of it, or a batch that cannot be shared out."""
    model, training = config.model, config.training
    if source.stride != model.vae_stride:
        raise ConfigError(
            f"the model works on latents of {model.vae_stride}x{model.vae_stride} pixels each, but those of "
            f"{config.data} are of {source.stride}x{source.stride}; choose a preset that fits"
        )
    if len(source.classes) != model.class_num or source.channels != model.vae_embed_dim:
        raise DataError(
            f"{config.data}: {len(source.classes)} classes of {source.channels} channels, but the model was made for "
            f"{model.class_num} classes of {model.vae_embed_dim}"
        )
    if len(source.labels) < training.batch_size:
        raise ConfigError(f"a batch of {training.batch_size} does not fit a dataset of {len(source.labels)} pictures")
    if training.batch_size % (processes.count * training.accumulate):
        raise ConfigError(
            f"batch_size {training.batch_size} cannot be shared out evenly to {processes.count} processes in "
            f"{training.accumulate} micro-batches (accumulate)"
        )
