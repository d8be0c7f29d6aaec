"""Commands, options and settings named in the documentation exist."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doc_pages import PAGES, ROOT, blocks, command_lines, load_hooks, page_id, spans

from yolact import configs
from yolact_runtime.sources.headers import PIXEL_MEMORY
from yolact_runtime.untrusted import LIMITS

hooks = load_hooks()
# Where the changes are listed, commands may be named that are gone.
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]
# Options of other programs that the text speaks of.
FOREIGN = {"--no-deps", "--strict", "--extra-index-url", "--system-site-packages"}
FOREIGN |= {"--gpus", "--network", "--profile", "--time"}
FOREIGN |= {"--rdzv-conf", "--rdzv-endpoint", "--max-restarts", "--shutdown-timeout"}  # torchrun


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Every option that the help of a command has, those of its subcommands included."""
    actions = parser._option_string_actions
    own = {option for option, action in actions.items() if action.help != argparse.SUPPRESS}
    return own.union(*(options_of(sub) for sub in hooks.subcommands(parser).values()))


def unknown(words: list[str]) -> Iterator[str]:
    """What of a command line its parser does not accept."""
    name, *arguments = words
    if name not in hooks.command_names():
        yield name
        return
    parser = hooks.command_parser(name)
    subs = hooks.subcommands(parser)
    accepted = set(parser._option_string_actions)
    for word in arguments:
        if word in subs:
            accepted |= set(subs[word]._option_string_actions)
        elif re.match(r"--\w", word):
            option = word.partition("=")[0].replace("_", "-")
            if option not in accepted:
                yield f"{name} {option}"


@pytest.mark.parametrize("page", CURRENT, ids=page_id)
def test_commands_and_their_options_exist(page: Path) -> None:
    lines = list(command_lines(page.read_text(encoding="utf-8")))
    assert [wrong for words in lines for wrong in unknown(words)] == []


@pytest.mark.parametrize("page", CURRENT, ids=page_id)
def test_subcommands_exist(page: Path) -> None:
    missing = []
    for name, *arguments in command_lines(page.read_text(encoding="utf-8")):
        subs = hooks.subcommands(hooks.command_parser(name))
        first = arguments[0] if arguments else "-"
        if name in ("yolact-bench", "yolact-data") and re.fullmatch(r"[a-z]+", first) and first not in subs:
            missing.append(f"{name} {first}")
    assert missing == []


# The page about the original names its options.
@pytest.mark.parametrize("page", [page for page in CURRENT if "original" not in page.name], ids=page_id)
def test_options_named_in_the_text_exist(page: Path) -> None:
    known = FOREIGN.union(*(options_of(hooks.command_parser(name)) for name in hooks.command_names()))
    named = {
        match[1].replace("_", "-")
        for span in spans(page.read_text(encoding="utf-8"))
        for match in re.finditer(r"^(--[a-z][\w-]*)", span)
    }
    assert named - known == set()


@pytest.mark.parametrize("page", CURRENT, ids=page_id)
def test_modules_that_are_run_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for module in re.findall(r"-m (yolact[\w.]*\w)", text):
        path = module.replace(".", "/")
        places = [ROOT, ROOT / "runtime", ROOT / "export", ROOT / "benchmarks"]
        candidates = [p / f"{path}{end}" for p in places for end in (".py", "/__main__.py")]
        assert any(candidate.is_file() for candidate in candidates), module


def settings(value: Any, prefix: str = "") -> Iterator[str]:
    """The names of all settings, such as `train.lr`."""
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            yield from settings(inner, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


@pytest.mark.parametrize("page", CURRENT, ids=page_id)
def test_settings_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    known = set(settings(configs()["yolact_base"]))
    groups = "model|detect|loss|train|augment|dataset"
    shell = list(spans(text)) + [block.text for block in blocks(text)]
    named = {
        name
        for part in shell
        for name in re.findall(rf"(?:--set \"?|^)((?:{groups})\.[a-z_]+(?:\.[a-z_]+)?)(?:=|$)", part)
    }
    assert {name for name in named if not name.endswith((".py", ".md", ".cu", ".yaml"))} - known == set()


def test_generated_tables_hold_every_option() -> None:
    for name in hooks.command_names():
        parser = hooks.command_parser(name)
        page = ROOT / "docs/reference/commands" / f"{name}.md"
        tables = hooks.on_page_markdown(page.read_text(encoding="utf-8"))
        assert "<!-- options" not in tables
        for option in options_of(parser) - {"--print-completion"}:
            assert f"<code>{option}" in tables, option


def test_generated_tables_hold_every_setting() -> None:
    page = (ROOT / "docs/reference/configurations.md").read_text(encoding="utf-8")
    tables = hooks.on_page_markdown(page)
    for name in settings(configs()["yolact_base"]):
        if "." in name:
            assert f"<code>{name}</code>" in tables or name.startswith("classes."), name


def test_the_page_on_security_has_the_limits() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    shown = hooks.on_page_markdown(page)
    rows = [f"| `{one.variable}` | {one.unit} | {one.default:,} |" for one in LIMITS.values()]
    assert len(rows) > 10
    assert [row for row in rows if row not in shown] == []
    named = set(re.findall(r"YOLACT_MAX_\w+", page))
    assert named <= {one.variable for one in LIMITS.values()}
    assert f"times {PIXEL_MEMORY} bytes, {PIXEL_MEMORY * LIMITS['pixels'].default / 1e9:g} GB" in page
