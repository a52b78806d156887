"""The images API, asked by the client of OpenAI: images, files, streams, edits, models and errors."""

from __future__ import annotations

import base64
import io
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from openai import OpenAI
from PIL import Image

from runtime.image_records.encoding import read_records
from runtime.requests.inpainting import Edit
from runtime.service.settings import ServiceSettings
from tests.helpers.fake_generators import CLASSES, WAIT, fake_generator
from tests.helpers.running_services import RunningService, running_service

SIDE = 16
SETTINGS = ServiceSettings(max_images=6, max_partial_images=3)


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with running_service({"owls": fake_generator(), "cats": fake_generator()}, SETTINGS) as running:
        yield running


@pytest.fixture(scope="module")
def client(service: RunningService) -> Iterator[OpenAI]:
    with OpenAI(api_key="none", base_url=f"{service.url}/v1", max_retries=0, timeout=WAIT) as client:
        yield client


def alone(label: int, seed: int, index: int = 0, **settings: Any) -> NDArray[np.uint8]:
    with fake_generator() as generator:
        images = generator.generate([label], seed=seed, index=[index], **settings).images
    assert images is not None
    return images[0, ..., 0]


def pixels(content: str | bytes | None) -> NDArray[np.uint8]:
    assert content is not None
    file = base64.b64decode(content) if isinstance(content, str) else content
    return np.asarray(Image.open(io.BytesIO(file)))


def png(array: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def mask_of(rows: int) -> bytes:
    """A mask whose first rows are transparent."""
    rgba = np.full((SIDE, SIDE, 4), 255, np.uint8)
    rgba[:rows, :, 3] = 0
    return png(rgba)


def test_images_are_those_of_the_generator(client: OpenAI, tmp_path: pathlib.Path) -> None:
    answer = client.images.generate(prompt="dog", n=3, extra_body={"seed": 7, "index": 5})
    assert answer.data is not None
    for number, image in enumerate(answer.data):
        assert np.array_equal(pixels(image.b64_json), alone(1, 7, 5 + number))
        (tmp_path / "image.png").write_bytes(base64.b64decode(image.b64_json or ""))
        (record,) = read_records(tmp_path / "image.png")
        assert (record.class_name, record.seed, record.index) == ("dog", 7, 5 + number)
        assert image.model_extra == {
            "class_number": 1, "class_name": "dog", "seed": 7, "index": 5 + number, "preset": None
        }  # fmt: skip
    assert (answer.size, answer.output_format, answer.background) == ("16x16", "png", "opaque")
    assert answer.usage is not None
    assert answer.usage.output_tokens == 3 * 16
    timing = (answer.model_extra or {})["timing"]
    assert timing["batch_size"] == 3
    assert timing["total_seconds"] >= timing["queue_seconds"] + timing["draw_seconds"]


@pytest.mark.parametrize(
    ("extra", "settings"),
    [
        ({"num_inference_steps": 2}, {"iterations": 2}),
        ({"guidance_scale": 3}, {"cfg_scale": 3.0}),
        ({"preset": "turbo"}, {"preset": "turbo"}),
        ({"preset": "turbo", "guidance_scale": 2.5, "num_inference_steps": 3}, None),
    ],
)
def test_extensions_are_sampling_settings(client: OpenAI, extra: dict[str, Any], settings: dict[str, Any]) -> None:
    settings = settings or {"preset": "turbo", "cfg_scale": 2.5, "iterations": 3}
    answer = client.images.generate(prompt="2", model="cats", extra_body={"seed": 1, **extra})
    assert answer.data is not None
    assert np.array_equal(pixels(answer.data[0].b64_json), alone(2, 1, **settings))
    assert (answer.data[0].model_extra or {})["preset"] == extra.get("preset")


def test_a_seed_that_was_drawn_draws_the_image_again(client: OpenAI) -> None:
    first = client.images.generate(prompt="owl").data
    other = client.images.generate(prompt="owl").data
    assert first
    assert other
    how = first[0].model_extra or {}
    again = client.images.generate(prompt="owl", extra_body={"seed": how["seed"]}).data
    assert again
    assert again[0].b64_json == first[0].b64_json != other[0].b64_json


@pytest.mark.parametrize(("name", "kind"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_every_format_comes_as_content_and_by_url(
    client: OpenAI, service: RunningService, name: Any, kind: str
) -> None:
    request: dict[str, Any] = {"prompt": "cat", "output_format": name, "extra_body": {"seed": 3}}
    content = client.images.generate(**request).data
    by_url = client.images.generate(**request, response_format="url").data
    assert content
    assert by_url
    assert by_url[0].url is not None
    fetched = service.ask("GET", by_url[0].url.removeprefix(service.url))
    assert fetched.headers["content-type"] == f"image/{name}"
    assert fetched.body == base64.b64decode(content[0].b64_json or "")
    assert Image.open(io.BytesIO(fetched.body)).format == kind


def test_a_stream_shows_the_tokens_known_so_far_and_then_the_image(client: OpenAI) -> None:
    stream = client.images.generate(prompt="cat", n=2, stream=True, partial_images=2, extra_body={"seed": 5})
    events = list(stream)
    assert [event.type.split(".")[1] for event in events] == ["partial_image"] * 4 + ["completed"] * 2
    places = [(event.model_extra or {})["image_index"] for event in events]
    assert sorted(places[:2]) == sorted(places[2:4]) == places[4:] == [0, 1]
    for event, place in zip(events, places, strict=True):
        finished, shown = alone(0, 5, place), pixels(event.b64_json)
        if event.type == "image_generation.completed":
            assert np.array_equal(shown, finished)
            assert event.usage.output_tokens == 16
            assert (event.model_extra or {})["timing"]["batch_size"] == 2
            assert (event.model_extra or {})["index"] == place
        elif event.type == "image_generation.partial_image":
            known = shown != 128
            assert np.array_equal(shown[known], finished[known])
            assert 0 < known.mean() < 1
            assert event.partial_image_index == ((event.model_extra or {})["iterations_done"] > 1)


def test_an_edit_regenerates_what_the_mask_leaves_transparent(client: OpenAI) -> None:
    known = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), np.uint8)
    where = np.zeros((SIDE, SIDE), bool)
    where[:6] = True
    expected = alone(1, 2, edit=Edit(known[..., None], where))
    answer = client.images.edit(
        image=("a.png", png(known)), mask=("m.png", mask_of(6)), prompt="dog", extra_body={"seed": 2}
    )
    assert answer.data
    assert np.array_equal(pixels(answer.data[0].b64_json), expected)
    assert np.array_equal(expected[6:], known[6:])
    events = list(
        client.images.edit(
            image=("a.png", png(known)),
            mask=("m.png", mask_of(6)),
            prompt="dog",
            stream=True,
            partial_images=1,
            extra_body={"seed": 2},
        )
    )
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]
    assert np.array_equal(pixels(events[0].b64_json)[6:], known[6:])
    assert np.array_equal(pixels(events[1].b64_json), expected)


