"""The chart of activation ranges."""

from __future__ import annotations

import pathlib

from PIL import Image

from calibration.quantization.range_chart import save_range_chart
from calibration.quantization.statistics import ActivationStatistics


def test_the_chart_is_a_png_of_many_colours(statistics: ActivationStatistics, tmp_path: pathlib.Path) -> None:
    save_range_chart(statistics, tmp_path / "report.png")
    with Image.open(tmp_path / "report.png") as image:
        assert min(image.size) > 400
        assert len(image.convert("RGB").getcolors(2**24) or []) > 50
