"""Signed artifacts: only what was signed with a trusted key is loaded."""

from __future__ import annotations

import pathlib
import re
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from runtime.artifact.artifact_folder import Artifact
from runtime.artifact.manifest import MANIFEST
from runtime.artifact.signatures import SIGNATURE, sign
from runtime.errors import IntegrityError, RequestError
from runtime.generator import Generator
from tests.helpers.command_line import Mar


class Keys(NamedTuple):
    private: pathlib.Path
    public: pathlib.Path


def keys(folder: pathlib.Path, name: str, key: Any, password: bytes | None = None) -> Keys:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    found = Keys(folder / f"{name}.pem", folder / f"{name}-public.pem")
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    found.private.write_bytes(key.private_bytes(pem, pkcs8, encryption))
    public_format = serialization.PublicFormat.SubjectPublicKeyInfo
    found.public.write_bytes(key.public_key().public_bytes(pem, public_format))
    return found


@pytest.fixture
def own(tmp_path: pathlib.Path) -> Keys:
    return keys(tmp_path, "own", ed25519.Ed25519PrivateKey.generate())


@pytest.fixture
def other(tmp_path: pathlib.Path) -> Keys:
    return keys(tmp_path, "other", ed25519.Ed25519PrivateKey.generate())


@pytest.fixture
def signed(artifact_copy: pathlib.Path, own: Keys) -> pathlib.Path:
    sign(Artifact(artifact_copy), own.private)
    return artifact_copy


def refusal(artifact: pathlib.Path, kind: type[Exception], *trusted: Any) -> str:
    with pytest.raises(kind) as error:
        Generator.load(artifact, threads=1, trusted_keys=trusted)
    return str(error.value)


def test_an_artifact_signed_with_a_trusted_key_loads(signed: pathlib.Path, own: Keys, other: Keys) -> None:
    for trusted in ([own.public], [str(other.public), str(own.public)]):
        Generator.load(signed, threads=1, trusted_keys=trusted).close()


def test_a_signature_is_not_needed_by_those_who_do_not_ask_for_one(artifact_copy: pathlib.Path) -> None:
    Generator.load(artifact_copy, threads=1).close()


def test_an_artifact_without_a_signature_is_refused(artifact_copy: pathlib.Path, own: Keys) -> None:
    assert refusal(artifact_copy, IntegrityError, own.public) == (
        f"{artifact_copy / SIGNATURE}: missing, the artifact is not signed; sign it with mar sign"
    )


def test_an_artifact_signed_with_an_unknown_key_is_refused(signed: pathlib.Path, other: Keys) -> None:
    assert re.fullmatch(
        r".*manifest\.sig: signed with the key \w{16}…, which is not trusted; trusted is \w{16}…",
        refusal(signed, IntegrityError, other.public),
    )


def test_a_manifest_that_was_altered_after_it_was_signed_is_refused(signed: pathlib.Path, own: Keys) -> None:
    manifest = signed / MANIFEST
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    assert refusal(signed, IntegrityError, own.public) == (
        f"{manifest}: altered since it was signed; copy the artifact again, or sign it again with mar sign"
    )