def test_without_a_mask_the_transparency_of_the_image_is_the_mask(client: OpenAI) -> None:
    rgba = np.full((SIDE, SIDE, 4), (200, 200, 200, 255), np.uint8)
    rgba[:8, :, 3] = 0
    answer = client.images.edit(image=png(rgba), prompt="cat", n=2, extra_body={"seed": 1})
    assert answer.data is not None
    assert len(answer.data) == 2
    for image in answer.data:
        edited = pixels(image.b64_json)
        assert (edited[8:] == 200).all()
        assert not (edited[:8] == 255).all()


@pytest.mark.parametrize(
    ("files", "param", "message"),
    [
        ({"image": png(np.zeros((8, 8), np.uint8))}, "image", "must have 16x16 pixels, as the model generates"),
        ({"image": b"no image"}, "image", "not a readable image"),
        ({"image": mask_of(0)}, "image", "opaque everywhere"),
        ({"image": mask_of(4), "mask": mask_of(0)}, "mask", "opaque everywhere"),
        ({"image": mask_of(4), "mask": png(np.zeros((SIDE, 8, 4), np.uint8))}, "mask", "found 8x16"),
    ],
)
def test_a_wrong_upload_is_told(client: OpenAI, files: dict[str, bytes], param: str, message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as refused:
        client.images.edit(prompt="cat", **files)
    assert refused.value.param == param


def form(*parts: tuple[str, bytes]) -> bytes:
    """A form of files, with the boundary `b`."""
    heads = [f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n\r\n' for name, _ in parts]
    return (
        b"".join(head.encode() + content + b"\r\n" for head, (_, content) in zip(heads, parts, strict=True)) + b"--b--"
    )


@pytest.mark.parametrize(
    "names", [("image", "image"), ("image", "image", "mask"), ("image[]",) * 16, ("image", "image[]")]
)
def test_several_images_are_told_by_the_name_of_the_field(service: RunningService, names: tuple[str, ...]) -> None:
    body = form(*((name, mask_of(4)) for name in names))
    answer = service.ask("POST", "/v1/images/edits", body, Content_Type="multipart/form-data; boundary=b")
    message = "the field 'image' is there twice; send it once"
    expected = {"message": message, "type": "invalid_request_error", "param": "image", "code": None}
    assert (answer.status, answer.json["error"]) == (400, expected)


def test_the_client_of_openai_is_told_that_several_images_are_one_too_many(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="the field 'image' is there twice") as refused:
        client.images.edit(prompt="cat", image=[mask_of(4), mask_of(4)], mask=mask_of(4))
    assert refused.value.param == "image"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("boundary=b", form(*((f"file{number}", b"") for number in range(18)))),
        ("boundary=b", form(*[("prompt", b"")] * 41).replace(b'; filename="f"', b"")),
        ("boundary=b", form(("prompt", b"a" * 70_000)).replace(b'; filename="f"', b"")),
        ("boundary=b", b"--other--"),
        ("charset=utf-8", form(("image", b""))),
    ],
    ids=["18 files", "41 texts", "a long text", "another boundary", "no boundary"],
)
def test_a_body_that_is_no_form_or_too_large_a_one_is_told(service: RunningService, kind: str, body: bytes) -> None:
    answer = service.ask("POST", "/v1/images/edits", body, Content_Type=f"multipart/form-data; {kind}")
    message = "the body is no form of at most 17 files and 40 texts of 64 KiB"
    expected = {"message": message, "type": "invalid_request_error", "param": None, "code": "invalid_form"}
    assert (answer.status, answer.json["error"]) == (400, expected)


