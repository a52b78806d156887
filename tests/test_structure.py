"""The structure of the project: short functions, short test files, and tests in the folders of what they test."""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator

from tests.conftest import LONGEST

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("runtime", "training", "mar_export", "calibration", "benchmarks")
OTHER_FOLDERS = (
    "docs",
    "fakes",
    "fuzz",
)  # tests of the documentation, of the fakes themselves, and by damage and kills
MAX_FUNCTION_LINES = 50
MAX_TEST_FILE_LINES = 400


def python_files(*folders: str) -> Iterator[pathlib.Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def test_the_longest_test_files_exist() -> None:
    assert [name for name in LONGEST if not (ROOT / "tests" / name).is_file()] == []


def test_no_function_is_longer_than_fifty_lines() -> None:
    too_long = []
    for file in python_files(*PACKAGES):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno is not None
                lines = node.end_lineno - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    too_long.append(f"{file.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines")
    assert not too_long, "\n".join(too_long)


def test_libraries_that_send_statistics_are_imported_without_them() -> None:
    """By `runtime.backends.telemetry.import_library`, and nowhere else."""
    found = []
    for file in python_files(*PACKAGES):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
                names = [str(argument.value) for argument in node.args if isinstance(argument, ast.Constant)]
            if {name.split(".")[0] for name in names} & {"onnxruntime", "openvino", "ray"}:
                found.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert not found, "\n".join(found)


def test_files_with_structure_are_read_in_one_place() -> None:
    """JSON, TOML and npz files by `runtime.storage.structured_files`; tensors of others by `training.checkpoints`.

    Files of tensors are also written in one place, which makes every tensor contiguous.
    """
    readers = {
        "json.load": (),
        "json.loads": ("runtime/storage/structured_files.py",),
        "tomllib.loads": ("runtime/storage/structured_files.py",),
        "np.load": (),
        "zipfile.ZipFile": ("runtime/storage/structured_files.py", "training/checkpoints/zip_archives.py"),
        "load_file": ("training/checkpoints/tensor_files.py",),
        "save_file": ("training/checkpoints/checkpoint.py",),
        "safe_open": ("training/checkpoints/tensor_files.py", "training/data/latent_cache.py"),
        "torch.load": ("training/checkpoints/pickles.py", "training/evaluation/feature_networks.py"),
    }
    own_values = ("runtime/storage/stored_files.py",)  # json.loads(json.dumps(value))
    found = []
    for file in python_files(*PACKAGES):
        name = str(file.relative_to(ROOT))
        for node in ast.walk(ast.parse(file.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in readers and name not in (*readers[called], *own_values):
                found.append(f"{name}:{node.lineno}: {called}")
            if called.endswith((".read_text", ".write_text")) and "encoding" not in ast.unparse(node):
                found.append(f"{name}:{node.lineno}: {called} without an encoding")
    assert not found, "\n".join(found)


def test_no_test_file_has_more_than_four_hundred_lines() -> None:
    lengths = {file.relative_to(ROOT): len(file.read_text().splitlines()) for file in python_files("tests")}
    too_long = [f"{file}: {lines} lines" for file, lines in lengths.items() if lines > MAX_TEST_FILE_LINES]
    assert not too_long, "\n".join(too_long)


def test_every_test_lies_in_the_folder_of_what_it_tests() -> None:
    misplaced = []
    for file in python_files("tests"):
        folder = file.parent.relative_to(ROOT / "tests")
        mirrored = folder.parts and (folder.parts[0] in OTHER_FOLDERS or (ROOT / folder).is_dir())
        if file.name.startswith("test_") and folder.parts and not mirrored:
            misplaced.append(str(file.relative_to(ROOT)))
    assert not misplaced, "\n".join(misplaced)
