"""The passes of ReCAP on the host: a full one leaves keys and values, and the local ones of its group read a prefix."""

from __future__ import annotations

import numpy as np

from runtime.model.engine_spec import Engine
from runtime.sampling.plan import Condition, Float, Int, Iteration
from runtime.sampling.recap import Group


class GroupPasses:
    """The backbone of iterations that belong to a group; between its passes it keeps the keys and values."""

    def __init__(self, full: Engine | None, local: Engine | None) -> None:
        """Call the engines `backbone_full` and `backbone_local`, which plans without groups do not need."""
        self._full, self._local = full, local
        self._encoder_cache = self._decoder_cache = np.empty((0, 0, 0), np.float32)

    def predict(self, iteration: Iteration, group: Group, tokens: Float, order: Int, condition: Condition) -> Float:
        """Return z of the tokens that an iteration predicts.

        Args:
            iteration: The iteration.
            group: Its group.
            tokens: All tokens, float32 [L, B, D], in generation order.
            order: Their positions, int64 [L, B].
            condition: What is drawn, for the guidance halves that the group computes.

        Returns:
            Float32 [G*N, C], for the guidance halves that the iteration has.
        """
        z = self._local_pass if iteration.local else self._full_pass
        rows = z(iteration, group, tokens, order, condition)
        return rows if iteration.guided else rows[: iteration.count * order.shape[1]]

    def _full_pass(self, iteration: Iteration, group: Group, tokens: Float, order: Int, condition: Condition) -> Float:
        assert self._full is not None, "the engine backbone_full is missing"
        start, stop = iteration.known, iteration.stop
        z, self._encoder_cache, self._decoder_cache = self._full(
            tokens=tokens[:start],
            visible=order[:start],
            predict=order[start:stop],
            later=order[stop : group.stop],
            rest=order[group.stop :],
            labels=condition,
        )
        return z

    def _local_pass(self, iteration: Iteration, group: Group, tokens: Float, order: Int, condition: Condition) -> Float:
        assert self._local is not None, "the engine backbone_local is missing"
        start, stop = iteration.known, iteration.stop
        buffer = len(self._encoder_cache) - group.start
        sizes = group.sizes(start, iteration.count, len(order), buffer)
        (z,) = self._local(
            tokens=tokens[group.start : start],
            drawn=order[group.start : start],
            predict=order[start:stop],
            later=order[stop : group.stop],
            buffer=np.arange(sizes["A"]),
            labels=condition,
            encoder_cache=self._encoder_cache[: sizes["E"]],
            decoder_cache=self._decoder_cache[: sizes["F"]],
        )
        return z
