"""A batch of any form comes back in its form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fake_engine import FakeEngine, Found

from yolact_runtime import YolactError
from yolact_runtime.batch import BatchPredictor, arrow_schema, predictor, to_arrow
from yolact_runtime.batch.rows import COLUMNS, failed_row

SHADES = 20, 30, 40
FINDINGS = {value: [Found((4, 4, value, value)), Found((1, 1, 9, 9), 1, 0.4)] for value in SHADES}


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[..., BatchPredictor]:
    """Makes a predictor that finds two instances in each image."""
    monkeypatch.setattr(predictor, "load_engine", lambda path, **options: FakeEngine(FINDINGS))
    return lambda **options: BatchPredictor("fake.onnx", **options)


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Images of the shades."""
    names = [str(tmp_path / f"{value}.png") for value in SHADES]
    for name, value in zip(names, SHADES, strict=True):
        cv2.imwrite(name, np.full((64, 64, 3), value, np.uint8))
    return names


def contents(paths: list[str]) -> list[bytes]:
    return [Path(path).read_bytes() for path in paths]


def images(paths: list[str]) -> list[np.ndarray]:
    return [cv2.imread(path) for path in paths]


def rows_of(batch: Any) -> list[Mapping[str, Any]]:
    """The rows of an Arrow table, of columns by name or of a pandas data frame."""
    if hasattr(batch, "to_pylist"):
        return batch.to_pylist()
    if hasattr(batch, "iloc"):
        return batch.to_dict("records")
    if isinstance(batch, Mapping):
        return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    return list(batch)


def check(rows: Any) -> None:
    """The rows have what is in the images, in order."""
    rows = rows_of(rows)
    assert [row["error"] for row in rows] == [None] * len(SHADES)
    for value, row in zip(SHADES, rows, strict=True):
        assert (row["height"], row["width"]) == (64, 64)
        assert np.array_equal(np.stack(list(row["boxes"])), [[4, 4, value, value], [1, 1, 9, 9]])
        assert list(row["category_ids"]) == [1, 2]
        assert np.allclose(row["scores"], [0.9, 0.4])
        assert len(row["rles"]) == len(row["area"]) == 2
        assert list(row["rles"][0]["size"]) == [64, 64] and isinstance(row["rles"][0]["counts"], str)


def objects(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), object)
    for index, value in enumerate(values):
        array[index] = value
    return array


@pytest.mark.parametrize(
    "columns",
    [
        lambda paths: {"path": paths},
        lambda paths: {"path": np.array(paths)},
        lambda paths: {"path": np.array(paths, object)},
        lambda paths: {"path": np.array(paths, np.bytes_)},
        lambda paths: {"bytes": np.array(contents(paths))},  # dtype S, which drops zeros at the end
        lambda paths: {"bytes": objects(contents(paths))},
        lambda paths: {"bytes": np.array([np.void(data) for data in contents(paths)], object)},
        lambda paths: {"image": np.stack(images(paths))},
        lambda paths: {"image": objects(images(paths))},
        lambda paths: {"path": objects([None, np.nan, paths[2]]),
                       "bytes": objects([*contents(paths)[:2], None])},
    ],
)  # fmt: skip
def test_columns_of_numpy(columns: Callable[..., dict[str, Any]], found: Any, paths: list[str]) -> None:
    batch = columns(paths)
    out = found()(batch)
    assert list(out) == list(COLUMNS)
    assert all(isinstance(column, np.ndarray) and column.dtype == object for column in out.values())
    assert out["boxes"][0].dtype == np.float32 and out["boxes"][0].shape == (2, 4)
    check(out)


def test_errors_of_a_step_before_are_kept(found: Any, paths: list[str]) -> None:
    out = found()({"path": paths[:2], "error": np.array(["lost", None], object)})
    assert out["error"].tolist() == [f"{paths[0]}: lost", None]
    assert [len(rles) for rles in out["rles"]] == [0, 2]


