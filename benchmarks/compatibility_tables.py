"""The tables of `docs/compatibility.md`, from the facts that `benchmarks.compatibility` measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

BACKENDS = {"onnxruntime": "ONNX Runtime, CPU", "openvino": "OpenVINO, CPU"}

# An operator is equal to the reference up to the rounding of its last sum, by the dtype of its output.
_EQUAL = {"float16": 1e-3, "bfloat16": 1e-2}
_EQUAL_IN_FLOAT32 = 1e-5

Facts = Mapping[str, Any]


def engines_table(facts: Facts) -> str:
    """Every precision on every backend: the largest distance of all engines, and that of empty lengths."""
    refusals: list[str] = []
    lines = [f"| precision | {' | '.join(f'{name} | empty lengths' for name in BACKENDS.values())} |"]
    lines.append("|---" * (1 + 2 * len(BACKENDS)) + "|")
    for precision in dict.fromkeys(result["precision"] for result in facts["engines"]):
        cells = []
        for backend in BACKENDS:
            of_both = [
                result
                for result in facts["engines"]
                if (result["precision"], result["backend"]) == (precision, backend)
            ]
            cells += [_worst(of_both, key, refusals) for key in ("distance", "empty")]
        lines.append(f"| {precision} | {' | '.join(cells)} |")
    return _table(facts, "engines", lines, refusals)


def operators_table(facts: Facts) -> str:
    """Every operator and its dtypes on every backend."""
    refusals: list[str] = []
    lines = [f"| operator | dtypes | in graphs of | {' | '.join(BACKENDS.values())} |", "|---" * 5 + "|"]
    everywhere = list(dict.fromkeys(result["precision"] for result in facts["engines"]))
    for result in facts["operators"]:
        equal = _EQUAL.get(result["dtypes"].rpartition(" ")[2], _EQUAL_IN_FLOAT32)
        cells = [_result(result[backend], "distance", equal, refusals) for backend in BACKENDS]
        precisions = "all" if result["precisions"] == everywhere else ", ".join(result["precisions"])
        lines.append(f"| {result['operator']} | {result['dtypes']} | {precisions} | {' | '.join(cells)} |")
    return _table(facts, "operators", lines, refusals)


def tensorrt_rtx_table(facts: Facts) -> str:
    """Every precision on every architecture of TensorRT-RTX: compiled or refused."""
    results, refusals = facts["tensorrt_rtx"], list[str]()
    architectures = list(dict.fromkeys(result["architecture"] for result in results))
    lines = [f"| precision | {' | '.join(architectures)} |", "|---" * (1 + len(architectures)) + "|"]
    for precision in dict.fromkeys(result["precision"] for result in results):
        cells = [
            _refused(result["refused"], refusals) if "refused" in result else "compiles"
            for result in results
            if result["precision"] == precision
        ]
        lines.append(f"| {precision} | {' | '.join(cells)} |")
    return _table(facts, "tensorrt-rtx", lines, refusals)


def pins_table(facts: Facts) -> str:
    """The oldest and the newest tested version of every direct dependency."""
    lines = ["| package | oldest that is allowed | newest that was tested |", "|---|---|---|"]
    for package, pin in facts["pins"].items():
        lines.append(f"| {package} | {pin['oldest']} | {pin['newest'] or 'none'} |")
    return "\n".join(lines)


def _table(facts: Facts, part: str, lines: Sequence[str], refusals: Sequence[str]) -> str:
    """What was measured when and with what, the lines of a table, and its refusals by number."""
    about = dict(facts["about"][part])
    date, commit, processor, python = (about.pop(name) for name in ("date", "commit", "processor", "python"))
    packages = ", ".join(f"{name} {version}" for name, version in about.items())
    before = f"Measured on {date} on {processor}, commit {commit}: Python {python}, {packages}."
    after = ["", *(f"{number}. `{text}`" for number, text in enumerate(refusals, start=1))] if refusals else []
    return "\n".join([before, "", *lines, *after])


def _worst(results: Sequence[Mapping[str, Any]], key: str, refusals: list[str]) -> str:
    """The refusal if one engine has one, otherwise the largest distance of all that have any."""
    refused = [result for result in results if "refused" in result]
    if refused:
        return _refused(refused[0]["refused"], refusals)
    largest = max(result[key] for result in results if key in result)
    return _result({key: largest}, key, _EQUAL_IN_FLOAT32, refusals)


def _result(result: Mapping[str, Any], key: str, equal: float, refusals: list[str]) -> str:
    if "refused" in result:
        return _refused(result["refused"], refusals)
    return "equal" if result[key] <= equal else f"differs by {result[key]:.0e}"


def _refused(text: str, refusals: list[str]) -> str:
    """The number of a refusal, which is added to `refusals` where it is new."""
    if text not in refusals:
        refusals.append(text)
    return f"refused ({refusals.index(text) + 1})"
