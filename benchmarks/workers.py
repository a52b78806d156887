"""Processes that are measured in turns: one that waits is stopped, so that the others have the processor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from runtime.errors import BackendError
from runtime.storage.structured_files import parse_json


class Worker:
    """A process of a module that answers each line of JSON with one, and that is stopped between them.

    Attributes:
        started: The answer to the first line.
    """

    def __init__(self, module: str, work: Mapping[str, Any], wait_policy: str | None) -> None:
        """Start the process.

        Args:
            module: The module to run, such as `benchmarks.policy_worker`.
            work: The first line.
            wait_policy: OMP_WAIT_POLICY, how threads of OpenMP wait; None for no choice.
        """
        environment = {**os.environ, **({} if wait_policy is None else {"OMP_WAIT_POLICY": wait_policy})}
        environment.pop("OMP_NUM_THREADS", None)
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.started = self.ask(work)

    def ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Send a line and return the answer.

        Raises:
            BackendError: The process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.stdin.write(f"{json.dumps(message)}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # then there is no answer
        if not (line := self._process.stdout.readline()):
            raise BackendError(f"a process has failed with {self._process.wait()}")
        answer: dict[str, Any] = parse_json(line)
        self._process.send_signal(signal.SIGSTOP)
        return answer

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