def test_fixed_sizes_of_numpy_drop_no_zeros(found: Any, tmp_path: Path) -> None:
    name = str(tmp_path / "a.bmp")  # its last bytes are those of the pixels
    cv2.imwrite(name, np.zeros((5, 8, 3), np.uint8))
    for batch in ({"bytes": np.array([Path(name).read_bytes()])}, {"path": [name]}):
        assert found()(batch)["error"].tolist() == [None]


def test_rows_and_columns_to_keep(found: Any, paths: list[str]) -> None:
    rows = [{"path": path, "id": index, "bytes": b""} for index, path in enumerate(paths)]
    rows[0].pop("bytes")
    out = found(keep=["id"])([rows[0], {"path": "none.png", "id": "x"}])
    assert [row["id"] for row in out] == [0, "x"] and out[1]["error"]
    assert list(out[0]) == [*COLUMNS, "id"]
    ids = np.array([1, 2, 3], np.int16)
    assert found(keep="id")({"path": paths, "id": ids})["id"].dtype == np.int16


@pytest.mark.parametrize("batch", [[], {}, {"path": []}, {"bytes": np.zeros(0, object)}])
def test_empty_batches(batch: Any, found: Any) -> None:
    out = found(keep=["id"] if batch == {} else ())(batch)
    assert (
        out == [] if batch == [] else {name: len(out[name]) for name in COLUMNS} == dict.fromkeys(COLUMNS, 0)
    )


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        ({"name": ["a.png"], "id": [1]}, 'the batch has the columns name, id; one of "path", "bytes"'),
        ({"path": ["a.png"], "other": [1]}, "the batch has the columns path, other, and not id, which keep"),
        ({"path": ["a.png"], "bytes": [b"", b""], "id": [1]}, "different lengths: path 1, bytes 2"),
        ({"path": "a.png", "id": 1}, "column path is a str; an array or a list is needed"),
        ({"path": 7, "id": 1}, "column path is a int"),
        (["a.png"], "a row is a str; give a list of dicts"),
        ([None], "a row is a NoneType; give a list of dicts"),
        ("a.png", "a batch is a str; give a list of dicts"),
        (None, "a batch is a NoneType"),
    ],
)
def test_wrong_columns_are_errors_of_the_call(batch: Any, reason: str, found: Any) -> None:
    with pytest.raises(YolactError) as caught:
        found(keep=["id"])(batch)
    assert reason in str(caught.value)


