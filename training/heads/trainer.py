"""The runs that train a new flow head for a checkpoint with a frozen backbone: on real tokens, or by distillation."""

from __future__ import annotations

import abc
import dataclasses
import functools
import pathlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from runtime.errors import CheckpointError, RequestError
from runtime.image_files import parse_color
from runtime.model.families import check_supported
from runtime.progress import Progress
from training.checkpoints import checkpoint, run_folder
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint
from training.data.class_names import check_known_classes
from training.data.latent_dataset import LatentDataset, check_model_fits, open_latents
from training.data.loader import MicroBatch
from training.heads.config import DistillConfig, FlowHeadConfig, HeadRunConfig, HeadTraining
from training.heads.dataset import HeadDataset, collect_head_dataset
from training.heads.distillation import distillation_loss, guided_teacher, teacher_trajectories
from training.heads.flow_training import flow_loss, with_flow_head
from training.heads.train_step import HeadTrainStep, Loss, row_batches
from training.loop.training_loop import TrainingLoop
from training.models.mar import MAR
from training.reporting.reporter import Reporter
from training.reporting.sample_grid import save_sample_grid


class HeadTrainer(TrainingLoop[HeadRunConfig, HeadTrainStep]):
    """A run that trains a head, see `TrainingLoop`. Its folder holds the whole model, for `mar export`.

    The head is trained on what the backbone says about masked tokens of real images. That is computed before the first
    step, and again when an unfinished run is resumed.

    Attributes:
        origin: The key of the run's config that says what the head was made from.
    """

    next_command = "export it with mar export {run} --out ARTIFACT"
    config_class: ClassVar[type[HeadRunConfig]]
    origin: ClassVar[str]

    @classmethod
    def open_data(cls, config: HeadRunConfig) -> LatentDataset:
        """Open the images or cached latents that a config names. Raises `DataError`."""
        background = parse_color("background", config.training.background)
        return open_latents(pathlib.Path(config.data), config.model.img_size, background)

    def train(self) -> None:
        """Train to the last step, see `TrainingLoop.train`."""
        if self.step < self.config.training.steps:
            _ = self._loss  # before the loop, whose time per step it would spoil
        super().train()

    @abc.abstractmethod
    def _make_loss(self, model: MAR) -> Loss:
        """Return the loss of the head of `model`, on `_rows`."""

    @functools.cached_property
    def _loss(self) -> Loss:
        return self._make_loss(self.train_step.mar)

    @functools.cached_property
    def _rows(self) -> HeadDataset:
        training = self.config.training
        with Progress(training.count, "running the backbone", unit="images") as progress:
            return collect_head_dataset(
                self._source.model, self.dataset, training.count, training.seed, progress.update
            )

    def _make_train_step(self) -> HeadTrainStep:
        model = with_flow_head(self._source.model, self.config.model.distilled_steps)
        return HeadTrainStep(model, self._loss_of, self.config.training, self.processes)

    def _loss_of(self, rows: Tensor, random: np.random.Generator) -> Tensor:
        """Return the loss [] of rows at indices int64 [B]; what it needs is computed at the first call."""
        return self._loss(rows, random)

    def _check_data(self) -> None:
        check_model_fits(self.dataset, self.config.model, self.config.data)
        check_known_classes(self.dataset.classes, self._source.class_names, self.config.data, self._source.source)

    @functools.cached_property
    def _source(self) -> Checkpoint:
        """The checkpoint that gets the new head."""
        source = load_source(self.config.training)
        if source.sha256 != self.config.training.checkpoint_sha256:
            raise CheckpointError(
                f"{self.config.training.checkpoint}: not the checkpoint that {self.run} was begun with; copy that one "
                "back, or start a new run"
            )
        return source

    def _batches(self) -> Iterator[MicroBatch]:
        yield from row_batches(self._rows, self.config.training, self.step)

    def _save_first_batch(self, batch: MicroBatch) -> None:
        """Save nothing: the batches are tokens."""

    def _save_samples(self, reporter: Reporter | None) -> None:
        if reporter:
            save_sample_grid(self._sample_file, self.train_step.mar.eval(), self.dataset)
            reporter.samples(self.step, self._sample_file)

    def _saved_config(self) -> dict[str, Any]:
        source = self._source
        made_from = {"file": source.source, "sha256": source.sha256, **self._settings_of_origin}
        names = {"tokenizer": source.tokenizer, "class_names": list(source.class_names)}
        return {**super()._saved_config(), **names, self.origin: made_from}

    @property
    def _settings_of_origin(self) -> dict[str, Any]:
        return {}

    def _write_config(self) -> None:
        if self._source.vae is not None:
            checkpoint.save_vae(self.run / run_folder.TOKENIZER_FILE, self._source.vae)
        super()._write_config()


