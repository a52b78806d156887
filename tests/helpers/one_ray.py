"""One Ray at a time among pytest's processes: its start fails where too many processes want the processors."""

from __future__ import annotations

import pytest
from filelock import FileLock

from tests.helpers.artifacts import folder_of_all_workers


def one_ray_at_a_time(factory: pytest.TempPathFactory) -> FileLock:
    """A lock to hold, in a `with` block, while Ray runs."""
    return FileLock(folder_of_all_workers(factory) / "ray.lock")
