"""The settings of the runs that train a new head for a model whose backbone stays frozen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from runtime.errors import ConfigError
from runtime.model.config import ModelConfig
from training.config import BaseRunConfig, StepConfig, read_training, setting

_WARMUP = 100  # steps


@dataclasses.dataclass(frozen=True)
class HeadTraining(StepConfig):
    """The settings of the training of a head. Its examples are tokens.

    `metadata["help"]` of each field says what it does. Of the fields without help, `checkpoint` to `latent_shift` are
    the arguments of `load_checkpoint`, and `checkpoint_sha256` is the hash of what was loaded. `teacher_steps` and
    `cfg_scale` are those of the teacher of a distilled head.

    Raises:
        ConfigError: A value has the wrong type or lies outside its limits.
    """

    unit: ClassVar[str] = "tokens"

    steps: int = setting(3000, "The number of training steps.", least=1)
    batch_size: int = setting(1024, "The number of tokens per training step.", least=1)
    learning_rate: float = setting(1e-3, "The largest learning rate. It falls to zero along a cosine.", above=0)
    decay_share: float = setting(1.0, "")
    gradient_clip: float = setting(1.0, "Largest norm of the gradient; a longer one is scaled down to it.", above=0)
    ema_rate: float = setting(0.0, "Decay rate of the moving average of the weights.", least=0, below=1)
    count: int = setting(
        8192, "The number of images to run the backbone on. The head is trained on 16 tokens of each.", least=1
    )
    checkpoint: str = setting("", "")
    checkpoint_sha256: str = setting("", "")
    size: str = setting("", "")
    tokenizer: str = setting("", "")
    model_config: str = setting("", "")
    latent_scale: float | None = setting(None, "")
    latent_shift: float | None = setting(None, "")
    teacher_steps: int = setting(0, "", least=0)
    cfg_scale: float = setting(1.0, "", least=0)

    @property
    def warmup(self) -> int:
        """The number of steps over which the learning rate grows."""
        return min(_WARMUP, self.steps) if self.warmup_steps is None else self.warmup_steps


RESUMED_OPTIONS = ("learning_rate", "precision", "bad_data", "checkpoint_every", "sample_every", "keep")
"""The fields of `HeadTraining` that are options of the commands, and can be changed when a run is resumed."""
HEAD_OPTIONS = ("count", "steps", "batch_size", "seed", *RESUMED_OPTIONS)
"""All that are options of the commands."""


@dataclasses.dataclass(frozen=True)
class HeadRunConfig(BaseRunConfig):
    """The config of a run of `mar flow-head` or `mar distill`.

    Attributes:
        data: The path of the dataset, or of a cache of latents.
        model: The shape of the model with its new head.
        training: How the head is trained.
    """

    model: ModelConfig
    training: HeadTraining

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> HeadRunConfig:
        """Build the config from the mapping that `to_dict` returned.

        Raises:
            ConfigError: A key is missing or unknown, or a value is impossible.
        """
        if not isinstance(values["data"], str) or not isinstance(values["training"], dict):
            raise ConfigError(f"{where}: data must be a path, and training a table")
        model = ModelConfig.from_dict(values["model"], f"{where}, model")
        return cls(values["data"], model, read_training(HeadTraining, values["training"], where))


@dataclasses.dataclass(frozen=True)
class FlowHeadConfig(HeadRunConfig):
    """The config of a run of `mar flow-head`.

    Raises:
        ConfigError: The head is a distilled one.
    """

    def __post_init__(self) -> None:
        if self.model.head != "flow" or self.model.distilled_steps:
            raise ConfigError("the head is no flow head of any number of steps")


@dataclasses.dataclass(frozen=True)
class DistillConfig(HeadRunConfig):
    """The config of a run of `mar distill`.

    Raises:
        ConfigError: The head is no distilled one, or the teacher's steps are no multiple of its steps.
    """

    def __post_init__(self) -> None:
        steps, teacher_steps = self.model.distilled_steps, self.training.teacher_steps
        if not steps:
            raise ConfigError("the head is no distilled one")
        if not teacher_steps or teacher_steps % steps:
            raise ConfigError(
                f"the teacher's steps must be a multiple of those of the head, {steps}, found {teacher_steps}"
            )
