"""Kill commands while they change files: when the same command runs again, it must end as an undisturbed run does.

`python -m tests.fuzz.kills N [SEED [COMMAND ...]]` kills N times, spread over the commands. Each is run by a fork of
this process, which has imported everything, and is killed just before its k-th change of a file.

What a command measures or stamps differs from run to run: times are constants here, and the time of an export and the
files of `_DIFFERENT` are not compared. A stand-in takes the place of TensorRT, whose engines differ too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from calibration.steps.timing import StepTimes
from mar_export.tensorrt.engine_builder import BuilderFlags, Progress, TensorRTBuilder
from runtime.artifact.artifact_folder import Artifact, is_artifact
from runtime.artifact.engine_builds import Shapes
from runtime.cli.group import mar
from runtime.cli.main import main
from tests.helpers.published_forms import HEADS, VAE, mar_weights, vae_weights, write_pth, write_safetensors
from tests.helpers.tiny_runs import TINY, randomized, write_idx_dataset
from training.checkpoints.checkpoint import Checkpoint, save_run
from training.models.mar import MAR

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CREATED = re.compile(rb'"created": "[^"]*"')  # in a manifest
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
_DIFFERENT = ("log.jsonl", "environment.json", "loss.png")  # they hold times, or that a run was resumed
_LAST_LINES = 12


@dataclasses.dataclass(frozen=True)
class Case:
    """A command.

    Attributes:
        line: Its arguments; `{inputs}` and `{work}` are folders.
        again: The arguments of the next command after a kill, if they are others.
        began: The file whose presence calls for `again`.
        changes: The folder among the inputs that the command changes; it works on a copy of it in `{work}`.
    """

    line: str
    again: str = ""
    began: str = ""
    changes: str = ""


_HEAD = "--data {inputs}/images --out {work}/head --count 24 --steps 3 --batch-size 8 --threads 1"
_EXPORT = "export {inputs}/run --out {work}/artifact --cfg-scale 1.5 --diffusion-steps ddim4"
_BUILD = "--target tensorrt-rtx --architecture sm_89"
CASES = {
    "train": Case(
        "train --config {inputs}/train.toml --data {inputs}/images --out {work}/run --threads 1",
        "train --resume {work}/run --threads 1",
        "run/config.json",
    ),
    "cache-latents": Case(
        "cache-latents --data {inputs}/images --tokenizer {inputs}/kl.safetensors --out {work}/cache --image-size 12 "
        "--threads 1"
    ),
    "flow-head": Case(f"flow-head {{inputs}}/run {_HEAD}"),
    "distill": Case(f"distill {{inputs}}/run --to 2 --teacher-steps 4 {_HEAD}"),
    "evaluate": Case(
        "evaluate {inputs}/run --data {inputs}/images --split train --out {work}/out --count 60 --iterations 2 "
        "--diffusion-steps ddim2 --classifier {work}/classifier.safetensors --report {work}/figures.json --threads 1"
    ),
    "export": Case(_EXPORT),
    "calibrate": Case(
        "calibrate {inputs}/artifact --out {work}/int8 --count 20 --eval-count 2 --target-sqnr 1 --iterations 2 "
        "--threads 1"
    ),
    "generate": Case(
        "generate {inputs}/artifact --out {work}/grid.png --save-latents {work}/latents.npy --count 2 --iterations 2 "
        "--threads 1"
    ),
    "generate-dataset": Case(
        "generate-dataset {inputs}/artifact --out {work}/out --count 8 --batch-size 2 --shard-size 4 --iterations 2 "
        "--threads 1"
    ),
    "generate-dataset-tar": Case(
        "generate-dataset {inputs}/artifact --out {work}/out --count 8 --batch-size 2 --shard-size 4 --iterations 2 "
        "--threads 1 --format webdataset"
    ),
    "build": Case(f"build {{work}}/built {_BUILD} --tf32 --force", changes="built"),
    "import": Case(
        "import {inputs}/published.pth --model-config {inputs}/heads.json --tokenizer {inputs}/kl.safetensors "
        "--out {work}/run"
    ),
    "optimize-steps": Case(
        "optimize-steps {work}/artifact --allowed-error 0.9 --count 2 --iterations 2 --threads 1 --force",
        changes="artifact",
    ),
    "train-tokenizer": Case(
        "train-tokenizer --config {inputs}/tokenizer.toml --data {inputs}/images --out {work}/run --threads 1",
        "train-tokenizer --resume {work}/run --threads 1",
        "run/config.json",
    ),
    "sign": Case("sign {work}/artifact --key {inputs}/key.pem", changes="artifact"),
}
_NEED_ARTIFACT = {
    "calibrate",
    "generate",
    "generate-dataset",
    "generate-dataset-tar",
    "build",
    "optimize-steps",
    "sign",
}

_OF_DATA = ("class_num", "vae_embed_dim")  # which a new run takes from its data
_CONFIG = """
[model]
{model}
[training]
steps = 4
batch_size = 4
precision = "fp32"
checkpoint_every = 2
sample_every = 2
"""
_TOKENIZER_CONFIG = """
[model]
latent_channels = 2
width = 32
multipliers = [1, 1]
blocks = 1
attention_levels = []
[training]
steps = 4
image_size = 12
batch_size = 4
precision = "fp32"
adversarial_from = 2
discriminator_width = 8
discriminator_layers = 1
eval_count = 4
checkpoint_every = 2
sample_every = 2
"""


class _Builder(TensorRTBuilder):
    """Stands for TensorRT: an engine is a hash of what it is built from."""

    def __init__(self, target: str, architectures: Sequence[str]) -> None:
        self.target, self.version, self.architectures = target, "1.7.1.116", tuple(architectures)

    def build(
        self,
        graph: pathlib.Path,
        profile: Mapping[str, Shapes],
        flags: BuilderFlags,
        timing_cache: pathlib.Path | None,
        progress: Progress | None,
    ) -> bytes:
        return hashlib.sha256(graph.read_bytes() + repr((profile, flags)).encode()).digest()


def _make_repeatable() -> None:
    """Replace what differs from run to run, and shorten the search for diffusion steps."""
    patched = pytest.MonkeyPatch()
    patched.setattr("mar_export.cli.build.TensorRTBuilder", _Builder)
    times = StepTimes(1e-3, np.full(2, 1e-3))
    patched.setattr("calibration.steps.plan_search.measure_times", lambda *arguments: times)
    for module in ("steps.error_model", "steps.held_out_evaluation", "cli.optimize_steps"):
        patched.setattr(f"calibration.{module}.REFERENCE_STEPS", 60)
    for module in ("steps.held_out_evaluation", "cli.optimize_steps"):
        patched.setattr(f"calibration.{module}.EVAL_COUNT", 1)


def make_inputs(inputs: pathlib.Path, names: list[str]) -> None:
    """Make what the commands read: images, a run, an autoencoder, a config, and an artifact if one needs it."""
    write_idx_dataset(inputs / "images", images=160)
    model = randomized(MAR(**TINY.to_dict()))
    save_run(inputs / "run", Checkpoint(model, "pixel", ("0", "1", "2"), "tiny", "0" * 64))
    write_safetensors(inputs / "kl.safetensors", vae_weights(VAE))
    write_pth(inputs / "published.pth", mar_weights())
    (inputs / "heads.json").write_text(json.dumps(HEADS))
    (inputs / "tokenizer.toml").write_text(_TOKENIZER_CONFIG)
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    (inputs / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    values = {name: value for name, value in TINY.to_dict().items() if type(value) in (int, float)}
    lines = "\n".join(f"{name} = {value}" for name, value in values.items() if name not in _OF_DATA)
    (inputs / "train.toml").write_text(_CONFIG.format(model=lines))
    if _NEED_ARTIFACT & {*names}:
        _run_once(inputs, _EXPORT.replace("{work}", "{inputs}"))
        shutil.copytree(inputs / "artifact", inputs / "built")
        _run_once(inputs, f"build {{inputs}}/built {_BUILD}")


def _run_once(inputs: pathlib.Path, line: str) -> None:
    ended = run_forked(line.format(inputs=inputs), inputs / "changes", inputs / "output")
    assert ended == 0, (inputs / "output").read_text()


def run_forked(line: str, counted: pathlib.Path, output: pathlib.Path, kill_at: int = 0) -> int:
    """Run `mar` in a fork of this process.

    Args:
        line: The arguments.
        counted: Gets the number of changes of files, unless the process is killed.
        output: Gets what is printed.
        kill_at: The change before which the process is killed, from 1; 0 for none.

    Returns:
        The exit code; negative, the signal that killed it.
    """
    sys.stdout.flush()
    printed = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    process = os.fork()
    if process == 0:
        code = 1
        try:
            for stream in (sys.stdout, sys.stderr):
                os.dup2(printed, stream.fileno())
            changes = _count_changes(kill_at)
            sys.argv = ["mar", *line.split()]
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
            number = changes()
            counted.write_text(str(number))
        finally:
            os._exit(code)
    os.close(printed)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _count_changes(kill_at: int) -> Callable[[], int]:
    """Count the changes of files of this process from now on; kill it before number `kill_at`."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            path, _, flags = arguments
            changes = isinstance(flags, int) and bool(flags & _WRITING) and "/dev/" not in os.fsdecode(path or "/dev/")
        else:
            changes = event in _CHANGES or (event == "ctypes.dlsym" and arguments[1] == "renameat2")
        if changes:
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: count


