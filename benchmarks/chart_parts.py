"""What the charts of several benchmarks share: plain axes, and the file."""

from __future__ import annotations

import pathlib

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from runtime.storage.files import replacing


def plain(axes: Axes) -> None:
    """Give axes a light grid and no frame."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def save_figure(figure: Figure, path: pathlib.Path) -> None:
    """Write a figure as a PNG file, in place of one that is there."""
    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
