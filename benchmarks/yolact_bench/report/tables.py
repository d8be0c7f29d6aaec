"""A report as tables, for the terminal and for the page."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from yolact_bench.measure.candidate import in_order
from yolact_bench.measure.protocol import MIN_RUNS, WARM_UP_LIMIT, WARM_UP_RUNS
from yolact_bench.measure.suite import EngineReport, Measured, Report
from yolact_runtime.commandline import Table, print_line
from yolact_runtime.errors import counted
from yolact_runtime.metadata import size_text

TITLES = {"network_only": "Network only", "end_to_end": "End to end, file to RLE masks"}
_STATISTICS = ("median", "p90", "p95", "p99", "mean", "±", "std")
_COLD = ("import_ms", "load_ms", "first_ms", "peak_mib", "device_mib")


def report_tables(report: Report) -> dict[str, Table]:
    """The tables of a report, by "engines", the kinds of `TITLES`, "stages" and the extras that it has."""
    engines, names = report.engines, stage_names(report)
    tables = {
        "engines": _table(
            "Engines",
            ("engine", "backend", "model", "precision", "input", "licence"),
            [
                [
                    *(engine.name, engine.backend, engine.config, engine.precision),
                    *(input_text(engine) or "varies", engine.licence),
                ]
                for engine in engines
            ],
            "Precision: as really delivered",
            text_columns=6,
        ),
        **_time_tables(report),
        "stages": _table(
            "Stages of end to end, median ms per batch",
            ("engine", "batch", *names, "found"),
            [
                [
                    *(engine.name, str(one.batch)),
                    *(f"{one.stages[name].median:.2f}" if name in one.stages else "" for name in names),
                    f"{one.detections:.1f}",
                ]
                for engine, one in report.rows()
            ],
            "The same runs as end to end; found: instances in an image",
        ),
        "cold": _table(
            "Start-up and memory, ms and MiB",
            ("engine", "import", "load", "first", "peak MiB", "GPU MiB"),
            [
                [engine.name, *("" if value is None else f"{value:.0f}" for value in map(cold.get, _COLD))]
                for engine in engines
                for cold in (engine.cold or {},)
            ],
            "Each engine once in its own process",
        ),
        "pipeline": _table(
            "Pipeline against a plain loop, images/s",
            ("engine", "batch", "streams", "workers", "loop", "pipeline", "ratio"),
            [[engine.name, *_pipeline(engine.pipeline)] for engine in engines if engine.pipeline],
            "File to RLE masks; passes over the same images, interleaved, warmed up as above; means, 95%"
            " intervals. Loop: the engine opened for latency, one stream with all threads. Pipeline: the"
            " engine opened for throughput, its streams share the threads; workers decode and as many encode",
        ),
        "roofline": _table(
            "Roofline, network only",
            (
                *("engine", "batch", "precision", "GFLOP", "MB"),
                *("floor ms", "kernels ms", "median ms", "floor", "kernels"),
            ),
            [[engine.name, *_roofline(engine.roofline)] for engine in engines if engine.roofline],
            "The least times under the ceilings measured on this device, and their share of the median. Floor"
            ": all operations, or weights, inputs and outputs through the memory, whichever takes longer."
            " Kernels: one after the other, each with all that it reads and writes",
        ),
        "accuracy": _table(
            "COCO AP on these images, percent",
            ("engine", "mask AP", "mask AP50", "box AP", "box AP50", "images"),
            [[engine.name, *accuracy_cells(engine)] for engine in engines],
            "All detections count; by pycocotools",
        ),
    }
    return {name: table for name, table in tables.items() if len(table.columns) > 1}


def _time_tables(report: Report) -> dict[str, Table]:
    """The statistics of both kinds of run."""
    return {
        kind: _table(
            f"{title}, ms per batch",
            ("engine", "batch", *_STATISTICS, "CPU", "images/s", "ratio", "runs"),
            [
                [
                    *(engine.name, str(one.batch), *_statistics(measured)),
                    f"{one.cpu_ms:.2f}" if kind == "end_to_end" else "",
                    *(rate(measured.throughput), ratio(measured), str(measured.runs)),
                ]
                for engine, one in report.rows()
                for measured in (getattr(one, kind),)
            ],
            protocol(report)
            + ("; CPU: time of all threads in the median run" if kind == "end_to_end" else ""),
        )
        for kind, title in TITLES.items()
    }


def _table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], note: str, text_columns: int = 1
) -> Table:
    """A table without the columns that are empty in all rows; other empty cells become dashes."""
    kept = [index for index, cells in enumerate(zip(*rows, strict=True)) if any(cells)]
    texts = [[row[index] or "-" for index in kept] for row in rows]
    return Table(title, [columns[index] for index in kept], texts, note, text_columns)


def protocol(report: Report) -> str:
    """How the figures were measured, in one sentence for under a table."""
    settings = report.settings
    return (
        f"Warm-up until times settle ({WARM_UP_RUNS} to {WARM_UP_LIMIT} runs); then {settings['seconds']:g} s"
        f" or {settings['runs']} runs each, whichever comes first, but at least {MIN_RUNS}, interleaved;"
        " ±: 95% interval of the mean; ratio: times as fast as the first engine, by medians of the rounds"
        " both ran in, with 95% interval"
    )


def machine(report: Report) -> str:
    """The machine and the settings, in one line."""
    settings, host = report.settings, report.machine
    gpu = f"; {host['gpu']['name']}, driver {host['gpu']['driver']}" if host.get("gpu") else ""
    limit = f"the best {settings['top_k']} detections" if settings["top_k"] else "all detections"
    if settings.get("classes"):
        limit += f" of the classes {', '.join(settings['classes'])}"
    tiles = settings.get("tiles")
    cut = f" in tiles of {tiles['tile']} pixels" if tiles else ""
    return (
        f"{host['cpu']}, {host['cores']} cores{gpu}; threads: {settings['threads'] or 'default'};"
        f" {counted(settings['images'], 'image')}{cut}; masks of {limit} above score"
        f" {settings['score_threshold']:g}"
    )


def conditions(report: Report) -> str:
    """The state of the machine during the run, in one line."""
    seen = report.conditions
    parts = [f"measured for {seen.seconds:.0f} s"]
    if seen.load_before is not None:
        parts.append(f"load {seen.load_before:.1f} before, {seen.load_after:.1f} after")
    if seen.others is not None:
        parts.append(f"other processes took {seen.others:.1%} of the CPU time")
    for name, unit, values in machine_series(report):
        known = [value for value in values if value is not None]
        parts.append(f"{name} {min(known):.0f} to {max(known):.0f} {unit}")
    if seen.gpu:
        if seen.throttled is None:
            parts.append("whether it was throttled is unknown")
        else:
            parts.append("throttled: " + ", ".join(seen.throttled) if seen.throttled else "not throttled")
    return "; ".join(parts)


def machine_series(report: Report) -> list[tuple[str, str, list[float | None]]]:
    """Name, unit and values of everything that the machine reported."""
    seen = report.conditions
    series = [
        ("CPU clock", "MHz", seen.cpu_mhz),
        ("CPU temperature", "°C", seen.cpu_temperature),
        ("GPU clock", "MHz", seen.gpu.get("sm_mhz", [])),
        ("GPU temperature", "°C", seen.gpu.get("temperature", [])),
        ("GPU power", "W", seen.gpu.get("power_w", [])),
    ]
    return [one for one in series if any(value is not None for value in one[2])]


def stage_names(report: Report) -> list[str]:
    """The stages that any engine reports, in order."""
    return in_order(stage for engine in report.engines for one in engine.batches for stage in one.stages)


def ratio(measured: Measured) -> str:
    """The ratio with its interval, or a dash."""
    if measured.ratio is None:
        return "-"
    return _interval(measured.ratio, ("{:.2f}" if measured.ratio.value >= 0.1 else "{:.2g}").format)


def _interval(ends: Iterable[float], text: Callable[[float], str]) -> str:
    value, low, high = map(text, ends)
    return value if low == value == high else f"{value} ({low}..{high})"


def rate(value: float) -> str:
    """Images per second, with two decimals if they are few."""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def input_text(engine: EngineReport) -> str:
    """Size of the network's input, such as "550 px" or "384x640 px"; empty if it varies."""
    return f"{size_text(engine.input_size)} px" if engine.input_size else ""


