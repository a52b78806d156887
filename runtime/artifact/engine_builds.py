"""Engines built for a device: what each was built from, with and for, so that nothing else is ever loaded.

A built engine is machine code, and its loader detects neither tampering nor most mismatches. So every
condition is in the manifest, is part of the file's name, and is compared before a deserializer sees it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from runtime.errors import ArtifactError, BackendError

Shapes = tuple[tuple[int, ...], ...]  # the least, usual and most of an input

TARGETS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # target -> Python module


@dataclasses.dataclass(frozen=True)
class Build:
    """One engine for one device.

    `library` is the version of TensorRT, `architectures` the GPUs (`sm_87`), `profile` the least, usual
    and most of every input's shape, `flags` the builder's, by the name of the command's option.
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
        """Whether `other` is the same engine for the same library and GPUs."""
        same = ("engine", "target", "library", "architectures", "precision")
        return all(getattr(self, name) == getattr(other, name) for name in same)

    @property
    def file(self) -> str:
        """Where it lies in the artifact: a name that no other build can have."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()
        return f"engines/{self.target}/{self.engine}-{digest[:16]}.plan"

    def to_dict(self) -> dict[str, Any]:
        """What the manifest holds of it."""
        return {**dataclasses.asdict(self), "file": self.file}

    @classmethod
    def from_dict(cls, value: Any, where: str) -> Build:
        """The build in parsed JSON. Raises `ArtifactError`."""
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(value, dict) or value.keys() != {*names, "file"}:
            raise ArtifactError(f"{where}: a build must have exactly the keys {', '.join(sorted(names))} and file")
        for name in ("engine", "target", "graph_sha256", "library", "precision"):
            if not isinstance(value[name], str):
                raise ArtifactError(f"{where}: {name} of a build must be a text, found {value[name]!r}")
        if value["target"] not in TARGETS:
            raise ArtifactError(f"{where}: a build is for {value['target']!r}, not one of {', '.join(TARGETS)}")
        try:
            profile = {
                str(name): tuple(tuple(int(size) for size in shape) for shape in shapes)
                for name, shapes in value["profile"].items()
            }
            architectures = tuple(str(name) for name in value["architectures"])
            flags = {str(name): _flag(flag) for name, flag in value["flags"].items()}
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
    """Why `build` cannot run with this version of its library on this GPU; None if nothing is in its way."""
    if library is None:
        return f"needs {build.target} {build.library}, which is not installed"
    if library != build.library and not (
        build.flags.get("version_compatible") and _numbers(library) > _numbers(build.library)
    ):
        return f"built with {build.target} {build.library}, here is {library}"
    if architecture is None:
        return f"needs a GPU, {' or '.join(build.architectures)}"
    if architecture not in build.architectures and not _compatible(build, architecture):
        return f"built for {', '.join(build.architectures)}, here is {architecture}"
    return None


def usable_build(
    builds: Sequence[Build], engine: str, target: str, graph_sha256: str, library: str, architecture: str
) -> Build:
    """The build of `engine` to run here: of those that can, one for this very library and GPU, then the newest.

    `builds` are in the order in which they were made. Raises `BackendError`, with what is there and how to get what
    is not.
    """
    usable, reasons = [], []
    for build in (build for build in builds if (build.engine, build.target) == (engine, target)):
        why = incompatibility(build, library, architecture)
        if build.graph_sha256 != graph_sha256:
            why = "built from another graph"
        if why is None:
            usable.append(build)
        else:
            reasons.append(f"; {build.file}: {why}")
    if usable:  # of equals `max` takes the first
        return max(reversed(usable), key=lambda build: (build.library == library, architecture in build.architectures))
    raise BackendError(
        f"no engine {engine} for {target} {library} on {architecture}{''.join(reasons)}; "
        f"mar build ARTIFACT --target {target}"
    )


def _flag(value: Any) -> Any:
    if not isinstance(value, (bool, int, str)):
        raise TypeError(f"a flag is {type(value).__name__}")
    return value


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def _compatible(build: Build, architecture: str) -> bool:
    """Whether the builder was told to make it run on other GPUs, this one among them."""
    return build.flags.get("hardware_compatible") == "ampere+" and int(architecture.removeprefix("sm_")) >= 80
