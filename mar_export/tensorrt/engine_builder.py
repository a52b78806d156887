"""ONNX graphs to TensorRT plans: one builder for TensorRT 10, TensorRT 11 and TensorRT-RTX.

Networks are always strongly typed: precision is in the graph, and version 11 knows nothing else. TF32 is
off unless asked for, since float32 artifacts promise the same images.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from runtime.artifact.engine_builds import Shapes
from runtime.backends.tensorrt_library import TensorRTLibrary
from runtime.errors import RequestError
from runtime.files import check_writable, replacing
from runtime.gpu.current_gpu import current_gpu

HARDWARE = {"ampere+": "AMPERE_PLUS", "same": "SAME_COMPUTE_CAPABILITY"}  # choice -> HardwareCompatibilityLevel

Progress = Callable[[str, int, int], None]  # (phase, steps done, steps in all)


@dataclasses.dataclass(frozen=True)
class BuilderFlags:
    """What a builder is told beside graph and shapes; the names are those of `mar build`'s options."""

    hardware_compatible: str | None = None  # one of HARDWARE
    version_compatible: bool = False
    refit: bool = False
    strip_weights: bool = False
    tf32: bool = False
    workspace: int | None = None  # MiB
    builder_level: int | None = None

    def told(self) -> dict[str, Any]:
        """Those that are not as usual."""
        usual = dataclasses.asdict(BuilderFlags())
        return {name: value for name, value in dataclasses.asdict(self).items() if value != usual[name]}


class TensorRTBuilder:
    """Builds engines with the library of one target. Raises `BackendError` where that is missing or known bad."""

    def __init__(self, target: str, architectures: Sequence[str]) -> None:
        """`architectures` are the GPUs to build for, such as `sm_89`; only `tensorrt-rtx` can choose them."""
        self._told = TensorRTLibrary(target)
        self._library, self.target, self.version = self._told.module, target, self._told.version
        self._builder = self._told.new(self._library.Builder)
        self._chosen = self._known(architectures)
        self.architectures = self._chosen or (current_gpu().architecture,)

    def build(
        self,
        graph: pathlib.Path,
        profile: Mapping[str, Shapes],
        flags: BuilderFlags,
        timing_cache: pathlib.Path | None,
        progress: Progress | None,
    ) -> Any:
        """The serialized engine of the ONNX file `graph`, as a buffer of bytes. Raises `BackendError`."""
        library = self._library
        self._told.log.lines.clear()
        typed = 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = self._told.created(self._builder.create_network(typed), "no network")
        self._parse(network, graph)
        config = self._told.created(self._builder.create_builder_config(), "no builder config")
        self._configure(config, flags)
        for number, name in enumerate(self._chosen):
            config.num_compute_capabilities = len(self._chosen)
            capability = getattr(library.ComputeCapability, name.replace("sm_", "SM"))
            self._told.check(config.set_compute_capability(capability, number), f"cannot build for {name}")
        shapes = self._told.created(self._builder.create_optimization_profile(), "no optimization profile")
        for name, (least, usual, most) in profile.items():
            shapes.set_shape(name, least, usual, most)
        if config.add_optimization_profile(shapes) < 0:
            raise self._told.failure(f"{graph.name}: refused the shapes {dict(profile)}")
        cache = self._timing_cache(config, timing_cache)
        if progress is not None:
            config.progress_monitor = _monitor(library, progress)
        plan = self._told.created(
            self._builder.build_serialized_network(network, config), f"{graph.name} was not built"
        )
        if cache is not None and timing_cache is not None:
            with replacing(timing_cache) as temporary:
                temporary.write_bytes(cache.serialize())
        return plan

    def _parse(self, network: Any, graph: pathlib.Path) -> None:
        parser = self._library.OnnxParser(network, self._told.log)
        if parser.parse_from_file(str(graph)):  # by name: external data lies beside it
            return
        errors = [parser.get_error(number) for number in range(parser.num_errors)]
        told = "; ".join(
            f"{error.node_name() or 'graph'} ({error.node_operator()}): {error.desc()}" for error in errors
        )
        raise self._told.failure(f"{graph.name}: {self.target} {self.version} cannot read it: {told}")

    def _configure(self, config: Any, flags: BuilderFlags) -> None:
        known = self._library.BuilderFlag
        config.clear_flag(known.TF32)
        wanted = {
            "TF32": flags.tf32,
            "VERSION_COMPATIBLE": flags.version_compatible,
            "REFIT": flags.refit,
            "STRIP_PLAN": flags.strip_weights,
            "REFIT_IDENTICAL": flags.strip_weights,  # the weights that come back are those of the graph
        }
        for name in (name for name, on in wanted.items() if on):
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
        """What earlier builds measured; not for tensorrt-rtx, which measures nothing before it runs."""
        if file is None:
            return None
        if self.target == "tensorrt-rtx":
            raise RequestError("tensorrt-rtx measures nothing while it builds; leave --timing-cache out")
        check_writable(file)
        cache = self._told.created(
            config.create_timing_cache(file.read_bytes() if file.exists() else b""), f"{file} is no timing cache"
        )
        self._told.check(config.set_timing_cache(cache, False), f"{file} is not of this TensorRT and GPU; delete it")
        return cache

    def _known(self, architectures: Sequence[str]) -> tuple[str, ...]:
        """`architectures`, each once and in the library's order, so that the same GPUs are always told alike."""
        if not architectures:
            return ()
        if self.target != "tensorrt-rtx":
            raise RequestError(f"{self.target} builds for the GPU that is here; leave --architecture out")
        members = self._library.ComputeCapability.__members__
        known = [member.replace("SM", "sm_") for member in members if member.startswith("SM")]
        for name in architectures:
            if name not in known:
                raise RequestError(f"{self.target} {self.version} cannot build for {name}; it knows {', '.join(known)}")
        return tuple(name for name in known if name in architectures)


def _monitor(library: Any, progress: Progress) -> Any:
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
