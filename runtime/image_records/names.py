"""Names of image files and of folders of classes, which every file system takes and no two images share."""

from __future__ import annotations

import re
import unicodedata

from runtime.image_records.record import ImageRecord

_LONGEST_NAME = 40  # letters of a class's name in the name of a file
_OTHER = re.compile(r"[^A-Za-z0-9_]+")


def image_name(record: ImageRecord, suffix: str = ".png") -> str:
    """Return the name of an image's file, such as `007-sneaker-seed1-000005.png`.

    The number of the class, the seed and the index tell all images of one model and setting apart, whatever the names
    of classes are. The name of the class is for people: other letters than those of ASCII are left out of it.
    """
    return f"{class_folder(record)}-seed{record.seed}-{record.index:06d}{suffix}"


def class_folder(record: ImageRecord) -> str:
    """Return the name of the folder of an image's class, such as `007-sneaker`."""
    letters = unicodedata.normalize("NFKD", record.class_name).encode("ascii", "ignore").decode()
    name = _OTHER.sub("-", letters).strip("-")[:_LONGEST_NAME].strip("-")
    return f"{record.class_number:03d}" + (f"-{name}" if name else "")
