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
from collections.abc import Mapping
from typing import Any

from runtime.config import LATER_FIELDS, ModelConfig
from runtime.errors import ConfigError
from training.presets import PRESETS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_KEYS = {"data", "preset", "model", "training"}


def _setting(default: Any, tells: str, **limits: Any) -> Any:
    """A field with its help; `least`, `above` and `below` limit numbers, `choices` texts."""
    return dataclasses.field(default=default, metadata={"help": tells, **limits})


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to train: optimisation as published, sizes to fit the machine. Raises `ConfigError`."""

    steps: int = dataclasses.field(metadata={"help": "Training steps in all.", "least": 1})
    batch_size: int = _setting(64, "Pictures a step, over all processes and micro-batches.", least=1)
    accumulate: int = _setting(1, "Micro-batches a step, to fit a large batch into little memory.", least=1)
    learning_rate: float = _setting(1e-4, "Reached after the warm-up, constant from then on.", above=0)
    warmup_steps: int = _setting(500, "Steps over which the learning rate grows linearly.", least=0)
    weight_decay: float = _setting(0.02, "For the matrices of the transformer.", least=0)
    gradient_clip: float = _setting(3.0, "The largest norm of a gradient.", above=0)
    ema_rate: float = _setting(0.9999, "Of the moving average of the weights.", least=0, below=1)
    flip: bool = _setting(True, "Mirror half of the pictures.")
    seed: int = _setting(0, "Of the first weights and of everything drawn.", least=0)
    precision: str = _setting("bf16", "bf16: autocast, with attention and the loss in fp32.", choices=("bf16", "fp32"))
    attention: str = _setting("fp32", "Of attention within bf16 autocast.", choices=("fp32", "bf16"))
    fsdp: bool = _setting(False, "Spread weights and optimizer over the processes, for models as large as MAR-H.")
    gradient_checkpointing: bool = _setting(False, "Compute every block again when its gradient is due: less memory.")
    compile: bool = _setting(False, "Let torch.compile build every block; takes minutes first.")
    bad_data: str = _setting(
        "report", "What to do about bad pictures: tell and go on, or stop.", choices=("report", "stop")
    )
    workers: int = _setting(0, "Processes beside each that trains, which read batches ahead of it.", least=0)
    checkpoint_every: int = _setting(500, "Steps.", least=1)
    sample_every: int = _setting(2000, "Steps.", least=1)

    def __post_init__(self) -> None:
        types = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _checked(field.name, getattr(self, field.name), types[field.name], field.metadata)
            object.__setattr__(self, field.name, value)


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All that decides a run: where its pictures are, the model, how it is trained."""

    data: str
    model: ModelConfig
    training: TrainConfig

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> RunConfig:
        """The config that `values` tell: `data`, `training`, and `preset` or `model` or both, the second changing the
        first. `where` names their source in a `ConfigError`."""
        _refuse_unknown(values, _KEYS, where)
        for key in ("model", "training"):
            if not isinstance(values.get(key, {}), Mapping):
                raise ConfigError(f"{where}: {key} must be a table, found {values[key]!r}")
        data, model = values.get("data"), values.get("model", {})
        if not isinstance(data, str) or not data:
            raise ConfigError(f"{where}: data must be the path of a dataset (--data), found {data!r}")
        where_model = f"{where}, model"
        if "preset" in values:
            if values["preset"] not in PRESETS:
                raise ConfigError(f"{where}: preset must be one of {', '.join(PRESETS)}, found {values['preset']!r}")
            where_model += f" {values['preset']}"
            model = {**PRESETS[values["preset"]], **model}
        elif missing := sorted(_names(ModelConfig) - LATER_FIELDS - model.keys()):
            raise ConfigError(f"{where}: no preset (--preset), and without one model lacks {', '.join(missing)}")
        training = values.get("training", {})
        _refuse_unknown(training, _names(TrainConfig), f"{where}, training")
        if "steps" not in training:
            raise ConfigError(f"{where}, training: steps is missing (--steps)")
        try:
            trained = TrainConfig(**training)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        config = ModelConfig.from_dict(model, where_model)
        if config.distilled_steps:
            raise ConfigError(
                f"{where_model}: distilled_steps is what mar distill makes of a trained model; leave it away"
            )
        return cls(data, config, trained)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_toml(self) -> str:
        """What `read_toml` reads back to the same config."""
        tables = (("model", self.model.to_dict()), ("training", dataclasses.asdict(self.training)))
        lines = [f"data = {_toml(self.data)}"]
        for name, values in tables:
            lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in values.items())]
        return "\n".join(lines) + "\n"


def read_toml(path: pathlib.Path) -> dict[str, Any]:
    """The values of a config file, for `RunConfig.from_dict`. Raises `ConfigError`."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not TOML ({error})") from error


def _names(described: type) -> set[str]:
    return {field.name for field in dataclasses.fields(described)}


def _refuse_unknown(values: Mapping[str, Any], known: set[str], where: str) -> None:
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
    if kind is bool:
        return "true or false"
    if "choices" in limits:
        return " or ".join(limits["choices"])
    told = [f"{word} {limits[key]}" for key, word in (("least", "of at least"), ("above", "above")) if key in limits]
    told += [f"below {limits['below']}"] if "below" in limits else []
    return f"a {'whole' if kind is int else 'finite'} number {' and '.join(told)}"


def _toml(value: str | bool | int | float) -> str:
    """A value as TOML writes it: its basic strings, booleans and numbers are those of JSON."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
