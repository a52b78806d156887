"""Evaluation of a float32 module in float64, without a second copy of its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map


class InFloat64(TorchFunctionMode):
    """Within the block, every function of PyTorch computes in float64 what it would compute in float32.

    Weights stay as they are: each function converts those that it reads, and frees them again. So the memory of one
    layer is added, not that of the module.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function with float64 in place of float32, also where it is named as a dtype."""
        wide_args, wide_kwargs = tree_map(_widened, (tuple(args), dict(kwargs or {})))
        return tree_map(_widened, func(*wide_args, **wide_kwargs))


def _widened(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
        return value.double()
    return torch.float64 if value is torch.float32 else value
