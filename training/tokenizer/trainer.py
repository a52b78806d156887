"""Training of a tokenizer in a run folder: start, resume, batches, sample images and metrics.

The folder has the files of a run of `mar train`, and `tokenizer.safetensors` for `mar cache-latents --tokenizer`.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Mapping

from torch import Tensor

from runtime.errors import BackendError, CheckpointError, DataError
from runtime.image_files import parse_color
from training.checkpoints import checkpoint, run_folder
from training.checkpoints.published_files import load_vae
from training.data.datasets import ImageDataset, open_dataset, to_rgb
from training.data.latent_dataset import PixelLatents
from training.data.loader import ImageBatches, MicroBatch, micro_batches
from training.evaluation.feature_networks import EfficientNet
from training.loop.training_loop import TrainingLoop
from training.models.autoencoder import AutoencoderKL
from training.reporting.reporter import Reporter
from training.tokenizer.config import TokenizerConfig
from training.tokenizer.principal_components import principal_components
from training.tokenizer.reconstruction import ReconstructionEvaluator, measure_latent_scale
from training.tokenizer.step import TokenizerTrainStep


def _open_images(config: TokenizerConfig, split: str) -> ImageDataset:
    """Open a split of the images that a config names, in RGB. Raises `DataError`."""
    background = parse_color("background", config.training.background)
    return to_rgb(open_dataset(pathlib.Path(config.data), config.training.image_size, split, background))


class TokenizerTrainer(TrainingLoop[TokenizerConfig, TokenizerTrainStep]):
    """A run of `mar train-tokenizer`, see `TrainingLoop`."""

    command = "mar train-tokenizer"
    next_command = (
        "encode images with mar cache-latents --data DATA --tokenizer {run}/tokenizer.safetensors --out LATENTS, "
        "or train on with mar train-tokenizer --resume {run} --steps N"
    )
    config_class = TokenizerConfig
    dataset: PixelLatents
    _evaluator: ReconstructionEvaluator | None = None

    @classmethod
    def open_data(cls, config: TokenizerConfig) -> PixelLatents:
        """Open the images that a config names, in RGB. Raises `DataError`."""
        return PixelLatents(_open_images(config, "train"))

    def _make_train_step(self) -> TokenizerTrainStep:
        return TokenizerTrainStep(self.config, self.processes)

    def _initialize(self) -> None:
        if self.config.training.init:
            self.train_step.set_autoencoder(self._initial_weights(pathlib.Path(self.config.training.init)))
        elif self.config.model.linear_path:
            self.train_step.set_autoencoder(principal_components(self.config.model, self.dataset.image_dataset))

    def _initial_weights(self, file: pathlib.Path) -> Mapping[str, Tensor]:
        """Return the weights of the autoencoder to begin with.

        Raises:
            CheckpointError: The file is missing or damaged, or has an autoencoder of another shape.
        """
        vae = load_vae(file)
        if vae.config != self.config.model:
            raise CheckpointError(f"{file}: expected an autoencoder of {self.config.model}, found one of {vae.config}")
        return vae.state_dict()

    def _batches(self) -> Iterator[MicroBatch]:
        me, vae, training = self.processes, self.config.model, self.config.training
        latent_shape = (vae.latent_channels, training.image_size // vae.stride)
        return micro_batches(
            ImageBatches(self.dataset, latent_shape, training, me.rank, me.world_size), self.step, me.device
        )

    def _save_products(self, reporter: Reporter | None) -> None:
        vae = self.train_step.averaged_model()
        if reporter:
            self._set_scale(vae)
            self._report_warnings(reporter, self.dataset.warnings)
            checkpoint.save_vae(self.run / run_folder.TOKENIZER_FILE, vae)

    def _set_scale(self, vae: AutoencoderKL) -> None:
        """Set the scale of the latents: that of the encoder if it is kept, otherwise a measured one."""
        if self.config.training.decoder_only:
            saved = self.run / run_folder.TOKENIZER_FILE
            kept = load_vae(saved if saved.exists() else pathlib.Path(self.config.training.init))
            vae.latent_scale, vae.latent_shift = kept.latent_scale, kept.latent_shift
            vae.scale_source = kept.scale_source
        else:
            vae.latent_scale = measure_latent_scale(vae, self.dataset.image_dataset)
            vae.scale_source = "the measurement of mar train-tokenizer"

    def _save_samples(self, reporter: Reporter | None) -> None:
        vae = self.train_step.averaged_model()
        if not reporter:
            return
        self._evaluator = self._evaluator or self._open_evaluator(reporter)
        metrics = self._evaluator.evaluate(vae)
        message = f"PSNR {metrics['psnr']:.2f} dB"
        if "frechet" in metrics:
            message += f", Fréchet distance {metrics['frechet']:.3f} in features of EfficientNet-Lite0"
        reporter.event(self.step, f"{message}, on {self.config.training.eval_count} images", metrics=metrics)
        reporter.flush()
        self._evaluator.save_grid(self._sample_file, vae)
        reporter.samples(self.step, self._sample_file)

    def _open_evaluator(self, reporter: Reporter) -> ReconstructionEvaluator:
        """Use test images if the dataset has them, and EfficientNet-Lite0 if it is installed."""
        training, network, dataset = self.config.training, None, self.dataset.image_dataset
        with contextlib.suppress(DataError):
            dataset = _open_images(self.config, "test")
        try:
            network = EfficientNet()
        except BackendError as error:
            reporter.event(self.step, f"the Fréchet distance of reconstructions is left out: {error}")
        evaluator = ReconstructionEvaluator(dataset, min(training.eval_count, len(dataset.labels)), network)
        self._report_warnings(reporter, dataset.warnings)
        return evaluator
