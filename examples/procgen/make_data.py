"""Make the labelled images of the Procgen example: frames of 16 games, one frame of each level."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import itertools
import pathlib
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GAMES = (
    "bigfish",
    "bossfight",
    "caveflyer",
    "chaser",
    "climber",
    "coinrun",
    "dodgeball",
    "fruitbot",
    "heist",
    "jumper",
    "leaper",
    "maze",
    "miner",
    "ninja",
    "plunder",
    "starpilot",
)
# In its easy levels coinrun has a single background and a single wall.
DISTRIBUTION_MODES = {"coinrun": "hard"}
# The wheel is built for CPython 3.10, but its library is loaded through cffi, which works on every later version.
PROCGEN_WHEEL = ["--python-version", "310", "--platform", "manylinux2014_x86_64", "--only-binary=:all:"]
ENVIRONMENTS = 64  # copies of a game that run side by side
LEVELS = 500_000_000  # the size of the range of level seeds of one split
MIN_STEPS = 10  # the smallest step of a frame: earlier frames show few fish and ships
ACTIONS = 15
RESET = -1  # the action that ends a level
NEW_ACTION_PROBABILITY = 0.2  # an action lasts 5 steps on average, so that the player moves far


class SetupError(Exception):
    """Procgen cannot be installed or loaded; the message says why in one line."""


@dataclasses.dataclass(frozen=True)
class Split:
    """The images of one split.

    Attributes:
        name: The name of its folder.
        count: Images of each class.
        first_level: The first seed of its range of levels; the ranges of two splits do not overlap.
    """

    name: str
    count: int
    first_level: int


class Progress:
    """Prints on one line how many images are written and how long the others take."""

    def __init__(self, total: int) -> None:
        self._total, self._written, self._start = total, 0, time.monotonic()

    def add(self, label: str) -> None:
        """Count one more image of the folder `label`, and print the line again every 100 images."""
        self._written += 1
        if self._written % 100 and self._written < self._total:
            return
        elapsed = time.monotonic() - self._start
        left = elapsed / self._written * (self._total - self._written)
        line = f"{label}: {self._written:,} of {self._total:,} images, {left / 60:.1f} min left"
        print(f"\r{line:<79}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the line."""
        print(file=sys.stderr)


def main() -> int:
    """Run the command and return its exit status."""
    arguments = parse_arguments()
    try:
        make_images(arguments, load_procgen(arguments.packages or arguments.out / ".packages"))
    except (SetupError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


def parse_arguments() -> argparse.Namespace:
    """Read the options of the command line."""
    parser = argparse.ArgumentParser(description="Make 64x64 colour images of the 16 Procgen games, one class a game.")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="The folder of the dataset.")
    parser.add_argument("--train", type=int, default=8000, help="Training images of each class. [default: 8000]")
    parser.add_argument("--test", type=int, default=1000, help="Test images of each class. [default: 1000]")
    parser.add_argument(
        "--game", choices=GAMES, action="append", help="Only this game; repeatable, for several processes at once."
    )
    parser.add_argument("--seed", type=int, default=0, help="The seed of levels and actions. [default: 0]")
    parser.add_argument("--max-steps", type=int, default=50, help="The largest step of a frame. [default: 50]")
    parser.add_argument(
        "--packages", type=pathlib.Path, help="Where procgen is installed for this command. [default: OUT/.packages]"
    )
    arguments = parser.parse_args()
    for name, least in (("train", 0), ("test", 0), ("max_steps", MIN_STEPS)):
        if not least <= getattr(arguments, name) <= LEVELS // 100:
            parser.error(f"--{name.replace('_', '-')} must be from {least} to {LEVELS // 100:,}")
    return arguments


