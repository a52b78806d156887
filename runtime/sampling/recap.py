"""ReCAP (arXiv 2505.19089): groups of iterations of which only the first is a full pass of the backbone.

The full pass leaves the keys and values of every block. The local passes of the other iterations compute only the rows
of the group's tokens, and attend to the keys and values of all other rows, which stay as the full pass left them.

The tokens that the iterations of a group predict, its *union*, are the next ones of the generation order. Within the
union they are predicted by position, lowest first, as in the published sampler.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.checks import check_bool, check_int, check_number
from runtime.errors import RequestError
from runtime.sampling.noise_schedule import step_count
from runtime.sampling.samplers import least_steps
from runtime.sampling.settings import RECAP_SETTINGS, Sampling


@dataclasses.dataclass(frozen=True)
class Group:
    """Consecutive iterations of which the first is a full pass and the others are local.

    Attributes:
        start: The number of tokens that are known before the full pass.
        stop: The number of tokens that are known after the last local iteration. The tokens between are the union.
        guided: Whether any iteration has guidance: all passes then compute both halves, for the keys and values.
        cache_buffer: Whether the local passes reuse the keys and values of the class buffer, or compute it anew.
    """

    start: int
    stop: int
    guided: bool
    cache_buffer: bool

    def sizes(self, known: int, count: int, length: int, buffer: int) -> dict[str, int]:
        """Return the sizes of the axes of `runtime.model.recap_engines` but for batch and halves.

        Args:
            known: The number of tokens that are known before the iteration.
            count: The number of tokens that it predicts.
            length: L, the number of tokens.
            buffer: The rows of the class buffer.
        """
        reused = buffer if self.cache_buffer else 0
        return {
            "V": known,
            "K": count,
            "R": length - self.stop,
            "J": known - self.start,
            "H": self.stop - known - count,
            "A": buffer - reused,
            "E": self.start + reused,
            "F": length - self.stop + self.start + reused,
        }


def check_recap(sampling: Sampling, iterations: int, length: int) -> None:
    """Check the settings of ReCAP.

    Args:
        sampling: The sampling settings.
        iterations: The number of iterations of a complete image.
        length: L, the number of its tokens.

    Raises:
        RequestError: A setting has a wrong value, or is given without `recap_local_iterations`.
    """
    given = [name for name in RECAP_SETTINGS if getattr(sampling, name) is not None]
    if given and sampling.recap_local_iterations is None:
        raise RequestError(f"{given[0]} belongs to ReCAP; give recap_local_iterations too, or leave it out")
    if sampling.recap_local_iterations is not None:
        check_int("recap_local_iterations", sampling.recap_local_iterations, 0, length)
    if sampling.recap_plain_iterations is not None:
        check_int("recap_plain_iterations", sampling.recap_plain_iterations, 0, iterations)
    if sampling.recap_cache_buffer is not None:
        check_bool("recap_cache_buffer", sampling.recap_cache_buffer)
    if (share := sampling.recap_diffusion_share) is not None:
        check_number("recap_diffusion_share", share, 0, 1)
        if not share:
            raise RequestError(
                "recap_diffusion_share must be above 0; leave it out for as many steps as full iterations"
            )


def iteration_groups(sampling: Sampling, iterations: int) -> list[range]:
    """Return the numbers of the iterations of each group that has a local one; nothing without ReCAP."""
    if not sampling.recap_local_iterations:
        return []
    size = 1 + sampling.recap_local_iterations
    starts = range(sampling.recap_plain_iterations or 0, iterations, size)
    groups = [range(start, min(start + size, iterations)) for start in starts]
    return [group for group in groups if len(group) > 1]


def local_steps(sampling: Sampling, steps: int | str) -> int | str:
    """Return the diffusion steps of a local iteration, where a full one in its place has `steps`."""
    share, least = sampling.recap_diffusion_share, least_steps(sampling.sampler)
    if share is None:
        return steps
    count = max(least, int(share * step_count(steps, least)))
    return f"ddim{count}" if isinstance(steps, str) and steps.startswith("ddim") else count


def sort_unions(order: NDArray[np.int64], groups: Sequence[Group]) -> NDArray[np.int64]:
    """Return generation orders [B, L] with the positions of each group's union ascending."""
    order = order.copy()
    for group in groups:
        order[:, group.start : group.stop].sort(axis=1)
    return order
