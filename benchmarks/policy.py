"""The time of a robot policy's calls beside eager PyTorch, and how steady they are in a control loop.

    python -m benchmarks.policy docs/benchmarks/data/policy.json --rounds 5

exports a UVA of the published size (mar_base, with text) and its KL-16, both with random weights, into `out/policy`,
unless it is there. Then every case answers one call in each round, all in turns: eager PyTorch with threads that spin
while they wait (`OMP_WAIT_POLICY=active`) and with threads that sleep, and the runtime with four new frames or one, by
the published chain of 100 steps or by 10 steps of DDIM. The better of these two counts, round by round. A third eager
one has the dropout in attention that the library pinned by the published code applies in use. Only one process runs at
a time; the others are stopped. First, a small policy answers 1,000 calls of a film.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.policy_worker import observation
from benchmarks.workers import Worker
from mar_export.artifact.export import export_artifact
from mar_export.benchmark.machine_probe import Probe
from runtime import Policy
from runtime.artifact.artifact_folder import is_artifact
from runtime.backends import available_threads
from runtime.errors import MarError
from runtime.model.uva_config import FRAMES, UvaConfig
from runtime.provenance import commit, processor_name
from runtime.sampling.constraints import default_sampling, plan_for
from runtime.sampling.rng import seeded_noise
from runtime.storage.files import write_json
from tests.helpers.uva_cases import uva_case, uva_checkpoint
from training.checkpoints.random_weights import random_policy
from training.models.autoencoder import VAEConfig
from training.models.uva import SIZES as UVA_SIZES
from training.models.uva_reference import sample_actions

SIZES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mar_base": ({**UVA_SIZES["mar_base"], "diffloss_act_d": 6, "diffloss_act_w": 1024}, {}),
    "small": (
        {"embed_dim": 64, "depth": 2, "num_heads": 2, "diffloss_act_d": 3, "diffloss_act_w": 128},
        {"width": 32, "multipliers": [1, 1, 1, 1, 1], "blocks": 1, "attention_levels": []},
    ),
}
"""The published size, and one for a loop of many calls: fields of the model and of the autoencoder."""

FAST: dict[str, Any] = {"sampler": "ddim", "diffusion_steps": 10}
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "4 new frames, 100 steps": (FRAMES, {}),
    "1 new frame, 100 steps": (1, {}),
    "4 new frames, DDIM of 10 steps": (FRAMES, FAST),
    "1 new frame, DDIM of 10 steps": (1, FAST),
}
"""The new frames of a call, and its settings, by the name of the case."""

_WORKER = "benchmarks.policy_worker"
_EAGER = {"eager, spinning": "active", "eager, sleeping": "passive"}
_PUBLISHED = "eager, with the dropout of timm 0.9.7"
_DROPOUT = 0.1  # of attention, in the published configs
_DRAWS = 8  # pairs of chains that are compared
_LOOP_CALLS, _LOOP_WARM_UP = 1000, 100


def call(worker: Worker, last: int, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the seconds and the actions of a call; see `benchmarks.policy_worker.Call`."""
    return worker.ask({"last": last, "seed": seed, "settings": settings})


def model_fields(size: str) -> dict[str, Any]:
    """Return the fields of `UvaConfig` of a size."""
    of_size = SIZES[size][0]
    head = {name: value for name, value in of_size.items() if name.startswith("diffloss_act")}
    halves = {
        f"{half}_{name}": value
        for half in ("encoder", "decoder")
        for name, value in of_size.items()
        if name not in head
    }
    return {**halves, **head, "action_dim": 10, "text_dim": 512}


