"""An option under its old name: one line that names the new one, in every command."""

from __future__ import annotations

import click
import pytest

from runtime.cli.group import mar as group
from runtime.cli.renamed_options import FLAGS, RENAMED, check_renamed
from runtime.errors import RequestError
from tests.helpers.command_line import Mar

FLAG_ROWS = [(command, old, new) for command, options in FLAGS.items() for old, new in options.items()]
ROWS = [(command, old, new) for command, options in RENAMED.items() for old, new in options.items()]


@pytest.mark.parametrize(("command", "old", "new"), ROWS)
@pytest.mark.parametrize("line", ["{command} {old} 7", "{command} a b --unknown {old}=7", "{command} {old} --help"])
def test_an_old_option_gets_one_line_that_names_the_new_one(
    mar: Mar, command: str, old: str, new: str, line: str
) -> None:
    ended = mar(line.format(command=command, old=old))
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith(f"mar: {old} of mar {command} is now ")
    assert f" {new} " in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(("command", "old", "new"), ROWS)
def test_the_new_spelling_exists(command: str, old: str, new: str) -> None:
    context = click.Context(group)
    if new.startswith("mar "):
        assert group.get_command(context, new.removeprefix("mar ")) is not None
        return
    found = group.get_command(context, command)
    assert found is not None
    assert new in {spelling for option in found.params for spelling in option.opts}


@pytest.mark.parametrize(("command", "old", "new"), FLAG_ROWS)
@pytest.mark.parametrize("line", ["{command} {old} x.json", "{command} a {old}=x.json --unknown"])
def test_an_option_that_is_a_flag_now_says_what_takes_the_file(
    mar: Mar, command: str, old: str, new: str, line: str
) -> None:
    message = f"{old} of mar {command} now prints to standard output; to write the file, use {new} x.json"
    assert mar(line.format(command=command, old=old)) == (2, "", f"mar: {message} (see mar {command} --help)\n")
    found = group.get_command(click.Context(group), command)
    assert found is not None
    options = {spelling: option for option in found.params for spelling in option.opts}
    assert new in options
    assert getattr(options[old], "is_flag", False)
    check_renamed(command, found, ["a", old, "b"])


@pytest.fixture
def bench() -> click.Command:
    """A command that has the new option, and one old option that has another meaning now."""
    return click.Command("bench", params=[click.Option(["--preset"]), click.Option(["--config"])])


@pytest.mark.parametrize("arguments", [["--plan", "fast"], ["a", "--plan=fast"], ["--preset", "x", "--plan"]])
def test_an_old_option_is_recognised_wherever_it_stands(bench: click.Command, arguments: list[str]) -> None:
    with pytest.raises(RequestError) as error:
        check_renamed("bench", bench, arguments)
    assert str(error.value) == "--plan of mar bench is now --preset (see mar bench --help)"


@pytest.mark.parametrize(
    "arguments", [[], ["--preset", "fast"], ["--config", "x"], ["--planning"], ["plan"], ["--", "--plan"]]
)
def test_other_arguments_pass(bench: click.Command, arguments: list[str]) -> None:
    check_renamed("bench", bench, arguments)
    check_renamed("doctor", bench, ["--plan"])
