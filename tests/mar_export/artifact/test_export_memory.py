"""An export holds the weights of one part of one engine: they lie in mapped files, whose pages are given back."""

from __future__ import annotations

import pathlib

import pytest
from torch import nn

from mar_export.artifact import export as export_module
from mar_export.artifact.export import export_artifact
from runtime.generator import Generator
from runtime.model.config import ModelConfig
from tests.helpers.resident_memory import resident_bytes
from training.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_run
from training.checkpoints.mapped_weights import bytes_in_memory
from training.models.mar import MAR

WIDTH = 512  # the largest weights have 4.5 MB each, those of all engines 30 MB
LARGEST = 4 * WIDTH * (4 * WIDTH + 64)
SIZES = {"embed_dim": WIDTH, "depth": 1, "num_heads": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    sizes = {f"{half}_{name}": size for half in ("encoder", "decoder") for name, size in SIZES.items()}
    config = ModelConfig(
        img_size=4, vae_stride=1, vae_embed_dim=1, class_num=2, buffer_size=2, diffloss_d=2, diffloss_w=WIDTH, **sizes
    )
    folder = tmp_path_factory.mktemp("run") / "run"
    model = MAR(**config.to_dict()).eval().requires_grad_(False)
    save_run(folder, Checkpoint(model, "pixel", (), "random", "0" * 64))
    return folder


@pytest.mark.parametrize(("precision", "mapped"), [("fp32", True), ("fp16", False)])
def test_no_two_engines_have_their_weights_in_memory(
    run: pathlib.Path, tmp_path: pathlib.Path, precision: str, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of a model that comes from no file, as one with random weights."""
    modules: dict[str, nn.Module] = {}
    seen: dict[str, tuple[int, int]] = {}
    made = export_module.graph_modules

    def remember(*arguments: object) -> dict[str, nn.Module]:
        modules.update(made(*arguments))  # type: ignore[arg-type]
        return dict(modules)

    def report(line: str) -> None:
        files = [run / "weights.safetensors", *tmp_path.rglob("*.weights")]
        seen[line] = bytes_in_memory(modules.values()), resident_bytes(files)

    monkeypatch.setattr(export_module, "graph_modules", remember)
    references = [load_checkpoint(run)]
    for parameter in () if mapped else references[0].model.parameters():
        parameter.data = parameter.data.clone()
    assert resident_bytes([run / "weights.safetensors"]) < LARGEST, "loading reads all weights and keeps none"
    export_artifact(references.pop(), tmp_path / "artifact", report, precision=precision)

    assert sum(line.endswith(": exporting") for line in seen) == len(modules)
    weights = sum(parameter.nbytes for module in modules.values() for parameter in module.parameters())
    assert weights > 5 * LARGEST
    assert {in_memory for in_memory, _ in seen.values()} == {0}, "every large weight lies in a mapped file"
    assert max(resident for _, resident in seen.values()) < LARGEST, seen
    with Generator.load(tmp_path / "artifact", threads=1) as generator:
        images = generator.generate([0], iterations=2, diffusion_steps=2).images
    assert images is not None
    assert images.shape == (1, 4, 4, 1)
