"""The rates that this machine reaches in ONNX Runtime: operations and bytes a second, for the roofline."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from mar_export.benchmark.product_graph import product_graph
from runtime.backends.onnxruntime import brief_spinning
from runtime.backends.telemetry import import_library
from runtime.cost.operations import Machine

# Rows, columns in, columns out: the shape of a transformer's MLP. The width is no multiple of 1024 floats, at which the
# product would lose a third of its rate (mar_export.graphs.channel_padding).
_PRODUCT = (640, 1088, 4096)
_READ = (1, 8192, 8192)  # one row: reads 256 MiB of weights, more than any cache holds
_REPEATS = 7


class Probe:
    """Two matrix products in ONNX Runtime: one limited by arithmetic, one by reading weights."""

    def __init__(self, threads: int) -> None:
        self._product, self._read = _session(_PRODUCT, threads), _session(_READ, threads)

    def measure(self) -> Machine:
        """Measure both products now, and return the median rates of a few calls."""
        rows, inner, outer = _PRODUCT
        operations = 2 * rows * inner * outer / self._seconds(self._product, _PRODUCT)
        read = 4 * _READ[1] * _READ[2] / self._seconds(self._read, _READ)
        return Machine(operations, read)

    @staticmethod
    def _seconds(product: Callable[[np.ndarray], object], shape: tuple[int, int, int]) -> float:
        x = np.ones(shape[:2], np.float32)
        times = []
        for _ in range(_REPEATS):
            started = time.perf_counter()
            product(x)
            times.append(time.perf_counter() - started)
        return float(np.median(times[1:]))  # the first call warms up


def _session(shape: tuple[int, int, int], threads: int) -> Callable[[np.ndarray], object]:
    """Load the product of an input [rows, inner] with a constant [inner, outer]."""
    rows, inner, outer = shape
    weights = np.random.default_rng(0).random((inner, outer), np.float32)
    onnxruntime = import_library("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry(*brief_spinning(onnxruntime.__version__))
    session = onnxruntime.InferenceSession(product_graph(rows, weights), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})
