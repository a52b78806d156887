"""Pictures to latents and back. The pixel tokenizer is the identity: patches of the picture are tokens."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class PixelTokenizer:
    """uint8 pictures [B, H, W, c] <-> latents [B, c, H, W] in -1..1. Its decoder is no engine: there is none."""

    name = "pixel"

    def encode(self, images: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
