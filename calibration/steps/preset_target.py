"""Adds a preset to an artifact, or to a copy of it."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil

from runtime.artifact.artifact_folder import Artifact, check_artifact_target
from runtime.artifact.manifest import MANIFEST
from runtime.errors import RequestError
from runtime.files import check_writable, replacing_folder, write_json
from runtime.sampling.constraints import check_masked_diffusion
from runtime.sampling.presets import check_preset_name
from runtime.sampling.settings import Sampling


@dataclasses.dataclass(frozen=True)
class PresetTarget:
    """An artifact that gets a new preset.

    Attributes:
        artifact: The folder of the artifact.
        name: The name of the preset.
        replace: Whether a preset of the same name is replaced.
        out: The folder of a copy that gets the preset instead; None changes the artifact itself.
    """

    artifact: pathlib.Path
    name: str
    replace: bool
    out: pathlib.Path | None

    def check(self) -> Artifact:
        """Return the artifact as it is now. Raise `MarError` if the preset cannot be written."""
        check_preset_name(self.name)
        artifact = Artifact(self.artifact)
        check_masked_diffusion(artifact.manifest.model, "mar optimize-steps")
        if artifact.manifest.model.head != "diffusion":
            raise RequestError(f"{self.artifact} has a flow head; mar optimize-steps needs a diffusion head")
        if self.name in artifact.manifest.presets and not self.replace:
            raise RequestError(f"{self.artifact} already has a preset {self.name!r}; give another --name, or --replace")
        if self.out is None:
            artifact.check_changeable()
            check_writable(self.artifact / MANIFEST)
        else:
            check_artifact_target(self.out)
        return artifact

    def write(self, sampling: Sampling) -> pathlib.Path:
        """Write the preset; return the folder of the artifact that has it.

        The manifest is read again, because engines may have been built during the search.
        """
        manifest = self.check().manifest
        manifest = dataclasses.replace(manifest, presets={**manifest.presets, self.name: sampling})
        if self.out is None:
            write_json(self.artifact / MANIFEST, manifest.to_dict())
            return self.artifact
        with replacing_folder(self.out) as folder:
            for file in manifest.files:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.artifact / file, folder / file)
            write_json(folder / MANIFEST, manifest.to_dict())
            Artifact(folder).verify(builds=True)
        return self.out
