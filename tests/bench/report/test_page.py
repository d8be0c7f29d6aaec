"""The page: valid, self-contained, and without a complaint in a browser."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import html5lib
import matplotlib
import numpy as np
import pytest
from browser import chromium, needs_chromium, on_a_phone

from yolact_bench.measure.statistics import Interval
from yolact_bench.measure.suite import Report, with_extras
from yolact_bench.report import plots, tables
from yolact_bench.report.page import write_html

SPAN = {"value": 2.0, "low": 1.5, "high": 2.5}
ROOFLINE = {
    "batch": 1, "flops": 118 * 10**9, "bytes": 10**8, "share": 0.4, "kernels_share": 0.7, "measured_ms": 9.0,
    "floor_ms": 3.6, "kernels_ms": 6.3, "precision": "bf16",
}  # fmt: skip


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    """The plots are drawn as on the page."""
    with matplotlib.rc_context(plots.STYLE):
        yield


@pytest.fixture
def full(report: Report) -> Report:
    """Everything that a report can hold."""
    conditions = dataclasses.replace(
        report.conditions,
        seconds=2.0,
        times=[0.0, 1.0, 2.0],
        cpu_mhz=[2000.0, 2100.0, 2050.0],
        gpu={"sm_mhz": [1800, 1700, 1750], "temperature": [60, None, 62], "power_w": [None] * 3},
        throttled={"power cap": 0.5},
        warnings=["other processes took 50% of the <CPU> time"],
    )
    extras = {
        engine.name: {
            "cold": {"import_ms": 1.0, "load_ms": 2.0, "first_ms": 3.0, "peak_mib": 4.0, "device_mib": None},
            "accuracy": {
                "mask_ap": 0.3 + 0.1 * i, "mask_ap50": 0.5, "box_ap": None, "box_ap50": None, "images": 3,
                "failures": 0,
            },
            "pipeline": {
                "images": 16, "batch": 1, "streams": 2, "workers": 1, "serial": SPAN, "pipeline": SPAN,
                "ratio": SPAN,
            },
            "roofline": ROOFLINE,
        }
        for i, engine in enumerate(report.engines)
    }  # fmt: skip
    return with_extras(dataclasses.replace(report, conditions=conditions), extras)


def page_of(report: Report, folder: Path) -> str:
    write_html(report, folder / "bench.html")
    return (folder / "bench.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("which", ["report", "full"])
def test_it_is_valid_html(which: str, request, tmp_path: Path) -> None:
    page = page_of(request.getfixturevalue(which), tmp_path)
    html5lib.HTMLParser(strict=True).parse(page)
    assert not re.search(r"\bnan\b|\binf\b", page, re.IGNORECASE)


def test_it_needs_nothing_but_itself(full: Report, tmp_path: Path) -> None:
    page = page_of(full, tmp_path)
    # Links within the page are those of its drawings to their markers and clips.
    assert not re.search(r'(?:src|href)\s*=\s*"(?!#)|@import|url\((?!#)|<script', page)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', page)) <= set(ids)


def test_names_and_notes_are_escaped(full: Report, tmp_path: Path) -> None:
    page = page_of(full, tmp_path)
    assert "b<&>" not in page
    assert "b&lt;&amp;&gt;" in page
    assert "other &amp; weights" in page
    assert "<CPU>" not in page


def texts(drawing: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)", drawing)


def test_every_engine_is_in_every_drawing(full: Report) -> None:
    drawings = [
        plots.distribution(full, 1, "network_only"),
        plots.distribution(full, 2, "end_to_end"),
        plots.stages(full, 1),
        plots.roofline(full),
    ]
    for drawing in drawings:
        assert "a.onnx" in texts(drawing)
        assert any(text.startswith("b&lt;&amp;&gt;") for text in texts(drawing))
    for drawing in (plots.throughput(full), plots.speed_against_ap(full), plots.timeline(full)):
        assert "var(--c0)" in drawing
        assert "var(--c1)" in drawing


def widths(drawing: str) -> list[float]:
    """Of the bars, which are the only shapes with a tooltip."""
    found = re.findall(r'<title>[^<]*</title>\s*<path d="M ([\d.]+) [\d.]+ \s*L ([\d.]+)', drawing)
    corners = re.findall(r'<title>[^<]*</title>\s*<path d="([^"]*)"', drawing)
    assert len(found) <= len(corners)
    sides = [[float(x) for x in re.findall(r"[ML] ([\d.]+) ", corner)] for corner in corners]
    return [max(side) - min(side) for side in sides]


def test_stages_next_to_a_much_slower_engine(full: Report) -> None:
    """They are relative to the run then, or the fast engine's bar would be a sliver."""
    assert "milliseconds per batch" in texts(plots.stages(full, 1))
    fast, slow = full.engines
    (first, *_) = slow.batches
    longer = {
        name: dataclasses.replace(timing, median=100 * timing.median) for name, timing in first.stages.items()
    }
    slow = dataclasses.replace(slow, batches=[dataclasses.replace(first, stages=longer)])
    drawing = plots.stages(dataclasses.replace(full, engines=[fast, slow]), 1)
    assert "percent of the run; numbers in milliseconds" in texts(drawing)
    bars = widths(drawing)
    assert len(bars) == 6
    assert sum(bars[:3]) == pytest.approx(sum(bars[3:]), abs=2)
    assert "<title>cooking 300 ms, 50%</title>" in drawing


