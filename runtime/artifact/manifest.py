"""The artifact: a folder that is the whole contract between export and device, described by its manifest.

Nothing of a folder is believed before the manifest is whole and known, sizes are always compared, and
hashes are before an engine is handed to a deserializer: a flipped bit in a weight or a swapped file
loads silently everywhere below this layer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from runtime.artifact.engine_builds import Build
from runtime.checks import truncate
from runtime.errors import ArtifactError, ConfigError, IntegrityError, RequestError
from runtime.model.config import LATER_FIELDS, ModelConfig
from runtime.model.engine_spec import DECODER, ENCODER, ENGINES, EngineSpec, engine_specs, tokenizer_specs
from runtime.sampling.constraints import apply_constraints
from runtime.sampling.plan import build_plan
from runtime.sampling.presets import check_preset_name, resolve_sampling
from runtime.sampling.settings import Sampling

FORMAT_VERSION = 7
MANIFEST = "manifest.json"
TOKENIZERS = ("pixel", "kl", "none")
FLOAT_PRECISIONS = ("fp32", "fp16", "bf16")  # as a checkpoint can be exported
# As an artifact can be calibrated: products in int8 or fp8; or weights alone in 8 or 4 bits.
QUANTIZED_PRECISIONS = ("int8", "fp8", "w8", "w4")
PRECISIONS = (*FLOAT_PRECISIONS, *QUANTIZED_PRECISIONS)


@dataclasses.dataclass(frozen=True)
class FileEntry:
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says.

    `tokenizer` says how latents become an image: they are one (`pixel`), an engine decodes them (`kl`),
    or they do not (`none`); `precision` is that of weights and matrix products; `sampling` holds the
    settings that are used where a request names none, `presets` named ones that were made for this
    model; `files` maps each relative path to its size and hash, `engines` each engine's name to its ONNX
    file; `builds` are the engines built for devices; `provenance` and `parity` are for people. The reports
    of `parity` tell how far each engine, and a whole generation, are from eager PyTorch; or, where they are
    `is_latents_report`, from float32.
    """

    model: ModelConfig
    tokenizer: str
    class_names: tuple[str, ...]
    sampling: Sampling
    precision: str
    files: Mapping[str, FileEntry]
    engines: Mapping[str, str]
    provenance: Mapping[str, Any]
    parity: Mapping[str, Any]
    builds: tuple[Build, ...] = ()
    presets: Mapping[str, Sampling] = dataclasses.field(default_factory=dict)

    @property
    def specs(self) -> dict[str, EngineSpec]:
        return {name: spec for name, spec in _known_specs(self.model).items() if name in self.engines}

    def resolve_sampling(self, settings: Mapping[str, Any]) -> Sampling:
        """What a request for `settings` draws with, as `runtime.sampling.presets.resolve_sampling` has it."""
        return resolve_sampling(self.sampling, self.model, settings, self.presets)

    def graph_sha256(self, engine: str) -> str:
        """The hash of an engine's graph, its external data included."""
        file = self.engines[engine]
        hashes = [entry.sha256 for name, entry in sorted(self.files.items()) if name in (file, f"{file}.data")]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        engines = {name: {"file": file, **self.specs[name].to_dict()} for name, file in self.engines.items()}
        return {
            "format_version": FORMAT_VERSION,
            "model": self.model.to_dict(),
            "tokenizer": self.tokenizer,
            "class_names": list(self.class_names),
            "sampling": dataclasses.asdict(self.sampling),
            "presets": {name: dataclasses.asdict(preset) for name, preset in self.presets.items()},
            "precision": self.precision,
            "files": {path: dataclasses.asdict(entry) for path, entry in self.files.items()},
            "engines": engines,
            "provenance": dict(self.provenance),
            "parity": dict(self.parity),
            "builds": [build.to_dict() for build in self.builds],
        }

    @classmethod
    def from_dict(cls, value: object, where: str) -> Manifest:
        """The manifest in parsed JSON; `where` names its file in errors. Raises `ArtifactError`."""
        value = _object(value, where)
        version = value.get("format_version")
        if type(version) is not int or version != FORMAT_VERSION:
            raise ArtifactError(
                f"{where}: format version {version!r}, but this runtime reads version {FORMAT_VERSION}; "
                "export again with this version of mar, or install the one that made it"
            )
        _keys(value, {"format_version", *(field.name for field in dataclasses.fields(cls))}, where)
        for key in ("model", "presets", "files", "engines", "provenance", "parity"):
            _object(value[key], f"{where}: {key}")
        fields = {field.name for field in dataclasses.fields(ModelConfig)}
        _keys(value["model"], fields - (LATER_FIELDS - value["model"].keys()), f"{where}: model")
        try:
            model = ModelConfig.from_dict(value["model"], where)
        except ConfigError as error:
            raise ArtifactError(f"{where}: {str(error).removeprefix(f'{where}: ')}") from None
        sampling = _sampling(value["sampling"], model, f"{where}: sampling")
        presets = {name: _preset(name, told, model, f"{where}: presets") for name, told in value["presets"].items()}
        for key, known in (("tokenizer", TOKENIZERS), ("precision", PRECISIONS)):
            if value[key] not in known:
                raise ArtifactError(f"{where}: {key} {value[key]!r} is not one of {', '.join(known)}")
        if value["tokenizer"] == "pixel" and (model.vae_stride != 1 or model.vae_embed_dim not in (1, 3)):
            raise ArtifactError(
                f"{where}: tokenizer pixel needs vae_stride 1 and 1 or 3 channels, found vae_stride "
                f"{model.vae_stride} and vae_embed_dim {model.vae_embed_dim}"
            )
        names = value["class_names"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ArtifactError(f"{where}: class_names must be a list of texts")
        if len(names) not in (0, model.class_num):
            raise ArtifactError(f"{where}: {len(names)} class names for {model.class_num} classes")
        _check_reports(value["provenance"], value["parity"], value["engines"].keys(), where)
        return cls(
            model=model,
            tokenizer=value["tokenizer"],
            class_names=tuple(names),
            sampling=sampling,
            presets=presets,
            precision=value["precision"],
            files={path: _file_entry(path, entry, where) for path, entry in value["files"].items()},
            engines=_engine_files(value["engines"], value["tokenizer"], model, value["files"], where),
            provenance=value["provenance"],
            parity=value["parity"],
            builds=_builds(value["builds"], value["engines"].keys(), value["files"], where),
        )


def is_latents_report(report: Mapping[str, Any]) -> bool:
    """Whether a report of `Manifest.parity` is of what quantized engines do to finished latents.

    It has a tolerance where all of them are at work, `generation`, and none for an engine alone.
    """
    return report.get("of") == "latents"


def _known_specs(model: ModelConfig) -> dict[str, EngineSpec]:
    """Every engine that a model may have."""
    return {**engine_specs(model), **tokenizer_specs(model)}


def _sampling(value: object, model: ModelConfig, where: str) -> Sampling:
    settings = _object(value, where)
    _keys(settings, {field.name for field in dataclasses.fields(Sampling)}, where)
    try:
        sampling = apply_constraints(model, Sampling(**settings), settings)
        build_plan(model.tokens, sampling)
    except RequestError as error:
        raise ArtifactError(f"{where}: {error}") from None
    return sampling


def _preset(name: str, value: object, model: ModelConfig, where: str) -> Sampling:
    try:
        check_preset_name(name)
    except RequestError as error:
        raise ArtifactError(f"{where}: {error}") from None
    return _sampling(value, model, f"{where}: {truncate(name)}")


def _check_reports(
    provenance: Mapping[str, Any], parity: Mapping[str, Any], engines: Iterable[str], where: str
) -> None:
    for key, told in provenance.items():
        if not isinstance(told, (str, int)):
            raise ArtifactError(f"{where}: provenance: {key} must be a text or a whole number, found {told!r}")
    _keys(parity, {*engines, "generation"}, f"{where}: parity")
    for key, value in parity.items():
        report = _object(value, f"{where}: parity: {key}")
        alone = is_latents_report(report) and key != "generation"
        for number in ("relative_l2",) if alone else ("relative_l2", "tolerance"):
            if type(report.get(number)) is not float:
                raise ArtifactError(f"{where}: parity: {key}: {number} must be a number, found {report.get(number)!r}")


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ArtifactError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def _keys(value: Mapping[str, Any], expected: set[str], where: str) -> None:
    if value.keys() != expected:
        unknown, missing = sorted(value.keys() - expected), sorted(expected - value.keys())
        told = [f"unknown keys {', '.join(unknown)}"] if unknown else []
        told += [f"missing keys {', '.join(missing)}"] if missing else []
        raise ArtifactError(f"{where}: {' and '.join(told)}")


def _file_entry(path: str, value: object, where: str) -> FileEntry:
    pure = pathlib.PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in path or "\0" in path:
        raise IntegrityError(f"{where}: file {path!r} must be a relative path inside the artifact")
    entry = _object(value, f"{where}: {path}")
    _keys(entry, {"bytes", "sha256"}, f"{where}: {path}")
    size, digest = entry["bytes"], entry["sha256"]
    if type(size) is not int or size < 0:
        raise ArtifactError(f"{where}: {path}: bytes must be a whole number, found {size!r}")
    if not isinstance(digest, str) or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise ArtifactError(f"{where}: {path}: sha256 must be 64 hexadecimal digits, found {digest!r}")
    return FileEntry(size, digest)


def _builds(value: object, engines: Iterable[str], files: Mapping[str, Any], where: str) -> tuple[Build, ...]:
    if not isinstance(value, list):
        raise ArtifactError(f"{where}: builds must be a list, found {type(value).__name__}")
    builds = tuple(Build.from_dict(each, where) for each in value)
    for build in builds:
        if build.engine not in engines:
            raise ArtifactError(f"{where}: the build {build.file} is of {build.engine!r}, which is no engine here")
        if build.file not in files:
            raise ArtifactError(f"{where}: the build {build.file} is not listed under files")
    return builds


def _engine_files(
    value: Mapping[str, Any], tokenizer: str, model: ModelConfig, files: Mapping[str, Any], where: str
) -> dict[str, str]:
    required = {*ENGINES, *([DECODER] if tokenizer == "kl" else [])}
    allowed = {*required, *([ENCODER] if tokenizer == "kl" else [])}
    _keys(value, required | (allowed & value.keys()), f"{where}: engines")
    paths = {}
    for name, spec in ((name, spec) for name, spec in _known_specs(model).items() if name in value):
        entry = _object(value[name], f"{where}: engine {name}")
        if not isinstance(entry.get("file"), str) or entry["file"] not in files:
            raise ArtifactError(f"{where}: engine {name}: its file {entry.get('file')!r} is not listed under files")
        if {**entry, "file": None} != {"file": None, **spec.to_dict()}:
            raise ArtifactError(
                f"{where}: engine {name}: its inputs and outputs are not those this model's config implies"
            )
        paths[name] = entry["file"]
    return paths
