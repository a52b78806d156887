"""Who works on the items of a task.

A *task* is opened once by each worker, for example to load an artifact, and then called with one item after another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

OpenTask = Callable[[], AbstractContextManager[Callable[[Item], Result]]]


@dataclasses.dataclass(frozen=True)
class Workers:
    """Who works.

    Attributes:
        count: The number of workers. None: as many as the processors of the cluster allow, or its GPUs.
        threads: The processor threads of each worker.
        gpu: Whether each worker gets a GPU of its own from Ray.
        address: The address of a Ray cluster; None: this machine.
    """

    count: int | None = 1
    threads: int = 1
    gpu: bool = False
    address: str | None = None

    @classmethod
    def of_this_machine(cls, count: int, threads: int, gpu: bool = False) -> Workers:
        """Return workers that share a number of processor threads."""
        return cls(count, max(1, threads // count), gpu)

    @property
    def in_this_process(self) -> bool:
        """Whether the only worker is this process, which needs no Ray."""
        return self.count == 1 and self.address is None
