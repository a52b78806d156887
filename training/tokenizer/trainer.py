"""Training of a tokenizer in a run folder: start, resume, batches, sample images and metrics.

The folder has the files of a run of `mar train`, and `tokenizer.safetensors` for `mar cache-latents --tokenizer`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from runtime.errors import BackendError, CheckpointError, ConfigError, DataError
from training.checkpoints import checkpoint
from training.data.datasets import Dataset, open_dataset, to_rgb
from training.data.latent_dataset import PixelLatents
from training.data.loader import ImageBatches, MicroBatch, micro_batches
from training.distributed import Processes
from training.evaluation.feature_networks import EfficientNet
from training.loop.state import load_state
from training.loop.training_loop import TrainingLoop, check_batch, check_no_run
from training.reporting.reporter import Reporter
from training.tokenizer.config import TokenizerConfig, TokenizerTraining
from training.tokenizer.reconstruction import ReconstructionEvaluator, measure_latent_scale
from training.tokenizer.step import TokenizerTrainStep


class TokenizerTrainer(TrainingLoop[TokenizerTrainStep]):
    """One run: `start` or `resume`, then `train`."""

    command = "mar train-tokenizer"
    use = "encode images with mar cache-latents --data DATA --tokenizer {run}/tokenizer.safetensors --out LATENTS"

    def __init__(self, run: pathlib.Path, config: TokenizerConfig, processes: Processes) -> None:
        self.config = config
        self._dataset = to_rgb(open_dataset(pathlib.Path(config.data), config.training.image_size))
        source = PixelLatents(self._dataset)
        check_batch(source, config.training, processes)
        super().__init__(run, source, TokenizerTrainStep(config, processes), processes)
        self._evaluator: ReconstructionEvaluator | None = None

    @classmethod
    def start(cls, run: pathlib.Path, config: TokenizerConfig, processes: Processes | None = None) -> TokenizerTrainer:
        """A new run."""
        processes = processes or Processes()
        check_no_run(run)
        config = dataclasses.replace(config, data=str(pathlib.Path(config.data).resolve()))
        trainer = cls(run, config, processes)
        processes.barrier()  # all have seen that there is no run yet
        if processes.is_main:
            checkpoint.write_run_config(run, config.to_dict())
        return trainer

    @classmethod
    def resume(
        cls, run: pathlib.Path, processes: Processes | None = None, changes: Mapping[str, Any] | None = None
    ) -> TokenizerTrainer:
        """The run at its last checkpoint; `changes` to its `TokenizerTraining` are kept in it."""
        processes = processes or Processes()
        trainer = cls(run, read_tokenizer_config(run, changes or {}), processes)
        if (run / checkpoint.STATE_FILE).exists():
            trainer.step = load_state(run, trainer.train_step)
        processes.barrier()
        if changes and processes.is_main:
            checkpoint.write_run_config(run, trainer.config.to_dict())
        return trainer

    @property
    def _settings(self) -> TokenizerTraining:
        return self.config.training

    def _batches(self) -> Iterator[MicroBatch]:
        me, vae, training = self.processes, self.config.model, self.config.training
        latent_shape = (vae.latent_channels, training.image_size // vae.stride)
        return micro_batches(
            ImageBatches(self.source, latent_shape, training, me.rank, me.world_size), self.step, me.device
        )

    def _save(self, reporter: Reporter | None) -> None:
        super()._save(reporter)
        vae = self.train_step.averaged_model()
        if reporter:
            vae.latent_scale = measure_latent_scale(vae, self._dataset)
            self._report_dataset_warnings(reporter, self._dataset)
            checkpoint.save_vae(self.run / checkpoint.TOKENIZER_FILE, vae)

    def _draw_samples(self, reporter: Reporter | None) -> None:
        vae = self.train_step.averaged_model()
        if not reporter:
            return
        self._evaluator = self._evaluator or self._open_evaluator(reporter)
        image = self.run / "samples" / f"step-{self.step:06d}.png"
        self._evaluator.save_grid(image, vae)
        reporter.samples(self.step, image)
        metrics = self._evaluator.evaluate(vae)
        message = f"PSNR {metrics['psnr']:.2f} dB"
        if "frechet" in metrics:
            message += f", Fréchet distance {metrics['frechet']:.3f} in features of EfficientNet-Lite0"
        reporter.event(self.step, f"{message}, on {self.config.training.eval_count} images", metrics=metrics)

    def _open_evaluator(self, reporter: Reporter) -> ReconstructionEvaluator:
        """Use test images if the dataset has them, and EfficientNet-Lite0 if it is installed."""
        training, network, dataset = self.config.training, None, self._dataset
        with contextlib.suppress(DataError):
            dataset = to_rgb(open_dataset(pathlib.Path(self.config.data), training.image_size, "test"))
        try:
            network = EfficientNet()
        except BackendError as error:
            reporter.event(self.step, f"the Fréchet distance of reconstructions is left out: {error}")
        evaluator = ReconstructionEvaluator(dataset, min(training.eval_count, len(dataset.labels)), network)
        self._report_dataset_warnings(reporter, dataset)
        return evaluator

    def _report_dataset_warnings(self, reporter: Reporter, dataset: Dataset) -> None:
        """Report the warnings of images that are read outside of the training steps."""
        for warning in dataset.warnings:
            reporter.bad_data(self.step, warning)


def read_tokenizer_config(run: pathlib.Path, changes: Mapping[str, Any]) -> TokenizerConfig:
    """The config that the run keeps, with `changes` to its `TokenizerTraining`. Raises `CheckpointError`,
    `ConfigError`."""
    saved, where = checkpoint.read_run_config(run), run / checkpoint.CONFIG_FILE
    try:
        config = TokenizerConfig.from_dict(saved, str(where))
    except ConfigError as error:
        raise CheckpointError(f"{where}: not the config of a run of mar train-tokenizer ({error})") from None
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **changes))
