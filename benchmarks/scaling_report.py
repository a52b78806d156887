"""The report file of `benchmarks.scaling`, written while it measures."""

from __future__ import annotations

import datetime
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.scaling_rows import Point, Series, merged
from mar_export.benchmark.report import provenance
from mar_export.benchmark.runners import Stages
from runtime.errors import MarError, RequestError
from runtime.provenance import without_secrets
from runtime.storage.files import write_json
from runtime.storage.structured_files import FaultReport, read_json_object

_LIBRARIES = ("numpy", "onnxruntime", "openvino", "torch")


class Report:
    """A report file, to which one run of this command adds rows of one axis.

    Attributes:
        value: The report.
        about: What the run is measured with.
    """

    def __init__(self, file: pathlib.Path, axis: str, of: Mapping[str, Any]) -> None:
        """Read what the file has.

        Args:
            file: The JSON file; it need not exist.
            axis: The axis whose rows are added.
            of: What all parts of the report have in common.

        Raises:
            MarError: The file is no report, or one of something else.
        """
        self.value = read_json_object(file, FaultReport(MarError, "remove it")) if file.exists() else dict(of)
        for name, expected in of.items():
            if self.value.get(name) != expected:
                raise RequestError(
                    f"{file}: the {name.replace('_', ' ')} of its figures must be {expected}, found "
                    f"{self.value.get(name)}; give another file"
                )
        self._file, self._axis, self._before = file, axis, self.value.get(axis, {})
        self._run = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self._rows = dict[tuple[Point, Series], dict[str, Any]]()
        self.about: dict[str, Any] = {
            **provenance(_LIBRARIES),
            "command": without_secrets(sys.argv),
            "load_average": os.getloadavg()[0],
            "machine_gflops": {},
            "skipped": {},
        }

    def add(
        self, point: Point, series: Series, operations: Mapping[str, float], seconds: float, stages: Stages
    ) -> None:
        """Add a generation to its row, and write the file."""
        of_row = {**point._asdict(), **series._asdict(), "run": self._run, "operations": dict(operations)}
        row = self._rows.setdefault((point, series), {**of_row, "seconds": [], "stage_seconds": {}})
        row["seconds"].append(seconds)
        for stage, spent in stages.items():
            row["stage_seconds"].setdefault(stage, []).append(spent)
        self.write()

    def add_machine(self, threads: int, gflops: float) -> None:
        """Add the GFLOP/s that the machine reaches now in a large product."""
        self.about["machine_gflops"].setdefault(str(threads), []).append(gflops)

    def skip(self, series: Series, reason: str) -> None:
        """Say that a series is not measured, or no further."""
        name = f"{series.runner} in {series.precision}"
        self.about["skipped"][name] = reason
        print(f"without {name}: {reason}", flush=True)

    def write(self) -> None:
        """Write the file with what was measured so far."""
        self.value[self._axis] = merged(self._before, self._run, self.about, list(self._rows.values()))
        write_json(self._file, self.value)
