"""The Open Inference Protocol, version 2 (KServe, Triton), with its extension for binary tensors."""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runtime.checks import truncate
from runtime.errors import RequestError
from runtime.service.http_errors import HttpError
from runtime.service.inference_tensors import DTYPES, IMAGE, INPUTS, drawings
from runtime.service.request_body import read_body
from runtime.service.request_fields import parse_json_object
from runtime.service.served_model import ServedModel
from runtime.service.service import Service
from runtime.storage.schema import SchemaError, parse_object
from runtime.version import __version__

HEALTH = ("/v2/health/live", "/v2/health/ready")
"""The paths of liveness and readiness, which need no key."""

_HEADER_LENGTH = "Inference-Header-Content-Length"
_VERSION = "1"
_MOST_DIMENSIONS = 8
_MOST_DIGITS = 20
_DATATYPES = {each.name: each.datatype for each in INPUTS}


@dataclasses.dataclass(frozen=True)
class _Input:
    """An input of a request."""

    name: str
    datatype: str
    shape: list[int] = dataclasses.field(metadata={"least": 0, "most": 2**31 - 1})
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    data: Any = None


@dataclasses.dataclass(frozen=True)
class _Output:
    """An output that a request asks for."""

    name: str
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Inference:
    """The JSON part of a request."""

    inputs: list[_Input]
    id: str = ""
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    outputs: list[_Output] | None = None