class TestArrow:
    """Tables and record batches."""

    pa = pytest.importorskip("pyarrow")

    @pytest.mark.parametrize(
        "columns",
        [
            lambda pa, paths: {"path": pa.array(paths)},
            lambda pa, paths: {"path": pa.array(paths, pa.large_string())},
            lambda pa, paths: {"path": pa.array(paths).dictionary_encode()},
            lambda pa, paths: {"path": pa.array([path.encode() for path in paths], pa.binary())},
            lambda pa, paths: {"path": pa.chunked_array([paths[:1], [], paths[1:]])},
            lambda pa, paths: {"bytes": pa.array(contents(paths))},
            lambda pa, paths: {"bytes": pa.array(contents(paths), pa.large_binary())},
            lambda pa, paths: {"bytes": pa.array(contents(paths), pa.binary_view())},
            lambda pa, paths: {"bytes": pa.array(contents(paths)).dictionary_encode()},
            lambda pa, paths: {"image": pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack(images(paths)))},
            lambda pa, paths: {"path": pa.array([None, *paths[1:]]),
                               "bytes": pa.array([contents(paths)[0], None, None])},
        ],
    )  # fmt: skip
    def test_tables(self, columns: Callable[..., dict[str, Any]], found: Any, paths: list[str]) -> None:
        table = self.pa.table(columns(self.pa, paths))
        out = found()(table)
        assert isinstance(out, self.pa.Table) and out.schema == arrow_schema()
        out.validate(full=True)
        check(out)

    def test_record_batches_and_columns_to_keep(self, found: Any, paths: list[str]) -> None:
        pa = self.pa
        schema = pa.schema([
            pa.field("path", pa.string()),
            pa.field("id", pa.uint8(), metadata={"unit": "m"}),
            pa.field("kind", pa.dictionary(pa.int8(), pa.string())),
            pa.field("taken", pa.timestamp("us", "UTC")),
        ])  # fmt: skip
        table = pa.Table.from_pylist(
            [{"path": path, "id": i, "kind": "ab"[i % 2]} for i, path in enumerate(paths)], schema=schema
        )
        (batch,) = table.combine_chunks().to_batches()
        kept = ["taken", "kind", "id"]
        for given in (table, batch, table[:0], batch[:0]):
            out = found(keep=kept)(given)
            assert type(out) is type(given) and out.num_rows == given.num_rows
            assert out.schema.names == [*COLUMNS, *kept]
            for name in kept:
                assert out.schema.field(name).equals(schema.field(name), check_metadata=True)
                assert out[name].equals(given[name])
            out.validate(full=True)
        assert found(keep=kept)(pa.table({})).schema == arrow_schema()

    def test_what_is_missing_or_wrong_is_an_error_of_its_row(self, found: Any, paths: list[str]) -> None:
        pa = self.pa
        out = found()(pa.table({"path": pa.array([paths[0], None], pa.string())})).to_pylist()
        assert out[0]["error"] is None and 'row 1 has none of "path"' in out[1]["error"]
        (row,) = found()(pa.table({"bytes": ["text"]})).to_pylist()
        assert row["error"] == "row 0: bytes is a str; the content of a file is needed"
        (row,) = found()(pa.table({"image": [[[1, 2, 3]]]})).to_pylist()
        assert "image 0 is a list; a NumPy array (H, W, 3) uint8 is needed" in row["error"]

    def test_names_that_are_no_text_are_escaped(self, found: Any, paths: list[str]) -> None:
        (row,) = to_arrow(found()([{"path": "/none/\udcff.png"}])).to_pylist()
        assert row["path"] == r"/none/\udcff.png" and r"/none/\udcff.png does not exist" in row["error"]
        damaged = self.pa.array([b"/none/\xff.png"]).view(self.pa.string())
        assert found()(self.pa.table({"path": damaged})).to_pylist() == [row]

    def test_parquet_and_back(self, found: Any, paths: list[str], tmp_path: Path) -> None:
        from pyarrow import parquet

        rows = [*found()([{"path": path} for path in paths]), failed_row(None, "lost")]
        parquet.write_table(to_arrow(rows), tmp_path / "t.parquet")
        table = parquet.read_table(tmp_path / "t.parquet")
        assert table.schema == arrow_schema() and to_arrow([]).schema == arrow_schema()
        back = table.to_pylist()
        check(back[:3])
        assert back[3]["error"] == "lost" and back[3]["boxes"] == [] and back[3]["path"] is None
        assert np.float32(back[0]["scores"]).tobytes() == rows[0]["scores"].tobytes()


def test_data_frames_of_pandas(found: Any, paths: list[str]) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {"path": paths, "id": pandas.Series([1, 2, None], dtype="Int16")}, index=[7, 8, 9]
    )
    out = found(keep=["id"])(frame)
    assert list(out.index) == [7, 8, 9] and list(out.columns) == [*COLUMNS, "id"]
    assert out["id"].equals(frame["id"]) and str(out.dtypes["height"]) == "Int32"
    check(out)
    frame = pandas.DataFrame({"path": [None, float("nan"), pandas.NA, pandas.NaT, paths[0]]})
    out = found()(frame)
    assert out["error"].isna().tolist() == [False, False, False, False, True]
    assert len(found()(frame[:0])) == 0 and list(found()(frame[:0]).columns) == list(COLUMNS)
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pandas(out, schema=arrow_schema(), preserve_index=False)
    assert table.num_rows == 5
