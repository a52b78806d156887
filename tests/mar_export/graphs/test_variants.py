"""Models of other forms than the published one: the cache of causal attention, codes, what is refused.

One artifact has both, since exporting takes seconds; most of what is drawn is drawn by the same engines in PyTorch.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import shutil
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from benchmarks.variants import VARIANTS
from calibration.cli.calibrate import calibrate
from calibration.cli.optimize_steps import optimize_steps
from mar_export.cli.bench import bench
from mar_export.graphs.engine_modules import loop_modules
from mar_export.tensorrt.artifact_builds import build_engines
from mar_export.torch_backends.torch_cpu import eager_generator
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import MANIFEST, Manifest
from runtime.cli.inspect import inspect
from runtime.cli.plan import plan
from runtime.errors import ArtifactError, RequestError
from runtime.generator import Generator
from runtime.gpu.backend import GpuBackend
from runtime.model.config import LATER_FIELDS, ModelConfig
from runtime.model.families import check_supported
from runtime.requests.inpainting import Edit
from runtime.sampling.rng import seeded_noise, seeded_order
from runtime.sampling.settings import Sampling
from tests.helpers.distance import relative_l2
from tests.helpers.variant_models import variant_artifact, variant_checkpoint
from training.models.model_sizes import model_config
from training.models.reference_loop import sample

_CHAIN = {"diffusion_steps": 4, "sampler": "ddim"}
_GUIDED = {"cfg_scale": 2.5, "cfg_interval": (0.3, 0.8)}  # neither at first nor at last


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Causal attention and codes, exported. Read only."""
    return variant_artifact("causal vq", tmp_path_factory)


def _generator(form: str) -> Generator:
    checkpoint = variant_checkpoint(form)
    manifest = Manifest(checkpoint.model.config, "pixel", (), Sampling(), "fp32", {}, {}, {}, {})
    return eager_generator(manifest, checkpoint.model)


@pytest.fixture(scope="module")
def causal() -> Generator:
    return _generator("causal")


@pytest.fixture(scope="module")
def codes() -> Generator:
    return _generator("raster vq")


def _eager(form: str, generator: Generator, settings: dict[str, Any], labels: list[int]) -> NDArray[np.floating]:
    """The same images by the eager loop, which has no cache."""
    plan, config = generator.plan(**settings), generator.manifest.model
    indices = range(len(labels))
    order = seeded_order(0, indices, config, plan.token_order)
    noise = seeded_noise(0, indices, plan.diffusion_steps, config)
    return sample(variant_checkpoint(form).model, np.array(labels), plan, order, noise)


@pytest.mark.parametrize("guidance", [{}, {"cfg_scale": 3.0}, _GUIDED], ids=["none", "always", "sometimes"])
def test_an_artifact_with_a_cache_draws_the_images_of_eager_pytorch_without(
    artifact: pathlib.Path, guidance: dict[str, Any]
) -> None:
    with Generator.load(artifact, threads=1) as generator:
        found = generator.generate([0, 2], **guidance).latents
        assert np.array_equal(found, _eager("causal vq", generator, guidance, [0, 2]))


@pytest.mark.parametrize("guidance", [{}, {"cfg_scale": 3.0}, _GUIDED], ids=["none", "always", "sometimes"])
def test_with_a_cache_the_images_are_those_without(causal: Generator, guidance: dict[str, Any]) -> None:
    settings = {**_CHAIN, **guidance}
    found = causal.generate([0, 2], **settings).latents
    assert relative_l2(found, _eager("causal", causal, settings, [0, 2])) < 1e-5


def test_a_image_of_a_causal_model_is_the_same_in_any_batch(causal: Generator) -> None:
    together = causal.generate([0, 1, 2], **_CHAIN, **_GUIDED).latents
    alone = causal.generate([1], index=[1], **_CHAIN, **_GUIDED).latents
    assert relative_l2(alone, together[1:2]) < 1e-5


def test_every_slot_is_read_once(causal: Generator) -> None:
    """What a pass reads: the class buffer first, one token then, after as many as were read before."""
    backbone, read = causal.engines.backbone, []

    def watched(**inputs: Any) -> tuple[Any, ...]:
        read.append((len(inputs["position_ids"]), len(inputs["past_key_values"])))
        return backbone(**inputs)

    engines = dataclasses.replace(causal.engines, backbone=watched)
    Generator(causal.manifest, engines, "watched").generate([0], **_CHAIN)
    buffer = causal.manifest.model.buffer_size
    assert read == [(buffer, 0), *((1, buffer + place) for place in range(15))]


