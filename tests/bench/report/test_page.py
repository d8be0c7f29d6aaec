"""The page: valid, self-contained, and without a complaint in a browser."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

import html5lib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolact_bench.report import plots, tables
from yolact_bench.report.page import write_html
from yolact_bench.report.svg import Axis, spread
from yolact_bench.statistics import Interval
from yolact_bench.suite import Report, with_extras

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SPAN = {"value": 2.0, "low": 1.5, "high": 2.5}
ROOFLINE = {
    "batch": 1, "flops": 118 * 10**9, "bytes": 10**8, "share": 0.4, "kernels_share": 0.7, "measured_ms": 9.0,
    "floor_ms": 3.6, "kernels_ms": 6.3, "precision": "bf16",
}  # fmt: skip


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
    assert not re.search(r"(?:src|href)\s*=|@import|url\(|<script", page)


def test_what_comes_from_outside_is_escaped(full: Report, tmp_path: Path) -> None:
    page = page_of(full, tmp_path)
    assert "b<&>" not in page
    assert "b&lt;&amp;&gt;" in page
    assert "other &amp; weights" in page
    assert "<CPU>" not in page


def texts(drawing: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)", drawing)


def test_every_engine_is_in_every_drawing(full: Report) -> None:
    drawings = [
        plots.distribution(full, 1, "alone"),
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


def test_stages_beside_a_much_slower_engine(full: Report) -> None:
    """They are parts of the run then, or the quick engine's bar would be a sliver."""
    assert "milliseconds per batch" in texts(plots.stages(full, 1))
    quick, slow = full.engines
    (first, *_) = slow.batches
    longer = {
        name: dataclasses.replace(timing, median=100 * timing.median) for name, timing in first.stages.items()
    }
    slow = dataclasses.replace(slow, batches=[dataclasses.replace(first, stages=longer)])
    drawing = plots.stages(dataclasses.replace(full, engines=[quick, slow]), 1)
    assert "percent of the run; numbers in milliseconds" in texts(drawing)
    widths = [float(width) for width in re.findall(r'<rect[^>]* width="([\d.]+)"', drawing)]
    assert sum(widths[:3]) == pytest.approx(sum(widths[3:]), abs=2)


def test_a_slow_engine_has_figures_that_differ_from_nothing(full: Report) -> None:
    measured = dataclasses.replace(full.engines[1].batches[0].alone, ratio=Interval(0.0031, 0.003, 0.0042))
    assert tables.ratio(measured) == "0.0031 (0.003..0.0042)"
    assert (tables.rate(0.64), tables.rate(213.14)) == ("0.64", "213.1")


def test_tables_hold_everything(full: Report, capsys: pytest.CaptureFixture[str]) -> None:
    tables.show(full)
    out = capsys.readouterr().out
    for word in (
        "What ran",
        "COCO AP",
        "Pipeline beside",
        "Roofline",
        "bf16",
        "40.0%",
        "throttled: power cap",
    ):
        assert word in out


def test_the_timeline_shows_what_is_known(full: Report) -> None:
    words = " ".join(texts(plots.timeline(full)))
    assert "CPU clock, MHz: 2" in words
    assert "GPU clock" in words
    assert "GPU temperature" in words
    assert "power" not in words


def test_nothing_to_draw(report: Report) -> None:
    assert plots.speed_against_ap(report) == ""
    assert plots.roofline(report) == ""
    assert plots.distribution(report, 4, "alone") == ""
    one = dataclasses.replace(report, settings={**report.settings, "batches": [1]})
    assert plots.throughput(one) == ""


def test_labels_of_points_do_not_cover_each_other(full: Report) -> None:
    same = {"mask_ap": 0.3, "mask_ap50": 0.5, "box_ap": 0.3, "box_ap50": 0.5, "images": 3, "failures": 0}
    report = with_extras(full, {engine.name: {"accuracy": same} for engine in full.engines})
    drawing = plots.speed_against_ap(report)
    found = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"[^>]*>30\.0 AP', drawing)
    places = [(float(x), float(y)) for x, y in found]
    assert len(places) == 2
    (left, top), (right, bottom) = sorted(places)
    assert abs(top - bottom) > 12 or right - left > 60


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8), st.floats(1, 100))
def test_axes_hold_their_values(values: list[float], ratio: float) -> None:
    axis = spread(values, 10, 500, ratio)
    places = [axis(value) for value in values]
    assert all(10 <= place <= 500 for place in places)
    assert np.argsort(places, kind="stable")[0] in np.flatnonzero(np.isclose(values, min(values)))
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 16
    assert all(axis.low * (1 - 1e-9) <= tick <= axis.high * (1 + 1e-9) for tick in ticks)


@given(st.floats(0, 1), st.booleans())
def test_an_axis_goes_both_ways(share: float, log: bool) -> None:
    axis = Axis(2, 300, 40, 700, log)
    assert axis(axis.inverse(share)) == pytest.approx(40 + 660 * share)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium; Debian: apt-get install chromium")
def test_no_complaint_in_a_browser(full: Report, tmp_path: Path) -> None:
    """The page opens in headless Chromium with an empty console and draws something."""
    page_of(full, tmp_path)
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--window-size=1100,4000",
            f"--screenshot={tmp_path / 'page.png'}", (tmp_path / "bench.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    import cv2

    picture = cv2.imread(str(tmp_path / "page.png"))
    assert picture is not None
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
