"""The argument parser of all commands: spelling, near names, shell completion."""

from __future__ import annotations

import argparse
import functools
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yolact_runtime
from yolact_runtime.commandline.printing import check_stdout, print_text
from yolact_runtime.errors import escape_controls

# Options that take a path without saying so by `type=Path`.
_PATHS = {"FILE", "FILE|-", "SOURCE", "IN[:OUT]", "E", "engine", "weights", "images", "annotations"}
_NUMBER = re.compile(r"-(\d|\.\d).*")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults except None, False, empty lists, and those that the text already gives."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False) or action.default == [] or "(default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser that also accepts the original YOLACT's spelling, `--top_k` for `--top-k`.

    A wrong command line is one line on standard error, with the near names of what is misspelt, and exit
    code 2. Every command gets `--debug`, `--quiet`, `--version` and `--print-completion`. Subcommands get the
    first two, which may be given before or after the subcommand's name.

    Args:
        subcommand: Whether this is the parser of a subcommand.
        elsewhere: Advice by option, for options of other commands that users may give to this one.
        options: Options of argparse.
    """

    def __init__(
        self, subcommand: bool = False, elsewhere: Mapping[str, str] | None = None, **options: Any
    ) -> None:
        options.setdefault("formatter_class", _HelpFormatter)
        options.setdefault("allow_abbrev", False)
        super().__init__(**options)
        self.elsewhere = elsewhere or {}
        self.subparsers: Any = None
        self._first_word = False
        add = self.add_argument_group("general").add_argument
        # A default of the subcommand would overwrite an option given before the subcommand's name.
        flag: dict[str, Any] = {"action": "store_true", "default": argparse.SUPPRESS if subcommand else False}
        add("--debug", help="show the traceback of an error", **flag)
        add("--quiet", help="print warnings and results only", **flag)
        if not subcommand:
            add("--version", action="version", help="show the version and exit")
            add("--print-completion", action=_PrintCompletion, choices=("bash", "zsh", "tcsh"),
                help="print a completion script for this shell and exit")  # fmt: skip

    @property
    def version(self) -> str:
        """Read by argparse for `--version` only, as finding it takes longer than building a parser."""
        return f"{self.prog} {yolact_runtime.__version__}"

    def add_subparsers(self, first_word: bool = False, **options: Any) -> Any:
        """Same as in argparse, with parsers of this class.

        Args:
            first_word: The caller parses the words after a subcommand, which is the first word only, with its
                parser from `subparsers.choices`; any other word is an argument of this parser.
            options: As in argparse.
        """
        self._first_word = first_word
        options["parser_class"] = functools.partial(Parser, subcommand=not first_word)
        self.subparsers = super().add_subparsers(**options)
        return self.subparsers

    def _get_positional_actions(self) -> list[argparse.Action]:
        """Same as in argparse, without subcommands that the caller recognises."""
        actions = super()._get_positional_actions()
        return [one for one in actions if one is not self.subparsers] if self._first_word else actions

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Same as in argparse, except that what is unknown is an error of the parser that it was given to.

        The namespace gets `prog`, the name of the command with its subcommand.
        """
        words = [_dashes(word) for word in (sys.argv[1:] if args is None else args)]
        for word in words:
            if "\0" in word:  # from a program, not from a shell
                self.error(f"{word!r} has a zero byte, which no path and no name has")
        # First: argparse would take an unknown option's value for a subcommand, or miss a required option.
        self._check_options(words)
        parsed, rest = super().parse_known_args(words, namespace)
        if rest:
            self.error(f"unexpected argument {rest[0]!r}; see {self.prog} --help")
        if not hasattr(parsed, "prog"):
            parsed.prog = self.prog
        return parsed, rest

    def _print_message(self, message: str, file: Any = None) -> None:
        """Same as in argparse, except that a standard output that takes nothing is an error."""
        if file is not None and file is sys.stderr:
            super()._print_message(message, file)
        elif message:
            check_stdout()
            print_text(message, sys.stdout)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        message = re.sub(r"^argument ", "", message)
        message = re.sub(r"^the following arguments are required: (.*)", r"\1 is missing", message)
        message = message.replace("COMMAND is missing", f"COMMAND is missing: {', '.join(self._commands())}")
        if message.endswith("is missing"):
            message += f"; see {self.prog} --help"
        self.exit(2, f"{self.prog}: error: {escape_controls(message)}\n")

    def _commands(self) -> list[str]:
        return list(self.subparsers.choices) if self.subparsers else []

    def _check_options(self, words: Sequence[str]) -> None:
        """Report the first option that this parser does not have, in the words before a subcommand."""
        for word in words:
            if word == "--" or (word in self._commands() and not self._first_word):
                return
            option = word.partition("=")[0]
            # What argparse takes for a value: numbers, and anything with a space.
            if len(word) < 2 or word[0] != "-" or _NUMBER.fullmatch(word) or " " in option:
                continue
            known = self._option_string_actions
            if option in known or (option[:2] in known and option[1] != "-"):
                continue
            if option in self.elsewhere:
                self.error(f"{option}: {self.elsewhere[option]}")
            names = [name for name, action in known.items() if action.help != argparse.SUPPRESS]
            advice = _did_you_mean(option, names) or f"see {self.prog} --help"
            self.error(f"unknown option {option}; {advice}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a value that is not one of the choices; says which ones are near, and all of them."""
        if action.choices is None or value in action.choices:
            return
        names = list(map(str, action.choices))
        near = _did_you_mean(str(value), names)
        advice = f"{near} Allowed: {', '.join(names)}" if near else f"allowed: {', '.join(names)}"
        if isinstance(action, argparse._SubParsersAction):
            self.error(f"unknown command {value!r}; {advice}")
        raise argparse.ArgumentError(action, f"{value!r}; {advice}")


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    """The names that `word` begins, or else up to three that are near it, as advice; empty without any."""
    import difflib  # for wrong words only

    names = sorted(known)
    near = [name for name in names if name.startswith(word)] if word.strip("-") else []
    near = near or difflib.get_close_matches(word, names, n=3, cutoff=0.7)
    return f"did you mean {' or '.join(near[:3])}?" if near else ""


class _PrintCompletion(argparse.Action):
    """Prints the completion script of shtab; options that take a path complete files or folders."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "default": argparse.SUPPRESS})

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, shell: Any, option: str | None = None
    ) -> None:
        import shtab

        _mark_paths(parser, shtab.FILE, shtab.DIRECTORY)
        check_stdout()
        print_text(shtab.complete(parser, shell) + "\n", sys.stdout)
        parser.exit()


def _mark_paths(parser: argparse.ArgumentParser, file: Any, folder: Any) -> None:
    """Set shtab's `complete` attribute on every action that takes a path."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                _mark_paths(subparser, file, folder)
        elif "DIR" in str(action.metavar):
            action.complete = folder  # type: ignore[attr-defined]
        elif action.type is Path or {str(action.metavar), action.dest} & _PATHS:
            action.complete = file  # type: ignore[attr-defined]
        if isinstance(action.metavar, str):
            action.metavar = action.metavar.replace(":", " ")  # it separates fields in zsh


def _dashes(word: str) -> str:
    if not word.startswith("--") or word == "--":
        return word
    option, equals, value = word.partition("=")
    return option.replace("_", "-") + equals + value