class FlowHeadTrainer(HeadTrainer):
    """A run of `mar flow-head` (flow matching, arXiv 2210.02747). The head starts from the weights of the old one."""

    command = "mar flow-head"
    config_class = FlowHeadConfig
    origin = "head_trained_for"

    def _make_loss(self, model: MAR) -> Loss:
        return flow_loss(model, self._rows)


class DistillTrainer(HeadTrainer):
    """A run of `mar distill`, see `training.heads.distillation`."""

    command = "mar distill"
    config_class = DistillConfig
    origin = "distilled_from"

    def _make_loss(self, model: MAR) -> Loss:
        training, steps = self.config.training, self.config.model.distilled_steps
        teacher = guided_teacher(self._source.model, training.cfg_scale)
        with Progress(len(self._rows), "running the teacher", unit="tokens") as progress:
            trajectories = teacher_trajectories(
                teacher, self._rows, steps, training.teacher_steps, training.seed, progress.update
            )
        return distillation_loss(model.diffloss.net, self._rows, trajectories)

    @property
    def _settings_of_origin(self) -> dict[str, Any]:
        return {"cfg_scale": self.config.training.cfg_scale, "teacher_steps": self.config.training.teacher_steps}


def head_config(
    kind: type[HeadRunConfig], data: pathlib.Path, training: HeadTraining, distilled_steps: int = 0
) -> HeadRunConfig:
    """Return the config of a new run.

    Args:
        kind: The class of the config.
        data: The dataset.
        training: The settings, which name the checkpoint.
        distilled_steps: The steps of a distilled head; 0 for a flow head.

    Raises:
        RequestError: The checkpoint has causal attention, a VQ head, or a distilled head.
        CheckpointError: The checkpoint cannot be read.
    """
    source = load_source(training)
    model = source.model.config
    check_supported(model, "training a head on a frozen backbone")
    if model.distilled_steps and distilled_steps:
        raise RequestError(
            f"{source.source} has a distilled head, which cannot be a teacher; distill its original checkpoint"
        )
    new = dataclasses.replace(model, head="flow", distilled_steps=distilled_steps)
    return kind(str(data.resolve()), new, dataclasses.replace(training, checkpoint_sha256=source.sha256))


def load_source(training: HeadTraining) -> Checkpoint:
    """Load the checkpoint that settings name, once for equal names. Raises `MarError`."""
    names = ("checkpoint", "size", "tokenizer", "model_config", "latent_scale", "latent_shift")
    return _load(*(getattr(training, name) for name in names))


@functools.lru_cache(maxsize=1)
def _load(
    path: str, size: str, tokenizer: str, model_config: str, latent_scale: float | None, latent_shift: float | None
) -> Checkpoint:
    return load_checkpoint(
        pathlib.Path(path),
        pathlib.Path(model_config) if model_config else None,
        name=size or None,
        tokenizer=pathlib.Path(tokenizer) if tokenizer else None,
        latent_scale=latent_scale,
        latent_shift=latent_shift,
    )
