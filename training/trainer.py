"""The training loop (arXiv 2406.11838, appendix B), resumable to the same losses.

All randomness of step s comes from (seed, s), and the order of the data from (seed, epoch), so a run
that is resumed draws what it would have drawn uninterrupted and no generator state is saved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Iterator
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from runtime.config import ModelConfig
from runtime.errors import CheckpointError, ConfigError, DataError, MarError
from runtime.files import replacing
from training import checkpoint
from training.curve import save_loss_curve
from training.data import Dataset, open_dataset
from training.model import MAR
from training.samples import save_sample_grid
from training.tensor_files import read_safetensors
from training.tokenizer import PixelTokenizer

LOG_FILE = "log.jsonl"
_MASK_RATIO_STD = 0.25  # of the normal centred at 1 that mask ratios are drawn from


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to train: optimisation as published, sizes to fit the machine."""

    steps: int
    batch_size: int = 64
    learning_rate: float = 1e-4
    warmup_steps: int = 500
    weight_decay: float = 0.02
    gradient_clip: float = 3.0
    ema_rate: float = 0.9999
    horizontal_flip: bool = True
    precision: str = "fp32"  # or "bf16": autocast, with the loss and attention in fp32
    seed: int = 0
    checkpoint_every: int = 500
    sample_every: int = 2000

    def __post_init__(self) -> None:
        for name, smallest in (("steps", 1), ("batch_size", 1), ("checkpoint_every", 1), ("sample_every", 1)):
            self._check_whole(name, smallest)
        for name in ("warmup_steps", "seed"):
            self._check_whole(name, 0)
        for name in ("learning_rate", "gradient_clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be a finite number above 0, found {getattr(self, name)}")
        if not 0 <= self.ema_rate < 1:
            raise ConfigError(f"ema_rate must lie in 0..1, found {self.ema_rate}")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"weight_decay must be a finite number of at least 0, found {self.weight_decay}")
        if self.precision not in ("fp32", "bf16"):
            raise ConfigError(f"precision must be fp32 or bf16, found {self.precision!r}")

    def _check_whole(self, name: str, smallest: int) -> None:
        value = getattr(self, name)
        if type(value) is not int or not smallest <= value < 2**63:
            raise ConfigError(f"{name} must be a whole number of at least {smallest}, found {value!r}")


