"""What all commands say about a wrong command line: one line, and near names."""

from __future__ import annotations

import importlib
import re
from argparse import SUPPRESS

import pytest
from commands import COMMAND_LINES, COMMANDS

from yolact_runtime.commandline import run
from yolact_runtime.commandline.parser import Parser

Capture = pytest.CaptureFixture[str]


def main(line: tuple[str, ...], *words: str) -> int:
    """Run a command, and return its exit code."""
    module, _, function = COMMANDS[line[0]].partition(":")
    code: int = getattr(importlib.import_module(module), function)([*line[1:], *words])
    return code


def parser_of(line: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> Parser:
    """The parser of a command or subcommand."""

    class FoundError(Exception):
        pass

    def found(self: Parser, *_: object) -> None:
        raise FoundError(self)

    with monkeypatch.context() as patch, pytest.raises(FoundError) as caught:
        patch.setattr(Parser, "parse_args", found)
        main(line)
    parser = caught.value.args[0]
    return parser.subparsers.choices[line[1]] if line[1:] and parser.subparsers else parser


@pytest.mark.parametrize("line", COMMAND_LINES, ids=" ".join)
def test_a_misspelt_option_names_the_right_one(line: tuple[str, ...], monkeypatch, capsys: Capture) -> None:
    parser = parser_of(line, monkeypatch)
    shown = {name for name, action in parser._option_string_actions.items() if action.help != SUPPRESS}
    options = [name for name in shown if name.startswith("--") and len(name) > 6]
    assert "--debug" in options
    for option in options:
        for wrong in {option[:-2] + option[-1], option.replace("e", "", 1), option + "x"} - {*options}:
            for words in ([wrong, "1"], [wrong.replace("-", "_").replace("__", "--", 1) + "=1"]):
                assert main(line, *words) == 2
                (said,) = capsys.readouterr().err.splitlines()
                assert said.startswith(f"{' '.join(line)}: error: unknown option {wrong}; did you mean --")
                assert option in said or "--debug" in said


@pytest.mark.parametrize("line", COMMAND_LINES, ids=" ".join)
def test_a_misspelt_choice_names_the_right_one(line: tuple[str, ...], monkeypatch, capsys: Capture) -> None:
    for action in parser_of(line, monkeypatch)._actions:
        if action.choices and not isinstance(action.choices, dict) and action.option_strings:
            value = next(str(choice) for choice in action.choices if len(str(choice)) > 2)
            assert main(line, action.option_strings[0], value + "z") == 2
            (said,) = capsys.readouterr().err.splitlines()
            assert action.option_strings[0] in said and f"{value + 'z'!r}; did you mean {value}" in said


# Any other first word than `merge` is an image to yolact-infer.
SUBCOMMANDS = [line for line in COMMAND_LINES if line[1:] and line[0] != "yolact-infer"]


@pytest.mark.parametrize("line", SUBCOMMANDS, ids=" ".join)
def test_a_misspelt_subcommand_names_the_right_one(line: tuple[str, ...], capsys: Capture) -> None:
    assert main(line[:1], line[1][:-2] + line[1][-1:], "x") == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert f"did you mean {line[1]}?" in said


@pytest.mark.parametrize("line", COMMAND_LINES, ids=" ".join)
def test_a_default_is_given_once(line: tuple[str, ...], capsys: Capture) -> None:
    assert main(line, "--help") == 0
    for option in re.split(r"\n  (?=-)", capsys.readouterr().out):
        assert " ".join(option.split()).count("(default") <= 1, option


def build() -> Parser:
    parser = Parser(prog="test", elsewhere={"--video": "use other"})
    parser.add_argument("--number", type=int)
    parser.add_argument("--offset", type=float)
    parser.add_argument("--short", "-s", action="store_true")
    parser.add_argument("files", nargs="*")
    return parser


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nummer", "3"], "unknown option --nummer; did you mean --number?"),
        (["--num"], "unknown option --num; did you mean --number?"),
        (["-number", "3"], "unknown option -number; did you mean --number?"),
        (["--zzz\x1b[31m\n"], r"unknown option --zzz\x1b[31m\n; see test --help"),
        (["--video", "x.mp4"], "--video: use other"),
        (["-x"], "unknown option -x; see test --help"),
        (["--number", "three"], "--number: invalid int value: 'three'"),
        (["--number"], "--number: expected one argument"),
    ],
)
def test_wrong_command_lines(words: list[str], said: str, capsys: Capture) -> None:
    assert run(lambda args: None, build(), words) == 2
    assert capsys.readouterr() == ("", f"test: error: {said}\n")


@pytest.mark.parametrize(
    "words",
    [
        ["--offset", "-3.5", "-"],
        ["--offset=-1e3"],
        ["-s", "a b"],
        ["--", "--nummer"],
        ["- name with a space"],
        ["--number", "-2", "-7"],
    ],
)
def test_what_only_looks_like_an_option(words: list[str]) -> None:
    assert run(lambda args: None, build(), words) == 0
