"""Signals at any moment, outputs that take nothing, and limits: one line or silence, the exit code of a shell."""

from __future__ import annotations

import errno
import os
import pathlib
import resource
import signal
import subprocess
import sys

import click
import pytest

from runtime.cli.failures import explain
from runtime.cli.limits import describe_limit
from runtime.errors import BackendError, MarError

SIGNALS = [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated"), (signal.SIGHUP, "the terminal hung up")]


def run(code: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    settings = {"capture_output": True, "text": True, "timeout": 120, **options}
    return subprocess.run(command, check=False, **settings)  # type: ignore[call-overload, no-any-return]


# A shell that starts a job in the background has it ignore SIGINT, which Python inherits.
START = "import os, signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"

DURING_IMPORT = (
    (
        START
        + """
class Finder:
    def find_spec(self, name, path, target=None):
        if name == sys.argv[2]:
            os.kill(os.getpid(), int(sys.argv[1]))
from runtime.cli.main import main
sys.meta_path.insert(0, Finder())
sys.argv[1:] = ["doctor"]
main()
"""
    )
    .replace("sys.argv[2]", "NAME")
    .replace("int(sys.argv[1])", "NUMBER")
)


@pytest.mark.parametrize(("number", "message"), SIGNALS)
@pytest.mark.parametrize("module", ["click", "numpy", "runtime.cli.doctor"])
def test_a_signal_during_the_imports_is_one_line(number: signal.Signals, message: str, module: str) -> None:
    done = run(f"NAME, NUMBER = {module!r}, {int(number)}\n{DURING_IMPORT}")
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", f"mar: {message}\n")


# A key derivation of a library takes minutes, and no signal interrupts it.
IN_A_LIBRARY = (
    START
    + """
import hashlib, pathlib, threading
from runtime.cli.signals import Signals
from runtime.storage.files import holding_folder, replacing
folder = pathlib.Path(sys.argv[2])
with Signals(), holding_folder(folder / "held"), replacing(folder / "file") as temporary:
    temporary.write_text("half")
    threading.Timer(0.2, os.kill, (os.getpid(), int(sys.argv[1]))).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""
)


@pytest.mark.parametrize(("number", "message"), SIGNALS)
def test_a_signal_in_a_long_call_of_a_library_ends_it_and_leaves_nothing(
    tmp_path: pathlib.Path, number: signal.Signals, message: str
) -> None:
    done = run(IN_A_LIBRARY, int(number), tmp_path)
    assert (done.returncode, done.stderr) == (128 + number, f"mar: {message}\n")
    assert [path for path in tmp_path.rglob("*") if path.name != "held"] == []


def test_a_hang_up_that_is_ignored_stays_ignored() -> None:
    """As under nohup."""
    done = run(
        "import os, signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\nfrom runtime.cli.signals import Signals\n"
        "with Signals():\n    os.kill(os.getpid(), signal.SIGHUP)\nprint('done')\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


MAR = "from runtime.cli.main import main\nmain()\n"


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("doctor",)], ids=" ".join)
def test_a_full_output_is_one_line(arguments: tuple[str, ...]) -> None:
    with pathlib.Path("/dev/full").open("w") as full:
        done = run(MAR, *arguments, capture_output=False, stdout=full, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (1, "mar: No space left on device; free some space\n")
        assert run(MAR, *arguments, capture_output=False, stdout=full, stderr=full).returncode == 1


@pytest.mark.parametrize("arguments", [("--help",), ("doctor",)], ids=" ".join)
def test_a_closed_pipe_is_silence(arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run(MAR, *arguments, capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


SHOW_DESCRIPTORS = """
import os, pathlib, subprocess
import runtime.cli.main as m

def run(variables):
    pathlib.Path("open").write_text("\\n".join(os.readlink(f"/proc/self/fd/{number}") for number in range(3)))
    return subprocess.run(["sh", "-c", "for n in 0 1 2; do readlink /proc/$$/fd/$n; done > open-in-child"]).returncode

m._run = run
m.main()
"""


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_no_file_takes_the_place_of_a_closed_input_or_output(closed: tuple[int, ...], tmp_path: pathlib.Path) -> None:
    """The first file that is opened would have number 0, 1 or 2, and get what a library prints."""
    shell = f'exec "$0" "$@" {" ".join(f"{number}>&-" for number in closed)}'
    command = ["bash", "-c", shell, sys.executable, "-c", SHOW_DESCRIPTORS]
    assert subprocess.run(command, cwd=tmp_path, check=False, timeout=120).returncode == 0
    for file, others in (("open", ()), ("open-in-child", (1,))):  # the child writes to its standard output
        seen = (tmp_path / file).read_text().splitlines()
        assert [seen[number] for number in closed if number not in others] == ["/dev/null"] * len({*closed} - {*others})


@pytest.mark.parametrize("limit", range(5, 14))
def test_few_file_descriptors_are_one_line(limit: int, tmp_path: pathlib.Path) -> None:
    """With fewer, Python itself does not start where the package is installed as an editable one."""
    done = run(MAR, "inspect", tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)))
    assert done.returncode == 1
    assert done.stderr.startswith("mar: ")
    assert done.stderr.count("\n") == 1


def _caused(cause: BaseException, message: str) -> Exception:
    error = BackendError(message)
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (MemoryError(), "not enough memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), "memory"),
        (RuntimeError("std::bad_alloc"), "not enough memory"),
        (RuntimeError("could not create a primitive"), "not enough memory"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "not enough memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "not enough memory"),
        (OSError(errno.EMFILE, "Too many open files", "x"), "too few file descriptors"),
        (ImportError("libonnxruntime.so: cannot open shared object file: Too many open files"), "too few file"),
        (RuntimeError("can't start new thread"), "no further thread or process"),
        (_caused(OSError(errno.EMFILE, "Too many open files"), "backend is not installed"), "too few file"),
        (_caused(MemoryError(), "backend is not installed"), "not enough memory"),
        (
            _caused(RuntimeError("Cannot allocate memory"), "cannot load it (Cannot allocate memory)"),
            "not enough memory",
        ),
        (_caused(RuntimeError("Load model failed:system error number 24"), "cannot load it"), "too few file"),
    ],
    ids=str,
)
def test_a_limit_is_told_as_such_whatever_a_library_makes_of_it(error: Exception, part: str) -> None:
    line = describe_limit(error)
    assert line is not None
    assert part in line


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: Permission denied; give this user"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/x/y"), "/x/y: Not a directory"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (MarError("what, where"), "what, where"),
        (click.ClickException("what"), "what"),
        (ImportError("libfoo.so: undefined symbol"), "a package does not load: libfoo.so"),
    ],
    ids=str,
)
def test_a_refusal_of_the_system_is_one_line(error: Exception, expected: str) -> None:
    explained = explain(error, {})
    assert explained is not None
    assert explained[0].startswith(expected)
    assert explained[1] == 1


def test_a_bug_keeps_its_traceback() -> None:
    assert describe_limit(KeyError("bug")) is None
    assert explain(KeyError("bug"), {}) is None
