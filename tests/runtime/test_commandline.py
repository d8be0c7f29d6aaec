"""Parser and entry point of all commands."""

import subprocess
import sys

import pytest

from yolact_runtime.commandline import Parser, run


@pytest.mark.parametrize(
    ("line", "debug", "quiet"),
    [
        ("look x", False, False),
        ("--quiet look x", False, True),
        ("look --quiet x", False, True),
        ("--debug look x --quiet", True, True),
    ],
)
def test_general_options_go_before_or_after_a_subcommand(line, debug, quiet):
    parser = Parser(prog="test")
    parser.add_subparsers(required=True).add_parser("look").add_argument("file")
    args = parser.parse_args(line.split())
    assert (args.debug, args.quiet) == (debug, quiet)


def test_underscores_in_options_of_a_subcommand():
    parser = Parser(prog="test")
    parser.add_subparsers(required=True).add_parser("look").add_argument("--top-k")
    assert parser.parse_args(["look", "--top_k=a_b"]).top_k == "a_b"


def test_the_version(capsys):
    assert run(lambda args: None, Parser(prog="test"), ["--version"]) == 0
    assert capsys.readouterr().out.startswith("test ")


def test_only_the_command_itself_prints_completions(capsys):
    parser = Parser(prog="test")
    parser.add_subparsers(required=True).add_parser("look")
    assert run(lambda args: None, parser, ["look", "--print-completion", "bash"]) == 2
    assert "unknown option --print-completion" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes as elsewhere")
def test_help_for_a_reader_that_goes_away():
    code = "import sys; from yolact_runtime.cli import main; sys.exit(main(['--print-completion', 'zsh']))"
    command = f'{sys.executable} -c "{code}" | head -c 1'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr
