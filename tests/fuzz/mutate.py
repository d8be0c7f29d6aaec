"""Turn valid files into damaged and hostile ones, each by a seeded random generator."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

INTEGERS = (
    0,
    1,
    2,
    -1,
    -2,
    127,
    128,
    255,
    256,
    32767,
    32768,
    65535,
    65536,
    10**6,
    2**31 - 1,
    2**31,
    2**32 - 1,
)
LONG_INTEGERS = (-(2**31), 2**53, 2**63 - 1, 2**63, 2**64 - 1, 10**30, -(10**400), 10**400)
FLOATS = (0.5, -0.0, 1e-320, 1e9, 1e308, -1e308, float("nan"), float("inf"), float("-inf"))
TEXTS = (
    "",
    " ",
    "0",
    "-1",
    "nan",
    "no",
    "true",
    "\ud800",
    "a\udfffb",
    "\x00",
    "a\x00b",
    "\x1b]0;title\x07\x1b[31mred",
    "line\nline",
    "\r",
    "\x85\u2028\u202e",
    "[/]",
    "[bold]",
    "%s{0}%n",
    "x" * 5000,
    "../" * 20 + "etc/passwd",
    "/dev/zero",
    "/dev/stdin",
    "/proc/self/mem",
    "http://127.0.0.1:1/x",
    "é" * 200,
    "\U0001f600",
    ".",
    "..",
    "/",
    "*",
    "~",
    "a/b",
    "a\\b",
    "CON",
    "9" * 400,
    "1e999",
    "__class__",
)


def nested(levels: int, inner: Any = 1) -> Any:
    """A value inside this many lists."""
    for _ in range(levels):
        inner = [inner]
    return inner


def nasty(random: Random) -> Any:
    """A value that few readers expect."""
    kind = random.randrange(9)
    if kind == 0:
        return random.choice(INTEGERS)
    if kind == 1:
        return random.choice(LONG_INTEGERS)
    if kind == 2:
        return random.choice(FLOATS)
    if kind in (3, 4):
        return random.choice(TEXTS)
    if kind == 5:
        return random.choice((None, True, False))
    if kind == 6:
        return nested(random.choice((1, 2, 3, 40, 200)), random.choice((1, "x", None, {})))
    if kind == 7:
        return random.choice(([], {}, [[]], [{}], {"": 0}, {"a": {"a": {"a": 1}}}))
    return [random.choice((*INTEGERS, *FLOATS)) for _ in range(random.choice((1, 2, 3, 4, 5, 6, 300)))]


# Bytes


def mutate_bytes(data: bytes, random: Random, other: bytes = b"") -> bytes:
    """Change some bytes; `other` is another valid file, of which pieces may be taken."""
    result = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        random.choice(_BYTES)(result, random, other)
    return bytes(result)


def _position(data: bytearray, random: Random) -> int:
    """A place, more often near the start, where headers are."""
    if not data:
        return 0
    return random.randrange(min(len(data), random.choice((16, 64, 512, len(data)))))


def _flip(data: bytearray, random: Random, other: bytes) -> None:
    if data:
        data[_position(data, random)] ^= 1 << random.randrange(8)


def _replace(data: bytearray, random: Random, other: bytes) -> None:
    if data:
        data[_position(data, random)] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))


def _insert(data: bytearray, random: Random, other: bytes) -> None:
    at = _position(data, random)
    data[at:at] = random.randbytes(random.choice((1, 2, 4, 64)))


def _delete(data: bytearray, random: Random, other: bytes) -> None:
    at = _position(data, random)
    del data[at : at + random.choice((1, 2, 4, 64, 1024))]


def _truncate(data: bytearray, random: Random, other: bytes) -> None:
    del data[random.randrange(len(data) + 1) :]


def _duplicate(data: bytearray, random: Random, other: bytes) -> None:
    start = _position(data, random)
    piece = data[start : start + random.choice((1, 8, 64, 1024))]
    data[start:start] = piece * random.choice((1, 2, 16))


def _splice(data: bytearray, random: Random, other: bytes) -> None:
    if other:
        start, at = random.randrange(len(other)), _position(data, random)
        piece = other[start : start + random.choice((4, 64, 4096))]
        data[at : at + random.choice((0, len(piece)))] = piece


def _integer(data: bytearray, random: Random, other: bytes) -> None:
    """Write a number of interest at an aligned offset, in either order of bytes."""
    size = random.choice((1, 2, 4, 8))
    at = _position(data, random) // size * size
    value = random.choice((*INTEGERS, *LONG_INTEGERS[:5])) % (1 << 8 * size)
    if at + size <= len(data):
        data[at : at + size] = value.to_bytes(size, random.choice(("little", "big")))


def _tail(data: bytearray, random: Random, other: bytes) -> None:
    """Add bytes at the end."""
    data += random.choice((b"\0", b"\n", random.randbytes(100), bytes(data[-100:])))


_BYTES: tuple[Callable[[bytearray, Random, bytes], None], ...] = (
    _flip,
    _replace,
    _insert,
    _delete,
    _truncate,
    _duplicate,
    _splice,
    _integer,
    _integer,
    _tail,
)


# JSON, YAML and other trees of values


def mutate_value(value: Any, random: Random) -> Any:
    """A copy of a tree of dicts and lists with one to three places changed."""
    value = json.loads(json.dumps(value))
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        value = _change(value, random)
    return value


def _change(root: Any, random: Random) -> Any:
    """Change one place of the tree in place; a place is taken at random on each level."""
    places: list[tuple[Any, Any]] = []
    node = root
    while isinstance(node, (dict, list)) and node:
        key = random.choice(list(node)) if isinstance(node, dict) else random.randrange(len(node))
        places.append((node, key))
        node = node[key]
    if not places or random.random() < 0.02:
        return nasty(random)
    parent, key = random.choice((*places, places[-1]))
    kind = random.randrange(10)
    if kind == 0:
        del parent[key]
    elif kind == 1 and isinstance(parent, list):
        parent[key:key] = [parent[key]] * random.choice((1, 2, 50))
    elif kind == 1:
        parent[random.choice(TEXTS)] = parent[key]
    elif kind == 2 and isinstance(parent[key], list):
        parent[key] = parent[key] * random.choice((2, 3, 1000))
    elif kind == 3 and isinstance(parent[key], (int, float)):
        factor = random.choice((-1, 0.5, 1.0000001, 1000, 10**9))
        parent[key] = parent[key] * factor if abs(parent[key]) < 1e300 else nasty(random)
    elif kind == 4:
        other = random.choice(places)
        parent[key] = json.loads(json.dumps(other[0][other[1]])) if other[1] in _keys(other[0]) else None
    elif kind == 5:
        parent[key] = str(parent[key])
    elif kind == 6 and isinstance(parent, dict):
        parent[random.choice(TEXTS)] = parent.pop(key)
    else:
        parent[key] = nasty(random)
    return root


def _keys(node: Any) -> Any:
    return node if isinstance(node, dict) else range(len(node))


def dump_json(value: Any) -> bytes:
    """JSON as Python writes it: NaN, Infinity and lone surrogates as escapes; no limit on digits."""
    import sys

    before = sys.get_int_max_str_digits() if hasattr(sys, "get_int_max_str_digits") else 0
    try:
        if before:
            sys.set_int_max_str_digits(0)
        return json.dumps(value).encode()
    finally:
        if before:
            sys.set_int_max_str_digits(before)


def mutate_json(data: bytes, random: Random, other: bytes = b"") -> bytes:
    """Change values of a JSON text; now and then its bytes, or wrap it in an encoding or in lists."""
    kind = random.randrange(12)
    if kind == 0:
        return mutate_bytes(data, random, other)
    text = dump_json(mutate_value(json.loads(data), random))
    if kind == 1:
        return text.decode().encode(random.choice(("utf-16", "utf-32", "utf-8-sig", "utf-16-le")))
    if kind == 2:
        levels = random.choice((63, 70, 2000, 50_000))
        return b"[" * levels + text + b"]" * levels
    return text


def mutate_jsonl(data: bytes, random: Random, other: bytes = b"") -> bytes:
    """Change one line of a JSON Lines file, or the lines as a whole."""
    lines = data.splitlines(keepends=True)
    at = random.randrange(len(lines))
    kind = random.randrange(6)
    if kind == 0:
        return mutate_bytes(data, random, other)
    if kind == 1:
        lines[at : at + 1] = [lines[at]] * random.choice((0, 2, 100))
    elif kind == 2:
        lines[at] = lines[at].rstrip(b"\n")
    else:
        lines[at] = dump_json(mutate_value(json.loads(lines[at]), random)) + b"\n"
    return b"".join(lines)


def mutate_yaml(data: bytes, random: Random, other: bytes = b"") -> bytes:
    """Change values of a YAML text; now and then its bytes, its aliases or its tags."""
    import yaml

    kind = random.randrange(8)
    if kind == 0:
        return mutate_bytes(data, random, other)
    if kind == 1:
        return data + random.choice(_YAML)
    if kind == 2:
        lines = data.splitlines(keepends=True)
        at = random.randrange(len(lines))
        head, _, _ = lines[at].partition(b":")
        lines[at] = head + b": " + random.choice(_YAML) + b"\n"
        return b"".join(lines)
    return dump_json(mutate_value(yaml.safe_load(data), random))  # JSON is YAML


_YAML = (
    b"&a [*a]",
    b"&a {x: *a}",
    b"*missing",
    b"!!python/object/apply:os.system [id]",
    b"!!binary x",
    b"!!timestamp 99999-99-99",
    b"!!float .inf",
    b"0x" + b"f" * 5000,
    b"1:2:3:4:5:6:7:8:9",
    b"<<: [1]",
    b"? [a, b]\n: 1",
    b"[" * 3000,
    b"{a: " * 100,
    b"|\n  a\n b",
    b"\n---\na: 1\n",
    b"\t- x",
    b"'\\uD800'",
    b'"\\uD800"',
    b"[&b0 [x,x,x,x,x,x,x,x,x]"
    + b"".join(b",&b%d [%s]" % (i, b",".join([b"*b%d" % (i - 1)] * 9)) for i in range(1, 9))
    + b"]",
)


def mutate_lines(data: bytes, random: Random, other: bytes = b"") -> bytes:
    """Change a word of a text of lines and words, such as YOLO's labels."""
    if random.randrange(4) == 0:
        return mutate_bytes(data, random, other)
    lines = [line.split(b" ") for line in data.split(b"\n")]
    words = random.choice(lines)
    at = random.randrange(len(words))
    kind = random.randrange(6)
    if kind == 0:
        del words[at]
    elif kind == 1:
        words[at:at] = [words[at]] * random.choice((1, 2, 2001))
    elif kind == 2:
        lines[lines.index(words) : 0] = [words] * random.choice((1, 1000))
    else:
        value = nasty(random)
        text = value if isinstance(value, str) else dump_json(value).decode()
        words[at] = text.encode(errors=random.choice(("replace", "surrogatepass")))
    return b"\n".join(b" ".join(words) for words in lines)


