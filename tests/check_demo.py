"""Check what `make demo` wrote: a grid that shows something, and a benchmark with a chart.

python tests/check_demo.py out/demo
"""

from __future__ import annotations

import json
import math
import pathlib
import sys

import numpy as np
from PIL import Image


def main(folder: pathlib.Path) -> None:
    with Image.open(folder / "grid.png") as image:
        pixels = np.asarray(image.convert("L"), dtype=np.float64)
    if min(pixels.shape) < 200 or pixels.std() < 20:
        sys.exit(f"{folder / 'grid.png'}: flat or too small: {pixels.shape}, standard deviation {pixels.std():.1f}")
    bench = json.loads((folder / "bench.json").read_text())
    ratio = bench["cases"][0]["times_the_baseline"]
    if not (isinstance(ratio, float) and math.isfinite(ratio) and ratio > 0):
        sys.exit(f"{folder / 'bench.json'}: no usable ratio: {ratio!r}")
    print(f"demo: grid of {pixels.shape[1]}x{pixels.shape[0]} pixels, {ratio:.2f}x as fast as eager PyTorch")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
