"""An artifact as the model of a dataset, which every worker opens."""

from __future__ import annotations

import contextlib
import pathlib
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.dataset.draw import Draw
from runtime.errors import ArtifactError
from runtime.generator import Generator
from runtime.image_records.record import ImageRecord
from runtime.sampling.settings import Sampling


@contextlib.contextmanager
def open_artifact(
    artifact: pathlib.Path, content_sha256: str, sampling: Sampling, backend: Mapping[str, Any]
) -> Iterator[Draw]:
    """Load an artifact, and give the function that draws with it.

    Args:
        artifact: The folder of the artifact, which has the same path on every machine.
        content_sha256: The hash of the artifact that is meant.
        sampling: The settings.
        backend: Arguments of `Generator.load`.

    Raises:
        ArtifactError: There is no artifact on this machine, or another one.
        BackendError: The backend cannot run it.
    """
    with Generator.load(artifact, **backend) as generator:
        if generator.manifest.content_sha256 != content_sha256:
            raise ArtifactError(
                f"{artifact} on {platform.node()} is another artifact; copy the same one to every machine"
            )

        def draw(records: Sequence[ImageRecord], batch_size: int) -> Iterable[NDArray[np.uint8]]:
            labels = [record.class_number for record in records]
            index = [record.index for record in records]
            seed = records[0].seed
            for result in generator.generate_batches(labels, batch_size, seed=seed, index=index, sampling=sampling):
                assert result.images is not None  # a plan without a decoder is refused before
                yield result.images

        yield draw