def test_the_backbone_reads_a_sequence_in_parts_of_any_size() -> None:
    model = variant_checkpoint("causal").model
    backbone, config = loop_modules(model)["backbone"], model.config
    buffer, generator = config.buffer_size, torch.Generator().manual_seed(1)
    order = torch.randperm(config.tokens, generator=generator)[None]
    tokens = torch.randn(1, config.tokens, config.token_channels, generator=generator)
    sequence = torch.cat([torch.arange(buffer), buffer + order[0]])[:, None]  # [buffer + L, 1]
    values = torch.cat([torch.full((buffer, 1, config.token_channels), 7.0), tokens.transpose(0, 1)])
    past = torch.empty(0, 1, config.cache_channels)
    with torch.inference_mode():
        expected = model.predict_next(tokens, order, torch.tensor([1]))[0]  # [L, C]
        bounds = (0, 3, buffer, buffer + 1, buffer + 6, len(sequence) - 1)
        for start, stop in itertools.pairwise(bounds):
            part, next_ = slice(start, stop), slice(start + 1, stop + 1)
            z, present = backbone(values[part], sequence[part], sequence[next_], torch.tensor([1]), past)
            past = torch.cat([past, present])
            if stop >= buffer:
                torch.testing.assert_close(z[0], expected[stop - buffer], rtol=1e-5, atol=1e-5)


def test_a_part_of_a_image_is_drawn_anew_by_a_causal_model(causal: Generator) -> None:
    known = causal.generate([0], **_CHAIN).latents
    mask = np.zeros((4, 4), np.bool_)
    mask[1:3, 2:] = True
    found = causal.generate([1], edit=Edit(known[0], mask), **_CHAIN, **_GUIDED).latents
    pixels = mask.repeat(4, 0).repeat(4, 1)
    assert np.array_equal(found[0, 0][~pixels], known[0, 0][~pixels])
    assert (found[0, 0][pixels] != known[0, 0][pixels]).all()


@pytest.mark.parametrize("settings", [{}, {"cfg_scale": 3.0, "temperature": 0.7, "iterations": 4}])
def test_codes_are_drawn_as_eager_pytorch_draws_them(codes: Generator, settings: dict[str, Any]) -> None:
    found = codes.generate([0, 2], **settings).latents
    assert np.array_equal(found, _eager("raster vq", codes, settings, [0, 2]))


def test_every_token_is_one_of_the_codebook(codes: Generator) -> None:
    tokens = codes.generate([0, 1], seed=3).latents.reshape(2, 4, 4, 4, 4).swapaxes(2, 3).reshape(-1, 16)
    codebook = variant_checkpoint("raster vq").model.diffloss.codebook.numpy()
    assert {row.tobytes() for row in tokens} <= {row.tobytes() for row in codebook}
    assert len({row.tobytes() for row in tokens}) > 5


@pytest.mark.parametrize("preset_name", ["exact", "fast"])
def test_presets_leave_alone_what_the_form_has_settled(causal: Generator, codes: Generator, preset_name: str) -> None:
    one_by_one, of_codes = (generator.sampling(preset=preset_name) for generator in (causal, codes))
    assert one_by_one.iterations == 16
    assert (of_codes.sampler, of_codes.diffusion_steps, of_codes.token_order) == ("vq", 1, "raster")
    assert one_by_one.sampler != "vq"
    assert all(iteration.table.steps == 1 for iteration in codes.plan(preset=preset_name).iterations)


