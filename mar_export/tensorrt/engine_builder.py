"""The builder of TensorRT engines from ONNX graphs, for TensorRT 10, TensorRT 11 and TensorRT-RTX.

Networks are strongly typed: the graph has the precision, and TensorRT 11 supports nothing else. TF32 is off by default,
because a float32 artifact must generate the same images on every device.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from runtime.artifact.engine_builds import Shapes
from runtime.backends.tensorrt_library import TensorRTLibrary
from runtime.errors import BackendError, RequestError
from runtime.gpu.current_gpu import current_gpu
from runtime.storage.files import check_writable, replacing

HARDWARE = {"ampere+": "AMPERE_PLUS", "same": "SAME_COMPUTE_CAPABILITY"}
"""The choices of hardware compatibility, and the `HardwareCompatibilityLevel` of each."""

Progress = Callable[[str, int, int], None]
"""Is called with the name of a phase, its completed steps, and its number of steps."""


_NO_FLOAT32 = {"tensorrt-rtx": ("sm_75",)}
"""For each target the architectures for which it compiles no float32 matrix products. Every artifact has some."""


@dataclasses.dataclass(frozen=True)
class BuilderFlags:
    """The flags of a builder, under the names of the options of `mar build`.

    Attributes:
        hardware_compatible: A key of `HARDWARE`, for engines that run on other GPUs too; None for this GPU only.
        version_compatible: Whether newer versions of TensorRT can load the engine.
        refit: Whether the weights can be replaced later.
        strip_weights: Whether the engine has no weights; they are then loaded from the graph.
        tf32: Whether float32 products may be rounded to TF32.
        workspace: The memory for the temporary data of a layer, in MiB; None for no limit.
        builder_level: The optimization level, 0 to 5; None for the library's default.
    """

    hardware_compatible: str | None = None
    version_compatible: bool = False
    refit: bool = False
    strip_weights: bool = False
    tf32: bool = False
    workspace: int | None = None
    builder_level: int | None = None

    def changed(self) -> dict[str, Any]:
        """Return the flags that differ from their defaults, by name."""
        defaults = dataclasses.asdict(BuilderFlags())
        return {name: value for name, value in dataclasses.asdict(self).items() if value != defaults[name]}


class TensorRTBuilder:
    """A builder of engines with the library of one target.

    Attributes:
        target: `tensorrt` or `tensorrt-rtx`.
        version: The version of the library.
        architectures: The GPUs that engines are built for, such as `sm_89`.
    """

    def __init__(self, target: str, architectures: Sequence[str]) -> None:
        """Load the library.

        Args:
            target: A key of `runtime.artifact.engine_builds.TARGETS`.
            architectures: The GPUs to build for, such as `sm_89`; empty for the GPU of this machine. Only
                `tensorrt-rtx` can build for other GPUs.

        Raises:
            BackendError: The library is missing or builds wrong engines, or there is no GPU to build for.
            RequestError: An architecture is unknown or not supported, or the library builds only for the GPU of this
                machine.
        """
        self._tensorrt = TensorRTLibrary(target)
        self._library, self.target, self.version = self._tensorrt.module, target, self._tensorrt.version
        self._selected = self._checked_architectures(architectures)
        self.architectures = self._selected or (self._own_architecture(),)
        self._builder = self._tensorrt.new(self._library.Builder)

    def build(
        self,
        graph: pathlib.Path,
        profile: Mapping[str, Shapes],
        flags: BuilderFlags,
        timing_cache: pathlib.Path | None,
        progress: Progress | None,
    ) -> Any:
        """Build an engine.

        Args:
            graph: The ONNX file; external weights lie beside it.
            profile: The minimum, optimum and maximum shape of each input.
            flags: The flags of the build.
            timing_cache: A file with kernel timings of earlier builds, which is updated; None for no cache.
            progress: Called with the progress of the build; None for no progress.

        Returns:
            The serialized engine, as a buffer of bytes.

        Raises:
            BackendError: The library cannot read the graph or build the engine; the message has its log.
            RequestError: This library does not have one of the flags, or only on a machine with a GPU.
        """
        self._check_flags(flags)
        library = self._library
        self._tensorrt.log.lines.clear()
        typed = 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = self._tensorrt.created(self._builder.create_network(typed), "no network")
        self._parse(network, graph)
        config = self._tensorrt.created(self._builder.create_builder_config(), "no builder config")
        self._configure(config, flags)
        for number, name in enumerate(self._selected):
            config.num_compute_capabilities = len(self._selected)
            capability = getattr(library.ComputeCapability, name.replace("sm_", "SM"))
            self._tensorrt.check(config.set_compute_capability(capability, number), f"cannot build for {name}")
        self._add_profile(config, graph.name, profile)
        cache = self._timing_cache(config, timing_cache)
        if progress is not None:
            config.progress_monitor = _monitor(library, progress)
        plan = self._tensorrt.created(
            self._builder.build_serialized_network(network, config), f"{graph.name} was not built"
        )
        if cache is not None and timing_cache is not None:
            with replacing(timing_cache) as temporary:
                temporary.write_bytes(cache.serialize())
        return plan

    def _parse(self, network: Any, graph: pathlib.Path) -> None:
        parser = self._library.OnnxParser(network, self._tensorrt.log)
        if parser.parse_from_file(str(graph)):  # by path, so that the parser finds external weights beside it
            return
        errors = [parser.get_error(number) for number in range(parser.num_errors)]
        messages = "; ".join(
            f"{error.node_name() or 'graph'} ({error.node_operator()}): {error.desc()}" for error in errors
        )
        raise self._tensorrt.failure(f"{graph.name}: {self.target} {self.version} cannot read it: {messages}")

    def _add_profile(self, config: Any, graph: str, profile: Mapping[str, Shapes]) -> None:
        shapes = self._tensorrt.created(self._builder.create_optimization_profile(), "no optimization profile")
        for name, (minimum, optimum, maximum) in profile.items():
            shapes.set_shape(name, minimum, optimum, maximum)
        if config.add_optimization_profile(shapes) < 0:
            raise self._tensorrt.failure(f"{graph}: refused the shapes {dict(profile)}")

    def _configure(self, config: Any, flags: BuilderFlags) -> None:
        known = self._library.BuilderFlag
        config.clear_flag(known.TF32)
        requested = {
            "TF32": flags.tf32,
            "VERSION_COMPATIBLE": flags.version_compatible,
            "REFIT": flags.refit,
            "STRIP_PLAN": flags.strip_weights,
            "REFIT_IDENTICAL": flags.strip_weights,  # the weights of the graph are loaded later
        }
        for name in (name for name, on in requested.items() if on):
            if not hasattr(known, name):
                raise RequestError(f"{self.target} {self.version} has no {name.lower().replace('_', ' ')}")
            config.set_flag(getattr(known, name))
        if flags.workspace is not None:
            config.set_memory_pool_limit(self._library.MemoryPoolType.WORKSPACE, flags.workspace * 2**20)
        if flags.builder_level is not None:
            config.builder_optimization_level = flags.builder_level
        if flags.hardware_compatible is not None:
            levels, level = self._library.HardwareCompatibilityLevel, HARDWARE[flags.hardware_compatible]
            if not hasattr(levels, level):
                raise RequestError(f"{self.target} {self.version} has no {level.lower().replace('_', ' ')}")
            config.hardware_compatibility_level = getattr(levels, level)

    def _timing_cache(self, config: Any, file: pathlib.Path | None) -> Any:
        """Load the timing cache; tensorrt-rtx has none, because it measures kernels when an engine runs."""
        if file is None:
            return None
        if self.target == "tensorrt-rtx":
            raise RequestError("tensorrt-rtx has no timing cache; remove --timing-cache")
        check_writable(file)
        cache = self._tensorrt.created(
            config.create_timing_cache(file.read_bytes() if file.exists() else b""), f"{file} is no timing cache"
        )
        self._tensorrt.check(
            config.set_timing_cache(cache, False), f"{file} is not of this TensorRT and GPU; delete it"
        )
        return cache

    def _own_architecture(self) -> str:
        """Return the architecture of the GPU of this machine. Raises `BackendError` if there is none."""
        try:
            return current_gpu().architecture
        except BackendError as error:
            if self.target != "tensorrt-rtx":
                raise
            raise BackendError(f"{error}; to build for another machine, give --architecture, such as sm_89") from None

    def _check_flags(self, flags: BuilderFlags) -> None:
        """Refuse by name what tensorrt-rtx cannot do, for which its compiler has no clear message."""
        if self.target != "tensorrt-rtx":
            return
        if flags.version_compatible:
            raise RequestError(
                "tensorrt-rtx has no lean runtime, which --version-compatible needs; remove --version-compatible"
            )
        named = {"--refit": flags.refit, "--strip-weights": flags.strip_weights}
        given = " and ".join(name for name, on in named.items() if on)
        if given:
            try:
                current_gpu()
            except BackendError as error:
                raise RequestError(
                    f"tensorrt-rtx needs an NVIDIA GPU to build with {given} ({error}); remove it, or build on a "
                    "machine with a GPU"
                ) from None

    def _checked_architectures(self, architectures: Sequence[str]) -> tuple[str, ...]:
        """Return the architectures once each, in the library's order, so that equal sets are equal tuples."""
        if not architectures:
            return ()
        if self.target != "tensorrt-rtx":
            raise RequestError(f"{self.target} builds only for the GPU of this machine; remove --architecture")
        members = self._library.ComputeCapability.__members__
        known = [member.replace("SM", "sm_") for member in members if member.startswith("SM")]
        unsupported = _NO_FLOAT32.get(self.target, ())
        known = [name for name in known if name not in unsupported]
        for name in architectures:
            if name in unsupported:
                raise RequestError(
                    f"{self.target} compiles no float32 matrix products for {name}, and every artifact has some; build "
                    "on that machine with --target tensorrt, or run it with --backend onnxruntime --device cuda"
                )
            if name not in known:
                raise RequestError(f"{self.target} {self.version} cannot build for {name}; it knows {', '.join(known)}")
        return tuple(name for name in known if name in architectures)


def _monitor(library: Any, progress: Progress) -> Any:
    """Return a progress monitor of the library that calls `progress`."""

    class Monitor(library.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            progress(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress(phase_name, step + 1, self.steps[phase_name])
            return True

        def phase_finish(self, phase_name: str) -> None:
            progress(phase_name, self.steps[phase_name], self.steps[phase_name])

    return Monitor()