@pytest.mark.parametrize(("runs", "points"), [(29, 29), (30, 0)])
def test_few_runs_are_points(full: Report, runs: int, points: int) -> None:
    engine = full.engines[0]
    samples = [1000 + index for index in range(runs)]
    measured = dataclasses.replace(engine.batches[0].end_to_end, samples_us=samples, p99=1.03, min=1.0)
    batch = dataclasses.replace(engine.batches[0], end_to_end=measured)
    report = dataclasses.replace(full, engines=[dataclasses.replace(engine, batches=[batch])])
    drawing = plots.distribution(report, 1, "end_to_end")
    dots = re.findall(r"<use [^>]*var\(--c0\)", drawing)
    assert len(dots) == points or (points == 0 and len(dots) == 1)  # the outline of the histogram


def test_a_slow_engine_has_figures_that_differ_from_nothing(full: Report) -> None:
    measured = dataclasses.replace(
        full.engines[1].batches[0].network_only, ratio=Interval(0.0031, 0.003, 0.0042)
    )
    assert tables.ratio(measured) == "0.0031 (0.003..0.0042)"
    assert (tables.rate(0.64), tables.rate(213.14)) == ("0.64", "213.1")


def test_tables_hold_everything(full: Report, capsys: pytest.CaptureFixture[str]) -> None:
    tables.show(full)
    out = capsys.readouterr().out
    for word in (
        "Engines",
        "COCO AP",
        "Pipeline against",
        "Roofline",
        "bf16",
        "40.0%",
        "throttled: power cap",
    ):
        assert word in out


def test_columns_that_no_engine_fills_are_left_out(full: Report) -> None:
    ours, theirs = full.engines
    cold = {**(theirs.cold or {}), "device_mib": 7.0}
    other = dataclasses.replace(full, engines=[ours, dataclasses.replace(theirs, licence="MIT", cold=cold)])
    for report, licence, memory in (
        (full, [], []),
        (other, [["licence", "-", "MIT"]], [["GPU MiB", "-", "7"]]),
    ):
        found = tables.report_tables(report)
        cells = [
            list(column)
            for name in ("engines", "cold")
            for column in zip(found[name].columns, *found[name].rows, strict=True)
        ]
        assert [column for column in cells if column[0] == "licence"] == licence
        assert [column for column in cells if column[0] == "GPU MiB"] == memory
        assert "CPU" in found["end_to_end"].columns and "CPU" not in found["network_only"].columns
    nothing = with_extras(full, {engine.name: {"cold": None, "accuracy": None} for engine in full.engines})
    assert not {"cold", "accuracy"} & set(tables.report_tables(nothing))


def test_the_timeline_shows_what_is_known(full: Report) -> None:
    words = " ".join(texts(plots.timeline(full)))
    assert "CPU clock, MHz: 2" in words
    assert "GPU clock" in words
    assert "GPU temperature" in words
    assert "power" not in words


def test_nothing_to_draw(report: Report) -> None:
    assert plots.speed_against_ap(report) == ""
    assert plots.roofline(report) == ""
    assert plots.distribution(report, 4, "network_only") == ""
    one = dataclasses.replace(report, settings={**report.settings, "batches": [1]})
    assert plots.throughput(one) == ""


def test_every_point_is_named_once(full: Report) -> None:
    same = {"mask_ap": 0.3, "mask_ap50": 0.5, "box_ap": 0.3, "box_ap50": 0.5, "images": 3, "failures": 0}
    report = with_extras(full, {engine.name: {"accuracy": same} for engine in full.engines})
    labels = [text for text in texts(plots.speed_against_ap(report)) if "30.0 AP" in text]
    assert [label.partition(":")[0] for label in labels] == ["a.onnx", "b&lt;&amp;&gt;\"'.onnx"]


def test_names_are_not_formulas(full: Report) -> None:
    engines = [dataclasses.replace(full.engines[0], name="a$b$_c^2")]
    assert "a$b$_c^2" in texts(plots.stages(dataclasses.replace(full, engines=engines), 1))


def test_a_gpu_that_does_not_report_throttling_is_not_called_unthrottled(full: Report) -> None:
    assert "; throttled: power cap" in tables.conditions(full)
    for known, text in (({}, "; not throttled"), (None, "; whether it was throttled is unknown")):
        conditions = dataclasses.replace(full.conditions, throttled=known)
        assert text in tables.conditions(dataclasses.replace(full, conditions=conditions))


@pytest.mark.slow
@needs_chromium
def test_no_complaint_in_a_browser(full: Report, tmp_path: Path) -> None:
    """The page opens in headless Chromium with an empty console and draws something."""
    page_of(full, tmp_path)
    picture = tmp_path / "page.png"
    options = "--enable-logging=stderr", "--window-size=1100,4000", f"--screenshot={picture}"
    done = chromium(tmp_path, *options, (tmp_path / "bench.html").as_uri())
    assert "CONSOLE" not in done.stderr
    import cv2

    drawn = cv2.imread(str(picture))
    assert drawn is not None
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 50


@pytest.mark.slow
@needs_chromium
def test_it_fits_a_phone(full: Report, tmp_path: Path) -> None:
    """Wide tables and plots scroll inside their containers: the page itself is no wider than the screen."""
    page_of(full, tmp_path)
    seen = on_a_phone(tmp_path / "bench.html")
    assert seen["scroll"] == seen["client"]
    assert seen["heading"] < 60