def mutate_xml(data: bytes, random: Random, other: bytes = b"") -> bytes:
    """Change a value of an attribute, a tag or the text of an XML file, or its bytes."""
    import re

    if random.randrange(4) == 0:
        return mutate_bytes(data, random, other)
    found = list(re.finditer(rb'"[^"]*"|<[^>]*>|\d+', data))
    match = random.choice(found)
    kind = random.randrange(4)
    piece = match[0]
    if kind == 0:
        piece = b""
    elif kind == 1:
        piece = piece * random.choice((2, 3, 500))
    elif kind == 2:
        piece = random.choice(found)[0]
    else:
        value = nasty(random)
        text = (value if isinstance(value, str) else dump_json(value).decode()).encode(errors="replace")
        piece = b'"' + text + b'"' if piece.startswith(b'"') else text
    return data[: match.start()] + piece + data[match.end() :]


# Containers whose checksums are repaired, so that a change gets past them


def mutate_png(data: bytes, random: Random, other: bytes = b"") -> bytes:
    """Change, move or repeat chunks of a PNG file and repair their checksums."""
    chunks = _png_chunks(data)
    if not chunks or random.randrange(4) == 0:
        return mutate_bytes(data, random, other)
    at = random.randrange(len(chunks))
    kind, content = chunks[at]
    action = random.randrange(8)
    if action == 0:
        del chunks[at]
    elif action == 1:
        chunks[at:at] = [chunks[at]] * random.choice((1, 2, 100))
    elif action == 2:
        random.shuffle(chunks)
    elif action == 3 and kind == b"IDAT":
        try:
            chunks[at] = kind, zlib.compress(mutate_bytes(zlib.decompress(content), random))
        except zlib.error:
            chunks[at] = kind, mutate_bytes(content, random)
    elif action == 4:
        width, height = (random.choice((0, 1, 7, 1000, 15800, 65535, 2**31 - 1, 2**32 - 1)) for _ in "wh")
        depth, colour = random.choice((1, 2, 4, 8, 16, 3)), random.choice((0, 2, 3, 4, 6, 1))
        chunks[0] = (
            b"IHDR",
            struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, random.choice((0, 1))),
        )
    elif action == 5:
        name = random.choice(
            (b"acTL", b"fcTL", b"fdAT", b"iCCP", b"zTXt", b"eXIf", b"tRNS", b"PLTE", b"gAMA")
        )
        chunks[at:at] = [(name, random.randbytes(random.choice((0, 4, 8, 26, 300))))]
    else:
        chunks[at] = kind, mutate_bytes(content, random)
    return data[:8] + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], 8
    while data.startswith(b"\x89PNG") and at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return chunks


