"""Run exported MAR models: no PyTorch, numpy only until a backend is asked for."""

from runtime.errors import MarError
from runtime.generator import Generator, Result

__version__ = "0.1.0"
__all__ = ["Generator", "MarError", "Result", "__version__"]
