"""Whether B is faster than A, on run times that the test makes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from yolact_bench import cli
from yolact_bench.measure.suite import read_report
from yolact_bench.report.compare import compare
from yolact_runtime.errors import UsageError, YolactError


def around(milliseconds: float, seed: int = 0, n: int = 120, spread: float = 0.03) -> np.ndarray:
    return milliseconds * np.exp(np.random.default_rng(seed).normal(0, spread, n))


def verdicts(found) -> set[str]:
    return {one.verdict for one in found}


@pytest.mark.parametrize(
    ("after", "verdict", "words"),
    [
        (around(8, 1), "faster", "faster by "),
        (around(13, 1), "slower", "slower by "),
        (around(10, 1), "same", "the same ("),
        (around(10.15, 1), "same", "the same ("),  # there, but below what counts
        (around(11, 1, n=8, spread=0.5), "unclear", "no detectable difference ("),
        (around(8, 1, n=4), "unclear", "no detectable difference ("),
    ],
)
def test_verdicts(sampled, after: np.ndarray, verdict: str, words: str) -> None:
    found, _ = compare(sampled({"e": around(10)}), sampled({"e": after}))
    assert [(one.engine, one.batch, one.kind) for one in found] == [
        ("e", 1, "network_only"),
        ("e", 1, "end_to_end"),
    ]
    assert verdicts(found) == {verdict}
    assert found[0].sentence.startswith(words)
    assert found[0].ratio.value == pytest.approx(np.median(after) / np.median(around(10)), rel=1e-3)


def test_the_least_effect_that_counts(sampled) -> None:
    a, b = sampled({"e": around(10, n=2000)}), sampled({"e": around(10.2, 1, n=2000)})
    assert verdicts(compare(a, b)[0]) == {"same"}
    assert verdicts(compare(a, b, min_effect=0.01)[0]) == {"slower"}


def test_false_alarms_on_the_same_times(sampled) -> None:
    alarms = 0
    for seed in range(0, 200, 2):
        a, b = (sampled({"e": around(10, seed + side, 60)}) for side in (0, 1))
        alarms += bool(verdicts(compare(a, b, min_effect=0)[0]) & {"faster", "slower"})
    assert alarms <= 10  # of 100, where 5 are stated


def test_what_makes_reports_hard_to_compare(sampled) -> None:
    a, b = sampled({"e": around(10)}), sampled({"e": around(10, 1)})
    assert compare(a, b)[1] == []
    b["machine"] = {"cpu": "B", "cores": 2, "versions": {"numpy": "2.1", "torch": "2.9"}}
    b["settings"]["threads"] = 4
    b["conditions"]["warnings"] = ["other processes took 40%"]
    b["engines"][0].update(precision="bf16", weights_sha256="f" * 64)
    assert compare(a, b)[1] == [
        "B has a warning: other processes took 40%",
        "different machines: cpu is A in A, B in B",
        "numpy is 2.0 in A, 2.1 in B",
        "torch is missing in A, 2.9 in B",
        "different settings: threads is none in A, 4 in B",
        "e: precision is fp32 in A, bf16 in B",
        "e: weights_sha256 is unknown in A, ffffffffffff in B",
    ]


def test_a_busy_machine_proves_nothing(sampled) -> None:
    a, b = sampled({"e": around(10)}), sampled({"e": around(13, 1)})
    b["conditions"] = {"warnings": ["other processes took 40%"]}
    found, _ = compare(a, b)
    assert verdicts(found) == {"unclear"}
    assert found[0].sentence.startswith("unclear: seems slower by ")
    # What is the same in spite of it is the same.
    b["engines"] = sampled({"e": around(10, 1)})["engines"]
    assert verdicts(compare(a, b)[0]) == {"same"}


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "same"), (1.2, "slower"), (0.8, "faster")])
def test_a_control_takes_the_machine_out(sampled, factor: float, verdict: str) -> None:
    # While B was measured, a neighbour came and went, and slowed both engines alike.
    neighbour = 1 + 0.8 * (np.sin(np.arange(120) / 15) > 0)
    a = sampled({"old": around(20, 2, spread=0.01), "new": around(10, 3, spread=0.01)})
    b = sampled(
        {
            "old": neighbour * around(20, 4, spread=0.01),
            "new": factor * neighbour * around(10, 5, spread=0.01),
        }
    )
    b["conditions"] = {"warnings": ["other processes took 40%"]}
    found, _ = compare(a, b, control="old")
    assert {one.engine for one in found} == {"new"}
    assert verdicts(found) == {verdict}
    assert found[0].ratio.value == pytest.approx(factor, rel=0.01)
    with pytest.raises(UsageError, match="the control older is not in both reports"):
        compare(a, b, control="older")


def test_engines_are_matched_by_name(sampled) -> None:
    a = sampled({"x": around(10), "y": around(20)})
    b = sampled({"y": around(20, 1), "z": around(5)})
    assert {one.engine for one in compare(a, b)[0]} == {"y"}
    # One against one needs no name.
    assert {one.engine for one in compare(sampled({"x": around(1)}), sampled({"z": around(1)}))[0]} == {
        "x -> z"
    }
    with pytest.raises(
        UsageError, match=r"no engine and batch size in common: A has x .*B has z \(batch 1\)"
    ):
        compare(sampled({"x": around(1), "y": around(1)}), sampled({"z": around(1)}))


@pytest.mark.parametrize(("name", "value"), [("confidence", 0.2), ("confidence", 1.0), ("min_effect", -0.1)])
def test_numbers_out_of_range(sampled, name: str, value: float) -> None:
    report = sampled({"e": around(10)})
    with pytest.raises(UsageError, match=name.replace("min_effect", "minimal effect")):
        compare(report, report, **{name: value})


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("{", YolactError, "bench.json"),
        ("[]", YolactError, "is not one of yolact-bench: its schema is None"),
        (
            '{"schema": "yolact-bench/1"}',
            UsageError,
            "has schema 'yolact-bench/1'; this version reads yolact-bench/2",
        ),
        (
            '{"schema": "yolact-bench/2", "engines": [{}]}',
            YolactError,
            "is damaged: machine is not an object",
        ),
    ],
)
def test_files_that_are_no_report(tmp_path, content: str, error: type[YolactError], message: str) -> None:
    (tmp_path / "bench.json").write_text(content)
    with pytest.raises(error, match=message):
        read_report(tmp_path / "bench.json")


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (["machine"], [], "machine is not an object"),
        (["machine", "versions"], None, "machine.versions"),
        (["conditions", "warnings"], [1], "conditions.warnings"),
        (["conditions", "warnings"], ["busy"] * 1001, "conditions.warnings"),
        (["engines"], [], "engines is not a list"),
        (["engines", 0], 5, "an engine lacks"),
        (["engines", 0, "backend"], None, "an engine lacks"),
        (["engines", 0, "batches"], {}, "lacks batches"),
        (["engines", 0, "batches", 0], [], "batch size"),
        (["engines", 0, "batches", 0, "batch"], 1.0, "batch size"),
        (["engines", 0, "batches", 0, "alone"], None, "lacks samples_us"),
        (["engines", 0, "batches", 0, "alone", "samples_us"], [], "lacks samples_us"),
        (["engines", 0, "batches", 0, "alone", "samples_us"], [1, "2"], "no number of microseconds"),
        (["engines", 0, "batches", 0, "alone", "samples_us"], [float("nan")], "no number of microseconds"),
        (["engines", 0, "batches", 0, "alone", "samples_us"], [1e300], "no number of microseconds"),
        (["engines", 0, "batches", 0, "end_to_end", "samples_us"], [-1], "no number of microseconds"),
        (["engines", 0, "batches", 0, "alone", "samples_us"], [1] * 100_001, "YOLACT_MAX_RUNS"),
    ],
)
def test_values_that_no_report_has(sampled, tmp_path, where: list, value: object, message: str) -> None:
    report = sampled({"e.onnx": around(10)})
    inner = report
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    (tmp_path / "bench.json").write_text(json.dumps(report))
    with pytest.raises(YolactError, match=f"bench.json is damaged: .*{message}"):
        read_report(tmp_path / "bench.json")


@pytest.fixture
def files(sampled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, times in (("a", around(10)), ("b", around(11, 1)), ("c", around(9, 2))):
        (tmp_path / f"{name}.json").write_text(json.dumps(sampled({"e.onnx": times})))


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["a.json", "b.json"], 0),
        (["a.json", "b.json", "--fail-if-slower", "5"], 1),
        (["a.json", "b.json", "--fail-if-slower", "20"], 0),
        (["a.json", "c.json", "--fail-if-slower", "5"], 0),
        (["a.json", "b.json", "--fail-if-slower", "5", "--min-effect", "15"], 0),
        (["a.json", "b.json", "--fail-if-slower", "-1"], 2),
        (["a.json", "missing.json"], 1),
        (["a.json"], 2),
    ],
)
def test_command(files, options: list[str], code: int) -> None:
    assert cli.main(["compare", *options]) == code


def test_command_prints_what_it_found(files, capsys) -> None:
    cli.main(["compare", "a.json", "b.json", "--fail-if-slower", "5"])
    out, err = capsys.readouterr()
    assert "slower by" in out
    assert "e.onnx" in out
    assert "Mann-Whitney" in out
    assert "e.onnx, batch 1, end to end: slower by" in err
