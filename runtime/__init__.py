"""Run exported MAR models without PyTorch: only numpy is imported until a backend is opened."""

from runtime.errors import MarError
from runtime.generator import Generator, Result
from runtime.requests.inpainting import Edit
from runtime.sampling.settings import Sampling

__version__ = "0.1.0"
__all__ = ["Edit", "Generator", "MarError", "Result", "Sampling", "__version__"]
