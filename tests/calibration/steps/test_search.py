"""Which steps are found: errors and gains against images drawn whole, budgets, and what is written and refused."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from calibration.cli import optimize_steps as optimize_steps_module
from calibration.cli.optimize_steps import optimize_steps
from calibration.steps.error_model import STEPS, ErrorModel, batches, falling
from calibration.steps.held_out_evaluation import IMAGES, judged, judgements
from calibration.steps.plan_search import StepCosts, find_steps
from calibration.steps.solvers import REFERENCE, REFERENCE_STEPS, Solver, deterministic, solvers
from calibration.steps.timing import StepTimes, measured_times
from calibration.steps.trajectories import TrajectoryInputs, TrajectorySampler
from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import MANIFEST
from runtime.errors import CalibrationError, MarError, RequestError
from runtime.files import write_json
from runtime.generator import Generator
from runtime.model.coefficients import COEFFICIENTS
from runtime.model.engine_spec import Array
from runtime.sampling.plan import build_plan
from runtime.sampling.presets import PRESETS
from runtime.sampling.samplers import SAMPLERS
from runtime.sampling.settings import Sampling
from tests.helpers.distance import relative_l2

SCHEDULE = Sampling(iterations=3, cfg_scale=2.0)
IMAGES_SEEN = 10  # more than are drawn together


@contextlib.contextmanager
def no_bar(length: int, label: str) -> Iterator[Any]:
    """A progress bar that only checks that it is filled."""

    class Bar:
        done = 0

        def update(self, steps: int) -> None:
            self.done += steps

    bar = Bar()
    yield bar
    assert bar.done <= length, label


@pytest.fixture(scope="module")
def generator(golden_artifacts: dict[str, pathlib.Path]) -> Iterator[Generator]:
    with Generator.load(golden_artifacts["small"], threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def laboratory(generator: Generator) -> ErrorModel:
    return ErrorModel.prepared(generator, SCHEDULE, IMAGES_SEEN, lambda done: None)


# What chains are run with.


def test_solvers_are_every_sampler_without_noise_from_starts_that_differ() -> None:
    found = solvers()
    assert {solver.sampler for solver in found} == {"ddim", "dpm++2m"}
    assert {solver.sampler for solver in found} < set(SAMPLERS)
    assert REFERENCE in found
    starts = [
        (solver.sampler, build_plan(16, solver.sampling(SCHEDULE, 5)).iterations[0].table.timesteps[0])
        for solver in found
    ]
    assert len(set(starts)) == len(starts)
    assert all(deterministic(build_plan(16, solver.sampling(SCHEDULE, max(STEPS)))) for solver in found)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_plan_is_deterministic_unless_its_chains_add_noise(preset: str, generator: Generator) -> None:
    assert deterministic(generator.plan(preset=preset)) == (preset != "exact")
    assert not deterministic(generator.plan(preset="fast", eta=0.5))
    assert deterministic(generator.plan(preset="exact", temperature=0.0))


def test_a_solver_replaces_the_chain_of_a_schedule_and_nothing_else() -> None:
    other = Sampling(iterations=3, cfg_scale=2.0, mask_schedule="linear", last_diffusion_steps=4, start_timestep=900)
    found = Solver("ddim").sampling(dataclasses.replace(other, eta=0.5), [5, 4, 3])
    expected = {"sampler": "ddim", "diffusion_steps": (5, 4, 3), "start_timestep": None, "last_diffusion_steps": None}
    assert found == dataclasses.replace(other, eta=0.0, **expected)


# What images are drawn from, and the reference.


def test_images_are_those_that_the_generator_draws(generator: Generator, laboratory: ErrorModel) -> None:
    """The same seeds, orders and noises, batch by batch."""
    config, drawn = generator.manifest.model, []
    for numbers in batches(IMAGES_SEEN):
        images = TrajectoryInputs.seeded(5, numbers, config, "random")
        tokens = laboratory.artist.draw(laboratory.plan(Solver("ddim"), (4, 7, 3)), images)
        by_place = np.empty_like(tokens.swapaxes(0, 1))  # [B, L, D]
        np.put_along_axis(by_place, images.order.T[..., None], tokens.swapaxes(0, 1), axis=1)
        drawn.append(by_place)
    settings = vars(SCHEDULE) | {"sampler": "ddim", "diffusion_steps": (4, 7, 3)}
    labels = [number % config.class_num for number in range(IMAGES_SEEN)]
    expected = generator.generate(labels, seed=5, **settings).latents  # [B, D, 4, 4], one token a place
    found = np.concatenate(drawn).reshape(IMAGES_SEEN, 4, 4, -1).transpose(0, 3, 1, 2)
    assert relative_l2(found, expected) < 1e-5


def test_the_reference_is_a_thousand_steps_and_notes_what_the_head_was_told(laboratory: ErrorModel) -> None:
    plan = laboratory.plan(REFERENCE, REFERENCE_STEPS)
    for trajectory in laboratory.trajectories:
        assert relative_l2(laboratory.artist.draw(plan, trajectory.images), trajectory.tokens) < 1e-6
        for iteration, z in zip(plan.iterations, trajectory.vectors, strict=True):
            found = laboratory.artist.predict(iteration, trajectory.images, z)
            right = trajectory.tokens[iteration.known : iteration.known + iteration.count]
            assert relative_l2(found, right) < 1e-4
    assert laboratory.image_error(REFERENCE, REFERENCE_STEPS) < 1e-5


# Errors and gains.


def test_errors_of_chains_are_those_of_the_tokens_and_shrink(laboratory: ErrorModel) -> None:
    solver = REFERENCE
    errors = laboratory.chain_errors(solver, lambda done: None)
    assert errors.shape == (3, len(STEPS))
    assert (errors[:, STEPS.index(8)] > 4 * errors[:, STEPS.index(50)]).all()
    # By hand, for one entry: all but the last iteration as the reference has it, so the image errs by that alone.
    plan = laboratory.plan(solver, 5)
    decibels = []
    for trajectory in laboratory.trajectories:
        known = trajectory.tokens[: plan.iterations[-1].known]
        missed = laboratory.artist.go_on(plan, 2, trajectory.images, known) - trajectory.tokens
        for image in range(missed.shape[1]):
            error = np.linalg.norm(missed[:, image]) / np.linalg.norm(trajectory.tokens[:, image])
            decibels.append(20 * np.log10(error))
    assert len(decibels) == IMAGES_SEEN
    assert 10 * np.log10(errors[-1, STEPS.index(5)]) == pytest.approx(np.mean(decibels), abs=0.01)


def test_gains_fall_to_one_at_the_last_iteration(laboratory: ErrorModel) -> None:
    gains = laboratory.gains(lambda steps: Solver("dpm++2m", 980), lambda done: None)
    assert gains[-1] == pytest.approx(1)  # nothing comes after it
    assert (np.diff(gains) <= 0).all()
    assert gains[0] > 1.01


def test_predicted_errors_tell_which_of_two_plans_is_better(laboratory: ErrorModel) -> None:
    """Long chains first against long chains last, drawn whole."""
    solver = Solver("dpm++2m", 980)
    errors = laboratory.chain_errors(solver, lambda done: None)
    gains = laboratory.gains(lambda steps: solver, lambda done: None)
    costs = StepCosts({solver: errors}, gains, StepTimes(0.0, np.ones(3)))
    plans = list(itertools.permutations((4, 8, 32)))
    predicted = [sum(costs.predicted(solver)[k, STEPS.index(n)] for k, n in enumerate(steps)) for steps in plans]
    measured = [laboratory.image_error(solver, steps) ** 2 for steps in plans]
    assert np.argmin(measured) == np.argmin(predicted)
    assert np.corrcoef(np.log(predicted), np.log(measured))[0, 1] > 0.8


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12))
def test_falling_values_never_rise_and_are_the_nearest_such(values: list[float]) -> None:
    given_values = np.array(values)
    found = falling(given_values)
    assert (np.diff(found) <= 1e-12).all()
    # Nearest in a convex set: no falling values lie on the far side (Moreau), tried with steps at every place.
    directions = [np.where(np.arange(len(values)) <= place, 1.0, 0.0) for place in range(len(values))]
    for direction in directions:
        assert float((given_values - found) @ direction) <= 1e-9
    assert float((given_values - found) @ found) == pytest.approx(0, abs=1e-9)


@pytest.fixture
def overflowing(generator: Generator) -> Generator:
    """Engines whose values pass every bound in chains from a start as high as the reference's."""

    def denoise(**inputs: Array) -> tuple[Array, ...]:
        x, x0 = generator.engines.denoise(**inputs)
        high = inputs["coefficients"][COEFFICIENTS.index("x0_from_x")] > 100
        return (np.full_like(x, np.inf) if high else x), x0

    return Generator(generator.manifest, dataclasses.replace(generator.engines, denoise=denoise), "")