@pytest.mark.parametrize(
    ("request_", "status", "param"),
    [
        ({}, 400, "prompt"),
        ({"prompt": "bird"}, 400, "prompt"),
        ({"prompt": "3"}, 400, "prompt"),
        ({"prompt": ["cat"]}, 400, "prompt"),
        ({"prompt": "cat", "model": "dogs"}, 404, "model"),
        ({"prompt": "cat", "n": 0}, 400, "n"),
        ({"prompt": "cat", "n": 7}, 400, "n"),
        ({"prompt": "cat", "n": "2"}, 400, "n"),
        ({"prompt": "cat", "size": "1024x1024"}, 400, "size"),
        ({"prompt": "cat", "background": "transparent"}, 400, "background"),
        ({"prompt": "cat", "response_format": "file"}, 400, "response_format"),
        ({"prompt": "cat", "output_format": "gif"}, 400, "output_format"),
        ({"prompt": "cat", "output_compression": 101}, 400, "output_compression"),
        ({"prompt": "cat", "partial_images": 4, "stream": True}, 400, "partial_images"),
        ({"prompt": "cat", "stream": True, "response_format": "url"}, 400, "response_format"),
        ({"prompt": "cat", "seed": -1}, 400, "seed"),
        ({"prompt": "cat", "seed": 2**64}, 400, None),
        ({"prompt": "cat", "seed": 1.5}, 400, "seed"),
        ({"prompt": "cat", "index": -1}, 400, "index"),
        ({"prompt": "cat", "num_inference_steps": 17}, 400, "num_inference_steps"),
        ({"prompt": "cat", "guidance_scale": -1}, 400, "guidance_scale"),
        ({"prompt": "cat", "preset": "slow"}, 400, "preset"),
        ({"prompt": "cat", "negative_prompt": "dog"}, 400, "negative_prompt"),
        ({"prompt": "cat", "guidance": 2}, 400, "guidance"),
    ],
)
def test_a_wrong_request_is_told_with_its_field(
    service: RunningService, request_: dict[str, Any], status: int, param: str | None
) -> None:
    answer = service.ask("POST", "/v1/images/generations", request_)
    error = answer.json["error"]
    assert (answer.status, error["param"]) == (status, param)
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"prompt": NaN}', b'{"prompt": 1, "prompt": 2}', b"\xff"])
def test_a_body_that_is_no_json_object_is_told(service: RunningService, body: bytes) -> None:
    answer = service.ask("POST", "/v1/images/generations", body)
    assert (answer.status, answer.json["error"]["code"]) == (400, "invalid_json")


def test_fields_of_openai_without_effect_are_taken(client: OpenAI) -> None:
    answer = client.images.generate(
        prompt="cat", quality="high", style="vivid", moderation="low", user="me", background="opaque", size="16x16"
    )
    assert answer.data


def test_models_tell_what_a_client_needs(client: OpenAI, service: RunningService) -> None:
    assert [model.id for model in client.models.list()] == ["owls", "cats"]
    details = client.models.retrieve("cats").model_extra or {}
    assert details["classes"] == list(CLASSES)
    assert details["size"] == "16x16"
    assert details["can_edit"] is True
    assert details["presets"]["turbo"]["iterations"] == 10
    assert details["default_sampling"]["iterations"] == 4
    assert details["limits"]["n"] == 6
    assert details["output_formats"] == ["png", "jpeg", "webp"]
    with pytest.raises(openai.NotFoundError, match="there is no model 'dogs'; this service has owls, cats"):
        client.models.retrieve("dogs")


def test_an_unknown_file_is_told(service: RunningService) -> None:
    assert service.ask("GET", "/v1/images/files/none.png").status == 404
