"""Outputs of several sources."""

import argparse
from pathlib import Path

import pytest

from yolact_runtime.cli import build_parser
from yolact_runtime.errors import UsageError
from yolact_runtime.sinks.names import file_stem, source_names
from yolact_runtime.sinks.routing import FILES, FOLDERS, options_of_source

# Folders that sources share: the names in them begin with that of the source.
SHARED = {"output", "video_output"}
# For image files only, which cameras are not.
STILLS = {"labelme", "label_studio"}


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("rtsp://host:554/live/1", "rtsp_host_554_live_1"),
        ("camera:0", "camera_0"),
        ("/dev/video2", "dev_video2"),
        ("http://[::1]/..", "http_1"),
        ("://", "camera"),
        ("http://höst/straße", "http_höst_straße"),
    ],
)
def test_stems(name, stem):
    assert file_stem(name) == stem


def test_long_stems_are_cut_and_differ():
    stems = [file_stem(f"http://host/{'ü' * 300}{end}") for end in "ab"]
    assert stems[0] != stems[1] and all(len(stem.encode()) <= 80 for stem in stems)
    assert stems[0].startswith("http_host_üü")


def test_names_are_given_once():
    names = ["http://h/1", "http://H/1", "http://h/1", "http://h/1_2", "files"]
    assert source_names(names) == ["http_h_1", "http_H_1_2", "http_h_1_3", "http_h_1_2_2", "files"]


def test_every_output_is_one_for_each_source():
    """An option that names an output needs a place in FILES or FOLDERS, unless all sources may share it."""
    options = {
        action.dest for action in build_parser()._actions if action.metavar in ("FILE", "FILE|-", "DIR")
    }
    # With --ray, nothing else is written.
    assert options - {"annotations", "output_parquet"} == {*FILES, *FOLDERS, *SHARED, *STILLS}


def test_options_of_a_source():
    args = argparse.Namespace(
        json=Path("r/x.json"), jsonl="x.jsonl", coco_dataset=None, arrays=Path("a"), no_json=False, top_k=3
    )
    own = options_of_source(args, "cam")
    assert (own.json, own.jsonl, own.coco_dataset) == (Path("r/cam/x.json"), "cam/x.jsonl", None)
    assert (own.arrays, own.top_k, own.source_name) == (Path("a/cam"), 3, "cam")
    assert args.json == Path("r/x.json")
    args.jsonl = "-"
    assert options_of_source(args, "cam").jsonl == "-"
    args.json = Path("-")
    with pytest.raises(UsageError, match="--json -: several sources cannot share it; name a file"):
        options_of_source(args, "cam")
    args.no_json = True
    options_of_source(args, "cam")
