"""The model that Triton's Python backend runs. `mar export-triton` writes it into a repository as `1/model.py`.

The artifact lies beside it. `config.pbtxt` has the inputs, the outputs, and the settings under `parameters`.
"""

from __future__ import annotations

import functools
import pathlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import Any

import numpy as np
import triton_python_backend_utils as triton  # a module of the server
from numpy.typing import NDArray

from runtime.errors import MarError, RequestError
from runtime.generator import Generator
from runtime.service.drawing import Drawing, Drawn, Shown
from runtime.service.inference_tensors import IMAGE, drawings
from runtime.service.served_model import ServedModel
from runtime.storage.structured_files import parse_json
from runtime.triton.repository import ARTIFACT, DONE, ROW, TOTAL, TritonSettings


class TritonPythonModel:
    """Draws the images that requests ask for. Triton forms batches; the scheduler draws like settings together."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the artifact and draw one image. Raises Triton's error, so that the model is not ready."""
        config = parse_json(args["model_config"])
        settings = TritonSettings.from_parameters(
            {name: value["string_value"] for name, value in config["parameters"].items()}
        )
        folder = pathlib.Path(args["model_repository"]) / args["model_version"] / ARTIFACT
        self._decoupled = triton.using_decoupled_model_transaction_policy(config)
        self._output = triton.get_output_config_by_name(config, IMAGE)
        self._partial_images = settings.partial_images
        self._max_batch = settings.max_batch
        try:
            generator = Generator.load(
                folder,
                backend=settings.backend,
                device=settings.device,
                threads=settings.threads,
                split_batches=settings.max_batch > 1,
            )
            self._model = ServedModel(args["model_name"], generator, settings.service_settings())
            self._model.scheduler.submit(self._model.warm_up()).result()
        except MarError as error:
            raise triton.TritonModelException(str(error)) from None

    def finalize(self) -> None:
        """Free the engines."""
        self._model.close()

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """Answer requests. A wrong one, or one that fails, gets an error of its own."""
        if self._decoupled:
            for request in requests:
                self._stream(request, request.get_response_sender())
            return None
        asked = [self._submit(request) for request in requests]
        return [each if isinstance(each, triton.InferenceResponse) else self._answer(each) for each in asked]

    def _submit(self, request: Any, show: Callable[[int, Shown], None] | None = None) -> Any:
        """Put the images of a request into the queue.

        Args:
            request: The request.
            show: Called with the row of an image and what is known of it, if the request is a stream.

        Returns:
            Their futures, or the response that says what is wrong with the request.
        """
        try:
            tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            asked: Sequence[Drawing] = drawings(self._model, tensors, self._max_batch)
            if show:
                shown = [functools.partial(show, row) for row in range(len(asked))]
                partial = self._partial_images
                asked = [replace(each, partial_images=partial, show=shown[row]) for row, each in enumerate(asked)]
            return self._model.scheduler.submit_all(asked)
        except Exception as error:  # whatever a library raises, the other requests are answered
            return _failure(error)

    def _answer(self, futures: Sequence[Future[Drawn]]) -> Any:
        """Wait for the images of a request, and return its response."""
        try:
            images = np.stack([future.result().images[0].pixels for future in futures])
            return triton.InferenceResponse([triton.Tensor(IMAGE, self._checked(images))])
        except Exception as error:  # whatever a library raises, the server goes on
            return _failure(error)

    def _stream(self, request: Any, sender: Any) -> None:
        """Answer a request with a response for each partial and each finished image, while others are drawn."""
        asked = self._submit(request, functools.partial(self._send, sender))
        if isinstance(asked, triton.InferenceResponse):
            sender.send(asked, flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        else:
            threading.Thread(target=_end, args=(sender, asked), daemon=True).start()

    def _send(self, sender: Any, row: int, shown: Shown) -> None:
        """Send one image of a stream. A thread of the scheduler calls this; an exception ends the request."""
        if sender.is_cancelled():
            raise RequestError("the client has cancelled the request")
        numbers = {ROW: row, DONE: shown.done, TOTAL: shown.total}
        tensors = [triton.Tensor(name, np.full((1, 1), value, np.int32)) for name, value in numbers.items()]
        image = triton.Tensor(IMAGE, self._checked(shown.pixels[None]))
        sender.send(triton.InferenceResponse([image, *tensors]))

    def _checked(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return images after comparing them with `config.pbtxt`, which Triton does not do for a Python model."""
        shape, dtype = self._output["dims"], triton.triton_string_to_numpy(self._output["data_type"])
        if list(images.shape[1:]) != shape or images.dtype != dtype:
            raise RequestError(
                f"the artifact makes images of {list(images.shape[1:])}, and config.pbtxt has {shape}; write the "
                "repository again with mar export-triton"
            )
        return images


def _end(sender: Any, futures: Sequence[Future[Drawn]]) -> None:
    """End a stream once all its images are drawn, or one has failed."""
    wait(futures)
    errors = [error for future in futures if (error := future.exception())]
    final = triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL
    if errors:
        sender.send(_failure(errors[0]), flags=final)
    else:
        sender.send(flags=final)


def _failure(error: BaseException) -> Any:
    code = triton.TritonError.INVALID_ARG if isinstance(error, RequestError) else triton.TritonError.INTERNAL
    return triton.InferenceResponse(error=triton.TritonError(str(error) or type(error).__name__, code))
