"""The Python module of a TensorRT target: which version, and what it has to say about failures."""

from __future__ import annotations

import importlib
from typing import Any

from runtime.artifact.engine_builds import TARGETS
from runtime.errors import BackendError

_BAD_VERSIONS = ("10.2.0",)
_EXTRAS = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}  # by target, what installs it


class TensorRTLibrary:
    """The module of `target`, one of `runtime.artifact.engine_builds.TARGETS`. `BackendError` where it is missing or known bad.

    Its calls fail by returning None or False, and tell why in a log: whatever a call returned goes through
    `made` or `true` here.
    """

    def __init__(self, target: str) -> None:
        try:
            self.module = importlib.import_module(TARGETS[target])
        except (ImportError, OSError) as error:  # the second where a library that it loads itself is missing
            raise BackendError(
                f"{target} is not installed ({error}); pip install 'mar-runtime[{_EXTRAS[target]}]', "
                "or on a Jetson see README, Install"
            ) from None
        self.target = target
        self.version: str = self.module.__version__
        if target == "tensorrt" and self.version.startswith(_BAD_VERSIONS):
            raise BackendError(f"TensorRT {self.version} is known to build wrong engines; install 10.3 or newer")
        self.log = _log(self.module)

    def new(self, kind: Any, *arguments: Any) -> Any:
        """An object of a class of the library, which takes its log last."""
        try:
            return kind(*arguments, self.log)
        except TypeError as error:  # how a constructor that returns nothing is told, as some do without a GPU
            raise self.failure(f"no {kind.__name__} ({error})") from None

    def made(self, value: Any, what: str) -> Any:
        """`value`, unless it is None: then a `BackendError` that `what` went wrong."""
        if value is None:
            raise self.failure(what)
        return value

    def true(self, value: bool, what: str) -> None:
        """A `BackendError` that `what` went wrong where `value` is not true."""
        if not value:
            raise self.failure(what)

    def failure(self, what: str) -> BackendError:
        """An error with what the library logged."""
        return BackendError(" | ".join([f"{self.target} {self.version}: {what}", *self.log.lines]))


def _log(module: Any) -> Any:
    """A logger that keeps errors."""

    class Log(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= module.ILogger.Severity.ERROR:
                self.lines.append(message)

    return Log()
