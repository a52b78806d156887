"""Edits of images for tests: requests with an `Edit`, random images and masks."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime.generator import Generator
from runtime.requests.inpainting import Edit
from runtime.result import Result

Bool = NDArray[np.bool_]

FAST: dict[str, Any] = {"iterations": 3, "cfg_scale": 2.0, "diffusion_steps": "ddim5"}
_EDIT = ("known", "mask", "dilate", "paste")


def edit_request(**request: Any) -> dict[str, Any]:
    """Arguments of `Generator.generate` in which `known`, `mask`, `dilate` and `paste` have become an `Edit`."""
    fields = {name: request.pop(name) for name in _EDIT if name in request}
    return {**request, "edit": Edit(**fields)} if fields else request


def generate_edit(generator: Generator, labels: list[int], **request: Any) -> Result:
    """Images with short chains, edited if the request has `known` and `mask`."""
    short = FAST | {"iterations": min(3, generator.manifest.model.tokens)}
    return generator.generate(labels, **edit_request(**(short | request)))


def images_of(result: Result) -> NDArray[np.uint8]:
    """The decoded images of a result that has some."""
    assert result.images is not None
    return result.images


def identical(one: Result, other: Result) -> bool:
    """Whether two results have the same bits."""
    pairs: list[tuple[NDArray[Any], NDArray[Any]]] = [(one.latents, other.latents)]
    if one.images is not None and other.images is not None:
        pairs.append((one.images, other.images))
    return all(a.tobytes() == b.tobytes() for a, b in pairs)


def random_latents(generator: Generator, count: int, seed: int = 0) -> NDArray[np.float32]:
    """Normal latents [count, C, h, w] of the generator's model."""
    shape = generator.manifest.model.latent_shape
    return np.random.default_rng(seed).standard_normal((count, *shape), np.float32)


def random_images(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Uniform images [count, 8, 8, 1]."""
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1), np.uint8)


def masks(side: int) -> st.SearchStrategy[Bool]:
    """Masks of side x side that are true somewhere."""
    cells = st.lists(st.booleans(), min_size=side**2, max_size=side**2).filter(any)
    return cells.map(lambda flat: np.array(flat).reshape(side, side))


def enlarged(tokens: Bool, step: int) -> Bool:
    """A mask with every cell repeated `step` times in both directions."""
    return tokens.repeat(step, axis=0).repeat(step, axis=1)
