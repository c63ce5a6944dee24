"""Wrong files made of right ones: beyond bytes, what a format hides behind checksums and structure.

Each mutator takes the file, a source of chance, and what changes bytes; and gives another file.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any
from zlib import crc32

import onnx
import yaml

Bytes = Callable[[bytes], bytes]
Mutator = Callable[[bytes, random.Random, Bytes], bytes]

_DIGEST_BYTES = 32
_BLOCK = 4096
_HOSTILE_NUMBERS = (0, 1, -1, 2, 255, 2**31 - 1, -(2**31), 2**32, 2**53 + 1, 2**63 - 1, -(2**63))
HOSTILE: tuple[Any, ...] = (
    *_HOSTILE_NUMBERS, 2**63, 2**64, 10**30, 0.5, -0.0, 5e-324, 1e308, None, True, False,
    "", ".", "..", "../secret", "/etc/hostname", "a" * 300, "\x1b[31m", "\u202e", "\0", "x\ny",
    [], {}, [[]], [0] * 50, [2**62, 2**62], {"a": {"a": {}}}, float("nan"), float("inf"),
)  # fmt: skip


def shuffled_bytes(raw: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, cut, repeated or put in: where no fuzzer of bytes is at hand."""
    data = bytearray(raw or b"\0")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, size = rng.randrange(len(data) + 1), rng.choice((1, 1, 2, 4, 8, 30))
        choice = rng.randrange(5)
        if choice == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif choice == 1:
            del data[at : at + size]
        elif choice == 2:
            data[at:at] = data[at : at + size]
        elif choice == 3:
            data[at : at + size] = rng.randbytes(size)
        else:
            number = rng.choice(_HOSTILE_NUMBERS) & (2**64 - 1)
            data[at : at + 8] = number.to_bytes(8, "little")[: rng.choice((1, 2, 4, 8))]
    return bytes(data)


def plain(raw: bytes, rng: random.Random, change: Bytes) -> bytes:
    """Bytes alone."""
    return change(raw)


def value(tree: Any, rng: random.Random) -> Any:
    """The same tree of dicts and lists with one place in it changed, taken out, or said twice."""
    places = list(_places(tree))
    if not places:
        return rng.choice(HOSTILE)
    holder, key = rng.choice(places)
    choice = rng.randrange(6)
    if choice == 0:
        del holder[key]
    elif choice == 1:
        other, place = rng.choice(places)
        holder[key] = json.loads(json.dumps(other[place]))
    elif choice == 2 and isinstance(holder, dict):
        holder[str(rng.choice(HOSTILE))] = holder.pop(key)
    elif choice == 3 and isinstance(holder, list):
        holder.extend(json.loads(json.dumps(holder)))
    elif choice == 4 and isinstance(holder[key], int | float):
        holder[key] = holder[key] * rng.choice((-1, 2, 1000, 2**40)) + rng.choice((-1, 0, 1))
    else:
        holder[key] = rng.choice(HOSTILE)
    return tree


def _places(tree: Any) -> Any:
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in list(keys):
        yield tree, key
        yield from _places(tree[key])


def json_text(raw: bytes, rng: random.Random, change: Bytes) -> bytes:
    """A value of a JSON text, or its bytes."""
    if rng.random() < 0.3:
        return change(raw)
    try:
        return json.dumps(value(json.loads(raw), rng)).encode()
    except (ValueError, RecursionError, OverflowError):
        return change(raw)


def yaml_text(raw: bytes, rng: random.Random, change: Bytes) -> bytes:
    """A value of a YAML text, its bytes, or one of its parts by an alias."""
    if rng.random() < 0.5:
        return change(raw)
    try:
        return bytes(yaml.safe_dump(value(yaml.safe_load(raw), rng)).encode())
    except Exception:  # PyYAML raises anything
        return change(raw)


def snapshot(raw: bytes, rng: random.Random, change: Bytes) -> bytes:
    """A snapshot with another header, payload or size, mostly with a right checksum."""
    if rng.random() < 0.2 or len(raw) < 24 + _DIGEST_BYTES:
        return change(raw)
    body = raw[:-_DIGEST_BYTES]
    size = min(int.from_bytes(body[12:16], "little"), len(body))
    if rng.random() < 0.6:
        text = json_text(body[24 : 24 + size].rstrip(), rng, change)
        text = text.ljust(size) if rng.random() < 0.9 else text
        body = body[:12] + len(text).to_bytes(4, "little") + body[16:24] + text + body[24 + size :]
    elif rng.random() < 0.5:
        body = body[: 24 + size] + change(body[24 + size :])
    else:
        body = change(body[:24]) + body[24:]
    return body + hashlib.sha256(body).digest()


