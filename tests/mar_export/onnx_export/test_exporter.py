"""Writing a graph keeps nothing of it in memory."""

from __future__ import annotations

import gc
import pathlib
import weakref

from mar_export.graphs.engine_modules import graph_modules
from mar_export.onnx_export.exporter import export_graph
from runtime.model.engine_spec import DENOISE
from runtime.model.families import engine_specs
from tests.helpers.tiny_runs import TINY, randomized
from training.models.mar import MAR


def test_weights_are_let_go_once_their_graph_is_written(tmp_path: pathlib.Path) -> None:
    """The optimizer's rules live as long as the process, and hold the last graph that they rewrote."""
    module = graph_modules(randomized(MAR(**TINY.to_dict())), None, False)[DENOISE]
    # The modulation is another engine's: what is no part of the graph is not the graph's to let go.
    weights = [weakref.ref(weight) for name, weight in module.named_parameters() if "adaLN" not in name]
    export_graph(module, engine_specs(TINY)[DENOISE], TINY, tmp_path / "denoise.onnx")
    del module
    gc.collect()
    assert len(weights) == 10
    assert sum(reference() is not None for reference in weights) == 0
