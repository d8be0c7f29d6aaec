"""What `mkdocs build` adds to the pages: the options of each command, read from its own parser."""

from __future__ import annotations

import argparse
import functools
import html
import re
from collections.abc import Iterator
from importlib.metadata import distribution
from typing import Any

_MARKER = re.compile(r"^<!-- options: (yolact-\w+) -->$", re.MULTILINE)
# Every command has these; they are listed once on its page, not again for each subcommand.
_COMMON = {"--help", "--debug", "--quiet", "--version", "--print-completion"}


class _ParserFound(BaseException):
    """Carries the parser out of a command that is about to use it; no `except Exception` stops it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace `<!-- options: yolact-infer -->` by tables (an event of mkdocs, called for each page)."""
    return _MARKER.sub(lambda match: command_tables(command_parser(match[1])), markdown)


def command_names() -> list[str]:
    """The commands that the project installs, sorted."""
    return sorted(e.name for e in distribution("yolact").entry_points if e.group == "console_scripts")


@functools.cache
def command_parser(name: str) -> argparse.ArgumentParser:
    """The parser of a command.

    The command is started, and stopped where it parses its arguments, so it may build its parser as it
    likes. It is asked for a completion script, for which it needs the options of all its subcommands.
    """
    (entry,) = (
        entry
        for entry in distribution("yolact").entry_points
        if entry.group == "console_scripts" and entry.name == name
    )

    def stop(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise _ParserFound(parser)

    original = argparse.ArgumentParser.parse_args
    argparse.ArgumentParser.parse_args = stop  # type: ignore[method-assign, assignment]
    try:
        entry.load()(["--print-completion", "bash"])
    except _ParserFound as found:
        return found.parser
    finally:
        argparse.ArgumentParser.parse_args = original  # type: ignore[method-assign]
    raise RuntimeError(f"{name} parsed no arguments")


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the subcommands by name; empty where there are none."""
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return {name: sub for action in actions for name, sub in action.choices.items()}


def command_tables(parser: argparse.ArgumentParser) -> str:
    """The options of a command and of its subcommands, as Markdown."""
    parts = ["## Options", *_tables(parser, common=True)]
    for name, sub in subcommands(parser).items():
        parts += [f"## {parser.prog} {name}", _sentence(sub.description), *_tables(sub, common=False)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _tables(parser: argparse.ArgumentParser, common: bool) -> Iterator[str]:
    formatter = parser._get_formatter()
    for group in parser._action_groups:
        rows = [
            f"| {_spelling(action)} | {_cell(formatter._expand_help(action) if action.help else '')} |"
            for action in group._group_actions
            if action.help != argparse.SUPPRESS
            and (common or not _COMMON & set(action.option_strings))
            and not isinstance(action, argparse._SubParsersAction)
        ]
        if rows:
            title = _sentence(group.title).removesuffix(".")
            yield "\n".join([f"**{title}**\n", "| | meaning |", "|---|---|", *rows])


def _spelling(action: argparse.Action) -> str:
    """How an argument is typed, such as `--top-k TOP_K`."""
    if isinstance(action.metavar, str):
        value = action.metavar
    elif action.choices is not None:
        value = "{" + ",".join(str(choice) for choice in action.choices) + "}"
    else:
        value = action.dest.upper() if action.option_strings else action.dest
    if not action.option_strings:
        return _code(value)
    value = "" if action.nargs == 0 else f" {value}" + (" ..." if action.nargs in ("+", "*") else "")
    return ", ".join(_code(option + value) for option in action.option_strings)


def _code(text: str) -> str:
    return f"<code>{html.escape(text).replace('|', '&#124;')}</code>"


def _cell(text: str) -> str:
    """Help text as a table cell: on one line, its backquotes kept as code."""
    plain = html.escape(" ".join(text.split()), quote=False).replace("|", "&#124;")
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", plain)


def _sentence(text: str | None) -> str:
    text = " ".join((text or "").split())
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") or not text else ".")
