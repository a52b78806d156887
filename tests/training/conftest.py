"""Fixtures of `tests.helpers` for the tests of training."""

from tests.helpers.published_models import arguments_file, heads_file
from tests.helpers.training_runs import finished_run, half_done_run, training_images

__all__ = ["arguments_file", "finished_run", "half_done_run", "heads_file", "training_images"]
