"""`python -m tests.fuzz N [SEED] [SURFACE...]`: N inputs of every surface; exits with 1 if there was a fault."""

from __future__ import annotations

import pathlib
import sys
import tempfile

import torch

from runtime.generator import Generator
from tests.fuzz.calls import api_call, option_call
from tests.fuzz.fuzzer import Report, fuzz_calls, fuzz_files
from tests.fuzz.surfaces import SURFACES, export

CALLS = ("Python interface", "options")


def run(name: str, folder: pathlib.Path, seeds: range) -> Report:
    """Run the inputs of one surface; its files are made in an empty folder."""
    if name in SURFACES:
        return fuzz_files(name, SURFACES[name], folder, seeds)
    export(folder)
    if name == "options":
        return fuzz_calls(name, option_call(folder / "artifact", folder), seeds)
    with Generator.load(folder / "artifact", threads=1) as generator:
        return fuzz_calls(name, api_call(generator), seeds)


def main(count: int, first: int = 0, *names: str) -> int:
    """Print a table with a row for each surface, and every fault. Return the number of faults."""
    torch.set_num_threads(1)
    faults = 0
    print(f"{'surface':24} {'inputs':>7} {'same':>7} {'refused':>7} {'other':>7} {'faults':>7}")
    for name in names or (*SURFACES, *CALLS):
        with tempfile.TemporaryDirectory() as folder:
            report = run(name, pathlib.Path(folder), range(first, first + count))
        counts = (count, report.same, report.refused, report.other, len(report.faults))
        print(f"{name:24} " + " ".join(f"{number:7}" for number in counts), flush=True)
        for fault in report.faults:
            print(f"  {fault}", flush=True)
        faults += len(report.faults)
    return faults


if __name__ == "__main__":
    count, first, *names = [*sys.argv[1:], "0"][:2] + sys.argv[3:]
    sys.exit(main(int(count), int(first), *names) > 0)
