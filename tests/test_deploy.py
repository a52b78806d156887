"""The files of `deploy/` fit the command, the paths and the packages that they name."""

from __future__ import annotations

import configparser
import importlib.metadata
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from typing import Any

import click
import pytest
import tomllib
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from runtime.cli.serve import serve
from runtime.service.operations import LIVE, READY
from runtime.service.server import SECONDS_TO_FAIL

ROOT = pathlib.Path(__file__).parent.parent
DOCKERFILE, MANIFEST, UNIT = (ROOT / "deploy" / name for name in ("Dockerfile", "kubernetes.yaml", "mar-serve.service"))
BASE_IMAGE_MB = 150  # python:3.11-slim, unpacked: 120 to 150 MB in published listings of `docker images`


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile: name and arguments."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line and not line.startswith("#")]
    return [
        (name, rest)
        for name, _, rest in (line.partition(" ") for line in "\n".join(lines).replace("\\\n", "").splitlines())
    ]


def instruction(name: str) -> str:
    """The arguments of the last instruction of a name."""
    return [rest for found, rest in instructions() if found == name][-1]


def options(arguments: list[str]) -> dict[str, Any]:
    """The options of `mar serve` with these arguments. Wrong ones raise."""
    return serve.make_context("serve", list(arguments)).params  # it empties the list


def hadolint(dockerfile: str) -> subprocess.CompletedProcess[str]:
    command = [pathlib.Path(sys.executable).with_name("hadolint"), "-"]
    return subprocess.run(command, input=dockerfile, capture_output=True, text=True, check=False)


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    checked = hadolint(DOCKERFILE.read_text())
    assert (checked.returncode, checked.stdout) == (0, "")
    assert hadolint(DOCKERFILE.read_text().replace("WORKDIR /source", "WORKDIR source")).returncode == 1


def test_the_steps_of_the_image_name_what_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied = {
        source
        for name, rest in instructions()
        if name == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    }
    assert all((ROOT / source).exists() for source in copied)
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    assert copied >= packages | {"pyproject.toml", "constraints.txt", project["project"]["readme"]}
    extras = re.search(r"'\.\[(.+)\]'", instruction("RUN"))
    assert extras is not None
    assert set(extras[1].split(",")) == {"cpu", "serve"} <= set(project["project"]["optional-dependencies"])


def test_the_image_serves_on_its_port_as_a_user_without_rights() -> None:
    served = options([*json.loads(instruction("ENTRYPOINT"))[2:], *json.loads(instruction("CMD"))])
    assert (served["host"], str(served["port"])) == ("0.0.0.0", instruction("EXPOSE"))
    assert f"http://127.0.0.1:{served['port']}{READY}'" in instruction("HEALTHCHECK")
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", instruction("USER"))
    from_the_end = [name for name, _ in instructions()][::-1]
    assert from_the_end.index("USER") < from_the_end.index("FROM")


def installed_bytes(name: str, extras: set[str], seen: set[str]) -> int:
    """The size of an installed distribution and of everything that it needs."""
    seen.add(canonicalize_name(name))
    distribution = importlib.metadata.distribution(name)
    size = sum(
        path.stat().st_size for file in distribution.files or () if (path := pathlib.Path(str(file.locate()))).is_file()
    )
    for needed in map(Requirement, distribution.requires or ()):
        wanted = needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras | {""})
        if wanted and canonicalize_name(needed.name) not in seen:
            size += installed_bytes(needed.name, needed.extras, seen)
    return size


def test_the_image_has_less_than_400_mb() -> None:
    seen = set[str]()
    size = installed_bytes("mar-runtime", {"cpu", "serve"}, seen)
    assert {"onnxruntime", "numpy", "starlette", "uvicorn"} <= seen
    assert "torch" not in seen
    assert 100e6 < size < (400 - BASE_IMAGE_MB) * 1e6


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    """The objects of the manifest, by kind."""
    return {each["kind"]: each for each in yaml.safe_load_all(MANIFEST.read_text())}


@pytest.fixture(scope="module")
def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["Deployment"]["spec"]["template"]["spec"]
    return found


def test_the_probes_ask_the_paths_and_the_port_of_the_service(manifest: dict[str, Any], pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    paths = {"startupProbe": READY, "readinessProbe": READY, "livenessProbe": LIVE}
    assert {name: container[name]["httpGet"] for name in paths} == {
        name: {"path": path, "port": "http"} for name, path in paths.items()
    }
    assert container["ports"] == [{"name": "http", "containerPort": options(container["args"])["port"]}]
    (port,) = manifest["Service"]["spec"]["ports"]
    assert port["targetPort"] == "http"
    labels = manifest["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert (
        manifest["Service"]["spec"]["selector"] == manifest["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    )


def test_a_pod_that_ends_has_the_time_to_drain(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    sleep = container["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep[0] == "sleep"
    drain = options(container["args"])["drain_s"]
    assert pod["terminationGracePeriodSeconds"] > int(sleep[1]) + drain + SECONDS_TO_FAIL


def test_a_pod_has_no_rights_and_the_user_of_the_image(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert f"{security['runAsUser']}:{security['runAsGroup']}" == instruction("USER")
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert set(container["resources"]) == {"requests", "limits"}


def test_the_artifact_and_the_keys_are_on_volumes_of_the_pod(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert {mount["name"] for mount in mounts.values()} == {volume["name"] for volume in pod["volumes"]}
    served = options(container["args"])
    assert served["artifacts"] == ("/artifact",)
    for path in (served["artifacts"][0], str(served["api_keys"].parent)):
        assert mounts[path]["readOnly"] is True


@pytest.fixture(scope="module")
def unit() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # names keep their capitals
    parser.read(UNIT)
    return parser["Service"]


def test_the_unit_starts_the_service_and_gives_it_the_time_to_drain(unit: configparser.SectionProxy) -> None:
    program, command, *arguments, extra = shlex.split(unit["ExecStart"])
    assert (program, command, extra) == ("/opt/mar/bin/mar", "serve", "$SERVE_OPTIONS")
    assert unit.getint("TimeoutStopSec") > options(arguments)["drain_s"] + SECONDS_TO_FAIL
    assert unit["KillSignal"] == "SIGTERM"


def test_the_unit_names_the_variables_of_the_command() -> None:
    variables = {str(each.envvar) for each in serve.params if isinstance(each, click.Option) and each.envvar}
    assert set(re.findall(r"\bMAR_[A-Z_]+\b", UNIT.read_text())) == variables | {"MAR_LOG_LEVEL"}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="this machine has no systemd-analyze")
def test_systemd_finds_nothing_in_the_unit(tmp_path: pathlib.Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/mar/bin/mar", sys.executable))  # it wants the program
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
