"""The settings of a training run as one typed value, read from a TOML file, from flags, or from the run's own config.

A setting is described once, by its field: type, default, limits and help. The flags of `mar train`, their help and
the checks are made from that description.
"""

from __future__ import annotations

import abc
import dataclasses
import math
import pathlib
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from runtime.errors import ConfigError, RequestError
from runtime.image_files import BACKGROUND, parse_color
from runtime.model.config import LATER_FIELDS, ModelConfig
from runtime.model.families import DEFAULT, FAMILIES, FAMILY_KEY, parse_config, stored_family
from runtime.storage import structured_files
from runtime.storage.schema import SchemaError, parse_value
from runtime.storage.structured_files import FaultReport
from training.models.model_sizes import MODEL_SIZES, TRAINING_OF_SIZES

_Training = TypeVar("_Training", bound="StepConfig")
_Config = TypeVar("_Config", bound="BaseRunConfig")

_KEYS = {"data", "model", "training"}
_RENAMED_KEYS = {
    "preset": ("model", "model, or name within the table model"),
    "attention": ("attention_precision", "attention_precision"),
    "judged": ("eval_count", "eval_count"),
}
"""For each key of earlier versions the key that replaces it, and how a message names that."""

_RATES_OF_SIZES = ", ".join(f"{size} {training['learning_rate']:g}" for size, training in TRAINING_OF_SIZES.items())
_UNKNOWN_DATA = "not given yet"  # stands for `data` while a config without it is printed
_UNKNOWN_STEPS = 1  # stands for `steps` while they are not known: before the data, which epochs count, are opened
_LENGTHS = {"steps", "epochs"}  # the keys of `training` of which one says how long a run is
_LONGEST_WARMUP = 500  # steps, of a run that does not say how many


