"""One Ray at a time among pytest's processes: its start fails where too many processes want the processors."""

from __future__ import annotations

import os

import pytest
from filelock import FileLock


def one_ray_at_a_time(factory: pytest.TempPathFactory) -> FileLock:
    """A lock to hold, in a `with` block, while Ray runs."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # which all workers of a session share
    return FileLock(root / "ray.lock")
