"""Turn valid files into damaged and hostile ones, each by a seeded random generator."""

from __future__ import annotations

import json
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
