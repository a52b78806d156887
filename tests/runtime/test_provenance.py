"""The commit and the processor name that reports contain."""

from __future__ import annotations

import pathlib
import platform
import re
import subprocess

import pytest

from runtime import provenance


def test_commit_is_that_of_this_checkout() -> None:
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=pathlib.Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if head.returncode:
        pytest.skip("these tests run from no git checkout")
    assert re.fullmatch(r"[0-9a-f]{12,40}\+?", provenance.commit())
    assert head.stdout.startswith(provenance.commit().rstrip("+"))


def test_commit_is_unknown_outside_a_checkout(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_CHECKOUT", tmp_path)
    assert provenance.commit() == "unknown"


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.CalledProcessError(128, "git")], ids=str)
def test_commit_is_unknown_where_git_fails(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(provenance, "_CHECKOUT", tmp_path)
    monkeypatch.setattr(subprocess, "run", fail)
    assert provenance.commit() == "unknown"


def test_processor_name_is_the_first_of_cpuinfo(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "processor\t: 0\nmodel name\t: A Chip: Fast\nprocessor\t: 1\nmodel name\t: Another\n"
    monkeypatch.setattr(pathlib.Path, "read_text", lambda path, **how: text)
    assert provenance.processor_name() == "A Chip: Fast"


@pytest.mark.parametrize("name", ["", "some processor"])
def test_processor_name_falls_back_to_the_platform(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def missing(path: pathlib.Path, **how: str) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(pathlib.Path, "read_text", missing)
    monkeypatch.setattr(platform, "processor", lambda: name)
    assert provenance.processor_name() == (name or platform.machine())


@pytest.mark.parametrize(
    ("secret", "stored"),
    [
        (["--hf-token", "hf_abc"], ["--hf-token", "***"]),
        (["--api-key=abc"], ["--api-key=***"]),
        (["--password", "-abc"], ["--password", "***"]),
        (["--data", "s3://user:abc@host/data"], ["--data", "s3://***@host/data"]),
        (["https://host/data?part=3&access_token=abc&size=4"], ["https://host/data?part=3&access_token=***&size=4"]),
        (["https://host/data?X-Amz-Signature=abc"], ["https://host/data?X-Amz-Signature=***"]),
        (["AWS_SECRET_ACCESS_KEY=abc def"], ["AWS_SECRET_ACCESS_KEY=***"]),
        (["A=1 WANDB_API_KEY=abc B=2"], ["A=1 WANDB_API_KEY=*** B=2"]),
        (["clientSecret=abc"], ["clientSecret=***"]),
        (["--header", "Authorization: Bearer abc"], ["--header", "Authorization: ***"]),
        (["--MY_PASSWD", "abc", "--steps", "3"], ["--MY_PASSWD", "***", "--steps", "3"]),
    ],
)
def test_a_stored_command_line_has_no_secrets(secret: list[str], stored: list[str]) -> None:
    assert provenance.without_secrets(["mar", "train", *secret]) == ["mar", "train", *stored]


@pytest.mark.parametrize(
    "command",
    [
        ["mar", "train", "--data", "C:/keys/images", "--out=runs/token", "--steps", "3"],
        ["mar", "train", "--tokenizer", "vae", "--token-order", "raster", "--data", "https://host/a?b=c&d=e"],
        ["mar", "train", "--no-token", "--resume"],
    ],
)
def test_other_arguments_are_stored_as_they_are(command: list[str]) -> None:
    assert provenance.without_secrets(command) == command
