"""The pictures of the page, each as SVG; an empty string where there is nothing to show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from yolact_bench.report.svg import WIDTH, Axis, Drawing, number, short, spread
from yolact_bench.stages import STAGES
from yolact_bench.suite import KINDS, EngineReport, Measured, Report

COLOURS = 8  # of the page's style sheet, --c0 to --c7
LEFT, RIGHT = 56, WIDTH - 12
ROW = 58  # pixels of one engine: its name and its shape
BINS = 90
SLIVERS = 12  # times as long: from there on stages are shown as parts of their run
KIND_NAMES = {"alone": "alone", "end_to_end": "end to end"}


def colour(report: Report, engine: EngineReport) -> str:
    """CSS colour of an engine, the same in every picture."""
    return f"var(--c{[one.name for one in report.engines].index(engine.name) % COLOURS})"


def stage_colour(stage: str) -> str:
    """CSS colour of a stage."""
    return f"var(--{stage})" if stage in STAGES else "var(--other)"


def distribution(report: Report, batch: int, kind: str) -> str:
    """Smoothed histograms of the run times, with median, p95 and p99, on one axis."""
    rows = [(engine, getattr(one, kind)) for engine in report.engines if (one := engine.at(batch))]
    if not rows:
        return ""
    # Stray runs must not press all others into a corner.
    ends = [
        end for _, measured in rows for end in (measured.min, min(_longest(measured), 1.25 * measured.p99))
    ]
    axis = spread(ends, 12, RIGHT)
    bottom = ROW * len(rows) + 4
    drawing = Drawing(bottom + 38, f"Distribution of run times {KIND_NAMES[kind]}")
    drawing.x_axis(axis, 4, bottom, "milliseconds per batch" + (", logarithmic" if axis.log else ""))
    for index, (engine, measured) in enumerate(rows):
        _distribution_row(drawing, axis, ROW * index, engine, measured, colour(report, engine))
    return str(drawing)


def _distribution_row(
    drawing: Drawing, axis: Axis, top: float, engine: EngineReport, measured: Measured, fill: str
) -> None:
    middle, half = top + 38, 16.0
    edges = [axis.inverse(share) for share in np.linspace(0, 1, BINS + 1)]
    values = np.clip(np.array(measured.samples_us) / 1000, edges[0], edges[-1])
    counts = np.histogram(values, edges)[0].astype(float)
    smooth = np.convolve(counts, [0.25, 0.5, 0.25], "same")
    heights = half * smooth / smooth.max()
    filled = np.flatnonzero(heights)
    places = [axis(axis.inverse((i + 0.5) / BINS)) for i in range(filled[0], filled[-1] + 1)]
    tall = heights[filled[0] : filled[-1] + 1].tolist()
    upper = [(x, middle - max(h, 0.4)) for x, h in zip(places, tall, strict=True)]
    lower = [(x, middle + max(h, 0.4)) for x, h in zip(places, tall, strict=True)]
    drawing.polyline([*upper, *reversed(lower)], "area", f"fill:{fill};stroke:{fill}", closed=True)
    for value, reach in ((measured.p95, 10), (measured.p99, 7)):
        drawing.line(axis(value), middle - reach, axis(value), middle + reach, "mark")
    drawing.line(axis(measured.median), middle - 18, axis(measured.median), middle + 18, "median")
    words = f"median {number(measured.median)} ms, p95 {number(measured.p95)}, p99 {number(measured.p99)}"
    longest = _longest(measured)
    if longest > axis.high:
        words += f", longest {number(longest)} (outside)"
    # Text is some 7 pixels a character.
    drawing.text(12, top + 16, short(engine.name, 118 - len(words)), kind="name")
    drawing.text(RIGHT, top + 16, words, "end", "tick")


def _longest(measured: Measured) -> float:
    return max(measured.samples_us) / 1000


def stages(report: Report, batch: int) -> str:
    """What each stage takes in the median, one bar an engine."""
    rows = [(engine, one) for engine in report.engines if (one := engine.at(batch))]
    if not rows:
        return ""
    sums = [sum(timing.median for timing in one.stages.values()) for _, one in rows]
    # Beside an engine that is much slower the others would be slivers.
    relative = max(sums) > SLIVERS * min(sums) > 0
    units = [total / 100 if relative else 1.0 for total in sums]
    axis = Axis(0, 100.0 if relative else max(sums) * 1.02 or 1.0, 12, RIGHT)
    bottom = 52 * len(rows) + 4
    drawing = Drawing(bottom + 38, "Median time of each stage")
    drawing.x_axis(
        axis,
        4,
        bottom,
        "percent of the run; numbers in milliseconds" if relative else "milliseconds per batch",
    )
    for index, (engine, one) in enumerate(rows):
        top, at = 52 * index, 0.0
        drawing.text(12, top + 16, short(engine.name, 100), kind="name")
        drawing.text(RIGHT, top + 16, f"{number(one.end_to_end.median)} ms", "end", "tick")
        for stage, timing in one.stages.items():
            x, end = axis(at), axis(at + timing.median / units[index])
            share = timing.median / sums[index] if sums[index] else 0.0
            title = f"{stage} {number(timing.median)} ms, {share:.0%}"
            drawing.rect(x, top + 23, end - x, 22, f"fill:{stage_colour(stage)}", title)
            if end - x > 7 * len(number(timing.median)) + 8:
                drawing.text((x + end) / 2, top + 38, number(timing.median), "middle", "inside")
            at += timing.median / units[index]
    return str(drawing)


def throughput(report: Report) -> str:
    """Images per second over the batch size: solid alone, dashed end to end."""
    sizes = list(report.settings["batches"])
    if len(sizes) < 2:
        return ""
    top, bottom = 12, 292
    rates = [
        getattr(one, kind).throughput for engine in report.engines for one in engine.batches for kind in KINDS
    ]
    y = Axis(0, max(rates) * 1.08, bottom, top)
    places = dict(zip(sizes, np.linspace(LEFT + 40, RIGHT - 40, len(sizes)).tolist(), strict=True))
    drawing = Drawing(bottom + 40, "Images per second over the batch size")
    drawing.y_axis(y, LEFT, RIGHT, 5)
    for size, x in places.items():
        drawing.text(x, bottom + 16, str(size), "middle", "tick")
    drawing.text((LEFT + RIGHT) / 2, bottom + 34, "batch size", "middle", "tick")
    for engine in report.engines:
        ink = colour(report, engine)
        for kind in KINDS:
            points = [(places[one.batch], y(getattr(one, kind).throughput)) for one in engine.batches]
            dashes = "" if kind == "alone" else ";stroke-dasharray:6 4"
            drawing.polyline(points, "series", f"stroke:{ink}{dashes}")
            for (x, height), one in zip(points, engine.batches, strict=True):
                rate = number(getattr(one, kind).throughput)
                title = f"{engine.name}, {KIND_NAMES[kind]}, batch {one.batch}: {rate} images/s"
                drawing.circle(x, height, 4, f"fill:{ink}", title)
    return str(drawing)


def timeline(report: Report) -> str:
    """Every run as part of its median over time, and below it what the machine did."""
    series = []
    for engine in report.engines:
        points = [
            (start / 1000, sample / 1000 / measured.median)
            for one in engine.batches
            for kind in KINDS
            for measured in (getattr(one, kind),)
            for start, sample in zip(measured.starts_ms, measured.samples_us, strict=True)
            if measured.median > 0
        ]
        series.append((engine, points))
    everything = [share for _, points in series for _, share in points]
    last = max([report.conditions.seconds, *(at for _, points in series for at, _ in points)])
    if not everything or last <= 0:
        return ""
    lanes = _lanes(report)
    high = min(max(everything), max(1.5, float(np.percentile(everything, 99.5))))
    x = Axis(0, last, LEFT, RIGHT)
    y = Axis(min(*everything, 0.9), high * 1.03, 170, 22)
    bottom = 180 + 66 * len(lanes)
    drawing = Drawing(bottom + 38, "Run times and the machine over time")
    drawing.x_axis(x, 22, bottom, "seconds since the start")
    drawing.text(LEFT, 14, "time of a run / median of its kind", kind="tick")
    drawing.y_axis(y, LEFT, RIGHT)
    for engine, points in series:
        drawing.dots([(x(at), y(share)) for at, share in points], f"stroke:{colour(report, engine)}")
    for index, (name, values) in enumerate(lanes):
        top = 180 + 66 * index
        seen = [
            (at, value)
            for at, value in zip(report.conditions.times, values, strict=True)
            if value is not None
        ]
        heights = [value for _, value in seen]
        lane = spread(heights, top + 58, top + 24, ratio=float("inf"))
        drawing.text(LEFT, top + 14, f"{name}: {number(min(heights))} to {number(max(heights))}", kind="tick")
        drawing.line(LEFT, top + 60, RIGHT, top + 60)
        drawing.polyline([(x(at), lane(value)) for at, value in seen], "series", "stroke:var(--lane)")
    return str(drawing)


def _lanes(report: Report) -> list[tuple[str, list[Any]]]:
    conditions = report.conditions
    gpu = conditions.gpu
    lanes = [
        ("CPU clock, MHz", conditions.cpu_mhz),
        ("CPU temperature, °C", conditions.cpu_temperature),
        ("GPU clock, MHz", gpu.get("sm_mhz", [])),
        ("GPU temperature, °C", gpu.get("temperature", [])),
        ("GPU power, W", gpu.get("power_w", [])),
    ]
    return [(name, values) for name, values in lanes if any(value is not None for value in values)]


def speed_against_ap(report: Report) -> str:
    """Mask AP over the time of an image end to end: up and left is better."""
    points = []
    for engine in report.engines:
        ap = (engine.accuracy or {}).get("mask_ap")
        if ap is not None and engine.batches:
            first = engine.batches[0]
            points.append((engine, first.end_to_end.median / first.batch, 100 * ap))
    if not points:
        return ""
    top, bottom = 14, 294
    x = spread([time for _, time, _ in points], LEFT + 20, RIGHT - 20, ratio=3)
    aps = [ap for *_, ap in points]
    # At least two points of AP high, so that nothing looks like much.
    middle, half = (min(aps) + max(aps)) / 2, max(1.0, 0.58 * (max(aps) - min(aps)))
    y = Axis(middle - half, middle + half, bottom, top)
    drawing = Drawing(bottom + 38, "Mask AP over milliseconds an image")
    unit = "milliseconds an image, end to end" + (", logarithmic" if x.log else "")
    drawing.x_axis(x, top, bottom, unit)
    drawing.y_axis(y, LEFT, RIGHT, 5)
    taken: list[tuple[float, float, float]] = [
        (x(time) - 9, y(ap) + 4, x(time) + 9) for _, time, ap in points
    ]
    for engine, time, ap in points:
        title = f"{engine.name}: {number(time)} ms, mask AP {ap:.2f}"
        drawing.circle(x(time), y(ap), 7, f"fill:{colour(report, engine)}", title)
        words = f"{ap:.1f} AP, {number(time)} ms"
        left, base = _free_place(taken, x(time), y(ap), 6.6 * len(words))
        taken.append((left, base, left + 6.6 * len(words)))
        drawing.text(left, base, words, kind="tick")
    return str(drawing)


def _free_place(
    taken: Sequence[tuple[float, float, float]], x: float, y: float, width: float
) -> tuple[float, float]:
    """Left end and base line for words beside a point, where none of (left, base, right) is in the way."""
    places = [
        (left, y + 4 + below)
        for below in (0, 18, -18, 36, -36, 54, -54)
        for left in (x + 12, x - 12 - width)
        if left > LEFT and left + width < RIGHT
    ]
    for left, base in places:
        if all(abs(base - other) > 14 or left > end or left + width < start for start, other, end in taken):
            return left, base
    return places[0]


def roofline(report: Report) -> str:
    """The share of the roofline that each engine reached: full bar by its kernels, dark by the floor."""
    rows = [
        (engine, content)
        for engine in report.engines
        if (content := engine.roofline) and content.get("share")
    ]
    if not rows:
        return ""
    shares = [
        share for _, content in rows for share in (content["share"], content.get("kernels_share") or 0.0)
    ]
    axis = Axis(0, 100 * max(1.0, *shares), 12, RIGHT)
    bottom = 52 * len(rows) + 4
    drawing = Drawing(bottom + 38, "Share of the roofline reached")
    drawing.x_axis(axis, 4, bottom, "percent")
    for index, (engine, content) in enumerate(rows):
        top, ink = 52 * index, colour(report, engine)
        share, kernels = content["share"], content["kernels_share"]
        words = (
            f"{share:.0%} by the floor, {kernels:.0%} kernel by kernel: {number(content['flops'] / 1e9)}"
            f" GFLOP, {number(content['bytes'] / 1e6)} MB in {number(content['measured_ms'])} ms"
        )
        drawing.text(12, top + 16, short(engine.name, 118 - len(words)), kind="name")
        drawing.text(RIGHT, top + 16, words, "end", "tick")
        for part, opacity in ((kernels, 0.4), (share, 1)):
            drawing.rect(12, top + 24, axis(100 * part) - 12, 20, f"fill:{ink};fill-opacity:{opacity}")
    return str(drawing)


def keys(report: Report) -> Sequence[tuple[str, str]]:
    """Name and CSS colour of every engine."""
    return [(engine.name, colour(report, engine)) for engine in report.engines]
