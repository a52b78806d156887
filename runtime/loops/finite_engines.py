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
from runtime.model.recap_engines import RECAP_ENGINES


def finite_engines(engines: Engines) -> Engines:
    """Return engines that raise `BackendError` if z, a modulation or the tokens of an iteration are not finite.

    The tokens of the last iteration reach no engine, so the caller of the loop checks them.
    """

    def backbone(name: str) -> Engine | None:
        engine: Engine | None = getattr(engines, name)

        def call(**inputs: Array) -> tuple[Array, ...]:
            assert engine is not None
            check_finite(inputs["tokens"], f"engine {DENOISE}")
            outputs = engine(**inputs)
            for output in outputs:
                check_finite(output, f"engine {name}")
            return outputs

        return engine and call

    def conditioning(**inputs: Array) -> tuple[Array, ...]:
        outputs = engines.conditioning(**inputs)
        for output in outputs:
            check_finite(output, f"engine {CONDITIONING}")
        return outputs

    backbones: dict[str, Any] = {name: backbone(name) for name in (BACKBONE, *RECAP_ENGINES)}
    return dataclasses.replace(engines, conditioning=conditioning, **backbones)
