"""Check what `make demo` wrote: grids that show something, one of them in colour, and a benchmark.

python tests/check_demo.py out/demo
"""

from __future__ import annotations

import json
import math
import pathlib
import sys

import numpy as np
from PIL import Image

LEAST_CONTRAST, LEAST_SATURATION = 20, 20


def main(folder: pathlib.Path) -> None:
    check_grid(folder / "grid.png", 0)
    check_grid(folder / "games.png", LEAST_SATURATION)
    bench = json.loads((folder / "bench.json").read_text())
    ratio = bench["cases"][0]["times_the_baseline"]
    if not (isinstance(ratio, float) and math.isfinite(ratio) and ratio > 0):
        sys.exit(f"{folder / 'bench.json'}: no usable ratio: {ratio!r}")
    print(f"demo: {ratio:.2f}x as fast as eager PyTorch")


def check_grid(file: pathlib.Path, least_saturation: float) -> None:
    """Exit unless a grid is large, has contrast, and on average at least this saturation, from 0 to 255."""
    with Image.open(file) as image:
        gray = np.asarray(image.convert("L"), dtype=np.float64)
        saturation = np.asarray(image.convert("HSV"), dtype=np.float64)[..., 1].mean()
    height, width = gray.shape
    found = f"{width}x{height} pixels, standard deviation {gray.std():.1f}, saturation {saturation:.1f}"
    if min(gray.shape) < 200 or gray.std() < LEAST_CONTRAST or saturation < least_saturation:
        sys.exit(f"{file}: flat, gray or too small: {found}")
    print(f"{file}: {found}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
