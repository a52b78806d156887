"""Builds of the engines of an artifact, stored in the artifact and listed in its manifest."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mar_export.tensorrt.build_progress import BuildProgress
from mar_export.tensorrt.engine_builder import BuilderFlags, TensorRTBuilder
from mar_export.tensorrt.optimization_profiles import (
    Range,
    axis_ranges,
    group_ranges,
    input_shapes,
    latent_ranges,
    prompt_ranges,
)
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.engine_builds import FOLDER, TARGETS, Build
from runtime.artifact.manifest import MANIFEST, FileEntry
from runtime.artifact.replacement import report_stale_signature
from runtime.errors import RequestError
from runtime.gpu.current_gpu import precisions_of
from runtime.model.families import GPU_LOOP, check_supported, drawn_grids
from runtime.model.recap_engines import FULL
from runtime.sampling.constraints import is_editable, plan_for
from runtime.sampling.plan import Plan
from runtime.sampling.presets import PRESETS
from runtime.storage.files import holding_folder, replacing, sha256, write_json


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """The options of a build.

    Attributes:
        batch: The minimum, optimum and maximum of the number of images that are generated together.
        flags: The flags of the builder.
        timing_cache: A file with kernel timings of earlier builds, which is updated; None for no cache.
        force: Whether engines that are built already are built again, and replace those of other settings.
    """

    batch: Range
    flags: BuilderFlags = dataclasses.field(default_factory=BuilderFlags)
    timing_cache: pathlib.Path | None = None
    force: bool = False


# Local iterations for which engines are built if no setting says others: few and many, with and without the buffer.
_RECAP: tuple[dict[str, Any], ...] = (
    {"recap_local_iterations": 1},
    {"recap_local_iterations": 3, "recap_cache_buffer": False},
)


def plans_to_build(artifact: Artifact, settings: Mapping[str, Any]) -> list[Plan]:
    """Return the plans that the engines of an artifact must be able to run.

    For each of the settings there is a plan of a complete image, and one of an edit with each number of known tokens.

    Args:
        artifact: The artifact.
        settings: The sampling settings of a request. If all are None, the artifact's own settings and all presets are
            used. An artifact with the engines of ReCAP gets plans with local iterations too, if these name none.
    """
    manifest = artifact.manifest
    named = any(value is not None for value in settings.values())
    requests = [settings] if named else [{}, *({"preset": name} for name in (*PRESETS, *manifest.presets))]
    if FULL in manifest.engines and not manifest.resolve_sampling(requests[0]).recap:
        requests += [{**request, **recap} for request in requests for recap in _RECAP]
    samplings, model = [manifest.resolve_sampling(request) for request in requests], manifest.model
    edits = model.tokens if is_editable(model) else 1
    return [plan_for(model, sampling, known) for sampling in samplings for known in range(edits)]


def build_engines(
    artifact: Artifact,
    builder: TensorRTBuilder,
    plans: Sequence[Plan],
    options: BuildOptions,
    report: Callable[[str], None],
) -> None:
    """Build every engine of an artifact that is not built yet, and list it in the manifest.

    With `force`, a new build replaces one of the same engine for the same library and GPUs. A build of another graph
    is replaced in any case, because nothing can load it. Files of builds that a killed process left, and the manifest
    does not list, are deleted.

    Args:
        artifact: The artifact, which is changed.
        builder: The builder of one target.
        plans: The plans that the engines must be able to run, from `plans_to_build`.
        options: The options of the build.
        report: Called with a line of text for each engine.

    Raises:
        BackendError: An engine cannot be built. The artifact has the engines that were built before it.
        MarError: Another process changes the artifact.
        RequestError: The model's attention or precision is not supported on the GPU, or an engine is built with other
            settings and `force` is false.
    """
    _check_supported(artifact, builder)
    with holding_folder(artifact.path):
        artifact = Artifact(artifact.path)
        _delete_unlisted(artifact)
        model = artifact.manifest.model
        grids = range(len(drawn_grids(model)))
        ranges = [
            {**axis_ranges(plans, options.batch, grid), **prompt_ranges(model), **group_ranges(model, plans)}
            for grid in grids
        ]
        _build_missing(artifact, builder, ranges, options, report)


def _build_missing(
    artifact: Artifact,
    builder: TensorRTBuilder,
    ranges: Sequence[Mapping[str, Range]],
    options: BuildOptions,
    report: Callable[[str], None],
) -> None:
    sizes = latent_ranges(artifact.manifest.model)
    builds = [
        Build(
            engine=name,
            target=builder.target,
            graph_sha256=artifact.manifest.graph_sha256(name),
            library=builder.version,
            architectures=builder.architectures,
            precision=artifact.manifest.precision,
            profile=input_shapes(spec, {**ranges[spec.phase], **sizes}, options.batch),
            flags=options.flags.changed(),
        )
        for name, spec in artifact.manifest.specs.items()
    ]
    missing = [build for build in builds if options.force or build not in artifact.manifest.builds]
    for build in builds:
        if build not in missing:
            report(f"{build.engine}: built already")
    if not options.force:
        _check_nothing_replaced(artifact, missing)
    if not missing:
        return
    with BuildProgress(len(missing)) as progress:
        for build in missing:
            graph = artifact.engine_file(build.engine)
            plan = builder.build(graph, build.profile, options.flags, options.timing_cache, progress.phase)
            # Read again, because presets may have been added meanwhile.
            artifact = _store_build(Artifact(artifact.path), build, plan)
            progress.engine_done()
            size = (artifact.path / build.file).stat().st_size
            progress.message(f"{build.engine}: {size / 2**20:.1f} MiB in {build.file}", report)
    report_stale_signature(artifact.path, report)


def _check_nothing_replaced(artifact: Artifact, builds: Sequence[Build]) -> None:
    """Raise `RequestError` if one of `builds` would replace an engine that was built with other settings."""
    for build in builds:
        for other in artifact.manifest.builds:
            if other.replaced_by(build) and other.graph_sha256 == build.graph_sha256:
                settings = "flags" if other.flags != build.flags else "batch sizes or plans"
                raise RequestError(
                    f"{artifact.path} has {other.file}, the engine {other.engine} for {other.target} {other.library} "
                    f"on {', '.join(other.architectures)} with other {settings}; give --force to replace it"
                )


def _check_supported(artifact: Artifact, builder: TensorRTBuilder) -> None:
    """Check the artifact's files, and that the GPUs of the builder can run its model and precision."""
    check_supported(artifact.manifest.model, GPU_LOOP)
    artifact.check_changeable()
    artifact.verify()
    for architecture in builder.architectures:
        if artifact.manifest.precision not in precisions_of(architecture):
            raise RequestError(
                f"{artifact.path} is in {artifact.manifest.precision}, but {architecture} has products in "
                f"{', '.join(precisions_of(architecture))} only"
            )


def _delete_unlisted(artifact: Artifact) -> None:
    """Delete the files of builds that the manifest does not list."""
    for target in TARGETS:
        for file in (artifact.path / FOLDER / target).glob("*.plan"):
            if file.relative_to(artifact.path).as_posix() not in artifact.manifest.files:
                file.unlink()


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
