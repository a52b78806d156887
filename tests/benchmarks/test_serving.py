"""The benchmark of the service: its schedule, its figures, its bars, and its clients against a service that is here."""

from __future__ import annotations

import asyncio
import importlib
import io
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import faulty_requests
from benchmarks.faulty_requests import ABORTED, BAD, CANCELLED, GOOD, FaultyRequests, images_asked, kinds
from benchmarks.load import Load, put_under_load
from benchmarks.serving import Writer, draw_each, draw_in_pairs, growth, left_over, service_target, soak, turns
from benchmarks.serving_tables import (
    ALONE,
    PLAIN,
    SERVICE,
    UNBATCHED,
    chaos_table,
    pairs_table,
    soak_table,
    speed_table,
)
from benchmarks.table_parts import NOT_MEASURED
from runtime.errors import MarError
from runtime.generator import Generator
from runtime.service.settings import ServiceSettings
from tests.helpers.fake_generators import CLASSES, fake_generator
from tests.helpers.running_services import RunningService, running_service, until

ABOUT = {
    "machine": {"processor": "a processor", "threads": 2},
    "versions": {"mar": "1", "commit": "0123456789ab", "python": "3"},
    "preset": "fast",
}


def test_each_round_asks_every_server_with_every_number_of_clients() -> None:
    found = turns(2)
    assert found[0].round == -1  # warms up
    for number in (-1, 0, 1):
        of_round = [(turn.clients, turn.server) for turn in found if turn.round == number]
        servers = {(clients, name) for clients in (1, 4, 8, 16) for name in (SERVICE, UNBATCHED, PLAIN)}
        assert len(of_round) == 13
        assert {*of_round} == servers | {(1, ALONE)}
    firsts = [next(turn.server for turn in found if (turn.round, turn.clients) == (number, 8)) for number in (0, 1)]
    assert firsts == [SERVICE, UNBATCHED]


def test_figures_of_a_load_are_its_percentiles_and_its_rate() -> None:
    load = Load([number / 100 for number in range(101)], 20.2)
    expected = {"requests": 101, "images_per_second": 5.0, "p50": 0.5, "p95": 0.95, "p99": 0.99}
    assert load.figures() == pytest.approx(expected)


def speed_value(ours: float, p99: float) -> dict[str, Any]:
    """Two rounds, of which the second is a tenth slower everywhere."""
    rates = {ALONE: 20.0, SERVICE: ours, UNBATCHED: 12.0, PLAIN: 10.0}
    runs = [
        {
            "round": number,
            "clients": clients,
            "server": name,
            "requests": 100,
            "images_per_second": rate / (1 + number / 10),
            "p50": 0.050 * (1 + number / 10),
            "p95": 0.060,
            "p99": p99 * (1 + number / 10),
        }
        for number in (0, 1)
        for clients in (8, 1)
        for name, rate in rates.items()
        if name != ALONE or clients == 1
    ]
    return {"speed": {**ABOUT, "rounds": 2, "seconds": 10.0, "runs": runs}}


def test_speed_table_has_a_row_for_each_server_and_says_which_bars_are_met() -> None:
    lines = speed_table(speed_value(ours=30.0, p99=0.075)).splitlines()
    assert lines[0] == (
        "a processor, 2 threads. Commit 0123456789ab; python 3. Preset `fast`; 2 rounds of 10 s each, in turns: the "
        "median of the rounds, and the least to the most."
    )
    assert [line.split(" | ")[1] for line in lines[4:11]] == [
        ALONE,
        SERVICE,
        UNBATCHED,
        PLAIN,
        SERVICE,
        UNBATCHED,
        PLAIN,
    ]
    assert lines[8] == (
        "| 8 | mar serve | 28.6 (27.3 to 30.0) | 52 ms (50 to 55) | 60 ms (60 to 60) | 79 ms (75 to 82) |"
    )
    assert lines[-2].endswith("| 3.00x (3.00 to 3.00) | met |")
    assert lines[-1].endswith("| 1.50x (1.50 to 1.50) | met |")


def test_missed_bars_of_speed() -> None:
    lines = speed_table(speed_value(ours=29.0, p99=0.076)).splitlines()
    assert [line.rsplit("| ", 1)[1] for line in lines[-2:]] == ["**missed** |"] * 2


def pairs_value(alone: float, added: Sequence[float]) -> dict[str, Any]:
    """Images of a machine whose speed drifts: each takes a tenth longer than the one before."""
    pairs = [{ALONE: alone * (1 + n / 10), SERVICE: alone * (1 + n / 10) + more} for n, more in enumerate(added)]
    return {"pairs": {**ABOUT, "seconds": pairs}}


