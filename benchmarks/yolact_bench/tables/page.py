"""Blocks of a Markdown page that commands write: `<!-- table: NAME -->` to `<!-- end: NAME -->`."""

from __future__ import annotations

import re
from pathlib import Path

from yolact_runtime.errors import YolactError
from yolact_runtime.files import atomic_path, read_text

_MARKER = re.compile(r"^<!-- (table|end): ([\w-]+) -->$", re.MULTILINE)


def read_blocks(path: str | Path) -> dict[str, str]:
    """The text of each block, by name.

    Raises:
        YolactError: the page cannot be read, or its markers are not pairs, each name once.
    """
    return {name: text.strip("\n") for name, text in _split(read_text(path, "page"), path)[1]}


def replace_block(path: str | Path, name: str, text: str) -> None:
    """Replace the text of a block, and leave all else as it is.

    Raises:
        YolactError: as by `read_blocks`, or the page has no such block, or cannot be written, or the text has
            a marker.
    """
    if marker := _MARKER.search(text.replace("\r", "\n")):
        raise YolactError(
            f"{path}: table {name!r}: its text has a line {marker[0]}, which is kept for markers"
        )
    between, blocks = _split(read_text(path, "page"), path)
    if name not in dict(blocks):
        raise YolactError(f"{path}: no line <!-- table: {name} --> to put the table after")
    whole = between[0]
    for (one, old), after in zip(blocks, between[1:], strict=True):
        new = f"\n\n{text.strip()}\n\n" if one == name else old
        whole += f"<!-- table: {one} -->{new}<!-- end: {one} -->{after}"
    with atomic_path(path) as temporary:
        temporary.write_text(whole, encoding="utf-8")


def _split(page: str, path: str | Path) -> tuple[list[str], list[tuple[str, str]]]:
    """The texts outside of blocks, and name and text of each block."""
    between: list[str] = []
    blocks: list[tuple[str, str]] = []
    opened, at = "", 0
    for marker in _MARKER.finditer(page):
        kind, name = marker.groups()
        number = page.count("\n", 0, marker.start()) + 1
        if kind == "table":
            if opened or name in dict(blocks):
                fault = f"{opened!r} has no end before it" if opened else "is there twice"
                raise YolactError(f"{path}: line {number}: table {name!r}: {fault}")
            between.append(page[at : marker.start()])
        elif opened != name:
            raise YolactError(f"{path}: line {number}: the end of {name!r}, which was not begun")
        else:
            blocks.append((name, page[at : marker.start()]))
        opened, at = (name if kind == "table" else ""), marker.end()
    if opened:
        raise YolactError(f"{path}: table {opened!r} has no end")
    return [*between, page[at:]], blocks