def test_a_file_that_was_altered_after_it_was_signed_is_refused(signed: pathlib.Path, own: Keys) -> None:
    engine = signed / "denoise.onnx"
    content = bytearray(engine.read_bytes())
    content[len(content) // 2] ^= 1
    engine.write_bytes(content)
    assert "denoise.onnx: altered since export" in refusal(signed, IntegrityError, own.public)


def test_a_signature_that_names_a_trusted_key_but_is_by_another_is_refused(
    signed: pathlib.Path, own: Keys, other: Keys
) -> None:
    trusted = (signed / SIGNATURE).read_text().split()[1]
    sign(Artifact(signed), other.private, force=True)
    name, _, signature = (signed / SIGNATURE).read_text().split()
    (signed / SIGNATURE).write_text(f"{name} {trusted} {signature}\n")
    assert "altered since it was signed" in refusal(signed, IntegrityError, own.public)


@pytest.mark.parametrize("content", [b"", b"\xff\0", b"mar-signature-1 00 00\n", b"x" * (1 << 20)])
def test_a_file_that_is_no_signature_is_refused(signed: pathlib.Path, own: Keys, content: bytes) -> None:
    (signed / SIGNATURE).write_bytes(content)
    assert "manifest.sig: not a signature of mar sign" in refusal(signed, IntegrityError, own.public)


def test_trusted_keys_that_are_no_list_of_files_are_refused(signed: pathlib.Path, own: Keys) -> None:
    for trusted in (own.public, str(own.public), b"key", 7):
        with pytest.raises(RequestError, match="trusted_keys must be a list of files with public keys in PEM, found "):
            Generator.load(signed, trusted_keys=trusted)  # type: ignore[arg-type]
    assert "trusted_keys is empty" in refusal(signed, RequestError)
    assert "trusted_keys must contain files" in refusal(signed, RequestError, 7)


def test_keys_of_another_kind_are_one_line(artifact_copy: pathlib.Path, own: Keys, tmp_path: pathlib.Path) -> None:
    large = keys(tmp_path, "rsa", rsa.generate_private_key(65537, 2048))
    encrypted = keys(tmp_path, "encrypted", ed25519.Ed25519PrivateKey.generate(), b"password")
    missing = tmp_path / "missing.pem"
    for key, problem in (
        (large.private, "a private key of another kind than Ed25519"),
        (encrypted.private, "the private key is encrypted; decrypt it with openssl"),
        (own.public, "not a private key in PEM"),
        (missing, "the key cannot be read (No such file or directory)"),
        (tmp_path, "the key cannot be read (Is a directory)"),
    ):
        with pytest.raises(RequestError) as error:
            sign(Artifact(artifact_copy), key)
        assert str(error.value).startswith(f"{key}: {problem}")
        assert "\n" not in str(error.value)
    assert "not a public key in PEM" in refusal(artifact_copy, RequestError, own.private)
    assert "a public key of another kind than Ed25519" in refusal(artifact_copy, RequestError, large.public)


def test_a_damaged_artifact_is_not_signed(artifact_copy: pathlib.Path, own: Keys) -> None:
    engine = artifact_copy / "denoise.onnx"
    engine.write_bytes(engine.read_bytes()[:-1] + b"\0")
    with pytest.raises(IntegrityError):
        sign(Artifact(artifact_copy), own.private)
    assert not (artifact_copy / SIGNATURE).exists()


def test_the_commands_sign_and_verify(artifact_copy: pathlib.Path, own: Keys, other: Keys, mar: Mar) -> None:
    unsigned = mar("verify", artifact_copy, "--public-key", own.public)
    assert (unsigned.code, unsigned.err.count("\n")) == (1, 1)
    assert "is not signed" in unsigned.err
    assert mar("sign", artifact_copy, "--key", own.private).code == 0
    verified = mar("verify", artifact_copy, "--public-key", other.public, "--public-key", own.public)
    assert verified.code == 0
    assert "every hash of 3 files matches" in verified.out
    assert "which is not trusted" in mar("verify", artifact_copy, "--public-key", other.public).err
    (artifact_copy / "denoise.onnx").unlink()
    assert mar("verify", artifact_copy, "--public-key", own.public).code == 1


def test_a_signature_by_another_key_is_replaced_only_by_force(
    signed: pathlib.Path, own: Keys, other: Keys, mar: Mar
) -> None:
    before = (signed / SIGNATURE).read_bytes()
    refused = mar(f"sign {signed} --key {other.private}")
    assert refused.code == 2
    assert re.search(r"manifest\.sig: signed with another key, .*; give --force to replace its signature$", refused.err)
    assert (signed / SIGNATURE).read_bytes() == before
    assert mar(f"sign {signed} --key {own.private}").code == 0  # the artifact may have changed since
    assert mar(f"sign {signed} --key {other.private} --force").code == 0
    Generator.load(signed, threads=1, trusted_keys=[other.public]).close()
    (signed / SIGNATURE).write_text("mine")
    assert "not a signature of mar sign" in mar(f"sign {signed} --key {own.private}").err
    assert (signed / SIGNATURE).read_text() == "mine"
