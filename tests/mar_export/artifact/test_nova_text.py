"""A NOVA with a text encoder draws from prompts: in Python, on the command line without PyTorch, and as a service."""

from __future__ import annotations

import base64
import dataclasses
import io
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
import torch
from numpy.typing import NDArray
from openai import OpenAI
from PIL import Image

from runtime.artifact.artifact_folder import Artifact
from runtime.errors import ArtifactError, BackendError, CheckpointError, ConfigError, IntegrityError, RequestError
from runtime.generator import Generator
from runtime.image_records.encoding import read_records
from runtime.requests.prompt_tokenizer import PromptTokenizer
from runtime.service.settings import ServiceSettings
from tests.helpers.command_line import Mar
from tests.helpers.distance import relative_l2
from tests.helpers.nova_artifacts import write_text_encoder
from tests.helpers.nova_cases import nova_checkpoint
from tests.helpers.running_services import RunningService, running_service
from training.checkpoints.text_encoder import load_text_encoder

QUICK: dict[str, Any] = {"iterations": 3, "diffusion_steps": 3}
OPTIONS = "--iterations 3 --diffusion-steps 3 --threads 1"
FOX, SHIP = "a red fox", "Schiff ⛵"


@pytest.fixture(scope="module")
def generator(nova_artifacts: dict[str, pathlib.Path]) -> Iterator[Generator]:
    with Generator.load(nova_artifacts["case0"], threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def embeddings(nova_text_encoder: pathlib.Path) -> Any:
    """What `transformers` itself computes for a prompt, without padding: the last hidden state."""
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    model = AutoModelForCausalLM.from_pretrained(nova_text_encoder).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(nova_text_encoder / "tokenizer.json"))

    def encode(prompt: str) -> Any:
        with torch.inference_mode():
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            return model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0].numpy()

    return encode


def test_a_prompt_draws_what_the_embeddings_of_transformers_draw(generator: Generator, embeddings: Any) -> None:
    found = generator.generate(prompt=[FOX, SHIP, FOX], negative_prompt=["", "blur", ""], seed=[1, 2, 1], **QUICK)
    rows = [embeddings(FOX), embeddings(SHIP), embeddings(FOX)]
    assert [len(each) for each in rows] == [9, 10, 9]
    empty = np.empty((0, 40), np.float32)
    negative = [empty, embeddings("blur"), empty]
    expected = generator.generate(prompt_embeds=rows, negative_prompt_embeds=negative, seed=[1, 2, 1], **QUICK)
    assert relative_l2(found.latents, expected.latents) <= 1e-5
    assert [record.prompt for record in found.records] == [FOX, SHIP, FOX]
    assert [record.negative_prompt for record in found.records] == ["", "blur", ""]
    assert [len(record.given) for record in found.records] == [0, 0, 0]
    plain = generator.generate(prompt=[FOX, SHIP], seed=[1, 2], **QUICK).latents
    assert relative_l2(plain[0], found.latents[0]) <= 1e-6  # the empty negative prompt is the usual one
    assert relative_l2(plain[1], found.latents[1]) > 1e-3


def test_each_prompt_is_encoded_once(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    engines, asked = generator.engines, list[tuple[str, int]]()

    def counted(name: str) -> Any:
        def run(**inputs: Any) -> Any:
            asked.append((name, len(next(iter(inputs.values())))))
            return getattr(engines, name)(**inputs)

        return run

    watched = dataclasses.replace(engines, condition=counted("condition"), text_encoder=counted("text_encoder"))
    monkeypatch.setattr(generator, "engines", watched)
    generator.generate(prompt=[FOX] * 5 + [SHIP], **QUICK)
    assert asked == [("text_encoder", 2), ("condition", 2)]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["condition", "text_encoder"])
