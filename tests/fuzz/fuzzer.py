"""Runs random inputs through the surfaces, and tells those that end in a traceback, a hang, or a wrong result."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import pathlib
import random
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator

import click

from runtime.errors import MarError
from tests.fuzz.mutations import change
from tests.fuzz.surface import Surface, WrongResultError

_HANG_SECONDS = {signal.ITIMER_PROF: 60, signal.ITIMER_REAL: 600}  # of the processor, and in all on a busy machine
_ROOT = f"{pathlib.Path(__file__).parents[2]}/"

Read = Callable[[], bytes]


class _HangError(BaseException):
    """An input took too long."""


@dataclasses.dataclass
class Report:
    """How the inputs of one surface ended.

    Attributes:
        same: The number of those with the same result.
        refused: The number of those with one line for the user.
        other: The number of those with another result, where that is legitimate.
        faults: A line for each of the others, with the seed of its input.
    """

    same: int = 0
    refused: int = 0
    other: int = 0
    faults: list[str] = dataclasses.field(default_factory=list)


def fuzz_files(name: str, surface: Surface, folder: pathlib.Path, seeds: range) -> Report:
    """Make a surface in `folder`, and read it after one change of one of its files for each seed."""
    with _silent():
        surface.make(folder)
        expected = surface.read(folder)
    files = sorted({file for pattern in surface.files for file in folder.glob(pattern) if file.is_file()})
    contents = {file: file.read_bytes() for file in files}
    report = Report()
    for seed in seeds:
        random_ = random.Random(f"{name} {seed}")
        file = random_.choice(files)
        changed = change(random_, file.name, contents[file])
        file.write_bytes(changed)
        try:
            _judge(report, seed, lambda: surface.read(folder), expected, surface.exact)
        finally:
            file.write_bytes(contents[file])
    return report


def fuzz_calls(name: str, call: Callable[[random.Random], bytes], seeds: range) -> Report:
    """Call something with the arguments that each seed gives. It checks its own results."""
    report = Report()
    for seed in seeds:
        random_ = random.Random(f"{name} {seed}")
        _judge(report, seed, lambda random_=random_: call(random_), b"", exact=False)  # type: ignore[misc]
    return report


def _judge(report: Report, seed: int, read: Read, expected: bytes, exact: bool) -> None:
    try:
        with _limited(), _silent():
            result = read()
    except (MarError, click.UsageError) as error:
        message = str(error)
        if not message.strip():
            report.faults.append(f"seed {seed}: an empty message")
        report.refused += 1
    except _HangError:
        report.faults.append(f"seed {seed}: hang")
    except WrongResultError as error:
        report.faults.append(f"seed {seed}: wrong: {error}")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(_ROOT)]
        place = f"{own[-1].filename.removeprefix(_ROOT)}:{own[-1].lineno}"
        report.faults.append(f"seed {seed}: {type(error).__name__} at {place}: {str(error)[:100]!r}")
    else:
        if result == expected:
            report.same += 1
        elif exact:
            report.faults.append(f"seed {seed}: another result")
        else:
            report.other += 1


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Raise `_HangError` if the block takes too long."""

    def hang(number: int, frame: object) -> None:
        raise _HangError

    before = [(number, signal.signal(number, hang)) for number in (signal.SIGPROF, signal.SIGALRM)]
    for timer, seconds in _HANG_SECONDS.items():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer in _HANG_SECONDS:
            signal.setitimer(timer, 0)
        for number, handler in before:
            signal.signal(number, handler)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep what is printed."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
