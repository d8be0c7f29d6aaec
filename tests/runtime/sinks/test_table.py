"""Tables, read back by the csv module and pyarrow; what spreadsheets would take for formulas."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys

import numpy as np
import pytest
from fake_engine import BlobEngine, Pictures
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from yolact_runtime import YolactError
from yolact_runtime.errors import UsageError
from yolact_runtime.frames import Sink
from yolact_runtime.pipeline import run_pipeline
from yolact_runtime.sinks import table
from yolact_runtime.sinks.image_ids import ImageNumbers
from yolact_runtime.sinks.jsonl import JsonLinesSink, fill_areas, read_lines
from yolact_runtime.sinks.table import COLUMNS, TableSink

NAMES = ["photos/a.jpg", "photos/b.jpg", "photos/c.jpg"]


class Kept(Sink):
    """Keeps the results."""

    def __init__(self):
        self.found = {}

    def prepare(self, frame, image, result):
        self.found[frame.name] = result

    def write(self, frame, prepared):
        pass


def open_table(path, engine=None):
    meta = (engine or BlobEngine()).metadata
    return TableSink(path, meta.category_ids, meta.class_names)


def run(path, names=NAMES, engine=None, lines=None):
    """Write a table; the results by image name."""
    engine, kept = engine or BlobEngine(), Kept()
    more = [JsonLinesSink(lines, ImageNumbers())] if lines else []
    stats = run_pipeline(Pictures(names), engine, [open_table(path, engine), kept, *more])
    assert stats.failed == 0
    return {name: kept.found[name] for name in names}


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_table(path):
    """The rows of a table, with numbers where they are numbers."""
    if path.suffix == ".parquet":
        return pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    kinds = {"string": str, "int64": int, "float64": float}
    return [
        {key: kinds[COLUMNS[key]](value) if value else None for key, value in row.items()}
        for row in read_csv(path)
    ]


def need(suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_match_the_results(tmp_path, suffix):
    need(suffix)
    found = run(path := tmp_path / f"new/t{suffix}")
    rows = read_table(path)
    assert [(row["image"], row["row"]) for row in rows] == [
        (name, row) for name in NAMES for row in range(len(found[name]))
    ]
    for row in rows:
        result, index = found[row["image"]], row["row"]
        assert list(row) == list(COLUMNS)
        assert row["class"] == result.names[index] and row["category_id"] == result.category_ids[index]
        assert np.float32(row["score"]) == result.mask_scores[index]
        box = [row[key] for key in ("x1", "y1", "x2", "y2")]
        np.testing.assert_allclose(box, result.boxes_float[index], atol=0.0051)
        assert row["area"] == coco_mask.area(result.rles[index])
        ys, xs = np.nonzero(result.masks[index])
        if len(ys):
            assert abs(row["centroid_x"] - xs.mean() - 0.5) <= 0.0051
            assert abs(row["centroid_y"] - ys.mean() - 0.5) <= 0.0051
        else:
            assert row["centroid_x"] is row["centroid_y"] is None
        assert row["track"] is None
    assert any(row["centroid_x"] is None for row in rows)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("polygons", [False, True])
def test_carried_lines_give_the_same_bytes(tmp_path, monkeypatch, suffix, polygons):
    need(suffix)
    monkeypatch.setattr(table, "ROW_GROUP", 7)
    engine, whole, carried = BlobEngine(), tmp_path / f"whole{suffix}", tmp_path / f"carried{suffix}"
    lines = JsonLinesSink(tmp_path / "l.jsonl", ImageNumbers(), polygons)
    run_pipeline(Pictures(NAMES), engine, [open_table(whole), lines])
    sink = open_table(carried)
    for line, _ in read_lines(tmp_path / "l.jsonl"):
        sink.carry(line)
    sink.close()
    assert whole.read_bytes() == carried.read_bytes()


@given(st.lists(st.floats(-0.5, 1.5, width=32), min_size=4, max_size=4), st.integers(1, 65535))
def test_boxes_of_lines_give_the_same_corners(box, side):
    """The lines have width and height, the table has corners; both are rounded."""
    size = np.array([side] * 4, np.float32)
    corners = np.clip(np.sort((np.array(box, np.float32) * size).reshape(2, 2), axis=0), 0, side).reshape(4)
    corners = corners.astype(np.float64).round(2)
    width = (corners[2:] - corners[:2]).round(2).tolist()
    x, y = json.loads(json.dumps(corners[:2].tolist()))
    assert [round(x + width[0], 2), round(y + width[1], 2)] == corners[2:].tolist()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_run_without_detections_has_columns(tmp_path, suffix):
    need(suffix)
    run(path := tmp_path / f"t{suffix}", [])
    assert read_table(path) == []
    if suffix == ".csv":
        assert path.read_text() == ",".join(COLUMNS) + "\n"
    else:
        assert pytest.importorskip("pyarrow.parquet").read_schema(path).names == list(COLUMNS)


def test_parquet_is_written_in_groups_of_rows(tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(table, "ROW_GROUP", 16)
    sink = open_table(tmp_path / "t.parquet")
    sizes = []
    run_pipeline(Pictures(NAMES * 3), BlobEngine(), [sink, writes := Kept()])
    writes.write = lambda frame, prepared: sizes.append(len(sink._file._rows))
    file = parquet.ParquetFile(tmp_path / "t.parquet")
    groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert sum(groups) == 9 * 15 and set(groups[:-1]) == {16}
    assert [str(field.type) for field in file.schema_arrow] == [
        kind.replace("float64", "double") for kind in COLUMNS.values()
    ]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_previous_table_stays_until_the_end(tmp_path, suffix):
    need(suffix)
    path = tmp_path / f"t{suffix}"
    path.write_text("before")
    sink = open_table(path)
    assert path.read_text() == "before"
    run_pipeline(Pictures([]), BlobEngine(), [sink])
    assert not sink.written() and path.read_text() == "before" and [path] == list(tmp_path.iterdir())
    run(path)
    assert len(read_table(path)) == 45 and [path] == list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_full_disk_leaves_a_whole_table(tmp_path, monkeypatch, suffix):
    need(suffix)
    monkeypatch.setattr(table, "ROW_GROUP", 10)
    path = tmp_path / f"t{suffix}"
    path.write_text("before")
    sink = open_table(path)
    frames = list(Pictures(NAMES))
    prepared = sink.prepare(frames[0], frames[0].read(), BlobEngine().predict([frames[0].read()])[0])
    sink.write(frames[0], prepared)

    def fail(*_):
        raise OSError(28, "No space left on device")

    if suffix == ".csv":
        monkeypatch.setattr(sink._file._file, "_write", fail)
    else:
        monkeypatch.setattr(sink._file._writer, "write_table", fail)
    with pytest.raises(YolactError, match=r"cannot write .*: No space left on device"):
        sink.write(frames[1], prepared)
    monkeypatch.undo()
    sink.close()
    sink.close()
    assert list(tmp_path.iterdir()) == [path]
    if suffix == ".csv":
        assert [row["row"] for row in read_table(path)] == list(range(15))
    else:
        assert path.read_text() == "before"


def test_texts_that_spreadsheets_take_for_formulas_get_an_apostrophe(tmp_path):
    names = ["=1+1.jpg", "+x.jpg", "-x.jpg", "@x.jpg", "\tx.jpg", "＝1.jpg", "'=x.jpg", "x=1.jpg"]
    found = run(path := tmp_path / "t.csv", names, BlobEngine(["=cmd|' /C calc'!A0"]))
    rows = read_csv(path)
    given = list(dict.fromkeys(row["image"] for row in rows))
    assert given == [f"'{name}" for name in names[:6]] + names[6:]
    assert {row["class"] for row in rows} == {"'=cmd|' /C calc'!A0"}
    assert sum(map(len, found.values())) == len(rows)
    # Where the separator is a semicolon, a name must not become two cells.
    assert all(line.startswith('"') for line in path.read_text().splitlines()[1:])


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_any_name_is_read_back(tmp_path, suffix):
    need(suffix)
    null = "\0" if sys.version_info >= (3, 11) else ""  # which the csv module of 3.10 does not read
    names = ['a,"b"\n;c\r\n.jpg', f"ü{null}行.jpg", "x\udcffy.jpg", " x .jpg"]
    run(path := tmp_path / f"t{suffix}", names, BlobEngine(['a "b", c']))
    rows = read_table(path)
    given = list(dict.fromkeys(row["image"] for row in rows))
    assert given == [*names[:2], "x\\udcffy.jpg", names[3]]
    assert {row["class"] for row in rows} == {'a "b", c'}


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tracks(tmp_path, suffix):
    need(suffix)
    path, frame = tmp_path / f"t{suffix}", next(iter(Pictures(NAMES)))
    (result,) = BlobEngine().predict([frame.read()])
    sink, tracks = open_table(path), np.arange(15) * 3
    tracks[4] = -1
    tracked = dataclasses.replace(result, track_ids=tracks)
    sink.write(frame, sink.prepare(frame, frame.read(), tracked))
    lines = JsonLinesSink(tmp_path / "l.jsonl", ImageNumbers())
    sink.carry(json.loads(lines.prepare(frame, frame.read(), tracked)))
    lines.close()
    entry = {"category_id": 7, "score": 0.5, "bbox": [1.0, 2.0, 3.0, 4.0], "area": 0, "track_id": 8}
    sink.carry({"image": "x.jpg", "detections": [entry, {**entry, "track_id": -1}]})
    sink.close()
    rows = read_table(path)
    assert rows[:15] == rows[15:30]
    assert [row["track"] for row in rows[15:]] == [*[None if one < 0 else one for one in tracks], 8, None]
    assert (rows[-1]["class"], rows[-1]["x2"], rows[-1]["centroid_x"]) == ("cat", 4.0, None)


def test_lines_of_earlier_versions(tmp_path):
    """They have no area and no centroid: areas are computed, centroids are missing."""
    found = run(tmp_path / "t.csv", lines=tmp_path / "l.jsonl")
    lines = [line for line, _ in read_lines(tmp_path / "l.jsonl")]
    for line in lines:
        for entry in line["detections"]:
            del entry["area"], entry["centroid"]
    (tmp_path / "old.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sink = open_table(tmp_path / "old.csv")
    for line, _ in read_lines(tmp_path / "old.jsonl"):
        fill_areas(line)
        sink.carry(line)
    sink.close()
    new, old = read_table(tmp_path / "t.csv"), read_table(tmp_path / "old.csv")
    assert old == [{**row, "centroid_x": None, "centroid_y": None} for row in new]
    assert [row["area"] for row in old] == [area for result in found.values() for area in result.areas]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("area", -1), ("area", 1 << 40), ("area", 1.5), ("area", "9"), ("area", None), ("area", True),
        ("centroid", [1.0]), ("centroid", ["1", 2]), ("centroid", "ab"), ("centroid", 3),
        ("track_id", "1"), ("track_id", 1 << 63), ("category_id", 1 << 70),
        # The last character says that the number goes on.
        ("segmentation", {"size": [50, 70], "counts": "P"}),
    ],
)  # fmt: skip
def test_lines_with_other_values_are_refused(tmp_path, field, value):
    run(tmp_path / "t.csv", lines=tmp_path / "l.jsonl")
    lines = [line for line, _ in read_lines(tmp_path / "l.jsonl")]
    lines[1]["detections"][2][field] = value
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(YolactError, match="line 2 was not written by yolact-infer"):
        list(read_lines(tmp_path / "l.jsonl"))


def test_damaged_masks_of_earlier_versions_are_named():
    line = {"image": "a.jpg", "height": 5, "width": 5}
    line["detections"] = [{"segmentation": {"size": [5, 5], "counts": 3}}]
    with pytest.raises(YolactError, match=r"the line of a\.jpg has a damaged mask"):
        fill_areas(line)


def test_other_suffixes_and_a_missing_pyarrow_are_refused(tmp_path, monkeypatch):
    for name in ("t.xlsx", "t", "-"):
        with pytest.raises(UsageError, match=r"known suffixes are \.csv, \.parquet"):
            open_table(tmp_path / name)
    monkeypatch.setattr("yolact_runtime.packages.installed", lambda name: False)
    with pytest.raises(YolactError, match=r'needs packages .* pip install "yolact\[table\]"'):
        open_table(tmp_path / "t.parquet")
    assert not list(tmp_path.iterdir())
