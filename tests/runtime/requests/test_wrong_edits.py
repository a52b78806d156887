"""Wrong edits: each is refused in one line before an engine runs."""

from __future__ import annotations

import math
import pathlib
import warnings
from typing import Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.artifact.artifact_folder import Artifact
from runtime.errors import RequestError
from runtime.generator import Generator
from runtime.loops.host_loop import Engines
from runtime.requests.inpainting import Edit
from tests.helpers.edits import FAST, edit_request


@pytest.fixture(scope="module")
def idle(golden_artifacts: dict[str, pathlib.Path], pixel_artifact: pathlib.Path) -> dict[str, Generator]:
    """Generators whose engines must not run."""

    def run(**inputs: object) -> NoReturn:
        raise AssertionError("an engine ran for a wrong request")

    artifacts = {"small": golden_artifacts["small"], "pixel": pixel_artifact}
    return {
        name: Generator(Artifact(path).manifest, Engines(run, run, run), "none") for name, path in artifacts.items()
    }


LATENTS = np.zeros((8, 4, 4), np.float32)
IMAGE = np.zeros((8, 8, 1), np.uint8)
TOKENS = np.ones((4, 4), bool)
PIXELS = np.ones((8, 8), bool)


def with_last(array: NDArray[Any], value: float) -> NDArray[Any]:
    changed: NDArray[Any] = array.copy()
    changed.flat[-1] = value
    return changed


def bad(known: object = LATENTS, mask: object = TOKENS) -> dict[str, object]:
    return edit_request(known=known, mask=mask)


MASK_OF_SMALL = "mask must be bool [64, 64] (pixels) or [4, 4] (tokens), found "
BAD_EDITS: list[tuple[str, dict[str, object], str]] = [
    ("small", {"mask": TOKENS}, "mask belong to an edit; write generate(labels, edit=Edit(known, mask))"),
    ("small", {"known": LATENTS}, "known belong to an edit; write generate(labels, edit=Edit(known, mask))"),
    ("pixel", {"mask": PIXELS, "dilate": True}, "dilate, mask belong to an edit"),
    ("pixel", {"known": IMAGE, "mask": PIXELS}, "known, mask belong to an edit"),
    *(("small", {"edit": value}, "edit must be a runtime.Edit") for value in (LATENTS, True, {"mask": TOKENS})),
    *(
        ("small", bad(mask=mask), MASK_OF_SMALL + message)
        for mask, message in (
            (np.ones((4, 5), bool), "bool [4, 5]"),
            (np.ones((16,), bool), "bool [16]"),
            (np.ones((1, 4, 4), bool), "bool [1, 4, 4]"),
            (np.ones((8, 8), bool), "bool [8, 8]"),
            (np.ones((0, 0), bool), "bool [0, 0]"),
            (np.ones((4, 4), np.uint8), "uint8 [4, 4]"),
            (np.ones((4, 4), np.float32), "float32 [4, 4]"),
            ([[1] * 4] * 4, "int64 [4, 4]"),
            ([[None] * 4] * 4, "object [4, 4]"),
            ("mask", "<U4 []"),
            (True, "bool []"),
            ([], "float64 [0]"),
        )
    ),
    ("small", bad(mask=[[True, False], [True]]), "mask: "),
    ("small", bad(mask=np.zeros((4, 4), bool)), "mask is false everywhere"),
    ("small", bad(mask=np.zeros((64, 64), bool)), "mask is false everywhere"),
    *(
        ("small", bad(known), f"latents, floating point of shape [8, 4, 4], alone or 1 of them; found {message}")
        for known, message in (
            (LATENTS[0], "float32 [4, 4]"),
            (LATENTS[:7], "float32 [7, 4, 4]"),
            (LATENTS.transpose(1, 2, 0), "float32 [4, 4, 8]"),
            (np.stack([LATENTS] * 2), "float32 [2, 8, 4, 4]"),
            (LATENTS[None, None], "float32 [1, 1, 8, 4, 4]"),
            (LATENTS.astype(int), "int64 [8, 4, 4]"),
            (LATENTS.astype(bool), "bool [8, 4, 4]"),
            (LATENTS.astype(complex), "complex128 [8, 4, 4]"),
            (LATENTS.astype(str), "<U32 [8, 4, 4]"),
            (LATENTS.astype(object), "object [8, 4, 4]"),
            (LATENTS.astype(np.uint8), "uint8 [8, 4, 4]"),
            (0.5, "float64 []"),
        )
    ),
    ("small", bad([[0.0], [0.0, 1.0]]), "known: "),
    *(
        ("small", bad(with_last(LATENTS, value)), "known holds values that are not finite")
        for value in (math.nan, math.inf)
    ),
    ("small", bad(with_last(LATENTS.astype(np.float64), 1e39)), "not finite in float32"),
    *(
        ("pixel", bad(known, PIXELS), f"alone or 1 of them; found {message}")
        for known, message in (
            (IMAGE[:, :, 0], "uint8 [8, 8]"),
            (IMAGE[:7], "uint8 [7, 8, 1]"),
            (IMAGE.repeat(3, axis=2), "uint8 [8, 8, 3]"),
            (IMAGE.transpose(2, 0, 1), "uint8 [1, 8, 8]"),
            (np.stack([IMAGE] * 2), "uint8 [2, 8, 8, 1]"),
            (IMAGE.astype(np.int16), "int16 [8, 8, 1]"),
            (IMAGE.astype(np.float32), "float32 [8, 8, 1]"),
        )
    ),
    ("small", bad(np.zeros((64, 64, 3), np.uint8)), "has no encoder, so it cannot read images"),
    ("small", bad() | {"iterations": 17}, "iterations must lie in 1..16"),
    ("small", bad(mask=np.eye(4, dtype=bool)) | {"iterations": 0}, "iterations must lie in 1..16"),
    ("small", bad() | {"order": [[0] * 16]}, "permutation"),
    ("small", bad() | {"labels": [6]}, "class 6 is out of range"),
]


@pytest.mark.parametrize(
    ("model", "request_", "message"), BAD_EDITS, ids=lambda part: " ".join(str(part).split())[-40:]
)
def test_a_wrong_edit_is_refused_in_one_line_before_an_engine_runs(
    idle: dict[str, Generator], model: str, request_: dict[str, Any], message: str
) -> None:
    with warnings.catch_warnings(), pytest.raises(RequestError) as refusal:
        warnings.simplefilter("error")
        idle[model].generate(**({"labels": [0]} | FAST | {"iterations": 2} | request_))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_there_must_be_one_known_image_or_as_many_as_labels(idle: dict[str, Generator]) -> None:
    for count in (1, 2, 4):
        with pytest.raises(RequestError, match=rf"alone or 3 of them; found float32 \[{count}, 8, 4, 4\]"):
            idle["small"].generate([0, 1, 2], **FAST, edit=Edit(np.stack([LATENTS] * count), TOKENS))
