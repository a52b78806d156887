"""What a study of quality against time evaluates: sampling settings of artifacts, and how many images of each."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from runtime.artifact.artifact_folder import Artifact
from runtime.errors import RequestError
from runtime.image_files import WHITE, Color
from runtime.model.families import check_supported
from runtime.sampling.constraints import supported_samplers
from runtime.sampling.presets import PRESETS
from training.evaluation.feature_networks import CLASSIFIER
from training.evaluation.generate_images import GenerationJob

STEPS = (100, 50, 25, 14, 10, 6)
_SAMPLER_ITERATIONS = 16


@dataclasses.dataclass(frozen=True)
class Setting:
    """Sampling settings of an artifact, under a name.

    Attributes:
        name: The row in tables, and the name of the files with its results.
        artifact: The artifact folder.
        sampling: The preset and the overrides of a request, as `Generator.generate` takes them.
        sampler: The sampler, where settings compare samplers; None where they compare presets.
    """

    name: str
    artifact: pathlib.Path
    sampling: Mapping[str, Any]
    sampler: str | None = None


@dataclasses.dataclass(frozen=True)
class Study:
    """The inputs of a study.

    Attributes:
        data: The dataset that the models were trained on.
        count: The number of images that each setting draws with each seed.
        seeds: The seeds of orders and noise are 0..seeds - 1.
        networks: The names of the networks whose features are compared, see `NETWORKS`.
        classifier: The file with the weights of the classifier; it is trained and written if it is missing. None: that
            of `training.evaluation.classifier.default_file`.
        background: The colour under transparent pixels of the dataset's images.
        backend: Arguments of `Generator.load`, as pairs of name and value.
    """

    data: pathlib.Path
    count: int
    seeds: int = 1
    networks: tuple[str, ...] = (CLASSIFIER,)
    classifier: pathlib.Path | None = None
    background: Color = WHITE
    backend: tuple[tuple[str, Any], ...] = ()

    def job(self, setting: Setting, seed: int) -> GenerationJob:
        """Return the job that draws the images of a setting with a seed."""
        return GenerationJob(setting.artifact, seed, tuple(setting.sampling.items()), self.backend)

    def drawn(self, settings: Iterable[Setting]) -> Iterator[tuple[Setting, int]]:
        """Yield every setting with every seed."""
        return itertools.product(settings, range(self.seeds))


def sampler_settings(artifact: pathlib.Path) -> list[Setting]:
    """Return every sampler of an artifact at every number of steps in `STEPS`; none for a distilled head.

    These settings have no guidance, which halves the work. Each sampler starts at its own default timestep.
    """
    model = check_supported(Artifact(artifact).manifest.model, "mar study")
    common = {"preset": "exact", "iterations": min(_SAMPLER_ITERATIONS, model.tokens), "cfg_scale": 1.0}
    return [
        Setting(f"{sampler} {steps}", artifact, {**common, "sampler": sampler, "diffusion_steps": steps}, sampler)
        for steps in (() if model.distilled_steps else reversed(STEPS))
        for sampler in supported_samplers(model)
    ]


def preset_settings(artifacts: Sequence[pathlib.Path], names: Iterable[str] = ()) -> list[Setting]:
    """Return a setting for every preset of every artifact, with the artifact's own guidance.

    Args:
        artifacts: The artifacts. If they are several, the names of settings begin with those of their folders.
        names: The presets to take, from each artifact that has them; empty for all.

    Raises:
        RequestError: No artifact has one of the presets, two folders have the same name, or a model draws no classes.
    """
    folders = [artifact.resolve().name for artifact in artifacts]
    for folder in folders:
        if folders.count(folder) > 1:
            raise RequestError(
                f"several of the artifacts are named {folder}; rename their folders, so that rows differ"
            )
    manifests = {artifact: Artifact(artifact).manifest for artifact in artifacts}
    for manifest in manifests.values():
        check_supported(manifest.model, "mar study")
    presets = {artifact: (*PRESETS, *manifest.presets) for artifact, manifest in manifests.items()}
    chosen = tuple(names)
    known = dict.fromkeys(name for own in presets.values() for name in own)
    for name in chosen:
        if name not in known:
            raise RequestError(f"no artifact has a preset {name!r}; known are {', '.join(known)}")
    return [
        Setting(f"{folder} {name}" if len(artifacts) > 1 else name, artifact, {"preset": name})
        for artifact, folder in zip(artifacts, folders, strict=True)
        for name in presets[artifact]
        if not chosen or name in chosen
    ]
