"""The settings of a service have limits, which its commands and Ray Serve share."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from runtime.errors import RequestError
from runtime.service.ray_app import RayArguments, build
from runtime.service.settings import ServiceSettings, limits
from tests.helpers.tiny_runs import one_sentence

LIMITED = [field.name for field in dataclasses.fields(ServiceSettings) if field.metadata]


@pytest.mark.parametrize("name", LIMITED)
def test_a_value_outside_the_limits_is_one_line(name: str) -> None:
    least, most = limits(name)
    for value in (least, most):
        assert getattr(ServiceSettings(**{name: value}), name) == value
    for wrong in (least - 1, most + 1, "8", True, None, float("nan")):
        settings: dict[str, Any] = {name: wrong}
        with pytest.raises(RequestError, match=f"^{name} must be a .*number in {least}..{most}, found ") as caught:
            ServiceSettings(**settings)
        one_sentence(caught)


@pytest.mark.parametrize(("name", "setting"), [("max_batch", "max_batch"), ("timeout_s", "timeout")])
def test_ray_serve_refuses_them_before_a_replica_starts(name: str, setting: str) -> None:
    for wrong in (limits(setting)[0] - 1, limits(setting)[1] + 1):
        with pytest.raises(RequestError, match=f"{name} must be .* found {wrong}"):
            build({"artifact": "a", name: wrong})


def test_ray_serve_has_the_defaults_of_the_service() -> None:
    service, ray = ServiceSettings(), RayArguments("a")
    assert (ray.max_batch, ray.max_queue, ray.timeout_s) == (service.max_batch, service.max_queue, service.timeout)
    assert ray.max_wait_ms == 1000 * service.max_wait
