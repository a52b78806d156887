"""The model of a new run that begins with a checkpoint."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from runtime.errors import ConfigError
from runtime.model.families import family_of
from training.checkpoints.checkpoint import load_checkpoint
from training.config import resolve_model
from training.models.model_sizes import MODEL_SIZES


def with_initial_model(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the config of a new run with the model of the checkpoint that it begins with, where it does.

    Args:
        values: The config, as for `RunConfig.from_dict`. `init` of its training names the checkpoint; the fields of its
            model change that of the checkpoint, except those that come from the data. A model with the name of a size
            is complete, and must be that of the checkpoint.
        where: The source of `values`, for messages.

    Raises:
        ConfigError: The config names a size that is not that of the checkpoint, or the checkpoint is not complete or
            cannot be trained on.
        CheckpointError: The checkpoint cannot be read.
    """
    training, fields = values.get("training", {}), values.get("model", {})
    init = training.get("init") if isinstance(training, Mapping) else None
    if not init or not isinstance(init, str) or not isinstance(fields, str | Mapping):
        return dict(values)  # `RunConfig.from_dict` refuses what is no config
    try:
        model = load_checkpoint(pathlib.Path(init)).model.config
    except ConfigError as error:
        raise ConfigError(f"{error}; mar import makes a run folder of it, for --init") from None
    if model.distilled_steps:
        raise ConfigError(f"{where}: {init} (--init) has a distilled head; give the checkpoint it was distilled from")
    taken = {name: value for name, value in model.to_dict().items() if name not in family_of(model).from_data}
    _, size, fields = resolve_model(values, MODEL_SIZES, where)
    others = {name: value for name, value in fields.items() if name not in family_of(model).from_data}
    different = next((name for name in others if size and others[name] != taken.get(name)), None)
    if different is not None:
        raise ConfigError(
            f"{where}: the run has the model of {init} (--init), whose {different} is {taken.get(different)}, found "
            f"{others[different]}; remove the size (--model)"
        )
    absolute = {**training, "init": str(pathlib.Path(init).resolve())}
    named = {"name": size} if size else {}
    return {**values, "model": {**taken, **fields, **named}, "training": absolute}
