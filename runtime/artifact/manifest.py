"""The manifest of an artifact: `manifest.json`, which describes its model, its files and its engines.

An artifact is everything that an export hands to a device. No value of a manifest is used before all of it is checked.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from runtime.artifact.engine_builds import Build
from runtime.checks import pluralize, truncate
from runtime.errors import ArtifactError, ConfigError, IntegrityError, RequestError
from runtime.model.config import LATER_FIELDS
from runtime.model.engine_spec import TEXT_ENCODER, EngineSpec
from runtime.model.families import (
    DEFAULT,
    FAMILIES,
    FAMILY_KEY,
    RECAP,
    check_supported,
    config_class,
    engine_specs,
    family_of,
    optional_specs,
    parse_config,
    recap_specs_of,
    request_inputs,
    tokenizer_specs_of,
)
from runtime.model.family_config import FamilyConfig
from runtime.sampling.constraints import apply_constraints, plan_for
from runtime.sampling.plan import DEFAULT_ITERATIONS
from runtime.sampling.presets import check_preset_name, resolve_sampling
from runtime.sampling.settings import LATER_SETTINGS, Sampling
from runtime.storage.schema import SchemaError, parse_object
from runtime.storage.stored_files import content_sha256

FORMAT_VERSION = 8
"""The version of the format that this code writes and reads."""

REQUEST_KEY = "request"
"""The key of the arguments that a request must have, where these are not labels."""

MANIFEST = "manifest.json"
"""The name of the manifest's file in the folder of an artifact."""

TEXT_TOKENIZER = "tokenizer.json"
"""The file of the tokenizer of an artifact that has a text encoder."""

FIRST_PASS = "first_pass.f32"
"""The file of z of the first pass of each class, float32 [classes + 1, L, C], of an artifact that has it."""

TOKENIZERS = ("pixel", "kl", "none")
"""How latents become an image: they are pixels, a KL autoencoder decodes them, or they do not."""

FLOAT_PRECISIONS = ("fp32", "fp16", "bf16")
"""The precisions of an export."""

QUANTIZED_PRECISIONS = ("int8", "fp8", "w8", "w4")
"""The precisions of a quantized artifact: matrix products in int8 or fp8, or only the weights in 8 or 4 bits."""

CALIBRATED_FOR = "calibrated_for"
"""The key under `Manifest.provenance` of the settings of a calibration, the text of `Manifest.describe_plan`."""

_SETTING = re.compile(", (?=[a-z])")  # between two settings, but not between the numbers of one

