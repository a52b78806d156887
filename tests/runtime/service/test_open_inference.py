"""The Open Inference Protocol, asked by Triton's client in JSON and in binary, and by requests that are wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from numpy.typing import NDArray

from runtime.service.settings import ServiceSettings
from runtime.version import __version__
from tests.helpers.fake_generators import fake_generator
from tests.helpers.running_services import RunningService, running_service, until

INFER = "/v2/models/owls/infer"


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with running_service({"owls": fake_generator()}, ServiceSettings(max_images=6)) as running:
        until(lambda: running.service.ready)
        yield running


@pytest.fixture(scope="module")
def client(service: RunningService) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{service.port}") as client:
        yield client


def tensor(name: str, values: list[Any], dtype: Any, datatype: str, binary: bool, flat: bool = False) -> Any:
    array = np.array(values, dtype).reshape(-1) if flat else np.array(values, dtype).reshape(-1, 1)
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def alone(labels: list[int], seeds: list[int], **settings: Any) -> NDArray[np.uint8]:
    with fake_generator() as generator:
        images = generator.generate(labels, seed=seeds, index=[0] * len(labels), **settings).images
    assert images is not None
    return images


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("flat", [True, False], ids=["[n]", "[n, 1]"])
def test_rows_are_images_with_settings_of_their_own(client: Any, binary: bool, flat: bool) -> None:
    inputs = [
        tensor("PROMPT", [b"dog", b"2", b"cat"], object, "BYTES", binary, flat),
        tensor("SEED", [2**64 - 1, 7, 7], np.uint64, "UINT64", binary, flat),
        tensor("INDEX", [0, 0, 3], np.uint64, "UINT64", binary, flat),
        tensor("GUIDANCE", [1.7, 3, 1.7], np.float32, "FP32", binary, flat),
        tensor("STEPS", [4, 2, 4], np.int32, "INT32", binary, flat),
    ]
    outputs = [triton.InferRequestedOutput("IMAGE", binary_data=binary)]
    result = client.infer("owls", inputs, outputs=outputs, request_id="mine", model_version="1")
    images = result.as_numpy("IMAGE")
    assert result.get_response()["id"] == "mine"
    assert images.dtype == np.uint8
    assert np.array_equal(images[:1], alone([1], [2**64 - 1], cfg_scale=1.7))
    assert np.array_equal(images[1:2], alone([2], [7], cfg_scale=3.0, iterations=2))
    with fake_generator() as generator:
        third = generator.generate([0], seed=7, index=[3], cfg_scale=1.7).images
    assert np.array_equal(images[2:], third)


def test_labels_and_presets(client: Any) -> None:
    inputs = [
        tensor("LABEL", [0, 1], np.int32, "INT32", True),
        tensor("SEED", [1, 2], np.uint64, "UINT64", True),
        tensor("PRESET", [b"turbo", b"turbo"], object, "BYTES", True),
    ]
    assert np.array_equal(client.infer("owls", inputs).as_numpy("IMAGE"), alone([0, 1], [1, 2], preset="turbo"))


def test_the_server_and_its_model_describe_themselves(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("owls")
    assert client.is_model_ready("owls", "1")
    assert not client.is_model_ready("cats")
    assert client.get_server_metadata() == {
        "name": "mar", "version": __version__, "extensions": ["binary_tensor_data"]
    }  # fmt: skip
    metadata = client.get_model_metadata("owls")
    assert metadata["outputs"] == [{"name": "IMAGE", "datatype": "UINT8", "shape": [-1, 16, 16, 1]}]
    assert {(each["name"], each["datatype"]) for each in metadata["inputs"]} >= {("LABEL", "INT32"), ("SEED", "UINT64")}


def test_a_failure_reaches_the_client(client: Any) -> None:
    with pytest.raises(triton.InferenceServerException, match="class 9 is out of range") as refused:
        client.infer("owls", [tensor("LABEL", [9], np.int32, "INT32", True)])
    assert refused.value.status() == "400"
    with pytest.raises(triton.InferenceServerException, match="there is no model 'cats'"):
        client.infer("cats", [tensor("LABEL", [0], np.int32, "INT32", True)])


def label(**changes: Any) -> dict[str, Any]:
    return {"name": "LABEL", "datatype": "INT32", "shape": [1, 1], "data": [0]} | changes


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "give one of the inputs LABEL and PROMPT"),
        ([label(), label(name="PROMPT", datatype="BYTES", data=["cat"])], "give one of the inputs LABEL and PROMPT"),
        ([label(), label()], "there twice"),
        ([label(datatype="INT64")], "must be INT32, found 'INT64'"),
        ([label(name="CLASS")], "unknown input 'CLASS'"),
        ([label(data=[0.5])], "holds 0.5, expected INT32"),
        ([label(data=[2**31])], "holds 2147483648, expected INT32"),
        ([label(data=[True])], "holds True, expected INT32"),
        ([label(data=["0"])], "holds '0', expected INT32"),
        ([label(data=0)], "must have a list data"),
        ([label(data=[0, 1])], "has 2 values for the shape"),
        ([label(shape=[-1, 1])], "shape"),
        ([label(shape=[])], "has 0 dimensions, expected 1 or 2"),
        ([label(shape=[2, 2], data=[0, 0, 0, 0])], r"must have the shape \[2, 1\]"),
        ([label(shape=[0, 1], data=[])], "may have 1 to 6 images, found 0"),
        ([label(shape=[7, 1], data=[0] * 7)], "may have 1 to 6 images, found 7"),
        ([label(), label(name="SEED", datatype="UINT64", data=[-1])], "holds -1, expected UINT64"),
        ([label(), label(name="GUIDANCE", datatype="FP32", data=[1e39])], "expected FP32"),
        ([label(), label(name="STEPS", data=[99])], "iterations must lie in"),
        ([label(), label(name="NEGATIVE_PROMPT", datatype="BYTES", data=["dog"])], "has no negative prompt"),
        ([label(parameters={"binary_data_size": 4})], "binary_data_size"),
    ],
)
def test_a_wrong_request_is_told(service: RunningService, inputs: list[Any], message: str) -> None:
    answer = service.ask("POST", INFER, {"inputs": inputs})
    assert answer.status == 400
    assert set(answer.json) == {"error"}

    assert re.search(message, answer.json["error"]), answer.json


@pytest.mark.parametrize(
    ("sizes", "content", "message"),
    [
        ([4], b"\0\0\0\0\0", "1 bytes follow the last input"),
        ([3], b"\0\0\0", "expected a multiple of 4"),
        ([8], b"\0\0\0\0", "must lie in 0..4"),
        (["4"], b"\0\0\0\0", "binary_data_size"),
    ],
)
def test_wrong_binary_content_is_told(service: RunningService, sizes: list[Any], content: bytes, message: str) -> None:
    inputs = [{**label(parameters={"binary_data_size": size}), "data": None} for size in sizes]
    header = json.dumps({"inputs": inputs}).encode()
    length = {"Inference-Header-Content-Length": str(len(header))}
    answer = service.ask("POST", INFER, header + content, **length)
    assert answer.status == 400
    assert message in answer.json["error"]


@pytest.mark.parametrize("content", [b"\x05\0\0\0cat", b"\x03\0\0", b"\xff\xff\xff\xff"])
def test_texts_that_end_too_early_are_told(service: RunningService, content: bytes) -> None:
    prompt = {"name": "PROMPT", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(content)}}
    header = json.dumps({"inputs": [prompt]}).encode()
    answer = service.ask("POST", INFER, header + content, Inference_Header_Content_Length=str(len(header)))
    assert (answer.status, answer.json["error"]) == (400, "the input 'PROMPT' ends in the middle of a text")


@pytest.mark.parametrize("length", ["-1", "999", "x", "1" * 5000])
def test_a_wrong_length_of_the_header_is_told(service: RunningService, length: str) -> None:
    answer = service.ask("POST", INFER, b'{"inputs": []}', Inference_Header_Content_Length=length)
    assert answer.status == 400
    assert "Inference-Header-Content-Length must lie in 0..14" in answer.json["error"]


def test_other_outputs_and_versions_are_refused(service: RunningService) -> None:
    answer = service.ask("POST", INFER, {"inputs": [label()], "outputs": [{"name": "LATENT"}]})
    assert (answer.status, answer.json["error"]) == (400, "there is no output 'LATENT'; this model has IMAGE")
    assert service.ask("GET", "/v2/models/owls/versions/2").status == 404
    assert service.ask("GET", "/v2/repository").json == {"error": "there is nothing at this path"}
