"""ReCAP on a GPU: what is prepared for plans whose groups leave keys and values on the GPU and read them there."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np

from runtime.gpu.device_loop import FLOAT, INT, ChainShape, PreparedPlan
from runtime.model.config import ModelConfig
from runtime.model.recap_engines import FULL, LOCAL
from runtime.sampling.plan import Condition, Float, Int, Plan
from runtime.sampling.recap import Group


class PreparedRecapPlan(PreparedPlan):
    """The memory and the iterations of a plan of MAR, with the keys and values of the last full pass of a group."""

    def upload(self, plan: Plan, condition: Condition, order: Int, noise: Float, known: Float) -> None:
        """Copy all arrays of a request to the GPU, and the numbers of the rows of the class buffer."""
        super().upload(plan, condition, order, noise, known)
        if self._groups:
            self._buffer.host[...] = np.arange(len(self._buffer.host))
            self._cuda.upload(self._buffer)

    @property
    def _groups(self) -> tuple[Group, ...]:
        """The groups of the plan."""
        return tuple(group for group in self._shape.groups if group is not None)

    def _allocate(self) -> None:
        super()._allocate()
        if not self._groups:
            return
        config, batch = cast(ModelConfig, self._config), self._shape.batch
        sequences = batch * max(2 if group.guided else 1 for group in self._groups)
        union = max(group.stop - group.start for group in self._groups)

        def memory(size: int) -> int:
            return self._cuda.memory(size, self._owner)

        known = max(group.start for group in self._groups)
        of_encoder, of_decoder = config.encoder_cache_channels, config.decoder_cache_channels
        self._encoder_cache = memory(FLOAT * (config.buffer_size + known) * sequences * of_encoder)
        self._decoder_cache = memory(FLOAT * (config.buffer_size + config.tokens) * sequences * of_decoder)
        self._drawn_now, self._later_now = (memory(INT * union * batch) for _ in range(2))
        self._drawn_tokens = memory(union * self._token_bytes)
        self._buffer = self._cuda.pinned_buffer((config.buffer_size,), np.int64, self._owner)

    def _prepare_backbone(self, known: int, chain: ChainShape, number: int) -> Callable[[], None]:
        group = self._shape.groups[number]
        if group is None:
            return super()._prepare_backbone(known, chain, number)
        config, batch = cast(ModelConfig, self._config), self._shape.batch
        halves = 2 if group.guided else 1
        axes = group.sizes(known, chain.count, config.tokens, config.buffer_size) | {"B": batch, "GB": halves * batch}
        local = known > group.start
        engine = self._engines[LOCAL if local else FULL]
        backbone = engine.prepare(axes, self._owner)
        every = {
            "tokens": self._drawn_tokens if local else self._tokens.address,
            "visible": self._order.address,
            "drawn": self._drawn_now,
            "predict": self._predict_now,
            "later": self._later_now,
            "rest": self._rest_now,
            "buffer": self._buffer.address,
            "labels": self._condition.address,
            "encoder_cache": self._encoder_cache,
            "decoder_cache": self._decoder_cache,
            "z": self._z,
        }
        addresses = {tensor.name: every[tensor.name] for tensor in (*engine.spec.inputs, *engine.spec.outputs)}
        stop, position = known + chain.count, INT * batch

        def copy_positions(to: int, first: int, last: int) -> None:
            self._cuda.copy(to, self._order.address + first * position, (last - first) * position)

        def enqueue() -> None:
            copy_positions(self._predict_now, known, stop)
            copy_positions(self._later_now, stop, group.stop)
            if local:
                copy_positions(self._drawn_now, group.start, known)
                drawn = self._tokens.address + group.start * self._token_bytes
                self._cuda.copy(self._drawn_tokens, drawn, (known - group.start) * self._token_bytes)
            else:
                copy_positions(self._rest_now, group.stop, config.tokens)
            backbone.enqueue(addresses)

        return enqueue
