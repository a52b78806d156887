"""Engines that return a value which is not finite."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from runtime.loops.host_loop import Engines
from runtime.model.engine_spec import Array


def with_bad_value(call: Callable[..., tuple[Array, ...]], value: float, at: int) -> Callable[..., tuple[Array, ...]]:
    """An engine whose call number `at`, counted from 0, has one value that is not finite in its first output."""
    calls = -1

    def engine(**inputs: Any) -> tuple[Array, ...]:
        nonlocal calls
        calls += 1
        first, *others = call(**inputs)
        if calls == at:
            first = first.copy()
            first.reshape(-1)[first.size // 2] = value
        return (first, *others)

    return engine


def broken(engines: Engines, name: str, value: float, at: int) -> Engines:
    return dataclasses.replace(engines, **{name: with_bad_value(getattr(engines, name), value, at)})
