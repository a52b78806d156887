"""The table of the memory and the time by the size of a group of modulations."""

from __future__ import annotations

from benchmarks.modulation_groups import modulation_groups_table


def test_every_size_has_its_peak_and_its_median_for_each_artifact() -> None:
    one = {
        "engine_bytes": 200 * 2**20,
        "peaks": {"16": 300 * 2**20, "2": 250 * 2**20},
        "seconds": {"16": [3.0, 1.0, 2.0], "2": [4.0, 4.0, 4.5]},
    }
    figures = {"threads": 2, "rounds": 3, "processor": "EPYC", "commit": "abc", "artifacts": {"int8": one, "fp32": one}}
    lines = modulation_groups_table(figures).splitlines()
    assert lines[0] == "One image of `fast`, 2 threads; medians of 3 in turns. EPYC, commit abc."
    cells = " 300 MiB | 1.50x | 2.00 s (1.00 to 3.00) |"
    assert lines[-2] == f"| 16 MiB |{cells}{cells}"
    assert lines[-1].startswith("| 2 MiB | 250 MiB | 1.25x | 4.00 s (4.00 to 4.50) |")
