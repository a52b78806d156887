"""The study of quality against time: settings of one or several artifacts, each with its images and its time.

Every setting draws images of the same classes from the same token orders and noise, once for each seed. They are drawn
and compared with real images as by `mar evaluate`; the times are of one image at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mar_export.benchmark.study_settings import Setting, Study
from runtime.errors import RequestError
from runtime.generator import Generator
from runtime.progress import Progress
from runtime.sampling.constraints import plan_for
from runtime.storage.files import write_json
from runtime.storage.stored_files import check_hash, content_sha256, with_hash
from runtime.storage.structured_files import FaultReport, read_json_object
from training.data.class_names import check_known_classes
from training.evaluation.comparison import compare_job, open_networks
from training.evaluation.comparison_table import GENERATED
from training.evaluation.feature_networks import CLASSIFIER, FeatureNetwork
from training.evaluation.generate_images import generate_images
from training.evaluation.real_images import RealImages, open_real_images


class Judges(NamedTuple):
    """What the images of a study are compared with, and by.

    Attributes:
        real: The real images.
        networks: The networks that are named in the study.
    """

    real: RealImages
    networks: list[FeatureNetwork]


def open_judges(study: Study, settings: Sequence[Setting]) -> Judges:
    """Open the dataset and the networks of a study; a missing classifier is trained.

    Raises:
        RequestError: A setting is invalid, or the artifacts draw other classes than the dataset has, or differ in their
            classes or sizes.
        BackendError: A package that a network needs is not installed.
    """
    models = {setting.artifact: study.job(setting, 0).resolved for setting in settings}
    first, model = next(iter(models.items()))
    for other, resolved in models.items():
        check_known_classes(resolved.class_names, model.class_names, str(other), str(first))
        shapes = [(*each.config.image_shape[:2], each.config.class_num) for each in (model, resolved)]
        if shapes[0] != shapes[1]:
            told = ["{}x{} pixels in {} classes".format(*shape) for shape in shapes]
            raise RequestError(
                f"{first} draws {told[0]} and {other} {told[1]}; a study compares models of the same images"
            )
    real = open_real_images(study.data, first, model.config, model.class_names, background=study.background)
    return Judges(real, open_networks(study.networks, study.classifier, real.train))


class Results:
    """The results of a study in a folder: a JSON file for each setting and seed, and the images.

    Args:
        study: The inputs of the study.
        judges: What its images are compared with.
        folder: The folder.
    """

    def __init__(self, study: Study, judges: Judges, folder: pathlib.Path) -> None:
        self.folder = folder
        self._study, self._judges = study, judges

    def read(self, setting: Setting, seed: int) -> dict[str, Any] | None:
        """Read a result; None if there is none, or one of another model, other settings, images or networks.

        Raises:
            RequestError: The file is damaged or was altered.
        """
        file = self._file(setting, seed)
        fault_report = FaultReport(RequestError, "remove it to evaluate the setting again")
        if not file.exists():
            return None
        result = check_hash(read_json_object(file, fault_report), (), file, fault_report)
        return result if result.get("inputs") == self._inputs(setting, seed) else None

    def add(self, setting: Setting, seed: int) -> dict[str, Any]:
        """Evaluate the images of a setting and seed, which are in the folder, and write and return the result."""
        job, (real, networks) = self._study.job(setting, seed), self._judges
        metrics, doubts = compare_job(networks, job, real, self._study.count, self.folder)
        about = {"inputs": self._inputs(setting, seed), "name": setting.name, "seed": seed}
        result = {**about, "features": metrics, "doubts": doubts}
        write_json(self._file(setting, seed), with_hash(result))
        return result

    def check(self, settings: Sequence[Setting]) -> None:
        """Raise `RequestError` if the folder has a result that `run_study` would replace by another one."""
        for setting, seed in self._study.drawn(settings):
            if self._file(setting, seed).exists() and self.read(setting, seed) is None:
                raise RequestError(
                    f"{self._file(setting, seed)} is the result of another model, of other settings, of another number "
                    "of images or of another classifier; choose another --out, or give --force to replace it"
                )

    def _file(self, setting: Setting, seed: int) -> pathlib.Path:
        return self.folder / f"{setting.name.replace(' ', '-').replace('+', 'p')}-seed-{seed}.json"

    def _inputs(self, setting: Setting, seed: int) -> str:
        """Hash all that a result depends on."""
        return content_sha256(
            {
                "images": self._study.job(setting, seed).resolved.inputs,
                "count": self._study.count,
                "real": self._judges.real.compared.fingerprint,
                "networks": {network.name: network.sha256 for network in self._judges.networks},
            }
        )


def run_study(
    study: Study,
    settings: Sequence[Setting],
    results: Results,
    processes: int,
    threads: int,
    report: Callable[[str], None],
) -> None:
    """Draw and evaluate the images of every setting and seed that has no result yet.

    Args:
        study: The inputs.
        settings: The settings to evaluate.
        results: Takes each result as soon as it is known.
        processes: The number of processes that draw images; more than one need Ray.
        threads: The CPU threads of all processes together.
        report: Called with a line of text for each new result.

    Raises:
        BackendError: An engine failed, or Ray is not installed.
    """
    missing = [(setting, seed) for setting, seed in study.drawn(settings) if results.read(setting, seed) is None]
    for number, (setting, seed) in enumerate(missing, 1):
        title = f"{setting.name}, seed {seed}"
        job = study.job(setting, seed)
        with Progress(study.count, f"{title} ({number} of {len(missing)})", unit="images") as progress:
            generate_images(job, study.count, results.folder, processes, threads, progress.update, progress.skip)
        report(f"{title}: {_in_words(results.add(setting, seed))}")


def time_settings(study: Study, settings: Sequence[Setting], threads: int, repeats: int) -> dict[str, list[float]]:
    """Time every setting, in turn, one image at a time.

    Returns:
        The seconds of `repeats` images for each setting, by its name.
    """
    seconds: dict[str, list[float]] = {setting.name: [] for setting in settings}
    with contextlib.ExitStack() as stack:
        generators = {
            artifact: stack.enter_context(Generator.load(artifact, threads=threads, **dict(study.backend)))
            for artifact in dict.fromkeys(setting.artifact for setting in settings)
        }
        progress = stack.enter_context(Progress((repeats + 1) * len(settings), "timing"))
        for repeat in range(-1, repeats):
            for setting in settings:
                started = time.perf_counter()
                generators[setting.artifact].generate([0], **setting.sampling)
                if repeat >= 0:  # the first round warms up
                    seconds[setting.name].append(time.perf_counter() - started)
                progress.update()
    return seconds


def summarize_study(
    study: Study, settings: Sequence[Setting], results: Results, seconds: Mapping[str, list[float]]
) -> dict[str, Any]:
    """Return the report of a study.

    Args:
        study: The inputs.
        settings: The settings to report, all of which are evaluated.
        results: Their results.
        seconds: The times of each setting, as `time_settings` returns them.

    Returns:
        `images` of each setting and seed, `seeds`, `doubts`, `real` with what each network says of real images, and
        `settings`. Each of these has `name`, `artifact`, `sampler`, `sampling`, `head_evaluations`, `milliseconds`, and
        under `features`, by the name of each network, the metrics of each seed.
    """
    rows, doubts, real = [], dict[str, None](), dict[str, Any]()
    for setting in settings:
        found = [result for seed in range(study.seeds) if (result := results.read(setting, seed)) is not None]
        rows.append(_row(study, setting, found, seconds[setting.name]))
        doubts |= dict.fromkeys(line for result in found for line in result["doubts"])
        for result in found:  # all have the same real images
            for network, metrics in result["features"].items():
                real[network] = {name: value for name, value in metrics.items() if name != GENERATED}
    return {"images": study.count, "seeds": study.seeds, "doubts": list(doubts), "real": real, "settings": rows}


def _row(study: Study, setting: Setting, results: Sequence[dict[str, Any]], seconds: Sequence[float]) -> dict[str, Any]:
    p10, median, p90 = np.percentile(seconds, [10, 50, 90])
    resolved = study.job(setting, 0).resolved
    return {
        "name": setting.name,
        "artifact": setting.artifact.resolve().name,
        "sampler": setting.sampler,
        "sampling": dataclasses.asdict(resolved.sampling),
        "head_evaluations": plan_for(resolved.config, resolved.sampling).head_evaluations,
        "features": {name: [result["features"][name][GENERATED] for result in results] for name in study.networks},
        "milliseconds": {"median": 1e3 * median, "p10": 1e3 * p10, "p90": 1e3 * p90},
    }


def _in_words(result: Mapping[str, Any]) -> str:
    """Return the accuracy and the Fréchet distances of a result, for people."""
    of_networks = {name: metrics[GENERATED] for name, metrics in result["features"].items()}
    distances = [f"Fréchet distance {metrics['frechet']:.3f} ({name})" for name, metrics in of_networks.items()]
    accuracy = of_networks.get(CLASSIFIER, {}).get("top1_accuracy")
    return ", ".join([*([] if accuracy is None else [f"top-1 accuracy {accuracy:.1%}"]), *distances])
