"""Commands and options that README and the documentation name exist, also where an example is not run."""

from __future__ import annotations

import pathlib
import re
import shlex
from collections.abc import Iterator

import click
import pytest

from runtime.cli.group import mar
from tests.docs.test_examples import PAGES, blocks, page_name

OF_OTHER_PROGRAMS = {"--system-site-packages", "--shutdown-timeout", "--nproc-per-node"}
GROUP = click.Context(mar)

_INLINE = re.compile(r"`([^`\n]+)`")


def options(command: click.Command) -> set[str]:
    names = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return names | {"--help", "-h"}


def command_lines(page: pathlib.Path) -> Iterator[list[str]]:
    """Yield the words of each `mar` command on a page, in blocks and in the text."""
    text = page.read_text()
    code = [block.code for block in blocks(text) if block.language == "sh"]
    for line in "\n".join([*code, *_INLINE.findall(text)]).replace("\\\n", " ").splitlines():
        if line.startswith("mar "):
            yield shlex.split(line.partition(" > ")[0])[1:]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_command_and_its_options_exist(page: pathlib.Path) -> None:
    for words in command_lines(page):
        if words[0].startswith("-") or words[0] in ("COMMAND", "..."):
            continue
        command = mar.get_command(GROUP, words[0])
        assert command is not None, f"{page_name(page)}: mar {words[0]}"
        for word in words[1:]:
            if word.startswith("--"):
                assert word.partition("=")[0] in options(command), f"{page_name(page)}: mar {words[0]} {word}"


@pytest.mark.parametrize("page", [page for page in PAGES if "examples" not in page.parts], ids=page_name)
def test_every_option_in_the_text_exists(page: pathlib.Path) -> None:
    known = options(mar) | OF_OTHER_PROGRAMS
    for name in mar.list_commands(GROUP):
        command = mar.get_command(GROUP, name)
        assert command is not None
        known |= options(command)
    for code in _INLINE.findall(page.read_text()):
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", code):
            assert option in known, f"{page_name(page)}: {option}"
