"""The training run of a MAR: its data, its batches and its sample images."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import torch

from runtime.image_files import parse_color
from training.checkpoints import checkpoint, run_folder
from training.config import RunConfig
from training.data.class_names import check_no_gaps, check_same_classes
from training.data.codebook import fit_codebook
from training.data.latent_dataset import LatentDataset, check_mirror_images, check_model_fits, open_latents
from training.data.loader import MicroBatch, batches_of, micro_batches
from training.data.validation_split import TrainingPart
from training.loop.optimizer_step import MarTrainStep
from training.loop.schedule import validation_is_due
from training.loop.training_loop import TrainingLoop
from training.loop.transfer import transfer_weights
from training.loop.validation import ValidationLoss
from training.reporting.progress import print_lines
from training.reporting.reporter import Reporter
from training.reporting.sample_grid import save_sample_grid

CODEBOOK = "diffloss.codebook"
"""The name of the parameter that is the codebook of a VQ head."""


class MarTrainer(TrainingLoop[RunConfig, MarTrainStep]):
    """A run of `mar train`, see `TrainingLoop`."""

    command = "mar train"
    next_command = "export it with mar export {run} --out ARTIFACT, or train on with mar train --resume {run} --steps N"
    config_class = RunConfig

    @classmethod
    def open_data(cls, config: RunConfig) -> LatentDataset:
        """Open the images or cached latents that a config names, without held-out ones. Raises `DataError`."""
        background, share = parse_color("background", config.training.background), config.training.validation_share
        dataset = open_latents(pathlib.Path(config.data), config.model.img_size, background)
        return TrainingPart(dataset, share) if share else dataset

    @classmethod
    def fit_to_data(cls, config: RunConfig) -> tuple[RunConfig, LatentDataset]:
        """Return the config with as many classes and channels as its data has, and the data. Raises `DataError`."""
        dataset = cls.open_data(config)
        if not config.training.empty_classes:
            check_no_gaps(dataset.classes, dataset.labels, config.data)
        model = dataclasses.replace(config.model, vae_embed_dim=dataset.channels, class_num=len(dataset.classes))
        return RunConfig(str(pathlib.Path(config.data).resolve()), model, config.training), dataset

    def _make_train_step(self) -> MarTrainStep:
        return MarTrainStep(self.config.model, self.config.training, self.processes)

    def _check_data(self) -> None:
        if self._is_saved:
            config = run_folder.read_run_config(self.run)
            names = checkpoint.read_class_names(config, str(self.run / run_folder.CONFIG_FILE))
            check_same_classes(self.dataset.classes, names, self.config.data, str(self.run))
        check_model_fits(self.dataset, self.config.model, self.config.data)
        check_mirror_images(self.dataset, self.config.training.flip, self.config.data)
        super()._check_data()

    def _initialize(self) -> None:
        taken = self._take_weights() if self.config.training.init else frozenset[str]()
        model = self.config.model
        if model.head == "vq" and CODEBOOK not in taken:
            codebook = fit_codebook(self.dataset, model, self.config.training.seed)
            self.train_step.set_weights({CODEBOOK: torch.from_numpy(codebook)})

    def _take_weights(self) -> frozenset[str]:
        """Take the weights of the checkpoint that the run begins with; return the names of those taken.

        Raises:
            CheckpointError: The checkpoint cannot be read, or none of its blocks fits.
        """
        source = checkpoint.load_checkpoint(pathlib.Path(self.config.training.init))
        transfer = transfer_weights(source, self.train_step.full_weights(), self.config.model, self.dataset.classes)
        self.train_step.set_weights(transfer.weights)
        if self.processes.is_main:
            print_lines(transfer.lines)
        return frozenset(transfer.weights)

    def _batches(self) -> Iterator[MicroBatch]:
        processes, config = self.processes, self.config
        batches = batches_of(config.model)(
            self.dataset, config.model, config.training, processes.rank, processes.world_size
        )
        return micro_batches(batches, self.step, processes.device)

    def _validate(self, reporter: Reporter | None) -> None:
        if self._validation is None or not validation_is_due(self.step, self.config.training.steps):
            return
        model = self.train_step.averaged_model()
        if reporter:
            reporter.validation(self.step, self._validation(model, self.processes.device))

    @functools.cached_property
    def _validation(self) -> ValidationLoss | None:
        """The loss on held-out images; None where none are held out."""
        held_out = self.dataset.held_out if isinstance(self.dataset, TrainingPart) else None
        return None if held_out is None else ValidationLoss(held_out, self.config)

    def _save_samples(self, reporter: Reporter | None) -> None:
        model = self.train_step.averaged_model()
        if reporter:
            save_sample_grid(self._sample_file, model, self.dataset)
            reporter.samples(self.step, self._sample_file)

    def _saved_config(self) -> dict[str, Any]:
        names = {"tokenizer": self.dataset.tokenizer, "class_names": list(self.dataset.classes)}
        return {**super()._saved_config(), **names}
