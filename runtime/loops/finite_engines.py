"""Engines for the loop on the host that stop an image at the first value that is not finite.

NaN and infinity do not always reach the image: ONNX Runtime and OpenVINO make numbers of them when they quantize to
int8 or fp8, and some of their operators lose NaN; a comparison, such as that which chooses a code, loses it everywhere.
So every array that the loop holds between two engines is checked, a millisecond for 16 MiB. A GPU would have to wait
for such a check: there the tokens are checked when all are done.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from runtime.checks import check_finite
from runtime.loops.host_loop import Engines
from runtime.model.engine_spec import BACKBONE, CONDITIONING, DENOISE, Array, Engine
from runtime.model.himar_engines import BACKBONE2, CONDITIONING2, DENOISE2
from runtime.model.recap_engines import RECAP_ENGINES

_MAKER_OF_TOKENS = {BACKBONE: DENOISE, **dict.fromkeys(RECAP_ENGINES, DENOISE), BACKBONE2: DENOISE2}
"""For each backbone, the engine that makes the tokens it reads."""


def finite_engines(engines: Engines) -> Engines:
    """Return engines that raise `BackendError` if z, a modulation or the tokens of an iteration are not finite.

    The tokens of the last iteration reach no engine, so the caller of the loop checks them.
    """

    def checked(name: str) -> Engine | None:
        engine: Engine | None = getattr(engines, name)

        def call(**inputs: Array) -> tuple[Array, ...]:
            assert engine is not None
            if name in _MAKER_OF_TOKENS:
                check_finite(inputs["tokens"], f"engine {_MAKER_OF_TOKENS[name]}")
            outputs = engine(**inputs)
            for output in outputs:
                check_finite(output, f"engine {name}")
            return outputs

        return engine and call

    names = (*_MAKER_OF_TOKENS, CONDITIONING, CONDITIONING2)
    replaced: dict[str, Any] = {name: checked(name) for name in names}
    return dataclasses.replace(engines, **replaced)