def setting(default: Any, help_text: str, **limits: Any) -> Any:
    """Describe a field of a config.

    Args:
        default: The field's default.
        help_text: What the setting does, as `--help` prints it.
        limits: `least` and `most` (inclusive), `above` and `below` (exclusive) limit a number; `choices` limits a text.
    """
    return dataclasses.field(default=default, metadata={"help": help_text, **limits})


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """The settings that every training has: length, batches, optimizer, and what is saved on the way.

    `metadata["help"]` of each field says what it does.

    Raises:
        ConfigError: A value has the wrong type or lies outside its limits.
    """

    unit: ClassVar[str] = "images"
    """The plural of what a batch consists of."""

    steps: int = dataclasses.field(metadata={"help": "Number of training steps of the whole run.", "least": 1})
    batch_size: int = setting(64, "Images per step, over all processes and micro-batches.", least=1)
    accumulate: int = setting(1, "Micro-batches per step, to fit a large batch into little memory.", least=1)
    learning_rate: float = setting(1e-4, "Learning rate after the warm-up.", above=0)
    warmup_steps: int | None = setting(
        None, "Steps over which the learning rate grows linearly. Default: a tenth of the run, at most 500.", least=0
    )
    decay_share: float = setting(
        0.0,
        "Share of the run, at its end, over which the learning rate falls to zero along a cosine.",
        least=0,
        most=1,
    )
    gradient_clip: float = setting(3.0, "Largest norm of the gradient; a longer one is scaled down to it.", above=0)
    ema_rate: float = setting(0.9999, "Decay rate of the moving average of the weights.", least=0, below=1)
    flip: bool = setting(True, "Mirror half of the images.")
    seed: int = setting(0, "Seed of the initial weights and of all random numbers.", least=0)
    precision: str | None = setting(
        None,
        "bf16: autocast, with attention and the loss in fp32; fp32: no autocast. Default: bf16 where the device has "
        "instructions for it, otherwise fp32.",
        choices=("bf16", "fp32"),
    )
    background: str = setting(BACKGROUND, "Colour under transparent pixels of images: a name, or #rrggbb.")
    bad_data: str = setting(
        "report", "What to do about unreadable images: report and skip them, or stop.", choices=("report", "stop")
    )
    workers: int = setting(0, "Processes that read batches ahead, for each training process.", least=0)
    checkpoint_every: int = setting(500, "Steps between checkpoints.", least=1)
    keep: int = setting(
        1, "Number of checkpoints to keep. More than one are run folders in the folder checkpoints of the run.", least=1
    )
    sample_every: int = setting(
        0, "Steps between grids of sample images. 0: at 2%, 5%, 10% and every quarter of the run.", least=0
    )

    def __post_init__(self) -> None:
        types = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            try:
                value = parse_value(field.name, getattr(self, field.name), types[field.name], field.metadata)
            except SchemaError as error:
                raise ConfigError(str(error)) from None
            object.__setattr__(self, field.name, value)
        try:
            parse_color("background", self.background)
        except RequestError as error:
            raise ConfigError(str(error)) from None

    @property
    def warmup(self) -> int:
        """The number of steps over which the learning rate grows."""
        return min(_LONGEST_WARMUP, self.steps // 10) if self.warmup_steps is None else self.warmup_steps

    def decay(self, step: int) -> float:
        """Return the factor of the learning rate at step number `step`, beside the warm-up.

        It is 1, and over the last `decay_share` of the run it falls to zero along a cosine: a schedule that is constant
        first can be continued from any step before its end (arXiv 2404.06395, section 4).
        """
        length = self.decay_share * self.steps
        begin = self.steps - length
        return 1.0 if step <= begin else (1 + math.cos(math.pi * (step - begin) / length)) / 2


@dataclasses.dataclass(frozen=True)
class TrainConfig(StepConfig):
    """The settings of the training of a model; the optimizer's defaults are published (arXiv 2406.11838, appendix B).

    `metadata["help"]` of each field says what it does.

    Raises:
        ConfigError: A value has the wrong type or lies outside its limits.
    """

    learning_rate: float = setting(1e-4, f"Learning rate after the warm-up. Of sizes: {_RATES_OF_SIZES}.", above=0)
    weight_decay: float = setting(0.02, "Weight decay of the matrices of the transformer.", least=0)
    init: str = setting("", "A checkpoint to begin with, a run folder or a published file; the run has its model.")
    validation_share: float = setting(
        0.0, "Share of the images to hold out of training. The loss on them is logged.", least=0, below=1
    )
    empty_classes: bool = setting(False, "Accept labels with gaps, whose classes have no images.")
    attention_precision: str = setting("fp32", "Precision of attention within bf16 autocast.", choices=("fp32", "bf16"))
    fsdp: bool = setting(False, "Shard weights and optimizer over the processes, for models as large as MAR-H.")
    gradient_checkpointing: bool = setting(
        False, "Recompute every block in the backward pass, which needs less memory and more time."
    )
    compile: bool = setting(False, "Compile every block with torch.compile; the first steps take minutes.")


@dataclasses.dataclass(frozen=True)
class BaseRunConfig(abc.ABC):
    """A config that decides a run completely: data, model and training.

    Attributes:
        data: The path of the dataset, or of a cache of latents.
        model: The config of the model.
        training: How the model is trained.
    """

    data: str
    model: Any
    training: Any

    @classmethod
    @abc.abstractmethod
    def from_dict(cls: type[_Config], values: Mapping[str, Any], where: str) -> _Config:
        """Build the config from a mapping with the keys `data`, `model` and `training`.

        Args:
            values: The mapping. `model` is the name of a size, or a table with the model's fields and, under `name`,
                optionally the size whose fields they change.
            where: The source of `values`, for messages.

        Raises:
            ConfigError: A key is missing or unknown, or a value is impossible.
        """

    def to_dict(self) -> dict[str, Any]:
        """Return the config as nested dictionaries, which `from_dict` reads back."""
        return dataclasses.asdict(self)

    def to_toml(self) -> str:
        """Return the config as TOML, which `read_toml` and `from_dict` read back."""
        return to_toml(self.to_dict())

    def with_training(self: _Config, changes: Mapping[str, Any]) -> _Config:
        """Return the config with `changes` to fields of `training`. Raises `ConfigError` for an impossible value."""
        return dataclasses.replace(self, training=dataclasses.replace(self.training, **changes))


@dataclasses.dataclass(frozen=True)
class RunConfig(BaseRunConfig):
    """The config of a run of `mar train`.

    Attributes:
        data: The path of the dataset, or of a cache of latents.
        model: The shape of the model, the config of a family.
        training: How it is trained.
    """

    model: Any
    training: TrainConfig

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> RunConfig:
        """Build the config from a mapping, see `BaseRunConfig.from_dict`.

        Raises:
            ConfigError: A key is missing or unknown, or a value is impossible.
        """
        data, size, fields = resolve_model(values, MODEL_SIZES, where)
        where_model = f"{where}, model {size}" if size else f"{where}, model"
        family = stored_family(fields, where_model)
        fields = {**family.from_data, **fields}
        if not size and (missing := sorted(field_names(family.config) - LATER_FIELDS - fields.keys())):
            raise ConfigError(f"{where}: no size (--model), and without one model lacks {', '.join(missing)}")
        config = parse_config(fields, where_model)
        if isinstance(config, ModelConfig) and config.distilled_steps:
            raise ConfigError(
                f"{where_model}: distilled_steps {config.distilled_steps} is set by mar distill; "
                "resume its run with mar distill --resume, and leave it out of a run of mar train"
            )
        training = {**TRAINING_OF_SIZES.get(size, {}), **values.get("training", {})}
        return cls(data, config, read_training(TrainConfig, training, where))

    def to_dict(self) -> dict[str, Any]:
        """Return the config as nested dictionaries, see `BaseRunConfig.to_dict`; that of the model names its family."""
        return {**super().to_dict(), "model": self.model.to_dict()}


def to_toml(config: Mapping[str, Any]) -> str:
    """Return a config as TOML, without the settings whose value is None: TOML has none, and it is their default.

    Args:
        config: Nested dictionaries; `data` may be missing.
    """
    import tomli_w  # only to print a config; reading one, and exporting a model, needs it not

    return tomli_w.dumps(_without_none(config))


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_none(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if value is not None
    }


def printed_toml(config: Mapping[str, Any]) -> str:
    """Return a config as TOML for a new run, without the fields of the model that come from its data."""
    known = fields_from_data(config["model"])
    model = {name: value for name, value in config["model"].items() if name not in known}
    return to_toml({**config, "model": model})


def resolved_toml(values: Mapping[str, Any], where: str, read: Callable[[Mapping[str, Any], str], Any]) -> str:
    """Return as TOML, for a new run, the complete config that `values` stand for, with all defaults.

    Args:
        values: As for `BaseRunConfig.from_dict`, but `data` and `steps` may be missing, and `epochs` may be there; the
            TOML is the same in this.
        where: The source of `values`, for messages.
        read: `from_dict` of the config's class.

    Raises:
        ConfigError: As `read` raises it.
    """
    complete, epochs = take_epochs({"data": _UNKNOWN_DATA, **values}, where)
    training = complete.get("training", {})
    if isinstance(training, Mapping):  # `read` refuses anything else
        complete["training"] = {"steps": _UNKNOWN_STEPS, **training}
    config = read(complete, where).to_dict()
    if "data" not in values:
        del config["data"]
    if epochs is not None:
        config["training"]["epochs"] = epochs
    if epochs is not None or "steps" not in training:
        del config["training"]["steps"]
    return printed_toml(config)


def take_epochs(values: Mapping[str, Any], where: str) -> tuple[dict[str, Any], int | None]:
    """Take the key `epochs` out of the table `training` of a config, because steps are known only with the data.

    Returns:
        The config, where `steps` has any valid value in place of `epochs`; the epochs, None where there is no such key.

    Raises:
        ConfigError: The epochs are no whole number from 1, or `steps` is there too.
    """
    training = values.get("training", {})
    if not isinstance(training, Mapping) or "epochs" not in training:
        return dict(values), None
    others = {name: value for name, value in training.items() if name != "epochs"}
    if "steps" in others:
        raise ConfigError(f"{where}, training: steps and epochs both say how long the run is; give one of them")
    try:
        epochs: int = parse_value("epochs", training["epochs"], int, {"least": 1})
    except SchemaError as error:
        raise ConfigError(f"{where}: {error}") from None
    return {**values, "training": {**others, "steps": _UNKNOWN_STEPS}}, epochs


def fields_from_data(model: Any) -> Mapping[str, Any]:
    """Return `Family.from_data` for the entry `model` of a config, that of a MAR for what `from_dict` refuses."""
    fields = {"name": model} if isinstance(model, str) else model
    family = DEFAULT
    if isinstance(fields, Mapping):
        size = MODEL_SIZES.get(str(fields.get("name")), {})
        family = str(fields.get(FAMILY_KEY, size.get(FAMILY_KEY, DEFAULT)))
    return FAMILIES.get(family, FAMILIES[DEFAULT]).from_data


def refuse_data_fields(values: Mapping[str, Any], where: str) -> None:
    """Check that the config of a new run does not set what comes from its data, which would have no effect.

    Raises:
        ConfigError: It does.
    """
    model = values.get("model", {})
    if stated := [name for name in fields_from_data(model) if isinstance(model, Mapping) and name in model]:
        verb, them = ("comes", "it") if len(stated) == 1 else ("come", "them")
        raise ConfigError(f"{where}, model: {' and '.join(stated)} of a new run {verb} from its data; remove {them}")


def resolve_model(
    values: Mapping[str, Any], sizes: Mapping[str, Mapping[str, Any]], where: str
) -> tuple[str, str, dict[str, Any]]:
    """Read `data` and `model` of a config.

    Args:
        values: The config, as for `BaseRunConfig.from_dict`.
        sizes: The fields of each named size.
        where: The source of `values`, for messages.

    Returns:
        The path of the data; the name of the size, empty for none; the model's fields, those that the config sets
        itself over those of the size.

    Raises:
        ConfigError: A key is unknown, `data` is missing, or `model` names no size.
    """
    check_known_keys(values, _KEYS, where)
    model, training = values.get("model", {}), values.get("training", {})
    if not isinstance(model, str | Mapping):
        raise ConfigError(f"{where}: model must be a table or the name of a size, found {model!r}")
    if not isinstance(training, Mapping):
        raise ConfigError(f"{where}: training must be a table, found {training!r}")
    if "data" not in values:
        raise ConfigError(f"{where}: data is missing (--data, the folder of the dataset)")
    data = values["data"]
    if not isinstance(data, str) or not data:
        raise ConfigError(f"{where}: data must be the path of a dataset, found {data!r}")
    fields = {"name": model} if isinstance(model, str) else dict(model)
    if "name" not in fields:
        return data, "", fields
    size = fields.pop("name")
    if not isinstance(size, str) or size not in sizes:
        raise ConfigError(f"{where}: model must be one of {', '.join(sizes)}, found {size!r}")
    return data, size, {**sizes[size], **fields}


def read_training(kind: type[_Training], values: Mapping[str, Any], where: str) -> _Training:
    """Build a `kind` from the table `training` of a config.

    Raises:
        ConfigError: A key is missing or unknown, or a value is impossible; the message names `where`.
    """
    check_known_keys(values, field_names(kind), f"{where}, training")
    if "steps" not in values:
        raise ConfigError(
            f"{where}, training: steps is missing; give --steps, the number of training steps, or --epochs"
        )
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def read_toml(path: pathlib.Path) -> dict[str, Any]:
    """Return the values of a TOML file, for `BaseRunConfig.from_dict`.

    Raises:
        ConfigError: The file cannot be read or is not TOML.
    """
    return structured_files.read_toml(path, FaultReport(ConfigError))


def merge_flags(
    path: pathlib.Path | None,
    data: str | None,
    size: str | None,
    model: Mapping[str, Any],
    training: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the values of a config file with those of the command line over them.

    Args:
        path: The TOML file, None for none.
        data: The path of the dataset, None to keep the file's.
        size: The name of the model's size, None to keep the file's.
        model: Fields of the model that the command line sets.
        training: Fields of the training that the command line sets.

    Raises:
        ConfigError: The file cannot be read or is not TOML.
    """
    values = read_toml(path) if path is not None else {}
    if data is not None:
        values["data"] = data
    if isinstance(values.get("model"), str):
        values["model"] = {"name": values["model"]}
    changes = {"model": {**({} if size is None else {"name": size}), **model}, "training": training}
    for table, fields in changes.items():
        if isinstance(values.get(table, {}), dict):  # `from_dict` refuses anything else
            values[table] = {**_without_other_length(values.get(table, {}), fields), **fields}
    return values


def _without_other_length(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table without the length of the run where `changes` give it in the other unit."""
    replaced = _LENGTHS if _LENGTHS & changes.keys() else set()
    return {name: value for name, value in table.items() if name not in replaced}


def field_names(kind: type) -> set[str]:
    """Return the names of the fields of a dataclass."""
    return {field.name for field in dataclasses.fields(kind)}


def check_known_keys(values: Mapping[str, Any], known: set[str], where: str) -> None:
    """Check that a table of a config has no key but the `known` ones.

    Raises:
        ConfigError: A key is unknown; for a key of an earlier version, the message names the one that replaces it.
    """
    unknown = sorted(values.keys() - known)
    for key in unknown:
        current, description = _RENAMED_KEYS.get(key, ("", ""))
        if current in known:
            raise ConfigError(f"{where}: the key {key} is now {description}; rename it")
    if unknown:
        raise ConfigError(f"{where}: unknown keys {', '.join(unknown)}; known: {', '.join(sorted(known))}")
