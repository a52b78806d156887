"""The training run of a MAR: its data, its batches and its sample images."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

from runtime.image_files import parse_color
from training.checkpoints import checkpoint
from training.config import RunConfig
from training.data.class_names import check_same_classes
from training.data.codebook import fit_codebook
from training.data.latent_dataset import LatentDataset, check_model_fits, open_latents
from training.data.loader import MicroBatch, MicroBatches, micro_batches
from training.loop.optimizer_step import MarTrainStep
from training.loop.training_loop import TrainingLoop
from training.reporting.reporter import Reporter
from training.reporting.sample_grid import save_sample_grid


class MarTrainer(TrainingLoop[RunConfig, MarTrainStep]):
    """A run of `mar train`, see `TrainingLoop`."""

    command = "mar train"
    next_command = "export it with mar export {run} --out ARTIFACT"
    config_class = RunConfig

    @classmethod
    def open_data(cls, config: RunConfig) -> LatentDataset:
        """Open the images or cached latents that a config names. Raises `DataError`."""
        background = parse_color("background", config.training.background)
        return open_latents(pathlib.Path(config.data), config.model.img_size, background)

    @classmethod
    def fit_to_data(cls, config: RunConfig) -> tuple[RunConfig, LatentDataset]:
        """Return the config with as many classes and channels as its data has, and the data. Raises `DataError`."""
        dataset = cls.open_data(config)
        model = dataclasses.replace(config.model, vae_embed_dim=dataset.channels, class_num=len(dataset.classes))
        return RunConfig(str(pathlib.Path(config.data).resolve()), model, config.training), dataset

    def _make_train_step(self) -> MarTrainStep:
        return MarTrainStep(self.config.model, self.config.training, self.processes)

    def _check_data(self) -> None:
        if (self.run / checkpoint.CONFIG_FILE).exists():  # the run is resumed
            config = checkpoint.read_run_config(self.run)
            names = checkpoint.read_class_names(config, str(self.run / checkpoint.CONFIG_FILE))
            check_same_classes(self.dataset.classes, names, self.config.data, str(self.run))
        check_model_fits(self.dataset, self.config.model, self.config.data)
        super()._check_data()

    def _initialize(self) -> None:
        model = self.config.model
        if model.head == "vq":
            self.train_step.set_codebook(fit_codebook(self.dataset, model, self.config.training.seed))

    def _batches(self) -> Iterator[MicroBatch]:
        processes, config = self.processes, self.config
        batches = MicroBatches(self.dataset, config.model, config.training, processes.rank, processes.world_size)
        return micro_batches(batches, self.step, processes.device)

    def _save_samples(self, reporter: Reporter | None) -> None:
        model = self.train_step.averaged_model()
        if reporter:
            save_sample_grid(self._sample_file, model, self.dataset)
            reporter.samples(self.step, self._sample_file)

    def _saved_config(self) -> dict[str, Any]:
        names = {"tokenizer": self.dataset.tokenizer, "class_names": list(self.dataset.classes)}
        return {**super()._saved_config(), **names}
