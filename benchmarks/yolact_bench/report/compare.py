"""`yolact-bench compare`: whether one report is faster than another, or only seems so.

For each engine, batch size and kind (network only, end to end) that both reports have:

- how the median changed, B over A, with an interval by the bootstrap over blocks of neighbouring runs;
- the Mann-Whitney test, which considers all runs and not the medians alone.

"faster" or "slower" needs all three: an interval without 1, a p-value below 1 - confidence, and a
change of at least `min_effect`. "same" needs the whole interval within the minimal effect. Everything else is
"unclear": no detectable difference.

Reports measured at different times also met different conditions, which no statistics of either report can
see. So nothing is "faster" or "slower" if one of them has warnings (a busy or throttled machine). A control
helps: an engine that is the same in both reports and was interleaved with the others. Each run is then
divided by the control's run of the same round, and what slowed both cancels out.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolact_bench.measure.candidate import KINDS
from yolact_bench.measure.statistics import Interval, independent_ratio, mann_whitney
from yolact_runtime.commandline import Table, print_line
from yolact_runtime.errors import UsageError

log = logging.getLogger(__name__)

FEWEST = 5  # samples, for the approximation of the test
_COMPARED = ("backend", "config", "precision", "input_size", "weights_sha256")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `yolact-bench compare`."""
    parser.add_argument("before", metavar="A.json", help="a report of yolact-bench --json")
    parser.add_argument("after", metavar="B.json", help="another one; engines are matched by name")
    parser.add_argument("--confidence", type=float, default=0.95, help="of intervals and test")
    percent: Any = {"type": float, "metavar": "PERCENT"}
    parser.add_argument("--min-effect", default=3.0, help="smaller changes do not count", **percent)
    text = "an unchanged engine in both reports: times are relative to its own"
    parser.add_argument("--control", metavar="ENGINE", help=text)
    parser.add_argument("--fail-if-slower", help="exit with 1 if anything is slower by more", **percent)


def command(args: argparse.Namespace) -> int:
    """Compare two reports."""
    limit, effect = args.fail_if_slower, args.min_effect / 100
    if limit is not None and not limit >= 0:
        raise UsageError(f"--fail-if-slower is {limit:g}; it must be 0 or more")
    from yolact_bench.measure.suite import read_report

    reports = read_report(args.before), read_report(args.after)
    found, warnings = compare(*reports, confidence=args.confidence, min_effect=effect, control=args.control)
    _show(found, warnings, args.confidence, effect, args.control)
    code = 0
    for one in found if limit is not None else ():
        if one.verdict == "slower" and 100 * (one.ratio.value - 1) > limit:
            log.error("%s, batch %d, %s: %s", one.engine, one.batch, one.kind.replace("_", " "), one.sentence)
            code = 1
    return code


@dataclass(frozen=True)
class Comparison:
    """One engine at one batch size and kind."""

    engine: str  # its name in A, and B's if they differ
    batch: int
    kind: str  # "network_only" or "end_to_end"
    before: float  # median in A, milliseconds
    after: float  # median in B, milliseconds
    ratio: Interval  # after over before: below 1 is faster
    p: float  # of the Mann-Whitney test
    reported: str  # "faster", "slower", "same" or "unclear", by the samples alone
    trouble: bool  # the machines were busy, and it would be "faster" or "slower" otherwise

    @property
    def verdict(self) -> str:
        """The credible verdict: one of those of `reported`."""
        return "unclear" if self.trouble else self.reported

    @property
    def sentence(self) -> str:
        """The verdict for a reader; percentages are of A's time."""
        low, high = sorted(abs(100 * (end - 1)) for end in self.ratio[1:])
        size = f"{abs(100 * (self.ratio.value - 1)):.1f}% ({low:.1f}..{high:.1f})"
        if self.verdict in ("faster", "slower"):
            return f"{self.verdict} by {size}"
        if self.trouble:
            return f"unclear: seems {self.reported} by {size}, on a busy machine"
        span = f"{100 * (self.ratio.low - 1):+.1f}..{100 * (self.ratio.high - 1):+.1f}%"
        return f"the same ({span})" if self.verdict == "same" else f"no detectable difference ({span})"


