"""Which settings change the bits of an image: each setting alone, in a process of its own, against the usual ones."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.numerics.probe import RunsOn
from runtime.distance import relative_l2
from runtime.errors import MarError
from runtime.storage.stored_files import load_arrays
from runtime.storage.structured_files import FaultReport

_CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
_ONE = {"OMP_NUM_THREADS": "1"}

Arrays = Mapping[str, NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to generate the images of `benchmarks.numerics.probe`.

    Attributes:
        kind: What differs from the baseline, such as `threads`.
        name: Its value, for people.
        arguments: Options of the probe.
        environment: Environment variables.
        versions: Exact versions of packages, such as `onnxruntime==1.25.0`, in an environment of their own.
        precision: The artifact, `fp32` or `int8`.
    """

    kind: str
    name: str
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    versions: Sequence[str] = ()
    precision: str = "fp32"

    @property
    def backend(self) -> str:
        """The backend of the probe."""
        return "openvino" if "openvino" in self.arguments else "onnxruntime"


OPENVINO = ("--backend", "openvino")


def backend_settings(backend: Sequence[str], precision: str) -> list[Setting]:
    """Return the settings of a backend that need no other package: first the baseline, then threads and batches."""
    return [
        Setting("baseline", "1 thread, batches of 4", backend, precision=precision),
        Setting("repetition", "the same again", backend, precision=precision),
        *(
            Setting("threads", f"{threads} threads", (*backend, "--threads", str(threads)), precision=precision)
            for threads in (2, 4)
        ),
        *(
            Setting("batch", f"batches of {batch}", (*backend, "--batch", str(batch)), precision=precision)
            for batch in (1, 2, 16)
        ),
    ]


PROCESSORS = [
    Setting("processor", f"ONEDNN_MAX_CPU_ISA={isa}", OPENVINO, {"ONEDNN_MAX_CPU_ISA": isa})
    for isa in ("SSE41", "AVX", "AVX2")
]
"""Older processors of OpenVINO, by the switch of oneDNN. ONNX Runtime has no such switch."""

VERSIONS = {
    (): (
        ("onnxruntime==1.25.0", "numpy==1.26.4"),
        ("onnxruntime==1.26.0", "numpy==2.4.6"),
        ("onnxruntime==1.31.1", "numpy==1.26.4"),
        ("onnxruntime==1.31.1", "numpy==2.4.6"),
    ),
    OPENVINO: (("openvino==2026.2.0", "numpy==2.4.6"), ("openvino==2026.4.1", "numpy==2.4.6")),
}
"""The oldest and the newest version of each backend that the pins name, and some between them."""

ALL_SETTINGS = [
    *(
        each
        for precision in ("fp32", "int8")
        for backend in ((), OPENVINO)
        for each in backend_settings(backend, precision)
    ),
    Setting("lanes", "2 threads, parts of a batch at the same time", ("--threads", "2", "--split")),
    *(
        Setting("versions", ", ".join(pins), backend, versions=pins)
        for backend, choices in VERSIONS.items()
        for pins in choices
    ),
    *PROCESSORS,
]


def compare(found: Arrays, baseline: Arrays) -> dict[str, Any]:
    """Compare the images of a setting with those of the baseline.

    Returns:
        Whether the `random_numbers` and the `latents` have the same bits; the relative L2 `distance` of the latents;
        and, of the pixels of the images, the share that `differ` and the largest difference in `levels`.
    """
    latents, expected = found["latents"], baseline["latents"]
    levels = np.abs(found["images"].astype(np.int16) - baseline["images"])
    return {
        "random_numbers": all(_same_bits(found[name], baseline[name]) for name in ("order", "noise")),
        "latents": _same_bits(latents, expected),
        "distance": relative_l2(latents, expected),
        "differ": float((levels > 0).mean()),
        "levels": int(levels.max()),
    }


def _same_bits(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def measure_determinism(
    artifacts: Mapping[str, pathlib.Path], settings: Sequence[Setting], work: pathlib.Path
) -> list[dict[str, Any]]:
    """Generate the images of every setting, and compare them with the baseline of the same backend and precision.

    Args:
        artifacts: The artifact of each precision.
        settings: The settings; the baseline of a backend and precision comes before its others.
        work: A folder for environments with other versions, which are used again.

    Returns:
        An entry for each setting: its backend, kind and name, and what `compare` returns, or `failed` with a message.
    """
    baselines: dict[tuple[str, str], Arrays] = {}
    entries = []
    for setting in settings:
        entry: dict[str, Any] = {
            "backend": setting.backend,
            "precision": setting.precision,
            "kind": setting.kind,
            "name": setting.name,
        }
        try:
            runs_on, found = run_probe(artifacts[setting.precision], setting, work)
        except MarError as error:
            entry["failed"] = str(error)
        else:
            baseline = baselines.setdefault((setting.backend, setting.precision), found)
            entry |= {"runs_on": runs_on, **compare(found, baseline)}
        entries.append(entry)
        print(entry)
    return entries


def run_probe(artifact: pathlib.Path, setting: Setting, work: pathlib.Path) -> tuple[str, Arrays]:
    """Run the probe in a process of its own, and return what ran it, for people, and its arrays.

    Raises:
        MarError: It failed.
    """
    python = environment_with(setting.versions, work) if setting.versions else pathlib.Path(sys.executable)
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder, "images.npz")
        command = [str(python), "-m", "benchmarks.numerics.probe", str(artifact.resolve()), str(out)]
        environment = {**os.environ, **_ONE, "PYTHONPATH": str(_CHECKOUT), **setting.environment}
        done = subprocess.run(
            [*command, *setting.arguments], env=environment, cwd=_CHECKOUT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise MarError(f"{setting.name} ended with {done.returncode}: {lines[-1] if lines else 'no message'}")
        header, arrays = load_arrays(out, RunsOn, FaultReport(MarError, "measure again"))
        return header.description, arrays


def environment_with(versions: Sequence[str], work: pathlib.Path) -> pathlib.Path:
    """Return the Python of an environment with exact versions of packages, which is made if it is not in `work`."""
    folder = work.resolve() / "-".join(each.replace("==", "-") for each in versions)
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        commands = [
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [
                str(python),
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "click",
                "pillow",
                *versions,
            ],
        ]
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise MarError(f"cannot install {', '.join(versions)}: {done.stderr.strip().splitlines()[-1]}")
        (folder / "installed").touch()
    return python
