"""Groups of ReCAP in a plan: which iterations are local, what their passes read, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import RequestError
from runtime.model.config import ModelConfig
from runtime.model.families import FAMILIES, RECAP
from runtime.model.recap_engines import RECAP_ENGINES
from runtime.sampling.constraints import plan_for
from runtime.sampling.plan import Plan, build_plan
from runtime.sampling.presets import resolve_sampling
from runtime.sampling.recap import Group, sort_unions
from runtime.sampling.settings import Sampling
from tests.helpers.himar_cases import TINY_HIMAR

BUFFER = 8
SHORT: dict[str, Any] = {"sampler": "ddim", "diffusion_steps": 10}


def plan(length: int, known: int = 0, **changed: Any) -> Plan:
    return build_plan(length, Sampling(**(SHORT | changed)), known)


def kinds(planned: Plan) -> str:
    return "".join("FL"[iteration.local] for iteration in planned.iterations)


def refusal(settings: dict[str, Any], length: int = 64) -> str:
    with pytest.raises(RequestError) as caught:
        plan(length, **settings)
    return str(caught.value)


@pytest.mark.parametrize(
    ("plain", "local", "expected"),
    [(5, 1, "FFFFFFLFLF"), (0, 1, "FLFLFLFLFL"), (2, 2, "FFFLLFLLFL"), (0, 9, "FLLLLLLLLL"), (10, 1, "F" * 10)],
)
def test_iterations_are_full_and_local_in_turn(plain: int, local: int, expected: str) -> None:
    planned = plan(64, iterations=10, recap_plain_iterations=plain, recap_local_iterations=local)
    assert kinds(planned) == expected
    grouped = [iteration.group is not None for iteration in planned.iterations]
    assert grouped == [kind == "L" or expected[n + 1 : n + 2] == "L" for n, kind in enumerate(expected)]


LENGTHS = st.integers(2, 200)
SIZES = LENGTHS.flatmap(
    lambda length: st.integers(1, length).flatmap(
        lambda iterations: st.tuples(
            st.just(length), st.just(iterations), st.integers(0, iterations), st.integers(1, length), st.booleans()
        )
    )
)


@given(SIZES)
def test_a_local_pass_reads_and_computes_every_row_once(sizes: tuple[int, int, int, int, bool]) -> None:
    """And its tokens and sizes are those that the plan without local iterations has."""
    length, iterations, plain, local, cache_buffer = sizes
    planned = plan(
        length,
        iterations=iterations,
        recap_plain_iterations=plain,
        recap_local_iterations=local,
        recap_cache_buffer=cache_buffer,
    )
    without = plan(length, iterations=iterations)
    assert [(i.known, i.count) for i in planned.iterations] == [(i.known, i.count) for i in without.iterations]
    for iteration in planned.iterations:
        if iteration.group is None:
            assert not iteration.local
            continue
        n = iteration.group.sizes(iteration.known, iteration.count, length, BUFFER)
        assert min(n.values()) >= 0
        assert n["F"] + n["A"] + n["J"] + n["K"] + n["H"] == length + BUFFER
        assert n["E"] + n["A"] == iteration.group.start + BUFFER
        assert (n["J"] > 0) is iteration.local
        assert n["V"] + n["K"] + n["H"] + n["R"] == length
        assert n["A"] == (0 if cache_buffer else BUFFER)


def test_an_edit_has_groups_of_its_own() -> None:
    planned = plan(64, known=50, iterations=10, recap_local_iterations=1)
    assert kinds(planned) == "FLFLFLFLFL"
    assert planned.groups[0].start == 50
    assert planned.groups[-1].stop == 64


def test_unions_are_sorted_and_nothing_else_changes_its_place() -> None:
    order = np.random.default_rng(0).permuted(np.tile(np.arange(12), (2, 1)), axis=1)
    found = sort_unions(order, [Group(2, 5, False, True), Group(7, 12, False, True)])
    for row, original in zip(found, order, strict=True):
        assert row[:2].tolist() == original[:2].tolist()
        assert row[5:7].tolist() == original[5:7].tolist()
        assert row[2:5].tolist() == sorted(original[2:5])
        assert row[7:].tolist() == sorted(original[7:])
    assert sort_unions(found, [Group(2, 5, False, True), Group(7, 12, False, True)]).tolist() == found.tolist()


@pytest.mark.parametrize("local", [None, 0])
def test_without_local_iterations_a_plan_is_as_it_was(local: int | None) -> None:
    guided: dict[str, Any] = {"iterations": 9, "cfg_scale": 3.0}
    assert plan(64, recap_local_iterations=local, **guided) == plan(64, **guided)
    assert plan(64, **guided).iterations[-1].guidance_scale == 1 + 2 * 63 / 64
    assert plan(64, recap_local_iterations=1, **guided).iterations[-1].guidance_scale == 3


@pytest.mark.parametrize(
    ("sampler", "steps", "share", "expected"),
    [
        ("ddpm", 100, 0.5, [100, 50]),
        ("ddpm", "ddim20", 0.5, [20, 10]),
        ("ddim", 25, 0.4, [25, 10]),
        ("ddim", "25", None, [25, 25]),
        ("ddim", 3, 0.1, [3, 2]),
        ("flow-2m", 4, 0.1, [4, 1]),
        ("ddim", (9, 7), 0.5, [9, 3]),
    ],
)
def test_local_chains_are_a_share_of_the_full_ones(
    sampler: str, steps: Any, share: float | None, expected: list[int]
) -> None:
    planned = plan(
        64, iterations=2, sampler=sampler, diffusion_steps=steps, recap_local_iterations=1, recap_diffusion_share=share
    )
    assert [iteration.table.steps for iteration in planned.iterations] == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"recap_plain_iterations": 4}, "recap_plain_iterations belongs to ReCAP; give recap_local_iterations too"),
        ({"recap_cache_buffer": True}, "recap_cache_buffer belongs to ReCAP; give recap_local_iterations too"),
        ({"recap_local_iterations": -1}, "recap_local_iterations must be a whole number in 0..64, found -1"),
        ({"recap_local_iterations": True}, "recap_local_iterations must be a whole number in 0..64, found True"),
        (
            {"iterations": 9, "recap_local_iterations": 1, "recap_plain_iterations": 10},
            "recap_plain_iterations must be a whole number in 0..9, found 10",
        ),
        ({"recap_local_iterations": 1, "recap_cache_buffer": 1}, "recap_cache_buffer must be True or False, found 1"),
        (
            {"recap_local_iterations": 1, "recap_diffusion_share": 1.5},
            "recap_diffusion_share must be a number in 0..1, found 1.5",
        ),
        ({"recap_local_iterations": 1, "recap_diffusion_share": 0}, "recap_diffusion_share must be above 0"),
    ],
)
def test_a_wrong_setting_is_one_line(given: dict[str, Any], message: str) -> None:
    found = refusal(given)
    assert found.startswith(message)
    assert "\n" not in found


@pytest.mark.parametrize("model", [ModelConfig(attention="causal"), TINY_HIMAR], ids=["causal", "himar"])
def test_other_families_refuse_local_iterations_in_one_line(model: Any) -> None:
    with pytest.raises(RequestError, match=re.escape("ReCAP (recap_local_iterations) is for a MAR with bidirectional")):
        plan_for(model, Sampling(recap_local_iterations=1))


def test_a_row_has_the_engines_of_recap_or_refuses_it() -> None:
    for name, family in FAMILIES.items():
        assert (RECAP in family.refused) is (name not in ("mar", "mar-vq"))
        assert {*RECAP_ENGINES} <= {*family.modules} or RECAP in family.refused


def test_a_distilled_head_has_as_many_steps_in_local_iterations() -> None:
    model = ModelConfig(head="flow", distilled_steps=2)
    with pytest.raises(RequestError, match=r"^recap_diffusion_share of this model must be None, found 0\.5; leave it"):
        resolve_sampling(Sampling(), model, {"recap_local_iterations": 1, "recap_diffusion_share": 0.5})
