"""The report as one page that needs nothing but itself: no script, no outside resource."""

from __future__ import annotations

from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from yolact_bench.report import plots
from yolact_bench.report.svg import short
from yolact_bench.report.tables import (
    COLD,
    COLUMNS,
    PIPELINE_COLUMNS,
    PIPELINE_PROTOCOL,
    ROOFLINE_COLUMNS,
    ROOFLINE_PROTOCOL,
    TITLES,
    accuracy_cells,
    agreement_words,
    cells,
    cold_names,
    conditions,
    machine,
    pipeline_cells,
    protocol,
    rate,
    ratio,
    roofline_cells,
    stage_names,
    whole,
)
from yolact_bench.suite import Report
from yolact_runtime.errors import missing_extra
from yolact_runtime.files import atomic_path


def check_packages() -> None:
    """Raise a YolactError where the page cannot be written for want of jinja2."""
    if find_spec("jinja2") is None:
        raise missing_extra("the HTML report", "train")


def write_html(report: Report, path: str | Path) -> None:
    """Write the report as one HTML file without outside resources.

    Raises:
        YolactError: jinja2 is missing, or the file cannot be written.
    """
    check_packages()
    import jinja2

    template = resources.files("yolact_bench.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(template).render(
        report=report,
        machine=machine(report),
        conditions=conditions(report),
        protocol=protocol(report),
        kinds=TITLES,
        columns=COLUMNS,
        cells=cells,
        ratio=ratio,
        rate=rate,
        roofline_cells=roofline_cells,
        roofline_columns=ROOFLINE_COLUMNS,
        roofline_protocol=ROOFLINE_PROTOCOL,
        stages=[(name, plots.stage_colour(name)) for name in stage_names(report)],
        cold=[(key, COLD[key]) for key in cold_names(report)],
        whole=whole,
        pipeline_cells=pipeline_cells,
        pipeline_columns=PIPELINE_COLUMNS,
        pipeline_protocol=PIPELINE_PROTOCOL,
        accuracy_cells=accuracy_cells,
        agreement_words=agreement_words,
        plots=plots,
        short=short,
        keys=plots.keys(report),
        colours=dict(plots.keys(report)),
        distributions={
            kind: lambda batch, kind=kind: plots.distribution(report, batch, kind) for kind in TITLES
        },
        stage_bars=lambda batch: plots.stages(report, batch),
        with_ap=any(engine.accuracy for engine in report.engines),
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
