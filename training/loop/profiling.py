"""Measurement of where the time of a training step goes, by phase and by operator; it writes no file."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.profiler import profile

from runtime.checks import pluralize
from training.config import RunConfig
from training.data.latent_dataset import LatentDataset, check_model_fits
from training.data.loader import batches_of, micro_batches
from training.distributed import Processes
from training.loop.optimizer_step import MarTrainStep
from training.loop.training_loop import check_batch

_WARM_UP, _TIMED, _UNDER_PROFILER = 3, 8, 2
_OPERATORS = 10  # the number of the most expensive operators that are listed
_PHASES = ("read", "forward", "backward", "clip", "optimizer", "average")
_PARTS = {"backbone": "forward", "head": "forward"}  # the parts of a phase, and the phase


class PhaseTimer:
    """A timer of the phases of training steps; it synchronizes a GPU at both ends of a phase.

    Attributes:
        steps: For each step, the seconds spent in each phase.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.steps: list[dict[str, float]] = []

    def now(self) -> float:
        """Return the time in seconds, once the device has finished its work."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to the phase `name` of the current step."""
        started = self.now()
        yield
        self.add(name, self.now() - started)

    def add(self, name: str, seconds: float) -> None:
        """Add `seconds` to the phase `name` of the current step."""
        step = self.steps[-1]
        step[name] = step.get(name, 0.0) + seconds

    def watch(self, module: nn.Module, name: str) -> None:
        """Add the time of every forward pass of `module` to the phase `name`."""
        started: list[float] = []

        def before(module: nn.Module, inputs: Any) -> None:
            started.append(self.now())

        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            self.add(name, self.now() - started.pop())

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)


def profile_training(config: RunConfig, dataset: LatentDataset, processes: Processes) -> str:
    """Take a few training steps of a new model, and return a table of where their time went.

    Args:
        config: The settings of the run.
        dataset: What the model is trained on.
        processes: The processes of the job.

    Raises:
        ConfigError: The batch does not fit the data or the processes.
        DataError: The data is not what the model was made for.
    """
    check_model_fits(dataset, config.model, config.data)
    check_batch(dataset, config.training, processes)
    training = dataclasses.replace(config.training, steps=_WARM_UP + _TIMED + _UNDER_PROFILER)
    train_step, timer = MarTrainStep(config.model, training, processes), PhaseTimer(processes.device)
    train_step.phase = timer.phase
    timer.watch(train_step.model.diffloss, "head")
    batches = batches_of(config.model)(dataset, config.model, training, processes.rank, processes.world_size)
    reading = micro_batches(batches, 0, processes.device)

    def step(number: int) -> None:
        timer.steps.append({})
        started = timer.now()
        with timer.phase("read"):
            parts = list(itertools.islice(reading, training.accumulate))
        train_step.update(number, parts)
        timer.add("all", timer.now() - started)

    for number in range(_WARM_UP + _TIMED):
        step(number)
    timed = timer.steps[_WARM_UP:]
    with profile() as profiler:
        for number in range(_UNDER_PROFILER):
            step(_WARM_UP + _TIMED + number)
    return "\n".join([*_phase_lines(timed, training.batch_size), "", *_operator_lines(profiler, processes.device)])


def _phase_lines(steps: list[dict[str, float]], batch: int) -> list[str]:
    for step in steps:
        step["backbone"] = step["forward"] - step["head"]
        step["the rest"] = step["all"] - sum(step[name] for name in _PHASES)
    spent = {name: statistics.median(step[name] for step in steps) for name in steps[0]}
    lines = [
        f"{len(steps)} steps of {pluralize(batch, 'image')}: {spent['all']:.3f} s each (median; "
        f"{min(step['all'] for step in steps):.3f} to {max(step['all'] for step in steps):.3f}), "
        f"{batch / spent['all']:.1f} images a second",
        "",
        f"{'phase':<30}{'ms':>10}{'share':>8}",
    ]
    for phase in (*_PHASES, "the rest"):
        for name in (phase, *(part for part, whole in _PARTS.items() if whole == phase)):
            label = f"  {name}" if name in _PARTS else name
            lines.append(f"{label:<30}{spent[name] * 1000:>10.1f}{spent[name] / spent['all']:>8.1%}")
    return lines


def _operator_lines(profiler: profile, device: torch.device) -> list[str]:
    on_gpu = device.type == "cuda"

    def microseconds(event: Any) -> float:
        return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)

    events = sorted(profiler.key_averages(), key=microseconds, reverse=True)
    total = sum(microseconds(event) for event in events) or 1.0
    lines = [f"{'operator':<44}{'calls':>8}{'ms a step':>12}{'share':>8}"]
    for event in events[:_OPERATORS]:
        spent = microseconds(event)
        lines.append(
            f"{event.key[:43]:<44}{event.count // _UNDER_PROFILER:>8}{spent / 1000 / _UNDER_PROFILER:>12.1f}"
            f"{spent / total:>8.1%}"
        )
    return lines
