"""The plots of the page, each as SVG; an empty string if there is nothing to show.

They are drawn with `STYLE`. Colours become CSS variables, so that the plots follow the page's light and dark
style.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from yolact_bench.measure.candidate import KINDS, STAGES
from yolact_bench.measure.suite import EngineReport, Measured, Report
from yolact_bench.report.tables import machine_series
from yolact_runtime.errors import escape_controls

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 10  # inches
ROW = 0.62  # inches of one engine: its name, and a shape or a bar
BINS = 90
FEW_RUNS = 30  # below this, a histogram says less than the runs themselves
SLIVERS = 12  # if one engine takes this much longer, bars of stages are relative
# What matplotlib draws with -> the variable of the page's style sheet.
ENGINES = ("#2f6fb7", "#d9722e", "#1d9a73", "#b8407f", "#7659c4", "#a67c00", "#3f8fa5", "#6b7480")
_STAGES = ("#a9c9dd", "#e2b95c", "#b9a3e3", "#6fa3db", "#58b5a6", "#9a86d8", "#dd827a", "#f0b9a6")
STAGE_COLOURS = {**dict(zip(STAGES, _STAGES, strict=True)), "other": "#9aa3ad"}
INK, SOFT, GRID, INSIDE = "#010101", "#020202", "#030303", "#10151b"
VARIABLES = {
    **{colour: f"var(--c{index})" for index, colour in enumerate(ENGINES)},
    **{colour: f"var(--{stage})" for stage, colour in STAGE_COLOURS.items()},
    **{INK: "var(--ink)", SOFT: "var(--soft)", GRID: "var(--grid)"},
}
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # names may hold dollar signs
    "path.simplify": False,
    "text.color": INK,
    **dict.fromkeys(("axes.edgecolor", "grid.color"), GRID),
    **dict.fromkeys(("axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), SOFT),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    **dict.fromkeys((f"axes.spines.{side}" for side in ("top", "left", "right")), False),
    **{"font.size": 10.5, "legend.frameon": False, "axes.titlelocation": "left", "axes.titlesize": 9.5},
}


def colour(report: Report, engine: EngineReport) -> str:
    """The colour of an engine, the same in every plot."""
    return ENGINES[[one.name for one in report.engines].index(engine.name) % len(ENGINES)]


def stage_colour(stage: str) -> str:
    """The colour of a stage, the same in every plot."""
    return STAGE_COLOURS.get(stage, STAGE_COLOURS["other"])


def distribution(report: Report, batch: int, kind: str) -> str:
    """Run times on one axis: smoothed histograms, or points if they are few, with median, p95 and p99."""
    rows = [(engine, getattr(one, kind)) for engine, one in report.rows(batch)]
    if not rows:
        return ""
    figure, axes = _rows_figure(len(rows))
    longest = [max(measured.samples_us) / 1000 for _, measured in rows]
    # Outliers must not squeeze all other times into a corner.
    ends = [min(end, 1.25 * measured.p99) for end, (_, measured) in zip(longest, rows, strict=True)]
    times = [*ends, *(measured.min for _, measured in rows)]
    low, high = _spread(axes, times, "milliseconds per batch")
    for index, (engine, measured) in enumerate(rows):
        _draw_runs(axes, index, measured, colour(report, engine), low, high)
        words = f"median {number(measured.median)} ms, p95 {number(measured.p95)}, p99 {number(measured.p99)}"
        if longest[index] > high:
            words += f", longest {number(longest[index])} (outside)"
        _row_label(axes, index, engine.name, words)
    return _svg(figure, f"Distribution of run times, {kind.replace('_', ' ')}, batch {batch}")


def _draw_runs(axes: Axes, index: int, measured: Measured, fill: str, low: float, high: float) -> None:
    """The run times of one engine in its row."""
    samples = np.clip(np.array(measured.samples_us) / 1000, low, high)
    if len(samples) < FEW_RUNS:
        places = index + 0.09 * (np.arange(len(samples)) % 5 - 2)
        axes.plot(samples, places, "o", color=fill, markersize=4.5, alpha=0.6, markeredgewidth=0)
    else:
        space = np.geomspace if axes.get_xscale() == "log" else np.linspace
        edges = space(low, high, BINS + 1)
        heights = np.convolve(np.histogram(samples, edges)[0], [0.25, 0.5, 0.25], "same")
        heights = 0.26 * heights / heights.max()
        middles, shown = (edges[:-1] + edges[1:]) / 2, heights > 0
        axes.fill_between(middles, index - heights, index + heights, where=shown, color=fill, alpha=0.45)
    axes.vlines([measured.p95, measured.p99], index - 0.17, index + 0.17, color=INK, linewidth=0.9)
    axes.vlines(measured.median, index - 0.29, index + 0.29, color=INK, linewidth=2)


def stages(report: Report, batch: int) -> str:
    """The median time of each stage, one bar per engine."""
    rows = report.rows(batch)
    if not rows:
        return ""
    sums = [sum(timing.median for timing in one.stages.values()) for _, one in rows]
    # Next to an engine that is much slower the bars of the others would be slivers.
    relative = max(sums) > SLIVERS * min(sums) > 0
    figure, axes = _rows_figure(len(rows))
    longest = 100.0 if relative else max(sums) * 1.01 or 1.0
    unit = "percent of the run; numbers in milliseconds" if relative else "milliseconds per batch"
    axes.set(xlim=(0, longest), xlabel=unit)
    for index, (engine, one) in enumerate(rows):
        _row_label(axes, index, engine.name, f"{number(one.end_to_end.median)} ms")
        left = 0.0
        for stage, timing in one.stages.items():
            share = timing.median / sums[index] if sums[index] else 0.0
            width = 100 * share if relative else timing.median
            fill, text = stage_colour(stage), number(timing.median)
            bars = axes.barh(index, width, 0.42, left, color=fill, gid=f"tip:{stage} {text} ms, {share:.0%}")
            if width > 0.012 * longest * (1 + len(text)):
                axes.bar_label(bars, [text], label_type="center", color=INSIDE, fontsize=9)
            left += width
    return _svg(figure, f"Median time of each stage, batch {batch}")


def throughput(report: Report) -> str:
    """Images per second over the batch size: solid network only, dashed end to end."""
    sizes = list(report.settings["batches"])
    if len(sizes) < 2:
        return ""
    figure, axes = _figure(3.6)
    for engine in report.engines:
        for kind, line in zip(KINDS, ("-", "--"), strict=True):
            ink = colour(report, engine)
            points = [(sizes.index(one.batch), getattr(one, kind).throughput) for one in engine.batches]
            axes.plot(*zip(*points, strict=True), line, color=ink)
            for at, rate in points:
                name = f"{short(engine.name, 70)}, {kind.replace('_', ' ')}"
                text = f"{name}, batch {sizes[at]}: {number(rate)} images/s"
                axes.plot([at], [rate], "o", color=ink, markersize=5, gid=f"tip:{text}")
    axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    axes.set(xlabel="batch size", ylabel="images per second", ylim=(0, None))
    return _svg(figure, "Images per second over the batch size")


def timeline(report: Report) -> str:
    """Every run relative to the median of its kind over time, and below it the state of the machine."""
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
        series += [(engine, points)] if points else []
    shares = [share for _, points in series for _, share in points]
    if not shares:
        return ""
    lanes = machine_series(report)
    figure, rows = _figure(2.8 + 0.85 * len(lanes), [2.6, *[0.8] * len(lanes)])
    first, *others = np.atleast_1d(rows)
    high = min(max(shares), max(1.5, float(np.percentile(shares, 99.5))))
    for engine, points in series:
        # One line of gaps, whose round caps are the dots: markers take ten times the space.
        ends = np.repeat(np.minimum(points, (np.inf, high)), 3, axis=0)
        ends[2::3] = np.nan
        dots: Any = {"linewidth": 2.6, "alpha": 0.55, "solid_capstyle": "round"}
        first.plot(*ends.T, color=colour(report, engine), **dots)
    first.set(ylim=(min(*shares, 0.9), high * 1.03), xlim=(0, None))
    first.set_title("time of a run / median of its kind")
    for axes, (name, unit, values) in zip(others, lanes, strict=True):
        known = [(at, v) for at, v in zip(report.conditions.times, values, strict=True) if v is not None]
        low, high = (end(value for _, value in known) for end in (min, max))
        axes.set_title(f"{name}, {unit}: {number(low)} to {number(high)}")
        axes.plot(*zip(*known, strict=True), color=SOFT, linewidth=1.4)
        axes.set_yticks([])
    (others or [first])[-1].set_xlabel("seconds since the start")
    return _svg(figure, "Run times and the machine over time")


def speed_against_ap(report: Report) -> str:
    """Mask AP over the time of an image end to end: up and left is better."""
    points = [
        (engine, first.end_to_end.median / first.batch, 100 * ap)
        for engine in report.engines
        for first in engine.batches[:1]
        if (ap := (engine.accuracy or {}).get("mask_ap")) is not None
    ]
    if not points:
        return ""
    figure, axes = _figure(3.4 + 0.2 * len(points))
    _spread(axes, [time for _, time, _ in points], "milliseconds per image, end to end", ratio=3)
    aps = [ap for *_, ap in points]
    # At least two points of AP high, so that small differences look small.
    middle, half = (min(aps) + max(aps)) / 2, max(1.0, 0.58 * (max(aps) - min(aps)))
    axes.set(ylabel="mask AP", ylim=(middle - half, middle + half))
    labels = []
    for engine, time, ap in points:
        label = f"{short(engine.name, 70)}: {ap:.1f} AP, {number(time)} ms"
        dot = axes.plot([time], [ap], "o", color=colour(report, engine), markersize=9)
        labels.append((dot[0], label))
    # With the labels given, as names that begin with an underscore would be left out.
    figure.legend(*zip(*labels, strict=True), loc="outside lower left")
    return _svg(figure, "Mask AP over milliseconds per image")


def roofline(report: Report) -> str:
    """The share of the roofline that each engine reaches: pale by its kernels, dark by the floor."""
    rows = [(engine, found) for engine in report.engines if (found := engine.roofline) and found.get("share")]
    if not rows:
        return ""
    figure, axes = _rows_figure(len(rows))
    largest = max(max(found["share"], found["kernels_share"] or 0.0) for _, found in rows)
    axes.set(xlim=(0, 100 * max(1.0, largest)), xlabel="percent")
    for index, (engine, found) in enumerate(rows):
        words = (
            f"{found['share']:.0%} by the floor, {found['kernels_share']:.0%} kernel by kernel:"
            f" {number(found['flops'] / 1e9)} GFLOP, {number(found['bytes'] / 1e6)} MB in"
            f" {number(found['measured_ms'])} ms"
        )
        _row_label(axes, index, engine.name, words)
        for key, alpha in (("kernels_share", 0.4), ("share", 1)):
            axes.barh(index, 100 * found[key], 0.4, color=colour(report, engine), alpha=alpha)
    return _svg(figure, "Share of the roofline reached")


def keys(report: Report) -> Sequence[tuple[str, str]]:
    """Name and CSS colour of every engine."""
    return [(engine.name, VARIABLES[colour(report, engine)]) for engine in report.engines]


def number(value: float) -> str:
    """A number for people: about three digits."""
    return f"{value:,.0f}".replace(",", "\u202f") if abs(value) >= 100 else f"{value:.3g}"


def short(name: str, most: int) -> str:
    """A name of at most `most` characters, its middle left out."""
    name, tail = escape_controls(name), most // 3
    return name if len(name) <= most else f"{name[: most - tail - 1]}…{name[-tail:]}"


def _figure(height: float, ratios: Sequence[float] = (1,)) -> tuple[Figure, Any]:
    """A figure without pyplot, so without windows and global state, and its axes from top to bottom."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(len(ratios), sharex=True, height_ratios=ratios)


