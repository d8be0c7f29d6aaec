"""Options of the original's `eval.py`: understood, or refused with what to use instead."""

from pathlib import Path

import pytest
from fake_onnx import NATIVE, native_arrays, write_onnx

from yolact_runtime import cli
from yolact_runtime.commandline.original import engine_options, split_video


def parse(*arguments):
    args = cli.build_parser().parse_args(["--trained_model=m.onnx", *arguments])
    cli.check_options(args)
    return args


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("in.mp4", ("in.mp4", "")),
        ("in.mp4:out.mp4", ("in.mp4", "out.mp4")),
        ("in.mp4:/tmp/out.mp4", ("in.mp4", "/tmp/out.mp4")),
        ("0", ("0", "")),
        ("0:out.mkv", ("0", "out.mkv")),
        ("camera:0", ("camera:0", "")),
        ("camera:0:out.mp4", ("camera:0", "out.mp4")),
        ("rtsp://host/1", ("rtsp://host/1", "")),
        ("rtsp://host:554/1", ("rtsp://host:554/1", "")),
        ("rtsp://user:secret@host:554/1.sdp", ("rtsp://user:secret@host:554/1.sdp", "")),
        ("http://user:secret@host/a.mp4", ("http://user:secret@host/a.mp4", "")),
        ("http://host:8080/a.mp4", ("http://host:8080/a.mp4", "")),
        ("http://host:8080/a.mp4:/tmp/b.mp4", ("http://host:8080/a.mp4", "/tmp/b.mp4")),
        ("rtsp://host/1:out/a.mkv", ("rtsp://host/1", "out/a.mkv")),
        ("C:\\in.mp4:D:\\out.mp4", ("C:\\in.mp4", "D:\\out.mp4")),
    ],
)
def test_input_and_output_of_a_video(text, pair):
    assert split_video(text) == pair


def test_a_file_with_a_colon_in_its_name_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("12:30.mp4").touch()
    assert split_video("12:30.mp4") == ("12:30.mp4", "")


def test_what_means_something_here_is_accepted():
    args = parse(
        "--video=in.mp4:out.mp4", "--video_multiframe=4", "--top_k=5", "--score_threshold=0.3",
        "--display_masks=true", "--display_text", "yes", "--display_lincomb=False", "--fast_nms=True",
        "--output_coco_json", "--mask_det_file=masks.json",
    )  # fmt: skip
    assert args.engine == "m.onnx" and args.video == ("in.mp4", "out.mp4") and args.batch_size == 4
    assert args.json == Path("masks.json") and engine_options(args) == {}


@pytest.mark.parametrize(
    ("engine", "option", "options"),
    [
        ("w.pth", "--cuda=false", {"device": "cpu"}),
        ("w.onnx", "--cuda=no", {"providers": ["cpu"]}),
        ("w.onnx", "--cuda=true", {}),
        ("w.pth", "--fast_nms=false", {"nms": "traditional"}),
        ("w.pth", "--cross_class_nms=true", {"nms": "cross_class"}),
    ],
)
def test_options_of_the_engine(engine, option, options):
    args = cli.build_parser().parse_args(["--engine", engine, "a.jpg", option])
    assert engine_options(args) == options


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        ("--display", "no window is opened"),
        ("--display_masks=false", "--arrays"),
        ("--benchmark", "yolact-bench"),
        ("--max_images=10", "yolact-eval"),
        ("--dataset=coco2017_dataset", "yolact-eval"),
        ("--display_lincomb=True", "Engine.detect"),
        ("--bbox_det_file=b.json", "--json"),
        ("--no_bar", "--quiet"),
        ("--emulate_playback", "times of the source"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(option, instead, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.build_parser().parse_args([option])  # also without an engine
    (line,) = capsys.readouterr().err.splitlines()
    name = option.partition("=")[0].replace("_", "-")
    assert stop.value.code == 2 and line.startswith(f"yolact-infer: error: {name}: ") and instead in line


def test_the_help_leaves_them_out():
    text = cli.build_parser().format_help()
    assert "--video IN[:OUT]" in text and "--display" not in text and "--benchmark" not in text


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ("clip.mp4:out.avi", "cannot write a video as out.avi; known suffixes are .m4v, .mkv, .mov, .mp4"),
        ("clip.mp4:clip.mp4", "--video would write over clip.mp4"),
        ("a.png:out.mp4", "--video a.png: this is neither a video nor a camera"),
        ("none.mp4:out.mp4", "none.mp4 does not exist"),
        ("*.mp4:out.mp4", "several videos cannot become one file"),
    ],
)
def test_videos_that_cannot_be_written(tmp_path, monkeypatch, capsys, video, message):
    pytest.importorskip("av")
    import videos

    monkeypatch.chdir(tmp_path)
    write_onnx("m.onnx", native_arrays(), NATIVE)
    for name in ("clip.mp4", "other.mp4"):
        videos.write(Path(name), videos.shades(3))
    videos.write(Path("a.png"), [videos.scene()], codec="png", pixels="rgb24", container="image2")
    assert cli.main(["--engine", "m.onnx", "--no-json", "--video", video]) == 2
    assert message in capsys.readouterr().err
    assert not Path("out.mp4").exists()


def test_a_video_is_written_to_the_file_that_is_named(tmp_path, monkeypatch, capsys):
    av = pytest.importorskip("av")
    import videos

    monkeypatch.chdir(tmp_path)
    write_onnx("m.onnx", native_arrays(), NATIVE)
    videos.write(Path("clip.mp4"), videos.shades(6), sound="aac")
    Path("here").mkdir()
    Path("here/mine.mkv").write_text("older")
    assert cli.main(["--engine", "m.onnx", "--no-json", "--video=clip.mp4:here/mine.mkv"]) == 0
    assert "here/mine.mkv" in capsys.readouterr().out
    assert sorted(str(path) for path in Path().rglob("*.m[pk][4v]")) == ["clip.mp4", "here/mine.mkv"]
    with av.open("here/mine.mkv") as container:
        assert "matroska" in container.format.name and container.streams.audio
        assert sum(1 for _ in container.decode(video=0)) == 6