def test_a_condition_that_is_not_finite_ends_the_request(generator: Generator, name: str, value: float) -> None:
    def broken(**inputs: Any) -> Any:
        first, *others = getattr(generator.engines, name)(**inputs)
        first = first.copy()
        first.reshape(-1)[-1] = value
        return (first, *others)

    engines = dataclasses.replace(generator.engines, **{name: broken})
    damaged = Generator(generator.manifest, engines, "damaged", tokenizer=generator.tokenizer)
    with pytest.raises(BackendError, match=f"^engine {name} produced values that are not finite; check the export"):
        damaged.generate(prompt=["x" * 16], **QUICK)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a text": ({"prompt": FOX}, "prompt must be a list of texts, one for each image, found 'a red fox'"),
    "a number": ({"prompt": [3]}, "prompt[0] must be a text, found 3"),
    "empty": ({"prompt": [FOX, " "]}, "prompt[1] is empty; say what the image shows"),
    "too many tokens": ({"prompt": ["x" * 17]}, "prompt[0] must have at most 16 tokens, found 17; shorten it"),
    "too many characters": ({"prompt": ["x" * 10_001]}, "prompt[0] must have at most 10000 characters, found 10001"),
    "half a character": ({"prompt": ["\ud800"]}, "prompt[0] must be Unicode"),
    "both": (
        {"prompt": [FOX], "prompt_embeds": [np.zeros((1, 40), np.float32)]},
        "prompt and prompt_embeds are both given; leave one out",
    ),
    "a long negative prompt": (
        {"prompt": [FOX], "negative_prompt": ["x" * 17]},
        "negative_prompt[0] must have at most 16 tokens, found 17",
    ),
    "labels": ({"labels": [0]}, "this model draws from prompts; give prompt, a list of texts, or"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_prompt_is_one_line(generator: Generator, wrong: str) -> None:
    arguments, message = WRONG[wrong]
    with pytest.raises(RequestError) as caught:
        generator.generate(**arguments)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_without_a_text_encoder_or_its_library_a_prompt_is_refused(
    nova_artifacts: dict[str, pathlib.Path], generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        Generator.load(nova_artifacts["case1"], threads=1) as without,
        pytest.raises(RequestError, match=r"no text encoder, so it reads no prompt; export it with --text-encoder"),
    ):
        without.generate(prompt=[FOX])
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert generator.tokenizer is not None
    with pytest.raises(BackendError, match=r"need the Python package tokenizers; pip install 'mar-runtime\[prompt\]'"):
        PromptTokenizer(generator.tokenizer._content).count(FOX)
    monkeypatch.undo()
    with pytest.raises(BackendError, match=r"tokenizer\.json cannot be read .*; export again"):
        PromptTokenizer(b"{}").count(FOX)


def test_a_text_without_known_tokens_is_not_drawn_as_the_empty_prompt() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    few = PromptTokenizer(tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, [])).to_str().encode())
    assert few.ids("prompt[0]", "ab", 4).tolist() == [0]
    assert few.ids("negative_prompt[0]", "", 4).tolist() == []
    with pytest.raises(RequestError, match=r"^prompt\[0\] has no token that the model knows, found 'b'; use"):
        few.ids("prompt[0]", "b", 4)


