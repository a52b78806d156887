"""Time, memory and parity of exporting the published sizes, weights by formula, KL-16 included.

    python -m benchmarks.exports docs/benchmarks/data/exports.json mar_base:fp32 mar_base:fp16 mar_huge:fp32

Each export is a process of its own, whose peak of memory is the kernel's figure. What was measured before
stays in the file unless it is measured again.
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch

from runtime.artifact.artifact_folder import Artifact
from runtime.files import write_json
from tests.helpers.formula_weights import write_published_mar, write_published_vae


def main(out: pathlib.Path, wanted: list[str]) -> None:
    told = json.loads(out.read_text()) if out.exists() else {"exports": {}}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        root = pathlib.Path(folder)
        write_published_vae(root / "kl16.ckpt")
        for name in wanted:
            model, precision = name.split(":")
            checkpoint = root / f"{model}.pth"
            if not checkpoint.exists():
                write_published_mar(checkpoint, model)
            commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
            figures = measured(checkpoint, root / "kl16.ckpt", precision, root / "artifact")
            told["exports"][name] = {"commit": commit.stdout.strip(), **figures}
            told["versions"] = {"python": platform.python_version(), "torch": torch.__version__}
            write_json(out, told)
            print(name, json.dumps(told["exports"][name]))


def measured(checkpoint: pathlib.Path, vae: pathlib.Path, precision: str, artifact: pathlib.Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "runtime.cli.main", "export", str(checkpoint), "--tokenizer", str(vae)]
    started = time.perf_counter()
    process = subprocess.Popen([*command, "--precision", precision, "--out", str(artifact)])
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        sys.exit(f"the export of {checkpoint.name} in {precision} failed")
    manifest = Artifact(artifact).manifest
    return {
        "seconds": seconds,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "peak_memory_bytes": 1024 * usage.ru_maxrss,
        "artifact_bytes": sum(entry.bytes for entry in manifest.files.values()),
        "parity": dict(manifest.parity),
    }


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2:])
