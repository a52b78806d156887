"""Parts of checkpoints that several processes saved are refused by name, with how to gather them."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest
import torch
import torch.distributed.checkpoint
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor

from tests.helpers.published_forms import mar_weights
from tests.helpers.published_models import refusal


@pytest.fixture
def one_process() -> Iterator[None]:
    """A process group of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_a_shard_of_fsdp_is_refused_by_name(tmp_path: pathlib.Path) -> None:
    mesh = init_device_mesh("cpu", (1,))
    content = {"model": {name: distribute_tensor(tensor, mesh) for name, tensor in mar_weights().items()}}
    torch.save(content, tmp_path / "rank0.pth")
    message = refusal(tmp_path / "rank0.pth")
    for part in ("rank0.pth: one process's part of a model", "FSDP", "full_state_dict=True"):
        assert part in message


@pytest.mark.parametrize("named", ["folder", "parent", "file"])
def test_a_folder_of_distributed_checkpoint_is_refused_by_name(tmp_path: pathlib.Path, named: str) -> None:
    folder = tmp_path / "step-100" / "pytorch_model_fsdp_0"
    torch.distributed.checkpoint.save({"model": mar_weights()}, checkpoint_id=folder, no_dist=True)
    (part,) = folder.glob("*.distcp")
    message = refusal({"folder": folder, "parent": folder.parent, "file": part}[named])
    assert "saved by torch.distributed.checkpoint" in message
    assert f"format_utils dcp_to_torch {folder} " in message


@pytest.mark.parametrize("named", ["folder", "parent", "file", "renamed", "optimizer"])
def test_parts_of_zero_are_refused_by_name(tmp_path: pathlib.Path, named: str) -> None:
    folder = tmp_path / "run" / "global_step100"
    folder.mkdir(parents=True)
    empty = {"module": {name: torch.empty(0) for name in mar_weights()}, "ds_version": "0.15", "param_shapes": []}
    files = {
        "file": folder / "zero_pp_rank_0_mp_rank_00_model_states.pt",
        "renamed": tmp_path / "mar.pt",
        "optimizer": folder / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
    }
    for file in files.values():
        torch.save(empty, file)
    message = refusal({"folder": folder, "parent": folder.parent, **files}[named])
    assert "saved by DeepSpeed's ZeRO" in message
    assert "zero_to_fp32.py" in message
