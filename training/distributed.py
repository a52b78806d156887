"""The processes that train together: who they are, how the model is spread over them, what they tell each other."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from runtime.errors import ConfigError, RequestError
from training.models.mar import MAR


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among those of the job: its rank, how many they are, and its device."""

    rank: int = 0
    count: int = 1
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, element by element."""
        if self.count > 1:
            dist.all_reduce(values)
        return values / self.count

    def together(self, mine: list[Any]) -> list[Any]:
        """The lists of all processes as one, in the order of ranks; cheap where all are empty."""
        if self.count == 1 or not self.mean(torch.tensor(float(len(mine)), device=self.device)).item():
            return mine
        lists: list[list[Any]] = [[] for _ in range(self.count)]
        dist.all_gather_object(lists, mine)
        return [item for part in lists for item in part]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            dist.barrier()


@contextlib.contextmanager
def joined(device: str | None) -> Iterator[Processes]:
    """The processes that torchrun has started, of which this is one; without torchrun, this one alone.

    `device` is `cpu` or `cuda`, by default a GPU where there is one. They talk by nccl on GPUs, by gloo
    on processors. Raises `RequestError` for a device that is not there.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise RequestError("device cuda asked for, but PyTorch finds no GPU here; leave --device away")
    if "LOCAL_RANK" not in os.environ:
        yield Processes(device=torch.device(kind))
        return
    here = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(here)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    yield Processes(dist.get_rank(), dist.get_world_size(), here)
    dist.destroy_process_group()  # not after a failure: the others may wait for this process, and it for them


def spread(model: MAR, processes: Processes, fsdp: bool) -> nn.Module:
    """The module to call in place of `model`, whose gradients are the means over all processes.

    Every process holds all weights (DDP), or with `fsdp` a share of each, of the averages and of the
    optimizer's state; then blocks are put together when they are needed.
    """
    if fsdp:
        if not dist.is_initialized():
            raise ConfigError("fsdp is for several processes; start them with torchrun --nproc-per-node N -m training")
        mesh = init_device_mesh(processes.device.type, (processes.count,))
        for block in [*model.encoder_blocks, *model.decoder_blocks, *model.diffloss.net.res_blocks]:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        register_fsdp_forward_method(model.decoder_blocks[-1], "rows")
        return model
    if processes.count > 1:
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
    return model


@contextlib.contextmanager
def gradient_sync(module: nn.Module, now: bool) -> Iterator[None]:
    """Whether a backward pass in the block ends in an exchange of gradients, or leaves it to a later one."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(now)
    with module.no_sync() if isinstance(module, DistributedDataParallel) and not now else contextlib.nullcontext():
        yield


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that lies in this process, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be spread; every process must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def distribute_like(tensor: Tensor, model: Tensor) -> Tensor:
    """`tensor`, which every process has whole, spread over them and placed as `model` is."""
    tensor = tensor.to(model.device)
    if isinstance(model, DTensor):
        return cast(Tensor, distribute_tensor(tensor, model.device_mesh, model.placements))
    return tensor
