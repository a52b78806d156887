"""Lines about a dataset for a person, by the log."""

from __future__ import annotations

from collections.abc import Iterable

from runtime.log import LOG

_MAX_WARNINGS = 10


def print_lines(lines: Iterable[str]) -> None:
    """Tell what was found in a dataset."""
    for line in lines:
        LOG.info(line)


def print_warnings(warnings: Iterable[str]) -> None:
    """Tell the first ten different warnings, and how many more there are."""
    different = list(dict.fromkeys(warnings))
    for warning in different[:_MAX_WARNINGS]:
        LOG.warning(warning)
    if len(different) > _MAX_WARNINGS:
        LOG.warning(f"and {len(different) - _MAX_WARNINGS} more warnings like these")
