"""Damage to valid files: in their bytes, or in their structure so that the rest stays valid."""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import onnx
import yaml
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]
Spoil = Callable[[Draw, bytes], bytes]
"""Damages the structure of a valid file."""

EXTREMES: tuple[Any, ...] = (
    *(None, True, "", "\0", "\x1b[2J", "\ud800", "../../etc/passwd", "x" * 100_000, [], {}, [[]]),
    *(0, -1, 2, 2**31, 2**63, 10**400, 1e308, -0.0, 1e-320, float("nan"), float("inf")),
)
TOKENS = (
    *(b"\0", b"\xff", b"\n", b"\r\n", b"\xef\xbb\xbf", b'"', b"{", b"}", b":", b"-1", b"1e999"),
    *(b"[" * 50_000, b"9" * 5_000, b"&a [*a]", b"!!python/name:os.system", b"%s", b"\xed\xa0\x80"),
)
INTEGERS = (0, -1, 1, 2, 7, 255, 2**31 - 1, 2**32, 2**62, 2**63 - 1, -(2**63))


@dataclass(frozen=True)
class File:
    """The content of a file, which is not printed, by hypothesis neither."""

    content: bytes = field(repr=False)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(f"File of {len(self.content)} bytes")


def files(content: bytes, spoil: Spoil) -> st.SearchStrategy[File]:
    """Files that come from a valid one by up to three changes of each kind."""

    @st.composite
    def damaged(draw: Draw) -> File:
        result = content
        in_structure = draw(st.integers(0, 3))
        for _ in range(in_structure):
            result = spoil(draw, result)
        for _ in range(draw(st.integers(0 if in_structure else 1, 3))):
            result = spoil_bytes(draw, result)
        return File(result)

    return damaged()


def spoil_bytes(draw: Draw, content: bytes) -> bytes:
    """Flip a bit; cut, remove or double a part; or put something in."""
    kind = draw(st.sampled_from(("flip", "cut", "remove", "double", "insert", "replace")))
    start = draw(st.integers(0, max(len(content) - 1, 0)))
    end = start + draw(st.integers(1, 64))
    if kind == "flip":
        flipped = bytes([content[start] ^ 1 << draw(st.integers(0, 7))]) if content else b""
        return content[:start] + flipped + content[start + 1 :]
    changes: dict[str, Callable[[], bytes | None]] = {
        "cut": lambda: None,
        "remove": lambda: b"",
        "double": lambda: 2 * content[start:end],
        "insert": lambda: draw(st.sampled_from(TOKENS)) + content[start:end],
        "replace": lambda: draw(st.binary(max_size=64)),
    }
    middle = changes[kind]()
    return content[:start] if middle is None else content[:start] + middle + content[end:]


def spoil_json(draw: Draw, content: bytes) -> bytes:
    """Change a value, a key, or the order of a JSON file."""
    document = json.loads(content)
    return json.dumps(spoil_document(draw, document)).encode()


def spoil_yaml(draw: Draw, content: bytes) -> bytes:
    """Change a value, a key, or the order of a YAML file."""
    document = spoil_document(draw, yaml.safe_load(content))
    return yaml.safe_dump(document, sort_keys=False).encode("utf-8", "surrogatepass")


def spoil_lines(draw: Draw, content: bytes) -> bytes:
    """Remove or double a line, or change the JSON object in it."""
    lines = content.splitlines(keepends=True)
    if not lines:
        return content
    index = draw(st.integers(0, len(lines) - 1))
    changes: dict[str, Callable[[], list[bytes]]] = {
        "remove": list,
        "double": lambda: 2 * [lines[index]],
        "change": lambda: [spoil_json(draw, lines[index]) + b"\n"],
    }
    new = changes[draw(st.sampled_from(("remove", "double", "change")))]()
    return b"".join([*lines[:index], *new, *lines[index + 1 :]])


