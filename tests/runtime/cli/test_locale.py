"""The locale: text files are UTF-8 whatever it is, and letters that it lacks are escaped when printed."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

from tests.helpers.damaged_artifacts import change_manifest, read_manifest

_LATIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "latin-1"}


def test_letters_beyond_the_locale_are_printed_escaped(artifact_copy: pathlib.Path) -> None:
    classes = len(
        read_manifest(artifact_copy)["class_names"] or range(read_manifest(artifact_copy)["model"]["class_num"])
    )
    change_manifest(artifact_copy, "class_names", ["日本"] * classes)
    manifest = artifact_copy / "manifest.json"
    manifest.write_bytes(b"\xef\xbb\xbf" + manifest.read_bytes())  # a byte order mark
    command = [sys.executable, "-m", "runtime.cli", "inspect", str(artifact_copy)]
    done = subprocess.run(command, env={**os.environ, **_LATIN}, capture_output=True, check=True)
    assert b"0 \\u65e5\\u672c" in done.stdout
    assert done.stderr == b""
