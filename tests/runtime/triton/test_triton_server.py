"""An exported repository in a real Triton Inference Server, asked by `tritonclient` and over HTTP."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from click.testing import CliRunner
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from runtime.cli.export_triton import export_triton
from runtime.generator import Generator
from tests.helpers.running_services import ask
from tests.helpers.triton_server import triton_server

DATATYPES = {"LABEL": ("INT32", np.int32), "SEED": ("UINT64", np.uint64), "INDEX": ("UINT64", np.uint64),
             "GUIDANCE": ("FP32", np.float32), "STEPS": ("INT32", np.int32), "PROMPT": ("BYTES", np.object_),
             "PRESET": ("BYTES", np.object_), "NEGATIVE_PROMPT": ("BYTES", np.object_)}  # fmt: skip


@pytest.fixture(scope="module")
def port(pixel_artifact: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A server with the model `images`, and the same model as a stream under the name `stream`."""
    repository = tmp_path_factory.mktemp("repository")
    for arguments in (["--name", "images"], ["--name", "stream", "--partial-images", "2"]):
        command = [str(pixel_artifact), "--out", str(repository), "--threads", "1", *arguments]
        result = CliRunner().invoke(export_triton, command, catch_exceptions=False)
        assert "tritonserver --model-repository" in result.output
    with triton_server(repository, tmp_path_factory.mktemp("triton")) as port:
        yield port


@pytest.fixture(scope="module")
def generator(pixel_artifact: pathlib.Path) -> Iterator[Generator]:
    with Generator.load(pixel_artifact, threads=1) as generator:
        yield generator


def infer(port: int, **columns: list[Any]) -> NDArray[np.uint8]:
    inputs = []
    for name, values in columns.items():
        datatype, dtype = DATATYPES[name]
        tensor = triton.InferInput(name, [len(values), 1], datatype)
        tensor.set_data_from_numpy(np.array(values, dtype)[:, None])
        inputs.append(tensor)
    with triton.InferenceServerClient(f"127.0.0.1:{port}", network_timeout=60) as client:
        images: NDArray[np.uint8] = client.infer("images", inputs).as_numpy("IMAGE")
    return images


def test_the_images_are_those_of_the_generator(port: int, generator: Generator) -> None:
    expected = generator.generate([0, 1, 1], seed=[7, 8, 9], index=[0, 3, 4]).images
    assert np.array_equal(infer(port, LABEL=[0, 1, 1], SEED=[7, 8, 9], INDEX=[0, 3, 4]), expected)


def test_settings_and_names_of_classes_are_those_of_the_request(port: int, generator: Generator) -> None:
    expected = generator.generate([1], seed=5, preset="turbo", cfg_scale=2.5, iterations=3).images
    found = infer(port, PROMPT=[b"dog"], SEED=[5], PRESET=[b"turbo"], GUIDANCE=[2.5], STEPS=[3])
    assert np.array_equal(found, expected)


def test_requests_at_the_same_time_get_their_own_images_and_errors(port: int, generator: Generator) -> None:
    """Triton gives them to the model together; a wrong one must not fail the others."""

    def asked(number: int) -> Any:
        try:
            return infer(port, LABEL=[9 if number % 4 == 3 else number % 2], SEED=[number])
        except InferenceServerException as error:
            return str(error)

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(asked, range(8)))
    for number, answer in enumerate(answers):
        if number % 4 == 3:
            assert "class 9 is out of range" in answer
        else:
            assert np.array_equal(answer, generator.generate([number % 2], seed=number).images)


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"SEED": [1]}, "give one of the inputs LABEL and PROMPT"),
        ({"PROMPT": [b"goose"]}, "goose"),
        ({"LABEL": [0], "GUIDANCE": [float("nan")]}, "cfg_scale"),
        ({"LABEL": [0], "STEPS": [0]}, "iterations"),
        ({"LABEL": [0], "PRESET": [b"slow"]}, "slow"),
        ({"LABEL": [0], "NEGATIVE_PROMPT": [b"dog"]}, "a model of classes has no negative prompt"),
    ],
    ids=["no class", "unknown class", "nan", "no iterations", "unknown preset", "negative prompt"],
)
def test_a_wrong_request_is_one_line(port: int, columns: dict[str, list[Any]], named: str) -> None:
    with pytest.raises(InferenceServerException) as error:
        infer(port, **columns)
    assert named in str(error.value)
    assert "Traceback" not in str(error.value)


def test_json_that_triton_reads_as_not_a_number_is_refused(port: int) -> None:
    """Its JSON takes NaN as a number (seen in 2.51.0); the model does not."""
    tensors = [("LABEL", "INT32", 0), ("GUIDANCE", "FP32", float("nan"))]
    inputs = [{"name": name, "datatype": kind, "shape": [1, 1], "data": [value]} for name, kind, value in tensors]
    answer = ask(port, "POST", "/v2/models/images/infer", {"inputs": inputs})
    assert answer.status == 400
    assert "cfg_scale" in answer.json["error"]


def test_a_stream_shows_images_while_they_are_drawn(port: int, generator: Generator) -> None:
    answer = ask(port, "POST", "/v2/models/stream/generate_stream", {"LABEL": 1, "SEED": 4})
    lines = [line for line in answer.body.decode().splitlines() if line.startswith("data: ")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert len(events) == 3
    assert [event["ROW"] for event in events] == [0, 0, 0]
    done = [event["DONE"] for event in events]
    assert done == sorted(set(done))
    assert done[-1] == events[-1]["TOTAL"]
    expected = generator.generate([1], seed=4).images
    assert expected is not None
    assert np.array_equal(np.reshape(events[-1]["IMAGE"], expected.shape), expected)


def test_a_wrong_request_ends_a_stream_with_its_error(port: int) -> None:
    answer = ask(port, "POST", "/v2/models/stream/generate_stream", {"LABEL": 9})
    assert "class 9 is out of range" in answer.body.decode()
