"""What decides a run, as one typed value: from a TOML file, from flags, and from the run that keeps it.

A setting is described once, in its field: its type, its default, what it may be and what it does. Flags,
checks and `mar train --help` are made from that.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from runtime.errors import ConfigError
from runtime.model.config import LATER_FIELDS, ModelConfig
from training.models.model_sizes import MODEL_SIZES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_Config = TypeVar("_Config", bound="StepConfig")

_KEYS = {"data", "preset", "model", "training"}


def setting(default: Any, tells: str, **limits: Any) -> Any:
    """A field with its help; `least`, `above` and `below` limit numbers, `choices` texts."""
    return dataclasses.field(default=default, metadata={"help": tells, **limits})


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """What every training has: how many steps of what, and what is kept on the way. Raises `ConfigError`."""

    steps: int = dataclasses.field(metadata={"help": "Training steps in all.", "least": 1})
    batch_size: int = setting(64, "Images a step, over all processes and micro-batches.", least=1)
    accumulate: int = setting(1, "Micro-batches a step, to fit a large batch into little memory.", least=1)
    learning_rate: float = setting(1e-4, "Reached after the warm-up, constant from then on.", above=0)
    warmup_steps: int = setting(500, "Steps over which the learning rate grows linearly.", least=0)
    gradient_clip: float = setting(3.0, "The largest norm of a gradient.", above=0)
    ema_rate: float = setting(0.9999, "Of the moving average of the weights.", least=0, below=1)
    flip: bool = setting(True, "Mirror half of the images.")
    seed: int = setting(0, "Of the first weights and of everything drawn.", least=0)
    precision: str = setting("bf16", "bf16: autocast, with attention and the loss in fp32.", choices=("bf16", "fp32"))
    bad_data: str = setting(
        "report", "What to do about bad images: tell and go on, or stop.", choices=("report", "stop")
    )
    workers: int = setting(0, "Processes beside each that trains, which read batches ahead of it.", least=0)
    checkpoint_every: int = setting(500, "Steps.", least=1)
    sample_every: int = setting(2000, "Steps.", least=1)

    def __post_init__(self) -> None:
        types = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _checked(field.name, getattr(self, field.name), types[field.name], field.metadata)
            object.__setattr__(self, field.name, value)


@dataclasses.dataclass(frozen=True)
class TrainConfig(StepConfig):
    """How to train a MAR: optimisation as published, sizes to fit the machine. Raises `ConfigError`."""

    weight_decay: float = setting(0.02, "For the matrices of the transformer.", least=0)
    attention: str = setting("fp32", "Of attention within bf16 autocast.", choices=("fp32", "bf16"))
    fsdp: bool = setting(False, "Spread weights and optimizer over the processes, for models as large as MAR-H.")
    gradient_checkpointing: bool = setting(False, "Compute every block again when its gradient is due: less memory.")
    compile: bool = setting(False, "Let torch.compile build every block; takes minutes first.")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All that decides a run: where its images are, the model, how it is trained."""

    data: str
    model: ModelConfig
    training: TrainConfig

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> RunConfig:
        """The config that `values` tell: `data`, `training`, and `preset` or `model` or both, the second changing the
        first. `where` names their source in a `ConfigError`."""
        data, model = resolve_model(values, MODEL_SIZES, where)
        where_model = f"{where}, model {values['preset']}" if "preset" in values else f"{where}, model"
        if "preset" not in values and (missing := sorted(field_names(ModelConfig) - LATER_FIELDS - model.keys())):
            raise ConfigError(f"{where}: no preset (--preset), and without one model lacks {', '.join(missing)}")
        config = ModelConfig.from_dict(model, where_model)
        if config.distilled_steps:
            raise ConfigError(
                f"{where_model}: distilled_steps is what mar distill makes of a trained model; leave it away"
            )
        return cls(data, config, read_training(TrainConfig, values.get("training", {}), where))

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_toml(self) -> str:
        return to_toml(self.to_dict())


