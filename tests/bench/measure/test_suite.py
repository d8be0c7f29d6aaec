"""What `measure` makes of candidates. No test looks at how long anything takes."""

from __future__ import annotations

import dataclasses
import json
from importlib import resources

import jsonschema
import numpy as np
import pytest
from fake_engine import FakeEngine

from yolact_bench.measure.stages import EngineCandidate
from yolact_bench.measure.suite import SCHEMA, Report, Settings, measure, with_extras
from yolact_bench.report.tables import input_text, report_tables
from yolact_runtime.errors import UsageError

QUICK = Settings(seconds=0.01, runs=6)


def schema() -> dict:
    return json.loads(resources.files("yolact_bench.report").joinpath("schema.json").read_text())


def test_report_of_two_engines(images, findings) -> None:
    candidates = [EngineCandidate("a", FakeEngine(findings)), EngineCandidate("b", FakeEngine({}))]
    report = measure(candidates, images, Settings(seconds=60, runs=6))
    a, b = report.engines
    assert (a.name, a.backend, a.config, a.precision, a.input_size) == ("a", "FakeEngine", "fake", "fp32", 32)
    (first,), (second,) = a.batches, b.batches
    assert first.network_only.ratio == first.end_to_end.ratio == (1, 1, 1)
    assert second.network_only.ratio is not None
    assert second.network_only.ratio.value == pytest.approx(
        first.network_only.median / second.network_only.median
    )
    assert second.network_only.ratio.low <= second.network_only.ratio.value <= second.network_only.ratio.high
    # The stages of a run lie within it.
    assert 0 < sum(timing.mean for timing in first.stages.values()) <= first.end_to_end.mean
    assert (first.detections, second.detections) == (1, 0)
    assert (
        first.network_only.mean_interval[0] <= first.network_only.mean <= first.network_only.mean_interval[1]
    )


def test_raw_samples_are_those_of_the_statistics(report: Report) -> None:
    for engine, one in report.rows():
        for measured in (one.network_only, one.end_to_end):
            assert len(measured.samples_us) == len(measured.starts_ms) == measured.runs
            # Rounded to microseconds.
            assert np.median(measured.samples_us) / 1000 == pytest.approx(measured.median, abs=5.1e-4)
            assert measured.starts_ms == sorted(measured.starts_ms), engine.name


def test_all_candidates_see_the_same_images_in_turn(images, make_candidate) -> None:
    candidates = [make_candidate("a"), make_candidate("b")]
    measure(candidates, images, Settings(batches=(2,), seconds=60, runs=5))
    a, b = (candidate.log for candidate in candidates)
    # Both warm up equally long, so they have the same images in every round.
    assert a == b
    assert a[0] == ("prepare", 2)
    assert [entry for entry in a if isinstance(entry, list)][:3] == [
        ["1.png", "2.png"],
        ["3.png", "1.png"],
        ["2.png", "3.png"],
    ]


def test_batch_sizes_that_only_some_take(images, make_candidate, caplog) -> None:
    candidates = [make_candidate("small", most=2), make_candidate("large")]
    report = measure(candidates, images, Settings(batches=(1, 4), seconds=0.01, runs=5))
    small, large = report.engines
    assert [one.batch for one in small.batches] == [1]
    assert [one.batch for one in large.batches] == [1, 4]
    # There is nothing to relate the larger batch to.
    assert large.batches[1].network_only.ratio is None
    assert "small takes batches of 1 to 2 images, not 4" in caplog.text
    assert [(engine.name, one.batch) for engine, one in report.rows()] == [
        ("small", 1),
        ("large", 1),
        ("large", 4),
    ]


def test_nothing_to_measure(images, make_candidate) -> None:
    with pytest.raises(UsageError, match="a takes batches of 1 to 8 images, not 16"):
        measure([make_candidate("a")], images, Settings(batches=(9, 16)))
    with pytest.raises(UsageError, match="no images"):
        measure([make_candidate("a")], [])
    for batches in ((), (0,), (2, 2)):
        with pytest.raises(UsageError, match="batch sizes"):
            Settings(batches=batches)


def test_stages_of_a_candidate_are_kept_as_it_calls_them(images, make_candidate) -> None:
    report = measure([make_candidate("a")], images, QUICK)
    stages = report.engines[0].batches[0].stages
    assert {name: timing.median for name, timing in stages.items()} == pytest.approx(
        {"decode": 1, "network": 2, "cooking": 3}
    )


def test_cpu_time_is_that_of_the_process_which_did_the_work(images, make_candidate) -> None:
    class Elsewhere(make_candidate):
        def end_to_end(self, paths):
            return dataclasses.replace(super().end_to_end(paths), cpu_seconds=0.25)

    report = measure([make_candidate("here"), Elsewhere("elsewhere")], images, QUICK)
    here, elsewhere = (engine.batches[0].cpu_ms for engine in report.engines)
    assert elsewhere == 250
    assert 0 <= here < 250


def test_json_keeps_to_its_schema(report: Report) -> None:
    content = json.loads(json.dumps(report.to_json()))
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(content, schema())
    assert content["schema"] == SCHEMA == schema()["properties"]["schema"]["const"]
    assert set(content["engines"][1]["batches"][0]["alone"]["ratio"]) == {"value", "low", "high"}


def test_an_input_that_is_not_square(images, findings) -> None:
    engine = FakeEngine(findings)
    engine.metadata = dataclasses.replace(engine.metadata, input_size=(48, 80))
    report = measure([EngineCandidate("wide", engine)], images, QUICK)
    content = json.loads(json.dumps(report.to_json()))
    jsonschema.validate(content, schema())
    assert content["engines"][0]["input_size"] == [48, 80]
    assert [input_text(one) for one in report.engines] == ["48x80 px"]
    assert report_tables(report)["engines"].rows[0][4] == "48x80 px"


def test_the_schema_refuses_what_is_no_report(report: Report) -> None:
    def broken(change) -> dict:
        content = json.loads(json.dumps(report.to_json()))
        change(content)
        return content

    for change in (
        lambda content: content.pop("conditions"),
        lambda content: content["engines"][0]["batches"][0]["alone"].pop("samples_us"),
        lambda content: content["engines"][0]["batches"][0]["alone"].update(median="3"),
        lambda content: content["engines"][0].update(cold={"load_ms": 1}),
        lambda content: content["engines"][0].update(input_size=[48]),
        lambda content: content.update(schema="yolact-bench/1"),
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken(change), schema())


def test_extras_go_to_their_engine(report: Report) -> None:
    cold = dict.fromkeys(("import_ms", "load_ms", "first_ms", "peak_mib", "device_mib"), 1.0)
    whole = with_extras(report, {"a.onnx": {"cold": cold}})
    assert [engine.cold for engine in whole.engines] == [cold, None]
    jsonschema.validate(json.loads(json.dumps(whole.to_json())), schema())
