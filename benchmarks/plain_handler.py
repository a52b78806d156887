"""A service as a user would write it: a handler of FastAPI around a `Generator`, to compare `mar serve` with.

    PLAIN_ARTIFACT=out/demo/artifact PLAIN_PRESET=fast uvicorn benchmarks.plain_handler:app

FastAPI runs the handler in a pool of threads, and the generator draws one request after another.
"""

from __future__ import annotations

import io
import os

from fastapi import FastAPI, Response
from pydantic import BaseModel

from runtime.generator import Generator

threads = os.environ.get("PLAIN_THREADS")
app = FastAPI()
generator = Generator.load(os.environ["PLAIN_ARTIFACT"], threads=None if threads is None else int(threads))


class Asked(BaseModel):
    """The image that a client asks for."""

    label: int
    seed: int


@app.post("/images")
def draw(asked: Asked) -> Response:
    """Answer with one image as a PNG file."""
    result = generator.generate([asked.label], seed=asked.seed, preset=os.environ["PLAIN_PRESET"])
    file = io.BytesIO()
    result.pil()[0].save(file, format="PNG")
    return Response(file.getvalue(), media_type="image/png")
