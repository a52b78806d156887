"""The time that a generator spends in each of its engines."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

from runtime.generator import Generator
from runtime.loops.host_loop import Engines
from runtime.model.engine_spec import DEVICE


class EngineClock:
    """An engine or a loop that adds up the seconds spent in its calls.

    Attributes:
        seconds: The sum; it can be set.
    """

    def __init__(self, timed: Callable[..., Any]) -> None:
        """`timed` is called with the same arguments."""
        self._timed, self.seconds = timed, 0.0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the engine or the loop."""
        started = time.perf_counter()
        result = self._timed(*arguments, **named)
        self.seconds += time.perf_counter() - started
        return result


def with_clocks(generator: Generator) -> tuple[Generator, Mapping[str, EngineClock]]:
    """Return a generator that measures its engines, or its loop as `DEVICE` where that runs on a device.

    Returns:
        The generator, which takes the place of the given one and closes it, and the clocks by the engine's name.
    """
    manifest, description = generator.manifest, generator.description
    if generator.on_host:
        engines = {field.name: getattr(generator.engines, field.name) for field in dataclasses.fields(Engines)}
        clocks = {name: EngineClock(engine) for name, engine in engines.items() if engine is not None}
        return Generator(manifest, Engines(**clocks), description, generator.close), clocks
    clocks = {DEVICE: EngineClock(generator.loop)}
    return Generator(manifest, generator.engines, description, generator.close, clocks[DEVICE]), clocks