def test_a_reference_that_is_not_finite_is_refused(overflowing: Generator) -> None:
    with pytest.raises(CalibrationError, match=r"1,000 steps of dpm\+\+2m end in values that are not finite"):
        ErrorModel.prepared(overflowing, SCHEDULE, 1, lambda done: None)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_chain_that_is_not_finite_is_never_chosen(laboratory: ErrorModel, overflowing: Generator) -> None:
    broken = dataclasses.replace(laboratory, artist=TrajectorySampler(overflowing.engines, overflowing.manifest.model))
    for solver, finite in ((REFERENCE, False), (Solver("ddim"), True)):
        assert (np.isfinite(broken.chain_errors(solver, lambda done: None)) == finite).all()
        assert np.isfinite(broken.image_error(solver, 8)) == finite


# Budgets.


def test_a_time_is_what_is_fixed_and_the_steps(generator: Generator) -> None:
    times = StepTimes(1.0, np.array([0.5, 0.25, 0.25]))
    assert times.seconds([2, 4, 4]) == 4.0
    assert times.uniform_steps([2, 4, 4]) == 3
    assert times.uniform_steps([2, 4, 5]) == 4  # no less time
    assert times.uniform_steps([4, 4, 4]) == 4
    measured = measured_times(generator, SCHEDULE, lambda done: None)
    assert measured.step.shape == (3,)
    assert measured.fixed > 0
    assert (measured.step >= 0).all()


