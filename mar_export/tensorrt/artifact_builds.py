"""An artifact's graphs to engines for a device, kept in the artifact and listed in its manifest."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mar_export.tensorrt.engine_builder import BuilderFlags, Progress, TensorRTBuilder
from mar_export.tensorrt.optimization_profiles import Range, axis_ranges, profile
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.engine_builds import Build
from runtime.artifact.manifest import MANIFEST, FileEntry
from runtime.errors import RequestError
from runtime.files import replacing, sha256, write_json
from runtime.gpu.current_gpu import precisions_of
from runtime.sampling.constraints import check_no_kv_cache
from runtime.sampling.plan import Plan, build_plan
from runtime.sampling.presets import PRESETS


def wanted_plans(artifact: Artifact, settings: Mapping[str, Any]) -> list[Plan]:
    """What engines are built to run: the plans of `settings`, or those of the artifact and of all presets.

    A plan for a whole image, and one for every number of tokens that an edit may begin with.
    """
    manifest = artifact.manifest
    named = any(value is not None for value in settings.values())
    wanted = [settings] if named else [{}, *({"preset": name} for name in (*PRESETS, *manifest.presets))]
    samplings, tokens = [manifest.resolve_sampling(each) for each in wanted], manifest.model.tokens
    return [build_plan(tokens, sampling, known) for sampling in samplings for known in range(tokens)]


def build_engines(
    artifact: Artifact,
    builder: TensorRTBuilder,
    plans: Sequence[Plan],
    batch: Range,
    flags: BuilderFlags,
    timing_cache: pathlib.Path | None,
    force: bool,
    say: Callable[[str], None],
    progress: Progress | None,
) -> None:
    """Build every engine of `artifact` that is not there yet, and list it in the manifest.

    A build takes the place of an older one of the same engine for the same library and GPUs. Raises
    `BackendError`, after which the artifact is as it was before the engine that failed.
    """
    check_no_kv_cache(artifact.manifest.model, "the loop on a GPU")
    artifact.verify()
    for architecture in builder.architectures:
        if artifact.manifest.precision not in precisions_of(architecture):
            raise RequestError(
                f"{artifact.path} is in {artifact.manifest.precision}, but {architecture} has products in "
                f"{', '.join(precisions_of(architecture))} only"
            )
    ranges = axis_ranges(plans, batch)
    for name, spec in artifact.manifest.specs.items():
        manifest = artifact.manifest
        graph = artifact.engine_file(name)
        build = Build(
            engine=name,
            target=builder.target,
            graph_sha256=manifest.graph_sha256(name),
            library=builder.version,
            architectures=builder.architectures,
            precision=manifest.precision,
            profile=profile(spec, ranges, batch),
            flags=flags.told(),
        )
        if build in manifest.builds and not force:
            say(f"{name}: built already")
            continue
        plan = builder.build(graph, build.profile, flags, timing_cache, progress)
        file = artifact.path / build.file
        if build in manifest.builds:  # not listed while it is neither the old file nor the new one that is
            artifact = _without(artifact, [build])
        with replacing(file) as temporary:
            temporary.write_bytes(plan)
        artifact = _listed(artifact, build)
        say(f"{name}: {file.stat().st_size / 2**20:.1f} MiB in {build.file}")


def _listed(artifact: Artifact, build: Build) -> Artifact:
    """The artifact once its manifest lists `build`, and what that takes the place of is gone."""
    replaced = [other for other in artifact.manifest.builds if other.replaced_by(build)]
    file = artifact.path / build.file
    return _without(artifact, replaced, (build, FileEntry(file.stat().st_size, sha256(file))))


def _without(artifact: Artifact, builds: Sequence[Build], instead: tuple[Build, FileEntry] | None = None) -> Artifact:
    """The artifact once its manifest lists `instead` in place of `builds`, and their files are gone."""
    manifest = artifact.manifest
    gone = {build.file for build in builds}
    files = {name: entry for name, entry in manifest.files.items() if name not in gone}
    kept = tuple(build for build in manifest.builds if build not in builds)
    if instead is not None:
        build, entry = instead
        files, kept = {**files, build.file: entry}, (*kept, build)
    write_json(artifact.path / MANIFEST, dataclasses.replace(manifest, files=files, builds=kept).to_dict())
    for name in gone - files.keys():
        (artifact.path / name).unlink(missing_ok=True)
    return Artifact(artifact.path)