class Trainer:
    """One run: `Trainer.start` or `Trainer.resume`, then `train`."""

    def __init__(
        self, run: pathlib.Path, data: pathlib.Path, dataset: Dataset, model_config: ModelConfig, config: TrainConfig
    ) -> None:
        _check_fit(data, dataset, model_config, config)
        self.run, self.data, self.dataset, self.config = run, data, dataset, config
        torch.manual_seed(config.seed)
        model = self.model = MAR(**model_config.to_dict())
        self.tokenizer = PixelTokenizer()
        self.average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(model, config.weight_decay), lr=config.learning_rate, betas=(0.9, 0.95), fused=True
        )
        self.step = 0

    @classmethod
    def start(cls, run: pathlib.Path, data: pathlib.Path, model_config: ModelConfig, config: TrainConfig) -> Trainer:
        if (run / checkpoint.CONFIG_FILE).exists():
            raise MarError(f"{run} already holds a run; continue it with --resume {run}, or choose another --out")
        dataset = open_dataset(data, model_config.img_size)
        model_config = dataclasses.replace(model_config, vae_embed_dim=dataset.channels, class_num=len(dataset.classes))
        trainer = cls(run, data.resolve(), dataset, model_config, config)
        trainer._write_config()
        return trainer

    @classmethod
    def resume(cls, run: pathlib.Path, **changes: Any) -> Trainer:
        """The run at its last checkpoint; `changes` to its `TrainConfig`, such as more `steps`, are kept in it."""
        saved = checkpoint.read_run_config(run)
        try:
            recorded, data = TrainConfig(**saved["training"]), pathlib.Path(saved["data"])
            model_config = ModelConfig.from_dict(saved["model"], "its model")
        except (KeyError, TypeError, ConfigError) as error:
            raise CheckpointError(f"{run / checkpoint.CONFIG_FILE}: not the config of a run ({error})") from None
        config = dataclasses.replace(recorded, **changes)
        dataset = open_dataset(data, model_config.img_size)
        trainer = cls(run, data, dataset, model_config, config)
        if (run / checkpoint.STATE_FILE).exists():
            trainer._load_state()
        if changes:
            trainer._write_config()
        return trainer

    def train(self) -> None:
        """Train to the last step of the config, with checkpoints, samples and a log on the way."""
        try:
            self._train()
        except OSError as error:
            raise MarError(
                f"cannot write to {self.run}: {error.strerror or error}; free some space and resume"
            ) from error

    def _train(self) -> None:
        config = self.config
        log = _open_log(self.run / LOG_FILE, self.step)
        images = config.steps * config.batch_size
        bar = tqdm(
            total=images,
            initial=self.step * config.batch_size,
            unit="img",
            unit_scale=True,
            smoothing=0.02,
            mininterval=1,
        )
        with log, bar, SummaryWriter(str(self.run / "tensorboard"), purge_step=self.step) as board:
            smoothed: float | None = None
            while self.step < config.steps:
                started = time.perf_counter()
                loss, gradient_norm = self._train_step()
                if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
                    raise self._diverged(f"the loss became {loss}, its gradient norm {gradient_norm}")
                self.step += 1
                smoothed = loss if smoothed is None else 0.98 * smoothed + 0.02 * loss
                rate = config.batch_size / (time.perf_counter() - started)
                entry = {"step": self.step, "loss": loss, "gradient_norm": gradient_norm, "images_per_second": rate}
                log.write(json.dumps(entry) + "\n")
                board.add_scalar("loss", loss, self.step)
                board.add_scalar("gradient_norm", gradient_norm, self.step)
                bar.update(config.batch_size)
                bar.set_postfix(loss=f"{smoothed:.4f}", step=self.step)
                last = self.step == config.steps
                if last or self.step % config.checkpoint_every == 0:
                    log.flush()
                    self._save()
                if last or self.step % config.sample_every == 0:
                    save_sample_grid(
                        self.run / "samples" / f"step-{self.step:06d}.png", self._averaged_model(), self.dataset.classes
                    )
        save_loss_curve(self.run / LOG_FILE, self.run / "loss.png")

    def _diverged(self, what: str) -> MarError:
        return MarError(
            f"{what} at step {self.step}; go on from the last checkpoint with mar train --resume {self.run} and a "
            "lower --learning-rate, or --precision fp32"
        )

    def _train_step(self) -> tuple[float, float]:
        config, model = self.config, self.model
        generator = torch.Generator().manual_seed(_mix(config.seed, self.step))
        torch.manual_seed(_mix(config.seed, self.step) + 1)  # dropout
        images, labels = self._batch(generator)
        self.model.train()
        rate = config.learning_rate * min(1.0, (self.step + 1) / max(1, config.warmup_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with _autocast(config.precision):
            loss = model.loss(images, labels, _draw_mask_ratio(model.config.mask_ratio_min, generator), generator)
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        self.optimizer.step()
        with torch.no_grad():
            share = 1 - _ema_rate(config.ema_rate, self.step)
            torch._foreach_lerp_(list(self.average.values()), list(model.parameters()), share)
        return loss.item(), norm.item()

    def _batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The batch of this step: latents [B, c, H, W] and labels [B]."""
        indices = _batch_indices(len(self.dataset.labels), self.config.batch_size, self.step, self.config.seed)
        latents = self.tokenizer.encode(self.dataset.images(indices))
        if self.config.horizontal_flip:
            flipped = torch.rand(len(indices), generator=generator) < 0.5
            latents[flipped] = latents[flipped].flip(-1)
        return latents, torch.from_numpy(self.dataset.labels[indices])

    def _averaged_model(self) -> MAR:
        averaged = MAR(**self.model.config.to_dict())
        averaged.load_state_dict(self.average)
        return averaged.eval()

    def _write_config(self) -> None:
        value: dict[str, Any] = {
            "model": self.model.config.to_dict(),
            "tokenizer": self.tokenizer.name,
            "class_names": list(self.dataset.classes),
            "data": str(self.data),
            "training": dataclasses.asdict(self.config),
        }
        checkpoint.write_run_config(self.run, value)

    def _save(self) -> None:
        """Write the state, then the averaged weights, each in one atomic step; resuming reads the first only."""
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise self._diverged("weights became infinite or not a number")
        state = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        state |= {f"average.{name}": tensor for name, tensor in self.average.items()}
        for name, parameter in self.model.named_parameters():
            moments = self.optimizer.state[parameter]
            state |= {f"{key}.{name}": moments[key] for key in ("exp_avg", "exp_avg_sq")}
        checkpoint.save_weights(self.run / checkpoint.STATE_FILE, state, {"step": str(self.step)})
        self._save_average()

    def _save_average(self) -> None:
        checkpoint.save_weights(self.run / checkpoint.WEIGHTS_FILE, self.average, {"step": str(self.step)})

    def _load_state(self) -> None:
        path = self.run / checkpoint.STATE_FILE
        state, step = read_safetensors(path), checkpoint.saved_step(path)
        if step is None:
            raise CheckpointError(f"{path}: its header names no step")
        self.step = step

        def saved(key: str, name: str, parameter: Tensor) -> Tensor:
            tensor = state.get(f"{key}.{name}")
            if tensor is None or tensor.shape != parameter.shape:
                found = "missing" if tensor is None else f"of shape {list(tensor.shape)}"
                raise CheckpointError(f"{path}: {key}.{name} is {found}, expected shape {list(parameter.shape)}")
            return tensor

        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(saved("model", name, parameter))
                self.average[name].copy_(saved("average", name, parameter))
                moments = {key: saved(key, name, parameter) for key in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[parameter] = {"step": torch.tensor(float(self.step)), **moments}
        if checkpoint.saved_step(self.run / checkpoint.WEIGHTS_FILE) != self.step:
            self._save_average()  # a kill between the two files of a checkpoint leaves the second one older


def _check_fit(data: pathlib.Path, dataset: Dataset, model_config: ModelConfig, config: TrainConfig) -> None:
    """Refuse data that is not what the model was made for, or too little of it for one batch."""
    if len(dataset.classes) != model_config.class_num or dataset.channels != model_config.vae_embed_dim:
        raise DataError(
            f"{data}: {len(dataset.classes)} classes of {dataset.channels} channels, but the model was made for "
            f"{model_config.class_num} classes of {model_config.vae_embed_dim}"
        )
    if len(dataset.labels) < config.batch_size:
        raise ConfigError(f"a batch of {config.batch_size} does not fit a dataset of {len(dataset.labels)} pictures")


def _parameter_groups(model: MAR, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for the matrices of the transformer, none for biases, gains and the head."""
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.dim() >= 2 and not name.startswith("diffloss.")
        (decayed if matrix else free).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def _ema_rate(rate: float, step: int) -> float:
    """The rate at a step: lower at first, or the random weights of the start would stay in the average for long."""
    return min(rate, (1 + step) / (10 + step))


def _draw_mask_ratio(smallest: float, generator: torch.Generator) -> float:
    """From the normal centred at 1 with std 0.25, truncated to smallest..1, by inverting its distribution."""
    low = 0.5 * (1 + math.erf((smallest - 1) / _MASK_RATIO_STD / math.sqrt(2)))
    level = low + (0.5 - low) * torch.rand((), generator=generator, dtype=torch.float64)
    quantile = 1 + _MASK_RATIO_STD * torch.special.ndtri(level)
    return min(1.0, max(smallest, float(quantile)))


def _batch_indices(examples: int, batch_size: int, step: int, seed: int) -> NDArray[np.int64]:
    """The examples of a batch: every epoch is a permutation of its own, cut into whole batches."""
    epoch, position = divmod(step, examples // batch_size)
    order = np.random.default_rng([seed, epoch]).permutation(examples)
    return order[position * batch_size : (position + 1) * batch_size]


def _mix(seed: int, step: int) -> int:
    """One 63-bit seed for (seed, step)."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextlib.contextmanager
def _autocast(precision: str) -> Iterator[None]:
    # On a CPU, PyTorch's fused attention is several times slower backward than plain matrix products.
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"), sdpa_kernel(SDPBackend.MATH):
        yield


def _open_log(path: pathlib.Path, step: int) -> TextIO:
    """The log, cut back to the first `step` steps, ready to be appended to."""
    kept: list[str] = []
    if path.exists():
        with contextlib.suppress(ValueError):  # the last line may be torn by a kill
            for line in path.read_text().splitlines():
                if json.loads(line)["step"] <= step:
                    kept.append(line)
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in kept))
    return path.open("a")
