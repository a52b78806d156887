"""Signed artifacts: an Ed25519 signature of the manifest, which has the hash of every other file.

The file of the signature has one line: the name of the format, the public key, and the signature, both in hexadecimal
digits. The key in the file only names the signer: it counts only if the caller trusts it.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import MANIFEST
from runtime.checks import truncate
from runtime.errors import IntegrityError, MarError, RequestError
from runtime.storage.files import replacing

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE = "manifest.sig"
"""The name of the signature's file in the folder of an artifact."""

_FORMAT = "mar-signature-1"
_LINE = re.compile(rf"{_FORMAT} ([0-9a-f]{{64}}) ([0-9a-f]{{128}})\n", re.ASCII)
_LARGEST_FILE = 1 << 16  # bytes of a signature or a key
_REMEDY = {
    "private": "make one with openssl genpkey -algorithm ed25519 -out KEY.pem",
    "public": "make one with openssl pkey -in KEY.pem -pubout -out PUB.pem",
}


def sign(artifact: Artifact, key: pathlib.Path, force: bool = False) -> str:
    """Compare every file of an artifact with its manifest, then write the signature beside the manifest.

    A signature by the same key is replaced: the artifact may have changed since.

    Args:
        artifact: The artifact.
        key: A file with an Ed25519 private key in PEM.
        force: Whether a signature by another key is replaced too.

    Returns:
        The fingerprint of the public key.

    Raises:
        RequestError: The key cannot be read, or is of another kind; or the artifact is signed with another key.
        IntegrityError: A file of the artifact was altered.
        MarError: The library `cryptography` is not installed, or the signature cannot be written.
    """
    private = _private_key(key)
    public, signature = private.public_key().public_bytes_raw().hex(), private.sign(artifact.manifest_bytes).hex()
    if not force:
        _check_own(artifact.path / SIGNATURE, public)
    artifact.verify(builds=True)
    with replacing(artifact.path / SIGNATURE) as temporary:
        temporary.write_text(f"{_FORMAT} {public} {signature}\n", encoding="ascii")
    return _fingerprint(public)


def _check_own(file: pathlib.Path, public: str) -> None:
    """Raise `RequestError` if there is a signature by another key than the public key in hexadecimal digits."""
    if not file.exists():
        return
    try:
        signer, _ = _read_signature(file)
    except IntegrityError as error:
        raise RequestError(f"{error}; give --force to replace it") from None
    if signer != public:
        raise RequestError(
            f"{file}: signed with another key, {_fingerprint(signer)}; give --force to replace its signature"
        )


def verify_signature(artifact: Artifact, trusted_keys: Sequence[str | pathlib.Path]) -> str:
    """Check that the manifest of an artifact is signed with one of the trusted keys.

    The manifest is the one that was parsed, not what its file contains by now.

    Args:
        artifact: The artifact. Its other files are compared with the manifest by `Artifact.verify`.
        trusted_keys: Files with Ed25519 public keys in PEM.

    Returns:
        The fingerprint of the key.

    Raises:
        RequestError: There is no trusted key, or one cannot be read or is of another kind.
        IntegrityError: There is no signature, it is by another key, or it is of another manifest.
        MarError: The library `cryptography` is not installed.
    """
    if isinstance(trusted_keys, (str, bytes, pathlib.Path)) or not isinstance(trusted_keys, Sequence):
        raise RequestError(
            f"trusted_keys must be a list of files with public keys in PEM, found {truncate(trusted_keys)}"
        )
    if not trusted_keys:
        raise RequestError("trusted_keys is empty; give the file of at least one public key in PEM")
    trusted = {key.public_bytes_raw().hex(): key for key in map(_public_key, trusted_keys)}
    file = artifact.path / SIGNATURE
    public, signature = _read_signature(file)
    if public not in trusted:
        raise IntegrityError(
            f"{file}: signed with the key {_fingerprint(public)}, which is not trusted; trusted is "
            f"{', '.join(map(_fingerprint, trusted))}"
        )
    from cryptography.exceptions import InvalidSignature

    try:
        trusted[public].verify(bytes.fromhex(signature), artifact.manifest_bytes)
    except InvalidSignature:
        raise IntegrityError(
            f"{artifact.path / MANIFEST}: altered since it was signed; copy the artifact again, or sign it again with "
            "mar sign"
        ) from None
    return _fingerprint(public)


def _read_signature(file: pathlib.Path) -> tuple[str, str]:
    """Return the public key and the signature, in hexadecimal digits."""
    try:
        with file.open("rb") as opened:
            content = opened.read(_LARGEST_FILE)
    except FileNotFoundError:
        raise IntegrityError(f"{file}: missing, the artifact is not signed; sign it with mar sign") from None
    except OSError as error:
        raise IntegrityError(f"{file}: cannot be read ({error.strerror})") from None
    line = _LINE.fullmatch(content.decode("ascii", "replace"))
    if line is None:
        raise IntegrityError(f"{file}: not a signature of mar sign; copy the artifact again, or sign it again")
    return line[1], line[2]


def _private_key(path: pathlib.Path) -> Ed25519PrivateKey:
    _check_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key: Ed25519PrivateKey = _parse_key(
        path, "private", lambda pem: load_pem_private_key(pem, password=None), Ed25519PrivateKey
    )
    return key


def _public_key(path: str | pathlib.Path) -> Ed25519PublicKey:
    _check_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if not isinstance(path, (str, pathlib.Path)):
        raise RequestError(f"trusted_keys must contain files with public keys in PEM, found {truncate(path)}")
    key: Ed25519PublicKey = _parse_key(pathlib.Path(path), "public", load_pem_public_key, Ed25519PublicKey)
    return key


def _parse_key(path: pathlib.Path, kind: str, load: Callable[[bytes], object], expected: type[Any]) -> Any:
    content = _read_key(path)
    try:
        key = load(content)
    except TypeError:
        raise RequestError(
            f"{path}: the {kind} key is encrypted; decrypt it with openssl pkey -in KEY.pem -out DECRYPTED.pem"
        ) from None
    except Exception as error:  # ValueError, UnsupportedAlgorithm, or what its parser raises
        reason = str(error).partition(".")[0] or type(error).__name__
        raise RequestError(f"{path}: not a {kind} key in PEM ({reason}); {_REMEDY[kind]}") from None
    if not isinstance(key, expected):
        raise RequestError(f"{path}: a {kind} key of another kind than Ed25519 ({type(key).__name__}); {_REMEDY[kind]}")
    return key


def _check_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise MarError(
            f"signatures need the Python package cryptography ({error}); pip install 'mar-runtime[sign]'"
        ) from None


def _read_key(path: pathlib.Path) -> bytes:
    try:
        with path.open("rb") as opened:
            return opened.read(_LARGEST_FILE)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RequestError(f"{path}: the key cannot be read ({reason})") from None


def _fingerprint(public: str) -> str:
    """Return the first 16 digits of a public key."""
    return f"{public[:16]}…"
