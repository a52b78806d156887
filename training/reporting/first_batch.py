"""The images of the first batch of a run, as the model sees them: cropped, scaled, mirrored, over their background."""

from __future__ import annotations

import pathlib

from runtime.image_grid import class_caption, save_grid
from runtime.storage.files import replacing
from training.data.latent_dataset import LatentDataset
from training.data.loader import Batch, MicroBatch

FIRST_BATCH_FILE = "first-batch.png"
"""The name of the image in the folder of a run."""

_MOST_IMAGES = 16  # a large autoencoder decodes for seconds per image
_COLUMNS = 8
_NO_CLASS = "(no class)"


def save_first_batch(path: pathlib.Path, part: MicroBatch, dataset: LatentDataset) -> None:
    """Save up to 16 images of a micro-batch as one PNG, each with the class that the model is told.

    Args:
        path: The PNG file.
        part: The micro-batch.
        dataset: The training data, which has the names of the classes and the decoder of latents.
    """
    images = dataset.images(part.batch[0][:_MOST_IMAGES].cpu().numpy())
    labels = part.batch.labels.tolist() if isinstance(part.batch, Batch) else dataset.labels[part.examples].tolist()
    names = (*dataset.classes, _NO_CLASS)
    captions = [class_caption(names[label], label) for label in labels[:_MOST_IMAGES]]
    with replacing(path) as temporary:
        save_grid(temporary, images, captions, columns=min(_COLUMNS, len(images)))