PRECISIONS = (*FLOAT_PRECISIONS, *QUANTIZED_PRECISIONS)


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """A file of an artifact, as the manifest lists it.

    Attributes:
        bytes: Its size.
        sha256: Its SHA-256 hash, 64 hexadecimal digits.
    """

    bytes: int = dataclasses.field(metadata={"least": 0})
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    Attributes:
        model: The config of the model.
        tokenizer: How latents become an image, one of `TOKENIZERS`.
        class_names: The names of the classes in order, or none.
        sampling: The sampling settings that a request starts from if it has no preset and no settings of its own.
        precision: The precision of weights and matrix products, one of `PRECISIONS`.
        files: The size and hash of each file, by its path relative to the artifact.
        engines: The ONNX file of each engine, by the engine's name.
        provenance: How the artifact was made, for people: texts and whole numbers by name.
        parity: Reports for people, by the engine's name and `generation`: the relative L2 distance to eager PyTorch
            and its tolerance. Reports of quantized engines compare with float32, see `is_latents_report`.
        builds: The engines that were built for devices.
        presets: The artifact's own presets by name, each made for this model.
    """

    model: FamilyConfig
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
        """The inputs and outputs of each engine of this artifact, by the engine's name."""
        return {name: spec for name, spec in _possible_specs(self.model).items() if name in self.engines}

    def resolve_sampling(self, settings: Mapping[str, Any]) -> Sampling:
        """Return the complete sampling settings of a request.

        Args:
            settings: The keys of `runtime.sampling.settings.SamplingRequest`.

        Raises:
            RequestError: A setting is unknown, or the model does not allow it.
        """
        sampling = resolve_sampling(self.sampling, self.model, settings, self.presets)
        if sampling.recap and not recap_specs_of(self.model).keys() <= self.engines.keys():
            check_supported(self.model, RECAP)
            raise RequestError(
                "this artifact has no engines for the local iterations of ReCAP; export it with --recap, or leave out "
                "recap_local_iterations"
            )
        return sampling

    @functools.cached_property
    def content_sha256(self) -> str:
        """The SHA-256 hash of what decides the images of this artifact: its model, its tokenizer and its engines.

        Settings, presets, names of classes and engines built for devices do not change it.
        """
        graphs = {engine: self.graph_sha256(engine) for engine in self.engines}
        text = {TEXT_TOKENIZER: self.files[TEXT_TOKENIZER].sha256} if TEXT_ENCODER in self.engines else {}
        kept = {FIRST_PASS: self.files[FIRST_PASS].sha256} if FIRST_PASS in self.files else {}
        decides = {"model": self.model.to_dict(), "tokenizer": self.tokenizer, "engines": graphs, **text, **kept}
        return content_sha256(decides)

    def describe_plan(self, sampling: Sampling) -> str:
        """Return sampling settings as text, as `Sampling.describe` does, with the number of iterations in any case."""
        iterations = min(DEFAULT_ITERATIONS, self.model.tokens) if sampling.iterations is None else sampling.iterations
        return dataclasses.replace(sampling, iterations=iterations).describe()

    def check_decoder(self, name: str) -> None:
        """Check that the artifact makes images.

        Args:
            name: What the artifact is called in the message.

        Raises:
            RequestError: It has no decoder.
        """
        if self.tokenizer == "none":
            raise RequestError(f"{name} has no decoder, so it makes latents, not images; export it with --tokenizer")

    def check_text_encoder(self, name: str) -> None:
        """Check that the artifact of a model that draws from text reads prompts.

        Args:
            name: What the artifact is called in the message.

        Raises:
            RequestError: It has no text encoder.
        """
        if self.model.class_num == 0 and TEXT_ENCODER not in self.engines:
            raise RequestError(
                f"{name} has no text encoder, so it reads no prompts; export it with --text-encoder FOLDER, or call "
                "Generator.generate with prompt_embeds in Python"
            )

    def calibration_note(self, sampling: Sampling) -> str | None:
        """Return a line if the engines were calibrated for other settings than `sampling`; it names both.

        The scales of activations hold for the plan whose activations were measured.
        """
        calibrated = self.provenance.get(CALIBRATED_FOR)
        if not isinstance(calibrated, str):
            return None
        then, now = (_SETTING.split(text) for text in (calibrated, self.describe_plan(sampling)))
        if then == now:
            return None
        parts = (", ".join(part for part in one if part not in other) for one, other in ((then, now), (now, then)))
        expected, found = (part or "no other settings" for part in parts)
        return (
            f"this {self.precision} artifact was calibrated for {expected}, and is used with {found}; images can be "
            "worse, so give the settings of the calibration, or calibrate for these"
        )

    def graph_sha256(self, engine: str) -> str:
        """Return the SHA-256 hash of the graph of an engine, including the file of its weights."""
        return hashlib.sha256("".join(entry.sha256 for entry in self._entries_of(engine)).encode()).hexdigest()

    def graph_bytes(self, engine: str) -> int:
        """Return the size of the graph of an engine, including the file of its weights."""
        return sum(entry.bytes for entry in self._entries_of(engine))

    def files_of(self, engine: str) -> tuple[str, ...]:
        """Return the file of the graph of an engine, and that of its weights if they are not in the graph."""
        weights = f"{self.engines[self.specs[engine].weights_of or engine]}.data"
        return self.engines[engine], *((weights,) if weights in self.files else ())

    def _entries_of(self, engine: str) -> list[FileEntry]:
        names = self.files_of(engine)
        return [entry for name, entry in sorted(self.files.items()) if name in names]

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as JSON values; the inverse of `from_dict`."""
        engines = {name: {"file": file, **self.specs[name].to_dict()} for name, file in self.engines.items()}
        return {
            "format_version": FORMAT_VERSION,
            "model": self.model.to_dict(),
            **_request(self.model, self.engines),
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
        """Return the manifest that parsed JSON describes, after checking every value.

        Args:
            value: The parsed JSON.
            where: The path of its file, for error messages.

        Raises:
            ArtifactError: The format version is another one, or a value is missing, unknown or wrong.
            IntegrityError: A path leaves the folder of the artifact.
        """
        value = _as_object(value, where)
        version = value.get("format_version")
        if type(version) is not int or version != FORMAT_VERSION:
            raise ArtifactError(
                f"{where}: format version {version!r}, but this version of mar reads {FORMAT_VERSION}; "
                "export the model again with this version, or install the version of mar that wrote the artifact"
            )
        fields = {field.name for field in dataclasses.fields(cls)}
        _check_keys(value, {"format_version", *fields} | ({REQUEST_KEY} & value.keys()), where)
        for key in ("model", "presets", "files", "engines", "provenance", "parity"):
            _as_object(value[key], f"{where}: {key}")
        model = _parse_model(value["model"], where)
        request = _request(model, value["engines"])
        if {key: value[key] for key in (REQUEST_KEY,) if key in value} != request:
            expected = request.get(REQUEST_KEY, "no such key")
            raise ArtifactError(f"{where}: {REQUEST_KEY} must be {expected}, found {truncate(value.get(REQUEST_KEY))}")
        sampling = _parse_sampling(value["sampling"], model, f"{where}: sampling")
        presets = {
            name: _parse_preset(name, each, model, f"{where}: presets") for name, each in value["presets"].items()
        }
        _check_names(value, model, where)
        files = {path: _parse_file_entry(path, entry, where) for path, entry in value["files"].items()}
        _check_first_pass(files, model, where)
        _check_reports(value["provenance"], value["parity"], value["engines"].keys(), where)
        return cls(
            model=model,
            tokenizer=value["tokenizer"],
            class_names=tuple(value["class_names"]),
            sampling=sampling,
            presets=presets,
            precision=value["precision"],
            files=files,
            engines=_parse_engines(value["engines"], value["tokenizer"], model, value["files"], where),
            provenance=value["provenance"],
            parity=value["parity"],
            builds=_parse_builds(value["builds"], value["engines"].keys(), value["files"], where),
        )


def is_latents_report(report: Mapping[str, Any]) -> bool:
    """Return whether a report of `Manifest.parity` compares generated latents of quantized and float32 engines.

    Other reports compare the outputs of one engine with eager PyTorch. A report of latents has a tolerance only under
    `generation`, where all engines are quantized.
    """
    return report.get("of") == "latents"


def _request(model: FamilyConfig, engines: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the entry that says what a request must have. A model of classes has none: its requests have labels."""
    inputs = request_inputs(model, engines)
    return {} if inputs == FAMILIES[DEFAULT].inputs else {REQUEST_KEY: list(inputs)}


