"""The model that Triton runs, without Triton: its images are compared with `config.pbtxt`, and one failure stays alone.

Triton compares no images of a Python model with the config.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from runtime.errors import RequestError


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The model, in a server that has only what these tests reach."""
    server = types.SimpleNamespace(
        triton_string_to_numpy={"TYPE_UINT8": np.dtype(np.uint8)}.__getitem__,
        InferenceResponse=type("InferenceResponse", (types.SimpleNamespace,), {}),
        TritonError=FakeTritonError,
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", server)
    monkeypatch.delitem(sys.modules, "runtime.triton.model", raising=False)
    from runtime.triton.model import TritonPythonModel

    yield TritonPythonModel()
    monkeypatch.delitem(sys.modules, "runtime.triton.model")


class FakeTritonError:
    INVALID_ARG, INTERNAL = "wrong", "failed"

    def __init__(self, message: str, code: str) -> None:
        self.shown = (message, code)


def test_images_that_differ_from_the_config_are_refused(model: Any) -> None:
    model._output = {"dims": [8, 8, 3], "data_type": "TYPE_UINT8"}
    right = np.zeros((2, 8, 8, 3), np.uint8)
    assert model._checked(right) is right
    for wrong in (right[:, :4], right[..., :1], right.astype(np.float32)):
        with pytest.raises(RequestError, match=r"config\.pbtxt has \[8, 8, 3\]; write the repository again"):
            model._checked(wrong)


def test_a_request_that_cannot_be_read_gets_an_answer_of_its_own(model: Any) -> None:
    class Unreadable:
        def inputs(self) -> list[Any]:
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")

    model._decoupled = False
    answers = model.execute([Unreadable(), Unreadable()])
    assert [answer.error.shown[1] for answer in answers] == ["failed", "failed"]
    assert "invalid start byte" in answers[0].error.shown[0]