@pytest.fixture(scope="module")
def few(generator: Generator) -> ErrorModel:
    """Of the images that plans are found by here."""
    return ErrorModel.prepared(generator, SCHEDULE, 4, lambda done: None)


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> StepTimes:
    """A machine on which a step takes a millisecond in the first iteration, two in the others, and the rest ten."""
    times = StepTimes(0.010, np.array([0.001, 0.002, 0.002]))
    monkeypatch.setattr("calibration.steps.plan_search.measured_times", lambda *arguments: times)
    return times


def test_a_budget_is_kept_and_the_plan_is_no_worse_than_uniform_steps(
    generator: Generator, few: ErrorModel, steady: StepTimes
) -> None:
    found, times = find_steps(generator, SCHEDULE, 4, 0.0601, None, no_bar)
    assert times is steady
    assert times.seconds(found.steps) <= 0.0601
    assert found.error == pytest.approx(few.image_error(found.solver, found.steps), rel=1e-3)
    for solver in solvers():
        assert found.error <= few.image_error(solver, 10) * 1.001  # which takes just as long
    more, _ = find_steps(generator, SCHEDULE, 4, 0.1101, None, no_bar)
    assert more.error < found.error
    assert sum(more.steps) > sum(found.steps)


def test_an_allowed_error_is_kept_in_less_time_than_it_needs_uniformly(
    generator: Generator, few: ErrorModel, steady: StepTimes
) -> None:
    allowed = few.image_error(Solver("ddim"), 20)
    found, times = find_steps(generator, SCHEDULE, 4, None, allowed, no_bar)
    assert found.error <= allowed
    assert few.image_error(found.solver, found.steps) <= allowed * 1.001
    assert times.seconds(found.steps) < times.seconds([20] * 3)