def _possible_specs(model: FamilyConfig) -> dict[str, EngineSpec]:
    """Return the specs of all engines that a model can have, by name."""
    return {**engine_specs(model), **optional_specs(model), **tokenizer_specs_of(model)}


def _parse_model(value: Mapping[str, Any], where: str) -> FamilyConfig:
    try:
        fields = {field.name for field in dataclasses.fields(config_class(value, where))}
        _check_keys(value, (fields - (LATER_FIELDS - value.keys())) | ({FAMILY_KEY} & value.keys()), f"{where}: model")
        return parse_config(value, where)
    except ConfigError as error:
        raise ArtifactError(f"{where}: {str(error).removeprefix(f'{where}: ')}") from None


def _check_names(value: Mapping[str, Any], model: FamilyConfig, where: str) -> None:
    """Check the tokenizer, the precision and the names of the classes."""
    for key, known in (("tokenizer", TOKENIZERS), ("precision", PRECISIONS)):
        if value[key] not in known:
            raise ArtifactError(f"{where}: {key} {value[key]!r} is not one of {', '.join(known)}")
    channels, *side = model.latent_shape
    stride = model.image_shape[0] // side[0]
    if value["tokenizer"] == "pixel" and (stride != 1 or channels not in (1, 3)):
        raise ArtifactError(
            f"{where}: tokenizer pixel needs vae_stride 1 and 1 or 3 channels, found vae_stride {stride} and "
            f"vae_embed_dim {channels}"
        )
    names = value["class_names"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ArtifactError(f"{where}: class_names must be a list of texts")
    if len(names) not in (0, model.class_num):
        raise ArtifactError(f"{where}: {pluralize(len(names), 'class name')} for {pluralize(model.class_num, 'class')}")


def _parse_sampling(value: object, model: FamilyConfig, where: str) -> Sampling:
    settings = _as_object(value, where)
    fields = {field.name for field in dataclasses.fields(Sampling)}
    _check_keys(settings, fields - (LATER_SETTINGS - settings.keys()), where)
    try:
        sampling = apply_constraints(model, Sampling(**settings), settings)
        plan_for(model, sampling)
    except RequestError as error:
        raise ArtifactError(f"{where}: {error}") from None
    return sampling


def _parse_preset(name: str, value: object, model: FamilyConfig, where: str) -> Sampling:
    try:
        check_preset_name(name)
    except RequestError as error:
        raise ArtifactError(f"{where}: {error}") from None
    return _parse_sampling(value, model, f"{where}: {truncate(name)}")


def _check_first_pass(files: Mapping[str, FileEntry], model: FamilyConfig, where: str) -> None:
    """Check that the file of first passes, if there is one, is that of this model."""
    if FIRST_PASS not in files:
        return
    if not family_of(model).first_pass_of_class:
        raise ArtifactError(f"{where}: {FIRST_PASS} is for models whose first pass depends on the class alone")
    expected = 4 * (model.class_num + 1) * model.tokens * model.z_channels
    if (found := files[FIRST_PASS].bytes) != expected:
        raise ArtifactError(f"{where}: {FIRST_PASS} of this model has {expected} bytes, found {found}")


def _check_reports(
    provenance: Mapping[str, Any], parity: Mapping[str, Any], engines: Iterable[str], where: str
) -> None:
    for key, entry in provenance.items():
        if not isinstance(entry, (str, int)):
            raise ArtifactError(f"{where}: provenance: {key} must be a text or a whole number, found {entry!r}")
    _check_keys(parity, {*engines, "generation"}, f"{where}: parity")
    for key, value in parity.items():
        report = _as_object(value, f"{where}: parity: {key}")
        alone = is_latents_report(report) and key != "generation"
        _check_report(report, ("relative_l2",) if alone else ("relative_l2", "tolerance"), f"{where}: parity: {key}")
        if "openvino" in report:
            on_openvino = _as_object(report["openvino"], f"{where}: parity: {key}: openvino")
            _check_report(on_openvino, ("relative_l2", "tolerance"), f"{where}: parity: {key}: openvino")
            if on_openvino.get("products") not in ("bf16", "fp32"):
                raise ArtifactError(f"{where}: parity: {key}: openvino: products must be bf16 or fp32")


def _check_report(report: Mapping[str, Any], numbers: Iterable[str], where: str) -> None:
    for number in numbers:
        if type(report.get(number)) is not float:
            raise ArtifactError(f"{where}: {number} must be a number, found {report.get(number)!r}")


def _as_object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ArtifactError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def _check_keys(value: Mapping[str, Any], expected: set[str], where: str) -> None:
    if value.keys() != expected:
        unknown, missing = sorted(value.keys() - expected), sorted(expected - value.keys())
        problems = [f"unknown keys {', '.join(unknown)}"] if unknown else []
        problems += [f"missing keys {', '.join(missing)}"] if missing else []
        raise ArtifactError(f"{where}: {' and '.join(problems)}")


def _parse_file_entry(path: str, value: object, where: str) -> FileEntry:
    pure = pathlib.PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\\" in path or ":" in path or "\0" in path:
        raise IntegrityError(f"{where}: file {path!r} must be a relative path inside the artifact")
    try:
        entry = parse_object(FileEntry, value, f"{where}: {path}")
    except SchemaError as error:
        raise ArtifactError(str(error)) from None
    if len(entry.sha256) != 64 or set(entry.sha256) - set("0123456789abcdef"):
        raise ArtifactError(f"{where}: {path}: sha256 must be 64 hexadecimal digits, found {entry.sha256!r}")
    return entry


def _parse_builds(value: object, engines: Iterable[str], files: Mapping[str, Any], where: str) -> tuple[Build, ...]:
    if not isinstance(value, list):
        raise ArtifactError(f"{where}: builds must be a list, found {type(value).__name__}")
    builds = tuple(Build.from_dict(each, where) for each in value)
    for build in builds:
        if build.engine not in engines:
            raise ArtifactError(
                f"{where}: the build {build.file} is of {build.engine!r}, which is not an engine of this artifact"
            )
        if build.file not in files:
            raise ArtifactError(f"{where}: the build {build.file} is not listed under files")
    return builds


def _parse_engines(
    value: Mapping[str, Any], tokenizer: str, model: FamilyConfig, files: Mapping[str, Any], where: str
) -> dict[str, str]:
    of_tokenizer = family_of(model).tokenizer if tokenizer == "kl" else {}
    required = {*engine_specs(model), *(name for name, needed in of_tokenizer.items() if needed)}
    allowed = {*of_tokenizer, *optional_specs(model)}
    _check_keys(value, required | (allowed & value.keys()), f"{where}: engines")
    if TEXT_ENCODER in value and TEXT_TOKENIZER not in files:
        raise ArtifactError(f"{where}: {TEXT_TOKENIZER} of the engine {TEXT_ENCODER} is not listed under files")
    paths = {}
    for name, spec in ((name, spec) for name, spec in _possible_specs(model).items() if name in value):
        entry = _as_object(value[name], f"{where}: engine {name}")
        if not isinstance(entry.get("file"), str) or entry["file"] not in files:
            raise ArtifactError(f"{where}: engine {name}: its file {entry.get('file')!r} is not listed under files")
        expected = {"file": entry["file"], **spec.to_dict()}
        if json.dumps(entry, sort_keys=True) != json.dumps(expected, sort_keys=True):  # also 1.0 or true for 1
            raise ArtifactError(
                f"{where}: engine {name}: its inputs and outputs are not those this model's config implies"
            )
        paths[name] = entry["file"]
    return paths
