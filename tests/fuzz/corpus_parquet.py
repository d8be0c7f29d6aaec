"""Small valid Parquet files: rows of batches to merge, tables of shards, and images that a cluster reads."""

from __future__ import annotations

import io
from collections.abc import Iterator
from random import Random
from typing import Any

import mutate
from corpus_data import Seed, annotations, encoded

_TEXTS = (b"\xff\xfe", b"\xed\xa0\x80", b"a\0b", b"x" * 5000, b"../a", b"\x1b[31m", b"s3://x/y", b"")


def _row(path: str, **values: Any) -> dict[str, Any]:
    rle = {"size": [20, 30], "counts": "d3:n01O"}
    found = {
        "path": path, "height": 20, "width": 30, "boxes": [[5.0, 4.0, 20.0, 12.0]], "scores": [0.5],
        "mask_scores": [0.25], "category_ids": [7], "rles": [rle], "area": [0], "error": None,
    }  # fmt: skip
    return {**found, **values}


def parquet_seeds() -> Iterator[Seed]:
    """Rows, with an image that failed, and lists of images by path and with their content."""
    try:
        import pyarrow as pa

        from yolact_runtime.batch.rows import to_arrow
    except ImportError:
        return
    none: dict[str, Any] = {
        "height": None, "width": None, "error": "image b.png is damaged", "boxes": [], "scores": [],
        "mask_scores": [], "category_ids": [], "rles": [], "area": [],
    }  # fmt: skip
    rows = to_arrow([_row("/d/a.png"), _row("/d/b.png", **none), _row("/d/c.png")])
    merge = ("yolact-infer", "merge", "{run}/in/rows", "--json", "{run}/out/o.json", "--annotations")
    others = {"in/a.json": mutate.dump_json(annotations())}
    argv = (*merge, "{run}/in/a.json")
    yield Seed("rows/a.parquet", stored(rows), argv, mutate_parquet, others, good=1)
    read = ("targets:read_parquet", "{run}/in/a.parquet")
    images = [encoded(".png"), encoded(".jpg")]
    for columns in ({"path": ["a.png", "b.png"]}, {"path": ["a", None], "bytes": images}, {"bytes": images}):
        yield Seed("a.parquet", stored(pa.table(columns)), read, mutate_parquet)


def stored(table: Any, **options: Any) -> bytes:
    """A table as the bytes of a file."""
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(table, buffer, **options)
    return buffer.getvalue()


def mutate_parquet(data: bytes, random: Random, other: bytes = b"") -> bytes:
    """Change values, types, names or repetition of the columns of a Parquet file, or its bytes."""
    import pyarrow as pa
    from pyarrow import parquet

    if random.randrange(3) == 0:
        return mutate.mutate_bytes(data, random, other)
    table = parquet.read_table(io.BytesIO(data))
    at = random.randrange(table.num_columns)
    name, column = table.column_names[at], table.column(at)
    kind = random.randrange(6)
    try:
        if kind == 0:
            table = table.remove_column(at)
        elif kind == 1:
            table = table.append_column(random.choice((name, *mutate.TEXTS)), column)
        elif kind == 2:
            texts = pa.array([random.choice(_TEXTS) for _ in range(len(column))])
            table = table.set_column(at, name, texts.view(pa.string()) if random.randrange(2) else texts)
        elif kind == 3:
            table = pa.concat_tables([table] * random.choice((2, 1000)))
        elif kind == 4:
            few = pa.array([0] * table.num_rows, pa.int32())
            long = pa.array(["x" * random.choice((1, 5000, 1_000_000))])
            table = table.set_column(at, name, pa.DictionaryArray.from_arrays(few, long))
            table = pa.concat_tables([table] * random.choice((1, 2000)))
        else:
            values = [random.choice((value, mutate.nasty(random))) for value in column.to_pylist()]
            table = table.set_column(at, name, pa.array(values))
        options = {"store_schema": bool(random.randrange(2)), "compression": random.choice(("none", "zstd"))}
        return stored(table, **options)
    except (pa.ArrowException, UnicodeError, OverflowError, ValueError, TypeError):  # no such file can be
        return mutate.mutate_bytes(data, random, other)
