"""The time that a generator spends in each of its engines."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from runtime.generator import Generator
from runtime.loops.host_loop import Engines
from runtime.model.engine_spec import DEVICE
from runtime.model.families import loop_specs


class EngineClock:
    """An engine or a loop that adds up the seconds spent in its calls. Several threads may call it.

    Attributes:
        seconds: The sum; it can be set.
    """

    def __init__(self, timed: Callable[..., Any], total: EngineClock | None = None) -> None:
        """`timed` is called with the same arguments. The seconds are added to those of `total`, if it is given."""
        self._timed, self._total = timed, total or self
        self._adding, self.seconds = threading.Lock(), 0.0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the engine or the loop."""
        started = time.perf_counter()
        result = self._timed(*arguments, **named)
        seconds = time.perf_counter() - started
        with self._total._adding:
            self._total.seconds += seconds
        return result


def with_clocks(generator: Generator) -> tuple[Generator, Mapping[str, EngineClock]]:
    """Return a generator that measures its engines, or its loop as `DEVICE` where that runs on a device.

    The seconds of engines that run at the same time, in lanes, are added up.

    Returns:
        The generator, which takes the place of the given one and closes it, and the clocks by the engine's name.
    """
    manifest, description = generator.manifest, generator.description
    close, tokenizer = generator.close, generator.tokenizer
    if generator.on_host:
        engines = {field.name: getattr(generator.engines, field.name) for field in dataclasses.fields(Engines)}
        clocks = {name: EngineClock(engine) for name, engine in engines.items() if engine is not None}
        own = loop_specs(manifest.model, clocks)
        lanes = [
            Engines(**{name: EngineClock(getattr(lane, name), clocks[name]) for name in own})
            for lane in generator.lanes
        ]
        timed = Engines(**clocks)
        first_pass = generator.first_pass
        timed_generator = Generator(
            manifest, timed, description, close, lanes=lanes, tokenizer=tokenizer, first_pass=first_pass
        )
        return timed_generator, clocks
    clocks = {DEVICE: EngineClock(generator.loop)}
    return Generator(manifest, generator.engines, description, close, clocks[DEVICE], tokenizer=tokenizer), clocks
