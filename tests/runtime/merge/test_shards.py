"""Merged outputs of shards, compared byte for byte with those of the whole run."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine, Found
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from yolact_runtime import YolactError, cli
from yolact_runtime.frames import Frame, Source
from yolact_runtime.merge import order
from yolact_runtime.packages import installed
from yolact_runtime.pipeline import run_pipeline
from yolact_runtime.sinks.coco import CocoSink
from yolact_runtime.sinks.coco_dataset import CocoDatasetSink
from yolact_runtime.sinks.image_ids import ImageIds, ImageNumbers
from yolact_runtime.sinks.jsonl import JsonLinesSink
from yolact_runtime.sinks.table import TableSink
from yolact_runtime.sources.shard import Shard

PHASES = (Phase.explicit, Phase.generate)  # shrinking takes minutes
# Shade 0 has nothing; shade 2's mask scores are its own.
FINDINGS = {
    1: [Found((1, 1, 20, 20), score=0.9), Found((30, 30, 50, 60), label=1, score=0.6)],
    2: [Found((8, 2, 40, 30), score=0.75, mask_score=0.5)],
}
ENGINE = FakeEngine(FINDINGS, names=('a "cat"', "=dog"), ids=(7, 3))
CATEGORIES = [{"id": 7, "name": 'a "cat"'}, {"id": 3, "name": "=dog"}]
TABLES = ["t.csv", "t.parquet"] if installed("pyarrow") else ["t.csv"]
RESULTS = ["mask_detections.json", "bbox_detections.json", "images.json", "d.json", "l.jsonl", *TABLES]


class Shades(Source):
    """Images of one shade each; None for a damaged one."""

    def __init__(self, shades, shard=None):
        self.shades, self.shard = shades, shard

    def __iter__(self):
        for index, shade in enumerate(self.shades):
            if self.shard is None or self.shard.has(index):
                # Two images have the same name, as in a list.
                name = f"photos/\udcff{index % 7}.jpg"
                yield Frame(index, name, Path(name), partial(self.read, name, shade))

    def read(self, name, shade):
        if shade is None:
            raise YolactError(f"image {name} is damaged")
        return np.full((48, 64, 3), shade, np.uint8)


def shard_of(number, count, listed, **changed):
    values = {"names": "0123456789abcdef", "run": "89abcdef", "ids": "counted", **changed}
    return Shard(number, count, len(range(number - 1, listed, count)), listed, **values)


def write(folder, shades, shard=None, annotations=None):
    """All outputs of a run."""
    folder.mkdir(parents=True)
    numbers = ImageNumbers(annotations and ImageIds(annotations), len(shades))
    classes = ENGINE.metadata.category_ids, ENGINE.metadata.class_names
    sinks = [
        CocoSink(folder / "mask_detections.json", *classes, numbers, shard=shard),
        CocoDatasetSink(folder / "d.json", *classes, numbers, shard=shard),
        *(TableSink(folder / name, *classes, shard) for name in TABLES),
        JsonLinesSink(
            folder / "l.jsonl", numbers, run="89abcdef", shard=shard, categories=CATEGORIES if shard else ()
        ),
    ]
    run_pipeline(Shades(shades, shard), ENGINE, sinks)
    return folder


def shards(folder, shades, count, annotations=None, **changed):
    """The folders of all shards."""
    ids = "0123456789abcdef" if annotations else "counted"
    every = [shard_of(n, count, len(shades), **{"ids": ids, **changed}) for n in range(1, count + 1)]
    return [write(folder / str(shard.number), shades, shard, annotations) for shard in every]


def merge(*arguments):
    return cli.main(["merge", "--quiet", *map(str, arguments)])


def merge_all(folders, out):
    """Merge everything in every way; the exit codes."""
    lines = [folder / "l.jsonl" for folder in folders]
    options = [("--json", "mask_detections.json"), ("--coco-dataset", "d.json"), ("--jsonl", "l.jsonl")]
    words = [word for option, name in options for word in (option, out / "lines" / name)]
    codes = [merge(*lines, *words, "--table", out / "lines" / name) for name in TABLES]
    results = [folder / "mask_detections.json" for folder in folders]
    words = [word for option, name in options[:2] for word in (option, out / "coco" / name)]
    codes.append(merge(*results, *words))
    tables = [
        merge(*(folder / name for folder in folders), "--table", out / "table" / name) for name in TABLES
    ]
    return codes + tables


ANNOTATIONS = {  # photos/1.jpg is not in it; the two of each name have one id
    "images": [{"id": 90 - 7 * n, "file_name": f"\udcff{n}.jpg"} for n in (0, 2, 3, 4, 5, 6)]
}


@settings(max_examples=6, derandomize=True, phases=PHASES, deadline=None)
@given(
    shades=st.lists(st.sampled_from([0, 1, 2, None]), max_size=11),
    count=st.integers(1, 5),
    listed=st.booleans(),
)
def test_merged_shards_are_the_whole_run(tmp_path_factory, shades, count, listed):
    tmp_path = tmp_path_factory.mktemp("merge")
    annotations = None
    if listed:
        annotations = tmp_path / "a.json"
        annotations.write_text(json.dumps(ANNOTATIONS).replace("\\udcff", ""))
    whole = write(tmp_path / "whole", shades, annotations=annotations)
    folders = shards(tmp_path, shades, count, annotations)
    codes = merge_all(folders, out := tmp_path / "out")
    for kind, names in (("lines", RESULTS), ("coco", RESULTS[:4]), ("table", TABLES)):
        done = any(shade is not None for shade in shades)
        for name in names:
            if done or name == "l.jsonl":
                assert (out / kind / name).read_bytes() == (whole / name).read_bytes(), (kind, name)
    failed = None in shades
    assert codes[-1] == failed
    if not listed:
        assert set(codes) == {int(failed)}
    shutil.rmtree(tmp_path)


@pytest.fixture
def three(tmp_path):
    return shards(tmp_path, [1, 2, None, 0, 1, 1, 2, 2], 3)


def test_pycocotools_reads_merged_results(three, tmp_path):
    words = [folder / "mask_detections.json" for folder in three]
    assert merge(*words, "--json", tmp_path / "m.json") == 1
    found = COCO(tmp_path / "m_images.json").loadRes(str(tmp_path / "m.json"))
    assert sorted({one["image_id"] for one in found.anns.values()}) == [1, 2, 5, 6, 7, 8]


@pytest.mark.parametrize("name", ["l.jsonl", "mask_detections.json", *TABLES])
def test_gaps_doubles_and_other_runs_are_refused(three, tmp_path, capsys, name):
    option = "--table" if name in TABLES else "--json"
    out = tmp_path / ("out.csv" if name in TABLES else "out.json")

    def error(*folders):
        assert merge(*(folder / name for folder in folders), option, out) == 1
        assert not out.exists()
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        return text

    assert "shards 1 and 3 of 3 are missing" in error(three[1])
    assert "shard 2 of 3 is missing" in error(three[0], three[2])
    assert "shard 1 of 3 twice: " in error(three[0], three[1], three[0])
    shades = [1] * 8

    def other(folder, shades=shades, number=2, count=3, **changed):
        shard = shard_of(number, count, len(shades), **changed)
        return error(three[0], write(tmp_path / folder, shades, shard))

    assert "found with different engines or options (runs 89abcdef and 00000000)" in other("r", run="0" * 8)
    assert "the names in their lists of 8 images differ" in other("n", names="f" * 16)
    assert "their lists have 8 and 9 images" in other("c", [1] * 9)
    assert "one is shard 1 of 3, the other shard 2 of 4" in other("m", count=4)
    assert "image ids are from different annotation files" in other("i", ids="f" * 16)
    assert "is of no shard" in error(write(tmp_path / "whole", shades))


@pytest.mark.parametrize("name", ["l.jsonl", "mask_detections.json", *TABLES])
def test_a_shard_that_is_not_finished_is_refused(three, tmp_path, capsys, name):
    shutil.rmtree(three[0])
    shard = shard_of(1, 3, 8)
    write(three[0], [1, 2, None, 0], shard)  # interrupted: it has two of three images
    option, out = ("--table", "o.csv") if name in TABLES else ("--json", "o.json")
    assert merge(*(folder / name for folder in three), option, tmp_path / out) == 1
    text = capsys.readouterr().err
    assert "shard 1 of 3 is not finished" in text and "has 2 of 3 images); run it " in text


def test_a_line_that_was_cut_off_does_not_count(three, tmp_path, capsys):
    lines = three[0] / "l.jsonl"
    lines.write_bytes(lines.read_bytes()[:-9])
    assert merge(*(folder / "l.jsonl" for folder in three), "--jsonl", tmp_path / "o") == 1
    assert "has 2 of 3 images); run it with --resume" in capsys.readouterr().err


def test_images_that_a_resumed_run_did_later_come_in_their_place(three, tmp_path):
    first = three[1] / "l.jsonl"
    head, one, two, three_ = first.read_bytes().splitlines(keepends=True)
    first.write_bytes(head + three_ + one + two)
    words = [folder / "l.jsonl" for folder in three]
    assert merge(*words, "--jsonl", tmp_path / "o") == 1
    lines = [json.loads(line) for line in (tmp_path / "o").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(8))


def test_an_image_twice_is_refused(three, tmp_path, capsys):
    lines = three[1] / "l.jsonl"
    head, one, two, _ = lines.read_bytes().splitlines(keepends=True)
    for content in (head + one + two + one, head + one + one + two):
        lines.write_bytes(content)
        assert merge(*(folder / "l.jsonl" for folder in three), "--jsonl", tmp_path / "o") == 1
        text = capsys.readouterr().err
        assert "twice, or out of order" in text or "not finished" in text
    assert not (tmp_path / "o").exists()


def test_what_cannot_be_merged(three, tmp_path, capsys):
    line, result, table = (three[0] / name for name in ("l.jsonl", "mask_detections.json", "t.csv"))
    before = line.read_bytes()
    cases = {
        (line,): "nothing would be written",
        (line, result, "--json", tmp_path / "o.json"): "are of different kinds",
        (line, "--json", line): "would write over",
        (table, "--json", tmp_path / "o.json"): "--json cannot be written from tables: give --table",
        (result, "--jsonl", tmp_path / "o"): "--jsonl cannot be written from COCO results: give --json and",
        (three[0] / "images.json", "--json", tmp_path / "o.json"): "is no file of results",
        (three[0] / "d.json", "--json", tmp_path / "o.json"): "is no file of results",
        (line, "--json", tmp_path / "o.json", "--engine", "m.onnx"): "--engine is for a folder of rows",
        (table, "--table", tmp_path / "o.parquet"): "CSV is merged to CSV"
        if len(TABLES) > 1
        else "pip install",
        (tmp_path / "none", "--json", tmp_path / "o.json"): "does not exist",
    }
    for words, message in cases.items():
        assert merge(*words) in (1, 2)
        text = capsys.readouterr().err
        assert message in text and text.count("\n") == 1
    assert line.read_bytes() == before
    (three[1] / "t.csv.shard.json").unlink()
    assert merge(*(folder / "t.csv" for folder in three), "--table", tmp_path / "o.csv") == 1
    assert "t.csv.shard.json, which belongs to it, is not in the same folder" in capsys.readouterr().err


def test_many_shards_go_through_temporary_files(three, tmp_path, monkeypatch):
    monkeypatch.setattr(order, "FAN_IN", 2)
    whole = write(tmp_path / "whole", [1, 2, None, 0, 1, 1, 2, 2])
    merge_all(three, out := tmp_path / "out")
    assert (out / "lines/l.jsonl").read_bytes() == (whole / "l.jsonl").read_bytes()
    assert (out / "table/t.csv").read_bytes() == (whole / "t.csv").read_bytes()
    assert not list(out.rglob(".*"))


@pytest.mark.parametrize("name", ["l.jsonl", "mask_detections.json", "images.json", *TABLES])
def test_damaged_inputs_end_in_one_line(three, tmp_path, capsys, name):
    path = three[0] / name
    option, out = ("--table", tmp_path / "o.csv") if name in TABLES else ("--json", tmp_path / "o.json")
    named = "mask_detections.json" if name == "images.json" else name
    words = [*(folder / named for folder in three), option, out]
    data = path.read_bytes()
    random = np.random.default_rng(0)
    for number in range(24):
        changed = bytearray(data)
        at = int(random.integers(len(changed)))
        if number % 4 == 0:
            del changed[at:]
        elif number % 4 == 1:
            del changed[at : at + int(random.integers(1, 9))]
        else:
            changed[at] = int(random.integers(256))
        path.write_bytes(changed)
        code = merge(*words)
        text = capsys.readouterr().err
        assert code in (1, 2) and "Traceback" not in text  # 1: an image had failed
        assert out.exists() or text.count("\n") == 1
        out.unlink(missing_ok=True)


def test_long_lines_are_not_read_whole(three, tmp_path, capsys, monkeypatch):
    path = three[0] / "l.jsonl"
    first, second, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([first, second.replace(b'{"image": "', b'{"image": "' + b"a" * 99**3), *rest]))
    assert merge(*(folder / "l.jsonl" for folder in three), "--json", tmp_path / "o.json") == 1
    assert "line 2 was not written by yolact-infer" in capsys.readouterr().err
    monkeypatch.setenv("YOLACT_MAX_LIST_BYTES", "5000")
    table = three[0] / "t.csv"
    table.write_text(table.read_text() + "," * 5001 + "\n")
    assert merge(*(folder / "t.csv" for folder in three), "--table", tmp_path / "o.csv") == 1
    assert "t.csv has a line with more characters than the 5,000 allowed" in capsys.readouterr().err
