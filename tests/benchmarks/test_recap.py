"""The tables of the benchmarks of ReCAP."""

from __future__ import annotations

from typing import Any

from benchmarks.recap import recap_table
from benchmarks.recap_quality import instant_settings, recap_quality_table, reuse_settings
from runtime.sampling.presets import PRESETS


def compared(name: str, operations: float, seconds: list[float]) -> dict[str, Any]:
    return {"name": name, "full_passes": 4, "operations": operations, "seconds": seconds}


def test_settings_are_compared_with_the_first_by_their_medians() -> None:
    figures = {
        "model": "mar_base",
        "iterations": 8,
        "runs_on": "onnxruntime",
        "processor": "EPYC",
        "commit": "abc",
        "compared": [compared("full passes only", 8e12, [2, 4, 9]), compared("local", 4e12, [3, 1, 2])],
    }
    assert recap_table(figures).splitlines()[-2:] == [
        "| full passes only | 4 | 8.00 | 1.00x | 4.00 (2.00 to 9.00) | 1.00x |",
        "| local | 4 | 4.00 | 2.00x | 2.00 (1.00 to 3.00) | 2.00x |",
    ]


def test_quality_has_its_standard_error_and_its_time() -> None:
    errors = {"top1_accuracy": 0.007, "frechet": 0.25}
    row = {
        "name": "3 of 4 local, buffer reused 32",
        "features": {"classifier": [{"top1_accuracy": 0.9, "frechet": 5.0, "standard_error": errors}]},
        "operations": 7.554e12,
        "milliseconds": {"median": 123.4, "p10": 119.6, "p90": 140.0},
    }
    report = {"images": 2000, "repeats": 5, "processor": "EPYC", "threads": 2, "commit": "abc", "settings": [row]}
    lines = recap_quality_table(report).splitlines()
    assert lines[0].startswith("2,000 images each.") and lines[0].endswith("EPYC, 2 threads, commit abc.")
    assert lines[-1] == "| 3 of 4 local, buffer reused | 32 | 7.55 | 123 (120 to 140) | 90.0% ± 0.7% | 5.000 ± 0.250 |"


def test_settings_have_names_of_their_own_that_end_with_their_iterations() -> None:
    for settings in (reuse_settings(), instant_settings()):
        names = [setting.name for setting in settings]
        assert len(set(names)) == len(names)
        for setting in settings:
            preset = PRESETS[setting.sampling["preset"]]
            assert int(setting.name.split()[-1]) == setting.sampling.get("iterations", preset["iterations"])
