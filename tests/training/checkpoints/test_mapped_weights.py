"""Weights in mapped files: pages that are given back are no longer resident, and no value changes."""

from __future__ import annotations

import pathlib

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.helpers.resident_memory import resident_bytes
from training.checkpoints.mapped_weights import (
    bytes_in_memory,
    move_to_file,
    release,
    release_files,
    released_after_calls,
)

SIDE = 600  # a weight has 1.4 MB
WEIGHT = 4 * SIDE**2


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    save_file({name: torch.randn(SIDE, SIDE) for name in "ab"}, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def layers(weights: dict[str, Tensor]) -> list[nn.Linear]:
    made = []
    for weight in weights.values():
        layer = nn.Linear(SIDE, SIDE, bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        made.append(layer)
    return made


def test_released_tensors_keep_their_values_and_take_no_memory(file: pathlib.Path) -> None:
    weights = load_file(file)
    before = {name: tensor.clone() for name, tensor in weights.items()}
    assert resident_bytes([file]) >= 2 * WEIGHT
    release(weights.values())
    assert resident_bytes([file]) < WEIGHT / 10
    assert all(torch.equal(weights[name], tensor) for name, tensor in before.items())


def test_a_tensor_in_memory_is_never_released() -> None:
    tensor = torch.ones(SIDE, SIDE)
    release([tensor])
    assert bool((tensor == 1).all())


@pytest.mark.parametrize("released", ["tensors", "files"])
def test_weights_that_were_written_to_are_never_released(file: pathlib.Path, released: str) -> None:
    weights = load_file(file)
    weights["a"].mul_(2)
    expected = weights["a"].clone()
    if released == "tensors":
        release(weights.values())
    else:
        release_files([str(file)])
    assert torch.equal(weights["a"], expected)


def test_files_are_released_whatever_mapped_them(file: pathlib.Path) -> None:
    weights = load_file(file)
    total = sum(tensor.sum() for tensor in weights.values())
    release_files([str(file)])
    assert resident_bytes([file]) == 0
    assert sum(tensor.sum() for tensor in weights.values()) == total


def test_a_model_that_runs_holds_the_weights_of_one_layer(file: pathlib.Path) -> None:
    weights = load_file(file)
    model, x = nn.Sequential(*layers(weights)), torch.randn(2, SIDE)
    expected = x @ weights["a"].T @ weights["b"].T
    release(weights.values())
    resident: list[int] = []
    for layer in model:
        layer.register_forward_hook(lambda *_: resident.append(resident_bytes([file])))
    with released_after_calls([model]):
        torch.testing.assert_close(model(x), expected)
    assert max(resident) < 1.1 * WEIGHT  # the hook of this test comes first
    assert resident_bytes([file]) < WEIGHT / 10
    model(x)
    assert resident_bytes([file]) > 1.9 * WEIGHT, "outside of the context nothing is released"


def test_parameters_move_to_a_file_and_stay_what_they_are(tmp_path: pathlib.Path, file: pathlib.Path) -> None:
    mapped, shared = layers(load_file(file))[0], nn.Linear(SIDE, SIDE)
    model = nn.ModuleList(
        [mapped, shared, nn.Sequential(shared), nn.Linear(SIDE, 2 * SIDE).bfloat16(), nn.LayerNorm(SIDE)]
    )
    model.requires_grad_(False)
    before = {name: (parameter, parameter.clone()) for name, parameter in model.named_parameters()}
    assert bytes_in_memory([model]) == 2 * WEIGHT
    move_to_file(model, tmp_path / "moved")
    assert (tmp_path / "moved").stat().st_size == 2 * WEIGHT, "a shared weight is written once, a mapped one never"
    (tmp_path / "moved").unlink()
    assert bytes_in_memory([model]) == 0
    for name, parameter in model.named_parameters():
        same, values = before[name]
        assert parameter is same
        assert torch.equal(parameter, values)


def test_nothing_is_written_where_nothing_moves(tmp_path: pathlib.Path) -> None:
    move_to_file(nn.Linear(4, 4), tmp_path / "moved")
    assert not (tmp_path / "moved").exists()
