"""The report as one self-contained page: no script, no outside resource."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from yolact_bench.measure.suite import Report
from yolact_bench.report import plots, tables
from yolact_runtime.errors import plain_value
from yolact_runtime.files import atomic_path


def write_html(report: Report, path: str | Path) -> None:
    """Write the report as one HTML file without outside resources.

    Raises:
        YolactError: the file cannot be written.
    """
    import jinja2
    import matplotlib

    loader = jinja2.PackageLoader("yolact_bench", "report")
    options: Any = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    options["finalize"] = plain_value
    template = jinja2.Environment(loader=loader, autoescape=True, **options).get_template("report.html.j2")
    with matplotlib.rc_context(plots.STYLE):
        page = template.render(
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
