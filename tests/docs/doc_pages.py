"""Reads the project's Markdown for the tests of the documentation."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
QUICK_START = ROOT / "docs/getting-started/quick-start.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUNNABLE = "<!-- runnable -->"

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\s*$")
_SHELL = {"bash", "sh", "console", ""}


def load_hooks() -> ModuleType:
    """The hooks of the documentation site, which know the parser of each command."""
    if "yolact_docs_hooks" not in sys.modules:
        spec = spec_from_file_location("yolact_docs_hooks", ROOT / "docs/hooks.py")
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules["yolact_docs_hooks"] = module
    return sys.modules["yolact_docs_hooks"]


def page_id(path: Path) -> str:
    """The name of a page in test reports."""
    return path.relative_to(ROOT).as_posix()


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        line: Number of its first line, from 1.
        language: After the fence; empty where there is none.
        text: What is inside, without the indentation of the fence.
        runnable: The line before the fence marks it as such.
    """

    line: int
    language: str
    text: str
    runnable: bool


def blocks(text: str) -> list[Block]:
    """The fenced code blocks of a page."""
    found, lines = [], text.splitlines()
    number = 0
    while number < len(lines):
        opening = _FENCE.match(lines[number])
        number += 1
        if not opening:
            continue
        start, indent = number, len(opening["indent"])
        while lines[number].strip() != "```":
            number += 1
        body = "\n".join(line[indent:] for line in lines[start:number]) + "\n"
        marked = start >= 2 and lines[start - 2].strip() == RUNNABLE
        found.append(Block(start + 1, opening["language"], body, marked))
        number += 1
    return found


def without_blocks(text: str) -> str:
    """The page with the lines of its code blocks left empty."""
    inside, kept = False, []
    for line in text.splitlines():
        fence = line.strip().startswith("```")
        kept.append("" if inside or fence else line)
        inside ^= fence
    return "\n".join(kept)


def spans(text: str) -> Iterator[str]:
    """What a page has between single backquotes, outside code blocks."""
    for match in re.finditer(r"(?<!`)`([^`]+)`(?!`)", without_blocks(text)):
        yield " ".join(match[1].split())


def command_lines(text: str) -> Iterator[list[str]]:
    """Each call of one of the project's commands on a page, in words: `[command, argument, ...]`.

    `-m yolact.cli.train`, as after `torchrun`, counts as `yolact-train`.
    """
    shell = [block.text for block in blocks(text) if block.language in _SHELL]
    for source in [*shell, *spans(text)]:
        for line in source.replace("\\\n", " ").splitlines():
            for part in re.split(r"\||&&|;", line.partition(" #")[0]):
                words = _words(re.sub(r"-m yolact\.cli\.(\w+)", r"yolact-\1", part))
                for i, word in enumerate(words):
                    if re.fullmatch(r"yolact-[a-z]+", word):
                        yield words[i:]
                        break


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:  # an ellipsis or a lone apostrophe: no command
        return line.split()


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings."""
    found = set()
    for line in without_blocks(text).splitlines():
        if match := re.match(r"#+ +(.+?)\s*$", line):
            plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", match[1]).replace("`", "")
            found.add(re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-"))
    return found
