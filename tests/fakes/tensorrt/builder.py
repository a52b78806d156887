"""The builder side of the fake TensorRT: it records its settings, and returns bytes in place of an engine."""

from __future__ import annotations

import enum
from typing import Any, ClassVar

from tests.fakes.tensorrt.script import ILogger, TensorRTScript

Shape = tuple[int, ...]


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


class IHostMemory(bytearray):
    """A buffer. The builder may use nothing else of it."""


class ITimingCache:
    def __init__(self, script: TensorRTScript, content: bytes) -> None:
        self._script, self._content = script, content

    def serialize(self) -> IHostMemory:
        if self._script.fails("serialize"):
            raise RuntimeError("the library broke down")
        return IHostMemory(self._content + b"+measured")


class IOptimizationProfile:
    def __init__(self, script: TensorRTScript) -> None:
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
    __slots__ = (  # the real one has no others either: a mistyped name is an AttributeError
        "_flags",
        "_pools",
        "_script",
        "builder_optimization_level",
        "hardware_compatibility_level",
        "num_compute_capabilities",
        "progress_monitor",
    )

    def __init__(self, script: TensorRTScript) -> None:
        self._script = script
        self._flags: set[Any] = {script.builder_flags["TF32"]}
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
    _script: ClassVar[TensorRTScript]

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
    _script: ClassVar[TensorRTScript]

    def __init__(self, logger: Any) -> None:
        assert isinstance(logger, ILogger)
        self._script.logger = logger
        self._script.constructed("Builder")

    def create_network(self, flags: int = 0) -> Any:
        return None if self._script.fails("create_network", flags) else INetworkDefinition()

    def create_builder_config(self) -> Any:
        if self._script.fails("create_builder_config"):
            return None
        self._script.config = IBuilderConfig(self._script)
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
        """Report every phase to the monitor, one inside the other. False if the monitor asks to stop."""
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


CLASSES = (
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
SCRIPTED_CLASSES = (Builder, OnnxParser)