def test_a_tokenizer_that_was_altered_is_refused(
    nova_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    copy = tmp_path / "artifact"
    shutil.copytree(nova_artifacts["case0"], copy)
    content = (copy / "tokenizer.json").read_bytes()
    (copy / "tokenizer.json").write_bytes(content.replace(b"BPE", b"BPB"))
    with pytest.raises(IntegrityError, match=r"tokenizer\.json: altered since export"):
        Generator.load(copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: missing"):
        Artifact(copy)


def test_mar_generate_draws_prompts_without_pytorch(
    nova_artifacts: dict[str, pathlib.Path], generator: Generator, tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "fox.png"
    script = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'onnx'): sys.modules[name] = None\n"
        "from runtime.cli.main import main\n"
        f"sys.argv = ['mar', 'generate', {str(nova_artifacts['case0'])!r}, '--prompt', {FOX!r}, "
        f"'--negative-prompt', 'blur', '--seed', '4', '--out', {str(out)!r}, *{OPTIONS.split()!r}]\n"
        "main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    images = generator.generate(prompt=[FOX], negative_prompt=["blur"], seed=4, **QUICK).images
    assert images is not None
    assert np.array_equal(np.asarray(Image.open(out)), images[0])
    (record,) = read_records(out)
    assert (record.prompt, record.negative_prompt, record.seed) == (FOX, "blur", 4)


def test_prompts_in_turn_and_the_command_that_makes_an_image_again(
    nova_artifacts: dict[str, pathlib.Path], mar: Mar, tmp_path: pathlib.Path
) -> None:
    folder, artifact = tmp_path / "images", nova_artifacts["case0"]
    ended = mar(f"generate {artifact} --count 3 --out-dir {folder} {OPTIONS}", "--prompt", FOX, "--prompt", SHIP)
    assert ended.code == 0, ended.err
    files = sorted(folder.glob("*.png"))
    assert [read_records(file)[0].prompt for file in files] == [FOX, SHIP, FOX]
    shown = mar(f"inspect {files[1]}")
    assert f"image       prompt {SHIP}, seed 0, index 1" in shown.out
    command = next(line for line in shown.out.splitlines() if line.startswith("make again  mar "))
    again = command.removeprefix("make again  mar ").replace("ARTIFACT", str(artifact))
    assert mar(again.replace("IMAGE.png", str(tmp_path / "again.png"))).code == 0
    assert read_records(tmp_path / "again.png") == read_records(files[1])
    pixels = [np.asarray(Image.open(file)).astype(int) for file in (tmp_path / "again.png", files[1])]
    assert np.abs(pixels[0] - pixels[1]).max() <= 1  # another size of batch may round otherwise
    grid = mar(f"generate {artifact} --out {tmp_path / 'grid.png'} {OPTIONS}", "--prompt", FOX, "--prompt", SHIP)
    assert grid.code == 0, grid.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("generate {case0} --out x.png", "give --prompt, what the images show; "),
        (
            "generate {case0} --class 1 --out x.png",
            "draws from text, not from classes; give --prompt in place of --class",
        ),
        (
            "generate {case1} --prompt fox --save-latents x.npy",
            "has no text encoder, so it reads no prompts; export it",
        ),
        ("generate {small} --prompt fox --save-latents x.npy", "draws classes, not prompts; give --class in place of"),
        (
            "generate {case0} --prompt a --prompt b --seed 1 --seed 2 --seed 3 --out x.png",
            "3 seeds for 2 prompts; give",
        ),
        ("edit {case0} --image fox.png --mask fox.png --out x.png", "give --prompt, what the image shows"),
        (
            "generate-dataset {case0} --out x --count 3",
            "mar generate-dataset draws classes, and a NOVA draws from text",
        ),
        ("export-triton {case0} --out x", "mar export-triton draws classes, and a NOVA draws from text"),
        ("evaluate {case0} --data x", "mar evaluate draws classes, and a NOVA draws from text"),
        ("study {case0} --data x", "mar study draws classes, and a NOVA draws from text"),
    ],
)
def test_a_wrong_command_is_one_line(
    nova_artifacts: dict[str, pathlib.Path],
    golden_artifacts: dict[str, pathlib.Path],
    mar: Mar,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (128, 128), "white").save("fox.png")
    ended = mar(line.format(**nova_artifacts, small=golden_artifacts["small"]))
    assert ended.code == 2
    assert message in ended.err
    assert ended.err.count("\n") == 1


def test_mar_edit_draws_the_masked_part_from_a_prompt_and_keeps_the_rest(
    nova_artifacts: dict[str, pathlib.Path], mar: Mar, tmp_path: pathlib.Path
) -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (128, 128, 3), np.uint8)
    mask = np.zeros((128, 128), np.uint8)
    mask[:64] = 255
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    files = f"--image {tmp_path / 'image.png'} --mask {tmp_path / 'mask.png'}"
    results = []
    for prompt in (FOX, SHIP):
        out = tmp_path / "out.png"
        ended = mar(f"edit {nova_artifacts['case0']} {files} --out {out} --force {OPTIONS}", "--prompt", prompt)
        assert ended.code == 0, ended.err
        assert "32 of 64 tokens regenerated" in ended.out
        results.append(np.asarray(Image.open(out)))
        assert read_records(out)[0].prompt == prompt
    assert np.array_equal(results[0][64:], image[64:])
    assert not np.array_equal(results[0][:64], results[1][:64])


def test_an_edit_leaves_the_known_latents_unchanged(nova_artifacts: dict[str, pathlib.Path]) -> None:
    from runtime.requests.inpainting import Edit

    rows = np.random.default_rng(1).standard_normal((4, 40), np.float32)
    with Generator.load(nova_artifacts["case1"], threads=1) as generator:
        known = generator.generate(prompt_embeds=[rows], **QUICK).latents[0]
        mask = np.zeros((6, 10), bool)
        mask[2:4, 3:7] = True
        edited = generator.generate(prompt_embeds=[rows], seed=3, edit=Edit(known, mask), **QUICK).latents[0]
    pixels = np.kron(mask, np.ones((2, 2), bool))
    assert np.array_equal(edited[:, ~pixels], known[:, ~pixels])
    assert not np.isclose(edited[:, pixels], known[:, pixels]).any(axis=0).all()


@pytest.fixture(scope="module")
def service(nova_artifacts: dict[str, pathlib.Path]) -> Iterator[RunningService]:
    generator = Generator.load(nova_artifacts["case0"], threads=1)
    with running_service({"nova": generator}, ServiceSettings(preset="turbo")) as running:
        yield running


