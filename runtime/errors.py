"""Every failure this project reports on purpose, as one small tree.

The command line turns a `MarError` into one line and an exit code; anything else is a bug and keeps
its traceback. A message says what happened, where, what was expected and found, and what to do.
"""

from __future__ import annotations


class MarError(Exception):
    """A failure with a message meant for the person who asked. Exit code 1."""

    exit_code = 1


class RequestError(MarError):
    """The caller asked for something that is not possible: a wrong value, shape or flag. Exit code 2."""

    exit_code = 2


class ConfigError(RequestError):
    """A model or training configuration with an unknown key or an impossible value."""


class CheckpointError(MarError):
    """A checkpoint that is missing, damaged, unsafe to read, or of another model."""


class DataError(MarError):
    """A dataset that is missing or damaged."""


class ArtifactError(MarError):
    """A folder that is not an artifact, or one of a version this runtime does not know."""


class IntegrityError(ArtifactError):
    """A file of an artifact that is missing, resized, altered or outside its folder."""


class BackendError(MarError):
    """A backend that is not installed, did not load, or failed while running."""


class ParityError(MarError):
    """An exported engine that does not compute what the eager model computes."""


class CalibrationError(MarError):
    """Statistics of another model or plan, or a quantization or diffusion steps that miss their target."""
