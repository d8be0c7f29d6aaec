"""Damaged image files, whose checksums are repaired so that a change gets past them."""

from __future__ import annotations

import struct
import zlib
from random import Random

from mutate import INTEGERS, mutate_bytes


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