def test_what_cannot_be_kept_is_refused(generator: Generator, steady: StepTimes) -> None:
    with pytest.raises(
        RequestError, match=r"--budget-ms 19 is less than the least plan takes here, 20\.0 ms with 2 steps"
    ):
        find_steps(generator, SCHEDULE, 1, 0.019, None, no_bar)
    with pytest.raises(
        CalibrationError, match=r"no plan keeps the error within 1e-06: the best has 0\.\d+, with up to 50"
    ):
        find_steps(generator, SCHEDULE, 2, None, 1e-6, no_bar)


# Judging on other images.


def test_ways_are_judged_by_images_of_their_own_iterations(generator: Generator) -> None:
    ways = {
        "few": Solver("ddim").sampling(SCHEDULE, 4),
        "many": Solver("dpm++2m").sampling(SCHEDULE, 300),
        "other": Solver("dpm++2m").sampling(dataclasses.replace(SCHEDULE, iterations=2), 300),
        "noisy": dataclasses.replace(SCHEDULE, diffusion_steps=5, start_timestep=900),
    }
    told = 0

    def advance(done: int) -> None:
        nonlocal told
        told += done

    few, many, other, noisy = judged(generator, ways, advance)
    assert told == judgements(ways, 16) == IMAGES * (4 + 2)
    assert few.head_evaluations == 12
    assert few.relative_l2 is not None
    assert many.relative_l2 is not None
    assert other.relative_l2 is not None
    assert few.relative_l2 > 5 * max(many.relative_l2, other.relative_l2)
    assert few.decibels == pytest.approx(20 * np.log10(few.relative_l2))
    assert few.worst is not None
    assert few.worst > few.relative_l2
    assert noisy.relative_l2 is noisy.worst is None
    assert min(row.milliseconds for row in (few, many, other, noisy)) > 0


# The command.


