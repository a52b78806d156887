"""The line about a quantized artifact that is used with other settings than it was calibrated for."""

from __future__ import annotations

from runtime.artifact.manifest import Manifest
from runtime.log import LOG
from runtime.sampling.settings import Sampling


def tell_other_plan(manifest: Manifest, sampling: Sampling) -> None:
    """Print a line on standard error if an artifact was calibrated for other sampling settings; it names both."""
    note = manifest.calibration_note(sampling)
    if note is not None:
        LOG.warning(note)
