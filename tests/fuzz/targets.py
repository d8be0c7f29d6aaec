"""Readers that no command reaches quickly, as functions: caches, rooflines, Parquet."""

from __future__ import annotations

import base64
import contextlib
import functools
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from yolact_runtime.commandline import Parser, run
from yolact_runtime.errors import YolactError

CALIBRATION = {"a": [0.0, 1.5], "b": [-3.0, 3.0]}
KERNELS = {
    "image": base64.b64encode(b"code").decode(),
    "names": {"resize<float>": "_Z6resize"},
    "log": "ptxas",
}
CEILINGS = {
    "device": "CPU",
    "threads": 1,
    "operations": {"float32": 1e10, "int8": 2e10},
    "by": {"float32": "torch", "int8": "openvino"},
    "bandwidth": 1e10,
    "created": "2026-01-01T00:00:00+00:00",
    "versions": {"torch": "2.5"},
    "probes": {"float32": {"torch": 1e10}},
}


def _readers() -> dict[str, tuple[Any, Callable[[Any], Any]]]:
    from yolact_bench.roofline import ceilings
    from yolact_export.precision import calibration
    from yolact_runtime.cuda import compile as kernels
    from yolact_runtime.engines import trial

    return {
        "calibration": (
            calibration._CACHE,
            functools.partial(calibration._check_ranges, names=list(CALIBRATION)),
        ),
        "kernels": (kernels._CACHE, functools.partial(kernels._from_entry, names=list(KERNELS["names"]))),
        "ceilings": (ceilings._CACHE, ceilings._from_entry),
        "engines": (trial._PASSED, bool),
    }


def read_cache(argv: Sequence[str]) -> int:
    """Read an entry of a cache: `NAME FILE`, the file holding the value; `NAME FILE raw`, the whole entry."""
    name, file, *raw = argv

    def work(args: object) -> int:
        from yolact_runtime import cache

        one, convert = _readers()[name]
        one.write("x", [], None)
        path = one.path("x", [])
        data = Path(file).read_bytes()
        if not raw:
            value = json.loads(data)
            data = json.dumps({"sha256": cache.digest(one.name, [], value), "value": value}).encode()
        path.write_bytes(data)
        found = one.read("x", [], convert)
        print("not used" if found is None else "used")
        return 0

    return run(work, Parser(prog="yolact-bench"), [])


def roofline(argv: Sequence[str]) -> int:
    """Count the work of an ONNX file, without measuring what this machine can do."""

    def work(args: object) -> int:
        from yolact_bench.roofline.graph import roofline as count

        count(Path(argv[0]), 1)
        return 0

    return run(work, Parser(prog="yolact-bench"), [])


def read_parquet(argv: Sequence[str]) -> int:
    """Read the images that a Parquet file names or holds, as a run on a cluster does."""

    def work(args: object) -> int:
        import pyarrow as pa

        from yolact_runtime.batch import images, listing

        found = listing.list_sources([argv[0]])
        rows = [{"path": path} for path in found.paths.to_pylist()[:20]]
        if found.groups:
            groups = pa.Table.from_pylist([{"file": file, "group": group} for file, group in found.groups])
            parts = listing.read_groups(groups, listing.digests([]))
            rows = list(itertools.islice((row for part in parts for row in part.to_pylist()), 20))
            for _ in parts:  # the rest is read and forgotten
                pass
        for frame in images.RowSource(rows):
            with contextlib.suppress(YolactError):  # a row's own
                frame.read()
        return 0

    return run(work, Parser(prog="yolact-infer"), [])
