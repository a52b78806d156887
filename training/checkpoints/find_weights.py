"""The search for the weights of a module in what a checkpoint holds, wherever a training code keeps them.

Training codes keep weights under keys of their own (`model_ema`, `state_dict`, none) and put prefixes before the names
of parameters (`module.`, `_orig_mod.`, `first_stage_model.`). One parameter that every such module has, the *anchor*,
shows where the weights are. Averaged weights are taken before others.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from runtime.errors import CheckpointError

_DEEPEST = 4
_AVERAGED = re.compile(r"(?<![A-Za-z])(?i:ema|averag|shadow|swa)|EMA|Ema")
# What wrappers of modules put into the names of parameters, wherever they wrap.
_WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
_PUBLISHED_KEYS = ("model_ema",)
_FLAT_COPY = "model_ema."  # the averaged copy of Lightning models, whose names have no other dots
_FEWEST_KEYS = 5  # how many of the keys of a file a message names


@dataclasses.dataclass(frozen=True)
class Sought:
    """A module whose weights are looked for.

    Attributes:
        what: What they are and where they are expected, for messages.
        anchor: A parameter that the module has, and that nothing else in a checkpoint has.
        parts: The first components of its parameters' names; tensors of other parts, such as those of a loss, are left
            out. Empty if there must be no others.
    """

    what: str
    anchor: str
    parts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class FoundWeights:
    """The weights of a module.

    Attributes:
        weights: The tensors by name, without prefixes.
        place: Where the file holds them, such as `model_ema, prefix module.`; empty for a file of these tensors alone.
        averaged: Whether they are an average over training.
        others: Where else the file holds averaged weights.
    """

    weights: dict[str, Tensor]
    place: str
    averaged: bool
    others: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Place:
    """A mapping in a file, and the prefix under which it holds a module."""

    keys: tuple[str, ...]
    content: Mapping[Any, Any]
    prefix: str

    @property
    def averaged(self) -> bool:
        return any(_AVERAGED.search(key) for key in (*self.keys, self.prefix))

    @property
    def order(self) -> tuple[bool, bool, int]:
        """The place of least order is taken."""
        return not self.averaged, self.keys != _PUBLISHED_KEYS, len(self.keys)

    def __str__(self) -> str:
        prefix = [f"the prefix {self.prefix!r}"] if self.prefix else []
        return " and ".join([*([repr(".".join(self.keys))] if self.keys else []), *prefix])


def find_weights(content: Any, sought: Sought, path: pathlib.Path) -> FoundWeights:
    """Return the weights of a module in the content of the file at `path`.

    Raises:
        CheckpointError: There are none, or something else is among them.
    """
    places = sorted(_places(content, sought.anchor, ()), key=lambda place: place.order)
    if not places:
        raise CheckpointError(f"{path}: expected {sought.what}, as the published code saves them, {_found(content)}")
    place = places[0]
    weights = _tensors(place, sought, path)
    if place.averaged:
        return FoundWeights(weights, str(place), True, tuple(str(other) for other in places[1:] if other.averaged))
    if (flat := _flat_copy(place, weights)) is not None:
        return FoundWeights(flat, f"the prefix {_FLAT_COPY!r}", True)
    for keys, tensors in _lists(content, ()):
        names = _names_of(tensors, weights, f"{path}: the averaged weights under {keys!r}")
        return FoundWeights(dict(zip(names, tensors, strict=True)), repr(keys), True)
    return FoundWeights(weights, str(place), False)


def _places(content: Any, anchor: str, keys: tuple[str, ...]) -> Iterator[_Place]:
    """Give every mapping in `content`, with each prefix under which it has a tensor called `anchor`."""
    if not isinstance(content, Mapping) or len(keys) > _DEEPEST:
        return
    for name, value in content.items():
        if not isinstance(name, str):
            continue
        plain = _WRAPPERS.sub("", name)
        if isinstance(value, Tensor) and (plain == anchor or plain.endswith(f".{anchor}")):
            yield _Place(keys, content, plain.removesuffix(anchor))
        else:
            yield from _places(value, anchor, (*keys, name))


def _tensors(place: _Place, sought: Sought, path: pathlib.Path) -> dict[str, Tensor]:
    """Return the tensors of a place by their names without prefix."""
    weights: dict[str, Tensor] = {}
    for key, value in place.content.items():
        name = _WRAPPERS.sub("", key) if isinstance(key, str) else None
        if name is not None:
            if not name.startswith(place.prefix):
                continue
            name = name.removeprefix(place.prefix)
            if name.startswith(_FLAT_COPY) or (sought.parts and name.split(".")[0] not in sought.parts):
                continue
        if name is None or name in weights or not isinstance(value, Tensor):
            where = str(place) or "the file"
            raise CheckpointError(
                f"{path}: expected {sought.what}, but in {where} {key!r} is no tensor with a name of its own"
            )
        weights[name] = value
    return weights


def _flat_copy(place: _Place, weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the averaged copy of `weights` whose names have no dots, where it is complete."""
    for prefix in dict.fromkeys((place.prefix, "")):
        flat = {name: place.content.get(_FLAT_COPY + (prefix + name).replace(".", "")) for name in weights}
        if copy := {name: tensor for name, tensor in flat.items() if isinstance(tensor, Tensor)}:
            return copy if len(copy) == len(weights) else None
    return None


def _lists(content: Any, keys: tuple[str, ...]) -> Iterator[tuple[str, Sequence[Tensor]]]:
    """Give every list of tensors in `content` whose keys say that it holds averages."""
    if isinstance(content, Mapping) and len(keys) <= _DEEPEST:
        for name, value in content.items():
            yield from _lists(value, (*keys, str(name)))
    elif isinstance(content, (list, tuple)) and any(_AVERAGED.search(key) for key in keys):
        tensors = [value for value in content if isinstance(value, Tensor)]
        if tensors and len(tensors) == len(content):
            yield ".".join(keys), tensors


def _names_of(tensors: Sequence[Tensor], weights: Mapping[str, Tensor], where: str) -> list[str]:
    """Return the names of tensors in a list, which has the order of the module's parameters, as `weights` has."""
    if [tensor.shape for tensor in tensors] != [tensor.shape for tensor in weights.values()]:
        raise CheckpointError(
            f"{where} are a list of {len(tensors)} tensors without names, and not in number and shapes the "
            f"{len(weights)} weights beside it; save them by name"
        )
    return list(weights)


def _found(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"found {type(content).__name__}"
    keys = ", ".join(repr(key) for key in [*content][:_FEWEST_KEYS])
    more = f" and {len(content) - _FEWEST_KEYS} more" if len(content) > _FEWEST_KEYS else ""
    return f"found the keys {keys}{more}" if content else "found nothing"
