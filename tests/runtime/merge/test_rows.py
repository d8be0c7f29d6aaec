"""A folder of rows in Parquet, compared with what a run writes."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine, Found
from fake_onnx import NATIVE, native_arrays, write_onnx

from yolact_runtime import YolactError, cli
from yolact_runtime.batch.rows import failed_row, row_of, to_arrow
from yolact_runtime.frames import Frame, Source
from yolact_runtime.merge import order
from yolact_runtime.pipeline import run_pipeline
from yolact_runtime.sinks.coco import CocoSink
from yolact_runtime.sinks.coco_dataset import CocoDatasetSink
from yolact_runtime.sinks.image_ids import ImageIds, ImageNumbers
from yolact_runtime.sinks.names import FileNames

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

ENGINE = FakeEngine(
    {
        1: [Found((1, 1, 20, 20), score=0.9), Found((30, 30, 50, 60), label=1, score=0.6)],
        2: [Found((8, 2, 40, 30), score=0.75, mask_score=0.5)],
    },
    ids=(7, 3),
)
CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
SHADES = [1, 0, None, 2, 1, 1, None, 2, 0, 1]


class Shades(Source):
    def __init__(self, names):
        self.names = names

    def __iter__(self):
        for index, name in enumerate(self.names):
            yield Frame(index, name, Path(name), partial(self.read, name, SHADES[index]))

    def read(self, name, shade):
        if shade is None:
            raise YolactError(f"image {name} is damaged")
        return np.full((48, 64, 3), shade, np.uint8)


def names_in(*folders):
    return sorted(f"{folders[i % len(folders)]}/{i}.jpg" for i in range(len(SHADES)))


def rows_of(names):
    found = []
    for name, shade in zip(names, SHADES, strict=True):
        if shade is None:
            found.append(failed_row(name, f"image {name} is damaged"))
        else:
            found.append(row_of(name, ENGINE.predict([np.full((48, 64, 3), shade, np.uint8)])[0]))
    return found


def write_parts(folder, rows, parts=3, metadata=True):
    folder.mkdir(exist_ok=True)
    order_of = np.random.default_rng(1).permutation(len(rows))
    for part in range(parts):
        table = to_arrow([rows[i] for i in order_of[part::parts]])
        if metadata:
            table = table.replace_schema_metadata({"yolact.categories": json.dumps(CATEGORIES)})
        parquet.write_table(table, folder / f"part-{part}.parquet", row_group_size=2)
    (folder / "_SUCCESS").touch()
    return folder


def run(path, names, ids=None):
    meta = ENGINE.metadata
    classes = meta.category_ids, meta.class_names
    folders = {str(Path(name).parent.absolute()) for name in names}
    numbers = ImageNumbers(ids, len(names), FileNames(folders))
    sinks = [CocoSink(path, *classes, numbers), CocoDatasetSink(path.with_name("d.json"), *classes, numbers)]
    run_pipeline(Shades(names), ENGINE, sinks)


def merge(*arguments):
    return cli.main(["merge", "--quiet", *map(str, arguments)])


def merged(folder, out, *more):
    return merge(folder, "--json", out / "mask_detections.json", "--coco-dataset", out / "d.json", *more)


FILES = ["mask_detections.json", "bbox_detections.json", "images.json", "d.json"]


@pytest.mark.parametrize("folders", [("photos",), ("in/one", "in/two")])
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_rows_become_the_files_of_a_run(tmp_path, capsys, monkeypatch, folders, chunk):
    monkeypatch.setattr(order, "CHUNK", chunk)
    monkeypatch.setattr(order, "FAN_IN", 3)
    names = names_in(*folders)
    run(tmp_path / "run/mask_detections.json", names)
    capsys.readouterr()
    assert merged(write_parts(tmp_path / "rows", rows_of(names)), tmp_path / "out") == 1
    for name in FILES:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    text = capsys.readouterr().err
    assert text.count("is damaged") == 2


def test_ids_and_categories_of_an_annotation_file(tmp_path):
    names = names_in("photos")
    images = [{"id": 50 - i, "file_name": f"{i}.jpg"} for i in range(9)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": images, "categories": CATEGORIES}))
    run(tmp_path / "run/mask_detections.json", names, ImageIds(path))
    folder = write_parts(tmp_path / "rows", rows_of(names), metadata=False)
    assert merged(folder, tmp_path / "out") == 2  # no categories
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    assert merged(folder, tmp_path / "out", "--annotations", path) == 1
    for name in FILES:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_a_finished_row_replaces_failed_ones(tmp_path, capsys):
    names = names_in("photos")
    rows = rows_of(names)
    failed = [failed_row(name, "lost") for name in names[::2]]
    assert merged(write_parts(tmp_path / "rows", rows + failed), tmp_path / "out") == 1
    run(tmp_path / "run/mask_detections.json", names)
    for name in FILES:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    capsys.readouterr()
    write_parts(tmp_path / "rows", [*rows, rows[0], rows[1], rows[1]])
    assert merged(tmp_path / "rows", tmp_path / "two") == 1
    assert "3 rows are twice in" in capsys.readouterr().err
    for name in FILES:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_finished_rows_that_differ_are_refused(tmp_path, capsys):
    rows = rows_of(names_in("photos"))
    others = [{**rows[3], "path": rows[0]["path"]}, {**rows[3], "path": rows[1]["path"]}]
    write_parts(tmp_path / "rows", [*rows, *others])
    assert merged(tmp_path / "rows", tmp_path / "out") == 1
    text = capsys.readouterr().err
    assert "2 rows of" in text and f"paths such as {rows[0]['path']} are finished more than once" in text
    assert "give images names of their own in column path" in text
    assert not (tmp_path / "out").exists()


def test_addresses(tmp_path):
    rows = rows_of(names_in("s3://bucket/x/one", "s3://bucket/x/two"))
    assert merged(write_parts(tmp_path / "rows", rows), tmp_path) == 1
    names = {image["file_name"] for image in json.loads((tmp_path / "images.json").read_text())["images"]}
    assert names <= {f"{folder}/{i}.jpg" for folder in ("one", "two") for i in range(10)} and len(names) == 8


@pytest.mark.parametrize(
    "change",
    [
        {"path": ""},
        {"height": 0},
        {"width": None},
        {"boxes": [[1.0, 2.0, 3.0]]},
        {"boxes": None},
        {"boxes": [[1.0, 2.0, 3.0, float("nan")]] * 2},
        {"scores": [0.5]},
        {"rles": [{"size": [48, 64], "counts": "~"}] * 2},
        {"rles": [{"size": [4, 64], "counts": ""}] * 2},
        {"rles": [None, None]},
        {"area": [1, 10**9]},
    ],
)
def test_damaged_rows_are_refused(tmp_path, capsys, change):
    rows = rows_of(names_in("photos"))
    rows[0] |= change
    write_parts(tmp_path / "rows", rows)
    assert merged(tmp_path / "rows", tmp_path / "out") == 1
    text = capsys.readouterr().err
    assert "is damaged, or not of a batch of images" in text and text.count("\n") == 1


def test_rows_without_a_path_are_refused(tmp_path, capsys):
    rows = rows_of(names_in("photos"))
    write_parts(tmp_path / "rows", [{**rows[0], "path": None}, *rows[1:]])
    assert merged(tmp_path / "rows", tmp_path / "out") == 1
    assert "has no path, which merge needs" in capsys.readouterr().err


def test_an_engine_with_other_categories_is_refused(tmp_path, capsys):
    engine = write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE)
    folder = write_parts(tmp_path / "rows", rows_of(names_in("photos")))
    assert merged(folder, tmp_path / "out", "--engine", engine) == 1
    assert "has other categories than the rows in" in capsys.readouterr().err


def test_damaged_files_end_in_one_line(tmp_path, capsys):
    folder = write_parts(tmp_path / "rows", rows_of(names_in("photos")), parts=1)
    path = folder / "part-0.parquet"
    data = path.read_bytes()
    random = np.random.default_rng(0)
    for number in range(60):
        changed = bytearray(data)
        at = int(random.integers(len(changed)))
        if number % 4 == 0:
            del changed[at:]
        else:
            changed[at : at + 1] = random.integers(
                256, size=int(random.integers(1, 4)), dtype=np.uint8
            ).tobytes()
        path.write_bytes(changed)
        assert merged(folder, tmp_path / "out") in (1, 2)
        assert "Traceback" not in capsys.readouterr().err
    parquet.write_table(pyarrow.table({"a": [1]}), path)
    assert merged(folder, tmp_path / "out") == 1
    assert "has no column 'path'" in capsys.readouterr().err


def test_the_record_of_a_run(tmp_path, capsys):
    folder = write_parts(tmp_path / "rows", rows_of(names_in("photos")))
    record = folder / "_yolact.json"
    record.write_text(json.dumps({"run": "89abcdef", "state": "running"}))
    assert merged(folder, tmp_path / "out") == 1
    assert "has not ended; wait for it, or run it again with --resume" in capsys.readouterr().err
    record.write_text(json.dumps({"run": "89abcdef", "state": "done"}))
    assert merged(folder, tmp_path / "out") == 1
    assert json.loads((tmp_path / "out/images.json").read_text())["categories"] == CATEGORIES


def test_a_folder_without_parts(tmp_path, capsys):
    assert merged(tmp_path, tmp_path / "out") == 1
    assert "has no .parquet file" in capsys.readouterr().err