def _rows_figure(count: int) -> tuple[Figure, Axes]:
    """A figure with a row for each engine, from top to bottom at y = 0, 1, ..."""
    figure, axes = _figure(ROW * count + 0.6)
    axes.set(ylim=(count - 0.6, -0.75), yticks=[])
    return figure, axes


def _row_label(axes: Axes, index: int, name: str, words: str) -> None:
    """The name of an engine at the left of its row, its figures at the right."""
    place: Any = {"transform": axes.get_yaxis_transform(), "va": "bottom"}
    most = 118 - len(words)  # characters that fit
    axes.text(0, index - 0.34, short(name, most), fontweight="bold", **place)
    axes.text(1, index - 0.34, words, ha="right", color=SOFT, fontsize=9.5, **place)


def _spread(axes: Axes, values: Sequence[float], label: str, ratio: float = 6) -> tuple[float, float]:
    """Label the x axis, logarithmic if values differ by `ratio`, with room for all; returns its ends."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = min(values), max(values)
    if low > 0 and high / low > ratio:
        low, high, label = low / 1.08, high * 1.08, f"{label}, logarithmic"
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        room = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
        low, high = max(0.0, low - room), high + room
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.set(xlabel=label, xlim=(low, high))
    return low, high


def _svg(figure: Figure, label: str) -> str:
    """A figure as an SVG element for HTML: page colours, unique ids, tooltips, an accessible name."""
    import matplotlib

    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": label}):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg ") :]
    # Its style element would apply to the whole page.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r'<g id="tip:([^"]*)">', r"<g><title>\1</title>", text)
    prefix = re.sub(r"\W+", "-", label.lower())
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{prefix}-", text)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    for hexadecimal, variable in VARIABLES.items():
        text = text.replace(hexadecimal, variable)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
