"""The Python interface of an artifact: `Generator` loads its engines and generates or edits images."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import Manifest
from runtime.artifact.signatures import verify_signature
from runtime.backends import open_backend
from runtime.checks import check_bool, check_int, truncate
from runtime.errors import BackendError, RequestError
from runtime.loops.causal_loop import run_causal_plan
from runtime.loops.host_loop import Engines, run_plan
from runtime.model.latents import from_uint8, to_uint8, unpatchify
from runtime.requests.inpainting import (
    Edit,
    EditMask,
    KnownImages,
    check_known,
    check_mask,
    order_known_first,
    paste_known_pixels,
    select_known_tokens,
)
from runtime.requests.request_lock import LockedIterator, RequestLock
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

if TYPE_CHECKING:  # a device does not need typing_extensions
    from typing_extensions import Unpack

    from runtime.sampling.settings import SamplingRequest

_EDIT_FIELDS = {field.name for field in dataclasses.fields(Edit)}


@dataclasses.dataclass(frozen=True)
class Result:
    """The images of one batch.

    Attributes:
        latents: The generated latents, float32 [B, C, h, w]. For a model of pixels these are the pixels, -1 to 1.
        images: The decoded images, uint8 [B, H, W, 3] or [B, H, W, 1]. None if the artifact has no decoder.
        plan: The plan that was executed.
    """

    latents: NDArray[np.float32]
    images: NDArray[np.uint8] | None
    plan: Plan


@dataclasses.dataclass(frozen=True)
class _Randomness:
    """The arguments of a request that decide its random numbers, as the caller gives them."""

    seed: int
    index: Sequence[int] | None
    order: ArrayLike | None
    noise: ArrayLike | None


@dataclasses.dataclass(frozen=True)
class _CheckedRandomness:
    """The random arguments of a request for several batches, checked."""

    seed: int
    indices: Sequence[int]
    orders: NDArray[np.int64] | None
    noises: NDArray[np.float32] | None

    def of_images(self, part: slice) -> _Randomness:
        """Return the arguments of some of the images."""
        order = None if self.orders is None else self.orders[part]
        noise = None if self.noises is None else self.noises[:, part]
        return _Randomness(self.seed, self.indices[part], order, noise)


@dataclasses.dataclass(frozen=True)
class _PreparedRequest:
    """A checked request: the arguments of the loop, and what an edit needs after it."""

    plan: Plan
    labels: NDArray[np.int64]  # [B]
    order: NDArray[np.int64]  # [B, L], positions in generation order
    noise: NDArray[np.float32]  # [T + 1, L, B, D], in generation order
    known_tokens: NDArray[np.float32]  # [V, B, D], the first tokens of the order, which are not generated
    edit_mask: EditMask | None
    pasted: NDArray[np.uint8] | None  # known images [B, H, W, c] whose pixels outside the mask are copied back


class Generator:
    """Generates images with the engines of one artifact.

    Threads may share a generator, on every backend: its requests run one after another.
    `close` waits for the request that runs. A progress callback must not use its own generator. The attributes
    `engines` and `loop` have no such protection.

    Use it as a context manager, or call `close`, to free the engines.

    Attributes:
        manifest: The manifest of the artifact.
        engines: The loaded engines, each a function of numpy arrays.
        description: The backend, device and number of threads, for people.
        on_host: Whether the loop of iterations runs on the host in numpy; otherwise a GPU runs all of it.
        loop: The function that executes a plan.
    """

    def __init__(
        self,
        manifest: Manifest,
        engines: Engines,
        description: str,
        close: Callable[[], None] = lambda: None,
        loop: PlanLoop | None = None,
    ) -> None:
        """Make a generator from engines that are already loaded; `load` is the usual way to get one.

        Args:
            manifest: The manifest of the artifact.
            engines: The loaded engines.
            description: What runs the engines, for people.
            close: Called by `close`; frees the engines.
            loop: Executes plans. None: the loop on the host that suits the model's attention.
        """
        self.manifest, self.engines, self.description, self._close = manifest, engines, description, close
        self._request_lock = RequestLock()
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
        trusted_keys: Sequence[str | pathlib.Path] | None = None,
    ) -> Generator:
        """Compare every file of an artifact with its manifest, then load its engines.

        Args:
            artifact: The folder of the artifact.
            backend: One of `runtime.backends.BACKENDS`.
            device: The device of the backend, such as `cpu` or `cuda`. None: the backend's default.
            threads: The number of processor threads. None: all.
            cuda_graphs: Whether a GPU records each iteration once and replays it, which gives the same images faster.
            trusted_keys: Files with Ed25519 public keys in PEM. The artifact must be signed with one of them. None: it
                need not be signed.

        Raises:
            ArtifactError: The folder is not an artifact of this format version.
            IntegrityError: A file is missing or was altered, or the artifact is not signed with a trusted key.
            BackendError: The backend is not installed or cannot run this artifact.
            RequestError: An argument has a wrong value.
        """
        opened = Artifact(artifact)
        if trusted_keys is not None:
            verify_signature(opened, trusted_keys)
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

    def sampling(self, **settings: Unpack[SamplingRequest]) -> Sampling:
        """Return the sampling settings that `generate` uses for these arguments, which are those of `generate`.

        Raises:
            RequestError: A setting is unknown, or the model does not allow it.
        """
        misplaced = sorted(_EDIT_FIELDS & settings.keys())
        if misplaced:
            raise RequestError(
                f"{', '.join(misplaced)} belong to an edit; write generate(labels, edit=Edit(known, mask)), with "
                "Edit from runtime"
            )
        return self.manifest.resolve_sampling(settings)

    def plan(self, *, known_tokens: int = 0, **settings: Unpack[SamplingRequest]) -> Plan:
        """Return the plan that `generate` executes for these settings.

        Args:
            known_tokens: The number of tokens that an edit keeps.
            **settings: Sampling settings, as in `generate`.

        Raises:
            RequestError: A setting is unknown or has a wrong value.
        """
        return build_plan(self.manifest.model.tokens, self.sampling(**settings), known_tokens)

    def generate(
        self,
        labels: Sequence[int],
        *,
        seed: int = 0,
        index: Sequence[int] | None = None,
        order: ArrayLike | None = None,
        noise: ArrayLike | None = None,
        edit: Edit | None = None,
        decode_batch: int = 1,
        progress: Progress | None = None,
        **settings: Unpack[SamplingRequest],
    ) -> Result:
        """Generate one image for each class in `labels`, or regenerate a part of an image.

        An image depends on its seed, index, class and sampling settings only, not on the batch it is generated in.

        Args:
            labels: Class numbers, B of them.
            seed: The seed of the random numbers, 0 to 2^64 - 1.
            index: The number of each image in the sequence of its seed, B of them. None: 0, 1, 2, ...
            order: The generation order, int [B, L]: token positions, first generated first. It replaces the order
                that the seed gives.
            noise: Standard normal noise by token position, float [T + 1, B, L, D]. It replaces the noise that the
                seed gives.
            edit: The image to edit and the part of it to regenerate. None: complete images are generated.
            decode_batch: The number of images that are decoded together.
            progress: Called after each iteration with the number of iterations done and their total.
            **settings: Sampling settings: `preset` (a name) or `sampling` (a complete `Sampling`), and single fields
                of `Sampling`, which override it. What is missing or None is the artifact's own setting.

        Raises:
            RequestError: An argument is wrong. Nothing has run yet.
            BackendError: An engine failed, its numbers overflowed, or the generator was closed.
        """
        _check_delivery(decode_batch, progress)
        request = self._prepare(labels, self.sampling(**settings), _Randomness(seed, index, order, noise), edit)
        with self._request_lock.hold():
            return self._execute(request, decode_batch, progress)

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
        **settings: Unpack[SamplingRequest],
    ) -> Iterator[Result]:
        """Generate one image for each class in `labels`, `batch_size` at a time; yield the result of each batch.

        While one batch is generated, a thread makes the noise of the next, so that a GPU does not wait for it. All
        arguments are checked before the first batch; the other arguments are those of `generate`, for all images.

        Args:
            labels: Class numbers, B of them over all batches.
            batch_size: The number of images in a batch; the last batch may have fewer.
            seed: The seed of the random numbers.
            index: The number of each image in the sequence of its seed, B of them. None: 0, 1, 2, ...
            order: The generation order, int [B, L], in place of the one that the seed gives.
            noise: Noise by token position, float [T + 1, B, L, D], in place of the one that the seed gives.
            decode_batch: The number of images that are decoded together.
            progress: Called after each iteration of each batch.
            **settings: Sampling settings, as in `generate`.

        Raises:
            RequestError: An argument is wrong. Nothing has run yet.
            BackendError: By the iterator: an engine failed, its numbers overflowed, or the generator was closed.
        """
        config = self.manifest.model
        classes, sampling = check_labels(labels, config), self.sampling(**settings)
        count, steps = len(classes), build_plan(config.tokens, sampling).diffusion_steps
        check_batch(batch_size, steps, config)
        _check_delivery(decode_batch, progress)
        seed, indices = check_seed(seed), check_indices(index, count)
        orders = None if order is None else check_order(order, count, config)
        noises = None if noise is None else check_noise(noise, count, steps, config)
        randomness = _CheckedRandomness(seed, indices, orders, noises)

        def prepare(start: int) -> _PreparedRequest:
            part = slice(start, start + batch_size)
            return self._prepare(classes[part].tolist(), sampling, randomness.of_images(part), None)

        execute = functools.partial(self._execute, decode_batch=decode_batch, progress=progress)
        return LockedIterator(self._request_lock, _prepared_ahead(prepare, execute, range(0, count, batch_size)))

    def _prepare(
        self, labels: Sequence[int], sampling: Sampling, randomness: _Randomness, edit: Edit | None
    ) -> _PreparedRequest:
        """Check a request and make all numbers that its loop takes."""
        config = self.manifest.model
        classes = check_labels(labels, config)
        batch = len(classes)
        mask, known = self._check_edit(edit, batch)
        plan = build_plan(config.tokens, sampling, mask.known if mask else 0)
        steps = plan.diffusion_steps
        check_batch(batch, steps, config)
        seed, indices = check_seed(randomness.seed), check_indices(randomness.index, batch)
        if randomness.order is None:
            order = seeded_order(seed, indices, config, plan.token_order)
        else:
            order = check_order(randomness.order, batch, config)
        if randomness.noise is None:
            noise = seeded_noise(seed, indices, steps, config)
        else:
            noise = check_noise(randomness.noise, batch, steps, config)
        known_tokens, pasted = np.empty((batch, 0, config.token_channels), np.float32), None
        if edit is not None and mask is not None and known is not None:
            order = order_known_first(order, mask)
            known_tokens = select_known_tokens(self._encode(known), order, mask.known, config.patch_size)
            pasted = known.images if edit.paste else None
        noise = np.take_along_axis(noise, order[None, :, :, None], axis=2)  # by position -> in generation order
        return _PreparedRequest(plan, classes, order, noise.swapaxes(1, 2), known_tokens.swapaxes(0, 1), mask, pasted)

    def _check_edit(self, edit: object, batch: int) -> tuple[EditMask | None, KnownImages | None]:
        config = self.manifest.model
        if edit is None:
            return None, None
        if not isinstance(edit, Edit):
            raise RequestError(f"edit must be a runtime.Edit with known and mask, found {truncate(edit)}")
        if config.order == "raster":
            raise RequestError(
                "this model was trained to generate tokens in raster order only, so it cannot regenerate a part of an "
                "image; use a model trained with order random"
            )
        for name in ("dilate", "paste"):
            check_bool(name, getattr(edit, name))
        return check_mask(edit.mask, edit.dilate, config), check_known(edit.known, batch, config)

    def _execute(self, request: _PreparedRequest, decode_batch: int, progress: Progress | None) -> Result:
        """Run the loop of a request and decode its images. The caller holds the lock."""
        config, order = self.manifest.model, request.order
        generated = self.loop(
            request.plan, request.labels, order.T, request.noise, request.known_tokens, progress
        ).swapaxes(0, 1)  # [B, L, D]
        _check_finite(generated, "the engines")
        tokens = np.empty_like(generated)
        np.put_along_axis(tokens, order[..., None], generated, axis=1)  # in generation order -> by position
        latents = unpatchify(tokens, config.grid, config.patch_size)
        images = self._decode(latents, decode_batch)
        if images is not None and request.pasted is not None and request.edit_mask is not None:
            images = paste_known_pixels(images, request.pasted, request.edit_mask)
        return Result(latents, images, request.plan)

    def _encode(self, known: KnownImages) -> NDArray[np.float32]:
        """Return the latents [B, C, h, w] of known images."""
        if known.latents is not None:
            return known.latents
        assert known.images is not None
        pixels = from_uint8(known.images)  # [B, c, H, W]
        if self.manifest.tokenizer == "pixel":
            return pixels
        encoder = self.engines.encoder
        if encoder is None:
            raise RequestError(
                "this artifact has no encoder, so it cannot read images; export it with --encoder, or give latents"
            )
        with self._request_lock.hold():
            return np.concatenate([encoder(image=pixels[i : i + 1])[0] for i in range(len(pixels))])

    def _decode(self, latents: NDArray[np.float32], batch_size: int) -> NDArray[np.uint8] | None:
        """Return the images uint8 [B, H, W, c] of latents [B, C, h, w], or None without a decoder."""
        if self.manifest.tokenizer == "pixel":
            return to_uint8(latents)
        if self.engines.decoder is None:
            return None
        decoded = []
        for start in range(0, len(latents), batch_size):
            (pixels,) = self.engines.decoder(latents=latents[start : start + batch_size])
            _check_finite(pixels, "the decoder")
            decoded.append(to_uint8(pixels))
        return np.concatenate(decoded)

    def close(self) -> None:
        """Wait for the request that runs, then free the engines. The generator cannot be used afterwards."""
        with self._request_lock.hold(closing=True):
            self._close()

    def __enter__(self) -> Generator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _prepared_ahead(
    prepare: Callable[[int], _PreparedRequest], execute: Callable[[_PreparedRequest], Result], starts: range
) -> Iterator[Result]:
    """Yield the results of the batches that begin at `starts`; a thread prepares one while another is executed."""
    from concurrent.futures import ThreadPoolExecutor  # the import takes 7 ms, which a single image need not wait for

    with ThreadPoolExecutor(1) as thread:
        prepared = thread.submit(prepare, starts[0])
        for next_start in starts[1:]:
            request = prepared.result()
            prepared = thread.submit(prepare, next_start)
            yield execute(request)
        yield execute(prepared.result())


def _check_delivery(decode_batch: object, progress: object) -> None:
    """Check the arguments that decide how images are decoded and how progress is reported."""
    check_int("decode_batch", decode_batch, 1, MAX_BATCH)
    if progress is not None and not callable(progress):
        raise RequestError(f"progress must be a function of two numbers, found {truncate(progress)}")


def _check_finite(values: NDArray[np.float32], source: str) -> None:
    """Raise `BackendError` if numbers overflowed, because an image of 8-bit values does not show it."""
    if not np.isfinite(values).all():
        raise BackendError(
            f"{source} produced values that are not finite; check the export's parity report, and if it is in fp16, "
            "export with --precision bf16"
        )
