"""PyTorch: eager, and compiled by AOTInductor."""

from __future__ import annotations

import pathlib
import sys

import torch

from benchmarks.peer_libraries.work import Load, Work
from mar_export.graphs.engine_modules import loop_modules
from mar_export.torch_backends.torch_cpu import missing_compiler, package_generator, save_packages, torch_engine
from runtime.artifact.artifact_folder import Artifact
from runtime.storage.files import replacing_folder
from training.checkpoints.random_weights import random_checkpoint


def eager_engines(work: Work) -> Load:
    """Run the exported modules in eager PyTorch."""
    torch.set_num_threads(work.threads)
    modules = loop_modules(random_checkpoint(work.model).model)
    return lambda spec: torch_engine(modules[spec.name], spec)


def inductor_engines(work: Work) -> Load:
    """Run the exported modules as AOTInductor compiles them."""
    torch.set_num_threads(work.threads)
    manifest, packages = Artifact(pathlib.Path(work.artifact)).manifest, pathlib.Path(work.folder) / "packages"
    if not packages.is_dir():
        if (reason := missing_compiler()) is not None:
            sys.exit(f"aot-inductor: {reason}")
        with replacing_folder(packages) as folder:
            save_packages(manifest, random_checkpoint(work.model).model, folder)
    engines = package_generator(manifest, packages).engines
    return lambda spec: getattr(engines, spec.name)
