"""The backends of the runtime."""

from __future__ import annotations

import pathlib

from benchmarks.peer_libraries.work import Load, Work
from runtime.artifact.artifact_folder import Artifact
from runtime.backends import open_backend


def backend_engines(work: Work) -> Load:
    """Run the engines as the runtime does, on the backend with the peer's name."""
    backend, artifact = open_backend(work.peer, "cpu", work.threads), Artifact(pathlib.Path(work.artifact))
    return lambda spec: backend.load(artifact, spec.name)
