"""Small drawings for the page: SVG whose colours are CSS variables, so that they follow light and dark.

Coordinates are pixels of the view box; text stays text. Everything that comes from outside is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 900


@dataclass(frozen=True)
class Axis:
    """From values to pixels.

    Attributes:
        low: Value at `start`.
        high: Value at `end`; greater than `low`.
        start: Pixel.
        end: Pixel; smaller than `start` for an axis that goes up.
        log: Logarithmic; values are greater than 0.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Pixel of a value; what lies outside goes to the end of the axis."""
        low, high, value = (self._scale(one) for one in (self.low, self.high, value))
        share = (value - low) / (high - low)
        return self.start + (self.end - self.start) * min(1.0, max(0.0, share))

    def inverse(self, share: float) -> float:
        """Value at a share 0..1 of the axis."""
        low, high = self._scale(self.low), self._scale(self.high)
        at = low + (high - low) * share
        return math.exp(at) if self.log else at

    def ticks(self, count: int = 6) -> list[float]:
        """Round values on the axis, about `count` of them."""
        if self.log:
            found: list[float] = []
            for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
                found = [
                    step * 10.0**power
                    for power in range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
                    for step in steps
                    if self.low <= step * 10.0**power <= self.high
                ]
                if len(found) >= count - 2:
                    return found
            if len(found) > 2:
                return found
        rough = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(one * power for one in (1, 2, 2.5, 5, 10) if one * power >= rough)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def _scale(self, value: float) -> float:
        return math.log(max(value, 1e-12)) if self.log else value


def spread(values: Sequence[float], start: float, end: float, ratio: float = 6) -> Axis:
    """An axis that holds all values with a little room; logarithmic where they differ `ratio` times."""
    low, high = min(values), max(values)
    if low > 0 and high / low > ratio:
        return Axis(low / 1.08, high * 1.08, start, end, log=True)
    room = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
    return Axis(low - room if low - room > 0 or low < 0 else 0.0, high + room, start, end)


def number(value: float) -> str:
    """A number for people: three digits or so."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}".replace(",", "\u202f")
    if size >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def short(name: str, most: int) -> str:
    """A name of at most `most` characters, its middle left out."""
    if len(name) <= most:
        return name
    tail = most // 3
    return f"{name[: most - tail - 1]}…{name[-tail:]}"


class Drawing:
    """Collects the parts of one SVG.

    Args:
        height: Of the view box; the width is always `WIDTH`.
        label: What it shows, for those who cannot see it.
    """

    def __init__(self, height: float, label: str) -> None:
        self._height, self._label = height, label
        self._parts: list[str] = []

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str = "grid", style: str = "") -> None:
        """A line of a class of the page's style sheet."""
        self._add(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"{_style(style)}/>'
        )

    def text(self, x: float, y: float, text: str, anchor: str = "start", kind: str = "label") -> None:
        """Words, from their base line."""
        self._add(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'
        )

    def rect(self, x: float, y: float, width: float, height: float, style: str, title: str = "") -> None:
        """A filled rectangle."""
        shape = f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{height:.1f}"'
        self._add(f"{shape}{_style(style)}>{_title(title)}</rect>")

    def circle(self, x: float, y: float, radius: float, style: str, title: str = "") -> None:
        """A filled disc."""
        self._add(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"{_style(style)}>{_title(title)}</circle>'
        )

    def polyline(
        self, points: Sequence[tuple[float, float]], kind: str, style: str = "", closed: bool = False
    ) -> None:
        """A line through points, or an area."""
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + ("Z" if closed else "")
        self._add(f'<path d="{path}" class="{kind}"{_style(style)}/>')

    def dots(self, points: Sequence[tuple[float, float]], style: str) -> None:
        """Many small dots as one element."""
        path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
        self._add(f'<path d="{path}" class="dots"{_style(style)}/>')

    def x_axis(self, axis: Axis, top: float, bottom: float, unit: str) -> None:
        """Grid lines, their numbers and the unit below `bottom`; it takes 34 pixels."""
        for tick in axis.ticks():
            x = axis(tick)
            self.line(x, top, x, bottom)
            self.text(x, bottom + 16, number(tick), "middle", "tick")
        self.text((axis.start + axis.end) / 2, bottom + 32, unit, "middle", "tick")

    def y_axis(self, axis: Axis, left: float, right: float, count: int = 4) -> None:
        """Grid lines and their numbers left of `left`."""
        for tick in axis.ticks(count):
            y = axis(tick)
            self.line(left, y, right, y)
            self.text(left - 6, y + 4, number(tick), "end", "tick")

    def __str__(self) -> str:
        return (
            f'<svg viewBox="0 0 {WIDTH} {self._height:.0f}" role="img" aria-label="{escape(self._label)}">'
            + "".join(self._parts)
            + "</svg>"
        )

    def _add(self, part: str) -> None:
        self._parts.append(part)


def _style(style: str) -> str:
    return f' style="{escape(style)}"' if style else ""


def _title(title: str) -> str:
    return f"<title>{escape(title)}</title>" if title else ""