def compare(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    *,
    confidence: float = 0.95,
    min_effect: float = 0.03,
    control: str | None = None,
) -> tuple[list[Comparison], list[str]]:
    """Compare two reports of `read_report`; the smallest change that counts, `min_effect`, is 0.03 for 3%.

    Returns:
        The comparisons, and sentences on what makes the reports hard to compare.

    Raises:
        UsageError: a number out of range, no such control, or reports with nothing in common.
    """
    if not 0.5 <= confidence <= 0.999999:  # above, intervals are infinite
        raise UsageError(f"confidence is {confidence}; it must be at least 0.5 and below 1")
    if not 0 <= min_effect < 1:
        raise UsageError(f"minimal effect is {min_effect:g}; it must be at least 0 and below 1")
    warnings = list(_differences(before, after))
    trouble = control is None and bool(before["conditions"]["warnings"] or after["conditions"]["warnings"])
    controls = [_control(report, control) for report in (before, after) if control is not None]
    found = []
    for a, b in _pairs(before, after):
        warnings += _changes(f"{a['name']}: ", *({key: one[key] for key in _COMPARED} for one in (a, b)))
        name = a["name"] if a["name"] == b["name"] else f"{a['name']} -> {b['name']}"
        shared = [{one["batch"] for one in engine["batches"]} for engine in (a, b, *controls)]
        for batch in sorted(set.intersection(*shared)) if name != control else ():
            for kind, key in KINDS.items():
                samples = [_milliseconds(engine, batch, key) for engine in (a, b)]
                first, second = (float(np.median(one)) for one in samples)
                for index, engine in enumerate(controls):  # relative to its run of the same round
                    reference = _milliseconds(engine, batch, key)
                    rounds = min(len(samples[index]), len(reference))
                    samples[index] = samples[index][:rounds] / reference[:rounds]
                ratio, p, reported = _judge(samples[0], samples[1], confidence, min_effect)
                busy = trouble and reported in ("faster", "slower")
                found.append(Comparison(name, batch, kind, first, second, ratio, p, reported, busy))
                if min(map(len, samples)) < FEWEST:
                    warnings.append(f"{name}: fewer than {FEWEST} runs at batch {batch} are too few")
    if not found:
        text = f"A has {_names(before)}; B has {_names(after)}"
        raise UsageError(f"the reports have no engine and batch size in common: {text}")
    return found, list(dict.fromkeys(warnings))


def _control(report: Mapping[str, Any], name: str) -> Any:
    for engine in report["engines"]:
        if engine["name"] == name:
            return engine
    raise UsageError(f"the control {name} is not in both reports; one of them has {_names(report)}")


def _milliseconds(engine: Mapping[str, Any], batch: int, kind: str) -> np.ndarray:
    measured = next(one[kind] for one in engine["batches"] if one["batch"] == batch)
    # Times that were rounded to 0 become tiny ones.
    return np.maximum(np.asarray(measured["samples_us"], np.float64), 0.5) / 1000


def _judge(
    before: np.ndarray, after: np.ndarray, confidence: float, min_effect: float
) -> tuple[Interval, float, str]:
    """Ratio, p-value and verdict."""
    ratio, p = independent_ratio(before, after, confidence), mann_whitney(before, after)
    if min(len(before), len(after)) < FEWEST:
        return ratio, p, "unclear"
    if not ratio.low <= 1 <= ratio.high and p < 1 - confidence and abs(ratio.value - 1) >= min_effect:
        return ratio, p, "faster" if ratio.value < 1 else "slower"
    return ratio, p, "same" if 1 - min_effect <= ratio.low and ratio.high <= 1 + min_effect else "unclear"


def _pairs(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """Engines of the same name; if no name is the same, the only engine of either report."""
    a, b = before["engines"], after["engines"]
    same = [(one, other) for one in a for other in b if one["name"] == other["name"]]
    return [(a[0], b[0])] if not same and len(a) == len(b) == 1 else same


def _names(report: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{engine['name']} (batch {', '.join(str(one['batch']) for one in engine['batches'])})"
        for engine in report["engines"]
    )


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Sentences on warnings, machines, versions and settings of two reports."""
    for side, report in (("A", before), ("B", after)):
        yield from (f"{side} has a warning: {one}" for one in report["conditions"]["warnings"])
    a, b = before["machine"], after["machine"]
    yield from _changes("different machines: ", a | {"versions": ""}, b | {"versions": ""})
    yield from _changes("", a["versions"], b["versions"], "missing")
    yield from _changes("different settings: ", before["settings"], after["settings"])


def _changes(
    prefix: str, before: Mapping[str, Any], after: Mapping[str, Any], absent: Any = None
) -> Iterator[str]:
    """A sentence for each value that differs."""
    for key in sorted({*before, *after}):
        a, b = before.get(key, absent), after.get(key, absent)
        if a != b:
            yield f"{prefix}{key} is {_text(a)} in A, {_text(b)} in B"


def _text(value: Any) -> str:
    if isinstance(value, (Mapping, list)):
        return " ".join(map(str, value.values() if isinstance(value, Mapping) else value))[:200]
    text = "none" if value is None else str(value) or "unknown"
    return text[:12] if len(text) == 64 else text[:200]


def _show(
    found: list[Comparison], warnings: list[str], confidence: float, effect: float, control: str | None
) -> None:
    """Print the comparisons and the warnings."""
    note = (
        f"Percent of A's time. {confidence:.0%} intervals of the ratio of medians (bootstrap over blocks of"
        f" runs), Mann-Whitney test; changes below {effect:.0%} do not count"
    )
    if control:
        note += f"; each run relative to that of {control} in the same round"
    rows = [
        [
            *(one.engine, one.kind.replace("_", " "), one.sentence, str(one.batch)),
            *(f"{one.before:.2f}", f"{one.after:.2f}", f"{one.p:.2g}" if one.p >= 1e-4 else "<1e-4"),
        ]
        for one in found
    ]
    columns = ("engine", "kind", "verdict", "batch", "A", "B", "p")
    styles = [{"faster": "green", "slower": "red"}.get(one.verdict) for one in found]
    Table("B against A, median ms per batch", columns, rows, note, text_columns=3).show(styles)
    for warning in warnings:
        print_line(f"Warning: {warning}", sys.stdout, "yellow")
