"""The script of each process of a job in test_distributed: torchrun starts it with a folder and the runs to make there.

Standard input would be shared, so the runs come as JSON: a list of {"run": name, "settings": {...}, "from": name}, the
last for a run that resumes a copy of another one; other data than folder/data are named with their colours;
"poisoned" is an example that is not a number.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import sys
from typing import Any, cast

import torch

from tests.helpers.tiny_runs import TINY, Poisoned, tiny_training
from training.config import RunConfig
from training.data.latent_dataset import LatentDataset
from training.distributed import Processes, local_shard, process_group
from training.loop.mar_trainer import MarTrainer

WITHOUT_DROPOUT = dataclasses.replace(TINY, attn_dropout=0.0, proj_dropout=0.0)
SETTINGS = {"batch_size": 8, "checkpoint_every": 1000}  # 36 images, so four steps an epoch


def make(folder: pathlib.Path, request: dict[str, Any], processes: Processes) -> None:
    """The run that `request` describes, of the images in folder/data."""
    run, settings = folder / request["run"], SETTINGS | request["settings"]
    if "from" in request:
        if processes.is_main:
            shutil.copytree(folder / request["from"], run)
        processes.barrier()
        MarTrainer.resume(run, processes, settings).train()
    else:
        model = dataclasses.replace(WITHOUT_DROPOUT, vae_embed_dim=request.get("colours", 1))
        config = RunConfig(str(folder / request.get("data", "data")), model, tiny_training(**settings))
        trainer = MarTrainer.start(run, config, processes)
        if "poisoned" in request:
            trainer.dataset = cast(LatentDataset, Poisoned(trainer.dataset, request["poisoned"]))
        parameters = list(trainer.train_step.model.parameters())
        held, total = (
            sum(size(tensor) for tensor in parameters)
            for size in (lambda tensor: local_shard(tensor).numel(), torch.numel)
        )
        (folder / f"{request['run']}-held-by-{processes.rank}").write_text(str(held / total))
        trainer.train()


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group("cpu") as group:
        for run_request in json.loads(sys.argv[2]):
            make(pathlib.Path(sys.argv[1]), run_request, group)
