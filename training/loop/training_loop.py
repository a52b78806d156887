"""The loop of any training run: it starts or resumes a run, takes its steps, reports them, and saves checkpoints."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import itertools
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Generic, TypeVar

import click

from runtime.checks import pluralize
from runtime.errors import CheckpointError, ConfigError, DataError, MarError
from runtime.storage.files import holding_folder, is_lock
from runtime.storage.schema import SchemaError, parse_object
from training.checkpoints import checkpoint, run_folder
from training.checkpoints.kept_checkpoints import keep_checkpoint
from training.checkpoints.mapped_weights import trim
from training.config import BaseRunConfig, StepConfig
from training.data.data_record import DataRecord
from training.data.latent_dataset import LatentDataset
from training.data.loader import MicroBatch
from training.distributed import Processes
from training.loop.optimizer_step import StepResult, TrainStep, learning_rate
from training.loop.schedule import samples_are_due
from training.loop.state import load_state, save_state
from training.models.numerics import multiplies_bf16
from training.preemption import PreemptedError, Termination
from training.reporting.environment import record_environment
from training.reporting.first_batch import FIRST_BATCH_FILE, save_first_batch
from training.reporting.loss_curve import save_loss_curve
from training.reporting.progress import print_lines
from training.reporting.reporter import Reporter
from training.reporting.run_log import LOG_FILE

_TRIM_EVERY = 200  # steps: tensors of other sizes in each leave gaps in the memory that stays with the process
_MOST_SKIPPED_IN_A_ROW = 10
_RECORD = "dataset"  # the key of the `DataRecord` in the config of a run

_Config = TypeVar("_Config", bound=BaseRunConfig)
_Step = TypeVar("_Step", bound=TrainStep)
_Loop = TypeVar("_Loop", bound="TrainingLoop[Any, Any]")


class TrainingLoop(abc.ABC, Generic[_Config, _Step]):
    """One run of a training: `start` or `resume` makes it, `train` takes its steps.

    Every process of a job makes the same calls; rank 0 alone writes files and prints.

    Attributes:
        command: The command that makes such runs.
        next_command: What to do with a finished run, with `{run}` in place of its folder.
        config_class: The class of `config`.
        run: The folder of the run.
        config: The settings of the run.
        dataset: What it is trained on.
        train_step: The model in training.
        processes: The processes of the job.
        step: The number of steps done.
    """

    command: ClassVar[str]
    next_command: ClassVar[str]
    config_class: ClassVar[type[BaseRunConfig]]

    def __init__(self, run: pathlib.Path, config: _Config, dataset: LatentDataset, processes: Processes) -> None:
        self.run, self.config, self.dataset, self.processes = run, config, dataset, processes
        self._check_data()
        self._record = DataRecord.of(dataset)
        self.train_step: _Step = self._make_train_step()
        if processes.is_main:
            print_lines(self._notes())
        self.step = 0
        self._new = all(is_lock(path) for path in run.glob("*"))

    @classmethod
    def start(
        cls: type[_Loop],
        run: pathlib.Path,
        config: Any,
        processes: Processes | None = None,
        *,
        epochs: int | None = None,
    ) -> _Loop:
        """Start a new run in the folder `run`.

        Args:
            run: The folder.
            config: The settings of the run.
            processes: The processes of the job; by default this process alone.
            epochs: How often the run takes the images, in place of the `steps` of the config.

        Raises:
            MarError: The folder already holds a run.
            ConfigError: The batch does not fit the data or the processes.
            DataError: The data is missing or damaged.
        """
        processes = processes or Processes()
        if (run / run_folder.CONFIG_FILE).exists():
            raise MarError(f"{run} already holds a run; continue it with --resume {run}, or choose another --out")
        run_folder.check_new_folder(run)
        config, dataset = cls.fit_to_data(config)
        config = _with_epochs(config, dataset, epochs)
        decided = {name: decide(config.training, processes) for name, decide in DECIDED_AT_START.items()}
        config = config.with_training(decided)
        loop = cls(run, config, dataset, processes)
        loop._initialize()
        processes.barrier()  # rank 0 must not write the config before all have checked that there is none
        if processes.is_main:
            dataset.save_tokenizer(run)
            loop._write_config()
        return loop

    @classmethod
    def resume(
        cls: type[_Loop],
        run: pathlib.Path,
        processes: Processes | None = None,
        changes: Mapping[str, Any] | None = None,
        *,
        data: pathlib.Path | None = None,
        epochs: int | None = None,
    ) -> _Loop:
        """Resume a run from its last checkpoint, or from its first step where it has none.

        Args:
            run: The folder of the run.
            processes: The processes of the job; by default this process alone.
            changes: New values for fields of the config's `training`, such as more `steps`; the run keeps them.
            data: The new place of the data; the run keeps it.
            epochs: How often the whole run takes the images, in place of `steps`.

        Raises:
            CheckpointError: The folder holds no such run, or a file of it is damaged.
            ConfigError: A new value is impossible.
            DataError: The data is missing, damaged, or not what the model was made for.
        """
        processes = processes or Processes()
        config = cls.read_config(run, changes or {}, data)
        dataset = cls._reopen_data(config)
        config = _with_epochs(config, dataset, epochs)
        loop = cls(run, config, dataset, processes)
        if (run / run_folder.STATE_FILE).exists():
            loop.step = load_state(run, loop.train_step)
        else:
            loop._initialize()
        processes.barrier()
        if processes.is_main and loop._saved_config() != run_folder.read_run_config(run):
            loop._write_config()
        return loop

    @classmethod
    def read_config(cls, run: pathlib.Path, changes: Mapping[str, Any], data: pathlib.Path | None = None) -> Any:
        """Return the config of the run in a folder, with `changes` to fields of its `training`, and a place of `data`.

        Raises:
            CheckpointError: The folder holds no such run.
            ConfigError: A new value is impossible.
        """
        values, where = run_folder.read_run_config(run), run / run_folder.CONFIG_FILE
        try:
            config = cls.config_class.from_dict({key: values[key] for key in ("data", "model", "training")}, str(where))
        except KeyError as error:
            raise CheckpointError(f"{where}: not the config of a run of {cls.command}, it has no {error}") from None
        except ConfigError as error:
            raise CheckpointError(f"{where}: not the config of a run of {cls.command} ({error})") from None
        if data is not None:
            config = dataclasses.replace(config, data=str(data.resolve()))
        return config.with_training(changes)

    @classmethod
    def fit_to_data(cls, config: Any) -> tuple[Any, LatentDataset]:
        """Open the data of a new run; return it after the config, whose path is then absolute and which fits it."""
        return config, cls.open_data(config)

    @classmethod
    def _reopen_data(cls, config: Any) -> LatentDataset:
        """Open the data of a run that is resumed. Raises `DataError`, which says what to do if they have moved."""
        try:
            return cls.open_data(config)
        except DataError as error:
            if pathlib.Path(config.data).exists():
                raise
            raise DataError(f"{error}; give their new place (--data) if they were moved") from None

    @classmethod
    @abc.abstractmethod
    def open_data(cls, config: Any) -> LatentDataset:
        """Open the data that a config names. Raises `DataError`."""

    @abc.abstractmethod
    def _make_train_step(self) -> _Step:
        """Make the model in training, as it is before the first step."""

    @abc.abstractmethod
    def _batches(self) -> Iterator[MicroBatch]:
        """Return this process's micro-batches, from `step` on."""

    @abc.abstractmethod
    def _save_samples(self, reporter: Reporter | None) -> None:
        """Save `_sample_file`, what the model can do now; every process calls it, rank 0 with a reporter."""

    @property
    def _sample_file(self) -> pathlib.Path:
        """The image of the samples of this step."""
        return self.run / "samples" / f"step-{self.step:06d}.png"

    @property
    def _samples_are_due(self) -> bool:
        return samples_are_due(self.step, self._settings.steps, self._settings.sample_every)

    def _complete_step(self, reporter: Reporter | None) -> None:
        """Save the samples that a killed run has left out after its last checkpoint; every process must call it."""
        if self.step and self._samples_are_due:
            missing = [True] if reporter and not self._sample_file.exists() else []
            if self.processes.gather_lists(missing):
                self._save_samples(reporter)

    def _save_first_batch(self, batch: MicroBatch) -> None:
        """Save an image of the first batch, as the model sees it; rank 0 calls it."""
        save_first_batch(self.run / FIRST_BATCH_FILE, batch, self.dataset)

    def _validate(self, reporter: Reporter | None) -> None:
        """Measure the model on held-out images, where there are such and it is due; every process calls it."""

    def _save_products(self, reporter: Reporter | None) -> None:
        """Save what a checkpoint has beside the weights and the state; every process calls it."""

    def _initialize(self) -> None:
        """Take from the data what the model needs before its first step."""

    def _check_data(self) -> None:
        """Check that the run can train on its data. Raises `ConfigError` and `DataError`."""
        check_batch(self.dataset, self.config.training, self.processes)

    def _notes(self) -> Iterator[str]:
        """Return what a person should know about this run before it trains, one line each."""
        yield from self.dataset.notes
        if self._settings.precision == "bf16" and not multiplies_bf16(self.processes.device):
            yield "this device has no instructions for bf16 and emulates them: --precision fp32 is faster here"
        saved = run_folder.read_run_config(self.run) if self._is_saved else {}
        if _RECORD not in saved:
            return
        where = str(self.run / run_folder.CONFIG_FILE)
        try:
            before = parse_object(DataRecord, saved[_RECORD], f"{where}: {_RECORD}")
        except SchemaError as error:
            raise CheckpointError(f"{error}; remove {_RECORD} from the file") from None
        if changes := self._record.changes_since(before):
            yield f"{self.config.data}: changed since the run began: {changes}"

    @property
    def _is_saved(self) -> bool:
        """Whether the run has a config file already: it is resumed."""
        return (self.run / run_folder.CONFIG_FILE).exists()

    def _saved_config(self) -> dict[str, Any]:
        """Return what the run's config file holds."""
        return {**self.config.to_dict(), _RECORD: dataclasses.asdict(self._record)}

    def _write_config(self) -> None:
        checkpoint.write_run_config(self.run, self._saved_config())

    @property
    def _settings(self) -> StepConfig:
        settings: StepConfig = self.config.training
        return settings

    def train(self) -> None:
        """Train to the last step of the config, with checkpoints, samples and a log on the way.

        A new run that fails before its first step removes its folder, so that the next attempt can use it.

        Raises:
            PreemptedError: SIGTERM, SIGHUP or SIGINT stopped the run, which has been saved.
            DataError: The data is bad, and `bad_data` is `stop`.
            MarError: Training diverged, or a file could not be written.
        """
        try:
            with Termination(self.processes) as termination, contextlib.ExitStack() as stack:
                reporter = None
                if self.processes.is_main:
                    record_environment(self.run, self.processes, self.step)
                    reporter = stack.enter_context(Reporter(self.run, self._settings, self.step))
                with self._drawing_losses(reporter):
                    self._train(termination, reporter)
        except OSError as error:
            remedy = "start again" if self._is_empty else "resume"
            raise MarError(
                f"cannot write to {self.run}: {error.strerror or error}; free some space and {remedy}"
            ) from error
        finally:
            if self._is_empty and self.processes.is_main:
                shutil.rmtree(self.run, ignore_errors=True)

    @property
    def _is_empty(self) -> bool:
        """Whether this is a new run that has not taken a step."""
        return self._new and self.step == 0

    @contextlib.contextmanager
    def _drawing_losses(self, reporter: Reporter | None) -> Iterator[None]:
        """Draw the loss curve after the block, also where it raises an error, which is what to tell then."""

        def draw() -> None:
            if reporter:
                reporter.flush()
                save_loss_curve(self.run / LOG_FILE, self.run / "loss.png")

        try:
            yield
        except (MarError, OSError):
            with contextlib.suppress(MarError, OSError):
                draw()
            raise
        draw()

    def _train(self, termination: Termination, reporter: Reporter | None) -> None:
        config, skipped = self._settings, 0
        batches = self._batches()
        self._handle_warnings(reporter, self.dataset.warnings)
        self._complete_step(reporter)
        while self.step < config.steps:
            parts = list(itertools.islice(batches, config.accumulate))
            self._handle_warnings(reporter, [warning for part in parts for warning in part.warnings])
            if reporter and self.step == 0:
                self._save_first_batch(parts[0])
                reporter.start_clock()
            result = self.train_step.update(self.step, parts)
            self.step += 1
            skipped = 0 if result.applied else skipped + 1
            if reporter:
                self._report_step(reporter, result)
            if skipped == _MOST_SKIPPED_IN_A_ROW:
                raise self._diverged(
                    f"{skipped} steps in a row had a loss or a gradient that is not finite, the last one a loss of "
                    f"{result.loss} and a gradient norm of {result.gradient_norm}"
                )
            self._validate(reporter)
            last, stopped_by = self.step == config.steps, termination.requested()
            if last or stopped_by or self.step % config.checkpoint_every == 0:
                self._save(reporter)
            if stopped_by and not last:
                raise PreemptedError(
                    f"stopped by {stopped_by.name} after step {self.step} of {config.steps}; the run is saved, "
                    f"continue it with {self.command} --resume {self.run}",
                    stopped_by,
                )
            if self._samples_are_due:
                self._save_samples(reporter)
            if self.step % _TRIM_EVERY == 0:
                trim()

    def _handle_warnings(self, reporter: Reporter | None, warnings: Iterable[str]) -> None:
        """Report defects of the data that this or another process has met, or stop; every process must call it."""
        gathered = self.processes.gather_lists(list(warnings))
        if gathered and self._settings.bad_data == "stop":
            raise DataError(f"{gathered[0]}; --bad-data report skips images that cannot be read")
        if reporter:
            self._report_warnings(reporter, gathered)

    def _report_warnings(self, reporter: Reporter, warnings: Iterable[str]) -> None:
        for warning in warnings:
            reporter.bad_data(self.step, warning)

    def _report_step(self, reporter: Reporter, result: StepResult) -> None:
        if result.applied:
            rate = learning_rate(self._settings, self.step - 1)
            reporter.step(self.step, result.loss, result.gradient_norm, rate, **result.parts)
            return
        names = ", ".join(self.dataset.name(example) for example in result.suspects[:3])
        more = f" and {len(result.suspects) - 3} more" if len(result.suspects) > 3 else ""
        reporter.skipped(
            self.step,
            f"skipped ({self.train_step.skipped} so far): a loss of {result.loss}, a gradient norm of "
            f"{result.gradient_norm} by {names}{more}",
            loss=str(result.loss),  # JSON has no infinity and no NaN
            gradient_norm=str(result.gradient_norm),
            examples=list(result.suspects),
            so_far=self.train_step.skipped,
        )

    def _save(self, reporter: Reporter | None) -> None:
        if not self.train_step.weights_are_finite():
            raise self._diverged("weights became infinite or not a number")
        if reporter:
            reporter.flush()
        self._save_products(reporter)
        save_state(self.run, self.train_step, self.step)
        if reporter and self._settings.keep > 1:
            keep_checkpoint(self.run, self.step, self._settings.keep)

    def _diverged(self, what: str) -> MarError:
        return MarError(
            f"{what} at step {self.step}; continue from the last checkpoint with {self.command} --resume {self.run} "
            "and a lower --learning-rate, or --precision fp32"
        )


