"""The masked autoregressive loop on a GPU: `runtime.loops.host_loop`, with every array there from first token to last.

What a plan needs is made once for its *form*, the sizes it has: memory, engines at these sizes, and CUDA
graphs. A graph holds addresses and sizes, no numbers, so guidance scales, coefficients, orders and noise
are copied in front of it. Chains of the same number of rows and steps share one graph: the 64 iterations of
the published schedule have seven.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from runtime.gpu.clock import StageClock
from runtime.gpu.cuda import ALIGNMENT, Cuda, aligned
from runtime.gpu.engine import Execution, GpuEngine
from runtime.loops.host_loop import both_halves, steps_at_once
from runtime.model.coefficients import COEFFICIENTS
from runtime.model.config import ModelConfig
from runtime.model.engine_spec import BACKBONE, CONDITIONING, DENOISE
from runtime.sampling.plan import Float, Int, Iteration, Plan, Progress

_FORMS_KEPT = 4  # of plans, batches among them; a server's usual requests differ in numbers, not in form
_FLOAT, _INT = 4, 8  # bytes
_ROW = ALIGNMENT // _FLOAT  # floats from one aligned place to the next


@dataclasses.dataclass(frozen=True)
class _Chain:
    """The sizes of an iteration's diffusion chain."""

    count: int  # K
    halves: int  # G
    steps: int


@dataclasses.dataclass(frozen=True)
class _Form:
    batch: int
    known: tuple[int, ...]  # V of every iteration
    chains: tuple[_Chain, ...]


class GpuLoop:
    """Executes plans with engines on the GPU; a `runtime.sampling.plan.PlanLoop`. Not for two threads at once."""

    def __init__(self, cuda: Cuda, engines: Mapping[str, GpuEngine], config: ModelConfig, graphs: bool) -> None:
        """`graphs` is whether iterations are captured and replayed, or put on the stream call by call."""
        self.cuda, self._engines, self._config, self._graphs = cuda, engines, config, graphs
        self._kept: OrderedDict[_Form, _Prepared] = OrderedDict()
        self.clock: StageClock | None = None  # for benchmarks: told of every stage as it is put on the stream

    def __call__(
        self, plan: Plan, labels: Int, order: Int, noise: Float, known: Float, progress: Progress | None
    ) -> Float:
        self.cuda.activate()
        prepared = self._prepared(_form_of(plan, len(labels)))
        mark = self.clock.mark if self.clock is not None else _unmarked
        mark("before")
        prepared.upload(plan, labels, order, noise, known)
        mark("upload")
        for number in range(len(plan.iterations)):
            prepared.predict(number)
            mark("backbone")
            prepared.diffuse(number)
            mark("head")
            if progress is not None:
                self.cuda.synchronize()
                progress(number + 1, len(plan.iterations))
        return prepared.tokens_now()

    def close(self) -> None:
        with contextlib.ExitStack() as all_of_them:
            while self._kept:
                all_of_them.callback(self._kept.popitem()[1].close)

    def _prepared(self, form: _Form) -> _Prepared:
        if form in self._kept:
            self._kept.move_to_end(form)
            return self._kept[form]
        if len(self._kept) == _FORMS_KEPT:
            self._kept.popitem(last=False)[1].close()
        self._kept[form] = prepared = _Prepared(self.cuda, self._engines, self._config, form, self._graphs)
        return prepared