@pytest.fixture
def artifact(golden_artifacts: dict[str, pathlib.Path], tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy to write into."""
    return pathlib.Path(shutil.copytree(golden_artifacts["small"], tmp_path / "artifact"))


def command(*arguments: object) -> Result:
    return CliRunner().invoke(optimize_steps, [*map(str, arguments)], standalone_mode=False)


def refused(result: Result) -> str:
    assert isinstance(result.exception, MarError), result.output
    assert "\n" not in str(result.exception)
    return str(result.exception)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short references of few images: what they are is tested above."""
    for module in ("steps.error_model", "steps.held_out_evaluation"):
        monkeypatch.setattr(f"calibration.{module}.REFERENCE_STEPS", 60)
    for module in ("steps.held_out_evaluation", "cli.optimize_steps"):
        monkeypatch.setattr(f"calibration.{module}.IMAGES", 1)


LINE = ("--budget-ms", 10_000, "--count", 2, "--iterations", 2, "--cfg-scale", 2, "--threads", 1)


@pytest.mark.usefixtures("quick")
def test_the_command_writes_a_preset_that_every_command_knows(artifact: pathlib.Path, tmp_path: pathlib.Path) -> None:
    before = Artifact(artifact).manifest
    ended = command(artifact, *LINE, "--json", tmp_path / "found.json")
    assert ended.exception is None, ended.output
    after = Artifact(artifact).manifest
    assert dataclasses.replace(after, presets={}) == before
    found = after.presets["calibrated"]
    assert isinstance(found.diffusion_steps, tuple)
    assert (len(found.diffusion_steps), found.iterations, found.cfg_scale) == (2, 2, 2.0)
    for row in ("calibrated", "uniform-", *PRESETS):
        assert f"\n{row}" in ended.output
    assert f"{found.sampler}" in ended.output
    assert "steps " + ",".join(map(str, found.diffusion_steps)) in ended.output
    told = json.loads((tmp_path / "found.json").read_text())
    assert Sampling(**told["sampling"]) == found
    assert [row["name"] for row in told["judged"]][2:] == list(PRESETS)
    assert [row["relative_l2"] is None for row in told["judged"]] == [False, False, True, False, False, False]
    with Generator.load(artifact, threads=1) as generator:
        assert [one.table.steps for one in generator.plan(preset="calibrated").iterations] == list(
            found.diffusion_steps
        )
    assert "has a preset 'calibrated' already" in refused(command(artifact, *LINE))
    again = command(artifact, *LINE, "--replace", "--out", tmp_path / "other")
    assert again.exception is None, again.output
    Artifact(tmp_path / "other").verify()
    assert set(Artifact(tmp_path / "other").manifest.presets) == {"calibrated"}
    assert Artifact(artifact).manifest == after


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", "give either --budget-ms or --allowed-error, and not both"),
        ("--budget-ms 5 --allowed-error 0.1", "give either --budget-ms or --allowed-error, and not both"),
        ("--budget-ms -5", "--budget-ms must be a number in 0.001..1000000000.0, found -5.0"),
        ("--budget-ms 0", "found 0.0"),
        ("--budget-ms nan", "found nan"),
        ("--allowed-error -0.1", "--allowed-error must be a number in 1e-06..1, found -0.1"),
        ("--allowed-error inf", "found inf"),
        ("--budget-ms 5 --count 0", "--count must be a whole number in 1..10000, found 0"),
        ("--budget-ms 5 --name turbo", "found 'turbo'; choose another"),
        ("--budget-ms 5 --name a/b", "found 'a/b'"),
        ("--budget-ms 5 --preset nope", "preset must be one of exact, balanced, fast, turbo, found 'nope'"),
        ("--budget-ms 5 --iterations 17", "iterations must lie in 1..16"),
        ("--budget-ms 0.01", "--budget-ms 0.01 is less than the least plan takes here, "),
        ("--budget-ms 5 --out {folder}", "exists and is not an artifact"),
        ("--budget-ms 5 --json {folder}", "it is a folder"),
    ],
)
def test_a_wrong_use_is_one_line_and_changes_nothing(
    artifact: pathlib.Path, tmp_path: pathlib.Path, line: str, told: str
) -> None:
    before = (artifact / MANIFEST).read_bytes()
    assert told in refused(command(artifact, *line.format(folder=tmp_path).split(), "--threads", 1))
    assert (artifact / MANIFEST).read_bytes() == before
    assert list(tmp_path.iterdir()) == [artifact]


@pytest.mark.parametrize("option", ["--sampler ddim", "--diffusion-steps 5", "--eval-count 5", "--precision int8"])
def test_what_is_looked_for_is_no_option(artifact: pathlib.Path, option: str) -> None:
    ended = command(artifact, "--budget-ms", 5, *option.split())
    assert isinstance(ended.exception, click.NoSuchOption)
    assert ended.exception.option_name == option.split(maxsplit=1)[0]


@pytest.mark.usefixtures("quick")
def test_engines_that_were_built_meanwhile_are_kept(artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest is read again before it is written."""
    find = optimize_steps_module.find_steps

    def slow(*arguments: Any) -> Any:
        manifest = Artifact(artifact).manifest
        write_json(artifact / MANIFEST, dataclasses.replace(manifest, presets={"other": SCHEDULE}).to_dict())
        return find(*arguments)

    monkeypatch.setattr(optimize_steps_module, "find_steps", slow)
    assert command(artifact, *LINE).exception is None
    assert set(Artifact(artifact).manifest.presets) == {"other", "calibrated"}


@pytest.mark.usefixtures("quick")
def test_an_error_that_is_never_reached_leaves_the_artifact_as_it_was(artifact: pathlib.Path) -> None:
    before = (artifact / MANIFEST).read_bytes()
    line = ("--allowed-error", 1e-6, "--count", 2, "--iterations", 2, "--threads", 1)
    assert "no plan keeps the error within 1e-06: the best has " in refused(command(artifact, *line))
    assert (artifact / MANIFEST).read_bytes() == before