def mutate_jpeg(data: bytes, random: Random, other: bytes = b"") -> bytes:
    """Change, move or repeat segments of a JPEG file and repair their lengths."""
    segments, at = [], 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda" and at + 4 <= len(data):
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        segments.append((data[at + 1], data[at + 4 : at + 2 + size]))
        at += 2 + size
    if not segments or random.randrange(4) == 0:
        return mutate_bytes(data, random, other)
    rest = data[at:]
    index = random.randrange(len(segments))
    marker, content = segments[index]
    action = random.randrange(6)
    if action == 0:
        del segments[index]
    elif action == 1:
        segments[index:index] = [segments[index]] * random.choice((1, 50))
    elif action == 2:
        random.shuffle(segments)
    elif action == 3:
        segments[index] = random.choice((0xC0, 0xC2, 0xC4, 0xDB, 0xDD, 0xE1, 0xEE, 0xFE)), content
    elif action == 4:
        rest = mutate_bytes(rest, random, other)
    else:
        segments[index] = marker, mutate_bytes(content, random)[:65000]
    head = b"".join(
        bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content for marker, content in segments
    )
    return data[:2] + head + rest


def mutate_tiff(data: bytes, random: Random, other: bytes = b"") -> bytes:
    """Change entries of the first folder of a TIFF file."""
    if data[:4] != b"II*\0" or random.randrange(3) == 0:
        return mutate_bytes(data, random, other)
    result = bytearray(data)
    folder = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[folder : folder + 2], "little")
    for _ in range(random.choice((1, 1, 2, 3))):
        at = folder + 2 + 12 * random.randrange(max(count, 1))
        field, size = random.choice(((0, 2), (2, 2), (4, 4), (8, 2), (8, 4), (8, 4)))
        value = random.choice((*INTEGERS, 8, 16, 32, 5, 7, 34712, 50_000, folder)) % (1 << 8 * size)
        result[at + field : at + field + size] = value.to_bytes(size, "little")
    return bytes(result)


