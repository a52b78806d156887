"""The constraints that a model puts on sampling settings, and the checks of code that supports some models only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from runtime.checks import check_choice, truncate
from runtime.errors import RequestError
from runtime.model.families import RECAP, check_supported, family_of, imported
from runtime.model.family_config import FamilyConfig
from runtime.sampling.plan import Plan, build_plan
from runtime.sampling.samplers import SAMPLERS, VQ, CoefficientTable
from runtime.sampling.settings import Sampling


class SamplingRules(Protocol):
    """How the plan of a family is filled; `Family.sampling` names a module with these functions.

    The model that they get is of the family.
    """

    def supported_samplers(self, model: Any) -> tuple[str, ...]:
        """Return the samplers that the model can use."""

    def own_sampling(self, model: Any) -> Sampling:
        """Return the settings of a model that has none of its own, before `fixed_settings` apply."""

    def fixed_settings(self, model: Any) -> dict[str, tuple[Any, str]]:
        """Return the settings that cannot be changed: the value of each, and the reason for messages."""

    def preset_settings(self, model: Any, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that the built-in preset `name` has, where other models have `settings`."""

    def short_chain(self, model: Any, steps: int) -> dict[str, int]:
        """Return settings of a chain of few steps that amplifies errors little."""

    def coefficients(self, model: Any, sampling: Sampling, steps: int | str) -> CoefficientTable:
        """Return the coefficients of a chain. Raises `RequestError` if a value is wrong."""

    def edit_refusal(self, model: Any) -> str | None:
        """Return why the model cannot edit images; None if it can."""


def _rules(model: FamilyConfig) -> SamplingRules:
    rules: SamplingRules = imported(family_of(model).sampling)
    return rules


def plan_for(model: FamilyConfig, sampling: Sampling, known: int = 0) -> Plan:
    """Return the plan of an image of a model; see `runtime.sampling.plan.build_plan`.

    Raises:
        RequestError: A setting has a wrong value.
    """
    if sampling.recap:
        check_supported(model, RECAP)
    build: Callable[[FamilyConfig, Sampling, int], Plan] = imported(family_of(model).plan)
    return build(model, sampling, known)


def plan_of_one_grid(model: FamilyConfig, sampling: Sampling, known: int) -> Plan:
    """Return the plan of an image that is drawn as one grid; `Family.plan` of most families."""
    rules = _rules(model)
    plan = build_plan(model.tokens, sampling, known, lambda steps: rules.coefficients(model, sampling, steps))
    kept = sampling.reuse_first_pass and family_of(model).first_pass_of_class
    return plan.keeping_first_pass() if kept else plan


def supported_samplers(model: FamilyConfig) -> tuple[str, ...]:
    """Return the samplers that a model can use."""
    return _rules(model).supported_samplers(model)


def default_sampling(model: FamilyConfig) -> Sampling:
    """Return the sampling settings of a model that has no settings of its own: the published ones, where they apply."""
    return apply_constraints(model, _rules(model).own_sampling(model), {})


def preset_settings(model: FamilyConfig, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that the built-in preset `name` has for a model, where others have `settings`."""
    return _rules(model).preset_settings(model, name, settings)


def fixed_settings(model: FamilyConfig) -> dict[str, tuple[Any, str]]:
    """Return the settings that a model does not allow to change: the value of each, and the reason for messages."""
    return _rules(model).fixed_settings(model)


def is_editable(model: FamilyConfig) -> bool:
    """Return whether a model can regenerate a part of an image."""
    return _rules(model).edit_refusal(model) is None


def check_editable(model: FamilyConfig) -> None:
    """Check that a model can regenerate a part of an image.

    Raises:
        RequestError: It cannot.
    """
    if (reason := _rules(model).edit_refusal(model)) is not None:
        raise RequestError(reason)


def apply_constraints(model: FamilyConfig, sampling: Sampling, explicit: Mapping[str, Any]) -> Sampling:
    """Return sampling settings with the values that the model fixes.

    Args:
        model: The config of the model.
        sampling: The settings.
        explicit: The settings that the caller chose, by name. They are not changed silently.

    Raises:
        RequestError: A chosen setting has another value than the model allows, or the sampler is not for its head.
    """
    fixed = fixed_settings(model)
    for name, (value, reason) in fixed.items():
        if explicit.get(name) not in (None, value, str(value)):  # the command line passes numbers of steps as text
            raise RequestError(
                f"{name} of this model must be {value}, found {truncate(explicit[name])}; leave it out: {reason}"
            )
    sampling = dataclasses.replace(sampling, **{name: value for name, (value, _) in fixed.items()})
    if sampling.sampler not in supported_samplers(model):
        check_choice("sampler", sampling.sampler, (*SAMPLERS, VQ))
        known = " or ".join(supported_samplers(model))
        raise RequestError(f"the sampler of {model.describe_head()} must be {known}, found {sampling.sampler!r}")
    return sampling


def short_chain_settings(model: FamilyConfig, steps: int) -> dict[str, int]:
    """Return settings of a chain of few steps that amplifies errors little, for quick checks; none that are fixed."""
    fixed = fixed_settings(model)
    return {name: value for name, value in _rules(model).short_chain(model, steps).items() if name not in fixed}
