"""Lines about a dataset for a person, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable

_MAX_WARNINGS = 10


def print_lines(lines: Iterable[str]) -> None:
    """Print what was found in a dataset on standard error."""
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def print_warnings(warnings: Iterable[str]) -> None:
    """Print the first ten different warnings on standard error, and how many more there are."""
    different = list(dict.fromkeys(warnings))
    for warning in different[:_MAX_WARNINGS]:
        print(warning, file=sys.stderr)
    if len(different) > _MAX_WARNINGS:
        print(f"and {len(different) - _MAX_WARNINGS} more warnings like these", file=sys.stderr)
