"""TensorRT without a GPU: its names, and the ways in which its calls fail, for the tests of its builder.

Nothing here that the real library has not: test_tensorrt_builder.py compares every name, parameter and default
with `tensorrt_rtx`, which is installed wherever these tests run.
"""

from __future__ import annotations

import dataclasses
import enum
import types
from collections.abc import Collection
from typing import Any, ClassVar

Shape = tuple[int, ...]


@dataclasses.dataclass
class Script:
    """What the library will do, and what it was told.

    `failing` are calls that fail, each as it really does; `logged` is what it tells its logger whenever one
    does, as pairs of severity and text; `parser_errors` are node, operator and text of what the parser
    finds. `told` is every call that came, and `config` the last configuration.
    """

    failing: set[str] = dataclasses.field(default_factory=set)
    logged: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    parser_errors: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    phases: list[tuple[str, int]] = dataclasses.field(default_factory=lambda: [("Building", 2), ("Tactics", 1)])
    told: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)
    config: Any = None
    logger: Any = None

    def fails(self, call: str, *arguments: Any) -> bool:
        """Whether this call fails; notes it, and logs what there is to log."""
        self.told.append((call, *arguments))
        if call not in self.failing:
            return False
        for severity, text in self.logged:
            self.logger.log(Severity[severity], text)
        return True

    def calls(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of every call of `name`."""
        return [tuple(arguments) for call, *arguments in self.told if call == name]


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity: ClassVar[type[enum.IntEnum]] = Severity


class IProgressMonitor:
    pass


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 0


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class ComputeCapability(enum.Enum):
    NONE = 0
    CURRENT = -1
    SM75 = 75
    SM80 = 80
    SM86 = 86
    SM89 = 89
    SM120 = 120
    SM121 = 121


BUILDER_FLAGS = ("TF32", "VERSION_COMPATIBLE", "REFIT", "STRIP_PLAN", "REFIT_IDENTICAL", "GPU_FALLBACK")
HARDWARE_LEVELS = ("NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY")


class IHostMemory(bytearray):
    """A buffer, and nothing that the builder may use beside that."""


class ITimingCache:
    def __init__(self, script: Script, content: bytes) -> None:
        self._script, self._content = script, content

    def serialize(self) -> IHostMemory:
        if self._script.fails("serialize"):
            raise RuntimeError("the library broke down")
        return IHostMemory(self._content + b"+measured")


class IOptimizationProfile:
    def __init__(self, script: Script) -> None:
        self._script = script

    def set_shape(self, input: str, min: Shape, opt: Shape, max: Shape) -> None:  # noqa: A002
        self._script.fails("set_shape", input, min, opt, max)


class INetworkDefinition:
    pass


class ParserError:
    def __init__(self, node: str, operator: str, text: str) -> None:
        self._node, self._operator, self._text = node, operator, text

    def node_name(self) -> str:
        return self._node

    def node_operator(self) -> str:
        return self._operator

    def desc(self) -> str:
        return self._text


class IBuilderConfig:
    __slots__ = (  # as the real one has no others: a name that is mistyped is an AttributeError
        "_flags",
        "_pools",
        "_script",
        "builder_optimization_level",
        "hardware_compatibility_level",
        "num_compute_capabilities",
        "progress_monitor",
    )

    def __init__(self, script: Script, flags: type[enum.Enum]) -> None:
        self._script = script
        self._flags: set[Any] = {flags["TF32"]}
        self._pools: dict[Any, int] = {}
        self.builder_optimization_level: int | None = None
        self.hardware_compatibility_level: Any = None
        self.num_compute_capabilities = 0
        self.progress_monitor: Any = None

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(flag)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._pools[pool] = pool_size

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        return not self._script.fails("set_compute_capability", compute_capability.name, index) and (
            0 <= index < self.num_compute_capabilities
        )

    def add_optimization_profile(self, profile: Any) -> int:
        return -1 if self._script.fails("add_optimization_profile", type(profile).__name__) else 0

    def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
        if self._script.fails("create_timing_cache", serialized_timing_cache):
            return None
        return ITimingCache(self._script, serialized_timing_cache)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        return not self._script.fails("set_timing_cache", type(cache).__name__, ignore_mismatch)


class OnnxParser:
    _script: ClassVar[Script]

    def __init__(self, network: Any, logger: Any) -> None:
        assert isinstance(network, INetworkDefinition)
        assert isinstance(logger, ILogger)

    def parse_from_file(self, model: str) -> bool:
        return not self._script.fails("parse_from_file", model)

    @property
    def num_errors(self) -> int:
        return len(self._script.parser_errors)

    def get_error(self, index: int) -> Any:
        return ParserError(*self._script.parser_errors[index])


class Builder:
    _script: ClassVar[Script]
    _flags: ClassVar[type[enum.Enum]]

    def __init__(self, logger: Any) -> None:
        assert isinstance(logger, ILogger)
        self._script.logger = logger
        if self._script.fails("Builder"):
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, flags: int = 0) -> Any:
        return None if self._script.fails("create_network", flags) else INetworkDefinition()

    def create_builder_config(self) -> Any:
        if self._script.fails("create_builder_config"):
            return None
        self._script.config = IBuilderConfig(self._script, self._flags)
        return self._script.config

    def create_optimization_profile(self) -> Any:
        return None if self._script.fails("create_optimization_profile") else IOptimizationProfile(self._script)

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        assert isinstance(network, INetworkDefinition)
        assert isinstance(config, IBuilderConfig)
        if not self._reported(config.progress_monitor):
            return None
        return None if self._script.fails("build_serialized_network") else IHostMemory(b"plan")

    def _reported(self, monitor: Any) -> bool:
        """Tell the monitor of every phase, one inside the other. False where it asked to stop."""
        if monitor is None:
            return True
        assert isinstance(monitor, IProgressMonitor)
        reporter: Any = monitor
        outer = None
        for phase, steps in self._script.phases:
            reporter.phase_start(phase, outer, steps)
            outer = phase
        for phase, steps in reversed(self._script.phases):
            if not all(reporter.step_complete(phase, step) for step in range(steps)):
                return False
            reporter.phase_finish(phase)
        return True


_CLASSES = (
    ILogger,
    IProgressMonitor,
    NetworkDefinitionCreationFlag,
    MemoryPoolType,
    ComputeCapability,
    IHostMemory,
    ITimingCache,
    IOptimizationProfile,
    INetworkDefinition,
    ParserError,
    IBuilderConfig,
)


def fake_tensorrt(
    script: Script, version: str = "10.13.3.9", without: Collection[str] = (), name: str = "tensorrt"
) -> types.ModuleType:
    """A module in place of `name` that follows `script`; `without` are flags and levels that it is too old for."""
    module = types.ModuleType(name)
    flags = enum.Enum("BuilderFlag", [flag for flag in BUILDER_FLAGS if flag not in without])  # type: ignore[misc]
    levels = enum.Enum(  # type: ignore[misc]
        "HardwareCompatibilityLevel", [level for level in HARDWARE_LEVELS if level not in without]
    )
    scripted = {
        "Builder": type("Builder", (Builder,), {"_script": script, "_flags": flags}),
        "OnnxParser": type("OnnxParser", (OnnxParser,), {"_script": script}),
        "BuilderFlag": flags,
        "HardwareCompatibilityLevel": levels,
    }
    for key, value in {**{part.__name__: part for part in _CLASSES}, **scripted, "__version__": version}.items():
        setattr(module, key, value)
    return module
