"""Folders that a command makes as a whole: it replaces only what it makes itself, and another one only with `--force`.

An empty folder counts as no folder. Nothing is lost there, and people and scripts make a folder before they name it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable

from runtime.errors import RequestError


@dataclasses.dataclass(frozen=True)
class FolderKind:
    """What a command makes in a folder, and how it is told from anything else.

    Attributes:
        noun: What messages call it, without an article.
        is_one: Whether a path is a folder of this kind.
        option: The option that names the folder.
    """

    noun: str
    is_one: Callable[[pathlib.Path], bool]
    option: str = "--out"

    def check(self, folder: pathlib.Path) -> bool:
        """Check that nothing of another kind is at a path.

        Returns:
            Whether one of this kind is there.

        Raises:
            RequestError: Something of another kind is there, which even `--force` does not replace.
        """
        if is_vacant(folder):
            return False
        if not self.is_one(folder):
            raise foreign_folder(folder, self.noun, self.option)
        return True

    def another(self, folder: pathlib.Path, found: str = "") -> RequestError:
        """Return the error for a folder of this kind that only `--force` replaces; `found` may say more about it."""
        found = found or f"another {self.noun}"
        return RequestError(f"{folder} holds {found}; choose another {self.option}, or give --force to replace it")


def foreign_folder(folder: pathlib.Path, noun: str, option: str = "--out") -> RequestError:
    """Return the error for a path with something else than a command makes there, which messages call `noun`."""
    return RequestError(f"{folder} exists and is no {noun}; choose another {option}, or remove it yourself")


def is_vacant(folder: pathlib.Path) -> bool:
    """Return whether there is nothing at a path, or an empty folder."""
    with contextlib.suppress(OSError):  # of a file, or of a folder that cannot be read
        return next(folder.iterdir(), None) is None
    return not os.path.exists(folder)  # noqa: PTH110 - pathlib raises for a name that is too long
