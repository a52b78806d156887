"""The pinned versions, their hashes, and the list of dependencies that is shipped beside the wheel."""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import re
import subprocess
import sys

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parent.parent
# Those of the Makefile.
CI_EXTRAS = ("cpu", "openvino", "ray", "prompt", "train", "evaluate", "export", "text", "dev", "docs", "release")


def pins(file: str) -> dict[str, tuple[str, str]]:
    """Name -> version and marker."""
    lines = re.sub(r" \\\n\s+--hash=\S+", "", (ROOT / file).read_text()).splitlines()
    requirements = [Requirement(line) for line in lines]
    assert all(str(requirement.specifier).startswith("==") for requirement in requirements)
    return {
        canonicalize_name(each.name): (str(each.specifier).removeprefix("=="), str(each.marker))
        for each in requirements
    }


def hashes() -> dict[str, list[str]]:
    text = (ROOT / "requirements.txt").read_text().replace("\\\n", "")
    return {
        canonicalize_name(re.split(r"[=; ]", line)[0]): re.findall(r"--hash=sha256:([0-9a-f]{64})\b", line)
        for line in text.splitlines()
    }


def test_every_pinned_version_has_the_hashes_of_its_files() -> None:
    """`make lock` writes them."""
    locked = pins("requirements.txt")
    version, marker = locked["torch"]
    assert locked | {"torch": (version.removesuffix("+cpu"), marker)} == pins("constraints.txt")
    assert [name for name, found in hashes().items() if not found] == []


def test_everything_that_ci_installs_is_pinned() -> None:
    pinned, waiting, seen = pins("constraints.txt"), [("mar-runtime", extra) for extra in CI_EXTRAS], set[str]()
    while waiting:
        name, extra = waiting.pop()
        seen.add(f"{name}[{extra}]")
        for line in importlib.metadata.requires(name) or ():
            needed = Requirement(line)
            if needed.marker is not None and not needed.marker.evaluate({"extra": extra}):
                continue
            child = canonicalize_name(needed.name)
            assert child in pinned, f"{name} needs {line}"
            for child_extra in ("", *needed.extras):
                if f"{child}[{child_extra}]" not in seen:
                    waiting.append((child, child_extra))


def test_the_list_of_dependencies_names_every_pinned_version_and_its_hashes(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "bom.json"
    command = [
        pathlib.Path(sys.executable).with_name("cyclonedx-py"),
        *("requirements", ROOT / "requirements.txt", "--pyproject", ROOT / "pyproject.toml"),
        *("--output-reproducible", "--output-format", "JSON", "--output-file", out),
    ]
    subprocess.run(command, check=True, capture_output=True)
    bom = json.loads(out.read_text())
    assert bom["bomFormat"] == "CycloneDX"
    assert bom["metadata"]["component"]["name"] == "mar-runtime"
    components = {canonicalize_name(each["name"]): each for each in bom["components"]}
    assert {name: each["version"] for name, each in components.items()} == {
        name: version for name, (version, _) in pins("requirements.txt").items()
    }
    assert "sha256" in json.dumps(components["numpy"]).lower().replace("-", "")
