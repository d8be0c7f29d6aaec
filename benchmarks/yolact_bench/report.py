"""A report for people: tables on the terminal, and a page that needs nothing but itself."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from rich.box import SIMPLE
from rich.table import Table

from yolact_bench.suite import STAGES, Report
from yolact_runtime.commandline import table_console
from yolact_runtime.errors import missing_extra
from yolact_runtime.files import atomic_path

COLUMNS = ("median", "p90", "p95", "p99", "mean", "std")


def show(report: Report) -> None:
    """Print the report to standard output."""
    console = table_console()
    for title, kind in (("Engine alone", "detect"), ("End to end, file to run lengths", "end_to_end")):
        table = Table(title=f"{title}, ms", box=SIMPLE, title_justify="left", pad_edge=False)
        table.add_column("engine", overflow="fold")
        for column in (*COLUMNS, "images/s", "ratio", "runs"):
            table.add_column(column, justify="right")
        for engine in report.engines:
            timing = getattr(engine, kind)
            table.add_row(
                engine.name,
                *(f"{getattr(timing, column):.2f}" for column in COLUMNS),
                f"{timing.throughput:.1f}",
                f"{getattr(engine, kind + '_ratio'):.2f}",
                str(timing.runs),
            )
        console.print(table)
    table = Table(title="Parts of end to end, median ms", box=SIMPLE, title_justify="left", pad_edge=False)
    table.add_column("engine", overflow="fold")
    for column in (*STAGES, "found", "import", "load", "first", "peak MiB"):
        table.add_column(column, justify="right")
    for engine in report.engines:
        cold = engine.cold or {}
        table.add_row(
            engine.name,
            *(f"{engine.stages[stage].median:.2f}" for stage in STAGES),
            f"{engine.detections:.1f}",
            *(_number(cold.get(key)) for key in ("import_ms", "load_ms", "first_ms", "peak_mib")),
        )
    console.print(table)
    console.print(_conditions(report), highlight=False)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _conditions(report: Report) -> str:
    settings, machine = report.settings, report.machine
    threads = settings["threads"] or "default"
    return (
        f"{machine['cpu']}, {machine['cores']} cores; threads: {threads}; batch {settings['batch']};"
        f" {settings['images']} images; a ratio above 1 is faster than the first engine"
    )


def write_html(report: Report, path: str | Path) -> None:
    """Write the report as one HTML file without outside resources.

    Raises:
        YolactError: jinja2 is missing, or the file cannot be written.
    """
    try:
        import jinja2
    except ImportError:
        raise missing_extra("the HTML report", "train") from None
    template = resources.files("yolact_bench").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    html = environment.from_string(template).render(
        report=report,
        conditions=_conditions(report),
        columns=COLUMNS,
        stages=STAGES,
        longest={
            "detect": max(engine.detect.p95 for engine in report.engines),
            "end_to_end": max(
                sum(timing.median for timing in engine.stages.values()) for engine in report.engines
            ),
        },
    )
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
