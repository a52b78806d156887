"""`mar generate --out-dir`: images as files of their own, written as they are drawn, by a run that can be continued."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from runtime.checks import pluralize
from runtime.cli.generate_batches import generate_batches
from runtime.generator import Generator
from runtime.image_records.index import INDEX
from runtime.image_records.record import ImageRecord
from runtime.log import LOG

if TYPE_CHECKING:
    from runtime.image_records.folder import ImageFolder

_Item = TypeVar("_Item")


def fill_folder(
    generator: Generator,
    out_dir: pathlib.Path,
    records: Sequence[ImageRecord],
    shard: tuple[int, int] | None,
    batch_size: int,
    decode_batch: int,
    settings: Mapping[str, Any],
) -> int:
    """Draw those images, or those of one shard, that a folder does not have yet.

    The batches are those of a run that draws everything, so that an image is the same to the last bit.

    Args:
        generator: Draws the images.
        out_dir: The folder.
        records: The images of all shards.
        shard: K and N of the shard. None: all images.
        batch_size: The number of images in a batch.
        decode_batch: The number of images that are decoded together.
        settings: The sampling settings, as the caller gave them.

    Returns:
        The number of images that were drawn.

    Raises:
        RequestError: The folder has other images under the names of these.
        MarError: Another process fills the folder, or it cannot be written.
    """
    batches = [records[start : start + batch_size] for start in range(0, len(records), batch_size)]
    own = _share(batches, shard or (1, 1))
    with _open(out_dir, shard) as folder:
        if not own:
            LOG.warning(
                f"this shard has no images: {pluralize(len(records), 'image')} in batches of {batch_size} are "
                f"{pluralize(len(batches), 'batch')}; a smaller --batch-size makes more"
            )
        finished = [[folder.has(record) for record in batch] for batch in own]
        count, before = sum(map(len, own)), sum(map(sum, finished))
        if before:
            LOG.info(f"{before} of {pluralize(count, 'image')} are in {out_dir} already")
        missing = [record for batch, done in zip(own, finished, strict=True) if not all(done) for record in batch]
        if missing:
            for result in generate_batches(generator, missing, batch_size, settings, decode_batch=decode_batch):
                assert result.images is not None  # an artifact without a decoder is refused before
                folder.add(result.records, result.images)
        if not folder.complete(records):
            LOG.info(f"{INDEX} lists every image as soon as all {(shard or (1, 1))[1]} shards are complete")
    return count - before


def _open(out_dir: pathlib.Path, shard: tuple[int, int] | None) -> ImageFolder:
    from runtime.image_records.folder import ImageFolder  # it imports Pillow, which no engine need wait for

    return ImageFolder(out_dir, shard=shard)


def _share(batches: Sequence[_Item], shard: tuple[int, int]) -> Sequence[_Item]:
    """Return the batches of a shard, which follow one another."""
    number, of = shard
    return batches[len(batches) * (number - 1) // of : len(batches) * number // of]
