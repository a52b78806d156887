"""The optimizer step: gradients, clipping, AdamW, and the moving average of the weights.

A step knows neither runs nor datasets. Hyperparameters are those of arXiv 2406.11838, appendix B.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from runtime.model.config import ModelConfig
from runtime.model.families import family_of, imported
from training.config import StepConfig, TrainConfig
from training.data.loader import MicroBatch
from training.distributed import Processes, distribute_like, full_tensor, gradient_sync, local_shard, parallelize
from training.loop.memory import keep_freed_memory
from training.models.mar import MAR
from training.models.numerics import autocast, choose_operators


@dataclasses.dataclass(frozen=True)
class StepResult:
    """The result of one step. The weights stay as they are where the loss or the gradient is not finite.

    Attributes:
        loss: The mean loss over all processes.
        gradient_norm: The norm of the gradient before clipping.
        suspects: Where the step was not applied, the examples of the micro-batches whose loss is not finite; all
            examples of the step where only the gradient is not finite.
        parts: The terms of the loss, by name.
    """

    loss: float
    gradient_norm: float
    suspects: tuple[int, ...] = ()
    parts: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def applied(self) -> bool:
        """Whether the weights were updated."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


class TrainStep(abc.ABC):
    """A model in training: its weights, their moving average, and its optimizer.

    Attributes:
        model: The model.
        module: The module to call in place of the model, see `training.distributed.parallelize`.
        optimizer: The optimizer of the model's parameters.
        config: The settings of the training.
        processes: The processes of the job.
        average: The exponential moving average of each parameter, by name.
        frozen: The weights of the model that are not trained, by name; they are saved with the averages.
        skipped: The number of steps so far that were not applied.
        phase: Called with the name of each part of a step; the part runs in the context that it returns. A profiler
            replaces it to measure times.
    """

    def __init__(
        self,
        model: nn.Module,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: StepConfig,
        processes: Processes,
    ) -> None:
        if processes.device.type == "cpu":
            keep_freed_memory()
        self.model, self.module, self.optimizer = model, module, optimizer
        self.config, self.processes = config, processes
        self.average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        self.frozen: Mapping[str, Tensor] = {}
        self.skipped = 0
        self.phase: Callable[[str], contextlib.AbstractContextManager[None]] = lambda name: contextlib.nullcontext()

    @abc.abstractmethod
    def gradients(self, step: int, batches: Iterable[MicroBatch]) -> tuple[Tensor, list[Tensor], dict[str, float]]:
        """Compute the gradient of the mean loss over the whole batch, and leave it in the parameters.

        Args:
            step: The number of the step, from 0.
            batches: This process's micro-batches.

        Returns:
            The losses of the micro-batches, float32 [accumulate]; the examples in each, int64 [B]; the terms of the
            loss, by name.
        """

    def update(self, step: int, batches: Iterable[MicroBatch]) -> StepResult:
        """Take one step; leave the weights as they are where the loss or the gradient is not finite.

        Args:
            step: The number of the step, from 0.
            batches: This process's micro-batches.
        """
        config = self.config
        torch.manual_seed(_dropout_seed(config.seed, step, self.processes.rank))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        self.module.train()
        self.optimizer.zero_grad()
        losses, examples, parts = self.gradients(step, batches)
        loss = self.processes.mean(losses.mean()).item()
        with self.phase("clip"):
            norm = self._clip()
        result = StepResult(loss, norm, parts=parts)
        if result.applied:
            with self.phase("optimizer"):
                self.optimizer.step()
            with self.phase("average"):
                self._update_average(step)
        else:
            self.skipped += 1
            result = dataclasses.replace(result, suspects=self._suspects(losses, examples))
        return result

    def weights_are_finite(self) -> bool:
        """Return whether all weights of all processes are finite; every process must call it."""
        finite = torch.stack([local_shard(parameter).isfinite().all() for parameter in self.model.parameters()]).all()
        return self.processes.mean(finite.float()).item() == 1

    def _clip(self) -> float:
        """Scale the gradient down to the largest norm where it is longer; return its norm from before."""
        parameters = list(self.model.parameters())
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        length = full_tensor(norm).item()
        if length > self.config.gradient_clip:  # most gradients are shorter, which saves a pass over all of them
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.gradient_clip, norm)
        return length

    def _update_average(self, step: int) -> None:
        """Update the exponential moving average: a <- rate a + (1 - rate) w."""
        share = 1 - _ema_rate(self.config.ema_rate, step)
        with torch.no_grad():
            averages = [local_shard(tensor) for tensor in self.average.values()]
            torch._foreach_lerp_(averages, [local_shard(parameter) for parameter in self.model.parameters()], share)

    def _suspects(self, losses: Tensor, examples: list[Tensor]) -> tuple[int, ...]:
        """Return the examples of the micro-batches whose loss is not finite; of all micro-batches where all are."""
        bad = self.processes.gather_lists(
            [part for part, finite in zip(examples, losses.isfinite(), strict=True) if not finite]
        )
        return tuple(int(index) for part in bad or self.processes.gather_lists(examples) for index in part)


