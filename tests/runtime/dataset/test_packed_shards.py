"""Tar files are read by WebDataset itself; equal images make equal files."""

from __future__ import annotations

import hashlib
import io
import pathlib

import numpy as np
import webdataset
from PIL import Image

from runtime.dataset.packed_shards import pack_npz, pack_tar
from runtime.image_records.encoding import read_records
from runtime.image_records.record import ImageRecord, parse_record, settings_values
from runtime.sampling.settings import Sampling

RECORDS = [
    ImageRecord(number % 2, ("cat", "a.dog/")[number % 2], 2**63, number, settings_values(Sampling()), "fast", "0" * 64)
    for number in range(3)
]
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 5, 5, 3), np.uint8)


def test_webdataset_reads_a_tar_file(tmp_path: pathlib.Path) -> None:
    content, hashes = pack_tar(IMAGES, RECORDS)
    (tmp_path / "shard-000000.tar").write_bytes(content)
    samples = list(webdataset.WebDataset(str(tmp_path / "shard-000000.tar"), shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == [
        "000-cat-seed9223372036854775808-000000",
        "001-a-dog-seed9223372036854775808-000001",
        "000-cat-seed9223372036854775808-000002",
    ]
    decoded = webdataset.WebDataset(str(tmp_path / "shard-000000.tar"), shardshuffle=False, empty_check=False)
    for sample, raw, image, record, sha256 in zip(
        decoded.decode("rgb8"), samples, IMAGES, RECORDS, hashes, strict=True
    ):
        np.testing.assert_array_equal(sample["png"], image)
        assert sample["cls"] == record.class_number
        assert parse_record(sample["json"], "json") == record
        assert hashlib.sha256(raw["png"]).hexdigest() == sha256
        (tmp_path / "image.png").write_bytes(raw["png"])
        assert read_records(tmp_path / "image.png") == (record,)
        assert Image.open(io.BytesIO(raw["png"])).mode == "RGB"


def test_equal_images_make_equal_files() -> None:
    for pack in (pack_tar, pack_npz):
        assert pack(IMAGES, RECORDS) == pack(IMAGES.copy(), list(RECORDS))


def test_the_hash_in_an_npz_file_is_that_of_the_pixels() -> None:
    content, hashes = pack_npz(IMAGES, RECORDS)
    with np.load(io.BytesIO(content)) as arrays:
        assert [hashlib.sha256(image.tobytes()).hexdigest() for image in arrays["images"]] == hashes
        assert arrays["index"].dtype == np.uint64
