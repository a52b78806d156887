"""The Python interface of an artifact: `Generator` loads its engines and generates or edits images."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.artifact.manifest import Manifest
from runtime.checks import check_finite, check_int, truncate
from runtime.errors import RequestError
from runtime.image_codec import ImageCodec
from runtime.image_records.record import ImageRecord, settings_values
from runtime.loaded_artifact import load_artifact
from runtime.loops.finite_engines import finite_engines
from runtime.loops.first_pass import FirstPass
from runtime.loops.host_loop import Engines
from runtime.loops.lanes import in_lanes
from runtime.model.families import family_of, imported
from runtime.model.latents import enlarge
from runtime.requests.checked_images import CheckedImages, check_images
from runtime.requests.inpainting import (
    CheckedEdit,
    Edit,
    check_edit,
    order_known_first,
    paste_known_pixels,
    select_known_tokens,
)
from runtime.requests.prompt_tokenizer import PromptTokenizer
from runtime.requests.request_lock import LockedIterator, RequestLock
from runtime.requests.subjects import SUBJECT_ARGUMENTS, CheckSubjects, ImageRequest, Subjects
from runtime.requests.validation import MAX_BATCH, check_batch
from runtime.result import Result
from runtime.sampling.constraints import plan_for
from runtime.sampling.plan import Float, Plan, PlanLoop, Progress
from runtime.sampling.presets import PRESETS
from runtime.sampling.recap import sort_unions
from runtime.sampling.rng import seeded_noise, seeded_order
from runtime.sampling.settings import Sampling

if TYPE_CHECKING:  # a device does not need typing_extensions
    from typing_extensions import Unpack

    from runtime.sampling.settings import SamplingRequest

_EDIT_FIELDS = {field.name for field in dataclasses.fields(Edit)}


@dataclasses.dataclass(frozen=True)
class _Settings:
    """The complete sampling settings of a request, and the preset that they come from."""

    sampling: Sampling
    preset: str | None


@dataclasses.dataclass(frozen=True)
class _PreparedRequest:
    """A checked request: the arguments of the loop, and what follows it."""

    plan: Plan
    subjects: Subjects
    order: NDArray[np.int64]  # [B, L], positions in generation order
    noise: NDArray[np.float32]  # [T + 1, L, B, D], in generation order
    known_tokens: NDArray[np.float32]  # [V, B, D], the first tokens of the order, which are not generated
    edit: CheckedEdit | None
    records: tuple[ImageRecord, ...]


@dataclasses.dataclass(frozen=True)
class _Unfinished:
    """The request that runs, after an iteration."""

    request: _PreparedRequest
    done: int  # iterations
    tokens: Callable[[], Float]  # returns [L, B, D], in generation order


class Generator:
    """Generates images with the engines of one artifact.

    Threads may share a generator, on every backend: its requests run one after another.
    `close` waits for the request that runs. Of its own generator, a progress callback may call only `partial_images`.
    The attributes `engines` and `loop` have no such protection.

    An exception that `progress` raises cancels the request and reaches the caller. The generator is usable after it.

    Use it as a context manager, or call `close`, to free the engines.

    Attributes:
        manifest: The manifest of the artifact.
        engines: The loaded engines, each a function of numpy arrays.
        description: The backend, device and number of threads, for people.
        lanes: Further engines for the loop, a set for each lane; see `load`. Empty: batches are not split.
        on_host: Whether the loop of iterations runs on the host in numpy; otherwise a GPU runs all of it.
        loop: The function that executes a plan.
        tokenizer: The tokenizer of prompts, if the artifact has a text encoder.
        first_pass: z of the first pass of each class, float32 [classes + 1, L, C], if the artifact has it.
    """

    def __init__(
        self,
        manifest: Manifest,
        engines: Engines,
        description: str,
        close: Callable[[], None] = lambda: None,
        loop: PlanLoop | None = None,
        lanes: Sequence[Engines] = (),
        tokenizer: PromptTokenizer | None = None,
        first_pass: Float | None = None,
    ) -> None:
        """Make a generator from engines that are already loaded; `load` is the usual way to get one.

        Args:
            manifest: The manifest of the artifact.
            engines: The loaded engines.
            description: What runs the engines, for people.
            close: Called by `close`; frees the engines.
            loop: Executes plans. None: the loop on the host of the model's family.
            lanes: Engines of the loop on the host for each lane, in which parts of a batch are generated together.
            tokenizer: The tokenizer of prompts, for an artifact with a text encoder.
            first_pass: z of the first pass of each class, for an artifact that has it.
        """
        self.tokenizer, self.first_pass = tokenizer, first_pass
        self.manifest, self.engines, self.description, self._close = manifest, engines, description, close
        self._codec = ImageCodec(manifest, engines)
        self._request_lock = RequestLock()
        self._unfinished: _Unfinished | None = None  # during a progress callback
        self.on_host = loop is None
        family = family_of(manifest.model)
        self._check_subjects: CheckSubjects = imported(family.request)
        host_loop = imported(family.host_loop)

        def on_host(each: Engines) -> PlanLoop:
            checked = finite_engines(each)
            kept = FirstPass(checked.backbone, manifest.model, first_pass)
            return functools.partial(host_loop, dataclasses.replace(checked, first_pass=kept), manifest.model)

        self._on_host = on_host
        self.loop: PlanLoop = loop or on_host(engines)
        self.lanes = tuple(lanes)
        if self.lanes:
            self.loop = in_lanes([on_host(each) for each in lanes], self.loop)

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
        split_batches: bool = False,
    ) -> Generator:
        """Load the engines of an artifact, and compare every file with its manifest meanwhile.

        Args:
            artifact: The folder of the artifact.
            backend: One of `runtime.backends.BACKENDS`.
            device: The device of the backend, such as `cpu` or `cuda`. None: the backend's default.
            threads: The number of processor threads. None: all.
            cuda_graphs: Whether a GPU records each iteration once and replays it, which gives the same images faster.
            trusted_keys: Files with Ed25519 public keys in PEM. The artifact must be signed with one of them. None: it
                need not be signed.
            split_batches: Whether a small model on a processor generates the parts of a batch at the same time, each
                with a share of the threads. Its engines are then loaded once more for each part.

        Raises:
            ArtifactError: The folder is not an artifact of this format version.
            IntegrityError: A file is missing or was altered, or the artifact is not signed with a trusted key.
            BackendError: The backend is not installed or cannot run this artifact.
            RequestError: An argument has a wrong value.
        """
        loaded = load_artifact(artifact, backend, device, threads, cuda_graphs, trusted_keys, split_batches)
        return cls(**vars(loaded))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes in order; empty if the artifact has none."""
        return self.manifest.class_names

    @property
    def presets(self) -> dict[str, Sampling]:
        """The presets that a request can name, the built-in ones and the artifact's own, with their settings."""
        names = (*PRESETS, *self.manifest.presets)
        return {name: self.manifest.resolve_sampling({"preset": name}) for name in names}

    @property
    def image_size(self) -> int:
        """The width and height of the images, in pixels."""
        return self.manifest.model.image_shape[1]

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
        return plan_for(self.manifest.model, self.sampling(**settings), known_tokens)

    def records(
        self,
        labels: Sequence[int | str] | None = None,
        *,
        seed: int | Sequence[int] = 0,
        index: Sequence[int] | None = None,
        **settings: Unpack[ImageRequest],
    ) -> tuple[ImageRecord, ...]:
        """Return how the images of a request are made, B records, without generating them.

        The arguments are those of `generate`.

        Raises:
            RequestError: An argument is wrong.
        """
        config, request = self.manifest.model, self._resolve(settings)
        subjects = self._subjects(labels, settings)
        plan = plan_for(config, request.sampling)
        return self._records(check_images(subjects, plan.noise_steps, config, seed, index), request)

    def generate(
        self,
        labels: Sequence[int | str] | None = None,
        *,
        seed: int | Sequence[int] = 0,
        index: Sequence[int] | None = None,
        order: ArrayLike | None = None,
        noise: ArrayLike | None = None,
        edit: Edit | None = None,
        decode_batch: int = 1,
        progress: Progress | None = None,
        **settings: Unpack[ImageRequest],
    ) -> Result:
        """Generate one image for each class or prompt, or regenerate a part of an image.

        An image depends on its seed, index, class or prompt, and sampling settings only, not on the batch it is
        generated in. Its random numbers are the same bits everywhere; see `docs/benchmarks/determinism.md` for latents.

        Args:
            labels: Classes by number or name, B of them, for a model of classes.
            seed: The seed of the random numbers, 0 to 2^64 - 1; or one for each image, B of them.
            index: The number of each image in the sequence of its seed, B of them. None: the number of images before
                it that have the same seed, which is 0, 1, 2, ... for one seed.
            order: The generation order, int [B, L]: token positions, first generated first. It replaces the order
                that the seed gives.
            noise: Standard normal noise by token position, float [T + 1, B, L, D]. It replaces the noise that the
                seed gives.
            edit: The image to edit and the part of it to regenerate. None: complete images are generated.
            decode_batch: The number of images that are decoded together; 0: latents only, `Result.images` is None.
            progress: Called after each iteration with the number of iterations done and their total. An exception
                that it raises cancels the request and reaches the caller.
            **settings: Sampling settings: `preset` (a name) or `sampling` (a complete `Sampling`), and single fields
                of `Sampling`, which override it. What is missing or None is the artifact's own setting. For a model
                that draws from text also `prompt` and `negative_prompt`, or their embeddings, see
                `runtime.requests.subjects.PromptArguments`.

        Raises:
            RequestError: An argument is wrong. Nothing has run yet.
            BackendError: An engine failed, its numbers overflowed, or the generator was closed.
        """
        _check_delivery(decode_batch, progress)
        config, request = self.manifest.model, self._resolve(settings)
        subjects = self._subjects(labels, settings)
        checked = check_edit(edit, len(subjects), config)
        plan = plan_for(config, request.sampling, checked.mask.known if checked else 0)
        check_batch(len(subjects), plan.noise_steps, config)
        images = check_images(subjects, plan.noise_steps, config, seed, index, order, noise)
        prepared = self._prepare(images, plan, request, checked)
        with self._request_lock.hold():
            return self._execute(prepared, decode_batch, progress)

    def generate_batches(
        self,
        labels: Sequence[int | str] | None = None,
        batch_size: int = 1,
        *,
        seed: int | Sequence[int] = 0,
        index: Sequence[int] | None = None,
        order: ArrayLike | None = None,
        noise: ArrayLike | None = None,
        decode_batch: int = 1,
        progress: Progress | None = None,
        **settings: Unpack[ImageRequest],
    ) -> Iterator[Result]:
        """Generate one image for each class or prompt, `batch_size` at a time; yield the result of each batch.

        While one batch is generated, a thread makes the noise of the next, so that a GPU does not wait for it. All
        arguments are checked before the first batch; the other arguments are those of `generate`, for all images.

        Args:
            labels: Classes by number or name, B of them over all batches; None for a model that draws from text.
            batch_size: The number of images in a batch; the last batch may have fewer.
            seed: The seed of the random numbers; or one for each image, B of them.
            index: The number of each image in the sequence of its seed, B of them. None: as in `generate`.
            order: The generation order, int [B, L], in place of the one that the seed gives.
            noise: Noise by token position, float [T + 1, B, L, D], in place of the one that the seed gives.
            decode_batch: The number of images that are decoded together; 0: latents only, `Result.images` is None.
            progress: Called after each iteration with the iterations done and their total, both over all batches.
            **settings: Sampling settings, as in `generate`.

        Raises:
            RequestError: An argument is wrong. Nothing has run yet.
            BackendError: By the iterator: an engine failed, its numbers overflowed, or the generator was closed.
        """
        config, request = self.manifest.model, self._resolve(settings)
        subjects = self._subjects(labels, settings)
        plan = plan_for(config, request.sampling)
        check_batch(batch_size, plan.noise_steps, config)
        _check_delivery(decode_batch, progress)
        images = check_images(subjects, plan.noise_steps, config, seed, index, order, noise)
        starts = range(0, len(subjects), batch_size)

        def prepare(start: int) -> _PreparedRequest:
            return self._prepare(images.part(slice(start, start + batch_size)), plan, request)

        def execute(number: int, prepared: _PreparedRequest) -> Result:
            return self._execute(prepared, decode_batch, _overall(progress, number, len(starts)))

        return LockedIterator(self._request_lock, _prepared_ahead(prepare, execute, starts))

    def _subjects(self, labels: Sequence[int | str] | None, arguments: ImageRequest) -> Subjects:
        """Check what the images of a request show: its labels, or the prompts among its named arguments."""
        inputs = {"labels": labels, **{name: arguments.get(name) for name in SUBJECT_ARGUMENTS}}
        return self._check_subjects(inputs, self.manifest.model, self.class_names, self.tokenizer)

    def _resolve(self, settings: ImageRequest) -> _Settings:
        sampling: Any = {name: value for name, value in settings.items() if name not in SUBJECT_ARGUMENTS}
        return _Settings(self.sampling(**sampling), settings.get("preset"))

    def partial_images(self, places: Sequence[int]) -> NDArray[np.uint8]:
        """Return images as they are after the last iteration, for the progress callback of the request that runs.

        What is not known yet is decoded from latents of zero; for a model of pixels it is grey. While a model draws a
        grid of lower resolution first, it returns that, enlarged: a preview of the composition.

        Args:
            places: The images of the batch to return, by their places in it.

        Returns:
            The decoded images, uint8 [len(places), H, W, c].

        Raises:
            RequestError: This is no progress callback, a place is not in the batch, or the artifact has no decoder.
        """
        unfinished = self._unfinished
        if unfinished is None or not self._request_lock.is_mine:
            raise RequestError("partial_images shows the request that runs; call it in a progress callback")
        request, last = unfinished.request, unfinished.request.plan.iterations[unfinished.done - 1]
        for place in places:
            check_int("a place of partial_images", place, 0, len(request.subjects) - 1)
        tokens = unfinished.tokens().swapaxes(0, 1)[list(places)]  # [B, L, D], a copy
        tokens[:, sum(request.plan.lengths[: last.phase]) + last.known + last.count :] = 0
        images = self._codec.decode(self._codec.latents(tokens, request.order[list(places)], last.phase), 1)
        if images is None:
            raise RequestError("this artifact has no decoder, so it makes latents, not images")
        images = enlarge(images, self.manifest.model.image_shape[:2])
        return images if request.edit is None else paste_known_pixels(images, request.edit, places)

    def _prepare(
        self, images: CheckedImages, plan: Plan, request: _Settings, edit: CheckedEdit | None = None
    ) -> _PreparedRequest:
        """Make all numbers that the loop of a request takes."""
        config, order, noise = self.manifest.model, images.orders, images.noises
        if order is None:
            order = seeded_order(images.seeds, images.indices, config, plan.token_order)
        if noise is None:
            noise = seeded_noise(images.seeds, images.indices, plan.noise_steps, config)
        known_tokens = np.empty((len(order), 0, config.token_channels), np.float32)
        if edit is not None:
            order = order_known_first(order, edit.mask)
            with self._request_lock.hold():
                latents = self._codec.encode(edit.known)
            known_tokens = select_known_tokens(latents, order, edit.mask.known, config.patch_size)
        order = sort_unions(order, plan.groups)
        noise = np.take_along_axis(noise, order[None, :, :, None], axis=2)  # by position -> in generation order
        return _PreparedRequest(
            plan=plan,
            subjects=images.subjects,
            order=order,
            noise=noise.swapaxes(1, 2),
            known_tokens=known_tokens.swapaxes(0, 1),
            edit=edit,
            records=self._records(images, request, edit),
        )

    def _records(
        self, images: CheckedImages, request: _Settings, edit: CheckedEdit | None = None
    ) -> tuple[ImageRecord, ...]:
        """Return how each image of a request is made."""
        settings = settings_values(request.sampling)
        return tuple(
            ImageRecord(
                **images.subjects.record(place),
                seed=images.seeds[place],
                index=images.indices[place],
                settings=settings,
                preset=request.preset,
                artifact_sha256=self.manifest.content_sha256,
                given={**images.given(place), **(edit.given(place) if edit else {})},
                dilate=edit.dilate if edit else False,
                paste=edit.paste if edit else True,
            )
            for place in range(len(images.subjects))
        )

    def _execute(self, request: _PreparedRequest, decode_batch: int, progress: Progress | None) -> Result:
        """Run the loop of a request and decode its images, unless `decode_batch` is 0. The caller holds the lock."""
        after_iteration = None if progress is None else functools.partial(self._after_iteration, request, progress)
        condition = request.subjects.condition(self.engines, request.plan.guided)
        # A GPU leaves renormalized guidance, whose factors its engines do not compute, to the loop on the host.
        loop = self._on_host(self.engines) if request.plan.renormalized and not self.on_host else self.loop
        generated = loop(
            request.plan, condition, request.order.T, request.noise, request.known_tokens, after_iteration
        ).swapaxes(0, 1)  # [B, L, D]
        check_finite(generated, "the engines")
        latents = self._codec.latents(generated, request.order)
        images = self._codec.decode(latents, decode_batch) if decode_batch else None
        if images is not None and request.edit is not None:
            images = paste_known_pixels(images, request.edit)
        return Result(latents, images, request.plan, request.records)

    def _after_iteration(
        self, request: _PreparedRequest, progress: Progress, done: int, total: int, tokens: Callable[[], Float]
    ) -> None:
        self._unfinished = _Unfinished(request, done, tokens)
        try:
            progress(done, total)
        finally:
            self._unfinished = None

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
    prepare: Callable[[int], _PreparedRequest], execute: Callable[[int, _PreparedRequest], Result], starts: range
) -> Iterator[Result]:
    """Yield the results of the batches that begin at `starts`; a thread prepares one while another is executed."""
    from concurrent.futures import ThreadPoolExecutor  # the import takes 7 ms, which a single image need not wait for

    with ThreadPoolExecutor(1) as thread:
        prepared = thread.submit(prepare, starts[0])
        for number, next_start in enumerate(starts[1:]):
            request = prepared.result()
            prepared = thread.submit(prepare, next_start)
            yield execute(number, request)
        yield execute(len(starts) - 1, prepared.result())


def _overall(progress: Progress | None, number: int, batches: int) -> Progress | None:
    """Return the progress function of the batch `number`, which counts the iterations of all batches."""
    if progress is None:
        return None
    return lambda done, total: progress(number * total + done, batches * total)


def _check_delivery(decode_batch: object, progress: object) -> None:
    """Check the arguments that decide how images are decoded and how progress is reported."""
    check_int("decode_batch", decode_batch, 0, MAX_BATCH)
    if progress is not None and not callable(progress):
        raise RequestError(f"progress must be a function of two numbers, found {truncate(progress)}")
