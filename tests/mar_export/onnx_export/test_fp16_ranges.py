"""What fp16 cannot hold is found before anything is exported, and named."""

from __future__ import annotations

import copy
import dataclasses
import math
import pathlib
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from mar_export.artifact import export as export_module
from mar_export.artifact.export import export_artifact
from mar_export.artifact.parity import ENGINE_TOLERANCES
from mar_export.cli.export import export as export_command
from mar_export.onnx_export.fp16_ranges import FP16_MAX, check_fp16, largest_values
from mar_export.onnx_export.mixed_precision import to_precision
from runtime.artifact.artifact_folder import Artifact
from runtime.errors import ParityError
from runtime.generator import Generator
from runtime.model.engine_spec import ENGINES
from tests.helpers.golden_cases import GOLDEN
from training.checkpoints.checkpoint import Checkpoint

BLOCK = "model.encoder_blocks.1.mlp"


class TracingError(Exception):
    """Raised where the tracing would begin."""


@pytest.fixture
def nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*arguments: object) -> NoReturn:
        raise TracingError

    monkeypatch.setattr(export_module, "export_graph", reached)


def with_large_values(checkpoint: Checkpoint, scale: float) -> Checkpoint:
    """The model with the values inside of one block `scale` times as large, and its result nearly as ever."""
    model = copy.deepcopy(checkpoint.model)
    mlp: Any = model.encoder_blocks[1].mlp
    with torch.no_grad():
        mlp.fc1.weight *= scale
        mlp.fc1.bias *= scale
        mlp.fc2.weight /= scale
    return dataclasses.replace(checkpoint, model=model)


def refusal(checkpoint: Checkpoint, out: pathlib.Path) -> dict[str, float]:
    """What an export in fp16 is refused for: layer -> largest value."""
    with pytest.raises(ParityError) as refused:
        export_artifact(checkpoint, out, lambda text: None, precision="fp16")
    message = str(refused.value)
    assert message.startswith("fp16 holds numbers up to 65504, which these layers exceed: ")
    assert message.endswith("; export with --precision bf16")
    assert "\n" not in message
    return {layer: float(value) for layer, value in re.findall(r"(\w+: [\w.]+) \(([^)]+)\)", message)}


@pytest.mark.usefixtures("nothing_is_traced")
def test_layers_that_pass_fp16_are_named_and_nothing_is_written_and_those_just_below_are_not(
    small_checkpoint: Checkpoint, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "artifact"
    far = refusal(with_large_values(small_checkpoint, 1e6), out)
    # What one layer makes, with its bias, the next one reads.
    assert set(far) == {f"backbone: {BLOCK}.fc1", f"backbone: {BLOCK}.fc2"}
    scale = 1e6 * FP16_MAX / max(far.values())
    near = refusal(with_large_values(small_checkpoint, 1.03 * scale), out)
    assert set(near) <= set(far)
    assert max(near.values()) == pytest.approx(1.03 * FP16_MAX, rel=0.01)
    with pytest.raises(TracingError):
        export_artifact(with_large_values(small_checkpoint, 0.97 * scale), out, lambda text: None, precision="fp16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("nothing_is_traced")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_precisions_hold_them(small_checkpoint: Checkpoint, tmp_path: pathlib.Path, precision: str) -> None:
    with pytest.raises(TracingError):
        export_artifact(
            with_large_values(small_checkpoint, 1e6), tmp_path / "artifact", lambda text: None, precision=precision
        )


@pytest.mark.usefixtures("nothing_is_traced")
def test_a_weight_that_fp16_cannot_hold_is_named(small_checkpoint: Checkpoint, tmp_path: pathlib.Path) -> None:
    """Of the head's conditioning, under an input that is zero: only the weight itself is too large."""
    model = copy.deepcopy(small_checkpoint.model)
    cond_embed = model.diffloss.net.cond_embed
    model.decoder_norm.weight.data[3] = model.decoder_norm.bias.data[3] = 0
    model.diffusion_pos_embed_learned.data[..., 3] = 0
    cond_embed.weight.data[0, 3] = -7e4
    found = refusal(dataclasses.replace(small_checkpoint, model=model), tmp_path / "artifact")
    assert found == {"conditioning: cond_embed": pytest.approx(7e4)}


@pytest.mark.usefixtures("nothing_is_traced")
def test_a_tokenizer_is_watched_too(kl_checkpoint: Checkpoint, tmp_path: pathlib.Path) -> None:
    """On the latents that were drawn. Normalisation behind it hides how large its result is."""
    vae = copy.deepcopy(kl_checkpoint.vae)
    assert vae is not None
    vae.decoder.mid.block_1.conv1.weight.data *= 1e6
    found = refusal(dataclasses.replace(kl_checkpoint, vae=vae), tmp_path / "artifact")
    assert set(found) == {"decoder: vae.decoder.mid.block_1.conv1"}


@pytest.mark.parametrize("value", [FP16_MAX, 1.0, 0.0])
def test_what_fp16_holds_is_accepted(value: float) -> None:
    check_fp16({"one": 2.0, "other": value})
    check_fp16({})


@pytest.mark.parametrize("value", [np.nextafter(FP16_MAX, math.inf), 1e30, math.inf, math.nan])
def test_what_fp16_does_not_hold_is_refused(value: float) -> None:
    with pytest.raises(ParityError, match=r"exceed: this \(") as refused:
        check_fp16({"one": 2.0, "this": float(value), "other": FP16_MAX})
    assert "one" not in str(refused.value)
    assert "other" not in str(refused.value)


def test_the_largest_magnitude_of_factors_and_products_is_noted_while_it_is_watched() -> None:
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-3.0, 2.0]]))
        layer.bias.fill_(1000)  # added in float32
    watched = to_precision(nn.Sequential(nn.Identity(), layer), torch.float32)
    with largest_values({"engine": watched}) as largest:
        assert largest == {}
        watched(torch.zeros(0, 2))
        assert largest["engine: 1"] == 3  # the weight, where there is nothing else
        watched(torch.tensor([[4.0, 0.0]]))
        assert largest == {"engine: 1": 12}
        watched(torch.tensor([[-100.0, -150.0]]))
        assert largest == {"engine: 1": 150}
        watched(torch.ones(1, 2))
    watched(torch.full((1, 2), 1e6))
    assert largest == {"engine: 1": 150}


