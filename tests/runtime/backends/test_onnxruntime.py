"""What the backend asks of ONNX Runtime, which differs by version."""

from __future__ import annotations

import onnxruntime
import pytest

from runtime.backends.onnxruntime import brief_spinning


@pytest.mark.parametrize(
    ("version", "key"),
    [
        ("1.25.1", "session.force_spinning_stop"),  # which would not know the other, and spin for 50 ms and longer
        ("1.26.0", "session.intra_op.spin_duration_us"),
        ("1.31.0.dev20261101001", "session.intra_op.spin_duration_us"),
        ("2.0", "session.intra_op.spin_duration_us"),
    ],
)
def test_waiting_threads_spin_for_a_short_time_in_every_version(version: str, key: str) -> None:
    name, value = brief_spinning(version)
    assert name == key
    assert 1 <= int(value) < 1000  # microseconds, or 1 for yes
    onnxruntime.SessionOptions().add_session_config_entry(name, value)
