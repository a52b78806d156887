"""Weights in memory-mapped files: a process holds only those that it works on.

The system reads a page of a mapped file when it is used, and counts it as memory of the process from then on. The
functions here give pages back. That loses nothing: the next use reads them again, as a rule from the cache of the
system. So a process may take less memory than its model.

Weights that this process has written to stay: their pages are no longer those of the file. Where a system does not
describe its pages in `/proc`, all stay.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import functools
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_MAPPINGS = pathlib.Path("/proc/self/maps")
_PAGES = pathlib.Path("/proc/self/pagemap")  # an entry for each page, see proc_pid_pagemap(5)
_ENTRY_BYTES = 8
_HELD, _OF_FILE = np.uint64(3 << 62), np.uint64(1 << 61)  # in memory or in swap; of a file
_MADV_DONTNEED = 4
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_LEAST_BYTES = 2**20  # smaller tensors are not worth a call
_ALIGNMENT = 64  # bytes


def release(tensors: Iterable[Tensor]) -> None:
    """Give back the memory of tensors that lie in mapped files. Others stay as they are, and so do small ones."""
    for tensor in _mapped(tensors):
        _release_pages(tensor)


def release_files(paths: Iterable[str]) -> None:
    """Give back the memory of files that this process has mapped, whichever library did it."""
    names = {os.path.realpath(path) for path in paths}
    for start, end, name in _file_mappings():
        if name in names:
            _give_back(start, end)


@contextlib.contextmanager
def released_after_calls(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Give the weights of each part of modules back after its calls, of those in mapped files.

    Args:
        modules: The modules, which are called in this context.
    """

    def after_call(part: nn.Module, *_: Any) -> None:
        for tensor in weights[part]:
            _release_pages(tensor)

    weights: dict[nn.Module, list[Tensor]] = {}
    with contextlib.ExitStack() as hooks:
        for part in dict.fromkeys(part for module in modules for part in module.modules()):
            weights[part] = _mapped(part.parameters(recurse=False))
            if weights[part]:
                hooks.callback(part.register_forward_hook(after_call).remove)
        yield


def bytes_in_memory(modules: Iterable[nn.Module]) -> int:
    """Return the size of the large parameters of modules that lie in no mapped file, each counted once."""
    return sum(tensor.nbytes for tensor in _in_memory(modules))


def move_to_file(module: nn.Module, path: pathlib.Path) -> None:
    """Move the large parameters of a module that lie in no mapped file to a new one, and map it.

    The parameters stay the same objects, so what shares them shares the file. Its path may be removed afterwards.

    Args:
        module: The module, which is not trained.
        path: The file to write. None is written if there is nothing to move.

    Raises:
        OSError: The file cannot be written.
    """
    moved = _in_memory([module])
    if not moved:
        return
    offsets = []
    with path.open("wb") as file:
        for tensor in moved:
            file.write(bytes(-file.tell() % _ALIGNMENT))
            offsets.append(file.tell())
            file.write(_as_bytes(tensor).numpy().data)
        size = file.tell()
    content = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    for tensor, offset in zip(moved, offsets, strict=True):
        tensor.data = content[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
    trim()


def trim() -> None:
    """Give freed memory back to the system, which the GNU C library would keep for later."""
    if (malloc_trim := getattr(_libc(), "malloc_trim", None)) is not None:
        malloc_trim(0)


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _in_memory(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Return the large parameters of modules that lie in no mapped file, each once."""
    parameters = dict.fromkeys(parameter for module in modules for parameter in module.parameters())
    mapped = {id(parameter) for parameter in _mapped(parameters)}
    return [each for each in parameters if each.nbytes >= _LEAST_BYTES and id(each) not in mapped]


def _mapped(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return the large ones of some tensors that lie in mapped files."""
    large = [tensor for tensor in tensors if tensor.nbytes >= _LEAST_BYTES]
    mappings = _file_mappings() if large else []
    return [tensor for tensor in large if _lies_in(tensor, mappings)]


def _file_mappings() -> list[tuple[int, int, str]]:
    """Return the first address, the end and the path of every file that this process has mapped; in order."""
    try:
        lines = _MAPPINGS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    mappings = []
    for line in lines:
        addresses, _, _, _, inode, *path = line.split(maxsplit=5)
        if inode != "0":
            start, _, end = addresses.partition("-")
            mappings.append((int(start, 16), int(end, 16), path[0].removesuffix(" (deleted)") if path else ""))
    return mappings


def _lies_in(tensor: Tensor, mappings: list[tuple[int, int, str]]) -> bool:
    """Return whether a tensor begins in one of the mappings, which are in the order of their addresses."""
    number = bisect.bisect_right(mappings, tensor.data_ptr(), key=lambda mapping: mapping[0]) - 1
    return number >= 0 and tensor.data_ptr() < mappings[number][1]


def _release_pages(tensor: Tensor) -> None:
    """Give back the pages that hold nothing but this tensor."""
    if tensor.is_contiguous():
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        _give_back(-(-start // _PAGE) * _PAGE, end // _PAGE * _PAGE)


def _give_back(start: int, end: int) -> None:
    """Give back the pages from one address to another, unless this process has written to one of them."""
    if end > start and (library := _libc()) is not None and not _written(start, end):
        library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)


def _written(start: int, end: int) -> bool:
    """Return whether some pages are of this process alone: it has written to them, or the system does not tell."""
    try:
        with _PAGES.open("rb", buffering=0) as file:
            file.seek(start // _PAGE * _ENTRY_BYTES)
            pages = np.frombuffer(file.read((end - start) // _PAGE * _ENTRY_BYTES), np.uint64)
    except OSError:
        return True
    told = len(pages) == (end - start) // _PAGE
    return not told or bool(((pages & _HELD != 0) & (pages & _OF_FILE == 0)).any())


@functools.cache
def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if os.name == "posix" else None
