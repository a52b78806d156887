"""What a fake TensorRT does, which of its calls fail, and the logger that it writes to."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, ClassVar

from tests.fakes.simulated_cuda import SimulatedCuda


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity: ClassVar[type[enum.IntEnum]] = Severity


@dataclasses.dataclass
class TensorRTScript:
    """What the library will do, and every call that it got.

    Attributes:
        cuda: The GPU that engines run on; the builder side needs none.
        failing: The calls that fail, each as the real one does.
        logged: What the library logs whenever a call fails: pairs of severity and text. `{call}` in a text is the call.
        infinite: Whether engines compute infinities.
        parser_errors: Node, operator and text of every error that the parser finds.
        phases: The phases of a build and their numbers of steps.
        history: Every call that came, with its arguments.
        logger: The logger that was passed last.
        config: The last builder configuration.
        builder_flags: The enumeration of the flags that a builder configuration may have.
    """

    cuda: SimulatedCuda | None = None
    failing: set[str] = dataclasses.field(default_factory=set)
    logged: list[tuple[str, str]] = dataclasses.field(
        default_factory=lambda: [("WARNING", "which nobody needs to know"), ("ERROR", "{call} broke")]
    )
    infinite: bool = False
    parser_errors: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    phases: list[tuple[str, int]] = dataclasses.field(default_factory=lambda: [("Building", 2), ("Tactics", 1)])
    history: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)
    logger: Any = None
    config: Any = None
    builder_flags: Any = None

    @property
    def gpu(self) -> SimulatedCuda:
        """The GPU, for the runtime side, which always has one."""
        assert self.cuda is not None
        return self.cuda

    def calls(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of every call of `name`."""
        return [tuple(arguments) for call, *arguments in self.history if call == name]

    def fails(self, call: str, *arguments: Any) -> bool:
        """Whether this call fails; records it, and logs the lines of a failure."""
        self.history.append((call, *arguments))
        if call not in self.failing:
            return False
        assert self.logger is not None
        for severity, text in self.logged:
            self.logger.log(Severity[severity], text.replace("{call}", call))
        return True

    def constructed(self, name: str) -> None:
        """Fail as a constructor of the real library does, if it is to fail."""
        if self.fails(name):
            raise TypeError("pybind11::init(): factory function returned nullptr")
