"""Whether one report is faster than another, or only looks so.

For each engine, batch size and kind (alone, end to end) that both reports have:

- how the median changed, B over A, with an interval by the bootstrap over blocks of neighbouring runs;
- the Mann-Whitney test, which looks at all runs and not at the medians alone.

"faster" or "slower" needs all three: an interval without 1, a p-value below 1 - confidence, and a
change of at least `min_effect`. "same" needs the whole interval within the minimal effect. All else is
"unclear": no difference that can be told.

What was measured at different times also met different machines, which no statistics of either report can
see. So nothing is "faster" or "slower" where one of them was measured under trouble (a busy or throttled
machine). A control helps: an engine that is the same in both reports and took turns with the others. Each
run is then divided by the control's run of the same round, and what slowed both cancels out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolact_bench.statistics import Interval, independent_ratio, mann_whitney
from yolact_bench.suite import KINDS, SCHEMA
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import read_json

FEWEST = 5  # samples, for the approximation of the test


@dataclass(frozen=True)
class Comparison:
    """One engine at one batch size and kind.

    Attributes:
        engine: Its name in A (and B's where they differ).
        batch: Images per run.
        kind: "alone" or "end_to_end".
        before: Median in A, milliseconds.
        after: Median in B, milliseconds.
        ratio: After over before with its interval: below 1 is faster.
        p: Of the Mann-Whitney test.
        told: "faster", "slower", "same" or "unclear", by the samples alone.
        trouble: The machines were not quiet, and it would be "faster" or "slower" otherwise.
    """

    engine: str
    batch: int
    kind: str
    before: float
    after: float
    ratio: Interval
    p: float
    told: str
    trouble: bool = False

    @property
    def verdict(self) -> str:
        """What can be believed."""
        return "unclear" if self.trouble else self.told

    @property
    def words(self) -> str:
        """The verdict as a sentence; percentages are of A's time."""
        low, high = sorted(abs(100 * (end - 1)) for end in self.ratio[1:])
        size = f"{abs(100 * (self.ratio.value - 1)):.1f}% ({low:.1f}..{high:.1f})"
        if self.verdict in ("faster", "slower"):
            return f"{self.verdict} by {size}"
        if self.trouble:
            return f"no telling: looks {self.told} by {size}, on a busy machine"
        span = f"{100 * (self.ratio.low - 1):+.1f}..{100 * (self.ratio.high - 1):+.1f}%"
        return f"the same ({span})" if self.verdict == "same" else f"no difference that can be told ({span})"


def read_report(path: str | Path) -> dict[str, Any]:
    """A report that `yolact-bench --json` wrote.

    Raises:
        YolactError: it cannot be read or is none.
        UsageError: it is of another version of the schema.
    """
    content = read_json(path, "report")
    schema = content.get("schema") if isinstance(content, dict) else None
    if not isinstance(schema, str) or not schema.startswith("yolact-bench/"):
        raise YolactError(
            f"report {path} is not one of yolact-bench: its schema is {schema!r}, not {SCHEMA!r}"
        )
    if schema != SCHEMA:
        raise UsageError(f"report {path} has schema {schema}; this version reads {SCHEMA}: measure again")
    try:
        for engine in content["engines"]:
            for batch in engine["batches"]:
                for kind in KINDS:
                    np.asarray(batch[kind]["samples_us"], np.float64)
        content["machine"]["versions"], content["settings"], content["conditions"]["warnings"]
    except (KeyError, TypeError, ValueError):
        raise YolactError(f"report {path} is damaged: it lacks what {SCHEMA} has; measure again") from None
    return content


def compare(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    *,
    confidence: float = 0.95,
    min_effect: float = 0.03,
    control: str | None = None,
) -> tuple[list[Comparison], list[str]]:
    """Compare two reports.

    Args:
        before: A, as `read_report` gives it.
        after: B.
        confidence: Of intervals and test, 0.5..1; so many of the differences called are there.
        min_effect: Smallest change of the median that counts, 0.03 for 3%.
        control: An engine that both reports have and that did not change.

    Returns:
        The comparisons, and sentences on what makes the reports hard to compare.

    Raises:
        UsageError: a number out of range, no such control, or nothing that both reports have.
    """
    if not 0.5 <= confidence < 1:
        raise UsageError(f"confidence is {confidence}; it must be at least 0.5 and below 1")
    if not 0 <= min_effect < 1:
        raise UsageError(f"minimal effect is {min_effect:g}; it must be at least 0 and below 1")
    warnings = list(_differences(before, after))
    trouble = control is None and bool(before["conditions"]["warnings"] or after["conditions"]["warnings"])
    controls = tuple(_control(report, control) for report in (before, after))
    found = []
    for a, b in _pairs(before, after):
        warnings += _engine_differences(a, b)
        name = a["name"] if a["name"] == b["name"] else f"{a['name']} -> {b['name']}"
        batches = {one["batch"] for one in a["batches"]}
        for other in (b, *(one for one in controls if one)):
            batches &= {one["batch"] for one in other["batches"]}
        for batch in sorted(batches) if name != control else ():
            for kind in KINDS:
                samples = [
                    _samples(engine, beside, batch, kind)
                    for engine, beside in zip((a, b), controls, strict=True)
                ]
                first, second = (float(np.median(_milliseconds(one, batch, kind))) for one in (a, b))
                ratio, p, told = _judge(samples[0], samples[1], confidence, min_effect)
                busy = trouble and told in ("faster", "slower")
                found.append(Comparison(name, batch, kind, first, second, ratio, p, told, busy))
                if min(map(len, samples)) < FEWEST:
                    warnings.append(f"{name}: fewer than {FEWEST} runs at batch {batch} tell nothing")
    if not found:
        raise UsageError(
            "the reports have no engine and batch size in common: A has"
            f" {_names(before)}; B has {_names(after)}"
        )
    return found, list(dict.fromkeys(warnings))


def _control(report: Mapping[str, Any], name: str | None) -> Mapping[str, Any] | None:
    if name is None:
        return None
    for engine in report["engines"]:
        if engine["name"] == name:
            return engine
    raise UsageError(f"the control {name} is not in both reports; one of them has {_names(report)}")


def _milliseconds(engine: Mapping[str, Any], batch: int, kind: str) -> np.ndarray:
    measured = next(one[kind] for one in engine["batches"] if one["batch"] == batch)
    # What was rounded to nothing took a little.
    return np.maximum(np.asarray(measured["samples_us"], np.float64), 0.5) / 1000


def _samples(
    engine: Mapping[str, Any], control: Mapping[str, Any] | None, batch: int, kind: str
) -> np.ndarray:
    """Run times, or by round what part of the control's they are."""
    own = _milliseconds(engine, batch, kind)
    if control is None:
        return own
    beside = _milliseconds(control, batch, kind)
    rounds = min(len(own), len(beside))
    return own[:rounds] / beside[:rounds]


def _judge(
    before: np.ndarray, after: np.ndarray, confidence: float, min_effect: float
) -> tuple[Interval, float, str]:
    """Ratio, p-value and verdict."""
    ratio, p = independent_ratio(before, after, confidence), mann_whitney(before, after)
    beyond = ratio.low > 1 or ratio.high < 1
    if min(len(before), len(after)) < FEWEST:
        verdict = "unclear"
    elif beyond and p < 1 - confidence and abs(ratio.value - 1) >= min_effect:
        verdict = "faster" if ratio.value < 1 else "slower"
    elif 1 - min_effect <= ratio.low and ratio.high <= 1 + min_effect:
        verdict = "same"
    else:
        verdict = "unclear"
    return ratio, p, verdict


def _pairs(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Engines of the same name; where no name is the same, the only ones of both reports."""
    theirs = {engine["name"]: engine for engine in after["engines"]}
    same = [(engine, theirs[engine["name"]]) for engine in before["engines"] if engine["name"] in theirs]
    if not same and len(before["engines"]) == len(after["engines"]) == 1:
        same = [(before["engines"][0], after["engines"][0])]
    yield from same


def _names(report: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{engine['name']} (batch {', '.join(str(one['batch']) for one in engine['batches'])})"
        for engine in report["engines"]
    )


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for side, report in (("A", before), ("B", after)):
        yield from (f"{side} was measured under trouble: {one}" for one in report["conditions"]["warnings"])
    for key, value in before["machine"].items():
        other = after["machine"].get(key)
        if key == "versions":
            for package in sorted({*value, *other}):
                if value.get(package) != other.get(package):
                    a, b = (versions.get(package, "not there") for versions in (value, other))
                    yield f"{package} is {a} in A, {b} in B"
        elif value != other:
            yield f"other machines: {key} is {_said(value)} in A, {_said(other)} in B"
    for key, value in before["settings"].items():
        other = after["settings"].get(key)
        if value != other:
            yield f"other settings: {key} is {_said(value)} in A, {_said(other)} in B"


def _engine_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    for key in ("backend", "config", "precision", "input_size", "weights_sha256"):
        if a[key] != b[key]:
            yield f"{a['name']}: {key} is {_said(a[key])} in A, {_said(b[key])} in B"


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(str(one) for one in value.values())
    if isinstance(value, list):
        return " ".join(str(one) for one in value)
    text = "none" if value is None else str(value) or "unknown"
    return text[:12] if len(text) == 64 else text
