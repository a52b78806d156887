"""Builds of the engines of an artifact, stored in the artifact and listed in its manifest."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mar_export.tensorrt.engine_builder import BuilderFlags, Progress, TensorRTBuilder
from mar_export.tensorrt.optimization_profiles import Range, axis_ranges, input_shapes
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.engine_builds import Build
from runtime.artifact.manifest import MANIFEST, FileEntry
from runtime.errors import RequestError
from runtime.files import replacing, sha256, write_json
from runtime.gpu.current_gpu import precisions_of
from runtime.sampling.constraints import check_no_kv_cache
from runtime.sampling.plan import Plan, build_plan
from runtime.sampling.presets import PRESETS


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """The options of a build.

    Attributes:
        batch: The minimum, optimum and maximum of the number of images that are generated together.
        flags: The flags of the builder.
        timing_cache: A file with kernel timings of earlier builds, which is updated; None for no cache.
        force: Whether engines that are built already are built again.
    """

    batch: Range
    flags: BuilderFlags = dataclasses.field(default_factory=BuilderFlags)
    timing_cache: pathlib.Path | None = None
    force: bool = False


def plans_to_build(artifact: Artifact, settings: Mapping[str, Any]) -> list[Plan]:
    """Return the plans that the engines of an artifact must be able to run.

    For each of the settings there is a plan of a complete image, and one of an edit with each number of known tokens.

    Args:
        artifact: The artifact.
        settings: The sampling settings of a request. If all are None, the artifact's own settings and all presets are
            used.
    """
    manifest = artifact.manifest
    named = any(value is not None for value in settings.values())
    requests = [settings] if named else [{}, *({"preset": name} for name in (*PRESETS, *manifest.presets))]
    samplings, tokens = [manifest.resolve_sampling(request) for request in requests], manifest.model.tokens
    return [build_plan(tokens, sampling, known) for sampling in samplings for known in range(tokens)]


def build_engines(
    artifact: Artifact,
    builder: TensorRTBuilder,
    plans: Sequence[Plan],
    options: BuildOptions,
    report: Callable[[str], None],
    progress: Progress | None = None,
) -> None:
    """Build every engine of an artifact that is not built yet, and list it in the manifest.

    A new build replaces an older one of the same engine for the same library and GPUs.

    Args:
        artifact: The artifact, which is changed.
        builder: The builder of one target.
        plans: The plans that the engines must be able to run, from `plans_to_build`.
        options: The options of the build.
        report: Called with a line of text for each engine.
        progress: Called with the progress of each build.

    Raises:
        BackendError: An engine cannot be built. The artifact has the engines that were built before it.
        RequestError: The model's attention or precision is not supported on the GPU.
    """
    _check_supported(artifact, builder)
    ranges = axis_ranges(plans, options.batch)
    for name, spec in artifact.manifest.specs.items():
        build = Build(
            engine=name,
            target=builder.target,
            graph_sha256=artifact.manifest.graph_sha256(name),
            library=builder.version,
            architectures=builder.architectures,
            precision=artifact.manifest.precision,
            profile=input_shapes(spec, ranges, options.batch),
            flags=options.flags.changed(),
        )
        if build in artifact.manifest.builds and not options.force:
            report(f"{name}: built already")
            continue
        graph = artifact.engine_file(name)
        plan = builder.build(graph, build.profile, options.flags, options.timing_cache, progress)
        artifact = _store_build(artifact, build, plan)
        report(f"{name}: {(artifact.path / build.file).stat().st_size / 2**20:.1f} MiB in {build.file}")


def _check_supported(artifact: Artifact, builder: TensorRTBuilder) -> None:
    """Check the artifact's files, and that the GPUs of the builder can run its model and precision."""
    check_no_kv_cache(artifact.manifest.model, "the loop on a GPU")
    artifact.check_changeable()
    artifact.verify()
    for architecture in builder.architectures:
        if artifact.manifest.precision not in precisions_of(architecture):
            raise RequestError(
                f"{artifact.path} is in {artifact.manifest.precision}, but {architecture} has products in "
                f"{', '.join(precisions_of(architecture))} only"
            )


def _store_build(artifact: Artifact, build: Build, plan: Any) -> Artifact:
    """Write the file of a build, list it in the manifest, and return the changed artifact."""
    if build in artifact.manifest.builds:  # the manifest must not list it while the file is replaced
        artifact = _replace_builds(artifact, [build])
    with replacing(artifact.path / build.file) as temporary:
        temporary.write_bytes(plan)
    return _list_build(artifact, build)


def _list_build(artifact: Artifact, build: Build) -> Artifact:
    """List a build in the manifest, remove the builds that it replaces, and return the changed artifact."""
    replaced = [other for other in artifact.manifest.builds if other.replaced_by(build)]
    file = artifact.path / build.file
    return _replace_builds(artifact, replaced, (build, FileEntry(file.stat().st_size, sha256(file))))


def _replace_builds(
    artifact: Artifact, builds: Sequence[Build], addition: tuple[Build, FileEntry] | None = None
) -> Artifact:
    """Replace `builds` in the manifest with `addition`, delete their files, and return the changed artifact."""
    manifest = artifact.manifest
    removed = {build.file for build in builds}
    files = {name: entry for name, entry in manifest.files.items() if name not in removed}
    kept = tuple(build for build in manifest.builds if build not in builds)
    if addition is not None:
        build, entry = addition
        files, kept = {**files, build.file: entry}, (*kept, build)
    write_json(artifact.path / MANIFEST, dataclasses.replace(manifest, files=files, builds=kept).to_dict())
    for name in removed - files.keys():
        (artifact.path / name).unlink(missing_ok=True)
    return Artifact(artifact.path)
