"""The tables of the page of measurements: registry, page and commands."""

import argparse
import dataclasses
import functools
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from yolact_bench.cli import main
from yolact_bench.tables import cli, registry
from yolact_bench.tables.page import read_blocks, replace_block
from yolact_bench.tables.registry import TABLES, FigureTable
from yolact_runtime.errors import YolactError

PAGE = Path(__file__).parents[3] / "docs" / "measurements.md"
LINES = sorted({line.removeprefix("& ") for table in TABLES for line in table.commands})


def test_the_page_has_a_block_for_each_table_and_no_other() -> None:
    names = [table.name for table in TABLES]
    assert sorted(read_blocks(PAGE)) == sorted(names) and len(set(names)) == len(names)
    assert all(set(table.needs) <= {*registry.INPUTS, registry.GPU} for table in TABLES)
    assert registry.INPUTS.keys() == registry.NEEDS.keys()


@functools.cache
def parser_of(program: str) -> argparse.ArgumentParser:
    """The parser of a command, as the documentation site finds it."""
    spec = importlib.util.spec_from_file_location("hooks_of_the_site", PAGE.with_name("hooks.py"))
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    return hooks.command_parser(program)


@pytest.mark.parametrize("line", LINES)
def test_commands_are_ones_that_the_programs_understand(line: str) -> None:
    program, *words = shlex.split(line)
    parser_of(program).parse_args(words)


def page(folder: Path, text: str) -> Path:
    path = folder / "page.md"
    path.write_text(text)
    return path


def test_a_block_is_replaced_and_all_else_stays(tmp_path: Path) -> None:
    path = page(tmp_path, "a\n<!-- table: x -->\nold\n<!-- end: x -->\nb\n<!-- table: y -->\n<!-- end: y -->")
    replace_block(path, "x", "| new |\n")
    expected = "a\n<!-- table: x -->\n\n| new |\n\n<!-- end: x -->\nb\n<!-- table: y -->\n<!-- end: y -->"
    assert path.read_text() == expected
    assert read_blocks(path) == {"x": "| new |", "y": ""}
    with pytest.raises(YolactError, match="no line <!-- table: z -->"):
        replace_block(path, "z", "")
    assert path.read_text() == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<!-- table: x -->\n", "table 'x' has no end"),
        ("\n<!-- end: x -->", "line 2: the end of 'x', which was not begun"),
        ("<!-- table: x -->\n<!-- table: y -->\n<!-- end: y -->", "line 2: table 'y': 'x' has no end before"),
        ("<!-- table: x -->\n<!-- end: x -->\n" * 2, "line 3: table 'x': is there twice"),
    ],
)
def test_markers_that_are_no_pairs(tmp_path: Path, text: str, words: str) -> None:
    path = page(tmp_path, text)
    with pytest.raises(YolactError, match=re.escape(words)):
        replace_block(path, "x", "new")
    assert path.read_text() == text


def test_text_with_a_marker_never_reaches_the_page(tmp_path: Path) -> None:
    whole = "<!-- table: x -->\n<!-- end: x -->\n"
    path = page(tmp_path, whole)
    for text in ("a\n<!-- end: x -->\nb", "a\r\n<!-- table: y -->\r\n"):
        with pytest.raises(YolactError, match=r"table 'x': its text has a line <!--"):
            replace_block(path, "x", text)
    assert path.read_text() == whole


def test_tables_are_measured_and_a_failure_leaves_its_block(tmp_path, monkeypatch, capsys) -> None:
    tables = (
        FigureTable(
            "shapes", "a check", ("& yolact-data shapes s --train 2 --val 1", "yolact-bench tables --list")
        ),
        FigureTable("broken", "no such folder", ("yolact-data check nothing-here",)),
        FigureTable("silent", "prints nothing", ("yolact-data shapes quiet --train 1 --val 1",)),
        FigureTable("long", "takes long", ("yolact-data check s",), minutes=99),
        FigureTable("far", "needs a server", ("yolact-data check s",), needs=("server",)),
    )
    monkeypatch.setattr(cli, "TABLES", tables)
    monkeypatch.setattr(cli, "_commit", lambda: "0123456789ab")
    names = [table.name for table in tables]
    blocks = "\n".join(f"<!-- table: {name} -->\n\nold\n\n<!-- end: {name} -->" for name in names)
    path = page(tmp_path, blocks)
    assert main(["tables", "--page", str(path), "--most-minutes", "2", "--keep", str(tmp_path)]) == 1
    found = read_blocks(path)
    kept = json.loads((tmp_path / "shapes.json").read_text())
    assert cli.render(tables[0], kept) == found["shapes"] and not (tmp_path / "broken.json").exists()
    assert found["broken"] == found["long"] == found["far"] == found["silent"] == "old"
    said = capsys.readouterr().err
    assert "broken: yolact-data check nothing-here: exit code" in said
    assert "silent: yolact-data shapes quiet --train 1 --val 1: it printed nothing" in said
    assert "commit 0123456789ab" in found["shapes"].replace("\n", " ")
    assert "\n    yolact-data shapes s --train 2 --val 1\n    yolact-bench tables --list\n" in found["shapes"]
    assert re.search(r"\d+ cores, .* Python 3\.\d+\.\d+; .*yolact \d", found["shapes"].replace("\n", " "))
    assert re.search(r"^\|.*\|$", found["shapes"], re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "table 'nothing': there are "),
        (["tracks"], "table tracks needs --demo: the folder that yolact-demo has written"),
        (["masks", "--demo", "nowhere"], "--demo nowhere: no such folder"),
        (["masks", "--page", "empty.md"], "empty.md has no block for masks"),
    ],
)
def test_what_is_missing_is_said_before_any_work(tmp_path, monkeypatch, capsys, words, message) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.md").write_text("")
    monkeypatch.setattr(cli, "measure", lambda *_: pytest.fail("measured"))
    assert main(["tables", *words]) == 2
    assert message in capsys.readouterr().err


