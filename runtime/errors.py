"""The exceptions of this project, all subclasses of `MarError`.

The command line prints a `MarError` as one line and ends with its exit code. Any other exception is a bug and keeps its
traceback. A message says what happened, where, what was expected and found, and what to do.
"""

from __future__ import annotations

import errno
import os

_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EACCES: "give this user the permission",
    errno.EPERM: "give this user the permission",
}


class MarError(Exception):
    """An expected failure, with a message for the user.

    Attributes:
        exit_code: The exit code of the command line: 1, or 2 for a wrong request.
    """

    exit_code = 1


class RequestError(MarError):
    """An argument, option or shape that is wrong or not possible. The exit code is 2."""

    exit_code = 2


class ConfigError(RequestError):
    """A model or training configuration with an unknown key or an impossible value. The exit code is 2."""


class CheckpointError(MarError):
    """A checkpoint that is missing, damaged, unsafe to read, or belongs to another model."""


class DataError(MarError):
    """A dataset that is missing or damaged."""


class ArtifactError(MarError):
    """A folder that is not an artifact, or an artifact of another format version."""


class IntegrityError(ArtifactError):
    """A file of an artifact that is missing, altered, of another size, or outside the artifact's folder."""


class BackendError(MarError):
    """A backend that is not installed, does not load, or fails while an engine runs."""


class ParityError(MarError):
    """An exported engine whose outputs differ from those of the eager PyTorch model by more than the tolerance."""


class CalibrationError(MarError):
    """Calibration statistics of another model or plan, or a calibration that misses its target."""


def reason_and_remedy(error: OSError, consequence: str = "") -> str:
    """Return what the system says about a failure, what it means, and, where it is known, what to do.

    Args:
        error: The failure.
        consequence: What it means for the user, without a stop.
    """
    parts = [error.strerror or str(error), consequence, _REMEDIES.get(error.errno or 0, "")]
    return "; ".join(part for part in parts if part)


def cannot_write(path: str | os.PathLike[str], error: OSError, consequence: str = "") -> MarError:
    """Return the error of a file or folder that cannot be written; see `reason_and_remedy`."""
    return MarError(f"cannot write {path}: {reason_and_remedy(error, consequence)}")
