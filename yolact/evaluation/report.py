"""The report of an evaluation: a self-contained HTML page with tables and plots, and the plots as files."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from yolact.evaluation.confusion import Confusion
from yolact.evaluation.evaluate import Details, Evaluation
from yolact.evaluation.metrics import Metrics
from yolact_runtime.errors import plain_value
from yolact_runtime.files import atomic_path
from yolact_runtime.packages import require

PAIRS_LISTED = 20
# The plots, also those that only an evaluation of masks has.
_PLOTS = ("pr_mask", "pr_mask_classes", "pr_box", "pr_box_classes", "confusion", "ap_classes", "ap_sizes")


def check_report_packages() -> None:
    """Raise a `YolactError` if matplotlib or jinja2, which reports need, is not installed."""
    require("the evaluation report", "bench", "matplotlib", "jinja2")


def report_files(folder: str | Path) -> list[Path]:
    """The files that `write_report` may write."""
    return [Path(folder, "report.html"), *(Path(folder, f"{name}.png") for name in _PLOTS)]


def write_report(evaluation: Evaluation, folder: str | Path, about: Mapping[str, str]) -> Path:
    """Write `report.html`, and its plots as PNG files.

    Args:
        evaluation: Result of `score` with `details`.
        folder: Created if it does not exist. Files of an earlier report are replaced.
        about: What was evaluated, shown at the top: name and value.

    Returns:
        The page.

    Raises:
        ValueError: the evaluation has no details.
        YolactError: matplotlib or jinja2 is missing, or a file cannot be written.
    """
    if evaluation.details is None:
        raise ValueError("a report needs an evaluation with details: score(..., details=True)")
    check_report_packages()
    from jinja2 import Environment, StrictUndefined

    metrics = {"box": evaluation.box, **({"mask": evaluation.mask} if evaluation.mask else {})}
    pictures = _pictures(metrics, evaluation.details)
    for name, content in pictures.items():
        with atomic_path(Path(folder) / f"{name}.png") as temporary:
            temporary.write_bytes(content)
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=plain_value,
    )
    environment.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.1f}"
    template = environment.from_string(
        resources.files("yolact").joinpath("assets/evaluation.html.j2").read_text("utf-8")
    )
    html = template.render(
        about=about,
        evaluation=evaluation,
        metrics=metrics,
        classes=_class_rows(metrics, evaluation.details),
        confusion=evaluation.details.confusion,
        pairs=_confused_pairs(evaluation.details.confusion),
        pictures={name: b64encode(content).decode("ascii") for name, content in pictures.items()},
    )
    page = Path(folder) / "report.html"
    with atomic_path(page) as temporary:
        temporary.write_bytes(html.encode("utf-8", "backslashreplace"))  # paths may not be text
    return page


def _pictures(metrics: dict[str, Metrics], details: Details) -> dict[str, bytes]:
    """The plots as PNG files, by name without suffix."""
    from yolact.evaluation import plots

    pictures = {}
    for kind, curves in (("mask", details.mask), ("box", details.box)):
        if curves is not None:
            pictures[f"pr_{kind}"] = plots.pr_plot(curves, kind)
            pictures[f"pr_{kind}_classes"] = plots.class_pr_plot(curves, kind, details.confusion)
    pictures["confusion"] = plots.confusion_plot(details.confusion)
    pictures["ap_classes"] = plots.class_ap_plot(metrics, details.confusion)
    pictures["ap_sizes"] = plots.size_ap_plot(metrics)
    return pictures


def _class_rows(metrics: dict[str, Metrics], details: Details) -> list[dict[str, Any]]:
    """The table of classes: AP, AP50, and the counts, precision and recall of the confusion matrix."""
    counts = np.array(details.confusion.counts, np.int64)
    curves = {"box": details.box, "mask": details.mask}
    rows = []
    for i, name in enumerate(details.confusion.classes):
        correct, objects, detections = int(counts[i, i]), int(counts[i].sum()), int(counts[:, i].sum())
        ap = {}
        for kind, of in metrics.items():
            curve = curves[kind].by_class[name]  # type: ignore[union-attr]  # both are None or neither
            ap[kind] = (of.by_class[name], None if curve is None else float(np.mean(curve)))
        rows.append(
            {
                "name": name,
                "objects": objects,
                "detections": detections,
                "recall": correct / objects if objects else None,
                "precision": correct / detections if detections else None,
                "ap": ap,
            }
        )
    return rows


def _confused_pairs(confusion: Confusion) -> list[tuple[str, str, int]]:
    """The most frequent confusions: true class, detected class, count."""
    counts = np.array(confusion.counts, np.int64)[:-1, :-1]
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:PAIRS_LISTED]
    cells = zip(*np.unravel_index(order, counts.shape), strict=True)
    return [(confusion.classes[i], confusion.classes[j], int(counts[i, j])) for i, j in cells if counts[i, j]]
