"""A fake of TensorRT and TensorRT-RTX: their names, and the ways in which their calls fail.

The runtime side runs engines on the simulated GPU; the builder side records what it is asked to build. A
`TensorRTScript` says which calls fail, and keeps every call. No class here has a name, a parameter or a default that
the real library does not have: `tests/fakes/test_tensorrt.py` compares them.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Collection

from tests.fakes.tensorrt import builder, runtime
from tests.fakes.tensorrt.script import ILogger, TensorRTScript

CLASSES: tuple[type, ...] = (ILogger, *runtime.CLASSES, *builder.CLASSES)
# Those that the product constructs.
SCRIPTED_CLASSES: tuple[type, ...] = (*runtime.SCRIPTED_CLASSES, *builder.SCRIPTED_CLASSES)
BUILDER_FLAGS = ("TF32", "VERSION_COMPATIBLE", "REFIT", "STRIP_PLAN", "REFIT_IDENTICAL", "GPU_FALLBACK")
HARDWARE_LEVELS = ("NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY")


def fake_tensorrt(
    script: TensorRTScript, version: str = "10.13.3.9", without: Collection[str] = (), name: str = "tensorrt"
) -> types.ModuleType:
    """A module in place of `name` that follows `script`; `without` are flags and levels that it is too old for."""
    module = types.ModuleType(name)
    flags = enum.Enum("BuilderFlag", [flag for flag in BUILDER_FLAGS if flag not in without])  # type: ignore[misc]
    levels = enum.Enum(  # type: ignore[misc]
        "HardwareCompatibilityLevel", [level for level in HARDWARE_LEVELS if level not in without]
    )
    script.builder_flags = flags
    for part in CLASSES:
        setattr(module, part.__name__, part)
    for part in SCRIPTED_CLASSES:
        setattr(module, part.__name__, type(part.__name__, (part,), {"_script": script}))
    for key, value in {"BuilderFlag": flags, "HardwareCompatibilityLevel": levels, "__version__": version}.items():
        setattr(module, key, value)
    return module
