"""The processes that train together: rank and device of each, how the model is parallelized, and collective calls."""

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
    """This process among those of the job. Without torchrun it is the only one.

    Attributes:
        rank: The number of this process, from 0.
        world_size: The number of processes of the job, on all machines together.
        device: Where this process computes.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the only process that writes files and prints."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes, element by element; every process must call it."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values / self.world_size

    def gather_lists(self, items: list[Any]) -> list[Any]:
        """Return the lists of all processes as one list, in the order of ranks; every process must call it.

        Where all lists are empty, it costs one small reduction.
        """
        if self.world_size == 1 or not self.mean(torch.tensor(float(len(items)), device=self.device)).item():
            return items
        lists: list[list[Any]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(lists, items)
        return [item for part in lists for item in part]

    def barrier(self) -> None:
        """Wait until every process has called this method."""
        if self.world_size > 1:
            dist.barrier()


@contextlib.contextmanager
def process_group(device: str | None) -> Iterator[Processes]:
    """Join the processes that torchrun started, and leave them when the block ends.

    Without torchrun, this process is the only one. The backend is NCCL on GPUs and Gloo on CPUs.

    Args:
        device: `cpu` or `cuda`; None chooses a GPU where there is one.

    Yields:
        This process among those of the job.

    Raises:
        RequestError: `cuda` is requested and PyTorch finds no GPU.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise RequestError("--device cuda is requested, but PyTorch finds no GPU; remove --device to train on the CPU")
    if "LOCAL_RANK" not in os.environ:
        yield Processes(device=torch.device(kind))
        return
    local_device = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(local_device)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    yield Processes(dist.get_rank(), dist.get_world_size(), local_device)
    # Not after a failure: this process would wait for the others, and they for it.
    dist.destroy_process_group()


def parallelize(model: MAR, processes: Processes, fsdp: bool) -> nn.Module:
    """Return the module to call in place of `model`, whose gradients are the means over all processes.

    A step therefore computes the gradient of the whole batch, up to the order of the sums, however the batch is
    split: every micro-batch has the same number of masked tokens, so the mean of the means is the mean of the batch.

    Args:
        model: The model, on the device of this process.
        processes: The processes of the job.
        fsdp: Shard weights, their moving average and the optimizer's state over the processes, and gather a block
            when it is needed (FSDP, arXiv 2304.11277). Otherwise every process holds all of them (DDP,
            arXiv 2006.15704).

    Raises:
        ConfigError: `fsdp` is set, but torchrun has not started this process.
    """
    if fsdp:
        if not dist.is_initialized():
            raise ConfigError("fsdp needs several processes; start them with torchrun --nproc-per-node N -m training")
        mesh = init_device_mesh(processes.device.type, (processes.world_size,))
        for block in [*model.encoder_blocks, *model.decoder_blocks, *model.diffloss.net.res_blocks]:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        register_fsdp_forward_method(model.decoder_blocks[-1], "rows")
        return model
    if processes.world_size > 1:
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
    return model


@contextlib.contextmanager
def gradient_sync(module: nn.Module, enabled: bool) -> Iterator[None]:
    """Choose whether a backward pass in the block averages gradients over processes, or accumulates them locally."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(enabled)
    accumulates = isinstance(module, DistributedDataParallel) and not enabled
    with cast(DistributedDataParallel, module).no_sync() if accumulates else contextlib.nullcontext():
        yield


def local_shard(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds, sharing its memory: all of it unless it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Return all of a tensor that may be sharded; every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def distribute_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """Return `tensor`, which every process holds completely, on the device and with the sharding of `reference`."""
    tensor = tensor.to(reference.device)
    if isinstance(reference, DTensor):
        return cast(Tensor, distribute_tensor(tensor, reference.device_mesh, reference.placements))
    return tensor
