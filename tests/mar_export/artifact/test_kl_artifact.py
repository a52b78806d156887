"""An artifact with a KL tokenizer, from its export to images, latents and edits."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from calibration.quantization.sqnr import SqnrEvaluator
from mar_export.artifact.export import export_artifact
from mar_export.artifact.parity import ENGINE_TOLERANCES
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import MANIFEST
from runtime.backends.onnxruntime import OnnxRuntime
from runtime.errors import ArtifactError, BackendError, RequestError
from runtime.generator import Generator
from runtime.model.engine_spec import DECODER, ENCODER, ENGINES, Engine
from runtime.model.latents import from_uint8, to_uint8
from runtime.requests.inpainting import Edit
from tests.helpers.command_line import Mar
from tests.helpers.distance import relative_l2
from training.checkpoints.checkpoint import Checkpoint, save_run
from training.models.autoencoder import AutoencoderKL

Tracing = Callable[..., AbstractContextManager[None]]

FAST: dict[str, Any] = {"iterations": 3, "cfg_scale": 2.0, "diffusion_steps": "ddim5"}
QUICK = "--iterations 2 --diffusion-steps ddim2 --threads 1"
LABELS = [0, 5, 2, 3, 1]


@pytest.fixture(scope="module")
def vae(kl_checkpoint: Checkpoint) -> AutoencoderKL:
    assert kl_checkpoint.vae is not None
    return kl_checkpoint.vae


@pytest.fixture(scope="module")
def generator(kl_artifact: pathlib.Path) -> Iterator[Generator]:
    """4x4 tokens of 16 pixels, of 2x2 latents each; RGB."""
    with Generator.load(kl_artifact, threads=1) as generator:
        yield generator


@pytest.fixture(scope="module")
def without_encoder(
    kl_checkpoint: Checkpoint,
    kl_artifact: pathlib.Path,
    tracing_no_graph_of: Tracing,
    tmp_path_factory: pytest.TempPathFactory,
) -> pathlib.Path:
    artifact = tmp_path_factory.mktemp("without") / "artifact"
    with tracing_no_graph_of(kl_artifact):
        export_artifact(kl_checkpoint, artifact, lambda text: None)
    return artifact


@pytest.fixture
def copied(kl_artifact: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(kl_artifact, tmp_path / "copied"))


def random_images(count: int) -> NDArray[np.uint8]:
    """Any images, of soft colours: [count, 64, 64, 3]."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def images_of(generator: Generator, labels: list[int], **request: Any) -> NDArray[np.uint8]:
    images = generator.generate(labels, **(FAST | request)).images
    assert images is not None
    return images


