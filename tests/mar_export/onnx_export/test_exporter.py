"""Writing a graph: what stands in it, and that nothing of it stays in memory."""

from __future__ import annotations

import gc
import pathlib
import weakref

import onnx
import pytest

from mar_export.graphs.engine_modules import graph_modules
from mar_export.onnx_export.exporter import export_graph
from runtime.model.engine_spec import BACKBONE, DENOISE
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


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> onnx.GraphProto:
    path = tmp_path_factory.mktemp("graph") / "backbone.onnx"
    module = graph_modules(randomized(MAR(**TINY.to_dict())), None, False)[BACKBONE]
    export_graph(module, engine_specs(TINY)[BACKBONE], TINY, path)
    return onnx.load(path).graph


def test_rows_of_tables_are_looked_up_with_gather(backbone: onnx.GraphProto) -> None:
    """By labels, and by positions in three tables, one of them for known and for unknown tokens."""
    kinds = [node.op_type for node in backbone.node]
    assert kinds.count("Gather") == 5
    assert "GatherND" not in kinds


def test_tokens_are_projected_before_they_are_repeated_for_the_guidance_halves(backbone: onnx.GraphProto) -> None:
    assert [node.name for node in backbone.node if "tokens" in node.input and node.op_type != "Shape"] == [
        "model.z_proj.MatMul"
    ]


def test_nodes_are_named_after_modules_and_values_between_them_have_no_shapes(backbone: onnx.GraphProto) -> None:
    names = [node.name for node in backbone.node]
    assert len({*names}) == len(names)
    assert {name.split(".")[0] for name in names} == {"backbone", "model"}
    assert not backbone.value_info
