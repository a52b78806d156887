"""The benchmark of a policy: the fields of its models, and its table."""

from __future__ import annotations

from typing import Any

from benchmarks.policy import CASES, SIZES, model_fields
from benchmarks.policy_tables import policy_table
from benchmarks.policy_worker import observation
from runtime.model.uva_config import UvaConfig


def test_both_sizes_are_configs_and_frames_of_a_film_overlap() -> None:
    for size in SIZES:
        config = UvaConfig.from_dict(model_fields(size), size)
        assert (config.text_dim, config.action_dim) == (512, 10)
    first, second = (observation(config, last)["frames"] for last in (4, 5))
    assert first.shape == (1, 4, 256, 256, 3)
    assert (first[:, 1:] == second[:, :3]).all()
    assert (first[:, 0] != second[:, 3]).any()


def test_the_table_says_how_fast_each_case_is_and_which_bars_are_met() -> None:
    names = ["eager, spinning", "eager, sleeping", *CASES]
    value: dict[str, Any] = {
        "size": "mar_base",
        "threads": 2,
        "rounds": 3,
        "processor": "A processor",
        "gflops": 200.0,
        "load_average": 0.5,
        "commit": "abc",
        "python": "3.11",
        "torch": "2",
        "peak_memory_bytes": {"runtime": 2**30},
        "seconds": {name: [1.0, 2.0, 4.0] for name in names},
        "times_eager": {name: [4.0, 5.0, 3.0] for name in CASES},
        "deviation": {"ddim_10": 0.25, "another_draw": 1.25},
        "loop": {
            "calls": 1000,
            "p50_seconds": 0.01,
            "p99_seconds": 0.02,
            "most_seconds": 0.03,
            "memory_growth_bytes": 0,
        },
    }
    table = policy_table(value)
    assert "| eager, sleeping | 2.00 s | 1.00 to 4.00 s |  |  |" in table
    assert (
        "| runtime, 4 new frames, 100 steps | 2.00 s | 1.00 to 4.00 s | **4.00x**, 3.00 to 5.00x | 4x, met |" in table
    )
    assert "**4.00x**, 3.00 to 5.00x | 10x, missed |" in table
    assert "p99 20.0 ms" in table
