"""`BatchPredictor`: the instances of `Engine.predict` and yolact-infer, and errors in the right place."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fake_engine import BlobEngine, FakeEngine, Found, Pictures, write_image

from yolact_runtime import Engine, YolactError, cli, load_engine, tiled
from yolact_runtime.batch import BatchPredictor, predictor
from yolact_runtime.batch.rows import COLUMNS
from yolact_runtime.engines.load import UnknownOptionError
from yolact_runtime.errors import UsageError

pytest.importorskip("onnx")
from fake_onnx import NATIVE, native_arrays, write_onnx


def opened(engine: Engine, monkeypatch: pytest.MonkeyPatch, **options: Any) -> BatchPredictor:
    """A predictor with this engine."""
    monkeypatch.setattr(predictor, "load_engine", lambda path, **options: engine)
    return BatchPredictor("fake.onnx", **options)


def shade(value: int) -> dict[str, Any]:
    return {"image": np.full((64, 64, 3), value, np.uint8)}


def plain(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in row.items()}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an engine and photos, one of them damaged."""
    monkeypatch.chdir(tmp_path)
    write_onnx("m.onnx", native_arrays(), NATIVE)
    for name, value, size in (("a.png", 255, (20, 30)), ("b.jpg", 200, (33, 20)), ("d.png", 0, (9, 9))):
        Path("photos").mkdir(exist_ok=True)
        cv2.imwrite(f"photos/{name}", np.full((*size, 3), value, np.uint8))
    Path("photos/c.jpg").write_bytes(Path("photos/b.jpg").read_bytes()[:100])
    return tmp_path


@pytest.mark.parametrize("options", [{}, {"batch_size": 3, "threads": 1}, {"threads": 2, "workers": 3}])
def test_the_instances_are_those_of_yolact_infer_and_of_the_engine(
    place: Path, options: dict[str, Any]
) -> None:
    cli.main(["--engine", "m.onnx", "photos", "--jsonl", "lines", "--quiet", "--no-overlay", "--no-json"])
    lines = [json.loads(line) for line in Path("lines").read_text().splitlines()]
    paths = [f"photos/{name}" for name in ("a.png", "b.jpg", "c.jpg", "d.png")]
    with BatchPredictor("m.onnx", backend="onnxruntime", **options) as found:
        by_path = found([{"path": path} for path in paths])
        by_bytes = found([{"path": path, "bytes": Path(path).read_bytes()} for path in paths])
    assert [plain(row) for row in by_bytes] == [plain(row) for row in by_path]
    with load_engine("m.onnx", backend="onnxruntime") as engine:
        for path, line, row in zip(paths, lines, by_path, strict=True):
            assert list(row) == list(COLUMNS) and row["path"] == path == line["image"]
            if path == "photos/c.jpg":
                assert row["error"] == line["error"] == f"image {path} is cut off; copy it again"
                assert row["height"] is None and len(row["scores"]) == 0
                continue
            image = cv2.imread(path)
            (result,) = engine.predict([image])
            assert row["error"] is None
            assert (row["height"], row["width"]) == image.shape[:2] == (line["height"], line["width"])
            assert row["boxes"].tobytes() == result.boxes_float.tobytes()
            assert row["scores"].tobytes() == result.scores.tobytes()
            assert row["area"].tolist() == [entry["area"] for entry in line["detections"]]
            assert row["rles"] == [entry["segmentation"] for entry in line["detections"]] == result.rles
            assert row["category_ids"].tolist() == [entry["category_id"] for entry in line["detections"]]
    assert sum(len(row["rles"]) for row in by_path) == 4