def test_what_a_service_adds_to_one_client_is_the_median_of_the_differences() -> None:
    lines = pairs_table(pairs_value(0.1, [0.001, 0.003, 0.006, 0.2, -0.1])).splitlines()
    assert lines[4] == "| Generator.generate alone | 120.0 ms (105.0 to 135.0) |"
    assert lines[6].startswith("| added by `mar serve` | 3.0 ms (")
    assert lines[-1].endswith("| 3.0 ms; 2.5% | met |")


@pytest.mark.parametrize(
    ("alone", "added", "ending"),
    [
        (0.05, 0.0049, "4.9 ms; 8.2% | met |"),
        (0.5, 0.02, "20.0 ms; 3.3% | met |"),
        (0.05, 0.0051, "5.1 ms; 8.5% | **missed** |"),
    ],
)
def test_the_bar_of_one_client_is_met_by_time_or_by_share(alone: float, added: float, ending: str) -> None:
    assert pairs_table(pairs_value(alone, [added] * 5)).endswith(ending)


def sample(second: float, memory: int, descriptors: int = 20, threads: int = 9) -> dict[str, float]:
    return {"second": second, "memory_bytes": memory * 2**20, "file_descriptors": descriptors, "threads": threads}


def test_growth_compares_the_ends_of_what_follows_the_first_minutes() -> None:
    samples = [sample(60, 10, 90)] + [sample(120 + 10 * number, 100 + number, 20 + number // 9) for number in range(10)]
    found = growth(samples, 120)
    assert found["memory_bytes"] == {"first": 100.5 * 2**20, "last": 108.5 * 2**20}
    assert found["file_descriptors"] == {"first": 20, "last": 20.5}
    with pytest.raises(MarError, match="nothing to compare"):
        growth(samples[:1], 120)


@pytest.mark.parametrize(("last", "words"), [((101, 20, 9), ["met"] * 3), ((103, 21, 10), ["**missed**"] * 3)])
def test_soak_table_says_which_bars_are_met(last: tuple[int, int, int], words: list[str]) -> None:
    found = growth([sample(120, 100), sample(240, *last)], 120)
    about = {"seconds": 1200.4, "settle_seconds": 120, "clients": 8, "requests": 12345, "images_per_second": 10.3}
    lines = soak_table({"soak": {**ABOUT, **about, "growth": found}}).splitlines()
    assert "20 minutes, 8 clients, 12,345 images, 10.3 a second" in lines[0]
    assert [line.split(" | ")[2].removesuffix(" |") for line in lines[-3:]] == words


def test_what_is_not_measured_says_so() -> None:
    assert [table({}) for table in (speed_table, soak_table, chaos_table)] == [NOT_MEASURED] * 3


def test_a_tenth_of_the_requests_is_bad_aborted_or_cancelled() -> None:
    found = kinds(1000)
    assert [found.count(kind) for kind in (GOOD, BAD, ABORTED, CANCELLED)] == [900, 34, 33, 33]
    assert BAD in found[:100] and BAD in found[-100:]


@pytest.fixture(scope="module")
def running() -> Iterator[RunningService]:
    with running_service({"fake": fake_generator()}, ServiceSettings()) as service:
        until(lambda: service.service.ready)
        yield service


def test_clients_draw_images_while_the_process_is_watched(running: RunningService) -> None:
    target = service_target("fake", running.url, len(CLASSES))
    seen: list[int] = []
    load, samples = asyncio.run(
        soak(target, os.getpid(), seconds=0.3, every=0.1, seen=lambda samples: seen.append(len(samples)))
    )
    assert seen == list(range(1, len(samples) + 1))
    assert load.seconds >= 0.3
    assert len(load.latencies) >= 8  # one for each client at least
    assert len(samples) >= 2
    assert samples[-1]["memory_bytes"] > 2**20
    assert samples[-1]["threads"] > 1
    assert samples[-1]["file_descriptors"] > 8


def test_one_client_and_the_generator_draw_the_same_images_in_turns(running: RunningService) -> None:
    drawn: list[int] = []
    target = service_target("fake", running.url, len(CLASSES))
    pairs = asyncio.run(draw_in_pairs(target, drawn.append, 4))
    assert drawn[-4:] == [0, 1, 2, 3]
    assert [list(pair) for pair in pairs] == [[ALONE, SERVICE], [SERVICE, ALONE]] * 2
    assert all(pair[SERVICE] > pair[ALONE] > 0 for pair in pairs)  # a list takes no time at all


def test_an_answer_that_is_no_image_ends_the_measurement(running: RunningService) -> None:
    target = service_target("fake", running.url, 1000)  # the model has three classes
    with pytest.raises(MarError, match=r"fake answered request 3 with status 400: .*class"):
        asyncio.run(put_under_load(target, 1, 5))


def sent(running: RunningService, seed_offset: int = 0) -> dict[str, Any]:
    """Send sixty requests, and compare the images with those of seeds that lie further by the offset."""
    asked = {each for number in range(60) for each in images_asked(number, len(CLASSES))}
    drawn = draw_each(fake_generator(), None, [(label, seed + seed_offset, index) for label, seed, index in asked])
    expected = {(label, seed - seed_offset, index): image for (label, seed, index), image in drawn.items()}
    clients = FaultyRequests(running.port, len(CLASSES), expected)
    asyncio.run(clients.run(60, 8))
    assert left_over(running.port) == {"in_progress": 0, "queued": 0}
    return dict(clients.report())


def test_every_request_has_its_outcome_and_the_bars_are_met(running: RunningService) -> None:
    found = sent(running)
    assert found["outcomes"] == {
        GOOD: {"identical": 54},
        BAD: {"refused": 2},
        ABORTED: {"left": 2},
        CANCELLED: {"left": 2},
    }
    left = {"in_progress": 0, "queued": 0}
    assert found["requests"] == 60
    part = {**ABOUT, **found, "clients": 8, "left": left, "exit_code": 0}
    lines = chaos_table({"chaos": part}).splitlines()
    assert lines[4] == "| good | 54 | identical: 54 |"
    assert [line.rsplit(" | ", 1)[1] for line in lines[-4:]] == ["met |"] * 4
    worse = {**part, "lost": 1, "wrong": 1, "left": {**left, "queued": 1}, "exit_code": 1}
    assert [line.rsplit(" | ", 1)[1] for line in chaos_table({"chaos": worse}).splitlines()[-4:]] == [
        "**missed** |"
    ] * 4


def test_no_request_is_sent_after_the_time_is_over(running: RunningService) -> None:
    clients = FaultyRequests(running.port, len(CLASSES), {})
    asyncio.run(clients.run(60, 8, seconds=0))
    assert clients.report()["requests"] == 0


def test_what_was_measured_is_written_at_once_and_other_parts_stay(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "report.json"
    file.write_text('{"speed": {"rounds": 1}}')
    writer = Writer(file, "soak", {"preset": "fast"})
    writer.write_unfinished({"samples": [1]})
    writer.write_unfinished({"samples": [1, 2]})  # too soon after the first
    about, other = {"preset": "fast"}, {"speed": {"rounds": 1}}
    assert json.loads(file.read_text()) == {**other, "soak_unfinished": {**about, "samples": [1]}}
    writer.write({"seconds": 3})
    assert json.loads(file.read_text()) == {**other, "soak": {**about, "seconds": 3}}


def test_images_of_other_seeds_are_wrong(running: RunningService) -> None:
    found = sent(running, seed_offset=100)
    assert found["outcomes"][GOOD] == {"wrong": 54}
    assert (found["wrong"], found["lost"]) == (54, 0)
    assert found["failures"][0].endswith("another image than the generator's")


def test_a_difference_of_one_level_is_rounding_and_another_is_wrong() -> None:
    image = np.full((4, 4, 1), 100, np.uint8)
    for difference, outcome in ((0, "identical"), (1, "rounded"), (2, "wrong")):
        assert faulty_requests._compare([image + np.uint8(difference)], [image]) == outcome


def test_requests_to_nobody_are_lost() -> None:
    clients = FaultyRequests(1, len(CLASSES), {})
    asyncio.run(clients.run(10, 2))
    assert clients.report()["lost"] == 10
    assert len(clients.failures) == 10


def test_the_plain_handler_answers_with_the_image_of_the_generator(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv("PLAIN_ARTIFACT", str(tmp_path))
    monkeypatch.setenv("PLAIN_PRESET", "turbo")
    monkeypatch.setattr(Generator, "load", lambda *_, **__: fake_generator())
    plain_handler = importlib.import_module("benchmarks.plain_handler")
    response = plain_handler.draw(plain_handler.Asked(label=2, seed=7))
    expected = fake_generator().generate([2], seed=7, preset="turbo").images
    assert expected is not None
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(response.body))), expected[0, ..., 0])