class MarTrainStep(TrainStep):
    """A MAR, or a model of another family, in training by AdamW (arXiv 1711.05101), with the published betas."""

    model: MAR

    def __init__(self, model_config: ModelConfig, config: TrainConfig, processes: Processes) -> None:
        torch.manual_seed(config.seed)
        model = imported(family_of(model_config).model)(**model_config.to_dict()).to(processes.device)
        choose_operators(model, config.attention_precision, processes.device)
        if config.gradient_checkpointing:
            _checkpoint_activations(model)
        if config.compile:
            _compile_blocks(model)
        module = parallelize(model, processes, config.fsdp)
        optimizer = torch.optim.AdamW(
            _parameter_groups(model, config.weight_decay), lr=config.learning_rate, betas=(0.9, 0.95), fused=True
        )
        super().__init__(model, module, optimizer, config, processes)
        self.frozen = {name: tensor for name, tensor in model.state_dict().items() if name not in self.average}

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Set parameters and their averages by name; every process must pass the same tensors."""
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, weight in weights.items():
                for copy in (parameters[name], self.average[name]):
                    copy.copy_(distribute_like(weight, parameters[name]))

    def full_weights(self) -> dict[str, Tensor]:
        """Return all parameters by name, also those that are sharded; every process must call it."""
        return {name: full_tensor(parameter.detach()) for name, parameter in self.model.named_parameters()}

    def averaged_model(self) -> MAR:
        """Return a new model with the averaged weights, in evaluation mode; every process must call it."""
        averaged: MAR = type(self.model)(**self.model.config.to_dict()).to(self.processes.device)
        averages = {name: full_tensor(tensor) for name, tensor in self.average.items()}
        averaged.load_state_dict({**self.frozen, **averages})
        return averaged.eval()

    def gradients(self, step: int, batches: Iterable[MicroBatch]) -> tuple[Tensor, list[Tensor], dict[str, float]]:
        """Compute the gradient of the mean loss, see `TrainStep.gradients`; the loss has no named terms."""
        config, losses, examples = self.config, [], []
        for part, (batch, indices, _) in enumerate(batches, start=1):
            with gradient_sync(self.module, enabled=part == config.accumulate):
                with self.phase("forward"), autocast(config.precision, self.processes.device):
                    loss = self.module(*batch)
                with self.phase("backward"):
                    (loss / config.accumulate).backward()
            losses.append(loss.detach())
            examples.append(indices)
        return torch.stack(losses), examples, {}


def learning_rate(config: StepConfig, step: int) -> float:
    """Return the learning rate of step number `step`: it grows linearly over the warm-up, then decays."""
    return config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup)) * config.decay(step)


_HEADS = ("diffloss.", "cond_diffloss.", "diffactloss.", "image_decoder.")
"""The beginnings of the names of parameters of a head, in any family."""


def _parameter_groups(model: MAR, weight_decay: float) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups: weight decay for the matrices of the transformer, none for the rest.

    Biases, the scales of normalizations and the head have no decay, as in the published code. Embeddings are
    matrices here.
    """
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.dim() >= 2 and not name.startswith(_HEADS)
        (decayed if matrix else free).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def _checkpoint_activations(model: MAR) -> None:
    """Let every block keep its input only, and recompute the rest in the backward pass (arXiv 1604.06174)."""
    for block in [*model.encoder_blocks, *model.decoder_blocks, *model.diffloss.net.res_blocks]:
        for name in {"forward", "rows"} & set(dir(block)):
            setattr(block, name, functools.partial(checkpoint, getattr(block, name), use_reentrant=False))


def _compile_blocks(model: MAR) -> None:
    """Compile each kind of block once, with dynamic shapes: the number of masked tokens differs between steps."""
    for block in [*model.encoder_blocks, *model.decoder_blocks, *model.diffloss.net.res_blocks]:
        block.compile(dynamic=True)
    last: Any = model.decoder_blocks[-1]  # the model calls its method rows, not its forward
    last.rows = torch.compile(last.rows, dynamic=True)


def _ema_rate(rate: float, step: int) -> float:
    """Return the decay rate of the average at a step.

    The rate is lower at first, as in TensorFlow's ExponentialMovingAverage: otherwise the random initial weights
    would stay in the average for long.
    """
    return min(rate, (1 + step) / (10 + step))


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of a step's dropout in one process, of 63 bits: PyTorch takes signed integers."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))
