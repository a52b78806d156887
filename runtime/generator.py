"""The Python surface: an artifact in, images out."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import Manifest
from runtime.backends import open_backend
from runtime.checks import check_int
from runtime.errors import BackendError, RequestError
from runtime.loops.causal_loop import run_causal_plan
from runtime.loops.host_loop import Engines, run_plan
from runtime.model.latents import from_uint8, to_uint8, unpatchify
from runtime.requests.inpainting import (
    EditMask,
    KnownImages,
    check_known,
    check_mask,
    known_tokens,
    order_known_first,
    paste_known_pixels,
)
from runtime.requests.validation import (
    MAX_BATCH,
    check_batch,
    check_indices,
    check_labels,
    check_noise,
    check_order,
    check_seed,
)
from runtime.sampling.plan import Plan, PlanLoop, Progress, build_plan
from runtime.sampling.rng import seeded_noise, seeded_order
from runtime.sampling.settings import Sampling


@dataclasses.dataclass(frozen=True)
class Result:
    """`latents` float32 [B, C, H, W]; `images` uint8 [B, H, W, 3] or [B, H, W, 1], None without a decoder.

    `plan` is the schedule that was executed.
    """

    latents: NDArray[np.float32]
    images: NDArray[np.uint8] | None
    plan: Plan


@dataclasses.dataclass(frozen=True)
class _Drawing:
    """A request as the loop takes it, and what its images are put together from."""

    plan: Plan
    labels: NDArray[np.int64]  # [B]
    order: NDArray[np.int64]  # [B, L]
    noise: NDArray[np.float32]  # [T + 1, L, B, D], in generation order
    given: NDArray[np.float32]  # [V, B, D], the tokens that are known
    hole: EditMask | None
    known: KnownImages | None


class Generator:
    """Draws images with the engines of one artifact. Not for use by two threads at once."""

    def __init__(
        self,
        manifest: Manifest,
        engines: Engines,
        description: str,
        close: Callable[[], None] = lambda: None,
        loop: PlanLoop | None = None,
    ) -> None:
        """`description` names what runs the engines; `close` frees them; `loop` executes plans, on the host if None.

        `on_host` says which of these it is.
        """
        self.manifest, self.engines, self.description, self._close = manifest, engines, description, close
        self.on_host = loop is None
        host_loop = run_causal_plan if manifest.model.attention == "causal" else run_plan
        self.loop = loop or functools.partial(host_loop, engines, manifest.model)

    @classmethod
    def load(
        cls,
        artifact: str | pathlib.Path,
        *,
        backend: str = "onnxruntime",
        device: str | None = None,
        threads: int | None = None,
        cuda_graphs: bool = True,
    ) -> Generator:
        """Check every file of `artifact` against its manifest and load its engines.

        `device` is the backend's usual one by default; `threads` are processor threads, all there are by
        default; `cuda_graphs` is whether a GPU replays whole iterations, which gives the same images
        sooner. Raises `ArtifactError`, `IntegrityError`, `BackendError` or `RequestError`.
        """
        opened = Artifact(artifact)
        opened.verify()
        runner, manifest = open_backend(backend, device, threads, cuda_graphs), opened.manifest
        with contextlib.ExitStack() as unless_loaded:
            unless_loaded.callback(runner.close)
            if manifest.precision not in runner.precisions:
                raise BackendError(
                    f"{artifact} is in {manifest.precision}, but {runner.description} has "
                    f"{', '.join(runner.precisions)}; export it in one of these, or use another backend"
                )
            engines = {name: runner.load(opened, name) for name in manifest.specs}
            loop = runner.loop(manifest.model)
            unless_loaded.pop_all()
        return cls(manifest, Engines(**engines), runner.description, runner.close, loop)

    def sampling(self, **settings: Any) -> Sampling:
        """The settings that `generate` would draw with: the artifact's own, changed by `settings`."""
        return self.manifest.resolve_sampling(settings)

    def plan(self, *, known_tokens: int = 0, **settings: Any) -> Plan:
        """The schedule that `generate` would execute for these settings, `known_tokens` being there already."""
        return build_plan(self.manifest.model.tokens, self.sampling(**settings), known_tokens)

    def generate(
        self,
        labels: Sequence[int],
        *,
        seed: int = 0,
        index: Sequence[int] | None = None,
        order: ArrayLike | None = None,
        noise: ArrayLike | None = None,
        known: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        dilate: bool = False,
        paste: bool = True,
        decode_batch: int = 1,
        progress: Progress | None = None,
        **settings: Any,
    ) -> Result:
        """Draw one image for each class in `labels`, or the part of it that `mask` marks.

        Image `index[i]` of `seed` is the same whatever it is drawn together with; `index` counts
        from 0 by default. `settings` are `preset`, one of `runtime.sampling.presets.PRESETS` or of the artifact's,
        and the fields of `runtime.sampling.settings.Sampling`; what is not named, or None, is the artifact's own. `order` [B, L]
        (generation order, first generated first) and `noise` [T + 1, B, L, D] (by token position)
        replace what the seed would give.

        To edit, give `known`, an image uint8 [H, W, c] or latents [C, h, w], for all or with B in
        front, and `mask`, bool [H, W] of pixels or [grid, grid] of tokens, true where to draw. A token
        is drawn where any of its pixels is, with `dilate` its neighbours too. Latents of other tokens
        are returned as they were; so are the pixels of a known image outside the mask, unless `paste`
        is False.

        `decode_batch` images are decoded together, and `progress` is called with the iterations done
        and their number. Raises `RequestError` before anything runs, and `BackendError` if an engine
        fails.
        """
        check_int("decode_batch", decode_batch, 1, MAX_BATCH)
        drawing = self._drawing(
            labels, settings, seed=seed, index=index, order=order, noise=noise, known=known, mask=mask, dilate=dilate
        )
        return self._drawn(drawing, paste, decode_batch, progress)

    def generate_batches(
        self,
        labels: Sequence[int],
        batch_size: int,
        *,
        seed: int = 0,
        index: Sequence[int] | None = None,
        order: ArrayLike | None = None,
        noise: ArrayLike | None = None,
        decode_batch: int = 1,
        progress: Progress | None = None,
        **settings: Any,
    ) -> Iterator[Result]:
        """Draw one image for each class in `labels`, `batch_size` at a time, as `generate` would draw each batch.

        While one batch is drawn, a thread makes the next one's noise: a GPU need not wait for it. The arguments
        are those of `generate`, for all images; what is wrong with them is raised before anything runs.
        """
        from concurrent.futures import ThreadPoolExecutor  # 7 ms that a single image need not wait for

        config = self.manifest.model
        classes = check_labels(labels, config)
        count, plan = len(classes), self.plan(**settings)
        check_batch(batch_size, plan.diffusion_steps, config)
        check_int("decode_batch", decode_batch, 1, MAX_BATCH)
        seed, indices = check_seed(seed), check_indices(index, count)
        orders = None if order is None else check_order(order, count, config)
        noises = None if noise is None else check_noise(noise, count, plan.diffusion_steps, config)

        def drawing(start: int) -> _Drawing:
            of = slice(start, start + batch_size)
            return self._drawing(
                classes[of].tolist(),
                settings,
                seed=seed,
                index=indices[of],
                order=None if orders is None else orders[of],
                noise=None if noises is None else noises[:, of],
            )

        def results() -> Iterator[Result]:
            with ThreadPoolExecutor(1) as ahead:
                coming = ahead.submit(drawing, 0)
                for start in range(0, count, batch_size):
                    ready = coming.result()
                    if (following := start + batch_size) < count:
                        coming = ahead.submit(drawing, following)
                    yield self._drawn(ready, False, decode_batch, progress)

        return results()

    def _drawing(
        self,
        labels: Sequence[int],
        settings: Mapping[str, Any],
        *,
        seed: int,
        index: Sequence[int] | None,
        order: ArrayLike | None,
        noise: ArrayLike | None,
        known: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        dilate: bool = False,
    ) -> _Drawing:
        """A request, checked, with every number that the loop is given."""
        config = self.manifest.model
        classes = check_labels(labels, config)
        batch = len(classes)
        if (known is None) != (mask is None):
            raise RequestError("to edit an image, give both known and mask")
        if mask is not None and config.order == "raster":
            raise RequestError("this model was trained to draw in raster order alone, so it cannot draw a part anew")
        hole = None if mask is None else check_mask(mask, dilate, config)
        before = None if known is None else check_known(known, batch, config)
        plan = self.plan(known_tokens=hole.known if hole else 0, **settings)
        steps = plan.diffusion_steps
        check_batch(batch, steps, config)
        seed, indices = check_seed(seed), check_indices(index, batch)
        if order is None:
            ordered = seeded_order(seed, indices, config, plan.token_order)
        else:
            ordered = check_order(order, batch, config)
        drawn = (
            seeded_noise(seed, indices, steps, config) if noise is None else check_noise(noise, batch, steps, config)
        )
        given = np.empty((batch, 0, config.token_channels), np.float32)
        if hole is not None and before is not None:
            ordered = order_known_first(ordered, hole)
            given = known_tokens(self._latents(before), ordered, hole.known, config.patch_size)
        drawn = np.take_along_axis(drawn, ordered[None, :, :, None], axis=2)  # by position -> in generation order
        return _Drawing(plan, classes, ordered, drawn.swapaxes(1, 2), given.swapaxes(0, 1), hole, before)

    def _drawn(self, drawing: _Drawing, paste: bool, decode_batch: int, progress: Progress | None) -> Result:
        """The images of a request."""
        config, plan, ordered = self.manifest.model, drawing.plan, drawing.order
        found = self.loop(plan, drawing.labels, ordered.T, drawing.noise, drawing.given, progress).swapaxes(
            0, 1
        )  # [B, L, D]
        _check_finite(found, "the engines")
        tokens = np.empty_like(found)
        np.put_along_axis(tokens, ordered[..., None], found, axis=1)  # in generation order -> by position
        latents = unpatchify(tokens, config.grid, config.patch_size)
        images = self._images(latents, decode_batch)
        hole, before = drawing.hole, drawing.known
        if images is not None and hole is not None and before is not None and before.images is not None and paste:
            images = paste_known_pixels(images, before.images, hole)
        return Result(latents, images, plan)

    def _latents(self, known: KnownImages) -> NDArray[np.float32]:
        """What is known as latents [B, C, h, w]."""
        if known.latents is not None:
            return known.latents
        assert known.images is not None
        pixels = from_uint8(known.images)  # [B, c, H, W]
        if self.manifest.tokenizer == "pixel":
            return pixels
        encoder = self.engines.encoder
        if encoder is None:
            raise RequestError("this artifact cannot read images; export it with --encoder, or give known as latents")
        return np.concatenate([encoder(image=pixels[i : i + 1])[0] for i in range(len(pixels))])

    def _images(self, latents: NDArray[np.float32], together: int) -> NDArray[np.uint8] | None:
        """Latents [B, C, h, w] as images uint8 [B, H, W, c], `together` at a time, or None without a decoder."""
        if self.manifest.tokenizer == "pixel":
            return to_uint8(latents)
        if self.engines.decoder is None:
            return None
        decoded = []
        for start in range(0, len(latents), together):
            (pixels,) = self.engines.decoder(latents=latents[start : start + together])
            _check_finite(pixels, "the decoder")
            decoded.append(to_uint8(pixels))
        return np.concatenate(decoded)

    def close(self) -> None:
        """Free the engines."""
        self._close()

    def __enter__(self) -> Generator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_finite(values: NDArray[np.float32], made_by: str) -> None:
    """Raise `BackendError` where numbers overflowed, which an image would no longer show."""
    if not np.isfinite(values).all():
        raise BackendError(
            f"{made_by} produced values that are not finite; check the export's parity report, and if it is in fp16, "
            "export with --precision bf16"
        )
