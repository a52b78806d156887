"""The file of an artifact with the first pass of each class, which a runtime then need not compute."""

from __future__ import annotations

import pathlib

from runtime.errors import RequestError
from runtime.loops.first_pass import FirstPass
from runtime.model.engine_spec import Engine
from runtime.model.families import family_of
from runtime.model.family_config import FamilyConfig


def check_first_pass(config: FamilyConfig) -> None:
    """Check that the first pass of a model is a function of the class alone.

    Raises:
        RequestError: It is not.
    """
    if not family_of(config).first_pass_of_class:
        raise RequestError(
            f"--first-pass does not support {family_of(config).kind}, whose first pass depends on more than the class; "
            "leave it out"
        )


def write_first_pass(file: pathlib.Path, backbone: Engine, config: FamilyConfig) -> None:
    """Write z of the first pass of each class and of the unconditional one, float32 [classes + 1, L, C].

    Args:
        file: The file to write.
        backbone: The engine of that name.
        config: The model's sizes.

    Raises:
        BackendError: The engine failed.
    """
    first_pass = FirstPass(backbone, config)
    with file.open("wb") as out:
        for label in range(config.class_num + 1):
            out.write(first_pass.of(label).astype("<f4").tobytes())