@pytest.mark.parametrize("limits", [{}, {"score_threshold": 0.5, "top_k": 3}])
def test_many_different_masks(limits: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    engine, pictures = BlobEngine(), Pictures([""] * 12)
    images = [pictures.read(index) for index in range(12)]
    rows = opened(engine, monkeypatch, **limits)([{"image": image} for image in images])
    for row, result in zip(rows, engine.predict(images, **limits), strict=True):
        assert row["path"] is None and row["rles"] == result.rles and len(result) > 1
        for name, value in (("boxes", result.boxes_float), ("mask_scores", result.mask_scores)):
            assert row[name].dtype == np.float32 and row[name].tobytes() == value.tobytes()
        assert np.array_equal(row["area"], result.areas)
        assert np.array_equal(row["category_ids"], result.category_ids)


def test_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine({20: [Found((4, 4, 20, 20)), Found((8, 8, 30, 30), label=1)]})
    (row,) = opened(engine, monkeypatch, classes=["dog"])([shade(20)])
    assert row["category_ids"].tolist() == [2] and row["boxes"].tolist() == [[8, 8, 30, 30]]


def test_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Pictures([""], height=150, width=200).read(0)
    tiles = {"tile": 64, "tile_overlap": 0.3, "tile_full": False}
    (row,) = opened(BlobEngine(), monkeypatch, **tiles)([{"image": image}])

    (result,) = tiled(BlobEngine(), 64, 0.3, full=False).predict([image])
    assert row["rles"] == result.rles and len(result) == 15


def test_what_is_wrong_with_a_row_is_its_error(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    nothing = 'has none of "path", "bytes" and "image"'
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, f"row 0 {nothing}"),
        ({"path": None, "bytes": float("nan"), "image": np.float32("nan")}, f"row 1 {nothing}"),
        ({"path": 7}, "row 2: path is a int; a text is needed"),
        ({"path": "photos/none.png"}, "image photos/none.png does not exist"),
        ({"path": "photos/none\0.png"}, "cannot read image"),
        ({"path": "photos"}, "photos"),
        ({"path": "a.png", "bytes": b"", "image": image}, 'a.png has "bytes" and "image"; give one of them'),
        ({"path": "x.png", "bytes": b""}, "image x.png is empty (0 bytes)"),
        ({"bytes": b"no image"}, "image row 8 is damaged or not an image"),
        ({"bytes": "text"}, "row 9: bytes is a str; the content of a file is needed"),
        ({"bytes": 7.5}, "row 10: bytes is a float"),
        ({"image": image.astype(np.float32)}, "(4, 4, 3) float32; (H, W, 3) uint8 BGR"),
        ({"image": image[..., 0]}, "(4, 4) uint8; (H, W, 3) uint8 BGR"),
        ({"image": np.zeros((0, 4, 3), np.uint8)}, "(0, 4, 3) uint8"),
        ({"image": image.tolist()}, "is a list; a NumPy array"),
        ({"image": np.array(None)}, "is ()"),
        ({"path": "\udcff.png"}, "image \udcff.png does not exist"),
        ({"path": ["a.png"], "image": image}, "row 17: path is a list; a text is needed"),
    ]
    monkeypatch.setenv("YOLACT_MAX_IMAGE_BYTES", "200000")
    wrong.append(({"bytes": bytes(200001)}, "image row 18 has more bytes than"))
    good = {"path": "photos/a.png"}
    rows = [one for given, _ in wrong for one in (given, good)]
    names = {"row " + str(number): "row " + str(2 * number) for number in range(len(wrong))}
    with BatchPredictor("m.onnx") as found:
        out = found(rows)
    assert len(out) == len(rows)
    assert all(row["error"] is None and len(row["rles"]) == 2 for row in out[1::2])
    for (_, reason), row in zip(wrong, out[::2], strict=True):
        for name in sorted(names, key=len, reverse=True):
            if name in reason:
                reason = reason.replace(name, names[name])
                break
        assert reason in row["error"] and "\n" not in row["error"]
        assert row["rles"] == [] and row["boxes"].shape == (0, 4)


@pytest.mark.parametrize("kind", [bytearray, memoryview, lambda data: np.frombuffer(data, np.uint8)])
def test_content_of_any_type(kind: Any, place: Path) -> None:
    data = Path("photos/a.png").read_bytes()
    with BatchPredictor("m.onnx") as found:
        (row,) = found([{"bytes": kind(data)}])
    assert row["error"] is None and len(row["rles"]) == 2


def test_paths_of_any_type(place: Path) -> None:
    odd = Path("photos") / "\udcff.png"
    odd.write_bytes(Path("photos/a.png").read_bytes())
    with BatchPredictor("m.onnx") as found:
        rows = found([{"path": path} for path in (odd, str(odd), bytes(odd), np.str_(odd))])
    assert [row["path"] for row in rows] == [str(odd)] * 4 and not any(row["error"] for row in rows)