@pytest.mark.parametrize("place", [0, 1])
def test_what_is_no_number_is_noted_wherever_it_stands(place: int) -> None:
    watched = to_precision(nn.Sequential(nn.Linear(2, 1)), torch.float32)
    values = torch.ones(2, 2)
    values[place, place] = math.nan
    with largest_values({"engine": watched}) as largest:
        watched(torch.ones(1, 2))
        watched(values)
        watched(torch.ones(1, 2))
    with pytest.raises(ParityError, match=r"engine: 0 \(nan\)"):
        check_fp16(largest)


# The command.


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_command_exports_in_the_precision_that_is_asked_for(
    lowered_artifacts: dict[str, pathlib.Path],
    tracing_no_graph_of: Callable[..., AbstractContextManager[None]],
    tmp_path: pathlib.Path,
    precision: str,
) -> None:
    out = tmp_path / "artifact"
    checkpoint, config = GOLDEN / "small" / "checkpoint-last.pth", GOLDEN / "small" / "meta.json"
    line: list[str] = [str(checkpoint), f"--model-config={config}", f"--out={out}", f"--precision={precision}"]
    with tracing_no_graph_of(lowered_artifacts[precision]):
        ended = CliRunner().invoke(export_command, line)
    assert ended.exit_code == 0, ended.output
    message = rf"relative L2 from eager \S+ \(\d+ dB\), allowed {ENGINE_TOLERANCES[precision]:.0e}"
    for engine in ENGINES:
        openvino = r"; on OpenVINO with products in (bf16|fp32) \S+" if precision == "bf16" else ""
        assert re.search(f"^{engine}: {message}{openvino}$", ended.output, re.MULTILINE)
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    manifest = Artifact(out).manifest
    assert manifest.precision == precision
    parity: dict[str, Any] = {name: report["relative_l2"] for name, report in manifest.parity.items()}
    assert parity == pytest.approx(
        {name: report["relative_l2"] for name, report in Artifact(lowered_artifacts[precision]).manifest.parity.items()}
    )
    if precision == "fp16":
        with Generator.load(out, threads=1) as generator:
            assert generator.generate([1], iterations=2, diffusion_steps="ddim2").latents.shape == (1, 8, 4, 4)


def test_a_precision_that_does_not_exist_is_refused(tmp_path: pathlib.Path) -> None:
    ended = CliRunner().invoke(export_command, ["x", f"--out={tmp_path / 'y'}", "--precision=int4"])
    assert ended.exit_code == 2
    assert "'int4' is not one of 'fp32', 'fp16', 'bf16'" in ended.output