def nearly(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Whether no value differs by more than a rounding that went the other way, and few by that."""
    difference = np.abs(one.astype(int) - other.astype(int))
    return one.shape == other.shape and difference.max() <= 1 and difference.mean() < 0.01


def change_manifest(artifact: pathlib.Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((artifact / MANIFEST).read_text())
    change(manifest)
    (artifact / MANIFEST).write_text(json.dumps(manifest))


# The artifact.


def test_it_holds_five_engines_each_compared_with_pytorch(kl_artifact: pathlib.Path) -> None:
    artifact = Artifact(kl_artifact)
    artifact.verify()
    manifest = artifact.manifest
    assert manifest.tokenizer == "kl"
    assert list(manifest.specs) == [*ENGINES, DECODER, ENCODER]
    assert set(manifest.files) == {f"{name}.onnx" for name in manifest.specs}
    for name in (DECODER, ENCODER):
        assert (
            0
            < manifest.parity[name]["relative_l2"]
            <= manifest.parity[name]["tolerance"]
            == (ENGINE_TOLERANCES["fp32"])
        )
        assert manifest.parity[name]["cases"] == 2


def test_an_encoder_is_there_on_request_only(without_encoder: pathlib.Path) -> None:
    manifest = Artifact(without_encoder).manifest
    assert list(manifest.specs) == [*ENGINES, DECODER]
    assert not (without_encoder / "encoder.onnx").exists()


def test_an_encoder_of_a_checkpoint_without_tokenizer_is_refused_before_the_work(
    small_checkpoint: Checkpoint, tmp_path: pathlib.Path
) -> None:
    messages: list[str] = []
    with pytest.raises(RequestError) as refusal:
        export_artifact(small_checkpoint, tmp_path / "artifact", messages.append, optional=("encoder",))
    assert "an encoder belongs to a KL tokenizer, but checkpoint-last.pth has none" in str(refusal.value)
    assert messages == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda manifest: [manifest[key].pop(DECODER) for key in ("engines", "parity")],
            "engines: missing keys decoder",
        ),
        (lambda manifest: manifest.update(tokenizer="none"), "engines: unknown keys decoder, encoder"),
        (lambda manifest: manifest["engines"][DECODER]["inputs"][0].update(dtype="float16"), "engine decoder: its"),
        (lambda manifest: manifest["engines"][DECODER]["outputs"][0]["shape"].reverse(), "engine decoder: its"),
        (lambda manifest: manifest["engines"][ENCODER].update(file="nothing.onnx"), "engine encoder: its file"),
        (lambda manifest: manifest["parity"].pop(ENCODER), "parity: missing keys encoder"),
    ],
)
def test_a_manifest_whose_tokenizer_is_not_whole_is_refused(
    copied: pathlib.Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    change_manifest(copied, change)
    with pytest.raises(ArtifactError) as refusal:
        Artifact(copied)
    assert message in str(refusal.value)


# Images.


def test_images_are_the_latents_as_the_autoencoder_decodes_them(generator: Generator, vae: AutoencoderKL) -> None:
    result = generator.generate(LABELS, **FAST)
    assert result.images is not None
    assert result.images.shape == (5, 64, 64, 3)
    with torch.inference_mode():
        decoded = vae.decode(torch.from_numpy(result.latents)).numpy()
    assert nearly(result.images, to_uint8(decoded))
    assert result.images.std() > 20


def test_latents_are_those_of_the_same_model_without_a_tokenizer(
    generator: Generator, golden_artifacts: dict[str, pathlib.Path]
) -> None:
    with Generator.load(golden_artifacts["patch2"], threads=1) as plain:
        expected = plain.generate(LABELS, **FAST)
    assert expected.images is None
    assert generator.generate(LABELS, **FAST).latents.tobytes() == expected.latents.tobytes()


def counted(engine: Engine | None, rows: list[int]) -> Engine:
    assert engine is not None

    def call(**inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        rows.append(len(next(iter(inputs.values()))))
        return engine(**inputs)

    return call


@pytest.mark.parametrize(
    ("together", "rows"), [(1, [1] * 5), (2, [2, 2, 1]), (4, [4, 1]), (5, [5]), (4096, [5]), (None, [1] * 5)]
)
def test_images_decoded_in_slices_are_the_same(generator: Generator, together: int | None, rows: list[int]) -> None:
    calls: list[int] = []
    engines = dataclasses.replace(generator.engines, decoder=counted(generator.engines.decoder, calls))
    counting = Generator(generator.manifest, engines, generator.description)
    request = {} if together is None else {"decode_batch": together}
    found = images_of(counting, LABELS, **request)
    assert calls == rows
    assert nearly(found, images_of(generator, LABELS))
    assert len({image.tobytes() for image in found}) == 5


def test_a_decoder_that_overflows_is_an_error_and_no_image(generator: Generator) -> None:
    decoder = generator.engines.decoder
    assert decoder is not None

    def overflowing(**inputs: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        latents = inputs["latents"].copy()
        latents[-1] *= np.float32(1e37)  # more than float32 can hold on its way to pixels
        return decoder(latents=latents)

    broken = Generator(generator.manifest, dataclasses.replace(generator.engines, decoder=overflowing), "")
    for together in (1, 5):
        with pytest.raises(
            BackendError, match=r"^the decoder produced values that are not finite; .*--precision bf16$"
        ):
            broken.generate(LABELS, decode_batch=together, **FAST)


# Edits.


def hole() -> NDArray[np.bool_]:
    """Of pixels: a part of the token on the left above, and all of one on the right below."""
    mask = np.zeros((64, 64), bool)
    mask[3:9, 2:14] = mask[48:, 48:] = True
    return mask


def drawn_latents() -> NDArray[np.bool_]:
    """The latents, 8x8, of the tokens that it touches."""
    drawn = np.zeros((8, 8), bool)
    drawn[:2, :2] = drawn[6:, 6:] = True
    return drawn


def test_a_image_is_encoded_and_all_that_is_known_of_it_is_kept(generator: Generator, vae: AutoencoderKL) -> None:
    known, calls = random_images(2), list[int]()
    engines = dataclasses.replace(generator.engines, encoder=counted(generator.engines.encoder, calls))
    counting = Generator(generator.manifest, engines, generator.description)
    result = counting.generate([1, 2], edit=Edit(known, hole()), **FAST)
    assert calls == [1, 1]
    assert generator.engines.encoder is not None
    encoded = np.concatenate([generator.engines.encoder(image=from_uint8(known[i : i + 1]))[0] for i in range(2)])
    with torch.inference_mode():
        assert relative_l2(encoded, vae.encode(torch.from_numpy(from_uint8(known))).numpy()) <= 1e-5
    drawn = drawn_latents()
    assert result.latents[..., ~drawn].tobytes() == encoded[..., ~drawn].tobytes()
    assert (result.latents[..., drawn] != encoded[..., drawn]).all()
    assert result.images is not None
    assert result.images[:, ~hole()].tobytes() == known[:, ~hole()].tobytes()
    assert (result.images[:, hole()] != known[:, hole()]).mean() > 0.5


def test_without_pasting_the_whole_image_is_decoded(generator: Generator) -> None:
    known = random_images(1)[0]
    pasted, whole = (images_of(generator, [1], edit=Edit(known, hole(), paste=paste)) for paste in (True, False))
    assert pasted[:, hole()].tobytes() == whole[:, hole()].tobytes()
    assert (whole[:, ~hole()] != known[~hole()]).mean() > 0.5


def test_encoded_latents_may_be_given_themselves(generator: Generator) -> None:
    """Then there are no pixels to put back."""
    known = random_images(1)
    assert generator.engines.encoder is not None
    (latents,) = generator.engines.encoder(image=from_uint8(known))
    found = generator.generate([1], edit=Edit(latents, hole()), **FAST)
    expected = generator.generate([1], edit=Edit(known, hole(), paste=False), **FAST)
    assert found.latents.tobytes() == expected.latents.tobytes()
    assert found.images is not None
    assert expected.images is not None
    assert found.images.tobytes() == expected.images.tobytes()


def test_where_the_encoder_is_missing_that_is_told_and_latents_still_do(
    without_encoder: pathlib.Path, generator: Generator
) -> None:
    ran: list[int] = []
    latents = np.random.default_rng(0).standard_normal((4, 8, 8), np.float32)
    with Generator.load(without_encoder, threads=1) as plain:
        with pytest.raises(RequestError) as refusal:
            plain.generate([1], edit=Edit(random_images(1), hole()), **FAST, progress=lambda done, of: ran.append(done))
        assert str(refusal.value) == (
            "this artifact has no encoder, so it cannot read images; export it with --encoder, or give latents"
        )
        assert ran == []
        found = plain.generate([1], edit=Edit(latents, hole()), **FAST)
    assert found.latents[0][:, ~drawn_latents()].tobytes() == latents[:, ~drawn_latents()].tobytes()
    assert found.latents.tobytes() == generator.generate([1], edit=Edit(latents, hole()), **FAST).latents.tobytes()


# The commands.


def test_inspect_shows_the_engines_of_the_tokenizer(
    mar: Mar, kl_artifact: pathlib.Path, without_encoder: pathlib.Path
) -> None:
    code, out, _ = mar(f"inspect --verify {kl_artifact}")
    words = " ".join(out.split())
    assert code == 0
    assert "64x64 pixels, 6 classes, tokenizer kl" in words
    assert "in latents float32 [B, 4, 8, 8] out image float32 [B, 3, 64, 64]" in words
    assert "in image float32 [B, 3, 64, 64] out latents float32 [B, 4, 8, 8]" in words
    for name in (DECODER, ENCODER):
        assert f"{name} {name}.onnx, " in words
    code, out, _ = mar(f"inspect {without_encoder}")
    assert code == 0
    assert "decoder.onnx" in out
    assert "encoder.onnx" not in out


def test_generate_decodes_as_many_images_together_as_it_is_asked_to(
    mar: Mar,
    kl_artifact: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    original = Generator.load

    def load(*arguments: Any, **settings: Any) -> Generator:
        generator = original(*arguments, **settings)
        engines = dataclasses.replace(generator.engines, decoder=counted(generator.engines.decoder, calls))
        return Generator(generator.manifest, engines, generator.description)

    monkeypatch.setattr(Generator, "load", load)
    line = f"generate {kl_artifact} --class 1 --count 7 --batch-size 5 {QUICK} --force --out"
    sheets = []
    for option, rows in (("--decode-batch 3", [3, 2, 2]), ("", [1] * 7)):
        code, _, err = mar(f"{line} {tmp_path}/grid.png {option}")
        assert (code, err) == (0, "")
        assert calls == rows
        calls.clear()
        with Image.open(tmp_path / "grid.png") as image:
            sheets.append(np.asarray(image))
    assert sheets[0].shape[2] == 3
    assert nearly(*sheets)


def test_edit_takes_and_makes_images_in_colour(
    mar: Mar,
    kl_artifact: pathlib.Path,
    without_encoder: pathlib.Path,
    generator: Generator,
    tmp_path: pathlib.Path,
) -> None:
    known = random_images(1)[0]
    Image.fromarray(known).save(tmp_path / "known.png")
    Image.fromarray(hole()).save(tmp_path / "mask.png")
    line = f"--image {tmp_path}/known.png --mask {tmp_path}/mask.png --class 2 {QUICK} --out {tmp_path}/edited.png"
    code, _, err = mar(f"edit {without_encoder} {line}")
    assert code == 2
    assert err.startswith("mar: this artifact has no encoder, so it cannot read images; export it with --encoder")
    assert not (tmp_path / "edited.png").exists()
    code, out, err = mar(f"edit {kl_artifact} {line}")
    assert (code, err) == (0, "")
    assert out.startswith("2 of 16 tokens regenerated (12%)")
    with Image.open(tmp_path / "edited.png") as image:
        found = np.asarray(image)
    assert found[~hole()].tobytes() == known[~hole()].tobytes()
    quick: dict[str, Any] = {"iterations": 2, "diffusion_steps": "ddim2", "cfg_scale": 1.0}
    assert found.tobytes() == images_of(generator, [2], edit=Edit(known, hole()), **quick)[0].tobytes()


def test_the_sqnr_of_quantized_engines_needs_no_decoder(
    kl_artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder of the published size would take longer than the loop."""
    loaded, load = list[str](), OnnxRuntime.load
    monkeypatch.setattr(OnnxRuntime, "load", lambda *given: (loaded.append(given[2]), load(*given))[1])
    artifact = Artifact(kl_artifact)
    with SqnrEvaluator(artifact, artifact.manifest.resolve_sampling(FAST), 2, 1) as evaluator:
        exact = {name: (kl_artifact / f"{name}.onnx", "fp32") for name in ENGINES}
        assert evaluator.relative_l2(exact) == 0
    assert loaded == list(ENGINES)


@pytest.mark.parametrize("option", ["--encoder", ""])
def test_export_of_a_run_with_a_tokenizer_takes_it_along(
    mar: Mar,
    kl_checkpoint: Checkpoint,
    kl_artifact: pathlib.Path,
    tracing_no_graph_of: Tracing,
    tmp_path: pathlib.Path,
    option: str,
) -> None:
    save_run(tmp_path / "run", kl_checkpoint)
    with tracing_no_graph_of(kl_artifact):
        code, out, err = mar(f"export {tmp_path}/run --out {tmp_path}/artifact {option}")
    assert (code, err) == (0, "")
    assert "decoder: relative L2 from eager" in out
    assert list(Artifact(tmp_path / "artifact").manifest.specs) == [
        *ENGINES,
        DECODER,
        *([ENCODER] if option else []),
    ]
