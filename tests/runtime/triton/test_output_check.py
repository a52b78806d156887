"""The exported model compares its images with `config.pbtxt` itself, since Triton does not do so for a Python model."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

from runtime.errors import RequestError


def test_images_that_differ_from_the_config_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    server = types.SimpleNamespace(triton_string_to_numpy={"TYPE_UINT8": np.dtype(np.uint8)}.__getitem__)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", server)
    monkeypatch.delitem(sys.modules, "runtime.triton.model", raising=False)
    from runtime.triton.model import TritonPythonModel

    model = TritonPythonModel()
    model._output = {"dims": [8, 8, 3], "data_type": "TYPE_UINT8"}
    right = np.zeros((2, 8, 8, 3), np.uint8)
    assert model._checked(right) is right
    for wrong in (right[:, :4], right[..., :1], right.astype(np.float32)):
        with pytest.raises(RequestError, match=r"config\.pbtxt has \[8, 8, 3\]; write the repository again"):
            model._checked(wrong)
    monkeypatch.delitem(sys.modules, "runtime.triton.model")