@pytest.mark.parametrize(
    ("form", "settings", "message"),
    [
        ("causal", {"iterations": 8}, "iterations of this model must be 16, found 8; .*one token in each iteration"),
        ("causal", {"sampler": "vq"}, "the sampler of a diffusion head must be"),
        ("raster vq", {"token_order": "random"}, "token_order of this model must be raster, found 'random'"),
        ("raster vq", {"diffusion_steps": 10}, "diffusion_steps of this model must be 1, found 10"),
        ("raster vq", {"diffusion_steps": "10"}, "diffusion_steps of this model must be 1, found '10'"),
        ("raster vq", {"start_timestep": 900}, "start_timestep of this model must be None, found 900"),
    ],
)
def test_what_a_form_cannot_do_is_refused_in_one_line(
    request: pytest.FixtureRequest, form: str, settings: dict[str, Any], message: str
) -> None:
    generator: Generator = request.getfixturevalue("causal" if form == "causal" else "codes")
    with pytest.raises(RequestError, match=message):
        generator.generate([0], **settings)


def test_a_model_of_raster_order_edits_nothing(codes: Generator) -> None:
    with pytest.raises(RequestError, match="raster order only, so it cannot regenerate a part"):
        codes.generate([0], edit=Edit(np.zeros((1, 16, 16), np.float32), np.ones((4, 4), np.bool_)))


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (plan, "ARTIFACT"),
        (calibrate, "ARTIFACT --out OUT"),
        (optimize_steps, "ARTIFACT --budget-ms 5"),
        (bench, "ARTIFACT"),
    ],
)
def test_commands_that_know_the_published_form_alone_say_so(
    artifact: pathlib.Path, command: click.Command, line: str, tmp_path: pathlib.Path
) -> None:
    message = CliRunner().invoke(command, line.replace("ARTIFACT", str(artifact)).replace("OUT", str(tmp_path / "out")))
    assert isinstance(message.exception, RequestError)
    assert "does not support models with causal attention; mar generate does" in str(message.exception)
    assert not (tmp_path / "out").exists()


def test_a_head_of_codes_is_not_the_published_form_either() -> None:
    with pytest.raises(RequestError, match="mar plan does not support models with a vq head"):
        check_supported(variant_checkpoint("raster vq").model.config, "mar plan")
    check_supported(ModelConfig(), "mar plan")


def test_engines_for_a_gpu_are_not_built_where_its_loop_would_not_run_them(artifact: pathlib.Path) -> None:
    untouched: Any = None
    with pytest.raises(RequestError, match="has no cache for causal attention; generate on a CPU"):
        build_engines(Artifact(artifact), untouched, [], untouched, print)


def test_a_gpu_backend_refuses_a_cache(artifact: pathlib.Path) -> None:
    backend = object.__new__(GpuBackend)  # no GPU is needed to refuse
    with pytest.raises(RequestError, match="has no cache for causal attention"):
        backend.loop(Artifact(artifact).manifest.model)


def test_inspect_tells_the_form(artifact: pathlib.Path) -> None:
    message = CliRunner().invoke(inspect, str(artifact), catch_exceptions=False).output
    assert "causal attention, random order, vq head (codebook of 40)" in message


@pytest.mark.parametrize("missing", [LATER_FIELDS, {"order"}])
def test_an_artifact_from_before_there_were_forms_is_of_the_published_one(
    pixel_artifact: pathlib.Path, missing: set[str], tmp_path: pathlib.Path
) -> None:
    older = tmp_path / "older"
    shutil.copytree(pixel_artifact, older)
    manifest = json.loads((older / MANIFEST).read_text())
    for name in missing:
        del manifest["model"][name]
    (older / MANIFEST).write_text(json.dumps(manifest))
    assert Artifact(older).manifest.model == Artifact(pixel_artifact).manifest.model
    del manifest["model"]["img_size"]
    (older / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="missing keys img_size"):
        Artifact(older)


def test_the_published_form_is_what_a_config_has_by_default() -> None:
    config = ModelConfig()
    assert (config.attention, config.order, config.head, config.codebook_size) == (
        "bidirectional",
        "random",
        "diffusion",
        0,
    )


def test_variants_are_compared_in_nothing_but_their_form() -> None:
    configs = [model_config("pixel_small", **variant.model) for variant in VARIANTS]
    form = {"attention": "bidirectional", "order": "random", "head": "diffusion", "codebook_size": 0}
    assert len({dataclasses.replace(config, **form) for config in configs}) == 1
    assert len(set(configs)) == len({variant.name for variant in VARIANTS}) == 6
    assert {variant.attention: variant.iteration_counts for variant in VARIANTS} == {
        "causal": (None,),
        "bidirectional": (None, 16),
    }
