"""One optimizer step after another: the model, the moving average of its weights, the optimizer (appendix B).

It knows neither runs nor datasets: batches come in, and what became of a step goes out.
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
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from runtime.model.config import ModelConfig
from training.config import StepConfig, TrainConfig
from training.data.loader import MicroBatch
from training.distributed import Processes, distribute_like, gradient_sync, local, spread, whole
from training.models.mar import MAR
from training.models.numerics import autocast, choose_operators


@dataclasses.dataclass(frozen=True)
class StepResult:
    """What became of a step: the loss over all processes and the norm of its gradient before clipping.

    If one of them is not finite the step was not taken. `suspects` are then the examples of the
    micro-batches whose loss was not finite; of all of the step, if only the gradient was not.
    `parts` are what the loss is made of.
    """

    loss: float
    gradient_norm: float
    suspects: tuple[int, ...] = ()
    parts: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def taken(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


class TrainStep(abc.ABC):
    """A model in training: its weights, their moving average, its optimizer.

    `skipped` of the steps so far were not taken. Each part of a step runs in the context that `phase`
    makes of its name, for who wants to time it.
    """

    def __init__(
        self,
        model: nn.Module,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: StepConfig,
        processes: Processes,
    ) -> None:
        """`module` is what is called in place of `model`, where its gradients are exchanged between `processes`."""
        self.model, self.module, self.optimizer = model, module, optimizer
        self.config, self.processes = config, processes
        self.average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        self.skipped = 0
        self.phase: Callable[[str], contextlib.AbstractContextManager[None]] = lambda name: contextlib.nullcontext()

    @abc.abstractmethod
    def gradients(self, step: int, batches: Iterable[MicroBatch]) -> tuple[Tensor, list[Tensor], dict[str, float]]:
        """Leave the gradient of the mean loss in the parameters: the losses of this process's micro-batches, [parts],
        the examples in each, and what the loss is made of, by name."""

    def update(self, step: int, batches: Iterable[MicroBatch]) -> StepResult:
        """Take step number `step` with this process's micro-batches, unless its loss or gradient is not finite."""
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
        outcome = StepResult(loss, norm, parts=parts)
        if outcome.taken:
            with self.phase("optimizer"):
                self.optimizer.step()
            with self.phase("average"):
                self._follow(step)
        else:
            self.skipped += 1
            outcome = dataclasses.replace(outcome, suspects=self._suspects(losses, examples))
        return outcome

    def weights_are_finite(self) -> bool:
        finite = torch.stack([local(parameter).isfinite().all() for parameter in self.model.parameters()]).all()
        return self.processes.mean(finite.float()).item() == 1

    def _clip(self) -> float:
        """Bring the gradient to the largest norm, if it is longer; its norm before."""
        parameters = list(self.model.parameters())
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        if (length := whole(norm).item()) > self.config.gradient_clip:  # most are not: a pass over all saved
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.gradient_clip, norm)
        return length

    def _follow(self, step: int) -> None:
        """Move the average towards the weights."""
        share = 1 - _ema_rate(self.config.ema_rate, step)
        with torch.no_grad():
            averages = [local(tensor) for tensor in self.average.values()]
            torch._foreach_lerp_(averages, [local(parameter) for parameter in self.model.parameters()], share)

    def _suspects(self, losses: Tensor, examples: list[Tensor]) -> tuple[int, ...]:
        bad = self.processes.together(
            [part for part, good in zip(examples, losses.isfinite(), strict=True) if not good]
        )
        return tuple(int(index) for part in bad or self.processes.together(examples) for index in part)


class MarTrainStep(TrainStep):
    """A MAR in training."""

    model: MAR

    def __init__(self, model_config: ModelConfig, config: TrainConfig, processes: Processes) -> None:
        torch.manual_seed(config.seed)
        model = MAR(**model_config.to_dict()).to(processes.device)
        choose_operators(model, config.attention, processes.device)
        if config.gradient_checkpointing:
            _forget_activations(model)
        if config.compile:
            _compile_blocks(model)
        module = spread(model, processes, config.fsdp)
        optimizer = torch.optim.AdamW(
            _parameter_groups(model, config.weight_decay), lr=config.learning_rate, betas=(0.9, 0.95), fused=True
        )
        super().__init__(model, module, optimizer, config, processes)

    def set_codebook(self, codebook: NDArray[np.float32]) -> None:
        """Give the head its codebook [codes, D], the same in every process."""
        parameter = self.model.diffloss.codebook
        with torch.no_grad():
            for copy in (parameter, self.average["diffloss.codebook"]):
                copy.copy_(distribute_like(torch.from_numpy(codebook), parameter))

    def averaged_model(self) -> MAR:
        """A model of its own with the averaged weights, whole, in evaluation mode."""
        averaged = MAR(**self.model.config.to_dict()).to(self.processes.device)
        averaged.load_state_dict({name: whole(tensor) for name, tensor in self.average.items()})
        return averaged.eval()

    def gradients(self, step: int, batches: Iterable[MicroBatch]) -> tuple[Tensor, list[Tensor], dict[str, float]]:
        config, losses, examples = self.config, [], []
        for part, (batch, indices, _) in enumerate(batches, start=1):
            with gradient_sync(self.module, now=part == config.accumulate):
                with self.phase("forward"), autocast(config.precision, self.processes.device):
                    loss = self.module(*batch)
                with self.phase("backward"):
                    (loss / config.accumulate).backward()
            losses.append(loss.detach())
            examples.append(indices)
        return torch.stack(losses), examples, {}


def learning_rate(config: StepConfig, step: int) -> float:
    """That of step number `step`: growing over the warm-up, then constant."""
    return config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))


def _parameter_groups(model: MAR, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for the matrices of the transformer, none for biases, gains and the head."""
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.dim() >= 2 and not name.startswith("diffloss.")
        (decayed if matrix else free).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def _forget_activations(model: MAR) -> None:
    """Let every block keep its input only, and compute the rest again for its gradient (arXiv 1604.06174)."""
    for block in [*model.encoder_blocks, *model.decoder_blocks, *model.diffloss.net.res_blocks]:
        for name in {"forward", "rows"} & set(dir(block)):
            setattr(block, name, functools.partial(checkpoint, getattr(block, name), use_reentrant=False))


def _compile_blocks(model: MAR) -> None:
    """Compile each kind of block once for all sizes: how many tokens are masked differs from step to step."""
    for block in [*model.encoder_blocks, *model.decoder_blocks, *model.diffloss.net.res_blocks]:
        block.compile(dynamic=True)
    last: Any = model.decoder_blocks[-1]  # of which only some rows are computed, not by its forward
    last.rows = torch.compile(last.rows, dynamic=True)


def _ema_rate(rate: float, step: int) -> float:
    """The rate at a step: lower at first, or the random weights of the start would stay in the average for long."""
    return min(rate, (1 + step) / (10 + step))


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    """63 bits."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))
