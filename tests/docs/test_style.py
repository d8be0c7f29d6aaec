"""The form of the documentation: short lines, a short README, links that lead somewhere."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from doc_pages import PAGES, QUICK_START, README, ROOT, anchors, blocks, page_id, without_blocks

_LINK = re.compile(r"!?\[(?:[^][]|\[[^]]*\])*\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_no_line_is_longer_than_120_characters(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert lines
    if page.name == "measurements.md":  # rows that commands print
        lines = [line for line in lines if not line.startswith("| ")]
    assert [f"{n}: {line}" for n, line in enumerate(lines, 1) if len(line) > 120] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_no_line_begins_like_a_list_within_a_paragraph(page: Path) -> None:
    lines = without_blocks(page.read_text(encoding="utf-8")).splitlines()
    marker = r"\s*(\d+\.|[-*+]) "
    assert [
        f"{n}: {line}"
        for n, (before, line) in enumerate(itertools.pairwise(lines), 2)
        if re.match(marker, line) and before.strip() and not re.match(rf"{marker}|\s\s", before)
    ] == []


def test_readme_has_at_most_150_lines() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    broken = []
    for target in _LINK.findall(without_blocks(text)):
        if re.match(r"https?://|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or not file.is_relative_to(ROOT):
            broken.append(f"{target}: no such file")
        elif anchor and anchor not in anchors(file.read_text(encoding="utf-8")):
            broken.append(f"{target}: no such heading")
    assert broken == []


def test_the_site_and_the_readme_have_the_same_quick_start() -> None:
    def commands(page: Path) -> list[str]:
        text = page.read_text(encoding="utf-8")
        shell = "".join(b.text for b in blocks(text) if b.language == "bash").replace("\\\n", " ")
        lines = [" ".join(line.partition(" #")[0].split()) for line in shell.splitlines()]
        return [line for line in lines if line.startswith("yolact-")]

    in_readme, on_site = commands(README), commands(QUICK_START)
    assert len(on_site) == 6
    assert [line for line in in_readme if line in on_site] == on_site


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [p.relative_to(ROOT / "docs").as_posix() for p in PAGES if p.is_relative_to(ROOT / "docs")]
    assert pages
    assert [page for page in pages if not re.search(rf": {re.escape(page)}$", navigation, re.MULTILINE)] == []


def test_pages_named_in_the_code_exist() -> None:
    folders = [ROOT / name for name in ("yolact", "export", "runtime", "benchmarks")]
    code = [path for folder in folders for path in folder.rglob("*.py")] + [ROOT / "pyproject.toml"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in code)
    named = set(re.findall(r"docs/[\w/-]+\.md", text))
    assert named
    assert [page for page in sorted(named) if not (ROOT / page).is_file()] == []