def content(folder: pathlib.Path) -> dict[str, str]:
    """Return the hash of every file in a folder, empty for those that differ from run to run; check its artifacts."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and "tfevents" not in name:
            same = path.name not in _DIFFERENT
            found[name] = hashlib.sha256(_CREATED.sub(b"", path.read_bytes())).hexdigest() if same else ""
        elif path.name.startswith("."):
            found[name] = "a hidden folder"
        elif is_artifact(path):
            Artifact(path).verify(builds=True)
    return found


class Killer:
    """Kills a command at chosen changes, and compares what the next one makes with what an undisturbed one makes."""

    def __init__(self, folder: pathlib.Path, case: Case) -> None:
        self._case, self._inputs, self._work = case, folder / "inputs", folder / "work"
        self._counted, self._output = folder / "changes", folder / "output"
        self._new_work()
        self._finish(case.line, "undisturbed")
        self.changes = int(self._counted.read_text())
        self._expected = content(self._work)

    def kill(self, at: int) -> Mapping[str, tuple[str | None, str | None]]:
        """Kill at a change and give the command again; return the files that are not as expected: found, expected."""
        self._new_work()
        ended = self._run(self._case.line, at)
        assert ended == -signal.SIGKILL, f"ended with {ended} before change {at}"
        resumes = self._case.again and (self._work / self._case.began).exists()
        self._finish(self._case.again if resumes else self._case.line, f"after a kill at change {at}")
        found = content(self._work)
        names = sorted(found.keys() | self._expected.keys())
        pairs = {name: (found.get(name), self._expected.get(name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def _new_work(self) -> None:
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir()
        if changed := self._case.changes:
            shutil.copytree(self._inputs / changed, self._work / changed)

    def _run(self, line: str, at: int = 0) -> int:
        return run_forked(line.format(inputs=self._inputs, work=self._work), self._counted, self._output, at)

    def _finish(self, line: str, when: str) -> None:
        ended = self._run(line)
        text = "\n".join(self._output.read_text().splitlines()[-_LAST_LINES:])
        assert ended == 0, f"{line}, {when}: ended with {ended}: {text}"


def run_kills(number: int, seed: int, names: list[str]) -> int:
    """Kill `number` times, spread over the commands `names`; print what differs and return how often."""
    torch.set_num_threads(1)
    _make_repeatable()
    wrong, choose = 0, random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        (folder / "inputs").mkdir()
        make_inputs(folder / "inputs", names)
        for place, name in enumerate(names):
            mar.get_command(click.Context(mar), name)  # imports it, once for all forks
            killer = Killer(folder, CASES[name])
            share = number // len(names) + (place < number % len(names))
            chosen = sorted(choose.sample(range(1, killer.changes + 1), min(share, killer.changes)))
            for at in chosen:
                try:
                    differing: object = killer.kill(at)
                except AssertionError as error:
                    differing = error
                if differing:
                    wrong += 1
                    print(f"{name}, killed at change {at} of {killer.changes}: {differing}", flush=True)
            print(f"{name}: {len(chosen)} kills at {killer.changes} changes", flush=True)
    return wrong


if __name__ == "__main__":
    arguments = sys.argv[1:]
    chosen_names = arguments[2:] or list(CASES)
    sys.exit(min(1, run_kills(int(arguments[0]), int(arguments[1]) if arguments[1:] else 0, chosen_names)))
