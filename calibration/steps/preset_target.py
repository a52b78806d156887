"""Adds a preset to an artifact, or to a copy of it."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from collections.abc import Callable

from calibration.steps.solvers import REFERENCE
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import MANIFEST, Manifest
from runtime.artifact.replacement import check_replaceable, keep_additions, report_stale_signature
from runtime.errors import RequestError
from runtime.model.families import check_supported
from runtime.sampling.constraints import supported_samplers
from runtime.sampling.presets import check_preset_name
from runtime.sampling.settings import Sampling
from runtime.storage.files import check_writable, replacing_folder, write_json


@dataclasses.dataclass(frozen=True)
class PresetTarget:
    """An artifact that gets a new preset.

    Attributes:
        artifact: The folder of the artifact.
        name: The name of the preset.
        force: Whether a preset of the same name, and another artifact at `out`, are replaced.
        out: The folder of a copy that gets the preset instead; None changes the artifact itself.
    """

    artifact: pathlib.Path
    name: str
    force: bool
    out: pathlib.Path | None

    def check(self) -> Artifact:
        """Return the artifact as it is now. Raise `MarError` if the preset cannot be written."""
        check_preset_name(self.name)
        artifact = Artifact(self.artifact)
        model = check_supported(artifact.manifest.model, "mar optimize-steps")
        if REFERENCE.sampler not in supported_samplers(model):
            raise RequestError(
                f"{self.artifact} has {model.describe_head()}; mar optimize-steps needs a diffusion head"
            )
        presets = set(artifact.manifest.presets)
        if self.out is None:
            artifact.check_changeable()
            check_writable(self.artifact / MANIFEST)
        elif check_replaceable(self.out, artifact.manifest, self.force):
            presets |= Artifact(self.out).manifest.presets.keys()
        if self.name in presets and not self.force:
            raise RequestError(
                f"{self.out or self.artifact} already has a preset {self.name!r}; give another --name, or --force to "
                "replace it"
            )
        return artifact

    def write(self, sampling: Sampling, report: Callable[[str], None]) -> pathlib.Path:
        """Write the preset; return the folder of the artifact that has it.

        `report` is called with a line about what is kept of a replaced artifact, and about what is lost.

        The manifest is read again, because engines may have been built during the search.
        """
        manifest = self.check().manifest
        if self.out is None:
            write_json(self.artifact / MANIFEST, self._with_preset(manifest, sampling).to_dict())
            report_stale_signature(self.artifact, report)
            return self.artifact
        with replacing_folder(self.out) as folder:
            for file in manifest.files:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.artifact / file, folder / file)
            manifest = self._with_preset(keep_additions(self.out, folder, manifest, report), sampling)
            write_json(folder / MANIFEST, manifest.to_dict())
            Artifact(folder).verify(builds=True)
        return self.out

    def _with_preset(self, manifest: Manifest, sampling: Sampling) -> Manifest:
        return dataclasses.replace(manifest, presets={**manifest.presets, self.name: sampling})