class OpenInference:
    """The handlers of this protocol for one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        """Return the paths of this protocol."""
        live, ready = HEALTH
        routes = [
            Route("/v2", self.server, methods=["GET"]),
            Route(live, self.live, methods=["GET"]),
            Route(ready, self.ready, methods=["GET"]),
        ]
        for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            routes += [
                Route(model, self.metadata, methods=["GET"]),
                Route(f"{model}/ready", self.model_ready, methods=["GET"]),
                Route(f"{model}/infer", self.infer, methods=["POST"]),
            ]
        return routes

    async def server(self, request: Request) -> Response:
        """Answer what this server is."""
        return JSONResponse({"name": "mar", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def live(self, request: Request) -> Response:
        """Answer that the process runs."""
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        """Answer whether requests are welcome."""
        return JSONResponse({"ready": self._service.ready}, 200 if self._service.ready else 503)

    async def model_ready(self, request: Request) -> Response:
        """Answer whether a model has drawn an image."""
        model = self._model(request)
        ready = model.ready and not self._service.stopping
        return JSONResponse({"name": model.name, "ready": ready}, 200 if ready else 503)

    async def metadata(self, request: Request) -> Response:
        """Answer with the inputs and outputs of a model."""
        model = self._model(request)
        image = [-1, *model.generator.manifest.model.image_shape]
        return JSONResponse(
            {
                "name": model.name,
                "versions": [_VERSION],
                "platform": "mar_runtime",
                "inputs": [{"name": each.name, "datatype": each.datatype, "shape": [-1, 1]} for each in INPUTS],
                "outputs": [{"name": IMAGE, "datatype": "UINT8", "shape": image}],
            }
        )

    async def infer(self, request: Request) -> Response:
        """Answer with the images that the tensors ask for, one for each row."""
        model, settings = self._model(request), self._service.settings
        body = await read_body(request, settings)
        header, buffers = _split(body, request.headers.get(_HEADER_LENGTH))
        try:
            asked = parse_object(_Inference, header, "request")
        except SchemaError as error:
            raise HttpError(400, str(error)) from None
        tensors = _read_inputs(asked, buffers)
        binary = _answers_binary(asked)
        rows = drawings(model, tensors, settings.images_per_request, self._service.deadline())
        drawn = await self._service.drawn(request, model.scheduler.submit_all(rows))
        images = np.stack([each.images[0].pixels for each in drawn])
        output: dict[str, Any] = {"name": IMAGE, "datatype": "UINT8", "shape": list(images.shape)}
        answer = {"model_name": model.name, "model_version": _VERSION, "id": asked.id, "outputs": [output]}
        if not binary:
            output["data"] = images.reshape(-1).tolist()
            return JSONResponse(answer)
        output["parameters"] = {"binary_data_size": images.nbytes}
        text = json.dumps(answer).encode()
        headers = {_HEADER_LENGTH: str(len(text))}
        return Response(text + images.tobytes(), headers=headers, media_type="application/octet-stream")

    def _model(self, request: Request) -> ServedModel:
        version = request.path_params.get("version", _VERSION)
        if version != _VERSION:
            raise HttpError(404, f"there is no version {truncate(version)} of this model; there is {_VERSION}")
        return self._service.model(request.path_params["name"])


def error_body(error: HttpError) -> dict[str, Any]:
    """Return a failure in the form of this protocol."""
    return {"error": str(error)}


def _split(body: bytes, header_length: str | None) -> tuple[dict[str, Any], memoryview]:
    """Return the JSON part of a request and the binary part behind it."""
    length = len(body)
    if header_length is not None:  # Python converts no number of thousands of digits
        length = int(header_length) if header_length.isdecimal() and len(header_length) <= _MOST_DIGITS else -1
    if not 0 <= length <= len(body):
        raise HttpError(400, f"{_HEADER_LENGTH} must lie in 0..{len(body)}, found {truncate(header_length)}")
    return parse_json_object(body[:length]), memoryview(body)[length:]


def _read_inputs(asked: _Inference, buffers: memoryview) -> dict[str, NDArray[Any]]:
    """Return the inputs of a request by name. Raises `RequestError`."""
    tensors: dict[str, NDArray[Any]] = {}
    for each in asked.inputs:
        name = truncate(each.name)
        if each.name in tensors:
            raise RequestError(f"the input {name} is there twice")
        expected = _DATATYPES.get(each.name, each.datatype)
        if each.datatype != expected or expected not in _DATATYPES.values():
            raise RequestError(f"the input {name} must be {expected}, found {truncate(each.datatype)}")
        if not 1 <= len(each.shape) <= _MOST_DIMENSIONS:
            raise RequestError(f"the input {name} has {len(each.shape)} dimensions, expected 1 or 2")
        size = each.parameters.get("binary_data_size")
        if size is None:
            values = _from_json(each)
        else:
            if type(size) is not int or not 0 <= size <= len(buffers):
                raise RequestError(f"binary_data_size of {name} must lie in 0..{len(buffers)}, found {truncate(size)}")
            values, buffers = _from_bytes(each, bytes(buffers[:size])), buffers[size:]
        if len(values) != math.prod(each.shape):
            raise RequestError(f"the input {name} has {len(values)} values for the shape {each.shape}")
        tensors[each.name] = values.reshape(each.shape)
    if len(buffers):
        raise RequestError(f"{len(buffers)} bytes follow the last input; check every binary_data_size")
    return tensors


def _from_json(each: _Input) -> NDArray[Any]:
    """Return the values of an input in JSON, flat or nested, as an array of one dimension."""
    values = each.data
    for _ in range(_MOST_DIMENSIONS):
        if not isinstance(values, list) or not any(isinstance(value, list) for value in values):
            break
        values = [part for value in values for part in (value if isinstance(value, list) else [value])]
    if not isinstance(values, list):
        raise RequestError(f"the input {truncate(each.name)} must have a list data, found {truncate(values)}")
    array = np.empty(len(values), object)
    array[:] = [_scalar(each, value) for value in values]
    return array if each.datatype == "BYTES" else array.astype(DTYPES[each.datatype])


def _scalar(each: _Input, value: Any) -> Any:
    """Return one value of JSON, checked against the type of its input: nothing is rounded or wrapped."""
    if each.datatype == "BYTES":
        valid = isinstance(value, str)
        value = value.encode("utf-8", "surrogateescape") if valid else value
    elif each.datatype == "FP32":
        valid = type(value) in (int, float) and abs(value) <= float(np.finfo(np.float32).max)
    else:
        limits = np.iinfo(DTYPES[each.datatype])
        valid = type(value) is int and limits.min <= value <= limits.max
    if not valid:
        raise RequestError(f"the input {truncate(each.name)} holds {truncate(value)}, expected {each.datatype}")
    return value


def _from_bytes(each: _Input, content: bytes) -> NDArray[Any]:
    """Return the values of an input in binary, little-endian, as an array of one dimension."""
    name = truncate(each.name)
    if each.datatype == "BYTES":
        return _from_length_prefixed(name, content)
    dtype = np.dtype(DTYPES[each.datatype]).newbyteorder("<")
    if len(content) % dtype.itemsize:
        raise RequestError(f"the input {name} has {len(content)} bytes, expected a multiple of {dtype.itemsize}")
    return np.frombuffer(content, dtype).astype(DTYPES[each.datatype])


def _from_length_prefixed(name: str, content: bytes) -> NDArray[Any]:
    """Return texts, each after its length as four bytes."""
    texts, position = [], 0
    while position < len(content):
        (length,) = struct.unpack_from("<I", content.ljust(position + 4, b"\xff"), position)
        position += 4 + length
        if position > len(content):
            raise RequestError(f"the input {name} ends in the middle of a text")
        texts.append(content[position - length : position])
    array = np.empty(len(texts), object)
    array[:] = texts
    return array


def _answers_binary(asked: _Inference) -> bool:
    """Return whether the image is to be sent in binary. Raises `RequestError` for another output."""
    for output in asked.outputs or []:
        if output.name != IMAGE:
            raise RequestError(f"there is no output {truncate(output.name)}; this model has {IMAGE}")
    default = asked.parameters.get("binary_data_output", False)
    chosen = [output.parameters.get("binary_data", default) for output in asked.outputs or []]
    return bool(chosen[0] if chosen else default)
