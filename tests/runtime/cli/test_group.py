"""What all commands of `mar` share: suggestions, the environment, completion, the log level, exit codes."""

from __future__ import annotations

import pathlib
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator

import click
import pytest

from runtime.backends import BACKENDS
from runtime.cli.environment_variables import MachineOption
from runtime.cli.group import mar as group
from runtime.errors import MarError, RequestError
from runtime.log import LEVELS, LOG
from tests.helpers.command_line import Mar

CLI_PAGE = (pathlib.Path(__file__).parents[3] / "docs" / "reference" / "cli.md").read_text()


@pytest.fixture(scope="module")
def artifact(golden_artifacts: dict[str, pathlib.Path]) -> pathlib.Path:
    return golden_artifacts["small"]


@pytest.fixture(autouse=True)
def the_level_afterwards() -> Iterator[None]:
    """The log level is that of the process, which other tests share."""
    level = LOG.level
    yield
    LOG.setLevel(level)


def rows(heading: str) -> dict[str, str]:
    """The second column of a table of the reference, by the first, without the marks of code."""
    section = CLI_PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return {first.split("`")[first.count("`") // 2]: second for first, second in lines[1:]}


def all_commands() -> dict[str, click.Command]:
    context = click.Context(group)
    commands = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in commands.items() if command is not None}


# Suggestions.


@pytest.mark.parametrize(
    ("line", "suggestion"),
    [
        ("generat", "No such command 'generat'; did you mean generate? (see mar --help)"),
        ("benchmark", "No such command 'benchmark'; did you mean bench? (see mar --help)"),
        ("qqqq", "No such command 'qqqq' (see mar --help)"),
        ("generate --prset fast", "No such option --prset; did you mean --preset? (see mar generate --help)"),
        ("plan --iteration 3", "No such option --iteration; did you mean --iterations? (see mar plan --help)"),
        ("plan --qqqq", "No such option --qqqq (see mar plan --help)"),
        ("--log-levl debug plan", "No such option --log-levl; did you mean --log-level? (see mar --help)"),
        (
            "plan x --debug",
            "No such option --debug; it stands before the command: mar --debug ... (see mar plan --help)",
        ),
    ],
)
def test_a_mistyped_command_or_option_gets_the_nearest_name(mar: Mar, line: str, suggestion: str) -> None:
    assert mar(line) == (2, "", f"mar: {suggestion}\n")


# Environment variables.


def test_the_reference_lists_the_variables_of_all_commands() -> None:
    options = {option for command in (group, *all_commands().values()) for option in command.params}
    variables = {str(option.envvar): option.opts[0] for option in options if isinstance(option, MachineOption)}
    assert {name: option.split("`")[1] for name, option in rows("Environment variables").items()} == variables
    assert all(option.envvar is None for option in options if not isinstance(option, MachineOption))


def test_a_variable_gives_an_option_its_value_unless_the_command_line_does(
    mar: Mar, artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"plan {artifact} --iterations 2 --diffusion-steps ddim2"
    monkeypatch.setenv("MAR_THREADS", "1")
    assert mar(line).out.endswith(" 1 thread\n")
    assert mar(f"{line} --threads 2").out.endswith(" 2 threads\n")
    monkeypatch.setenv("MAR_THREADS", "2")
    assert mar(line).out.endswith(" 2 threads\n")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MAR_THREADS", "many", "'many' is not a valid integer"),
        ("MAR_THREADS", "0", "0 is not in the range"),
        ("MAR_BACKEND", "nope", "'nope' is not one of 'onnxruntime', "),
        ("MAR_DEVICE", "tpu", "'tpu'"),
        ("MAR_CUDA_GRAPHS", "maybe", "'maybe' is not a valid boolean"),
        ("MAR_LOG_LEVEL", "loud", "'loud' is not one of"),
    ],
)
def test_a_bad_value_names_its_variable(
    mar: Mar, artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    ended = mar(f"plan {artifact}")
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert message in ended.err
    assert ended.err.endswith(f"; the environment sets {variable}={value}\n")


def test_a_variable_is_named_only_where_the_message_is_about_it(
    mar: Mar, artifact: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAR_THREADS", "2")
    monkeypatch.setenv("MAR_BACKEND", "tensorrt")
    assert "environment" not in mar(f"plan {artifact}/nothing").err
    assert "environment" not in mar(f"plan {artifact} --no-time --iterations 0 --last-diffusion-steps 2").err
    assert "environment" not in mar(f"plan {artifact} --backend other").err
    assert "environment" not in mar(f"plan {artifact} --backend openvino --threads 0").err
    monkeypatch.setenv("MAR_BACKEND", "")
    assert mar(f"plan {artifact} --no-time").code == 0


def test_a_default_in_the_help_is_a_value_that_can_be_given(mar: Mar) -> None:
    assert re.search(r"--seed INTEGER .* several seeds. \[default: 0\]", " ".join(mar("generate --help").out.split()))
    for name, command in all_commands().items():
        assert "default: (" not in command.get_help(click.Context(command, info_name=name))


def test_backends_and_devices_are_choices_in_every_command() -> None:
    """Shells complete them, and every command names the same ones."""
    options = [{each.name: each.type for each in command.params} for command in all_commands().values()]
    choices = [(each["backend"], each["device"]) for each in options if "backend" in each]
    assert len(choices) > 5
    for backend, device in choices:
        assert isinstance(backend, click.Choice)
        assert isinstance(device, click.Choice)
        assert ([*backend.choices], [*device.choices]) == ([*BACKENDS], ["cpu", "cuda"])


def test_the_help_shows_the_variable(mar: Mar) -> None:
    assert "[env var: MAR_THREADS;" in " ".join(mar("plan --help").out.split())


# Completion.

COMPLETE = """
eval "$(_MAR_COMPLETE=bash_source {mar})"
compopt() {{ COMPREPLY=(compopt "$@"); }}
while read -r line; do
    COMP_WORDS=($line); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()
    _mar_completion {mar}
    echo "$line: ${{COMPREPLY[*]}}"
done
"""
COMPLETED = {
    "mar ev": "evaluate evaluate-tokenizer",
    "mar --lo": "--log-level",
    "mar plan --it": "--iterations",
    "mar plan --sampler dpm": "dpm++2m dpm++2m-sde",
    "mar inspect ou": "compopt -o default",  # files, as bash completes them
    "mar nothing --x": "",
}


def test_bash_completes_commands_options_choices_and_files() -> None:
    script = COMPLETE.format(mar=pathlib.Path(sys.executable).parent / "mar")
    ended = subprocess.run(
        ["bash", "-eu", "-c", script], input="\n".join([*COMPLETED, ""]), capture_output=True, text=True, check=False
    )
    assert ended.stdout.splitlines() == [f"{line}: {expected}" for line, expected in COMPLETED.items()]
    assert ended.stderr == ""


def test_completion_imports_no_command_and_passes_over_missing_packages(
    mar: Mar, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch", "training", "mar_export", "calibration"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setenv("_MAR_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_CWORD", "1")
    monkeypatch.setenv("COMP_WORDS", "mar tr")
    assert mar("") == (0, "plain,train\nplain,train-tokenizer\n", "")
    for module in [name for name in sys.modules if name.startswith("training.cli")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setenv("COMP_CWORD", "2")
    monkeypatch.setenv("COMP_WORDS", "mar train --st")
    ended = mar("")
    assert (ended.code, ended.err) == (0, "")


# Log level.


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`mar doctor` says something of each kind, and fails."""

    @click.command()
    def doctor() -> None:
        click.echo("result")
        LOG.info("note")
        LOG.warning("may be wrong")
        raise MarError("failed")

    monkeypatch.setattr("runtime.cli.doctor.doctor", doctor)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        yield


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("--log-level error", {"mar: failed"}),
        ("--log-level warning", {"mar: failed", "may be wrong"}),
        ("--log-level info", {"mar: failed", "may be wrong", "note"}),
        ("", {"mar: failed", "may be wrong", "note"}),
        ("--log-level debug", {"mar: failed", "may be wrong", "note", "Traceback"}),
        ("--debug", {"mar: failed", "may be wrong", "note", "Traceback"}),
        ("--debug --log-level error", {"mar: failed", "may be wrong", "note", "Traceback"}),
    ],
)
@pytest.mark.usefixtures("failing")
def test_the_log_level_decides_what_standard_error_gets(mar: Mar, level: str, shown: set[str]) -> None:
    ended = mar(f"{level} doctor")
    assert (ended.code, ended.out) == (1, "result\n")
    kinds = {"mar: failed", "may be wrong", "note", "Traceback"}
    assert (warnings.filters[0][0] == "ignore") == (level == "--log-level error")  # those of libraries
    assert {kind for kind in kinds if re.search(rf"^.*{kind}", ended.err, re.MULTILINE)} == shown


@pytest.mark.usefixtures("failing")
def test_the_level_can_come_from_the_environment(mar: Mar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAR_LOG_LEVEL", "error")
    assert mar("doctor").err == "mar: failed\n"


def test_the_reference_lists_the_levels() -> None:
    assert list(rows("Output")) == list(LEVELS)


# Exit codes.


def test_the_reference_lists_the_exit_codes() -> None:
    stopped = {128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    assert {int(code) for code in rows("Exit codes")} == {0, MarError.exit_code, RequestError.exit_code} | stopped


@pytest.mark.parametrize(
    ("line", "code"), [("--version", 0), ("plan --help", 0), ("inspect nothing", 1), ("inspect", 2), ("", 2)]
)
def test_exit_codes(mar: Mar, line: str, code: int) -> None:
    assert mar(line).code == code