def account(raw: bytes, rng: random.Random, change: Bytes) -> bytes:
    """An account one of whose records says something else, mostly with a right checksum."""
    if rng.random() < 0.2 or len(raw) < _BLOCK:
        return change(raw)
    at = rng.choice((0, _BLOCK)) % len(raw)
    text = json_text(raw[at : at + _BLOCK - _DIGEST_BYTES].rstrip(b" \0"), rng, change)
    text = text[: _BLOCK - _DIGEST_BYTES].ljust(_BLOCK - _DIGEST_BYTES)
    return raw[:at] + text + hashlib.sha256(text).digest() + raw[at + _BLOCK :]


def records(raw: bytes, rng: random.Random, change: Bytes) -> bytes:
    """A record file with another record or head of a block, mostly with right checksums."""
    if len(raw) < 2 * _BLOCK:
        return change(raw)
    used = [at for at in range(0, len(raw), _BLOCK) if any(raw[at : at + _BLOCK])]
    at = rng.choice(used or [0])
    block = raw[at : at + _BLOCK]
    end = 60 if at == 0 else min(max(struct.unpack_from("<H", block, 20)[0], 32), _BLOCK)
    choice = rng.randrange(4)
    if choice == 0:
        start = 8 if at == 0 else 20  # fields of the head
        block = block[:start] + change(block[start : start + 16])[:16].ljust(16, b"\0")
        block += raw[at + len(block) : at + _BLOCK]
    elif choice == 1 and b'{"' in block:
        start = block.index(b'{"')
        stop = max(block.find(b"}", start), start) + 1
        while stop < end and block[start:stop].count(b"{") > block[start:stop].count(b"}"):
            stop += 1
        text = json_text(block[start:stop], rng, change)[: stop - start].ljust(stop - start)
        block = block[:start] + text + block[stop:]
    elif choice == 2 and len(used) > 1:
        other = rng.choice(used)  # a block in the place of another
        block = raw[other : other + _BLOCK]
    else:
        block = (block[:32] + change(block[32:end]))[:_BLOCK]
    raw = raw[:at] + block.ljust(_BLOCK, b"\0")[:_BLOCK] + raw[at + _BLOCK :]
    if rng.random() < 0.1:
        raw = raw[: rng.randrange(len(raw))]
    return raw if rng.random() < 0.1 else right_blocks(raw)


def right_blocks(raw: bytes) -> bytes:
    """A record file whose blocks name each other and have right checksums."""
    blocks = [bytearray(raw[at : at + _BLOCK]) for at in range(0, len(raw), _BLOCK)]
    if not blocks or len(blocks[-1]) < _BLOCK:
        return raw
    blocks[0][-4:] = struct.pack("<I", crc32(blocks[0][:-4]))
    before = 0
    for block in blocks[1:]:
        if any(block):
            block[16:20] = struct.pack("<I", before)
            before = crc32(block[4:])
            block[:4] = struct.pack("<I", before)
    return b"".join(blocks)