def test_titles_choose_what_is_kept() -> None:
    table = ["| a |", "|---|", "| 1 |", ""]
    lines = ["", "First one", "", *table, "a note", "", "Second", "", *table, "Third one", "", *table]
    assert cli._kept(lines, ("First", "Third")).split("\n\n") == [
        *("First one", "\n".join(table[:3]), "a note"),
        *("Third one", "\n".join(table[:3])),
    ]
    assert cli._kept(lines, ()).count("| 1 |") == 3
    assert cli._kept(["(library) WARNING: some", *lines[1:]], ("First", "Third")).startswith("First one")


def test_the_list_says_what_can_be_run(capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["yolact-bench"])
    assert main(["tables", "--list"]) == 0
    printed = capsys.readouterr().out
    assert all(table.name in printed for table in TABLES)


RECORD = {
    "cpu": "Some CPU", "cpu_features": ["avx2"], "cores": 2, "memory_gib": 8.0, "gpu": None,
    "system": "Linux", "python": "3.11.7", "versions": {"numpy": "2.0"},
    "threads_variables": {"OMP_NUM_THREADS": "1"},
    "commit": "0123456789ab", "date": "2026-01-02", "minutes": 0.5, "load": [1.0, 2.0],
    "commands": [
        {"command": "& yolact-data shapes s", "printed": "not shown"},
        {"command": "yolact-bench masks", "printed": "Some title\n\n| a |\n|---|\n| 1 |\n\n"},
    ],
}  # fmt: skip


@pytest.mark.parametrize("who", ["processes", "machines on the same hardware"])
def test_figures_of_a_busy_machine_never_reach_the_page(tmp_path, monkeypatch, capsys, who) -> None:
    warning = f"other {who} took 87% of the CPU time while measuring"
    busy = {"command": "yolact-bench masks", "printed": f"| a |\n|---|\n\nWarning: {warning}\n"}
    monkeypatch.setattr(cli, "TABLES", [FigureTable("x", "a check", ("yolact-bench masks",))])
    monkeypatch.setattr(cli, "_commit", lambda: "0123456789ab")
    monkeypatch.setattr(cli, "measure", lambda *_: {**RECORD, "commands": [busy]})
    path = page(tmp_path, "<!-- table: x -->\n\nold\n\n<!-- end: x -->")
    assert main(["tables", "--page", str(path)]) == 1
    assert read_blocks(path) == {"x": "old"}
    assert f"x: its block stays as it was: {warning}" in capsys.readouterr().err.replace("\n", " ")


def test_blocks_need_a_commit(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(cli, "_commit", lambda: "")
    monkeypatch.setattr(cli, "measure", lambda *_: pytest.fail("measured"))
    assert main(["tables", "masks", "--page", str(PAGE)]) == 2
    assert "the commit that is measured is unknown" in capsys.readouterr().err


def test_commands_are_shown_as_they_ran(tmp_path, monkeypatch) -> None:
    """The address that was given, without a password; paths without the temporary folder."""
    ran = []

    def run(words, cwd, **_):
        ran.append([str(word) for word in words])
        return subprocess.CompletedProcess(words, 0, f"open {Path(cwd, 'demo/report.html')}\n", "")

    monkeypatch.setattr(cli.subprocess, "run", run)
    monkeypatch.setattr(cli, "_machine", dict)
    monkeypatch.setattr(cli, "_commit", str)
    table = FigureTable("x", "a check", ("& yolact-bench load --engine grpc://127.0.0.1:8001/shapes",) * 2)
    record = cli.measure(table, {"server": "grpc://me:word@far:9/other"})
    assert ran[0][-1] == "grpc://me:word@far:9/other"
    assert record["commands"][0] == {
        "command": "& yolact-bench load --engine grpc://far:9/other", "printed": "open demo/report.html\n"
    }  # fmt: skip


def test_a_stored_record_gives_the_block() -> None:
    commands = ("& yolact-data shapes s", "yolact-bench masks")
    expected = [
        "Some CPU (avx2); 2 cores, 8 GiB; no GPU; Linux; Python 3.11.7; numpy 2.0; OMP_NUM_THREADS=1; commit",
        "0123456789ab; 2026-01-02, 0.5 min, load 1.00 before and 2.00 after.",
        *("", "    yolact-data shapes s", "    yolact-bench masks", ""),
    ]
    stored = json.loads(json.dumps(RECORD))
    table = FigureTable("x", "a check", commands)
    found = cli.render(table, stored)
    assert found.split()[:-9] == " ".join(expected).split()
    assert found.endswith("\n\nSome title\n\n| a |\n|---|\n| 1 |")
    verbatim = cli.render(dataclasses.replace(table, verbatim=True), stored)
    assert "\n    Some title\n" in verbatim and "\n    | a |\n" in verbatim
