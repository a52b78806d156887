"""The Python module of TensorRT or TensorRT-RTX: its version, its objects, and its log in error messages."""

from __future__ import annotations

import importlib
from typing import Any

from runtime.artifact.engine_builds import TARGETS
from runtime.errors import BackendError

_BAD_VERSIONS = ("10.2.0",)
_EXTRAS = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}  # target -> the extra of this project that installs it


class TensorRTLibrary:
    """TensorRT or TensorRT-RTX.

    Most calls of the library report a failure by returning None or False, and log the reason. `created` and `check`
    turn such results into errors that contain the log.

    Attributes:
        module: The Python module.
        target: The library's name, one of `runtime.artifact.engine_builds.TARGETS`.
        version: Its version, such as `10.3.0`.
        log: A logger, whose list `lines` keeps every logged error.
    """

    def __init__(self, target: str) -> None:
        """Import the library of a target.

        Raises:
            BackendError: It is not installed, does not load, or its version is known to build wrong engines.
        """
        try:
            self.module = importlib.import_module(TARGETS[target])
        except (ImportError, OSError) as error:  # OSError: a library that it needs is missing
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
        """Create an object of the library.

        Args:
            kind: Its class, whose last argument is a logger.
            arguments: The arguments before the logger.

        Raises:
            BackendError: The library cannot create it.
        """
        try:
            return kind(*arguments, self.log)
        except TypeError as error:  # without a GPU some constructors return no object, which Python reports so
            raise self.failure(f"cannot create a {kind.__name__} ({error})") from None

    def created(self, value: Any, what: str) -> Any:
        """Return `value`, the result of a call that creates an object.

        Raises:
            BackendError: It is None; the message says `what` went wrong.
        """
        if value is None:
            raise self.failure(what)
        return value

    def check(self, value: bool, what: str) -> None:
        """Check the result of a call that returns whether it succeeded.

        Raises:
            BackendError: It is not true; the message says `what` went wrong.
        """
        if not value:
            raise self.failure(what)

    def failure(self, what: str) -> BackendError:
        """Return an error that says `what` went wrong, with the library's version and everything that it logged."""
        return BackendError(" | ".join([f"{self.target} {self.version}: {what}", *self.log.lines]))


def _log(module: Any) -> Any:
    """Create a logger that keeps every error in its list `lines`."""

    class Log(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= module.ILogger.Severity.ERROR:
                self.lines.append(message)

    return Log()
