"""What all converters share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from converted import disc, write_image, write_values

from yolact.cli.data import main
from yolact.dataset_tools.builder import Selection, files_below
from yolact.dataset_tools.convert import FORMATS, convert
from yolact_runtime.errors import YolactError


def test_unknown_formats_list_the_known() -> None:
    with pytest.raises(YolactError, match="labelme, masks, voc, yolo"):
        convert("xml", ".")


@pytest.mark.parametrize("name", FORMATS)
def test_missing_and_empty_folders(tmp_path: Path, name: str) -> None:
    with pytest.raises(YolactError, match="gone does not exist"):
        convert(name, tmp_path / "gone", tmp_path)
    with pytest.raises(YolactError, match="gone does not exist"):
        convert(name, tmp_path, tmp_path / "gone")
    with pytest.raises(YolactError):
        convert(name, tmp_path, tmp_path)


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    write_image(tmp_path / "store", "a.png", "b.PNG", ".hidden.png", ".trash/c.png", "d.png/e.webp")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "train").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "loop").symlink_to(tmp_path / "store")
    found = files_below(tmp_path / "images", [".png"])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "images/train/a.png",
        "images/train/b.PNG",
    ]


class TestSelection:
    @pytest.mark.parametrize(
        ("entry", "name", "expected"),
        [
            ("a", "a", True),
            ("a.jpg", "a", True),
            ("a", "sub/a", True),
            ("sub/a", "a", True),
            ("./x/sub/a.JPG", "sub/a", True),
            ("C:\\x\\a.jpg", "a", True),
            ("y/a", "x/a", False),
            ("a", "b", False),
            ("a.v2", "a", False),
            ("a.v2.png", "a.v2", True),
            ("aa", "a", False),
        ],
    )
    def test_matches_as_far_as_both_have_folders(self, entry: str, name: str, expected: bool) -> None:
        selection = Selection([entry])
        assert (name in selection) is expected
        assert selection.missing() == ([] if expected else [entry])

    def test_many(self) -> None:
        selection = Selection([f"train/{number}.jpg" for number in range(50_000)])
        assert all(f"{number}" in selection for number in range(0, 50_000, 2))
        assert len(selection.missing()) == 25_000


class TestCommand:
    def masks(self, root: Path) -> list[str]:
        write_image(root / "images", "a.png", "b.png")
        write_values(root / "masks" / "a" / "cell_1.png", disc(20, 20, 9))
        write_values(root / "masks" / "b" / "cell_1.png", disc(20, 20, 9))
        return [
            "convert",
            "masks",
            str(root / "masks"),
            str(root / "out.json"),
            "--images",
            str(root / "images"),
        ]

    def test_same_input_same_output(self, tmp_path: Path) -> None:
        command = self.masks(tmp_path)
        contents = set()
        for _ in range(2):
            assert main(command) == 0
            contents.add((tmp_path / "out.json").read_bytes())
        assert len(contents) == 1

    def test_faults_are_counted_in_the_end_and_the_rest_is_written(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        command = self.masks(tmp_path)
        for number in range(30):
            write_values(tmp_path / "masks" / "a" / f"cell_{number + 2}.png", np.ones((3, 3)))
        assert main(command) == 1
        assert len(json.loads((tmp_path / "out.json").read_text())["annotations"]) == 2
        lines = capfd.readouterr().err.splitlines()
        assert sum(" is 3x3;" in line for line in lines) == 20
        assert lines[-1].endswith(
            "left out what has 30 faults, of which 20 are listed; the rest is converted"
        )

    def test_nothing_is_written_if_nothing_is_converted(self, tmp_path: Path) -> None:
        command = self.masks(tmp_path)
        (tmp_path / "out.json").write_text('{"categories": "before"}')
        for folder in ("a", "b"):
            (tmp_path / "masks" / folder / "cell_1.png").write_bytes(b"")
        assert main(command) == 1
        assert (tmp_path / "out.json").read_text() == '{"categories": "before"}'

    def test_outputs_that_would_lose_something(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        command = self.masks(tmp_path)
        (tmp_path / "labelme.json").write_text('{"shapes": []}')
        (tmp_path / "names.txt").write_text("cell\n")
        for output, message in (
            (tmp_path, "is a folder"),
            (tmp_path / "images" / "a.png", "would write over"),
            (tmp_path / "labelme.json", "is no COCO annotation file"),
            (tmp_path / "names.txt", "would write over"),
        ):
            before = output.read_bytes() if output.is_file() else None
            given = [*command[:3], str(output), *command[4:], "--names", str(tmp_path / "names.txt")]
            assert main(given) == 2
            assert message in capfd.readouterr().err
            assert before is None or output.read_bytes() == before
