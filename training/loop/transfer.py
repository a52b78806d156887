"""The weights that a new model takes from a checkpoint: of other classes, another image size, or another head."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from runtime.checks import pluralize
from runtime.errors import CheckpointError
from runtime.model.config import ModelConfig
from training.checkpoints.checkpoint import Checkpoint
from training.checkpoints.resize import resize_model
from training.data.class_names import list_some

_CLASSES = "class_emb.weight"
_BLOCKS = ("encoder_blocks.", "decoder_blocks.")


@dataclasses.dataclass(frozen=True)
class Transfer:
    """What a new model takes from a checkpoint.

    Attributes:
        weights: The tensors that are taken, by name, in the shapes of the new model.
        lines: What was taken and what was not, one line each.
    """

    weights: dict[str, Tensor]
    lines: tuple[str, ...]


def transfer_weights(
    source: Checkpoint, fresh: Mapping[str, Tensor], config: ModelConfig, classes: Sequence[str]
) -> Transfer:
    """Return the weights of a checkpoint that a new model can begin with.

    A tensor is taken where name and shape agree. Position embeddings are interpolated to another image size. An
    embedding is taken for each class whose name the checkpoint has; a new class begins at the embedding of no class,
    plus its random initial weights, so that new classes differ.

    Args:
        source: The checkpoint.
        fresh: The initial weights of the new model, by name.
        config: The new model.
        classes: The names of its classes.

    Raises:
        CheckpointError: No weight of a transformer block fits.
    """
    model, old, lines = source.model, source.model.config, list[str]()
    if config.img_size != old.img_size:
        model = resize_model(model, config.img_size)
        lines.append(
            f"position embeddings resized from {old.grid}x{old.grid} to {model.config.grid}x{model.config.grid} tokens"
        )
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if weights[_CLASSES].shape[1] == fresh[_CLASSES].shape[1]:
        weights[_CLASSES], line = _class_embeddings(source, fresh[_CLASSES], classes)
        lines.append(line)
    taken = {name: weight for name, weight in weights.items() if name in fresh and weight.shape == fresh[name].shape}
    if not any(name.startswith(_BLOCKS) for name in taken):
        raise CheckpointError(f"{source.source}: no weights of its blocks fit this model; leave its widths as they are")
    new = [f"{name} {list(tensor.shape)}" for name, tensor in fresh.items() if name not in taken]
    if new:
        lines.append(f"new because no tensor has their name and shape: {list_some(new)}")
    share = _size(taken) / _size(fresh)
    first = f"{len(taken)} of {pluralize(len(fresh), 'tensor')} taken, {share:.1%} of the weights"
    return Transfer(taken, tuple(f"begins with {source.source}: {line}" for line in (first, *lines)))


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors.values())


def _class_embeddings(source: Checkpoint, fresh: Tensor, classes: Sequence[str]) -> tuple[Tensor, str]:
    """Return the class embeddings [class_num, E] of the new model, and a line about them."""
    old, names = source.model.class_emb.weight.detach(), source.class_names
    if not names and len(old) == len(classes):
        return old, f"the embeddings of {pluralize(len(old), 'class')} taken by number, their names are unknown"
    numbers = {name: number for number, name in enumerate(names)}
    new = [name for name in classes if name not in numbers]
    no_class = source.model.fake_latent.detach()[0].to(fresh.device)
    rows = [
        old[numbers[name]].to(fresh.device) if name in numbers else row + no_class
        for name, row in zip(classes, fresh, strict=True)
    ]
    kept = [name for name in classes if name in numbers]
    dropped = [name for name in names if name not in set(classes)]
    parts = [
        f"{what} {pluralize(len(some), 'class')} ({list_some(some)})"
        for what, some in (("taken for", kept), ("new for", new), ("left out of", dropped))
        if some
    ]
    if not names:
        parts.append(f"left out of {pluralize(len(old), 'class')} without names")
    return torch.stack(rows), f"class embeddings {', '.join(parts)}"
