"""The report as one self-contained page: no script, no outside resource."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from yolact_bench.measure.suite import Report
from yolact_bench.report import plots, tables
from yolact_runtime.files import atomic_path


def write_html(report: Report, path: str | Path) -> None:
    """Write the report as one HTML file without outside resources.

    Raises:
        YolactError: the file cannot be written.
    """
    import jinja2
    import matplotlib

    template = resources.files("yolact_bench.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    with matplotlib.rc_context(plots.STYLE):
        page = environment.from_string(template).render(
            report=report,
            tables=tables.report_tables(report),
            text=tables,
            plots=plots,
            keys=plots.keys(report),
            colours=dict(plots.keys(report)),
            stages=[(name, plots.VARIABLES[plots.stage_colour(name)]) for name in tables.stage_names(report)],
        )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
