"""The time of training steps of this trainer and of another one, with equal batches, in turns.

    python -m benchmarks.training OUT.json --model mar_base --batch 4 --rounds 14
    python -m benchmarks.training OUT.json --before ../before --config examples/procgen/mar.toml \
        --field vae_embed_dim=32 --field class_num=16 --batch 128 --threads 2 --rounds 40

The other one is that of an earlier commit, with `--before` and the folder of a second checkout. Without it, it is the
published trainer, written in `benchmarks.step_worker` from its description: boolean masks, the head on all tokens with
a masked loss, PyTorch's dropout and attention, AdamW and the moving average one tensor after another. Both train on
random latents, each in a process of its own, with the same settings and the same numbers of masked tokens.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import torch

from runtime.storage.files import write_json
from runtime.storage.structured_files import parse_json
from training.config import read_toml
from training.models.model_sizes import MODEL_SIZES

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
"""The folder of this code."""
_WORKER = CHECKOUT / "benchmarks" / "step_worker.py"
_RUN_WORKER = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"  # imports from its working folder


class Trainer:
    """A trainer in a process of its own, with the code of the folder `checkout`, ready for its first measured step."""

    def __init__(self, checkout: pathlib.Path, work: Mapping[str, Any]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _RUN_WORKER, str(_WORKER)],
            cwd=checkout,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.commit: str = self._ask(json.dumps(work))["commit"]
        self.steps: list[dict[str, float]] = []

    def step(self) -> dict[str, float]:
        """Take a step, and return its loss and its times."""
        self.steps.append(self._ask(""))
        return self.steps[-1]

    def column(self, name: str) -> list[float]:
        """Return one figure of all steps."""
        return [step[name] for step in self.steps]

    def stop(self) -> None:
        """End the process."""
        self._process.communicate()

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = parse_json(self._process.stdout.readline() or sys.exit("a trainer has failed"))
        return answer


def compare(
    model: Mapping[str, Any], training: Mapping[str, Any], threads: int, rounds: int, before: pathlib.Path | None
) -> dict[str, Any]:
    """Return the times of `rounds` steps of two trainers in turns, and their ratios.

    Args:
        model: Fields of `ModelConfig`.
        training: Fields of `TrainConfig`.
        threads: The number of processor threads.
        rounds: The number of steps of each.
        before: The checkout of the other trainer; None for the published one.
    """
    work = {"published": False, "model": model, "training": training, "threads": threads}
    other = Trainer(before or CHECKOUT, {**work, "published": before is None})
    this = Trainer(CHECKOUT, work)
    names = ("published" if before is None else f"before, {other.commit[:7]}", "ours")
    trainers = dict(zip(names, (other, this), strict=True))
    for _ in range(rounds):
        for name, trainer in trainers.items():
            spent = trainer.step()
            print(f"{name}: {spent['seconds']:.3f} s, {spent['cpu_seconds']:.3f} s of CPU", flush=True)
    for trainer in trainers.values():
        trainer.stop()
    kinds = ("seconds", "cpu_seconds")
    times = {name: {kind: trainer.column(kind) for kind in kinds} for name, trainer in trainers.items()}
    images = training["batch_size"]
    return {
        "commit": this.commit,
        "images_per_second": {name: images / statistics.median(times[name]["seconds"]) for name in names},
        "speedup": {kind: _ratios(*(times[name][kind] for name in names)) for kind in kinds},
        "times": times,
        "losses": {name: trainer.column("loss") for name, trainer in trainers.items()},
    }


def main() -> None:
    """Measure both trainers and write the times as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--model", default="mar_base", help="a named size")
    parser.add_argument("--config", type=pathlib.Path, help="a config of mar train, in place of --model")
    parser.add_argument("--field", action="append", default=[], metavar="NAME=JSON", help="a field of the model")
    parser.add_argument("--before", type=pathlib.Path, metavar="FOLDER", help="the checkout of an earlier commit")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--attention-precision", default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    fields = read_toml(arguments.config)["model"] if arguments.config else {"name": arguments.model}
    model = {**MODEL_SIZES[fields["name"]], **fields, **dict(map(_field, arguments.field))}
    del model["name"]
    settings = {name: getattr(arguments, name) for name in ("precision", "attention_precision", "compile")}
    training = {"steps": 1000, "batch_size": arguments.batch, **settings}
    figures = {
        "model": str(arguments.config or arguments.model),
        "fields": model,
        **{name: getattr(arguments, name) for name in ("batch", "rounds", "threads")},
        **settings,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **compare(model, training, arguments.threads, arguments.rounds, arguments.before),
    }
    write_json(arguments.out, figures)
    print(json.dumps({name: figures[name] for name in ("images_per_second", "speedup")}, indent=2))


def _field(argument: str) -> tuple[str, Any]:
    """Return name and value of a field that is given as NAME=JSON."""
    name, _, value = argument.partition("=")
    return name, parse_json(value)


def _ratios(theirs: list[float], ours: list[float]) -> dict[str, float]:
    """Return the ratio of both times, round by round."""
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


if __name__ == "__main__":
    main()
