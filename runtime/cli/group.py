"""The group of commands `mar`, which are imported only when they are used: generating never imports PyTorch."""

from __future__ import annotations

import difflib
import importlib
import warnings

import click
from click.shell_completion import CompletionItem

from runtime.cli.environment_variables import MachineOption
from runtime.cli.renamed_options import check_renamed
from runtime.errors import BackendError
from runtime.log import LEVELS, LOG
from runtime.version import __version__

# Command -> (its module and function, one sentence for --help). The modules are text, because this package may not
# import the others.
_COMMANDS = {
    "generate": ("runtime.cli.generate:generate", "Generate images with an artifact."),
    "generate-dataset": (
        "runtime.cli.generate_dataset:generate_dataset",
        "Draw many images into a folder, with several processes or machines.",
    ),
    "edit": ("runtime.cli.edit:edit", "Regenerate a part of an image with an artifact."),
    "serve": ("runtime.cli.serve:serve", "Serve images over HTTP, to many clients at once."),
    "export-triton": (
        "runtime.cli.export_triton:export_triton",
        "Write a model repository for Triton Inference Server.",
    ),
    "inspect": ("runtime.cli.inspect:inspect", "Show what an artifact contains."),
    "sign": ("runtime.cli.sign:sign", "Sign an artifact with a private key."),
    "verify": ("runtime.cli.sign:verify", "Check the signature and every hash of an artifact."),
    "plan": ("runtime.cli.plan:plan", "Show the iterations of a generation, their cost and their time."),
    "doctor": ("runtime.cli.doctor:doctor", "Show which libraries and GPU this machine has, and what they can run."),
    "train": ("training.cli.train:train", "Train a model, or resume a training run."),
    "train-tokenizer": (
        "training.cli.train_tokenizer:train_tokenizer",
        "Train the autoencoder between images and latents, or resume its training.",
    ),
    "cache-latents": ("training.cli.cache_latents:cache", "Encode a dataset into latents once, before training."),
    "flow-head": ("training.cli.flow_head:flow_head", "Train a flow-matching head on a frozen backbone."),
    "distill": ("training.cli.distill:distill", "Distill a head into one that needs only a few steps."),
    "runs": ("training.cli.runs:runs", "Compare training runs."),
    "evaluate": (
        "training.cli.evaluate:evaluate",
        "Measure the quality of generated images against a dataset: Fréchet distances, accuracy.",
    ),
    "evaluate-tokenizer": (
        "training.cli.evaluate_tokenizer:evaluate_tokenizer",
        "Measure how well an autoencoder reconstructs images: PSNR, Fréchet distances.",
    ),
    "import": ("training.cli.import_checkpoint:import_", "Convert a published checkpoint into a run folder."),
    "export": ("mar_export.cli.export:export", "Export a checkpoint as an artifact of ONNX engines."),
    "calibrate": ("calibration.cli.calibrate:calibrate", "Quantize an artifact's engines."),
    "optimize-steps": (
        "calibration.cli.optimize_steps:optimize_steps",
        "Find the diffusion steps that fit a time or error budget, and save them as a preset.",
    ),
    "build": ("mar_export.cli.build:build", "Build TensorRT engines from an artifact, for one GPU."),
    "bench": ("mar_export.cli.bench:bench", "Time an artifact, alone or against PyTorch and other runners."),
    "study": ("mar_export.cli.study:study", "Measure quality and time of every preset and sampler."),
}
# The extra of this project that installs what the modules of a package need, or one module.
_EXTRAS = {
    "training": "train",
    "mar_export": "export",
    "calibration": "calibrate",
    "runtime": "cpu",
    "runtime.cli.serve": "serve",
}


class LazyGroup(click.Group):
    """A group of commands that imports the module of a command only when that command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order of the help text."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command by its name.

        Returns:
            The command, or None if `mar` has no command of this name. While a shell completes a line, also None if a
            package is missing.

        Raises:
            BackendError: A Python package that the command needs is not installed.
        """
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name][0].split(":")
        try:
            command: click.Command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if ctx.resilient_parsing:
                return None
            extra = _EXTRAS.get(module) or _EXTRAS[module.split(".")[0]]
            raise BackendError(
                f"mar {cmd_name} needs the Python package {error.name}; pip install 'mar-runtime[{extra}]'"
            ) from None
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first of `args` names, and check that the others are not old spellings.

        Raises:
            RequestError: An argument is the old name of an option of this command.
            click.UsageError: There is no such command.
        """
        if args[0] not in _COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            close = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            raise click.UsageError(
                f"No such command {args[0]!r}" + (f"; did you mean {close[0]}?" if close else ""), ctx
            )
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and command is not None and not ctx.resilient_parsing:
            check_renamed(name, command, rest)
        return name, command, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands into the help text, without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, sentence) for name, (_, sentence) in _COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the commands and options of `mar` that start with `incomplete`, without importing any command."""
        commands = [
            CompletionItem(name, help=sentence)
            for name, (_, sentence) in _COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]


def _set_level(ctx: click.Context, option: click.Parameter, level: str) -> None:
    """Set what is shown. Before a command is imported, so that `--debug` shows the traceback of a failing import."""
    LOG.setLevel(LEVELS["debug" if ctx.params.get("debug") else level])
    if not LOG.isEnabledFor(LEVELS["warning"]):
        warnings.simplefilter("ignore")  # those of libraries


@click.group(
    cls=LazyGroup,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="mar")
@click.option("--debug", is_flag=True, is_eager=True, help="The same as --log-level debug.")
@click.option(
    "--log-level",
    cls=MachineOption,
    type=click.Choice(list(LEVELS)),
    default="info",
    show_default=True,
    expose_value=False,
    callback=_set_level,
    help="What standard error gets: error, only the line of a failure; warning, also what may be wrong; info, also "
    "notes and progress; debug, also the traceback of a failure.",
)
def mar(debug: bool) -> None:
    """Train, export and run masked autoregressive image models."""
