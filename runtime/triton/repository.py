"""A model in the form of Triton's model repositories: `NAME/config.pbtxt`, `NAME/1/model.py` and the artifact.

The format is that of Triton's `model_config.proto`, in protobuf's text form.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Mapping

from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import MANIFEST
from runtime.artifact.signatures import SIGNATURE
from runtime.backends import uses_gpu
from runtime.errors import ArtifactError
from runtime.model.families import check_supported
from runtime.service.inference_tensors import IMAGE, INPUTS
from runtime.service.served_model import check_model_name
from runtime.service.settings import ServiceSettings, limits
from runtime.storage.files import replacing_folder
from runtime.storage.folder_kinds import FolderKind
from runtime.storage.structured_files import parse_json

ARTIFACT = "artifact"
"""The folder of the artifact, beside `model.py`."""
CONFIG, VERSION, MODEL = "config.pbtxt", "1", "model.py"
"""The names that Triton expects."""
MODEL_FOLDER = FolderKind("model of Triton", lambda folder: (folder / CONFIG).is_file(), "--name")
ROW, DONE, TOTAL = "ROW", "DONE", "TOTAL"
"""Outputs of a stream, INT32 [1, 1]: which image of the request it is, its iterations so far, and all of them."""

_DEFAULTS = ServiceSettings()
_DATA_TYPES = {"BYTES": "TYPE_STRING"}  # others are TYPE_ and the name in the Open Inference Protocol


@dataclasses.dataclass(frozen=True)
class TritonSettings:
    """How Triton runs a model.

    Attributes:
        preset: The preset of requests that name none. None: the artifact's own settings.
        max_batch: The most images that are drawn together, and the most of a request.
        max_wait_ms: How long Triton waits for further requests, in milliseconds.
        partial_images: How many times each image is sent before it is finished. Above 0 the model is decoupled: only
            clients that stream can ask it.
        backend: The library that runs the engines, one of `runtime.backends.BACKENDS`.
        device: The device of the backend. None: its default.
        threads: The number of processor threads. None: all.
    """

    preset: str | None = None
    max_batch: int = _DEFAULTS.max_batch
    max_wait_ms: float = 1000 * _DEFAULTS.max_wait
    partial_images: int = 0
    backend: str = "onnxruntime"
    device: str | None = None
    threads: int | None = None

    def service_settings(self) -> ServiceSettings:
        """Return the settings of the scheduler: Triton has waited for a batch, and bounds its own queue."""
        _, most = limits("max_queue")
        return ServiceSettings(preset=self.preset, max_batch=self.max_batch, max_wait=0.0, max_queue=most)

    def parameters(self) -> dict[str, str]:
        """Return the settings as texts, for `parameters` of the config."""
        return {name: json.dumps(value) for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> TritonSettings:
        """Return the settings that `parameters` wrote."""
        return cls(**{field.name: parse_json(parameters[field.name]) for field in dataclasses.fields(cls)})


def write_model(artifact: Artifact, repository: pathlib.Path, name: str, settings: TritonSettings, force: bool) -> None:
    """Write a model into a repository.

    Args:
        artifact: The artifact, which is copied.
        repository: The folder of the repository; it is made if it is missing.
        name: The name of the model.
        settings: How Triton runs it.
        force: Whether another model of this name may be replaced.

    Raises:
        ArtifactError: The artifact is damaged.
        RequestError: The artifact makes no images, the name is no name of a model, the preset is unknown, or the
            repository has another model of this name, or something else that is no model.
        MarError: The repository cannot be written.
    """
    check_model_name(name)
    manifest = artifact.manifest
    check_supported(manifest.model, "mar export-triton")
    manifest.check_decoder(str(artifact.path))
    manifest.resolve_sampling({"preset": settings.preset})
    config = model_config(artifact, name, settings)
    folder = repository / name
    if MODEL_FOLDER.check(folder) and not force and not _is_same(folder, artifact, config):
        raise MODEL_FOLDER.another(folder)
    artifact.verify(builds=True)
    with replacing_folder(folder) as written:
        version = written / VERSION
        version.mkdir()
        (written / CONFIG).write_text(config, encoding="utf-8")
        shutil.copyfile(pathlib.Path(__file__).with_name(MODEL), version / MODEL)
        _copy(artifact, version / ARTIFACT)


def model_config(artifact: Artifact, name: str, settings: TritonSettings) -> str:
    """Return the text of `config.pbtxt`."""
    model = artifact.manifest.model
    inputs = [_tensor(each.name, each.datatype, [1], optional=True) for each in INPUTS]
    outputs = [_tensor(IMAGE, "UINT8", list(model.image_shape))]
    if settings.partial_images:
        outputs += [_tensor(output, "INT32", [1]) for output in (ROW, DONE, TOTAL)]
    kind = "KIND_GPU" if uses_gpu(settings.backend, settings.device) else "KIND_CPU"
    parameters = [
        f"{{ key: {json.dumps(key)} value: {{ string_value: {json.dumps(value)} }} }}"
        for key, value in settings.parameters().items()
    ]
    decoupled = ["model_transaction_policy { decoupled: true }"] if settings.partial_images else []
    return "\n".join(
        [
            f"name: {json.dumps(name)}",
            'backend: "python"',
            f"max_batch_size: {settings.max_batch}",
            f"dynamic_batching {{ max_queue_delay_microseconds: {round(1000 * settings.max_wait_ms)} }}",
            *decoupled,
            *_list("input", inputs),
            *_list("output", outputs),
            f"instance_group [ {{ count: 1 kind: {kind} }} ]",
            *_list("parameters", parameters),
            "",
        ]
    )


def _tensor(name: str, datatype: str, shape: list[int], *, optional: bool = False) -> str:
    data_type = _DATA_TYPES.get(datatype, f"TYPE_{datatype}")
    extra = " optional: true" if optional else ""
    return f"{{ name: {json.dumps(name)} data_type: {data_type} dims: {shape}{extra} }}"


def _list(key: str, values: list[str]) -> list[str]:
    return [f"{key} [", *(f"  {value}," for value in values[:-1]), f"  {values[-1]}", "]"]


def _is_same(folder: pathlib.Path, artifact: Artifact, config: str) -> bool:
    """Return whether a folder holds the model that would be written."""
    try:
        same_config = (folder / CONFIG).read_text(encoding="utf-8") == config
        copied = Artifact(folder / VERSION / ARTIFACT)
    except (OSError, ValueError, ArtifactError):
        return False
    return same_config and copied.manifest_bytes == artifact.manifest_bytes


def _copy(artifact: Artifact, folder: pathlib.Path) -> None:
    """Copy an artifact and its signature, and compare what was copied with the manifest."""
    signature: list[str] = [SIGNATURE] if (artifact.path / SIGNATURE).exists() else []
    for name in [MANIFEST, *artifact.manifest.files, *signature]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.path / name, folder / name)
    Artifact(folder).verify(builds=True)