def load_procgen(packages: pathlib.Path) -> Any:
    """Install procgen into the folder `packages`, where it is missing, and load it.

    Returns:
        The class `ProcgenGym3Env`.

    Raises:
        SetupError: It cannot be installed or loaded.
    """
    if not (packages / "installed").exists():
        print(f"Installing procgen into {packages}", file=sys.stderr)
        run_pip(packages, [*PROCGEN_WHEEL, "procgen==0.10.7"])
        run_pip(packages, ["gym3==0.3.3", "cffi", "pycparser", "imageio", "filelock"])
        (packages / "installed").touch()
    sys.path.append(str(packages))
    # The package's own __init__ imports gym, which is not needed here.
    package = types.ModuleType("procgen")
    package.__path__ = [str(packages / "procgen")]
    sys.modules["procgen"] = package
    if not hasattr(np, "bool8"):
        np.bool8 = np.bool_  # type: ignore[attr-defined]  # gym3 0.3.3 uses the name that numpy 2 removed
    try:
        return importlib.import_module("procgen.env").ProcgenGym3Env
    except Exception as error:
        raise SetupError(
            f"procgen in {packages} cannot be loaded ({one_line(error)}); it needs Linux on x86-64 and Python 3.10 or "
            "later; delete that folder to install it again"
        ) from error


def run_pip(packages: pathlib.Path, requirements: list[str]) -> None:
    """Install `requirements` into the folder `packages`, without what they depend on.

    Raises:
        SetupError: pip fails.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages), *requirements]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if "ERROR" in line] or result.stderr.splitlines()
        reason = errors[-1] if errors else f"exit status {result.returncode}"
        raise SetupError(f"pip cannot install {requirements[-1]} into {packages} ({reason}); check the network and pip")


def make_images(arguments: argparse.Namespace, make_environment: Any) -> None:
    """Write the images of all games to OUT/SPLIT/GAME/NUMBER.png, in place of those of an earlier run."""
    splits = (Split("train", arguments.train, 0), Split("test", arguments.test, LEVELS))
    games = arguments.game or GAMES
    progress = Progress(len(games) * sum(split.count for split in splits))
    for split in splits:
        for game in games:
            folder = arguments.out / split.name / game
            folder.mkdir(parents=True, exist_ok=True)
            for file in folder.glob("*.png"):
                file.unlink()
            random = np.random.default_rng((arguments.seed, split.first_level, GAMES.index(game)))
            environment = make_environment(
                num=ENVIRONMENTS,
                env_name=game,
                num_levels=LEVELS,
                start_level=split.first_level,
                distribution_mode=DISTRIBUTION_MODES.get(game, "easy"),
                rand_seed=int(random.integers(2**31)),
            )
            frames = itertools.islice(one_frame_a_level(environment, random, arguments.max_steps), split.count)
            for index, frame in enumerate(frames):
                Image.fromarray(frame).save(folder / f"{index:05d}.png")
                progress.add(f"{split.name}/{game}")
            environment.close()
    progress.close()


def one_frame_a_level(environment: Any, random: np.random.Generator, max_steps: int) -> Iterator[NDArray[np.uint8]]:
    """Play with random actions and yield one frame [64, 64, 3] of each level, without end.

    A frame is taken after `MIN_STEPS` to `max_steps` steps; then its level is left. Where the game is lost
    on the way, it comes from the level that follows, at an earlier step.
    """
    seen: set[int] = set()
    actions = random.integers(0, ACTIONS, ENVIRONMENTS)
    steps_left = random.integers(MIN_STEPS, max_steps + 1, ENVIRONMENTS)
    while True:
        new_actions = random.integers(0, ACTIONS, ENVIRONMENTS)
        actions = np.where(random.random(ENVIRONMENTS) < NEW_ACTION_PROBABILITY, new_actions, actions)
        environment.act(np.where(steps_left == 0, RESET, actions).astype(np.int32))
        steps_left = np.where(steps_left == 0, random.integers(MIN_STEPS, max_steps + 1, ENVIRONMENTS), steps_left - 1)
        due = np.flatnonzero(steps_left == 0)
        if not due.size:
            continue
        observations, information = environment.observe()[1]["rgb"], environment.get_info()
        for index in due:
            level = information[index]["level_seed"]
            if level not in seen:
                seen.add(level)
                yield observations[index]


def one_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


if __name__ == "__main__":
    sys.exit(main())
