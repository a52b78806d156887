"""An application that cannot be made leaves nothing behind."""

from __future__ import annotations

import threading

import pytest

from runtime.errors import RequestError
from runtime.service.app import create_app
from runtime.service.settings import ServiceSettings
from tests.helpers.fake_generators import fake_generator


def test_the_threads_of_a_model_end_where_the_next_is_refused() -> None:
    before = threading.active_count()
    with fake_generator() as good, fake_generator() as other:
        with pytest.raises(RequestError, match="the name of a model must have"):
            create_app({"good": good, "not good": other}, ServiceSettings())
        assert threading.active_count() == before
        assert len(good.generate([0]).images) == 1  # its caller has it still
