"""The first pass of the backbone, which knows no tokens: computed once for a class, and kept.

Without tokens, z of a position depends on the class and the position alone; the unconditional half is one class more.
So one call, with one class and all positions ascending, serves every image of that class. Its inputs do not depend on
the batch, the order or what is kept: z has the same bits whether it was kept or is computed now.
"""

from __future__ import annotations

import collections

import numpy as np

from runtime.model.engine_spec import Engine
from runtime.model.family_config import FamilyConfig
from runtime.sampling.plan import Float, Int

CLASSES_KEPT = 32
"""The classes, the unconditional one among them, whose z is kept: 0.8 MB each in MAR-B."""


class FirstPass:
    """z of the first pass, by class: called as an engine. One thread at a time may call it."""

    def __init__(self, backbone: Engine, config: FamilyConfig, stored: Float | None = None) -> None:
        """Keep what `backbone` computes.

        Args:
            backbone: The engine of that name.
            config: The model's sizes.
            stored: z of every class, float32 [classes + 1, L, C], where the artifact has it.
        """
        self._backbone, self._config, self._stored = backbone, config, stored
        self._kept: collections.OrderedDict[int, Float] = collections.OrderedDict()  # least recently used first

    def __call__(self, labels: Int, predict: Int) -> tuple[Float]:
        """Return z of the first tokens of a batch.

        Args:
            labels: Classes, int64 [G*B], the conditional half first.
            predict: The positions of the tokens, int64 [K, B].

        Returns:
            Float32 [G*N, C], as the backbone has it.
        """
        batch = predict.shape[1]
        z = np.stack([self.of(int(label))[predict[:, n % batch]] for n, label in enumerate(labels)])  # [G*B, K, C]
        return (z.reshape(-1, batch, *z.shape[1:]).swapaxes(1, 2).reshape(-1, z.shape[-1]),)

    def of(self, label: int) -> Float:
        """Return z of all positions for a class, float32 [L, C]."""
        if self._stored is not None:
            stored: Float = self._stored[label]
            return stored
        if label not in self._kept:
            self._kept[label] = self._compute(label)
            if len(self._kept) > CLASSES_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(label)
        return self._kept[label]

    def _compute(self, label: int) -> Float:
        positions, none = np.arange(self._config.tokens)[:, None], np.empty((0, 1), np.int64)
        tokens = np.empty((0, 1, self._config.token_channels), np.float32)
        (z,) = self._backbone(tokens=tokens, visible=none, predict=positions, rest=none, labels=np.array([label]))
        return z