def artifact_of(size: str) -> pathlib.Path:
    """Return the artifact of a random policy, exported unless it is there."""
    out = pathlib.Path("out/policy") / size
    if not is_artifact(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        config, autoencoder = UvaConfig.from_dict(model_fields(size), size), VAEConfig(**SIZES[size][1])
        export_artifact(random_policy(config, autoencoder), out, print)
    return out


def compare(rounds: int, threads: int) -> dict[str, Any]:
    """Time every case in turns; return the seconds of each, and what they were measured with."""
    size, backend = "mar_base", "onnxruntime"
    work = {"artifact": str(artifact_of(size)), "model": model_fields(size), "autoencoder": SIZES[size][1]}
    in_torch = {**work, "backend": "", "threads": threads}
    eager = {name: Worker(_WORKER, in_torch, policy) for name, policy in _EAGER.items()}
    others = {_PUBLISHED: Worker(_WORKER, {**in_torch, "attention_dropout": _DROPOUT}, "passive")}
    runtime = Worker(_WORKER, {**work, "backend": backend, "threads": threads}, None)
    probe, machine, last = Probe(threads), [], FRAMES
    seconds: dict[str, list[float]] = {name: [] for name in (*eager, *others, *CASES)}
    load = []
    for turn in range(rounds + 1):  # the first warms up
        last += FRAMES
        load.append(os.getloadavg()[0])
        machine.append(dataclasses.asdict(probe.measure()))
        measured = {name: call(worker, last, turn, {})["seconds"] for name, worker in (eager | others).items()}
        for name, (new, settings) in CASES.items():
            last += new
            measured[name] = call(runtime, last, turn, settings)["seconds"]
        if turn:
            for name, spent in measured.items():
                seconds[name].append(spent)
        print(", ".join(f"{name} {spent:.2f} s" for name, spent in measured.items()), flush=True)
    workers = eager | others | {"runtime": runtime}
    peaks = {name: call(worker, last, 0, {})["peak_memory_bytes"] for name, worker in workers.items()}
    for worker in workers.values():
        worker.stop()
    best = [min(turn) for turn in zip(*(seconds[name] for name in eager), strict=True)]
    return {
        "size": size,
        "rounds": rounds,
        "threads": threads,
        "load_average": statistics.median(load),
        "torch": runtime.started["torch"],
        "backend": backend,
        "gflops": statistics.median(one["operations"] for one in machine) / 1e9,
        "seconds": seconds,
        "times_eager": {name: [a / b for a, b in zip(best, seconds[name], strict=True)] for name in CASES},
        "peak_memory_bytes": peaks,
    }


def chain_deviation() -> dict[str, float]:
    """Return how far the normalized actions of 10 steps of DDIM, and of another draw, lie from those of 100 steps.

    The model is the first golden one, whose head was trained: the actions of random weights mean nothing.

    Returns:
        The medians of root mean squares over a chunk; actions lie in -1..1.
    """
    model, config = uva_checkpoint("case0").model, uva_checkpoint("case0").model.config
    seen = {name: array[:1] for name, array in uva_case("case0", "run0.npz").observation.items()}
    own = default_sampling(config)

    def draw(seed: int, settings: Mapping[str, Any]) -> NDArray[np.floating]:
        plan = plan_for(config, own.changed(settings))
        return sample_actions(
            model, seen, plan.iterations[0].table, seeded_noise([seed], [0], plan.diffusion_steps, config)
        )

    long = [draw(seed, {}) for seed in range(_DRAWS)]
    short = [draw(seed, FAST) for seed in range(_DRAWS)]
    pairs = {"ddim_10": zip(short, long, strict=True), "another_draw": zip(long[1:] + long[:1], long, strict=True)}
    return {
        name: statistics.median(float(np.sqrt(np.mean(np.square(one - other)))) for one, other in pair)
        for name, pair in pairs.items()
    }


def control_loop(threads: int) -> dict[str, Any]:
    """Let a small policy answer many calls of a film; return the quantiles of its latency, and how its memory grows."""
    config = UvaConfig.from_dict(model_fields("small"), "small")
    seconds, memory = [], []
    with Policy.load(artifact_of("small"), threads=threads) as policy:
        for call in range(_LOOP_WARM_UP + _LOOP_CALLS):
            seen = observation(config, call + FRAMES)
            started = time.perf_counter()
            policy.act(seen, **FAST)
            seconds.append(time.perf_counter() - started)
            memory.append(_resident_bytes())
    measured = np.array(seconds[_LOOP_WARM_UP:])
    p50, p99 = np.percentile(measured, [50, 99])
    return {
        "calls": _LOOP_CALLS,
        "settings": FAST,
        "p50_seconds": float(p50),
        "p99_seconds": float(p99),
        "most_seconds": float(measured.max()),
        "encoded_frames": policy.encoded,
        "memory_growth_bytes": memory[-1] - memory[_LOOP_WARM_UP - 1],
    }


def _resident_bytes() -> int:
    """Return the resident memory of this process."""
    pages = int(pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Measure, and write the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=available_threads())
    arguments = parser.parse_args()
    for size in SIZES:
        artifact_of(size)
    figures = {
        "commit": commit(),
        "python": platform.python_version(),
        "processor": processor_name(),
        "deviation": chain_deviation(),
        "loop": control_loop(arguments.threads),
        **compare(arguments.rounds, arguments.threads),
    }
    write_json(arguments.out, figures)
    print(json.dumps({name: figures[name] for name in ("loop", "deviation", "load_average")}, indent=2))
    for name, ratios in figures["times_eager"].items():
        print(f"{name}: {statistics.median(ratios):.2f} times as fast as eager")


if __name__ == "__main__":
    try:
        main()
    except MarError as error:
        sys.exit(f"policy: {error}")
