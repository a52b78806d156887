"""An artifact whose engines are loaded: what `Generator.load` makes a generator from."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import FIRST_PASS, TEXT_TOKENIZER, Manifest
from runtime.artifact.signatures import verify_signature
from runtime.backends import Backend, available_threads, open_backend, uses_gpu
from runtime.errors import BackendError
from runtime.loops.host_loop import Engines
from runtime.loops.lanes import share_threads
from runtime.model.engine_spec import TEXT_ENCODER, Engine
from runtime.model.families import loop_specs
from runtime.requests.prompt_tokenizer import PromptTokenizer
from runtime.sampling.plan import Float, PlanLoop


@dataclasses.dataclass(frozen=True)
class LoadedArtifact:
    """The engines of an artifact, and what else a generator takes; the fields are those of `Generator.__init__`."""

    manifest: Manifest
    engines: Engines
    description: str
    close: Callable[[], None]
    loop: PlanLoop | None
    lanes: Sequence[Engines]
    tokenizer: PromptTokenizer | None
    first_pass: Float | None


def load_artifact(
    artifact: str | pathlib.Path,
    backend: str,
    device: str | None,
    threads: int | None,
    cuda_graphs: bool,
    trusted_keys: Sequence[str | pathlib.Path] | None,
    split_batches: bool,
) -> LoadedArtifact:
    """Load an artifact; the arguments and the errors are those of `Generator.load`."""
    opened = Artifact(artifact)
    if trusted_keys is not None:
        verify_signature(opened, trusted_keys)
    manifest, lanes = opened.manifest, list[Engines]()
    with contextlib.ExitStack() as unless_loaded:
        with opened.verifying():
            runner = open_backend(backend, device, threads, cuda_graphs)
            unless_loaded.callback(runner.close)
            _check_precision(runner, opened)
            engines = Engines(**_load_engines(runner, opened, uses_gpu(backend, device)))
            loop = runner.loop(manifest.model)
            if split_batches and loop is None:
                for lane_threads in _threads_of_lanes(manifest, threads):
                    lane = open_backend(backend, device, lane_threads)
                    unless_loaded.callback(lane.close)
                    lanes.append(Engines(**_load_own(lane, opened)))
        tokenizer, first_pass = _tokenizer(opened), _first_pass(opened)
        close = unless_loaded.pop_all().close
        return LoadedArtifact(manifest, engines, runner.description, close, loop, lanes, tokenizer, first_pass)


def _check_precision(backend: Backend, artifact: Artifact) -> None:
    """Raise `BackendError` if a backend has no arithmetic for the precision of an artifact."""
    precision = artifact.manifest.precision
    if precision not in backend.precisions:
        raise BackendError(
            f"{artifact.path} is in {precision}, but {backend.description} has "
            f"{', '.join(backend.precisions)}; export it in one of these, or use another backend"
        )


def _load_engines(backend: Backend, artifact: Artifact, on_gpu: bool) -> dict[str, Engine]:
    """Load all engines of an artifact. On a processor several at once; the context of a GPU belongs to one thread."""
    names = [*artifact.manifest.specs]
    if on_gpu:
        return {name: backend.load(artifact, name) for name in names}
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(functools.partial(backend.load, artifact), names), strict=True))


def _load_own(backend: Backend, artifact: Artifact) -> dict[str, Engine]:
    """Load the engines that the sampling loop calls."""
    own = loop_specs(artifact.manifest.model, artifact.manifest.engines)
    return {name: backend.load(artifact, name) for name in own}


def _tokenizer(artifact: Artifact) -> PromptTokenizer | None:
    """Return the tokenizer of prompts; None if the artifact has no text encoder."""
    if TEXT_ENCODER not in artifact.manifest.engines:
        return None
    return PromptTokenizer(artifact.verified_bytes(TEXT_TOKENIZER))


def _first_pass(artifact: Artifact) -> Float | None:
    """Return z of the first pass of each class, float32 [classes + 1, L, C], mapped; None if the artifact has none."""
    config = artifact.manifest.model
    if FIRST_PASS not in artifact.manifest.files:
        return None
    values: Float = np.frombuffer(artifact.verified_map(FIRST_PASS), "<f4")
    return values.reshape(-1, config.tokens, config.z_channels)


def _threads_of_lanes(manifest: Manifest, threads: int | None) -> list[int]:
    """Return the number of threads of each lane of a generator with `threads`, see `runtime.loops.lanes`."""
    return share_threads(
        threads or available_threads(), sum(map(manifest.graph_bytes, loop_specs(manifest.model, manifest.engines)))
    )
