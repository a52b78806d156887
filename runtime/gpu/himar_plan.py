"""Hi-MAR on a GPU: what is prepared for plans of one shape, of the low-resolution grid and of the full one."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np

from runtime.gpu.cuda import ALIGNMENT, aligned
from runtime.gpu.device_loop import FLOAT, INT, ChainShape, PreparedPlan
from runtime.loops.host_loop import MOST_STEPS_AT_ONCE
from runtime.model.himar_config import HimarConfig
from runtime.model.himar_engines import BACKBONE2, CONDITIONING2, DENOISE2
from runtime.sampling.plan import Condition, Float, Int, Plan


class PreparedHimarPlan(PreparedPlan):
    """The memory and the iterations of both grids.

    Those of the low-resolution grid are MAR's; beside them, the conditional z of each token is kept for the full grid.
    """

    def upload(self, plan: Plan, condition: Condition, order: Int, noise: Float, known: Float) -> None:
        """Copy all arrays of a request to the GPU; positions of the full grid then count from 0."""
        small = self._lengths[0]
        super().upload(plan, condition, np.concatenate([order[:small], order[small:] - small]), noise, known)
        places = np.arange(self._known.host.shape[1])
        self._known.host[...] = places < np.array(self._shape.known)[:, None]
        self._cuda.upload(self._known)

    def _most_tokens(self) -> int:
        return max(self._lengths)  # every chain of the full grid denoises all that is unknown

    def _noise_rows(self) -> int:
        later = sum(chain.steps + 1 for chain in self._shape.chains if chain.phase)
        return max(later, *(chain.steps + 1 for chain in self._shape.chains if not chain.phase))

    def _first_token(self, number: int) -> int:
        return sum(self._lengths[: self._shape.chains[number].phase]) + self._shape.known[number]

    def _first_result(self, number: int) -> int:
        return self._shape.known[number] if self._shape.chains[number].phase else 0

    def _allocate(self) -> None:
        super()._allocate()
        config, batch = cast(HimarConfig, self._config), self._shape.batch
        small, length = self._lengths
        sequences = max(chain.halves for chain in self._shape.chains) * batch

        def memory(size: int) -> int:
            return self._cuda.memory(size, self._owner)

        self._small_z = memory(FLOAT * small * batch * config.z_channels)
        self._visible_now, self._unknown_now, self._big_order = (memory(INT * length * batch) for _ in range(3))
        self._big_tokens = memory(length * self._token_bytes)
        self._big_z = memory(FLOAT * length * sequences * config.z_channels)
        self._big_condition = memory(FLOAT * length * sequences * config.gdm_w)
        self._times = memory(FLOAT * MOST_STEPS_AT_ONCE * config.gdm_w)
        # 1 for each token that is known before an iteration; the rows of iterations begin at aligned addresses.
        floats = aligned(FLOAT * length) // FLOAT
        self._known = self._cuda.pinned_buffer((len(self._shape.known), floats), np.float32, self._owner)
        self._known_row, self._known_now = FLOAT * floats, memory(FLOAT * length)
        self._time_bytes = FLOAT * config.gdm_w
        self._time_now = memory(self._time_bytes)  # aligned, for widths whose rows may begin at an unaligned address

    def _step_groups(self, chain: ChainShape) -> list[range]:
        if not chain.phase:
            return super()._step_groups(chain)
        starts = range(0, chain.steps, MOST_STEPS_AT_ONCE)
        return [range(first, min(first + MOST_STEPS_AT_ONCE, chain.steps)) for first in starts]

    def _after_backbone(self, known: int, chain: ChainShape) -> None:
        """Keep z of the conditional half, which comes first."""
        row = FLOAT * self._shape.batch * self._config.z_channels
        self._cuda.copy(self._small_z + known * row, self._z, chain.count * row)

    def _prepare_pass(self, known: int, chain: ChainShape, number: int) -> Callable[[], None]:
        if not chain.phase:
            return super()._prepare_pass(known, chain, number)
        batch, (small, length), token = self._shape.batch, self._lengths, self._token_bytes
        unknown, position = length - known, INT * batch
        sizes = {"V": known, "O": unknown, "B": batch, "GB": chain.halves * batch}
        backbone = self._engines[BACKBONE2].prepare(sizes, self._owner)
        order, schedule = self._order.address + small * position, self._schedule
        earlier = sum(other.steps + 1 for other in self._shape.chains[:number] if other.phase)
        noise = self._noise.address + (earlier * (small + length) + small) * token
        addresses = {
            "small_z": self._small_z,
            "small_order": self._order.address,
            "tokens": self._big_tokens,
            "visible": self._visible_now,
            "rest": self._unknown_now,
            "labels": self._condition.address,
            "z": self._big_z,
        }

        def work() -> None:
            self._cuda.copy(self._visible_now, order, known * position)
            self._cuda.copy(self._unknown_now, order + known * position, unknown * position)
            self._cuda.copy(self._big_order, order, length * position)
            self._cuda.copy(self._big_tokens, self._tokens.address + small * token, length * token)
            self._cuda.copy(self._known_now, self._known.address + number * self._known_row, FLOAT * length)
            row = schedule.host[0].nbytes
            self._cuda.copy(self._schedule_now, schedule.address + number * row, row)
            size = length * token
            self._cuda.copy_rows(self._noise_now, aligned(size), noise, (small + length) * token, size, chain.steps + 1)
            backbone.enqueue(addresses)

        return self._captured(work)

    def _prepare_chain(self, chain: ChainShape) -> Callable[[], None]:
        if not chain.phase:
            return super()._prepare_chain(chain)
        batch, size = self._shape.batch, self._lengths[1] * self._token_bytes
        sequences, groups = chain.halves * batch, self._step_groups(chain)
        denoise = self._engines[DENOISE2].prepare({"B": batch, "GB": sequences}, self._owner)
        conditioning = {
            steps: self._engines[CONDITIONING2].prepare({"GB": sequences, "T": steps}, self._owner)
            for steps in dict.fromkeys(map(len, groups))
        }

        def work() -> None:
            self._cuda.copy(self._states[0][0], self._noise_now, size)
            self._cuda.clear(self._states[0][1], size)
            for number, steps in enumerate(groups):
                timesteps = self._schedule_now + FLOAT * self._timesteps_offset(chain, number)
                outputs = {"condition": self._big_condition, "times": self._times}
                conditioning[len(steps)].enqueue({"z": self._big_z, "timesteps": timesteps, **outputs})
                for step in steps:
                    (x, x0), (next_x, next_x0) = self._states[step % 2], self._states[(step + 1) % 2]
                    denoise.enqueue(
                        {
                            "x": x,
                            "previous_x0": x0,
                            "noise": self._noise_now + (1 + step) * aligned(size),
                            "tokens": self._big_tokens,
                            "first_noise": self._noise_now,
                            "known": self._known_now,
                            "order": self._big_order,
                            "condition": self._big_condition,
                            "time": self._time(step - steps.start),
                            "coefficients": self._schedule_now + FLOAT * self._coefficients_offset(chain, step),
                            "guidance": self._schedule_now,
                            "next_x": next_x,
                            "x0": next_x0,
                        }
                    )

        return self._captured(work)

    def _time(self, row: int) -> int:
        """Return an aligned address of the embedding of a timestep, after copying it there where it has none."""
        address = self._times + row * self._time_bytes
        if not address % ALIGNMENT:
            return address
        self._cuda.copy(self._time_now, address, self._time_bytes)
        return self._time_now
