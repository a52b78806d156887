"""What produced a figure or a model: the commit of this code, the command, and the processor it ran on."""

from __future__ import annotations

import pathlib
import platform
import re
import subprocess
from collections.abc import Iterator, Sequence

UNKNOWN_COMMIT = "unknown"

REDACTED = "***"
"""What a stored command line has in place of a secret."""

# A name is that of a secret if one of its words is in the first set, or its last word in the second. `--token-order`
# and `--tokenizer` are none.
_SECRET_WORDS = {"password", "passwd", "passphrase", "pwd", "secret", "credential", "credentials", "apikey"}
_SECRET_LAST_WORDS = {"token", "key", "auth", "authorization", "cookie", "sig", "signature"}
# A value ends at `&`, at the next assignment, or with the argument.
_ASSIGNMENT = re.compile(r"([\w.-]+)(=|: )(.*?)(?=&|\s[\w.-]+=|$)", re.DOTALL)
_IN_URL = re.compile(r"(\w+://)[^/\s@]+@")

_CHECKOUT = pathlib.Path(__file__).resolve().parents[1]


def commit() -> str:
    """Return the commit of the checkout that this code runs from, as 12 hexadecimal digits.

    A `+` follows where tracked files differ from that commit. The result is `UNKNOWN_COMMIT` where the package runs
    from no checkout, even if it is installed inside another project's, and where git is missing or fails.
    """
    if not (_CHECKOUT / ".git").exists():
        return UNKNOWN_COMMIT
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"],
            cwd=_CHECKOUT,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN_COMMIT
    return described.stdout.strip() or UNKNOWN_COMMIT


def without_secrets(command: Sequence[str]) -> list[str]:
    """Return a command line that can be stored: a secret is replaced by `REDACTED`, by the name that it has.

    Secrets are the values of options, of assignments `NAME=VALUE` or `NAME: VALUE` and of a URL's parameters whose name
    is that of a password, token, key or the like, and the user and password of a URL.
    """
    return list(_without_secrets(command))


def _without_secrets(command: Sequence[str]) -> Iterator[str]:
    follows = False  # whether this argument is the value of a secret option
    for argument in command:
        if follows and not argument.startswith("--"):
            yield REDACTED
            follows = False
            continue
        yield _ASSIGNMENT.sub(_redact_assignment, _IN_URL.sub(rf"\1{REDACTED}@", argument))
        follows = argument.startswith("-") and "=" not in argument and _is_secret(argument)


def _redact_assignment(match: re.Match[str]) -> str:
    return f"{match[1]}{match[2]}{REDACTED}" if _is_secret(match[1]) else match[0]


def _is_secret(name: str) -> bool:
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    return bool(_SECRET_WORDS & {*words}) or (bool(words) and words[-1] in _SECRET_LAST_WORDS)


def processor_name() -> str:
    """Return the model name of the CPU, such as `AMD EPYC 7B13`, or its architecture where the system has no name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def processor_features() -> frozenset[str]:
    """Return the names of the instruction sets of the CPU, such as `avx2`, as Linux has them; elsewhere none."""
    return frozenset((_cpuinfo("flags") or _cpuinfo("Features")).split())  # of x86 and of ARM


def _cpuinfo(key: str) -> str:
    """Return what Linux says about the first CPU under a key; nothing elsewhere, or if it does not say it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")
