"""The command `mar`: one lazily loaded group, so that running a model never imports what trains it."""

from __future__ import annotations

import dataclasses
import importlib
import signal
import sys
import traceback
from typing import NoReturn

import click

from runtime import __version__
from runtime.errors import BackendError, MarError, RequestError

# Command -> (where it lives, what it does). Named as text: importing one room must not import another.
_COMMANDS = {
    "cache-latents": ("training.cli.cache_latents:cache", "Encode images once, for training on their latents."),
    "train-tokenizer": ("training.cli.train_tokenizer:train_tokenizer", "Train the autoencoder of latents, or go on."),
    "train": ("training.cli.train:train", "Train a model, or go on with a run."),
    "flow-head": ("training.cli.flow_head:flow_head", "Train a flow head on a frozen backbone."),
    "distill": ("training.cli.distill:distill", "Train a head that draws in a few steps what another draws in many."),
    "runs": ("training.cli.runs:runs", "Compare runs of mar train."),
    "import": ("training.cli.import_checkpoint:import_", "Turn a published checkpoint into a run of ours."),
    "export": ("mar_export.cli.export:export", "Turn a checkpoint into an artifact of engines."),
    "calibrate": ("calibration.cli.calibrate:calibrate", "Quantize an artifact's engines, or find diffusion steps."),
    "build": ("mar_export.cli.build:build", "Turn an artifact's graphs into engines for a GPU."),
    "generate": ("runtime.cli.generate:generate", "Draw images with an artifact."),
    "edit": ("runtime.cli.edit:edit", "Draw a part of an image anew."),
    "bench": ("mar_export.cli.bench:bench", "Time an artifact, alone or against eager PyTorch."),
    "study": ("mar_export.cli.study:study", "Judge every preset and sampler: quality against time."),
    "evaluate": ("training.cli.evaluate:evaluate", "Judge images of a checkpoint or an artifact beside real ones."),
    "plan": ("runtime.cli.plan:plan", "Show how an artifact would draw, and how long it takes."),
    "doctor": ("runtime.cli.doctor:doctor", "Tell what this machine can run."),
    "inspect": ("runtime.cli.inspect:inspect", "Show what an artifact holds."),
}
_EXTRAS = {"training": "train", "mar_export": "export", "calibration": "calibrate", "runtime": "cpu"}


@dataclasses.dataclass
class _Told:
    """What the group's own options say, for `main`."""

    debug: bool = False


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name][0].split(":")
        try:
            command: click.Command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            extra = _EXTRAS[module.split(".")[0]]
            raise BackendError(
                f"mar {cmd_name} needs the Python package {error.name}; pip install 'mar-runtime[{extra}]'"
            ) from None
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, told) for name, (_, told) in _COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="mar")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_obj
def mar(told: _Told, debug: bool) -> None:
    """Train, export and run masked autoregressive image models."""
    told.debug = debug


def main() -> None:
    """Run `mar`: exit code 0, 1 for a failure, 2 for wrong use, 130 or 143 if stopped; errors are one line."""
    told = _Told()
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        sys.exit(mar(standalone_mode=False, obj=told) or 0)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except (MarError, click.UsageError, ModuleNotFoundError, MemoryError) as error:
        if told.debug:
            traceback.print_exc()
        _fail(*_message(error))
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminated(number: int, frame: object) -> NoReturn:
    """End as an interrupt does: what is half written is removed on the way out."""
    _fail("terminated", 128 + number)


def _message(error: Exception) -> tuple[str, int]:
    """What to tell of an error, and the exit code."""
    if isinstance(error, MarError):
        return str(error), error.exit_code
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "mar"
        return f"{error.format_message().rstrip('.')} (see {command} --help)", RequestError.exit_code
    if isinstance(error, ModuleNotFoundError):
        return f"this needs the Python package {error.name}; pip install 'mar-runtime[train,export]'", 1
    return "not enough memory; draw fewer images together", 1


def _fail(message: str, code: int) -> NoReturn:
    print(f"mar: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
