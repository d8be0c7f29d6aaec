"""What `mkdocs build` adds to the pages: options from the commands' parsers, settings from dataclasses."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import html
import inspect
import re
import typing
from collections.abc import Iterator
from importlib.metadata import distribution
from typing import Any

_OPTIONS = re.compile(r"^<!-- options: (yolact-\w+) -->$", re.MULTILINE)
_SETTINGS = re.compile(r"^<!-- settings: ([\w.]+) -->$", re.MULTILINE)
# Every command has these; they are listed once on its page, not again for each subcommand.
_COMMON = {"--help", "--debug", "--quiet", "--version", "--print-completion"}


class _ParserFound(BaseException):
    """Carries the parser out of a command that is about to use it; no `except Exception` stops it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the markers of a page by tables; mkdocs calls this for each page.

    The markers are `<!-- options: yolact-infer -->`, `<!-- settings: train -->` and `<!-- limits -->`.
    """
    markdown = _OPTIONS.sub(lambda match: command_tables(command_parser(match[1])), markdown)
    markdown = _SETTINGS.sub(lambda match: settings_table(match[1]), markdown)
    return markdown.replace("<!-- limits -->", limits_table())


def limits_table() -> str:
    """A Markdown table of the limits on what others wrote."""
    from yolact_runtime.untrusted import LIMITS

    rows = [f"| `{one.variable}` | {one.unit} | {one.default:,} |" for one in LIMITS.values()]
    return "\n".join(["| variable | limits | default |", "|---|---|---|", *rows])


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
    tables = list(_tables(parser))
    parts = ["## Options", *tables] if tables else []
    for name, sub in subcommands(parser).items():
        parts += [f"## {parser.prog} {name}", _sentence(sub.description), *_tables(sub)]
    common = [action for action in parser._actions if _COMMON & set(action.option_strings)]
    parts += ["## Common options", _table(parser, common)]
    return "\n\n".join(part for part in parts if part) + "\n"


def settings_table(group: str) -> str:
    """The fields of a group of settings, such as `train`: types, defaults and meanings."""
    from yolact.config import Config

    kind: Any = Config
    for name in group.split("."):
        kind = typing.get_type_hints(kind)[name]
    prose, _, attributes = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    meanings = dict(re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE))
    types = typing.get_type_hints(kind)
    rows = []
    for field in dataclasses.fields(kind):
        if not dataclasses.is_dataclass(types[field.name]):
            words = typing.get_args(types[field.name]) if "Literal" in str(types[field.name]) else ()
            cells = [
                _code(f"{group}.{field.name}"),
                _code(", ".join(words) or str(field.type)),
                _code(str(field.default).replace("(", "[").replace(",)", "]").replace(")", "]")),
                _cell(meanings.get(field.name, "")),
            ]
            rows.append(f"| {' | '.join(cells)} |")
    head = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    return f"{prose.strip()}\n\n" + "\n".join([*head, *rows]) + "\n"


def _tables(parser: argparse.ArgumentParser) -> Iterator[str]:
    """A table for each group of arguments that are not common to all commands, under the group's title."""
    titled = False
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if not _COMMON & set(action.option_strings)]
        table = _table(parser, actions)
        if table:
            title = {"positional arguments": "arguments"}.get(group.title or "", group.title)
            yield (
                f"**{_sentence(title).removesuffix('.')}**\n\n{table}"
                if titled or title != "options"
                else table
            )
            titled = True


def _table(parser: argparse.ArgumentParser, actions: list[argparse.Action]) -> str:
    formatter = parser._get_formatter()
    rows = [
        f"| {_spelling(action)} | {_cell(formatter._expand_help(action) if action.help else '')} |"
        for action in actions
        if action.help != argparse.SUPPRESS and not isinstance(action, argparse._SubParsersAction)
    ]
    return "\n".join(["| | meaning |", "|---|---|", *rows]) if rows else ""


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
