"""Run exported MAR models without PyTorch: nothing is imported before it is used, an inference library last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.version import __version__

if TYPE_CHECKING:
    from runtime.errors import MarError
    from runtime.generator import Generator
    from runtime.policy import Policy
    from runtime.requests.inpainting import Edit
    from runtime.result import Result
    from runtime.sampling.settings import Sampling

__all__ = ["Edit", "Generator", "MarError", "Policy", "Result", "Sampling", "__version__"]

_MODULES = {
    "Edit": "runtime.requests.inpainting",
    "Generator": "runtime.generator",
    "MarError": "runtime.errors",
    "Policy": "runtime.policy",
    "Result": "runtime.result",
    "Sampling": "runtime.sampling.settings",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    import importlib

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value