def agreement_text(engine: EngineReport) -> str:
    """How many instances of another candidate this one matches; empty if that was not measured."""
    if (found := engine.agreement) is None:
        return ""
    if not found["instances"]:
        return f"cannot be matched: {found['with']} finds no instance in {found['images']} images"
    return (
        f"matches {found['matched']} of {found['instances']} instances of {found['with']} in"
        f" {counted(found['images'], 'image')}, mask IoU {found['mask_iou']:.4f}"
    )


def accuracy_cells(engine: EngineReport) -> list[str]:
    """Mask AP, mask AP50, box AP, box AP50, images; all empty if they were not measured."""
    if (found := engine.accuracy) is None:
        return [""] * 5
    keys = ("mask_ap", "mask_ap50", "box_ap", "box_ap50")
    return [*("-" if found[key] is None else f"{100 * found[key]:.2f}" for key in keys), str(found["images"])]


def show(report: Report) -> None:
    """Print the report to standard output."""
    for name, table in report_tables(report).items():
        table.show()
        if name == "engines":
            for engine in report.engines:
                for text in filter(None, (agreement_text(engine), engine.note)):
                    print_line(f"{engine.name}: {text}", sys.stdout)
    print_line(machine(report), sys.stdout)
    print_line(conditions(report), sys.stdout)
    for warning in report.conditions.warnings:
        print_line(f"Warning: {warning}", sys.stdout, "yellow")


def _statistics(measured: Measured) -> list[str]:
    low, high = measured.mean_interval
    values = (getattr(measured, name) for name in ("median", "p90", "p95", "p99", "mean"))
    return [*(f"{value:.2f}" for value in values), f"{(high - low) / 2:.2f}", f"{measured.std:.2f}"]


def _pipeline(found: dict[str, Any]) -> list[str]:
    counts = (str(found[key]) for key in ("batch", "streams", "workers"))
    rates = (_interval(found[key].values(), rate) for key in ("serial", "pipeline"))
    return [*counts, *rates, _interval(found["ratio"].values(), "{:.2f}".format)]


def _roofline(found: dict[str, Any]) -> list[str]:
    return [
        *(str(found["batch"]), found["precision"] or "as the graph"),
        *(f"{found['flops'] / 1e9:.2f}", f"{found['bytes'] / 1e6:.1f}"),
        *(f"{found[key]:.2f}" for key in ("floor_ms", "kernels_ms", "measured_ms")),
        *(f"{found[key]:.1%}" for key in ("share", "kernels_share")),
    ]
