"""The commands `mar sign` and `mar verify`."""

from __future__ import annotations

import pathlib

import click

from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.signatures import SIGNATURE, verify_signature
from runtime.artifact.signatures import sign as sign_artifact
from runtime.checks import pluralize
from runtime.cli.options import PATH
from runtime.cli.result_files import force_option, is_forced
from runtime.storage.files import holding


@click.command()
@click.argument("artifact", type=PATH)
@click.option("--key", type=PATH, required=True, metavar="KEY.pem", help="An Ed25519 private key in PEM.")
@force_option("Replace a signature by another key.")
def sign(artifact: pathlib.Path, key: pathlib.Path) -> None:
    """Sign ARTIFACT, so that others can check who made it.

    The signature covers the manifest, and with it the hash of every file. Sign last: a changed artifact needs a new
    signature.
    """
    opened = Artifact(artifact)
    with holding(artifact / SIGNATURE):
        fingerprint = sign_artifact(opened, key, is_forced())
    click.echo(f"{artifact / SIGNATURE}: signed with the key {fingerprint}")


@click.command()
@click.argument("artifact", type=PATH)
@click.option(
    "--public-key",
    "public_keys",
    type=PATH,
    required=True,
    multiple=True,
    metavar="PUB.pem",
    help="An Ed25519 public key in PEM that is trusted. Can be repeated.",
)
def verify(artifact: pathlib.Path, public_keys: tuple[pathlib.Path, ...]) -> None:
    """Check the signature of ARTIFACT, and that no file was altered since."""
    opened = Artifact(artifact)
    fingerprint = verify_signature(opened, public_keys)
    opened.verify(builds=True)
    files = pluralize(len(opened.manifest.files), "file")
    click.echo(f"{artifact}: signed with the key {fingerprint}, every hash of {files} matches")
