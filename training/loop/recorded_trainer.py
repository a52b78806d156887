"""The training run of a model whose examples are arrays of one file: captions of a NOVA, or chunks of a UVA."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

from runtime.distance import relative_l2
from runtime.errors import ConfigError
from runtime.image_grid import save_grid
from runtime.model.families import family_of, imported
from runtime.recordings.recorded_arrays import RecordedArrays
from runtime.sampling.constraints import default_sampling, plan_for
from runtime.sampling.rng import seeded_noise, seeded_order
from runtime.storage.files import replacing
from training.config import RunConfig
from training.data.loader import MicroBatch, batches_of, micro_batches
from training.loop.optimizer_step import MarTrainStep
from training.loop.training_loop import TrainingLoop
from training.reporting.reporter import Reporter

_SAMPLES = 8
_UNSUPPORTED = (
    *("flip", "init", "validation_share", "empty_classes"),
    *("fsdp", "gradient_checkpointing", "compile"),
)
"""Settings of images in classes, or of large models: of the training of a recorded file they have no meaning yet."""


class RecordedTrainer(TrainingLoop[RunConfig, MarTrainStep]):
    """A run of `mar train` on a `RecordedArrays`, see `TrainingLoop`."""

    command = "mar train"
    next_command = "export it with mar export {run} --out ARTIFACT, or train on with mar train --resume {run} --steps N"
    config_class = RunConfig
    dataset: Any  # a `RecordedArrays`, in place of a `LatentDataset`

    @classmethod
    def open_data(cls, config: RunConfig) -> Any:
        """Open the file that a config names, a `RecordedArrays`. Raises `ConfigError` and `DataError`."""
        for name in _UNSUPPORTED:
            if getattr(config.training, name):
                kind = family_of(config.model).kind
                raise ConfigError(f"{name} is not supported for the training of a {kind}; train without it")
        data: type[RecordedArrays] = imported(str(family_of(config.model).recorded))
        return data(pathlib.Path(config.data))

    @classmethod
    def fit_to_data(cls, config: RunConfig) -> tuple[RunConfig, Any]:
        """Return the config with the sizes of its data, and the data. Raises `ConfigError` and `DataError`."""
        dataset = cls.open_data(config)
        fields = {**dataset.sizes(config.model), **dataset.fitted()}
        model = dataclasses.replace(config.model, **fields)
        return RunConfig(str(pathlib.Path(config.data).resolve()), model, config.training), dataset

    def _make_train_step(self) -> MarTrainStep:
        return MarTrainStep(self.config.model, self.config.training, self.processes)

    def _check_data(self) -> None:
        self.dataset.check_fits(self.config.model)
        super()._check_data()

    def _batches(self) -> Iterator[MicroBatch]:
        processes, config = self.processes, self.config
        batches = batches_of(config.model)(
            self.dataset, config.model, config.training, processes.rank, processes.world_size
        )
        return micro_batches(batches, self.step, processes.device)

    def _save_first_batch(self, batch: MicroBatch) -> None:
        """Save nothing: the arrays are used as they are in the file."""

    def _save_samples(self, reporter: Reporter | None) -> None:
        """Draw what the first examples ask for, and report how far it is from what was recorded.

        A model that knows its examples by heart draws them again; another draws what it has learned of all of them.
        """
        model = self.train_step.averaged_model().cpu()
        if reporter is None:
            return
        config, examples = model.config, range(min(_SAMPLES, len(self.dataset.labels)))
        plan = plan_for(config, dataclasses.replace(default_sampling(config), cfg_scale=1.0))
        order = seeded_order(0, examples, config, plan.token_order)
        noise = seeded_noise(0, examples, plan.noise_steps, config)
        drawn = imported(family_of(config).eager).sample_request(
            model, self.dataset.request(examples), plan, order, noise
        )
        distance = relative_l2(drawn, self.dataset.recorded(examples, config))
        what = f"{len(examples)} samples differ from what was recorded by {distance:.3f} (relative L2)"
        reporter.event(self.step, what, sample_distance=distance)
        if self.dataset.tokenizer == "pixel":
            with replacing(self._sample_file) as temporary:
                names = [self.dataset.name(example).rpartition(": ")[2] for example in examples]
                save_grid(temporary, self.dataset.images(drawn), names, columns=len(examples))
            reporter.samples(self.step, self._sample_file)

    def _saved_config(self) -> dict[str, Any]:
        return {**super()._saved_config(), "tokenizer": self.dataset.tokenizer, "class_names": []}