def to_toml(config: Mapping[str, Any]) -> str:
    """A config with the tables `model` and `training` as `read_toml` reads it back."""
    parts = [[f"data = {_toml(config['data'])}"]] if "data" in config else []
    for name in ("model", "training"):
        parts.append([f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in config[name].items())])
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def resolved_toml(values: Mapping[str, Any], where: str, read: Callable[[Mapping[str, Any], str], Any]) -> str:
    """The config that `read` makes of `values`, without `data` and `steps` where they are still to be told."""
    whole, training = {"data": "still to be told", **values}, values.get("training", {})
    if isinstance(training, Mapping):  # `read` refuses anything else
        whole["training"] = {"steps": 1, **training}
    config = read(whole, where).to_dict()
    if "data" not in values:
        del config["data"]
    if "steps" not in training:
        del config["training"]["steps"]
    return to_toml(config)


def resolve_model(
    values: Mapping[str, Any], presets: Mapping[str, Mapping[str, Any]], where: str
) -> tuple[str, dict[str, Any]]:
    """`data` and the fields of the model: those of `model`, over those of `preset`. Raises `ConfigError`."""
    check_known_keys(values, _KEYS, where)
    for key in ("model", "training"):
        if not isinstance(values.get(key, {}), Mapping):
            raise ConfigError(f"{where}: {key} must be a table, found {values[key]!r}")
    if "data" not in values:
        raise ConfigError(f"{where}: data is missing (--data, the folder of the dataset)")
    data, preset = values["data"], values.get("preset", "")
    if not isinstance(data, str) or not data:
        raise ConfigError(f"{where}: data must be the path of a dataset, found {data!r}")
    if "preset" in values and preset not in presets:
        raise ConfigError(f"{where}: preset must be one of {', '.join(presets)}, found {preset!r}")
    return data, {**presets.get(preset, {}), **values.get("model", {})}


def read_training(kind: type[_Config], values: Mapping[str, Any], where: str) -> _Config:
    """The table `training` as a `kind`. Raises `ConfigError`."""
    check_known_keys(values, field_names(kind), f"{where}, training")
    if "steps" not in values:
        raise ConfigError(f"{where}, training: steps is missing (--steps)")
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def read_toml(path: pathlib.Path) -> dict[str, Any]:
    """The values of a config file, for `RunConfig.from_dict`. Raises `ConfigError`."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not TOML ({error})") from error


def merge_flags(
    path: pathlib.Path | None, values: Mapping[str, str | None], tables: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """What a config file tells, if there is one, and over it the flags: `values` that are given, and `tables`."""
    told = read_toml(path) if path is not None else {}
    told |= {name: value for name, value in values.items() if value is not None}
    for name, changes in tables.items():
        if isinstance(told.get(name, {}), dict):
            told[name] = {**told.get(name, {}), **changes}
    return told


def field_names(described: type) -> set[str]:
    return {field.name for field in dataclasses.fields(described)}


def check_known_keys(values: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(values.keys() - known):
        raise ConfigError(f"{where}: unknown keys {', '.join(unknown)}; known: {', '.join(sorted(known))}")


def _checked(name: str, value: Any, kind: type, limits: Mapping[str, Any]) -> Any:
    """`value` as a `kind` within `limits`."""
    if kind is float and type(value) is int:
        value = float(value)
    least, above, below = (limits.get(key) for key in ("least", "above", "below"))
    right = type(value) is kind and value in limits.get("choices", (value,))
    if kind in (int, float):
        right = right and (least is None or value >= least) and (above is None or value > above)
        right = right and value < (below if below is not None else 2**63 if kind is int else math.inf)
    if not right:
        raise ConfigError(f"{name} must be {_wanted(kind, limits)}, found {value!r}")
    return value


def _wanted(kind: type, limits: Mapping[str, Any]) -> str:
    if kind in (bool, str) and "choices" not in limits:
        return "true or false" if kind is bool else "a text"
    if "choices" in limits:
        return " or ".join(limits["choices"])
    told = [f"{word} {limits[key]}" for key, word in (("least", "of at least"), ("above", "above")) if key in limits]
    told += [f"below {limits['below']}"] if "below" in limits else []
    return f"a {'whole' if kind is int else 'finite'} number {' and '.join(told)}"


def _toml(value: str | bool | int | float | Sequence[int]) -> str:
    """A value as TOML writes it: its basic strings, booleans, numbers and arrays are those of JSON."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
