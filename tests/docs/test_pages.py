"""README and the pages of the documentation: links, length, and figures that agree with each other."""

from __future__ import annotations

import json
import pathlib
import re

import click
import pytest

from runtime.cli.group import mar

ROOT = pathlib.Path(__file__).parents[2]
# mkdocs checks the links inside docs/; these pages lie outside it.
OUTSIDE_THE_SITE = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "examples").glob("*/README.md"))]

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page: pathlib.Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", OUTSIDE_THE_SITE, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: pathlib.Path) -> None:
    for link in _LINK.findall(page.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        assert target.is_relative_to(ROOT), f"{link}: outside the project"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_readme_names_every_command() -> None:
    text = (ROOT / "README.md").read_text()
    for command in mar.list_commands(click.Context(mar)):
        assert f"`mar {command}`" in text, command


def test_the_best_figures_of_the_readme_are_those_of_the_benchmarks() -> None:
    benchmarks = (ROOT / "docs" / "benchmarks" / "index.md").read_text()
    readme = (ROOT / "README.md").read_text()
    for seconds in re.findall(r"\d+\.\d (?=s\b)|\d+\.\d\dx", readme):
        assert seconds in benchmarks, seconds


@pytest.mark.parametrize("record", sorted((ROOT / "docs" / "decisions").glob("0*.md")), ids=lambda record: record.stem)
def test_a_decision_has_a_number_a_date_and_three_parts(record: pathlib.Path) -> None:
    text = record.read_text()
    number, _, _ = record.stem.partition("-")
    assert text.startswith(f"# {number}: ")
    assert re.search(r"^Date: \d{4}-\d\d-\d\d$", text, re.MULTILINE)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Measurement"]
    assert f"({record.name})" in (record.parent / "index.md").read_text()


def test_the_messages_of_troubleshooting_are_those_of_the_code() -> None:
    packages = [
        path
        for package in ("runtime", "training", "mar_export", "calibration")
        for path in (ROOT / package).rglob("*.py")
    ]
    source = "\n".join(path.read_text() for path in packages)
    lines = re.sub(r'"\s*\n\s*f?"', "", source).splitlines()  # a text over several lines becomes one
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    messages = re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    assert len(messages) >= 30
    for message in messages:
        fragments = message.split("...")
        pattern = r"(?:\{.*?\}|[^{}])*?".join(map(re.escape, fragments))
        candidates = [line for line in lines if all(fragment in line for fragment in fragments)]
        assert any(re.search(pattern, line) for line in candidates), message


def test_the_files_and_folders_that_pages_name_exist() -> None:
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
    folders = "runtime|training|mar_export|calibration|benchmarks|tests|examples|docs|deploy"
    for page in pages:
        for path in re.findall(rf"`((?:{folders})/[\w./-]+)`", page.read_text()):
            assert (ROOT / path).exists(), f"{page.relative_to(ROOT)}: {path}"


def test_the_best_figures_are_measured_ones() -> None:
    folder = ROOT / "docs" / "benchmarks" / "data"
    reports = [json.loads(file.read_text()) for file in folder.glob("*mar_base*.json")]
    medians = [[case["seconds"]["median"] / report["batch"] for case in report["cases"]] for report in reports]
    times = {f"{median:.1f} s" for run in medians for median in run}
    ratios = {f"{slow / fast:.2f}x" for run in medians for slow in run for fast in run}
    settings = json.loads((folder / "study.json").read_text())["settings"]
    figures = [seed for one in settings for seed in one["features"]["classifier"]]
    quality = {f"{one['top1_accuracy']:.1%} | {one['frechet']:.2f}" for one in figures}
    page = (ROOT / "docs" / "benchmarks" / "index.md").read_text()
    assert set(re.findall(r"\d+\.\d s\b", page)) <= times
    assert set(re.findall(r"\d+\.\d\dx\b", page)) <= ratios
    assert set(re.findall(r"\d+\.\d% \| \d+\.\d\d", page)) <= quality
