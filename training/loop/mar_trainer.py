"""A run of a MAR: made or resumed, with batches and samples of its own."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from runtime.errors import CheckpointError, ConfigError
from training.checkpoints import checkpoint
from training.config import RunConfig, TrainConfig
from training.data.codebook import fit_codebook
from training.data.latent_dataset import LatentDataset, check_model_fits, open_latents
from training.data.loader import MicroBatch, MicroBatches, micro_batches
from training.distributed import Processes
from training.loop.optimizer_step import MarTrainStep
from training.loop.state import load_state
from training.loop.training_loop import TrainingLoop, check_batch, check_no_run
from training.reporting.reporter import Reporter
from training.reporting.sample_grid import save_sample_grid


class MarTrainer(TrainingLoop[MarTrainStep]):
    """One run: `MarTrainer.start` or `MarTrainer.resume`, then `train`. Every process of a job does the same."""

    def __init__(self, run: pathlib.Path, source: LatentDataset, config: RunConfig, processes: Processes) -> None:
        check_fit(source, config, processes)
        self.config = config
        super().__init__(run, source, MarTrainStep(config.model, config.training, processes), processes)

    @classmethod
    def start(cls, run: pathlib.Path, config: RunConfig, processes: Processes | None = None) -> MarTrainer:
        """A new run; its model has as many classes and channels as the data."""
        processes = processes or Processes()
        check_no_run(run)
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
    ) -> MarTrainer:
        """The run at its last checkpoint; `changes` to its `TrainConfig`, such as more `steps`, are kept in it."""
        processes = processes or Processes()
        config = read_config(run, changes or {})
        trainer = cls(run, open_latents(pathlib.Path(config.data), config.model.img_size), config, processes)
        if (run / checkpoint.STATE_FILE).exists():
            trainer.step = load_state(run, trainer.train_step)
        else:
            trainer._begin()
        processes.wait()
        if changes and processes.first:
            trainer._write_config()
        return trainer

    @property
    def _settings(self) -> TrainConfig:
        return self.config.training

    def _begin(self) -> None:
        """What a model needs of its data before the first step."""
        model = self.config.model
        if model.head == "vq":
            self.train_step.set_codebook(fit_codebook(self.source, model, self.config.training.seed))

    def _batches(self) -> Iterator[MicroBatch]:
        me, config = self.processes, self.config
        batches = MicroBatches(self.source, config.model, config.training, me.rank, me.count)
        return micro_batches(batches, self.step, me.device)

    def _draw_samples(self, reporter: Reporter | None) -> None:
        model = self.train_step.averaged_model()
        if reporter:
            image = self.run / "samples" / f"step-{self.step:06d}.png"
            save_sample_grid(image, model, self.source)
            reporter.samples(self.step, image)

    def _write_config(self) -> None:
        value = {
            **self.config.to_dict(),
            "tokenizer": self.source.tokenizer,
            "class_names": list(self.source.classes),
        }
        checkpoint.write_run_config(self.run, value)


def fitted(config: RunConfig) -> tuple[RunConfig, LatentDataset]:
    """The data of `config`, opened, and `config` with a model of as many classes and channels. Raises `DataError`."""
    source = open_latents(pathlib.Path(config.data), config.model.img_size)
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


def check_fit(source: LatentDataset, config: RunConfig, processes: Processes) -> None:
    """Refuse data that is not what the model was made for, too little of it, or a batch that cannot be shared out."""
    check_model_fits(source, config.model, config.data)
    check_batch(source, config.training, processes)