def test_images_that_are_views(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Pictures([""], height=64, width=64).read(0)
    turned = image[:, ::-1, ::-1]
    turned.setflags(write=False)
    found = opened(BlobEngine(), monkeypatch)
    (row,), (same,) = found([{"image": turned}]), found([{"image": turned.copy()}])
    assert row["rles"] == same["rles"]


FINDINGS = {value: [Found((4, 4, value, value))] for value in (20, 30, 40)}


def test_an_image_that_the_engine_fails_on_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    found = opened(FakeEngine(FINDINGS, broken=[50], max_batch=4), monkeypatch, batch_size=4)
    rows = found([shade(value) for value in (20, 50, 30, 40, 50)])
    assert [row["error"] for row in rows] == [
        None, "row 1: cannot look at shade 50", None, None, "row 4: cannot look at shade 50",
    ]  # fmt: skip
    assert [int(row["boxes"][0, 2]) for row in rows if row["error"] is None] == [20, 30, 40]


def test_an_engine_that_fails_on_black_as_well_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(FINDINGS, broken=[0, 50])
    found = opened(engine, monkeypatch)
    with pytest.raises(YolactError, match=r"fake\.onnx failed, on a black image as well: row 1: .* shade 50"):
        found([shade(20), shade(50)])
    (row,) = found([{"path": "none.png"}])  # that the file cannot be read says nothing about the engine
    assert "none.png does not exist" in row["error"]
    engine.broken = ()
    assert [row["error"] for row in found([shade(20), shade(50)])] == [None, None]


def test_an_engine_that_fails_ten_times_in_a_row_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    found = opened(FakeEngine(FINDINGS, broken=[50]), monkeypatch)
    with pytest.raises(YolactError, match="the engine failed on 10 images in a row"):
        found([shade(50)] * 12)


def test_failures_are_in_the_rows_and_not_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened(FakeEngine(FINDINGS), monkeypatch)([{"path": "none.png"}])
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_it_is_not_pickled_or_copied(place: Path) -> None:
    with BatchPredictor("m.onnx") as found:
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(UsageError, match=r"make it in each worker, .*: BatchPredictor\('m.onnx'\)"):
                attempt(found)


def test_closing(place: Path) -> None:
    with BatchPredictor("m.onnx") as found:
        pass
    found.close()
    with pytest.raises(YolactError, match=r"the predictor of m\.onnx is closed"):
        found([{"path": "photos/a.png"}])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"threads": 0}, "threads is 0; it must be 1 or more"),
        ({"threads": "2"}, "threads is '2'"),
        ({"workers": 0}, "decode_workers is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"top_k": 0}, "top_k is 0"),
        ({"score_threshold": 2}, "score_threshold is 2"),
        ({"classes": ["horse"]}, "horse"),
        ({"tile": 4}, "4"),
        ({"tile_full": True}, "tile_overlap and tile_full need tile"),
        ({"keep": ["error"]}, "keep: 'error' must be a column of the input other than path, height"),
        ({"backend": "none"}, "backend 'none'"),
        ({"precision": "int8"}, "precision int8 was asked for"),
        ({"input_size": 64}, "its input is 16, and 64 was asked for"),
        ({"speed": 1}, "option 'speed' does not apply"),
    ],
)
def test_wrong_values(options: dict[str, Any], reason: str, place: Path) -> None:
    with pytest.raises(UsageError) as caught:
        BatchPredictor("m.onnx", **options)
    assert reason in str(caught.value)


def test_threads_are_the_cpus_that_it_was_given(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[int] = []
    monkeypatch.setattr(cv2, "getNumThreads", lambda: 64)
    monkeypatch.setattr(cv2, "setNumThreads", set_to.append)
    for threads, workers in ((1, 1), (2, 1), (6, 3), (32, 4)):
        with BatchPredictor("m.onnx", threads=threads, backend="onnxruntime") as found:
            assert found.engine.threads == threads == set_to.pop()
            assert found.engine.streams <= threads
            assert found._settings.decode_workers == found._settings.post_workers == workers
    names, start = [], threading.Thread.start

    def note(thread: threading.Thread) -> None:
        names.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", note)
    opened(BlobEngine(), monkeypatch, threads=6)([shade(20)] * 8)
    kinds = {"engine-0", *(f"{kind}-{i}" for kind in ("decode", "post") for i in range(3))}
    assert set(names) == kinds | {"reader", "writer-0"} and len(names) == 9


def test_an_engine_that_takes_no_threads_is_not_given_any(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: str, **options: Any) -> Engine:
        if "threads" in options or "speed" in options:
            error = UnknownOptionError("not here")
            error.option = "speed" if "speed" in options else "threads"
            raise error
        return BlobEngine()

    monkeypatch.setattr(predictor, "load_engine", load)
    assert BatchPredictor("gpu.engine", threads=4)._settings.decode_workers == 2
    with pytest.raises(UnknownOptionError):
        BatchPredictor("gpu.engine", threads=4, speed=1)


def test_threads_may_share_a_predictor(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, calls, most = FakeEngine(FINDINGS), 0, 0
    detect = engine.detect

    def slow(*arguments: Any) -> Any:
        nonlocal calls, most
        calls += 1
        most = max(most, calls)
        time.sleep(0.002)
        calls -= 1
        return detect(*arguments)

    monkeypatch.setattr(engine, "detect", slow)
    found, out = opened(engine, monkeypatch), {}

    def call(value: int) -> None:
        out[value] = [int(row["boxes"][0, 2]) for row in found([shade(value)] * 5)]

    threads = [threading.Thread(target=call, args=(value,)) for value in FINDINGS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert out == {value: [value] * 5 for value in FINDINGS} and most == engine.streams == 1


def test_memory_holds_the_rows_of_large_batches_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 20)
    alive = most = 0

    class Picture(np.ndarray):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    from yolact_runtime.batch import images

    def read(path: str) -> np.ndarray:
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        return cv2.imread(path).view(Picture)

    monkeypatch.setattr(images, "read_image", read)
    rows = opened(FakeEngine(FINDINGS), monkeypatch)([{"path": str(tmp_path / "a.png")}] * 100)
    assert len(rows) == 100 and all(len(row["rles"]) == 1 for row in rows)
    assert 0 < most < 20


def test_no_engine_of_the_trade_is_imported(place: Path) -> None:
    code = """
import sys
from yolact_runtime.batch import BatchPredictor
import numpy as np
found = BatchPredictor("m.onnx", backend="onnxruntime", threads=1)
found([{"path": "photos/a.png"}])
found({"path": np.array(["photos/a.png"], object)})
print(sorted({"ray", "pyspark", "daft", "pandas", "pyarrow", "torch"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
