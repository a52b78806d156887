"""Files of tensors hold what was given, by the oldest safetensors that is allowed and by the one that is installed.

safetensors 0.8.0 writes numpy arrays that are not contiguous with their values in another order; 0.7 did not. Only
`save_weights` writes such files here (see `tests/test_structure.py`), and it makes every tensor contiguous first.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
import tomllib
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).parents[3]
OLDEST = ROOT / "out" / "oldest" / "safetensors"

WRITE_AND_READ = """
import pathlib, sys
import safetensors, torch
from training.checkpoints.checkpoint import save_weights
from training.checkpoints.tensor_files import read_with_metadata

rows = torch.arange(24.0).reshape(4, 6)
tensors = {
    "transposed": rows.T,
    "every second": rows[:, ::2],
    "one column": rows[:, 3],
    "repeated": torch.ones(1, 3).expand(4, 3),
    "permuted": torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1),
    "channels last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "half": rows.to(torch.bfloat16).T,
    "no rows": torch.empty(0, 3).T,
    "a number": torch.tensor(2.5),
}
file = pathlib.Path(sys.argv[1])
save_weights(file, tensors, {"step": "3"})
found, metadata = read_with_metadata(file, own=True)
assert metadata == {"step": "3"}
assert found.keys() == tensors.keys()
for name, tensor in tensors.items():
    assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
print(safetensors.__version__)
"""


def lower_bound() -> str:
    """The oldest version that pyproject.toml allows, the same in every extra."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    requirements = {Requirement(line) for lines in extras.values() for line in lines}
    (needed,) = {str(each.specifier) for each in requirements if each.name == "safetensors"}
    assert needed.startswith(">=")
    return needed.removeprefix(">=")


def written_and_read(file: pathlib.Path, packages: pathlib.Path | None) -> str:
    """Write tensors and read them again in a new process, with the packages of a folder first. Returns the version."""
    path = os.pathsep.join([*([str(packages)] if packages else []), str(ROOT)])
    command = [sys.executable, "-c", WRITE_AND_READ, str(file)]
    ended = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


@pytest.mark.parametrize("oldest", [True, False], ids=["oldest", "installed"])
def test_tensors_that_are_not_contiguous_are_written_as_they_are(tmp_path: pathlib.Path, oldest: bool) -> None:
    if oldest:
        assert OLDEST.is_dir(), "the oldest safetensors is not there; run `make out/oldest/safetensors`"
    version = written_and_read(tmp_path / "tensors.safetensors", OLDEST if oldest else None)
    assert (version == lower_bound()) is oldest