def holding_run(run: pathlib.Path, processes: Processes) -> contextlib.AbstractContextManager[None]:
    """Hold the folder of a run for this job. Raises `MarError` where another one trains in it."""
    return holding_folder(run) if processes.is_main else contextlib.nullcontext()


def finish(loop: TrainingLoop[Any, Any]) -> None:
    """Train a run to its last step, and print what can be done next."""
    loop.train()
    if loop.processes.is_main:
        click.echo(f"{loop.run} is finished at step {loop.step}; {loop.next_command.format(run=loop.run)}")


def _with_epochs(config: Any, dataset: LatentDataset, epochs: int | None) -> Any:
    """Return a config with the steps of a number of epochs; each leaves out what does not fill a batch."""
    if epochs is None:
        return config
    return config.with_training({"steps": epochs * max(1, len(dataset.labels) // config.training.batch_size)})


def _common_precision(processes: Processes) -> str:
    """Return `bf16` if the devices of all processes have instructions for it, otherwise `fp32`."""
    return "bf16" if all(processes.gather_lists([multiplies_bf16(processes.device)])) else "fp32"


DECIDED_AT_START: Mapping[str, Callable[[StepConfig, Processes], Any]] = {
    "warmup_steps": lambda training, processes: training.warmup,
    "precision": lambda training, processes: training.precision or _common_precision(processes),
}
"""The settings of a run that may be None: what its start decides them to be."""


def check_batch(dataset: LatentDataset, training: StepConfig, processes: Processes) -> None:
    """Check that there is enough data for a batch, and that a batch can be split evenly.

    Raises:
        ConfigError: The dataset is smaller than a batch, or the processes and micro-batches do not divide the batch.
    """
    if len(dataset.labels) < training.batch_size:
        images = pluralize(len(dataset.labels), "image")
        raise ConfigError(f"a batch of {training.batch_size} does not fit a dataset of {images}")
    if training.batch_size % (processes.world_size * training.accumulate):
        parts = f"{pluralize(processes.world_size, 'process')} in {pluralize(training.accumulate, 'micro-batch')}"
        raise ConfigError(f"batch_size {training.batch_size} cannot be split evenly over {parts} (accumulate)")
