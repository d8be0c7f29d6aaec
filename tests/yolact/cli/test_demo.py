from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from yolact.cli import demo

QUICK = ["--train-images", "16", "--val-images", "4", "--iterations", "5"]


def records(count: int) -> list[dict[str, float]]:
    return [dict.fromkeys(demo.LOSS_COLOURS, 5.0 / (1 + i)) | {"iteration": i} for i in range(count)]


@pytest.mark.slow
def test_a_quick_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole chain: a line a stage, a last one that says what to open, a page that stands alone."""
    folder = tmp_path / "demo"
    assert demo.main([*QUICK, "--seed", "3", "--output", str(folder)]) == 0
    *stages, last = capsys.readouterr().out.splitlines()
    assert len(stages) == demo.STAGES
    for number, stage in enumerate(stages, 1):
        assert re.fullmatch(rf"\[{number}/{demo.STAGES}\] [a-zA-Z ,]+ +\d+ s", stage)
    assert re.fullmatch(
        rf"mask AP [\d.]+ on 4 held-out images, \d+ s in all; open {folder}/report\.html", last
    )

    page = (folder / "report.html").read_text()
    HTMLParser().feed(page)
    assert page.count('src="data:image/jpeg;base64,') == 4
    assert "http" not in page.replace("http://www.w3.org/", "")
    assert "<svg" in page and 'href="bench.html"' in page
    for name in ("bench.html", "yolact_tiny.onnx", "mask_detections.json", "demo.log"):
        assert (folder / name).exists(), name
    commands = re.findall(r"^\$ (yolact-\S+)", (folder / "demo.log").read_text(), re.MULTILINE)
    assert commands == [f"yolact-{name}" for name in ("data", "train", "export", "eval", "infer", "bench")]
    assert len(list((folder / "overlays").iterdir())) == 4
    assert json.loads((folder / "ap_onnx.json").read_text())["images"] == 4


def test_a_command_that_fails_shows_its_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shapes" / "train").mkdir(parents=True)
    (tmp_path / "shapes" / "train" / "holiday.jpg").write_bytes(b"dear")
    assert demo.main([*QUICK, "--output", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "holiday.jpg is not of a shapes dataset" in captured.err
    assert "yolact-data failed with exit code 1; see its output above" in captured.err
    assert captured.out == ""


def test_the_output_folder_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert demo.main([*QUICK, "--output", str(tmp_path / "file")]) == 1
    assert f"cannot write to folder {tmp_path / 'file'}: it is a file" in capsys.readouterr().err


def test_the_loss_chart_has_axes_and_follows_the_colours_of_the_page() -> None:
    svg = demo.loss_chart(records(100))
    assert svg.startswith("<svg")
    for text in ("iteration", "loss (smoothed)", *(f"{name} 0.05" for name in demo.LOSS_COLOURS)):
        assert f">{text}</text>" in svg
    assert len(re.findall(r'id="xtick_\d+"', svg)) > 3
    colours = set(re.findall(r"(?:stroke|fill): (#\w+|currentColor)", svg))
    assert colours == {*demo.LOSS_COLOURS.values(), "#888888"}


def test_a_chart_of_one_iteration_is_empty() -> None:
    assert demo.loss_chart(records(1)) == ""
