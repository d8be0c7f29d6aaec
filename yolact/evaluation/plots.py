"""Plots of an evaluation. Every public plot function returns the bytes of a PNG file.

Figures do not use pyplot: no window, no global state, only matplotlib's Agg renderer. Of more than
`CLASS_LIMIT` classes, those with the most objects are shown.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np

from yolact.evaluation.confusion import Confusion
from yolact.evaluation.metrics import Curves, Metrics
from yolact_runtime.errors import escape_controls

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLASS_LIMIT = 90
NAME_LENGTH = 24
NUMBERED_CELLS = 30  # a confusion matrix with more rows has no space for numbers
PANEL_COLUMNS = 8
DPI = 110


def pr_plot(curves: Curves, kind: str) -> bytes:
    """Plot precision over recall at IoU .50, .75 and the mean of .50 to .95, averaged over classes.

    Args:
        curves: Of boxes or masks.
        kind: `"box"` or `"mask"`, for the title.
    """
    figure = _figure(6.4, 4.8)
    axes = figure.subplots()
    for iou, precision in curves.mean.items():
        if precision is not None:
            label = f"IoU {iou.replace('0.', '.')}   AP {100 * np.mean(precision):.1f}"
            axes.plot(curves.recall, precision, label=label, linewidth=1.8)
    _pr_axes(axes)
    axes.set(
        title=f"Precision and recall of {_plural(kind)}, mean over classes",
        xlabel="recall",
        ylabel="precision",
    )
    if axes.lines:
        axes.legend(loc="lower left")
    else:
        _nothing(axes)
    return _png(figure)


def class_pr_plot(curves: Curves, kind: str, confusion: Confusion) -> bytes:
    """Plot precision over recall at IoU .50, with a panel for each class that has annotations.

    Args:
        curves: Of boxes or masks.
        kind: `"box"` or `"mask"`, for the title.
        confusion: Says which classes have the most objects.
    """
    chosen = {confusion.classes[i] for i in _most_common(confusion)}
    shown = {name: row for name, row in curves.by_class.items() if row is not None and name in chosen}
    columns = max(1, min(PANEL_COLUMNS, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    side = min(4.0, max(1.7, 9.6 / columns))
    width, height = side * columns + 0.6, 0.9 * side * rows + 1.1
    # Fixed margins: computing a layout for a hundred panels takes half a minute.
    figure = _figure(width, height, layout=None)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    edges = {"left": 0.6 / width, "right": 1 - 0.2 / width, "bottom": 0.5 / height, "top": 1 - 0.75 / height}
    figure.subplots_adjust(**edges, wspace=0.12, hspace=0.28)
    _pr_axes(panels[0])
    for panel, (name, precision) in zip(panels, shown.items(), strict=False):
        panel.plot(curves.recall, precision, linewidth=1.4)
        panel.fill_between(curves.recall, precision, alpha=0.2, linewidth=0)
        panel.set_title(f"{_short(name)}  {100 * np.mean(precision):.1f}", fontsize=7, pad=3)
        panel.grid(linewidth=0.4)
        panel.tick_params(labelsize=7)
    for panel in panels[max(1, len(shown)) :]:
        panel.set_visible(False)
    for panel in panels[max(0, len(shown) - columns) : len(shown)]:  # none below it
        panel.tick_params(labelbottom=True)
    if not shown:
        _nothing(panels[0])
    title = f"{kind.capitalize()} precision over recall at IoU .50, and AP50"
    figure.suptitle(
        title + _of_how_many(len(chosen), len(confusion.classes)), fontsize=10, y=1 - 0.1 / height
    )
    figure.supxlabel("recall", fontsize=10, y=0.05 / height)
    figure.supylabel("precision", fontsize=10, x=0.05 / width)
    return _png(figure)


def confusion_plot(confusion: Confusion) -> bytes:
    """Plot the confusion matrix, coloured by the share of each row; a small one with counts."""
    counts, names = folded(confusion)
    cells = len(counts)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    side = max(3.2, cells * (0.45 if cells <= NUMBERED_CELLS else 0.2))
    # The matrix fills the figure; the PNG is extended by the names around it, however long.
    figure = _figure(side, side, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    ticks = np.arange(cells)
    # With lines between the cells, which guide the eye to the names.
    image = axes.pcolormesh(
        ticks, ticks, shares, cmap="Blues", vmin=0, vmax=1, edgecolors="#d1d5db", linewidth=0.4
    )
    axes.invert_yaxis()
    axes.set_aspect("equal")
    labels = [_short(name) for name in names]
    axes.set_xticks(ticks, [*labels, "missed"], rotation=90, fontsize=8)
    axes.set_yticks(ticks, [*labels, "no object"], fontsize=8)
    if cells <= NUMBERED_CELLS:
        for row, column in np.argwhere(counts):
            value = int(counts[row, column])
            text = str(value) if value < 10_000 else f"{value / 1000:.0f}k"
            shade = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=shade)
    axes.set_xlabel("detected class")
    axes.set_ylabel("true class")
    axes.set_title(
        f"Confusion at {confusion.kind} IoU {confusion.iou_threshold:g}, score {confusion.score_threshold:g}",
        fontsize=11,
    )
    bar = figure.colorbar(image, cax=axes.inset_axes((1 + 0.15 / side, 0, 0.2 / side, 1)))
    bar.set_label("share of the row")
    return _png(figure, crop=True)


def class_ap_plot(metrics: dict[str, Metrics], confusion: Confusion) -> bytes:
    """Plot AP of each class that has annotations as bars, the highest first.

    Args:
        metrics: By kind, `"box"` and `"mask"`.
        confusion: Says which classes have the most objects.
    """
    chosen = [confusion.classes[i] for i in _most_common(confusion)]
    last = list(metrics.values())[-1].by_class
    shown = sorted(
        (name for name in chosen if last[name] is not None), key=lambda name: last[name] or 0, reverse=True
    )
    title = f"AP by class{_of_how_many(len(chosen), len(confusion.classes))}"
    return _bars(title, shown, {kind: [of.by_class[name] for name in shown] for kind, of in metrics.items()})


def size_ap_plot(metrics: dict[str, Metrics]) -> bytes:
    """Plot AP of small, medium and large objects as bars; `metrics` are by kind, `"box"` and `"mask"`."""
    names = ["small (below 32² pixels)", "medium", "large (above 96² pixels)"]
    values = {kind: [of.ap_small, of.ap_medium, of.ap_large] for kind, of in metrics.items()}
    return _bars("AP by size of the object", names, values)


def folded(confusion: Confusion, limit: int = CLASS_LIMIT) -> tuple[np.ndarray, list[str]]:
    """The counts of at most `limit` classes, with the sum of the others as one more.

    Returns:
        (n + 1, n + 1) counts as in `Confusion`, and the n names.
    """
    counts = np.array(confusion.counts, np.int64)
    chosen = _most_common(confusion, limit)
    rest = len(confusion.classes) - len(chosen)
    if not rest:
        return counts, confusion.classes
    target = np.full(len(counts), len(chosen))  # the row and column to which each is added
    target[chosen] = np.arange(len(chosen))
    target[-1] = len(chosen) + 1
    small = np.zeros((len(chosen) + 2, len(chosen) + 2), np.int64)
    np.add.at(small, (target[:, None], target[None, :]), counts)
    return small, [*(confusion.classes[i] for i in chosen), f"({rest} other classes)"]


def _most_common(confusion: Confusion, limit: int = CLASS_LIMIT) -> list[int]:
    """Indices of the classes with the most objects, in the order of the matrix."""
    objects = np.array(confusion.counts, np.int64)[:-1].sum(axis=1)
    return sorted(np.argsort(-objects, kind="stable")[:limit].tolist())


def _bars(title: str, names: list[str], values: dict[str, list[float | None]]) -> bytes:
    """Plot AP (0..1) in percent as horizontal bars, with a colour for each kind."""
    figure = _figure(7.2, max(2.4, 0.15 * len(values) * len(names) + 1.4))
    axes = figure.subplots()
    height = 0.8 / len(values)
    for i, (kind, row) in enumerate(values.items()):
        percent = [100 * (value or 0) for value in row]
        positions = np.arange(len(names)) + (i - (len(values) - 1) / 2) * height
        bars = axes.barh(positions, percent, height, label=kind)
        texts = ["no objects" if value is None else f"{100 * value:.1f}" for value in row]
        axes.bar_label(bars, texts, fontsize=7, padding=2)
    axes.set_yticks(range(len(names)), [_short(name) for name in names], fontsize=8)
    axes.invert_yaxis()
    axes.set(title=title, xlabel="AP, percent", xlim=(0, 108))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x", linewidth=0.4)
    axes.set_axisbelow(True)
    if names:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8)
    else:
        axes.set_ylim(1, 0)
        _nothing(axes)
    return _png(figure)


def _pr_axes(axes: Axes) -> None:
    """Limits, ticks and grid for precision over recall."""
    axes.set(xlim=(0, 1), ylim=(0, 1.03))
    axes.set_xticks((0, 0.2, 0.4, 0.6, 0.8, 1), ("0", ".2", ".4", ".6", ".8", "1"))
    axes.set_yticks((0, 0.2, 0.4, 0.6, 0.8, 1), ("0", ".2", ".4", ".6", ".8", "1"))
    axes.grid(linewidth=0.4)


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "no annotations", transform=axes.transAxes, ha="center", va="center")


def _plural(kind: str) -> str:
    return {"box": "boxes", "mask": "masks"}[kind]


def _of_how_many(shown: int, every: int) -> str:
    return "" if shown == every else f"\nthe {shown} of {every} classes with the most objects"


def _short(name: str) -> str:
    """The name without its middle if it is longer than `NAME_LENGTH`; dollar signs do not start a formula."""
    name = escape_controls(name)
    half = NAME_LENGTH // 2
    cut = name if len(name) <= NAME_LENGTH else f"{name[: half - 1]}…{name[-half:]}"
    return cut.replace("$", r"\$")


def _figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """An empty figure; sides in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)


def _png(figure: Figure, crop: bool = False) -> bytes:
    """The figure as a PNG file; `crop` fits the picture to what is drawn."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Names in scripts that the font lacks; the report's tables show them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(
            buffer, format="png", dpi=DPI, bbox_inches="tight" if crop else None, metadata={"Software": None}
        )
    return buffer.getvalue()
