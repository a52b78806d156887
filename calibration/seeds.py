"""The seeds of every image that calibration generates.

They differ from each other, so that no image is both used to choose something and to evaluate the choice. They are
large, so that they differ from the seeds that people use.
"""

from __future__ import annotations

STATISTICS_SEED = 2**31
"""Images whose activations are observed, for the scales of quantized layers."""

SQNR_SEED = 2**30
"""Images by which quantized engines are compared with float32."""

STEP_SEARCH_SEED = 2**29
"""Images on which the errors of diffusion chains are measured, to choose diffusion steps."""

STEP_EVALUATION_SEED = 2**29 + 1
"""Held-out images on which the chosen diffusion steps are compared with other settings."""
