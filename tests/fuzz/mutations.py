"""Random changes of a file's content: of its bytes, and of the structure of JSON, TOML, zip and safetensors files.

Every change is decided by the `random.Random` that it gets, so that a seed names it.
"""

from __future__ import annotations

import io
import json
import random
import warnings
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

Change = Callable[[random.Random, bytes], bytes]

_MOST_BYTES = 1 << 22  # of a changed file
_DEEP = 100_000
_PNG = b"\x89PNG\r\n\x1a\n"

WEIRD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e308, 1e-320,
    float("nan"), float("inf"), "", "0", "a", "\n", "a\nb", "\0", "\ud800", "é" * 100, "x" * 5000, "../a",
    "%s%n{0}", [], {}, [[]], [None], [0] * 1000, {"": 0}, {"a": {"b": {}}}, ["a", 1, None], [1e308, -1e308],
)  # fmt: skip
"""JSON values that do not belong where they are put."""

_WEIRD_TEXTS = (
    b"1" * 5000, b"-" + b"9" * 400, b"1e999", b"NaN", b"Infinity", b"nul", b'"', b"[" * _DEEP, b'{"a":' * _DEEP,
    b"\xff\xfe", b"\xef\xbb\xbf", b"\0", b"true", b"[]", b"{}", b'""', b"0x7f", b"1_000", b"1979-05-27", b"''''''",
    b"[[a]]", b"a.b.c = 1", b"a = {b = 1, b = 2}", b"\r", b"\n" * 3, b"#", b"inf", b"-nan", b"0" * 300,
)  # fmt: skip


_TOML_VALUES = (
    b"0", b"-1", b"1", b"3", b"2", b"1.5", b"0.5", b"1e400", b"inf", b"nan", b"9223372036854775807", b"9" * 30,
    b"9" * 5000, b"0x10", b"1_0", b"true", b"'a'", b"''", b"'pixel_small'", b"'mar_base'", b"'bf16'", b"'fp32'",
    b'"\\u0000"', b'"\\n"', b"[]", b"[1]", b"{}", b"{name = 'pixel_small'}", b"{a = 1}", b"1979-05-27",
    b"07:32:00", b"'" + b"x" * 5000 + b"'", b"[" * 500 + b"]" * 500, b"'../..'",
)  # fmt: skip


def change(random_: random.Random, name: str, content: bytes) -> bytes:
    """Return a file's content after one to three random changes. The suffix of its name tells its structure."""
    structured = _STRUCTURED.get(name[name.rfind(".") :], random_.choice(_OF_BYTES))
    for _ in range(random_.choice((1, 1, 1, 2, 3))):
        kind = structured if random_.random() < 0.6 else random_.choice(_OF_BYTES)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # zipfile warns about names that are there twice
                content = kind(random_, content)
        except Exception:  # an earlier change broke the structure, and every parser fails in its own way
            content = random_.choice(_OF_BYTES)(random_, content)
    return content[:_MOST_BYTES]


