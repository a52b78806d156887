"""The code blocks of README and the documentation: each is marked, and those marked `run` work."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLE = pathlib.Path("examples", "fashion-mnist")
ARTIFACT = pathlib.Path("out", "demo", "artifact")
PAGES = sorted(
    [ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*/README.md")]
)

OUTPUTS = {"--out", "--out-dir", "--save-latents", "--report", "--chart"}

_FENCE = re.compile(r"^( *)```(\S*)")
_MARK = re.compile(r"^ *<!-- (?:(run)|skip: (.+)) -->$")
_COMMAND_WITHOUT_FENCE = re.compile(r"^(?: {4,}|\t)(?:mar|make|pip|python|torchrun|apt-get) ")


@dataclasses.dataclass(frozen=True)
class Block:
    """One fenced block of a page, and what the comment before it says."""

    line: int
    language: str
    code: str
    run: bool
    reason: str  # why the block is not run

    @property
    def marked(self) -> bool:
        return self.run or bool(self.reason)


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page in Markdown."""
    found, lines, number = [], page.splitlines(), 0
    while number < len(lines):
        fence = _FENCE.match(lines[number])
        if not fence:
            number += 1
            continue
        end = next(n for n in range(number + 1, len(lines)) if lines[n] == f"{fence[1]}```")
        mark = _MARK.match(lines[number - 1]) if number else None
        code = "\n".join(line.removeprefix(fence[1]) for line in lines[number + 1 : end])
        run, reason = (bool(mark[1]), mark[2] or "") if mark else (False, "")
        found.append(Block(number + 1, fence[2], code, run, reason))
        number = end + 1
    return found


def page_name(page: pathlib.Path) -> str:
    return str(page.relative_to(ROOT))


def runnable(page: pathlib.Path) -> list[Block]:
    return [block for block in blocks(page.read_text()) if block.run]


@pytest.fixture
def checkout(example_artifact: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with what the blocks use: the example model and its artifact."""
    shutil.copytree(ROOT / EXAMPLE, tmp_path / EXAMPLE)
    shutil.copytree(example_artifact, tmp_path / ARTIFACT)
    return tmp_path


def run_block(block: Block, folder: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Run a block in `folder`, with this project's commands first on the path."""
    shell = ["bash", "-euo", "pipefail", "-c"]
    command = [sys.executable, "-c"] if block.language == "python" else shell
    path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, block.code], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_shell_and_python_block_says_whether_it_is_run(page: pathlib.Path) -> None:
    text = page.read_text()
    for block in blocks(text):
        where = f"{page_name(page)}:{block.line}"
        assert block.language in ("sh", "python", "toml", "text"), f"{where}: name the language of the block"
        if block.language in ("sh", "python"):
            assert block.marked, f"{where}: write <!-- run --> or <!-- skip: REASON --> on the line before the block"
            assert block.run or len(block.reason.split()) >= 2, f"{where}: say why the block is not run"
    for number, line in enumerate(text.splitlines(), 1):
        assert not _COMMAND_WITHOUT_FENCE.match(line) or in_a_block(text, number), (
            f"{page_name(page)}:{number}: put the command into a fenced block"
        )


def in_a_block(text: str, number: int) -> bool:
    return any(block.line < number <= block.line + block.code.count("\n") + 1 for block in blocks(text))


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=page_name)
def test_the_blocks_of_a_page_work_one_after_the_other(page: pathlib.Path, checkout: pathlib.Path) -> None:
    for block in runnable(page):
        ended = run_block(block, checkout)
        assert ended.returncode == 0, f"{page_name(page)}:{block.line}\n{ended.stdout}\n{ended.stderr}"


def test_the_pages_for_users_do_not_write_two_results_under_one_name() -> None:
    """Who follows one page after the other in one folder would be told that the name is taken."""
    commands: dict[tuple[str, str], str] = {}
    for page in PAGES:
        if page.is_relative_to(ROOT / "docs" / "benchmarks") or page.is_relative_to(ROOT / "docs" / "decisions"):
            continue
        for block in blocks(page.read_text()):
            lines = block.code.replace("\\\n", " ").splitlines() if block.language == "sh" else []
            for words in (shlex.split(line, comments=True) for line in lines):
                for option in OUTPUTS & set(words) if words[:1] == ["mar"] else ():
                    name = words[words.index("--name") + 1] if "--name" in words else ""  # of a model in a folder
                    written = words[words.index(option) + 1], name
                    command = shlex.join(words)
                    assert commands.setdefault(written, command) == command, f"{page_name(page)}:{block.line}"
    assert len(commands) > 40


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md", "docs/tasks/generate.md", "docs/tasks/edit.md"])
def test_pages_for_beginners_have_blocks_that_are_run(page: str) -> None:
    assert runnable(ROOT / page)


def test_a_block_without_a_mark_is_found() -> None:
    unmarked = "text\n\n```sh\nmar doctor\n```\n"
    marked = "\n<!-- run -->\n```sh\nmar plan A\n```\n\n<!-- skip: needs a GPU -->\n```sh\nx\n```\n"
    page = unmarked + marked
    assert [(block.line, block.marked, block.run, block.reason) for block in blocks(page)] == [
        (3, False, False, ""),
        (8, True, True, ""),
        (13, True, False, "needs a GPU"),
    ]


def test_a_block_that_fails_in_its_first_command_has_failed(tmp_path: pathlib.Path) -> None:
    assert run_block(Block(1, "sh", "false\ntrue", True, ""), tmp_path).returncode != 0