def spoil_document(draw: Draw, document: Any) -> Any:
    """Change one place of plain data."""
    places = list(_places(document))
    if not places:
        return draw(st.sampled_from(EXTREMES))
    owner, key = draw(st.sampled_from(places))
    kind = draw(st.sampled_from(("drop", "rename", "replace", "nest", "move", "double")))
    value = owner[key]
    if kind == "drop":
        del owner[key]
    elif kind == "nest":
        for _ in range(draw(st.sampled_from((1, 2, 100)))):
            value = [value]
        owner[key] = value
    elif kind == "move":
        other, name = draw(st.sampled_from(places))
        owner[key], other[name] = json.loads(json.dumps(other[name])), value
    elif kind == "rename" and isinstance(owner, dict):
        owner[draw(st.sampled_from((key + "s", key.upper(), "", "\ud800", "name")))] = value
        owner.pop(key, None)
    elif kind == "double" and isinstance(owner, list):
        owner.insert(key, value)
    else:
        owner[key] = draw(st.sampled_from(EXTREMES))
    return json.loads(json.dumps(document))


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    if not isinstance(document, dict | list):
        return
    for key in document if isinstance(document, dict) else range(len(document)):
        yield document, key
        yield from _places(document[key])


def spoil_zip(draw: Draw, content: bytes) -> bytes:
    """Damage the content of a member, whose checksum is then right; or rename, drop, double it."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    index = draw(st.integers(0, len(members) - 1))
    name, inner = members[index]
    kind = draw(st.sampled_from(("content", "content", "content", "rename", "drop", "double")))
    if kind == "content":
        members[index] = (name, spoil_bytes(draw, inner))
    elif kind == "rename":
        others = [other for other, _ in members] + ["../out.png", "/etc/out.png", "a/\ud800.png"]
        members[index] = (draw(st.sampled_from(others)), inner)
    elif kind == "drop" and len(members) > 1:
        del members[index]
    else:
        members.append((name + "x", inner))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, inner in dict(members).items():
            archive.writestr(name.encode("utf-8", "replace").decode(), inner)
    return file.getvalue()


def spoil_png(draw: Draw, content: bytes) -> bytes:
    """Damage a chunk of a PNG file, whose checksum is then right; or give it another size."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    index = draw(st.integers(0, len(chunks) - 1))
    kind, data = chunks[index]
    if kind == b"IHDR" and draw(st.booleans()):
        size = st.sampled_from((0, 1, 33, 20_000, 2**31 - 1))
        data = struct.pack(">II", draw(size), draw(size)) + data[8:]
    elif kind == b"IDAT" and draw(st.booleans()):
        with suppress(zlib.error):  # damaged already
            data = zlib.decompress(data)
        data = zlib.compress(spoil_bytes(draw, data))
    else:
        data = spoil_bytes(draw, data)
    chunks[index] = (kind, data)
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return content[:8] + b"".join(parts)


def spoil_safetensors(draw: Draw, content: bytes) -> bytes:
    """Change the header of a safetensors file."""
    (length,) = struct.unpack_from("<Q", content)
    header = spoil_json(draw, content[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def spoil_onnx(draw: Draw, content: bytes) -> bytes:
    """Change one field of a message in an ONNX file."""
    model = onnx.load_model_from_string(content)
    message, field = draw(st.sampled_from(list(_fields(model))))
    if field.is_repeated:
        values = getattr(message, field.name)
        index = draw(st.integers(0, len(values) - 1))
        kind = draw(st.sampled_from(("drop", "double", "change")))
        if kind == "drop" or (kind == "change" and field.message_type):
            del values[index]
        elif kind == "double":
            values.extend([values[index]])
        else:
            values[index] = _other(draw, field, values[index])
    elif field.message_type:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _other(draw, field, getattr(message, field.name)))
    serialised: bytes = model.SerializeToString()
    return serialised


def _fields(message: Any) -> Iterator[tuple[Any, Any]]:
    for described, value in message.ListFields():
        yield message, described
        if described.message_type:
            for inner in value if described.is_repeated else (value,):
                yield from _fields(inner)


def _other(draw: Draw, field: Any, old: Any) -> Any:
    """Another value of a field's type."""
    if isinstance(old, bytes):
        return spoil_bytes(draw, old)
    if isinstance(old, str):
        return draw(
            st.sampled_from(("", "x", "images", "logits", "Add", "Loop", "\0", "x" * 9999))
        )
    if isinstance(old, float):
        return draw(st.sampled_from((0.0, -1.0, 1e38, float("nan"))))
    if field.enum_type:
        return draw(st.sampled_from(sorted(field.enum_type.values_by_number)))
    small = field.cpp_type != field.CPPTYPE_INT64
    return draw(st.sampled_from([n for n in INTEGERS if not small or 0 <= n < 2**31]))


def spoil_nothing(draw: Draw, content: bytes) -> bytes:
    """For formats whose structure is not changed on purpose."""
    return content