def _flip(random_: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(random_.choice((1, 1, 2, 8, 64))):
        if changed:
            # Headers are short, and most of a file is numbers: half of the changes are near an end.
            near = min(len(changed), 512)
            place = random_.choice((random_.randrange(len(changed)), random_.randrange(near), -random_.randrange(near)))
            changed[place] ^= 1 << random_.randrange(8)
    return bytes(changed)


def _cut(random_: random.Random, content: bytes) -> bytes:
    start, end = sorted((random_.randint(0, len(content)), random_.randint(0, len(content))))
    return random_.choice((content[:start], content[end:], content[:start] + content[end:]))


def _insert(random_: random.Random, content: bytes) -> bytes:
    place = random_.randint(0, len(content))
    new = random_.choice((random_.randbytes(random_.choice((1, 4, 100))), random_.choice(_WEIRD_TEXTS)))
    return content[:place] + new + content[place:]


def _splice(random_: random.Random, content: bytes) -> bytes:
    """Copy a part of the content over another one."""
    size = random_.randint(0, min(len(content), 4096))
    source, target = (random_.randint(0, len(content) - size) for _ in range(2))
    return content[:target] + content[source : source + size] + content[target + size :]


def _overwrite(random_: random.Random, content: bytes) -> bytes:
    size = min(len(content), random_.choice((1, 2, 4, 8, 64)))
    place = random_.randint(0, len(content) - size)
    return content[:place] + random_.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * size + content[place + size :]


_OF_BYTES: tuple[Change, ...] = (_flip, _flip, _cut, _insert, _splice, _overwrite)


def _json(random_: random.Random, content: bytes) -> bytes:
    """Replace, remove, rename or repeat a value of a JSON text."""
    value = [json.loads(content)]
    places = list(_places(value))
    holder, key = random_.choice(places)
    action = random_.randrange(5)
    if action <= 2:
        holder[key] = random_.choice((random_.choice(WEIRD_VALUES), _other_value(random_, places)))
    elif action == 3 and holder is not value:
        del holder[key]
    elif isinstance(holder, dict):
        holder[random_.choice(("", "a", "x" * 300, key.upper(), f"{key}\n"))] = holder.pop(key)
    else:
        holder.append(holder[key])
    if not value:
        return b""
    text = json.dumps(value[0])
    if random_.random() < 0.1:  # a key twice
        text = text.replace("{", '{"a": 1, "a": 2, ', 1)
    return text.encode()


def _other_value(random_: random.Random, places: list[tuple[Any, Any]]) -> Any:
    holder, key = random_.choice(places)
    return json.loads(json.dumps(holder[key]))


def _places(value: Any) -> list[tuple[Any, Any]]:
    """The places of all values in a parsed JSON text: an object or list, and the key there."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in ((value, key), *_places(value[key]))]


def _json_lines(random_: random.Random, content: bytes) -> bytes:
    lines = content.split(b"\n")
    number = random_.randrange(len(lines))
    action = random_.randrange(4)
    if action == 0:
        lines.insert(number, random_.choice((lines[number], b"", random_.choice(_WEIRD_TEXTS))))
    elif action == 1:
        del lines[number]
    else:
        lines[number] = _json(random_, lines[number])
    return b"\n".join(lines)


def _texts(random_: random.Random, content: bytes) -> bytes:
    """Replace what stands after a sign, or a word, by another text."""
    place = random_.randint(0, len(content))
    for sign in random_.sample((b"=", b":", b"\n", b",", b" "), 5):
        found = content.find(sign, place)
        if found >= 0:
            end = content.find(b"\n", found + 1)
            new = random_.choice((*_WEIRD_TEXTS, json.dumps(random_.choice(WEIRD_VALUES)).encode()))
            return content[: found + 1] + new + (content[end:] if end >= 0 else b"")
    return content + random_.choice(_WEIRD_TEXTS)


def _toml(random_: random.Random, content: bytes) -> bytes:
    """Replace or repeat a line of a TOML text; the result is mostly TOML."""
    lines = content.split(b"\n")
    number = random_.choice([number for number, line in enumerate(lines) if line])
    key = lines[number].partition(b"=")[0].strip()
    action = random_.randrange(8)
    if action == 0:
        lines.insert(number, random_.choice(lines))
    elif action == 1:
        del lines[number]
    elif action == 2:
        lines[number] = b"a" + lines[number]
    elif lines[number].startswith(b"["):
        lines[number] = random_.choice((b"[a]", b"[model.name]", b"[[model]]", b"[training.a]", b""))
    else:
        lines[number] = key + b" = " + random_.choice(_TOML_VALUES)
    return b"\n".join(lines)


def _zip(random_: random.Random, content: bytes) -> bytes:
    """Write an archive again, with one member changed; its checksums are right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(member, archive.read(member)) for member in archive.infolist()]
    number = random_.randrange(len(members))
    (member, data), other = members[number], random_.randrange(len(members))
    compression = member.compress_type
    action = random_.randrange(6)
    if action <= 1:
        data = random_.choice(_OF_BYTES)(random_, data)
    elif action == 2:
        data = members[other][1]
    elif action == 3:
        compression = random_.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    elif action == 4:
        member.filename = random_.choice((members[other][0].filename, "a", "../a.npy", "", member.filename.upper()))
    changed = io.BytesIO()
    with zipfile.ZipFile(changed, "w") as archive:
        for index, (each, bytes_) in enumerate(members):
            if index != number:
                archive.writestr(each.filename, bytes_, each.compress_type)
            elif action != 5:
                archive.writestr(member.filename, data, compression)
    return changed.getvalue()


def _safetensors(random_: random.Random, content: bytes) -> bytes:
    """Change the header of a file of tensors, or exchange the places of two tensors."""
    size = int.from_bytes(content[:8], "little")
    header, body = content[8 : 8 + size], content[8 + size :]
    if random_.random() < 0.7:
        header = _json(random_, header)
    else:
        value = json.loads(header)
        one, other = (random_.choice([name for name in value if name != "__metadata__"]) for _ in range(2))
        field = random_.choice(("data_offsets", "shape", "dtype"))
        value[one][field], value[other][field] = value[other][field], value[one][field]
        header = json.dumps(value).encode()
    length = len(header) if random_.random() < 0.9 else random_.choice((0, 2**63, 2**64 - 1, len(content)))
    return length.to_bytes(8, "little") + header + body


def _png(random_: random.Random, content: bytes) -> bytes:
    """Change, repeat, remove or move a chunk of a PNG; its checksums are right, and its pixels are compressed again."""
    chunks, place = list[tuple[bytes, bytes]](), len(_PNG)
    while place < len(content):
        size = int.from_bytes(content[place : place + 4], "big")
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + size]))
        place += 12 + size
    number = random_.randrange(len(chunks))
    kind, data = chunks[number]
    action = random_.randrange(6)
    if action <= 1:
        data = random_.choice(_OF_BYTES)(random_, data)
    elif action == 2 and kind == b"IDAT":
        data = zlib.compress(random_.choice(_OF_BYTES)(random_, zlib.decompress(data)))
    elif action == 3:
        kind = random_.choice((b"tRNS", b"PLTE", b"iCCP", b"gAMA", b"eXIf", b"acTL", b"fdAT", b"iTXt", chunks[0][0]))
    chunks[number] = kind, data
    if action == 4:
        chunks.insert(random_.randrange(len(chunks)), chunks[number])
    elif action == 5:
        del chunks[number]
    return _PNG + b"".join(
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big") for kind, data in chunks
    )


_STRUCTURED: dict[str, Change] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".toml": _toml,
    ".npz": _zip,
    ".pth": _zip,
    ".safetensors": _safetensors,
    ".png": _png,
    ".pem": _texts,
    ".sig": _texts,
}
