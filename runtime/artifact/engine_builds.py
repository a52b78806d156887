"""Engines built for devices: the conditions under which each can run, and the choice of one.

A built engine is machine code, and its loader detects neither tampering nor most mismatches. So all conditions are in
the manifest, are part of the file's name, and are compared before the engine is loaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from runtime.errors import ArtifactError, BackendError

Shapes = tuple[tuple[int, ...], ...]
"""The smallest, the optimal and the largest shape of an input."""

TARGETS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""The Python module of each library that engines can be built for, by the target of `mar build`."""

FOLDER = "engines"
"""The folder in an artifact with the files of its builds, in a folder for each target."""


@dataclasses.dataclass(frozen=True)
class Build:
    """One engine that was built for one kind of device.

    Attributes:
        engine: The name of the engine.
        target: The library that runs it, one of `TARGETS`.
        graph_sha256: The hash of the graph that it was built from, `Manifest.graph_sha256`.
        library: The version of the library that built it.
        architectures: The GPUs that it was built for, such as `sm_87`.
        precision: The precision of weights and matrix products, as in the manifest.
        profile: The smallest, optimal and largest shape of each input, by its name.
        flags: The flags of the builder that are not the default, by the name of the option of `mar build`.
    """

    engine: str
    target: str
    graph_sha256: str
    library: str
    architectures: tuple[str, ...]
    precision: str
    profile: Mapping[str, Shapes]
    flags: Mapping[str, Any]

    def replaced_by(self, other: Build) -> bool:
        """Return whether `other` is the same engine for the same library and GPUs, and so replaces this build."""
        same = ("engine", "target", "library", "architectures", "precision")
        return all(getattr(self, name) == getattr(other, name) for name in same)

    @property
    def file(self) -> str:
        """The path of its file in the artifact, which contains a hash of all fields: no other build has the same."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{FOLDER}/{self.target}/{self.engine}-{digest[:16]}.plan"

    def to_dict(self) -> dict[str, Any]:
        """Return the build as the manifest stores it; the inverse of `from_dict`."""
        return {**dataclasses.asdict(self), "file": self.file}

    @classmethod
    def from_dict(cls, value: Any, where: str) -> Build:
        """Return the build that parsed JSON describes; `where` names the JSON in errors.

        Raises:
            ArtifactError: A value is missing, unknown or wrong.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(value, dict) or value.keys() != {*names, "file"}:
            raise ArtifactError(f"{where}: a build must have exactly the keys {', '.join(sorted(names))} and file")
        for name in ("engine", "target", "graph_sha256", "library", "precision"):
            if not isinstance(value[name], str):
                raise ArtifactError(f"{where}: {name} of a build must be text, found {value[name]!r}")
        if value["target"] not in TARGETS:
            raise ArtifactError(f"{where}: a build is for {value['target']!r}, not one of {', '.join(TARGETS)}")
        try:
            profile = {
                str(name): tuple(tuple(int(size) for size in shape) for shape in shapes)
                for name, shapes in value["profile"].items()
            }
            architectures = tuple(str(name) for name in value["architectures"])
            flags = {str(name): _check_flag(flag) for name, flag in value["flags"].items()}
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ArtifactError(f"{where}: a build of {value['engine']} is not readable ({error})") from None
        texts = {name: value[name] for name in ("engine", "target", "graph_sha256", "library", "precision")}
        build = cls(**texts, architectures=architectures, profile=profile, flags=flags)
        if build.file != value["file"]:
            raise ArtifactError(f"{where}: {value['file']} is not the file of the build it is listed with")
        if json.dumps(build.to_dict(), sort_keys=True) != json.dumps(value, sort_keys=True):  # 1.0 or "1" for 1
            raise ArtifactError(f"{where}: the build {build.file} is not as mar build writes it")
        return build


def incompatibility(build: Build, library: str | None, architecture: str | None) -> str | None:
    """Return why a build cannot run on a machine, or None if it can.

    Args:
        build: The build.
        library: The version of its library on the machine; None if it is not installed.
        architecture: The GPU of the machine, such as `sm_87`; None if there is none.
    """
    if library is None:
        return f"needs {build.target} {build.library}, which is not installed"
    if library != build.library and not (
        build.flags.get("version_compatible") and _version_numbers(library) > _version_numbers(build.library)
    ):
        return f"built with {build.target} {build.library}, here is {library}"
    if architecture is None:
        return f"needs a GPU, {' or '.join(build.architectures)}"
    if architecture not in build.architectures and not _runs_on_newer_gpus(build, architecture):
        return f"built for {', '.join(build.architectures)}, here is {architecture}"
    return None


def usable_build(
    builds: Sequence[Build], engine: str, target: str, graph_sha256: str, library: str, architecture: str
) -> Build:
    """Return the build of an engine to run on this machine.

    Builds for exactly this library version and GPU come first, then compatible ones; among equals, the newest.

    Args:
        builds: All builds of the artifact, oldest first.
        engine: The name of the engine.
        target: The library, one of `TARGETS`.
        graph_sha256: The hash of the engine's graph.
        library: The version of the library on this machine.
        architecture: The GPU of this machine, such as `sm_87`.

    Raises:
        BackendError: No build can run here. The message lists the reason for each, and the command that makes one.
    """
    usable, reasons = [], []
    for build in (build for build in builds if (build.engine, build.target) == (engine, target)):
        reason = incompatibility(build, library, architecture)
        if build.graph_sha256 != graph_sha256:
            reason = "built from another graph"
        if reason is None:
            usable.append(build)
        else:
            reasons.append(f"; {build.file}: {reason}")
    if usable:  # `max` returns the first of equals
        return max(reversed(usable), key=lambda build: (build.library == library, architecture in build.architectures))
    raise BackendError(
        f"no engine {engine} for {target} {library} on {architecture}{''.join(reasons)}; "
        f"build one with mar build ARTIFACT --target {target}"
    )


def _check_flag(value: Any) -> Any:
    if not isinstance(value, (bool, int, str)):
        raise TypeError(f"a flag is {type(value).__name__}")
    return value


def _version_numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def _runs_on_newer_gpus(build: Build, architecture: str) -> bool:
    """Whether the build also runs on all GPUs of Ampere and later, and this is one of them."""
    return build.flags.get("hardware_compatible") == "ampere+" and int(architecture.removeprefix("sm_")) >= 80