def npz(raw: bytes, rng: random.Random, change: Bytes) -> bytes:
    """An archive of other members, or with other words about them."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as file:
            members = [(info.filename, file.read(info)) for info in file.infolist()[:8]]
    except Exception:  # whatever zipfile says of a file that is none
        return change(raw)
    if not members or rng.random() < 0.3:
        return change(raw)
    at = rng.randrange(len(members))
    name, content = members[at]
    choice = rng.randrange(5)
    if choice == 0:
        parts = ("input", "label", "output", "gate", "state", "trail", "start", "prologue", "meta")
        members[at] = (f"{rng.choice(parts)}.{rng.choice(('x', 'y', 'rate_hz', ''))}.npy", content)
    elif choice == 1:
        members[at] = (name, npy(content, rng, change))
    elif choice == 2:
        members.append((name if rng.random() < 0.2 else f"{name[:-4]}2.npy", content))
    elif choice == 3:
        members[at] = (name, content + bytes(rng.choice((1, 100, 100_000))))
    else:
        members[at] = (name, change(content))
    file_out = io.BytesIO()
    with zipfile.ZipFile(file_out, "w") as out:
        for name, content in members:
            kind = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
            out.writestr(zipfile.ZipInfo(name), content, kind)
    return file_out.getvalue()


def npy(raw: bytes, rng: random.Random, change: Bytes) -> bytes:
    """An array whose header promises something else."""
    if rng.random() < 0.3 or not raw.startswith(b"\x93NUMPY"):
        return change(raw)
    kinds = ("<f4", ">f8", "|b1", "<U9", "|O", "|V0", "<f2", "<c16", "<M8[ns]", "<i8", "|S0")
    shapes = ("(3, 1, 2)", "()", "(0,)", "(2, 3)", "(-1,)", f"({2**62}, 4)", f"({2**63},)")
    order = rng.choice(("False", "True"))
    text = f"{{'descr': '{rng.choice(kinds)}', 'fortran_order': {order}, "
    text += f"'shape': {rng.choice(shapes)}, }}"
    header = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + raw[128:]


def wav(raw: bytes, rng: random.Random, change: Bytes) -> bytes:
    """Sound whose header says something else, mostly still a header."""
    if rng.random() < 0.4 or len(raw) < 44:
        return change(raw)
    data = bytearray(raw)
    at, form = rng.choice(((20, "<H"), (22, "<H"), (24, "<I"), (34, "<H"), (16, "<I"), (40, "<I")))
    most = 1 << 8 * struct.calcsize(form)
    number = rng.choice((0, 1, 2, 3, 8, 24, 32, len(raw), 2**31, -1)) % most
    struct.pack_into(form, data, at, number)
    return bytes(data)


def safetensors(raw: bytes, rng: random.Random, change: Bytes) -> bytes:
    """Tensors whose header says something else, and is as long as it says."""
    size = int.from_bytes(raw[:8], "little")
    if rng.random() < 0.2 or size > len(raw) - 8:
        return change(raw)
    text = json_text(raw[8 : 8 + size].rstrip(), rng, change)
    return len(text).to_bytes(8, "little") + text + raw[8 + size :]


def proto(raw: bytes, rng: random.Random, change: Bytes) -> bytes:
    """A graph of ONNX one of whose fields says something else."""
    if rng.random() < 0.1:
        return change(raw)
    try:
        model = onnx.load_model_from_string(raw)
    except Exception:  # whatever protobuf says
        return change(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _change_field(rng.choice(list(_messages(model))), rng)
    return bytes(model.SerializeToString())


def _messages(message: Any) -> Any:
    yield message
    for field, content in message.ListFields():
        if field.message_type is not None:
            for inner in content if field.is_repeated else [content]:
                yield from _messages(inner)


def _change_field(message: Any, rng: random.Random) -> None:
    field = rng.choice(list(message.DESCRIPTOR.fields))
    content = getattr(message, field.name)
    if field.message_type is not None:
        if not field.is_repeated:
            if rng.random() < 0.5:
                content.SetInParent()
            else:
                message.ClearField(field.name)
        elif content and rng.random() < 0.5:
            del content[rng.randrange(len(content))]
        elif content:
            content.add().CopyFrom(rng.choice(list(content)))
        else:
            content.add()
        return
    texts: tuple[str, ...] = (
        "",
        "x",
        "h",
        "../secret",
        "/etc/hostname",
        "Loop",
        "If",
        "Scan",
        "a" * 300,
        "\x1b[2J",
    )
    texts += ("location", "graph.onnx", "MatMul", "Reshape", "Expand", "length", "99999999999")
    kinds: dict[int, Callable[[], Any]] = {
        field.TYPE_STRING: lambda: rng.choice(texts),
        field.TYPE_BYTES: lambda: rng.randbytes(rng.choice((0, 1, 8, 100))),
        field.TYPE_FLOAT: lambda: rng.choice((0.0, 1.0, -1.0, 1e38, float("nan"), float("inf"))),
        field.TYPE_DOUBLE: lambda: rng.choice((0.0, 1e308, float("nan"))),
    }
    number = rng.choice(_HOSTILE_NUMBERS)
    chosen = kinds.get(field.type, lambda: number)()
    try:
        if not field.is_repeated:
            setattr(message, field.name, chosen)
        elif content and rng.random() < 0.6:
            content[rng.randrange(len(content))] = chosen
        else:
            content.append(chosen)
    except ValueError:  # a number that the field is too small for, or no name of the enumeration
        message.ClearField(field.name)
