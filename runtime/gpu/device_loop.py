"""The masked autoregressive loop on a GPU: the same as `runtime.loops.host_loop`, but every array stays on the GPU.

All that a plan needs is prepared once for its shape, which is a `PlanShape`: memory, engines at its sizes, and CUDA
graphs. A graph contains addresses and sizes but no values. Guidance scales, coefficients, generation orders and noise
are therefore copied to fixed addresses before a graph runs. Diffusion chains with the same numbers of rows and steps
share one graph: the 64 iterations of the published schedule need only seven.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import DTypeLike

from runtime.gpu.clock import StageClock
from runtime.gpu.cuda import ALIGNMENT, Cuda, PinnedBuffer, aligned
from runtime.gpu.engine import Execution, GpuEngine
from runtime.loops.host_loop import steps_at_once
from runtime.model.coefficients import COEFFICIENTS
from runtime.model.engine_spec import BACKBONE, CONDITIONING, DENOISE
from runtime.model.families import drawn_grids, family_of, imported
from runtime.model.family_config import FamilyConfig
from runtime.sampling.plan import AfterIteration, Condition, Float, Int, Iteration, Plan
from runtime.sampling.recap import Group

_MODULATION_BYTES = 16 * 2**20  # of a group of steps; each call of the head's conditioning reads all of its weights
_SHAPES_KEPT = 4  # the usual requests of a server differ in their values, but seldom in the shape of plan or batch
FLOAT, INT = 4, 8
"""The bytes of a number."""
_ROW = ALIGNMENT // FLOAT  # floats from one aligned address to the next


@dataclasses.dataclass(frozen=True)
class ChainShape:
    """The sizes of the diffusion chain of one iteration.

    Attributes:
        count: K, the tokens of an image that the iteration predicts.
        halves: G, the guidance halves: 2, or 1 without guidance.
        steps: T, the diffusion steps.
        unguided: How many of the last steps read the conditional half alone.
        phase: The number of the grid that it draws.
    """

    count: int
    halves: int
    steps: int
    unguided: int = 0
    phase: int = 0


@dataclasses.dataclass(frozen=True)
class PlanShape:
    """The sizes of a plan. Plans of the same shape share memory, prepared engines and CUDA graphs.

    Attributes:
        batch: B, the images that are generated together.
        known: V of every iteration, the tokens of an image that are known before it.
        chains: The sizes of every iteration's diffusion chain.
        groups: The group of ReCAP of every iteration, or None.
    """

    batch: int
    known: tuple[int, ...]
    chains: tuple[ChainShape, ...]
    groups: tuple[Group | None, ...]

    @classmethod
    def from_plan(cls, plan: Plan, batch: int) -> PlanShape:
        """Return the shape of a plan for `batch` images."""
        return cls(
            batch,
            tuple(iteration.known for iteration in plan.iterations),
            tuple(
                ChainShape(
                    i.count,
                    2 if i.guided else 1,
                    i.table.steps,
                    i.table.unguided if i.guided else 0,
                    i.phase,
                )
                for i in plan.iterations
            ),
            tuple(iteration.group for iteration in plan.iterations),
        )


class GpuLoop:
    """Executes plans with engines on the GPU; a `runtime.sampling.plan.PlanLoop`.

    Two threads must not use it at the same time. It keeps the four shapes of plans that were used last.

    Attributes:
        cuda: The stream on which it runs.
        clock: For benchmarks: a clock that measures the stages `upload`, `backbone` and `head`. None by default.
    """

    def __init__(self, cuda: Cuda, engines: Mapping[str, GpuEngine], config: FamilyConfig, graphs: bool) -> None:
        """Create the loop.

        Args:
            cuda: The stream on which it runs.
            engines: The engines of the sampling loop, by name.
            config: The model's sizes.
            graphs: Whether iterations are captured as CUDA graphs and replayed, or enqueued call by call.
        """
        self.cuda, self._engines, self._config, self._graphs = cuda, engines, config, graphs
        self._kept: OrderedDict[PlanShape, PreparedPlan] = OrderedDict()
        self._prepare: type[PreparedPlan] = imported(family_of(config).prepared_plan)
        self.clock: StageClock | None = None

    def __call__(
        self,
        plan: Plan,
        condition: Condition,
        order: Int,
        noise: Float,
        known: Float,
        after_iteration: AfterIteration | None,
    ) -> Float:
        """Execute a plan, with the arguments and the result of `runtime.sampling.plan.PlanLoop`.

        With `after_iteration`, the host waits for the GPU after every iteration.

        Raises:
            BackendError: An engine does not support the plan's sizes, or the driver or a library reports a failure.
        """
        self.cuda.activate()
        prepared = self._prepared(PlanShape.from_plan(plan, order.shape[1]))
        mark = self.clock.mark if self.clock is not None else _no_mark
        mark("before")
        prepared.upload(plan, condition, order, noise, known)
        mark("upload")
        for number in range(len(plan.iterations)):
            prepared.predict(number)
            mark("backbone")
            prepared.diffuse(number)
            mark("head")
            if after_iteration is not None:
                self.cuda.synchronize()
                after_iteration(number + 1, len(plan.iterations), prepared.download_tokens)
        return prepared.download_tokens()

    def close(self) -> None:
        """Free everything that was prepared."""
        with contextlib.ExitStack() as closing:
            while self._kept:
                closing.callback(self._kept.popitem()[1].close)

    def _prepared(self, shape: PlanShape) -> PreparedPlan:
        if shape in self._kept:
            self._kept.move_to_end(shape)
            return self._kept[shape]
        if len(self._kept) == _SHAPES_KEPT:
            self._kept.popitem(last=False)[1].close()
        self._kept[shape] = prepared = self._prepare(self.cuda, self._engines, self._config, shape, self._graphs)
        return prepared


class PreparedPlan:
    """The memory for plans of one shape, and functions that enqueue their iterations.

    A subclass prepares other passes and the iterations of further grids: `_allocate`, `_prepare_backbone` and
    `_prepare_iteration` are made for that.
    """

    def __init__(
        self, cuda: Cuda, engines: Mapping[str, GpuEngine], config: FamilyConfig, shape: PlanShape, graphs: bool
    ) -> None:
        self._cuda, self._engines, self._config, self._shape, self._graphs = cuda, engines, config, shape, graphs
        self._condition_name = family_of(config).condition
        self._lengths = [rows * columns for rows, columns in drawn_grids(config)]
        with contextlib.ExitStack() as owner:
            self._owner = owner
            self._allocate()
            self._chains: dict[ChainShape, Callable[[], None]] = {}  # chains of the same shape share a graph
            self._iterations = [self._prepare_iteration(number) for number in range(len(shape.known))]
            self._owner = owner.pop_all()

    def upload(self, plan: Plan, condition: Condition, order: Int, noise: Float, known: Float) -> None:
        """Copy all arrays of a request to the GPU, which needs nothing else from the host."""
        self._condition.host[...] = condition[: len(self._condition.host)]
        self._order.host[...] = order
        self._noise.host[...] = noise
        self._tokens.host[: len(known)] = known
        for row, iteration, chain in zip(self._schedule.host, plan.iterations, self._shape.chains, strict=True):
            self._write_schedule(row, iteration, chain)
        for array in (self._condition, self._order, self._noise, self._tokens, self._schedule):
            self._cuda.upload(array)

    def predict(self, number: int) -> None:
        """Enqueue the backbone of iteration `number`."""
        self._iterations[number][0]()

    def diffuse(self, number: int) -> None:
        """Enqueue the diffusion chain of iteration `number`, and the copy of its result into the tokens."""
        chain = self._shape.chains[number]
        self._iterations[number][1]()
        size, place = chain.count * self._token_bytes, self._first_token(number) * self._token_bytes
        result = self._states[chain.steps % 2][0] + self._first_result(number) * self._token_bytes
        self._cuda.copy(self._tokens.address + place, result, size)

    def download_tokens(self) -> Float:
        """Wait until all work is done, and return the tokens [L, B, D] in generation order."""
        self._cuda.download(self._tokens)
        self._cuda.synchronize()
        tokens: Float = self._tokens.host.copy()
        return tokens

    def close(self) -> None:
        """Free the memory, the prepared engines and the graphs."""
        self._owner.close()

    def _most_tokens(self) -> int:
        """Return the largest number of tokens of an image that a chain denoises."""
        return max(chain.count for chain in self._shape.chains)

    def _noise_rows(self) -> int:
        """Return the rows of noise of an image; see `runtime.sampling.plan.Plan.noise_steps`."""
        return max(chain.steps for chain in self._shape.chains) + 1

    def _after_backbone(self, known: int, chain: ChainShape) -> None:
        """Enqueue what follows the backbone of an iteration: nothing."""

    def _first_token(self, number: int) -> int:
        """Return the place of the first token that iteration `number` predicts, in the tokens of all grids."""
        return self._shape.known[number]

    def _first_result(self, number: int) -> int:
        """Return the place of that token among those that the chain of iteration `number` denoises."""
        return 0

    def _prepare_iteration(self, number: int) -> tuple[Callable[[], None], Callable[[], None]]:
        """Prepare the backbone and the diffusion chain of an iteration; return what enqueues each."""
        known, chain = self._shape.known[number], self._shape.chains[number]
        predict = self._prepare_pass(known, chain, number)  # first: it copies the positions that a chain may look up
        if chain not in self._chains:
            self._chains[chain] = self._prepare_chain(chain)
        return predict, self._chains[chain]

    def _allocate(self) -> None:
        config, shape = self._config, self._shape
        length, batch, channels = sum(self._lengths), shape.batch, config.token_channels
        chains = [chain for chain in shape.chains if not chain.phase]
        count, steps = self._most_tokens(), max(chain.steps for chain in shape.chains)
        rows = max(chain.halves * chain.count for chain in chains) * batch
        self._token_bytes = FLOAT * batch * channels

        def pinned_buffer(sizes: tuple[int, ...], dtype: DTypeLike) -> PinnedBuffer:
            return self._cuda.pinned_buffer(sizes, dtype, self._owner)

        def memory(size: int) -> int:
            return self._cuda.memory(size, self._owner)

        spec = next(tensor for tensor in self._engines[BACKBONE].spec.inputs if tensor.name == self._condition_name)
        halves = max(chain.halves for chain in shape.chains)
        self._condition = pinned_buffer(spec.sized({"GB": halves * batch}), spec.dtype)
        self._order = pinned_buffer((length, batch), np.int64)
        self._tokens = pinned_buffer((length, batch, channels), np.float32)
        self._noise = pinned_buffer((self._noise_rows(), length, batch, channels), np.float32)
        schedule_floats = max(map(self._schedule_floats, shape.chains))
        self._schedule = pinned_buffer((len(shape.known), schedule_floats), np.float32)
        # The inputs of the current iteration, at the fixed addresses that the graphs read.
        self._predict_now, self._rest_now = (memory(INT * length * batch) for _ in range(2))
        self._noise_now = memory((steps + 1) * aligned(count * self._token_bytes))
        self._schedule_now = memory(self._schedule.host[0].nbytes)
        # A pass of ReCAP may compute two halves for a chain that needs one.
        self._z = memory(FLOAT * max(chain.count for chain in chains) * halves * batch * config.z_channels)
        self._modulation = memory(max(map(self._modulation_bytes, chains)))
        row = FLOAT * config.modulation_channels
        # The modulation of one step, aligned, for models in which the rows of a step may begin at an unaligned address.
        self._modulation_now = memory(rows * row) if row % ALIGNMENT else 0
        # x and x0 before a step, and after it.
        self._states = [(memory(count * self._token_bytes), memory(count * self._token_bytes)) for _ in range(2)]

    def _modulation_bytes(self, chain: ChainShape) -> int:
        rows = chain.halves * chain.count * self._shape.batch
        return FLOAT * len(self._step_groups(chain)[0]) * rows * self._config.modulation_channels

    def _step_groups(self, chain: ChainShape) -> list[range]:
        """Return the groups of consecutive steps whose modulation is computed in one call."""
        rows = chain.halves * chain.count * self._shape.batch
        together = steps_at_once(self._config, rows, _MODULATION_BYTES)
        return [range(first, min(first + together, chain.steps)) for first in range(0, chain.steps, together)]

    # Each iteration has a row of floats in the schedule: the guidance scale, the timesteps of each group of steps, and
    # the coefficients of each step. Each of these begins at an aligned address.

    def _timesteps_offset(self, chain: ChainShape, group: int) -> int:
        together = len(self._step_groups(chain)[0])
        return _ROW + group * (aligned(FLOAT * together) // FLOAT)

    def _coefficients_offset(self, chain: ChainShape, step: int) -> int:
        return self._timesteps_offset(chain, len(self._step_groups(chain))) + step * _ROW

    def _schedule_floats(self, chain: ChainShape) -> int:
        return self._coefficients_offset(chain, chain.steps)

    def _write_schedule(self, row: Float, iteration: Iteration, chain: ChainShape) -> None:
        row[0] = iteration.guidance_scale
        for number, steps in enumerate(self._step_groups(chain)):
            offset = self._timesteps_offset(chain, number)
            row[offset : offset + len(steps)] = iteration.table.timesteps[steps.start : steps.stop]
        first = self._coefficients_offset(chain, 0)
        coefficients = row[first : first + chain.steps * _ROW].reshape(chain.steps, _ROW)
        coefficients[:, : len(COEFFICIENTS)] = iteration.table.coefficients

    def _prepare_pass(self, known: int, chain: ChainShape, number: int) -> Callable[[], None]:
        """Prepare the backbone of one iteration, and the copies of all that its diffusion chain reads."""
        backbone, schedule = self._prepare_backbone(known, chain, number), self._schedule
        size = chain.count * self._token_bytes

        def work() -> None:
            row = schedule.host[0].nbytes
            self._cuda.copy(self._schedule_now, schedule.address + number * row, row)
            self._cuda.copy_rows(
                self._noise_now,
                aligned(size),
                self._noise.address + known * self._token_bytes,
                sum(self._lengths) * self._token_bytes,
                size,
                chain.steps + 1,
            )
            backbone()
            self._after_backbone(known, chain)

        return self._captured(work)

    def _prepare_backbone(self, known: int, chain: ChainShape, number: int) -> Callable[[], None]:
        """Prepare the backbone of one iteration; return what copies its positions and enqueues it."""
        batch, stop = self._shape.batch, known + chain.count
        position, rest = INT * batch, self._lengths[0] - stop
        sizes = {"V": known, "K": chain.count, "R": rest, "B": batch, "GB": chain.halves * batch}
        engine = self._engines[BACKBONE]
        backbone = engine.prepare(sizes, self._owner)
        order = self._order.address
        every = {
            "tokens": self._tokens.address,
            "visible": order,
            "predict": self._predict_now,
            "rest": self._rest_now,
            self._condition_name: self._condition.address,
            "z": self._z,
        }
        addresses = {tensor.name: every[tensor.name] for tensor in (*engine.spec.inputs, *engine.spec.outputs)}

        def enqueue() -> None:
            self._cuda.copy(self._predict_now, order + known * position, chain.count * position)
            self._cuda.copy(self._rest_now, order + stop * position, rest * position)
            backbone.enqueue(addresses)

        return enqueue

    def _prepare_chain(self, chain: ChainShape) -> Callable[[], None]:
        """Prepare a diffusion chain, which reads z, noise and schedule and writes `_states`."""
        rows, tokens = chain.halves * chain.count * self._shape.batch, chain.count * self._shape.batch
        groups = self._step_groups(chain)
        guided = self._engines[DENOISE].prepare({"N": tokens, "GN": rows}, self._owner)
        # The conditional half is the first part of the modulation, so that the same addresses serve both.
        conditional = (
            self._engines[DENOISE].prepare({"N": tokens, "GN": tokens}, self._owner) if chain.unguided else guided
        )
        conditioning = {
            steps: self._engines[CONDITIONING].prepare({"GN": rows, "T": steps}, self._owner)
            for steps in dict.fromkeys(map(len, groups))
        }

        def work() -> None:
            size = chain.count * self._token_bytes
            self._cuda.copy(self._states[0][0], self._noise_now, size)
            self._cuda.clear(self._states[0][1], size)
            for number, steps in enumerate(groups):
                timesteps = self._schedule_now + FLOAT * self._timesteps_offset(chain, number)
                conditioning[len(steps)].enqueue({"z": self._z, "timesteps": timesteps, "modulation": self._modulation})
                for step in steps:
                    denoise = guided if step < chain.steps - chain.unguided else conditional
                    self._denoise(denoise, chain, step, step - steps.start)

        return self._captured(work)

    def _denoise(self, denoise: Execution, chain: ChainShape, step: int, step_in_group: int) -> None:
        rows = chain.halves * chain.count * self._shape.batch
        size = FLOAT * rows * self._config.modulation_channels
        modulation = self._modulation + step_in_group * size
        if modulation % ALIGNMENT:
            self._cuda.copy(self._modulation_now, modulation, size)
            modulation = self._modulation_now
        (x, x0), (next_x, next_x0) = self._states[step % 2], self._states[(step + 1) % 2]
        denoise.enqueue(
            {
                "x": x,
                "previous_x0": x0,
                "noise": self._noise_now + (1 + step) * aligned(chain.count * self._token_bytes),
                "modulation": modulation,
                "coefficients": self._schedule_now + FLOAT * self._coefficients_offset(chain, step),
                "guidance": self._schedule_now,
                "next_x": next_x,
                "x0": next_x0,
            }
        )

    def _captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return a function that does `work`, as a CUDA graph if the loop uses these."""
        if not self._graphs:
            return work
        work()  # the first call of an engine may allocate memory for its sizes, which must not happen in a capture
        self._cuda.synchronize()
        return self._cuda.capture(work, self._owner)


def _no_mark(stage: str) -> None:
    pass