class _Prepared:
    """The memory of a form of plan, and its iterations ready to run there."""

    def __init__(
        self, cuda: Cuda, engines: Mapping[str, GpuEngine], config: ModelConfig, form: _Form, graphs: bool
    ) -> None:
        self._cuda, self._engines, self._config, self._form, self._graphs = cuda, engines, config, form, graphs
        with contextlib.ExitStack() as owner:
            self._owner = owner
            self._make_memory()
            chains = {chain: self._chain(chain) for chain in dict.fromkeys(form.chains)}
            self._iterations = [
                (self._pass(known, chain, number), chains[chain])
                for number, (known, chain) in enumerate(zip(form.known, form.chains, strict=True))
            ]
            self._owner = owner.pop_all()

    def upload(self, plan: Plan, labels: Int, order: Int, noise: Float, known: Float) -> None:
        """Bring everything of a request to the GPU: it needs nothing more from here."""
        self._labels.host[...] = both_halves(labels, self._config)
        self._order.host[...] = order
        self._noise.host[...] = noise
        self._tokens.host[: len(known)] = known
        for row, iteration, chain in zip(self._schedule.host, plan.iterations, self._form.chains, strict=True):
            self._write_schedule(row, iteration, chain)
        for array in (self._labels, self._order, self._noise, self._tokens, self._schedule):
            self._cuda.upload(array)

    def predict(self, number: int) -> None:
        """Put the pass of the backbone of iteration `number` on the stream."""
        self._iterations[number][0]()

    def diffuse(self, number: int) -> None:
        """And its diffusion chain, after which its tokens are known."""
        known, chain = self._form.known[number], self._form.chains[number]
        self._iterations[number][1]()
        token = self._token_bytes
        self._cuda.copy(self._tokens.address + known * token, self._states[chain.steps % 2][0], chain.count * token)

    def tokens_now(self) -> Float:
        """The tokens [L, B, D], once everything is done."""
        self._cuda.download(self._tokens)
        self._cuda.synchronize()
        tokens: Float = self._tokens.host.copy()
        return tokens

    def close(self) -> None:
        self._owner.close()

    def _make_memory(self) -> None:
        config, form = self._config, self._form
        length, batch, channels = config.tokens, form.batch, config.token_channels
        count, steps = max(chain.count for chain in form.chains), max(chain.steps for chain in form.chains)
        rows = max(chain.halves * chain.count for chain in form.chains) * batch
        self._token_bytes = _FLOAT * batch * channels

        def exchange(shape: tuple[int, ...], dtype: DTypeLike) -> Any:
            return self._cuda.exchange(shape, dtype, self._owner)

        def memory(size: int) -> int:
            return self._cuda.memory(size, self._owner)

        self._labels = exchange((2 * batch,), np.int64)
        self._order = exchange((length, batch), np.int64)
        self._tokens = exchange((length, batch, channels), np.float32)
        self._noise = exchange((steps + 1, length, batch, channels), np.float32)
        self._schedule = exchange((len(form.known), max(map(self._schedule_floats, form.chains))), np.float32)
        # What the graphs read: of the iteration that is run, at places that do not change.
        self._predict_now, self._rest_now = (memory(_INT * length * batch) for _ in range(2))
        self._noise_now = memory((steps + 1) * aligned(count * self._token_bytes))
        self._schedule_now = memory(self._schedule.host[0].nbytes)
        self._z = memory(_FLOAT * rows * config.decoder_embed_dim)
        self._modulation = memory(max(self._modulation_bytes(chain) for chain in form.chains))
        row = _FLOAT * config.modulation_channels
        # And that of one step, where rows of it are not aligned, so that those of a step may not be.
        self._modulation_now = memory(rows * row) if row % ALIGNMENT else 0
        # x and x0 of the step before, and of the one after it.
        self._states = [(memory(count * self._token_bytes), memory(count * self._token_bytes)) for _ in range(2)]

    def _modulation_bytes(self, chain: _Chain) -> int:
        rows = chain.halves * chain.count * self._form.batch
        together = min(chain.steps, steps_at_once(self._config, rows))
        return _FLOAT * together * rows * self._config.modulation_channels

    def _runs(self, chain: _Chain) -> list[range]:
        """The steps of a chain whose modulation is computed together."""
        together = steps_at_once(self._config, chain.halves * chain.count * self._form.batch)
        return [range(first, min(first + together, chain.steps)) for first in range(0, chain.steps, together)]

    # A row of the schedule: the guidance scale, the timesteps of each run, the coefficients of each step; every
    # one of them begins where an engine can read.

    def _timesteps_at(self, chain: _Chain, run: int) -> int:
        together = len(self._runs(chain)[0])
        return _ROW + run * (aligned(_FLOAT * together) // _FLOAT)

    def _coefficients_at(self, chain: _Chain, step: int) -> int:
        return self._timesteps_at(chain, len(self._runs(chain))) + step * _ROW

    def _schedule_floats(self, chain: _Chain) -> int:
        return self._coefficients_at(chain, chain.steps)

    def _write_schedule(self, row: Float, iteration: Iteration, chain: _Chain) -> None:
        row[0] = iteration.guidance_scale
        for number, run in enumerate(self._runs(chain)):
            at = self._timesteps_at(chain, number)
            row[at : at + len(run)] = iteration.table.timesteps[run.start : run.stop]
        first = self._coefficients_at(chain, 0)
        of_steps = row[first : first + chain.steps * _ROW].reshape(chain.steps, _ROW)
        of_steps[:, : len(COEFFICIENTS)] = iteration.table.coefficients

    def _pass(self, known: int, chain: _Chain, number: int) -> Callable[[], None]:
        """The pass of the backbone of one iteration, from which its chain has all it needs."""
        batch, stop = self._form.batch, known + chain.count
        position, rest = _INT * batch, self._config.tokens - stop
        sizes = {"V": known, "K": chain.count, "R": rest, "B": batch, "GB": chain.halves * batch}
        backbone = self._engines[BACKBONE].prepare(sizes, self._owner)
        order, schedule = self._order.address, self._schedule
        addresses = {
            "tokens": self._tokens.address,
            "visible": order,
            "predict": self._predict_now,
            "rest": self._rest_now,
            "labels": self._labels.address,
            "z": self._z,
        }
        size = chain.count * self._token_bytes

        def work() -> None:
            self._cuda.copy(self._predict_now, order + known * position, chain.count * position)
            self._cuda.copy(self._rest_now, order + stop * position, rest * position)
            row = schedule.host[0].nbytes
            self._cuda.copy(self._schedule_now, schedule.address + number * row, row)
            self._cuda.copy_rows(
                self._noise_now,
                aligned(size),
                self._noise.address + known * self._token_bytes,
                self._config.tokens * self._token_bytes,
                size,
                chain.steps + 1,
            )
            backbone.enqueue(addresses)

        return self._ready(work)

    def _chain(self, chain: _Chain) -> Callable[[], None]:
        """A diffusion chain, from z, noise and schedule to `_states`."""
        rows, tokens = chain.halves * chain.count * self._form.batch, chain.count * self._form.batch
        runs = self._runs(chain)
        denoise = self._engines[DENOISE].prepare({"N": tokens, "GN": rows}, self._owner)
        conditioning = {
            steps: self._engines[CONDITIONING].prepare({"GN": rows, "T": steps}, self._owner)
            for steps in dict.fromkeys(map(len, runs))
        }

        def work() -> None:
            size = chain.count * self._token_bytes
            self._cuda.copy(self._states[0][0], self._noise_now, size)
            self._cuda.clear(self._states[0][1], size)
            for number, run in enumerate(runs):
                timesteps = self._schedule_now + _FLOAT * self._timesteps_at(chain, number)
                conditioning[len(run)].enqueue({"z": self._z, "timesteps": timesteps, "modulation": self._modulation})
                for step in run:
                    self._denoise(denoise, chain, step, step - run.start)

        return self._ready(work)

    def _denoise(self, denoise: Execution, chain: _Chain, step: int, of_run: int) -> None:
        rows = chain.halves * chain.count * self._form.batch
        size = _FLOAT * rows * self._config.modulation_channels
        modulation = self._modulation + of_run * size
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
                "coefficients": self._schedule_now + _FLOAT * self._coefficients_at(chain, step),
                "guidance": self._schedule_now,
                "next_x": next_x,
                "x0": next_x0,
            }
        )

    def _ready(self, work: Callable[[], None]) -> Callable[[], None]:
        if not self._graphs:
            return work
        work()  # an engine settles what depends on its sizes in its first call, which must not be captured
        self._cuda.synchronize()
        return self._cuda.captured(work, self._owner)


def _unmarked(stage: str) -> None:
    pass


def _form_of(plan: Plan, batch: int) -> _Form:
    return _Form(
        batch,
        tuple(iteration.known for iteration in plan.iterations),
        tuple(_Chain(i.count, 2 if i.guided else 1, i.table.steps) for i in plan.iterations),
    )