def test_a_service_draws_the_prompt_of_a_request(service: RunningService, generator: Generator) -> None:
    with OpenAI(api_key="none", base_url=f"{service.url}/v1", max_retries=0, timeout=60) as client:
        more = {"seed": 5, "num_inference_steps": 3, "negative_prompt": "blur"}
        answer = client.images.generate(prompt=FOX, extra_body=more)
        assert answer.data is not None
        assert answer.usage is not None
        found = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json or ""))))
        images = generator.generate(prompt=[FOX], negative_prompt=["blur"], seed=5, preset="turbo", iterations=3).images
        assert images is not None
        assert np.abs(found.astype(int) - images[0]).max() <= 1
        assert answer.usage.input_tokens == len(FOX) + len("blur")
        extra = answer.data[0].model_extra or {}
        assert (extra["prompt"], extra["negative_prompt"], extra["seed"]) == (FOX, "blur", 5)
        for body, param, message in (
            ({"prompt": ""}, "prompt", "prompt[0] is empty"),
            ({"prompt": "x" * 17}, "prompt", "at most 16 tokens, found 17"),
            ({"prompt": FOX, "extra_body": {"negative_prompt": "x" * 17}}, "negative_prompt", "at most 16 tokens"),
        ):
            with pytest.raises(openai.BadRequestError, match=None) as caught:
                client.images.generate(**body)  # type: ignore[arg-type]
            assert caught.value.param == param
            assert message in str(caught.value)


def test_rows_of_tensors_have_negative_prompts_of_their_own(service: RunningService, generator: Generator) -> None:
    columns = {"PROMPT": [FOX, SHIP], "NEGATIVE_PROMPT": ["blur", ""]}
    inputs = [{"name": name, "datatype": "BYTES", "shape": [2, 1], "data": texts} for name, texts in columns.items()]
    inputs += [{"name": "SEED", "datatype": "UINT64", "shape": [2, 1], "data": [5, 6]}]
    inputs += [{"name": "STEPS", "datatype": "INT32", "shape": [2, 1], "data": [3, 3]}]

    def drawn(**negative: list[str]) -> NDArray[np.uint8]:
        images = generator.generate(
            prompt=[FOX, SHIP], seed=[5, 6], index=[0, 0], preset="turbo", iterations=3, **negative
        )
        assert images.images is not None
        return images.images

    (output,) = service.ask("POST", "/v2/models/nova/infer", {"inputs": inputs}).json["outputs"]
    found, expected = np.reshape(output["data"], output["shape"]), drawn(negative_prompt=["blur", ""])
    assert np.abs(found - expected.astype(int)).max() <= 1
    assert np.abs(found[0] - drawn()[0].astype(int)).max() > 1  # it has an effect
    (named,) = [each for each in inputs if each["name"] == "NEGATIVE_PROMPT"]
    named["data"] = ["x" * 17, ""]
    refused = service.ask("POST", "/v2/models/nova/infer", {"inputs": inputs})
    assert refused.status == 400
    assert "at most 16 tokens, found 17" in refused.json["error"]


def test_a_model_without_text_encoder_is_not_served(nova_artifacts: dict[str, pathlib.Path], mar: Mar) -> None:
    ended = mar(f"serve {nova_artifacts['case1']}")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "has no decoder" in ended.err


@pytest.mark.parametrize("wrong", ["width", "vocabulary", "no tokenizer", "no weights", "another kind"])
def test_a_wrong_text_encoder_is_one_line(nova_text_encoder: pathlib.Path, tmp_path: pathlib.Path, wrong: str) -> None:
    folder, config = tmp_path / "text_encoder", nova_checkpoint("case0").model.config
    shutil.copytree(nova_text_encoder, folder)
    kind: Any = CheckpointError
    if wrong in ("width", "vocabulary"):
        folder, kind = tmp_path / "other", ConfigError
        folder.mkdir()
        write_text_encoder(folder, 20 if wrong == "width" else 40, 300 if wrong == "width" else 200)
        expected = "rows have 20 values, but the model reads rows of 40" if wrong == "width" else "knows 200 tokens"
    elif wrong == "no tokenizer":
        (folder / "tokenizer.json").unlink()
        expected = "no tokenizer.json, neither there nor at"
    elif wrong == "no weights":
        (folder / "model.safetensors").unlink()
        expected = "no weights; a text encoder is read from safetensors files"
    else:
        (folder / "config.json").write_text('{"architectures": ["T5EncoderModel"]}')
        expected = "must be a causal language model"
    with pytest.raises(kind) as caught:
        load_text_encoder(folder, config)
    assert expected in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