def mutate_zip(data: bytes, random: Random, other: bytes = b"") -> bytes:
    """Change, drop, rename or repeat members of a zip file, such as a checkpoint, and store them anew."""
    if random.randrange(4) == 0:
        return mutate_bytes(data, random, other)
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = [(info.filename, file.read(info)) for info in file.infolist()]
    at = random.randrange(len(members))
    if random.randrange(2):  # the members that are no tensors decide most
        at = next((i for i, (name, _) in enumerate(members) if name.endswith("data.pkl")), at)
    name, content = members[at]
    action = random.randrange(7)
    kind = zipfile.ZIP_STORED
    if action == 0:
        del members[at]
    elif action == 1:
        members[at] = name, content[: random.randrange(len(content) + 1)]
    elif action == 2:
        members.append((random.choice(("../x", "/x", name + "\ud7ff", "data.pkl", "a" * 3000)), content))
    elif action == 3:
        members[at] = name, bytes(random.choice((1 << 20, 1 << 26)))
        kind = zipfile.ZIP_DEFLATED
    else:
        members[at] = name, mutate_bytes(content, random)
    buffer = io.BytesIO()
    import warnings

    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", kind) as file:
        warnings.simplefilter("ignore")  # two members of one name
        for name, content in members:
            file.writestr(name, content)
    return buffer.getvalue()


def mutate_safetensors(data: bytes, random: Random, other: bytes = b"") -> bytes:
    """Change values of the JSON header of a safetensors file."""
    if random.randrange(4) == 0:
        return mutate_bytes(data, random, other)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if (meta := header.get("__metadata__")) and random.randrange(2):
        _mutate_texts(meta, random)
        text = dump_json(header)
    else:
        text = dump_json(mutate_value(header, random))
    length = len(text) if random.randrange(10) else random.choice((0, 2**40, 2**64 - 1))
    return length.to_bytes(8, "little") + text + data[8 + size :]


def _mutate_texts(texts: dict[str, str], random: Random) -> None:
    """Change one of several texts that are JSON each."""
    key = random.choice(list(texts))
    try:
        texts[key] = dump_json(mutate_value(json.loads(texts[key]), random)).decode()
    except ValueError:
        texts[key] = random.choice(TEXTS)


