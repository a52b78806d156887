"""Pictures to latents. For the pixel tokenizer they are the same: patches of the picture are the tokens."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class PixelTokenizer:
    """uint8 pictures [B, H, W, c] to latents float32 [B, c, H, W] in -1..1; `runtime.images.to_uint8` goes back."""

    name = "pixel"

    def encode(self, images: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
