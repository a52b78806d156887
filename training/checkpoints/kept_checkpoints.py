"""The last checkpoints of a run, each as a run folder of its own that can be exported, evaluated and resumed."""

from __future__ import annotations

import os
import pathlib
import re
import shutil

from runtime.storage.files import replacing_folder
from training.checkpoints.run_folder import CONFIG_FILE, STATE_FILE, TOKENIZER_FILE, WEIGHTS_FILE

CHECKPOINTS_FOLDER = "checkpoints"
"""The folder in that of a run."""

_FILES = (CONFIG_FILE, WEIGHTS_FILE, STATE_FILE, TOKENIZER_FILE)
_NAME = re.compile(r"step-(\d{6,12})")


def keep_checkpoint(run: pathlib.Path, step: int, keep: int) -> None:
    """Keep the checkpoint that a run has just saved, and remove the oldest ones beyond `keep`.

    The files of a run are replaced and never changed, so a kept checkpoint shares them: the newest takes no space.

    Args:
        run: The folder of the run.
        step: The step of the checkpoint.
        keep: The number of checkpoints to keep, this one included.

    Raises:
        MarError: The folder cannot be written.
    """
    folder = run / CHECKPOINTS_FOLDER
    with replacing_folder(folder / f"step-{step:06d}") as kept:
        for name in _FILES:
            if (run / name).exists():
                _link(run / name, kept / name)
    for _, old in sorted(_earlier(folder, step))[: -keep or None]:
        shutil.rmtree(old)


def _earlier(folder: pathlib.Path, step: int) -> list[tuple[int, pathlib.Path]]:
    """Return the checkpoints up to a step; later ones are of a run that was set back, and stay."""
    matches = [(_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    return [(int(match[1]), path) for match, path in matches if match and int(match[1]) <= step]


def _link(file: pathlib.Path, to: pathlib.Path) -> None:
    """Give a file a second name, or copy it where the file system has one name for a file."""
    try:
        os.link(file, to)
    except OSError:
        shutil.copyfile(file, to)