def mutate_onnx(data: bytes, random: Random, other: bytes = b"") -> bytes:
    """Change metadata, opset, names, attributes, shapes, types or external data of an ONNX file."""
    import onnx

    if random.randrange(5) == 0:
        return mutate_bytes(data, random, other)
    model = onnx.load_from_string(data)
    for _ in range(random.choice((1, 1, 1, 2))):
        random.choice((_onnx_metadata, _onnx_metadata, _onnx_field, _onnx_field, _onnx_external))(
            model, random
        )
    return model.SerializeToString()


def _onnx_metadata(model: Any, random: Random) -> None:
    texts = {entry.key: entry.value for entry in model.metadata_props}
    _mutate_texts(texts, random)
    if random.randrange(10) == 0:
        texts.pop(random.choice(list(texts)))
    del model.metadata_props[:]
    for key, value in texts.items():
        model.metadata_props.add(key=key, value=value.encode(errors="replace").decode())


def _onnx_field(model: Any, random: Random) -> None:
    """Change a field of any message, chosen on the way from the root."""
    message = model
    while True:
        fields = [
            pair for pair in message.ListFields() if pair[0].name not in ("metadata_props", "doc_string")
        ]
        if not fields:
            return
        field, value = random.choice(fields)
        if message is model and random.randrange(3):
            field, value = next(pair for pair in fields if pair[0].name == "graph")
        repeated = hasattr(value, "add") or hasattr(value, "append")
        if field.message_type is None:
            _onnx_scalar(message, field, value, repeated, random)
            return
        if not repeated:
            message = value
            continue
        index = random.randrange(len(value))
        if random.randrange(8) == 0:
            if random.randrange(2):
                del value[index]
            else:
                value.add().CopyFrom(value[index])
            return
        message = value[index]


def _onnx_scalar(message: Any, field: Any, value: Any, repeated: bool, random: Random) -> None:
    small = (*INTEGERS, 11, 12, 13, 21, 99, 3, 5, 7)
    new: Any
    if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_INT64, field.CPPTYPE_UINT64, field.CPPTYPE_ENUM):
        new = random.choice(small)
        if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_ENUM):
            new = max(-(2**31), min(new, 2**31 - 1))
        elif field.cpp_type == field.CPPTYPE_UINT64:
            new = abs(new)
    elif field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        new = random.choice(FLOATS[:5])
    else:
        texts = (*filter(str.isprintable, TEXTS), "images", "Shape", "If", "Loop", "boxes")
        old = value[0] if repeated and len(value) else value
        new = random.choice(texts)
        if isinstance(old, bytes):
            new = mutate_bytes(old, random) if random.randrange(2) else new.encode()
    try:
        if repeated:
            if len(value) and random.randrange(3):
                value[random.randrange(len(value))] = new
            else:
                value.append(new)
        else:
            setattr(message, field.name, new)
    except (ValueError, TypeError):  # an enumeration that is closed
        message.ClearField(field.name)


def _onnx_external(model: Any, random: Random) -> None:
    """Have a tensor say that its data are elsewhere."""
    if not model.graph.initializer:
        return
    tensor = random.choice(model.graph.initializer)
    size = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = 1
    places = "*/_ORT_MEM_ADDR_/*", "/etc/passwd", "../x", "m.onnx", "/dev/zero", "", "x" * 300, "weights.bin"
    entries = {
        "location": random.choice(places),
        "offset": str(random.choice((0, 4096, 140_000_000_000_000, -1, 2**63))),
        "length": str(random.choice((size, 0, -1, 2**40))),
    }
    for key, value in entries.items():
        if random.randrange(6):
            tensor.external_data.add(key=key, value=value)


def mutate_words(words: Sequence[str], random: Random) -> list[str]:
    """Change the value of one `--set KEY=VALUE` of a command line."""
    words = list(words)
    at = random.choice([i for i, word in enumerate(words) if "=" in word])
    key, _, value = words[at].partition("=")
    if random.randrange(8) == 0:
        key = random.choice((key[:-1], key + ".x", "", ".", key.split(".", maxsplit=1)[0], "train." + key))
    else:
        try:
            new = mutate_value(json.loads(value), random)
        except ValueError:
            new = nasty(random)
        value = new if isinstance(new, str) else dump_json(new).decode()
    words[at] = f"{key}={value}".replace("\0", "").encode(errors="replace").decode()[:100_000]
    return words
