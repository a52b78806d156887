"""What engines on a processor return has the shapes of their specs, whatever the library does."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.backends.cpu import CpuBackend
from runtime.errors import BackendError
from runtime.generator import Generator
from runtime.loops.host_loop import Engines
from runtime.model.engine_spec import BACKBONE, CONDITIONING, DENOISE, ENGINES, Array, Engine
from runtime.model.families import engine_specs
from tests.helpers.fake_generators import CONFIG, fake_generator


class FakeBackend(CpuBackend):
    """A library with the engines of another generator, of which one loses rows of its first output from a call on."""

    def __init__(self, broken: str = "", lost: slice = slice(0), calls: int = 0) -> None:
        super().__init__("fake", 1)
        self.broken, self.lost, self.right_calls = broken, lost, calls

    def engine(self, name: str, exact: Engine) -> Engine:
        spec = engine_specs(CONFIG)[name]

        def run(arrays: Sequence[Array]) -> Sequence[Array]:
            first, *others = exact(**dict(zip([tensor.name for tensor in spec.inputs], arrays, strict=True)))
            if name == self.broken:
                self.right_calls -= 1
                first = first[self.lost] if self.right_calls < 0 else first
            return first, *others

        return self._engine(spec, run, lambda error: f"fake: {error}")

    def generate(self) -> NDArray[np.float32]:
        exact = fake_generator()
        engines = Engines(**{name: self.engine(name, getattr(exact.engines, name)) for name in ENGINES})
        return Generator(exact.manifest, engines, self.description).generate([0, 1]).latents


def test_engines_with_the_shapes_of_their_specs_pass() -> None:
    np.testing.assert_array_equal(FakeBackend().generate(), fake_generator().generate([0, 1]).latents)


@pytest.mark.parametrize(("name", "output"), [(BACKBONE, "z"), (CONDITIONING, "modulation"), (DENOISE, "next_x")])
@pytest.mark.parametrize("lost", [slice(0), slice(-1)], ids=["all rows", "the last row"])
@pytest.mark.parametrize("calls", [0, 2], ids=["at first", "later"])
def test_a_loop_ends_where_an_engine_loses_rows(name: str, output: str, lost: slice, calls: int) -> None:
    """Such as OpenVINO's under limited instructions: without z the loop divided by its number of rows."""
    with pytest.raises(BackendError) as refused:
        FakeBackend(name, lost, calls).generate()
    shapes = r"\[(\d+)((?:, \d+)+)\] where \[(\d+)\2\] is right; use another backend"
    found = re.fullmatch(f"engine {name} failed in fake: it gives {output} {shapes}", str(refused.value))
    assert found is not None, refused.value
    assert int(found[1]) == (0 if lost.stop == 0 else int(found[3]) - 1)


def test_another_shape_is_not_what_earlier_inputs_gave() -> None:
    """The shapes are computed once for each set of shapes of inputs, not once for an engine."""
    engine = FakeBackend().engine(BACKBONE, fake_generator().engines.backbone)
    for count in (1, 3, 1):
        (z,) = engine(**_backbone_inputs(count))
        assert z.shape == (2 * count, CONFIG.z_channels)


def _backbone_inputs(count: int) -> dict[str, Array]:
    """Inputs of one image with guidance, of which `count` tokens are predicted."""
    positions = np.arange(CONFIG.tokens)[:, None]
    return {
        "tokens": np.zeros((0, 1, CONFIG.token_channels), np.float32),
        "visible": positions[:0],
        "predict": positions[:count],
        "rest": positions[count:],
        "labels": np.zeros(2, np.int64),
    }
