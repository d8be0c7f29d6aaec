"""A report as tables on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from yolact_bench.compare import Comparison
from yolact_bench.protocol import MIN_RUNS, WARM_UP_LIMIT, WARM_UP_RUNS
from yolact_bench.stages import STAGES
from yolact_bench.suite import EngineReport, Measured, Report
from yolact_runtime.commandline import table_console

COLUMNS = ("median", "p90", "p95", "p99", "mean", "±", "std")
TITLES = {"alone": "Engine alone", "end_to_end": "End to end, file to run lengths"}
PIPELINE_PROTOCOL = (
    "Files to run lengths; passes over the same images in turns, warmed up as above; means, 95% intervals."
    " Loop: the engine opened for latency, one stream with all threads. Pipeline: the engine opened for"
    " throughput, its streams share the threads; workers decode, and as many encode"
)
ROOFLINE_PROTOCOL = (
    "The least times that ceilings measured on this device allow, and what part of the median they are."
    " Floor: all operations, or weights, inputs and outputs through the memory, whichever takes longer."
    " Kernels: one after the other, each with all that it reads and writes"
)
ROOFLINE_COLUMNS = (
    *("batch", "precision", "GFLOP", "MB"),
    *("floor ms", "kernels ms", "median ms", "floor", "kernels"),
)
PIPELINE_COLUMNS = ("batch", "streams", "workers", "loop", "pipeline", "ratio")
COLD = {
    "import_ms": "import",
    "load_ms": "load",
    "first_ms": "first",
    "peak_mib": "peak MiB",
    "device_mib": "GPU MiB",
}


def protocol(report: Report) -> str:
    """How the figures were taken, in one sentence for under a table."""
    settings = report.settings
    return (
        f"Warm-up until times settle ({WARM_UP_RUNS} to {WARM_UP_LIMIT} runs); then {settings['seconds']:g} s"
        f" or {settings['runs']} runs each, whichever comes first, but at least {MIN_RUNS}, in turns;"
        " ±: 95% interval of the mean; ratio: times as fast as the first engine, by medians of the rounds"
        " both ran in, with 95% interval"
    )


def machine(report: Report) -> str:
    """What it was measured on, in one line."""
    settings, box = report.settings, report.machine
    gpu = f"; {box['gpu']['name']}, driver {box['gpu']['driver']}" if box.get("gpu") else ""
    limit = f"the best {settings['top_k']} detections" if settings["top_k"] else "all detections"
    return (
        f"{box['cpu']}, {box['cores']} cores{gpu}; threads: {settings['threads'] or 'default'};"
        f" {settings['images']} images; masks of {limit} above score"
        f" {settings['score_threshold']:g}"
    )


def conditions(report: Report) -> str:
    """What the machine did meanwhile, in one line."""
    seen = report.conditions
    parts = [f"measured for {seen.seconds:.0f} s"]
    if seen.load_before is not None:
        parts.append(f"load {seen.load_before:.1f} before, {seen.load_after:.1f} after")
    if seen.others is not None:
        parts.append(f"other processes took {seen.others:.1%} of the CPU time")
    for name, unit, values in (
        ("CPU", "MHz", seen.cpu_mhz),
        ("CPU", "°C", seen.cpu_temperature),
        ("GPU", "MHz", seen.gpu.get("sm_mhz", [])),
        ("GPU", "°C", seen.gpu.get("temperature", [])),
        ("GPU", "W", seen.gpu.get("power_w", [])),
    ):
        known = [value for value in values if value is not None]
        if known:
            parts.append(f"{name} {min(known):.0f} to {max(known):.0f} {unit}")
    if seen.gpu:
        parts.append("not throttled" if not seen.throttled else "throttled: " + ", ".join(seen.throttled))
    return "; ".join(parts)


def cells(measured: Measured) -> list[str]:
    """The cells under `COLUMNS`."""
    low, high = measured.mean_interval
    values = (getattr(measured, column) for column in ("median", "p90", "p95", "p99", "mean"))
    return [*(f"{value:.2f}" for value in values), f"{(high - low) / 2:.2f}", f"{measured.std:.2f}"]


def ratio(measured: Measured) -> str:
    """The ratio with its interval, or a dash."""
    if measured.ratio is None:
        return "-"
    value, low, high = (
        f"{one:.2f}" if measured.ratio.value >= 0.1 else f"{one:.2g}" for one in measured.ratio
    )
    return value if low == value == high else f"{value} ({low}..{high})"


def rate(value: float) -> str:
    """Images per second, with at least two digits after the point where they are few."""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def agreement_words(engine: EngineReport) -> str:
    """How far it finds what another one finds, in words; empty where that was not asked."""
    if engine.agreement is None:
        return ""
    found = engine.agreement
    return (
        f"finds {found['matched']} of {found['instances']} instances of {found['with']} again in"
        f" {found['images']} images, mask IoU {found['mask_iou']:.4f}"
    )


def stage_names(report: Report) -> list[str]:
    """The stages that any engine tells apart, in order."""
    told = {stage: None for engine in report.engines for batch in engine.batches for stage in batch.stages}
    return [*(stage for stage in STAGES if stage in told), *(stage for stage in told if stage not in STAGES)]


def cold_names(report: Report) -> list[str]:
    """The keys of `COLD` that any engine has a value for."""
    return [key for key in COLD if any((engine.cold or {}).get(key) is not None for engine in report.engines)]


def show(report: Report) -> None:
    """Print the report to standard output."""
    console = table_console()
    _show_engines(report, console)
    for kind, title in TITLES.items():
        table = _table(f"{title}, ms per batch", protocol(report))
        for column in ("batch", *COLUMNS, "images/s", "ratio", "runs"):
            table.add_column(column, justify="right", no_wrap=True)
        for engine, one in report.rows():
            measured = getattr(one, kind)
            row = (*cells(measured), rate(measured.throughput), ratio(measured), str(measured.runs))
            table.add_row(engine.name, str(one.batch), *row)
        console.print(table, "")
    _show_stages(report, console)
    _show_extras(report, console)
    console.print(machine(report), highlight=False)
    console.print(conditions(report), highlight=False)
    for warning in report.conditions.warnings:
        console.print(f"Warning: {warning}", style="yellow", highlight=False)


def _show_engines(report: Report, console: Console) -> None:
    table = _table("What ran", "Precision: really delivered")
    licences = any(engine.licence for engine in report.engines)
    for column in ("backend", "model", "precision", "input", *(["licence"] if licences else [])):
        table.add_column(column)
    for engine in report.engines:
        size = f"{engine.input_size} px" if engine.input_size else "varies"
        row = (engine.backend, engine.config, engine.precision, size)
        table.add_row(engine.name, *row, *([engine.licence] if licences else []))
    console.print(table)
    for engine in report.engines:
        for words in filter(None, (agreement_words(engine), engine.note)):
            console.print(f"{engine.name}: {words}", highlight=False)
    console.print()


def _show_stages(report: Report, console: Console) -> None:
    names, cold = stage_names(report), cold_names(report)
    table = _table("Parts of end to end, median ms per batch", "The same runs as end to end")
    for column in ("batch", *names, "found"):
        table.add_column(column, justify="right")
    for engine, one in report.rows():
        parts = (f"{one.stages[name].median:.2f}" if name in one.stages else "-" for name in names)
        table.add_row(engine.name, str(one.batch), *parts, f"{one.detections:.1f}")
    console.print(table, "")
    if cold:
        table = _table("Start and memory, ms and MiB", "Each engine in a process of its own, once")
        for key in cold:
            table.add_column(COLD[key], justify="right")
        for engine in report.engines:
            table.add_row(engine.name, *(whole((engine.cold or {}).get(key)) for key in cold))
        console.print(table, "")


def _show_extras(report: Report, console: Console) -> None:
    if any(engine.pipeline for engine in report.engines):
        table = _table("Pipeline beside a plain loop, images/s", PIPELINE_PROTOCOL)
        for column in PIPELINE_COLUMNS:
            table.add_column(column, justify="right")
        for engine in report.engines:
            if engine.pipeline:
                table.add_row(engine.name, *pipeline_cells(engine.pipeline))
        console.print(table, "")
    if any(engine.roofline for engine in report.engines):
        table = _table("Roofline, a call of the engine alone", ROOFLINE_PROTOCOL)
        for column in ROOFLINE_COLUMNS:
            table.add_column(column, justify="right")
        for engine in report.engines:
            if engine.roofline:
                table.add_row(engine.name, *roofline_cells(engine.roofline))
        console.print(table, "")
    if any(engine.accuracy for engine in report.engines):
        table = _table("COCO AP on these images, percent", "All detections count, by pycocotools")
        for column in ("mask AP", "mask AP50", "box AP", "box AP50", "images"):
            table.add_column(column, justify="right")
        for engine in report.engines:
            table.add_row(engine.name, *accuracy_cells(engine.accuracy))
        console.print(table, "")


def pipeline_cells(content: dict[str, Any]) -> list[str]:
    """The cells under `PIPELINE_COLUMNS`."""

    def spans(key: str, told: Callable[[float], str]) -> str:
        value, low, high = (told(content[key][end]) for end in ("value", "low", "high"))
        return f"{value} ({low}..{high})"

    return [
        str(content["batch"]),
        str(content["streams"]),
        str(content["workers"]),
        spans("serial", rate),
        spans("pipeline", rate),
        spans("ratio", "{:.2f}".format),
    ]


def roofline_cells(content: dict[str, Any]) -> list[str]:
    """The cells under `ROOFLINE_COLUMNS`."""
    times = (content[key] for key in ("floor_ms", "kernels_ms", "measured_ms"))
    return [
        str(content["batch"]),
        content["precision"] or "as the graph",
        f"{content['flops'] / 1e9:.2f}",
        f"{content['bytes'] / 1e6:.1f}",
        *(f"{value:.2f}" for value in times),
        f"{content['share']:.1%}",
        f"{content['kernels_share']:.1%}",
    ]


def accuracy_cells(content: dict[str, Any] | None) -> list[str]:
    """Mask AP, mask AP50, box AP, box AP50, images."""
    if content is None:
        return ["-"] * 5
    keys = ("mask_ap", "mask_ap50", "box_ap", "box_ap50")
    return [
        *("-" if content[key] is None else f"{100 * content[key]:.2f}" for key in keys),
        str(content["images"]),
    ]


def whole(value: float | None) -> str:
    """A number without decimals, or a dash."""
    return "-" if value is None else f"{value:.0f}"


def show_comparison(
    found: Sequence[Comparison],
    warnings: Sequence[str],
    confidence: float,
    effect: float,
    control: str | None = None,
) -> None:
    """Print what `compare` found to standard output."""
    console = table_console()
    caption = (
        f"Percent of A's time. {confidence:.0%} intervals of the ratio of medians (bootstrap over blocks of"
        f" runs), Mann-Whitney test; changes below {effect:.0%} do not count"
    )
    if control:
        caption += f"; each run as a part of {control}'s of the same round"
    table = _table("B against A, median ms per batch", caption)
    table.add_column("batch", justify="right")
    table.add_column("kind")
    for column in ("A", "B", "p"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    styles = {"faster": "green", "slower": "red"}
    for one in found:
        row = (f"{one.before:.2f}", f"{one.after:.2f}", f"{one.p:.2g}" if one.p >= 1e-4 else "<1e-4")
        kind = one.kind.replace("_", " ")
        table.add_row(one.engine, str(one.batch), kind, *row, one.words, style=styles.get(one.verdict))
    console.print(table)
    for warning in warnings:
        console.print(f"Warning: {warning}", style="yellow", highlight=False)


def _table(title: str, caption: str) -> Table:
    table = Table(
        title=title, box=SIMPLE, title_justify="left", caption=caption, caption_justify="left", pad_edge=False
    )
    table.add_column("engine", overflow="fold")
    return table
