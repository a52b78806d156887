"""Runs a command without network, and records every file that it creates and every internet socket that it asks for.

The trace sees C code and child processes too. It uses the notifications of seccomp (Linux 5.0) and no other program.
As a script it is the tracer: `python syscall_trace.py REPORT COMMAND...` writes the calls to REPORT.
"""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import platform
import select
import struct
import subprocess
import sys
from collections.abc import Mapping
from typing import NamedTuple

# The audit number of the architecture, and its system calls: name -> number. aarch64 has neither open nor mkdir.
_ARCHITECTURES = {
    "x86_64": (0xC000003E, {"socket": 41, "open": 2, "openat": 257, "mkdir": 83, "mkdirat": 258, "seccomp": 317}),
    "aarch64": (0xC00000B7, {"socket": 198, "openat": 56, "mkdirat": 34, "seccomp": 277}),
}
_AF_INET, _AF_INET6, _EACCES = 2, 10, 13
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_RECEIVE, _SEND, _CONTINUE = 0xC0502100, 0xC0182101, 1
_NOTIFICATION, _ANSWER = struct.Struct("=QIIiIQ6Q"), struct.Struct("=QqiI")
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06


class Trace(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str
    created: list[pathlib.Path]  # files opened with O_CREAT, and folders, whether or not they existed
    sockets: int  # internet sockets asked for; each was refused


def trace(command: list[str], folder: pathlib.Path, report: pathlib.Path, environment: Mapping[str, str]) -> Trace:
    """Run a command in `folder` under the tracer, which writes to `report`."""
    traced = [sys.executable, __file__, str(report), *command]
    ended = subprocess.run(
        traced, cwd=folder, env=dict(environment), capture_output=True, text=True, check=False, timeout=120
    )
    calls = [json.loads(line) for line in report.read_text().splitlines()]
    created = [pathlib.Path(path) for name, path in calls if name != "socket"]
    return Trace(ended.returncode, ended.stdout, ended.stderr, created, sum(name == "socket" for name, _ in calls))


def _filter(audit: int, calls: Mapping[str, int]) -> bytes:
    """The program that notifies of internet sockets, created files and folders, and allows everything else."""

    def instruction(code: int, if_true: int, if_false: int, operand: int) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, operand)

    allow, notify = instruction(_RETURN, 0, 0, _ALLOW), instruction(_RETURN, 0, 0, _NOTIFY)
    program = [instruction(_LOAD, 0, 0, 4), instruction(_EQUAL, 1, 0, audit), allow]
    for name, number in calls.items():
        if name == "seccomp":
            continue
        body = [notify]
        if name in ("open", "openat"):
            flags = 16 + 8 * (2 if name == "openat" else 1)
            body = [instruction(_LOAD, 0, 0, flags), instruction(_ANY_BIT, 0, 1, os.O_CREAT), notify, allow]
        if name == "socket":
            family = [instruction(_EQUAL, 1, 0, _AF_INET), instruction(_EQUAL, 0, 1, _AF_INET6)]
            body = [instruction(_LOAD, 0, 0, 16), *family, notify, allow]
        program += [instruction(_LOAD, 0, 0, 0), instruction(_EQUAL, 0, len(body), number), *body]
    return b"".join([*program, allow])


def _listen(audit: int, calls: Mapping[str, int]) -> int:
    """Put this process and its children under the filter; returns the descriptor that notifications come from."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))

    libc, code = ctypes.CDLL(None, use_errno=True), _filter(audit, calls)
    no_new_privileges, set_filter, new_listener = 38, 1, 8
    libc.prctl(no_new_privileges, 1, 0, 0, 0)
    program = Program(len(code) // 8, code)
    listener: int = libc.syscall(calls["seccomp"], set_filter, new_listener, ctypes.byref(program))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp refused the filter")
    return listener


def _path(pid: int, address: int, folder: int | None) -> str:
    """The path that a system call of a process was given: at `address`, relative to the descriptor `folder`."""
    with pathlib.Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(address)
        text = memory.read(4096).split(b"\0")[0].decode(errors="replace")
    at_folder = folder is not None and 0 <= folder < 2**31
    base = pathlib.Path(f"/proc/{pid}/fd/{folder}" if at_folder else f"/proc/{pid}/cwd").readlink()
    return str(base / text)


def _answer(listener: int, names: Mapping[int, str]) -> tuple[str, str]:
    """Receive one notification and answer it; returns the call and its path."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(_NOTIFICATION.size)
    if libc.ioctl(listener, ctypes.c_ulong(_RECEIVE), buffer) < 0:
        raise OSError(ctypes.get_errno(), "no notification")
    number, pid, _, call, _, _, *arguments = _NOTIFICATION.unpack(buffer.raw)
    name, path = names[call], ""
    if name.endswith("at"):
        path = _path(pid, arguments[1], arguments[0] & 0xFFFFFFFF)
    elif name != "socket":
        path = _path(pid, arguments[0], None)
    refused = name == "socket"
    reply = _ANSWER.pack(number, 0, -_EACCES if refused else 0, 0 if refused else _CONTINUE)
    libc.ioctl(listener, ctypes.c_ulong(_SEND), ctypes.create_string_buffer(reply, len(reply)))
    return name, path


def _main(report: str, *command: str) -> int:
    audit, calls = _ARCHITECTURES[platform.machine()]
    with pathlib.Path(report).open("w", encoding="utf-8") as file:
        listener = _listen(audit, calls)
        child = os.fork()
        if child == 0:
            os.execvp(command[0], command)
        names, poll, ended = {number: name for name, number in calls.items()}, select.poll(), os.pidfd_open(child)
        poll.register(listener, select.POLLIN)
        poll.register(ended, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if listener in ready:
                file.write(json.dumps(_answer(listener, names)) + "\n")
            elif ended in ready:
                return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
