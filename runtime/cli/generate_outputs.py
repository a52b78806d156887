"""What `mar generate` writes: one image or a grid, a folder of images, latents."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import click
import numpy as np

from runtime.cli.generate_grid import COLUMNS, check_grid, write_images
from runtime.cli.generate_sequence import ImageSequence
from runtime.cli.result_files import check_result_file, result_file
from runtime.errors import RequestError
from runtime.generator import Generator
from runtime.image_grid import check_image_file
from runtime.result import Result

FOLDER_HINT = "to write each image into its own file, use --out-dir"
"""How messages and help name the way to write many images."""


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What is written: the values of the options."""

    out: pathlib.Path | None
    out_dir: pathlib.Path | None
    save_latents: pathlib.Path | None
    shard: tuple[int, int] | None

    def check(self, given_numbers: bool) -> None:
        """Check that there is an output, that the options fit together, and that every file can be written.

        Args:
            given_numbers: Whether an order or noise is read from a file.
        """
        if self.out_dir is not None:
            if self.out is not None or self.save_latents is not None:
                other = "--out" if self.out is not None else "--save-latents"
                raise RequestError(f"give either --out-dir or {other}, found both")
            if given_numbers:
                raise RequestError("--order-file and --noise-file are for one request; use --out or --save-latents")
            return
        if self.out is None and self.save_latents is None:
            raise RequestError("nothing to write: give --out IMAGE.png, --out-dir FOLDER or --save-latents FILE.npy")
        if self.shard is not None:
            raise RequestError("--shard is a part of --out-dir; add --out-dir, or remove --shard")
        if self.out is not None and self.save_latents is not None and self.out.resolve() == self.save_latents.resolve():
            raise RequestError(f"--out and --save-latents are both {self.out}; give them different files")
        if self.out is not None:
            check_image_file(self.out)
        for path in (self.out, self.save_latents):
            if path is not None:
                check_result_file(path)

    def check_decoder(self, generator: Generator, artifact: pathlib.Path) -> None:
        """Check that an artifact makes images if images are to be written."""
        if generator.manifest.tokenizer == "none" and not (self.out is None and self.out_dir is None):
            option = "--out" if self.out_dir is None else "--out-dir"
            raise RequestError(
                f"{artifact} has no decoder, so it makes latents, not images; use --save-latents instead of {option}, "
                "or export it with --tokenizer"
            )

    def columns(self, sequence: ImageSequence, image_shape: Sequence[int]) -> int:
        """Return the images in a row of the grid, one for each subject. Raises `RequestError` for a grid too large."""
        columns = len(sequence.subjects) if len(sequence.subjects) > 1 else COLUMNS
        columns = min(columns, sequence.count)
        if self.out is not None and sequence.count > 1:
            check_grid(sequence.count, columns, image_shape, FOLDER_HINT)
        return columns

    def write(self, results: Sequence[Result], columns: int) -> None:
        """Write the latents and the grid."""
        if self.save_latents is not None:
            with result_file(self.save_latents) as temporary, temporary.open("wb") as file:
                np.save(file, np.concatenate([result.latents for result in results]))
        if self.out is not None:
            images = np.concatenate([result.images for result in results if result.images is not None])
            with result_file(self.out) as temporary:
                write_images(temporary, images, [record for result in results for record in result.records], columns)

    def to_dict(self) -> dict[str, str | None]:
        """Return the paths of what was written, for the JSON document."""
        paths = {"out": self.out, "out_dir": self.out_dir, "save_latents": self.save_latents}
        return {name: None if path is None else str(path) for name, path in paths.items()}

    def print_places(self, count: int) -> None:
        """Print where everything was written."""
        places = (
            ("latents", self.save_latents),
            ("image" if count == 1 else "grid", self.out),
            ("images", self.out_dir),
        )
        for what, path in places:
            if path is not None:
                click.echo(f"{what} written to {path}")
