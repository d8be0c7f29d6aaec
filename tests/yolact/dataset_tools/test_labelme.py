"""labelme's shapes as instances: against Pillow, which labelme uses, and labelme if it is installed."""

from __future__ import annotations

import base64
import json
import math
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from converted import HEIGHT, WIDTH, disc, iou, opened, write_image
from PIL import Image, ImageDraw

from yolact.dataset_tools.convert import convert
from yolact_runtime.errors import YolactError

TRIANGLE = {"label": "cat", "points": [[5, 5], [25, 5], [25, 15]], "shape_type": "polygon"}


def png(values: np.ndarray) -> str:
    return base64.b64encode(cv2.imencode(".png", values)[1]).decode()


def write(path: Path, shapes: list[Any], image: bool = True, **more: Any) -> None:
    """A labelme file, and its image next to it."""
    name = f"{path.stem}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    if image:
        write_image(path.parent, name)
    content = {"imagePath": name, "imageHeight": HEIGHT, "imageWidth": WIDTH, "shapes": shapes}
    path.write_text(json.dumps(content | more))


def masks_of(folder: Path, shapes: list[Any]) -> list[np.ndarray]:
    """The masks of the shapes in a file, all of which must be converted."""
    write(folder / "in/a.json", shapes)
    conversion = convert("labelme", folder / "in")
    assert conversion.faults == []
    return [mask for _, mask in opened(conversion, folder)["a.png"]]


class TestShapes:
    def test_polygons_rectangles_circles_and_masks(self, tmp_path: Path) -> None:
        whole = disc(20, 20, 9)
        shapes = [
            {"label": "cat", "points": [[5, 5], [25, 5], [25, 15], [5, 15]]},
            {"label": "dog", "points": [[50, 30], [30, 10]], "shape_type": "rectangle"},
            {"label": "dog", "points": [[20, 20], [29, 20]], "shape_type": "circle"},
            {
                "label": "ant", "points": [[11, 11], [29, 29]], "shape_type": "mask",
                "mask": png(whole[11:30, 11:30].astype(np.uint8)),
            },
            {"label": "cat", "points": [[1, 1]], "shape_type": "point"},
            {"label": "cat", "points": [[1, 1], [9, 9]], "shape_type": "linestrip"},
        ]  # fmt: skip
        masks = masks_of(tmp_path, shapes)
        assert masks[0].sum() == 200
        assert masks[0][5:15, 5:25].all()
        assert masks[1].sum() == 400
        assert masks[1][10:30, 30:50].all()
        assert iou(masks[2], disc(19.5, 19.5, 9)) > 0.95
        assert (masks[3] == whole).all()
        assert len(masks) == 4

    @pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3), (2, 3, 0, 1), (3, 2, 1, 0)])
    @pytest.mark.parametrize("kind", ["rectangle", "oriented_rectangle", "rotation", "polygon"])
    def test_rectangles_of_four_points(self, tmp_path: Path, order: tuple[int, ...], kind: str) -> None:
        corners = [[10, 20], [40, 20], [40, 35], [10, 35]]
        points = [corners[index] for index in (order if kind == "rectangle" else range(4))]
        (mask,) = masks_of(tmp_path, [{"label": "r", "points": points, "shape_type": kind}])
        assert mask.sum() == 450
        assert mask[20:35, 10:40].all()

    def test_a_turned_rectangle_is_not_its_bounding_box(self, tmp_path: Path) -> None:
        points = [[30, 10], [45, 20], [30, 30], [15, 20]]
        (mask,) = masks_of(tmp_path, [{"label": "r", "points": points, "shape_type": "rectangle"}])
        assert mask.sum() == pytest.approx(300, rel=0.05)

    @pytest.mark.parametrize(
        ("corner", "expected"),
        [((50, 30), (slice(30, 40), slice(50, 60))), ((-5, -8), (slice(0, 12), slice(0, 15)))],
    )
    def test_mask_regions_at_the_border_are_cut_off(
        self, tmp_path: Path, corner: tuple[int, int], expected: tuple[slice, slice]
    ) -> None:
        x, y = corner
        shape = {
            "label": "m", "shape_type": "mask", "points": [[x, y], [x + 19, y + 19]],
            "mask": png(np.full((20, 20), 255, np.uint8)),
        }  # fmt: skip
        (mask,) = masks_of(tmp_path, [shape])
        whole = np.zeros_like(mask)
        whole[expected] = True
        assert (mask == whole).all()

    def test_a_group_is_one_instance_of_polygons_and_masks(self, tmp_path: Path) -> None:
        boxes = [[[x, 5], [x + 5, 5], [x + 5, 10], [x, 10]] for x in (5, 20, 40)]
        shapes: list[Any] = [
            {"label": label, "points": points, "group_id": group, "shape_type": "polygon"}
            for points, group, label in zip(boxes, (3, 3, 3), ("cat", "cat", "dog"), strict=True)
        ]
        square = np.ones((4, 4), np.uint8)
        shapes.append(
            {
                "label": "dog", "points": [[30, 30], [33, 33]], "shape_type": "mask", "group_id": 3,
                "mask": png(square),
            }
        )  # fmt: skip
        assert [mask.sum() for mask in masks_of(tmp_path, shapes)] == [50, 25 + 16]

    def test_boxes_end_at_the_border(self, tmp_path: Path) -> None:
        write(tmp_path / "a.json", [{"label": "c", "points": [[-9, -9], [20, -9], [20, 99], [-9, 99]]}])
        (annotation,) = convert("labelme", tmp_path).content["annotations"]
        assert annotation["bbox"] == [0, 0, 20, HEIGHT]

    @pytest.mark.parametrize("seed", range(8))
    def test_against_pillow(self, tmp_path: Path, seed: int) -> None:
        self.compare(tmp_path, seed, drawn_by_pillow)

    @pytest.mark.parametrize("seed", range(30))
    def test_against_labelme(self, tmp_path: Path, seed: int) -> None:
        labelme = pytest.importorskip("labelme.utils.shape")
        self.compare(
            tmp_path,
            seed,
            lambda shape: labelme.shape_to_mask((HEIGHT, WIDTH), shape["points"], shape["shape_type"]),
        )

    def compare(self, tmp_path: Path, seed: int, draw: Any) -> None:
        """Random shapes, to 1 or 2 pixels: Pillow draws outlines, too; a point is the centre of a pixel."""
        rng = np.random.default_rng(seed)
        shapes: list[Any] = [
            {"label": "s", "points": random_points(rng, kind), "shape_type": kind}
            for kind in ("polygon", "rectangle", "circle", "oriented_rectangle")
        ]
        ours = masks_of(tmp_path, shapes)
        kernel = np.ones((3, 3), np.uint8)
        for shape, mask in zip(shapes, ours, strict=True):
            theirs = np.asarray(draw(shape)).astype(np.uint8)
            assert (mask <= cv2.dilate(theirs, kernel).astype(bool)).all(), shape
            assert (cv2.erode(theirs, kernel, iterations=2, borderValue=0).astype(bool) <= mask).all(), shape


def random_points(rng: np.random.Generator, kind: str) -> list[list[float]]:
    """The points of a shape of at least 10 pixels, which may reach out of the image."""
    x, y = rng.uniform((10, 10), (WIDTH - 10, HEIGHT - 10))
    if kind == "circle":
        radius, angle = rng.uniform(6, 15), rng.uniform(0, 7)
        return [[x, y], [x + radius * math.cos(angle), y + radius * math.sin(angle)]]
    if kind == "rectangle":
        return [[x, y], [x + rng.choice([-1, 1]) * rng.uniform(10, 20), y + rng.uniform(10, 20)]]
    angles = (
        np.sort(rng.uniform(0, 6.28, 9)) if kind == "polygon" else np.arange(4) * 1.57 + rng.uniform(0, 1)
    )
    return [[x + 14 * math.cos(angle), y + 14 * math.sin(angle)] for angle in angles]


def drawn_by_pillow(shape: dict[str, Any]) -> np.ndarray:
    image = Image.new("L", (WIDTH, HEIGHT))
    draw, points = ImageDraw.Draw(image), [tuple(point) for point in shape["points"]]
    if shape["shape_type"] == "circle":
        (x, y), r = points[0], math.dist(*points)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=1, outline=1)
    elif shape["shape_type"] == "rectangle":
        (x1, y1), (x2, y2) = points
        draw.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), fill=1, outline=1)
    else:
        draw.polygon(points, fill=1, outline=1)
    return np.array(image)


class TestFaults:
    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ({**TRIANGLE, "points": [[5, 5], [25, 5]]}, "a polygon of 2 points"),
            ({**TRIANGLE, "shape_type": "spiral"}, "unknown shape type 'spiral'"),
            ({**TRIANGLE, "shape_type": ["circle"]}, "unknown shape type"),
            ({**TRIANGLE, "points": "many"}, r"not a list of \[x, y\]"),
            ({**TRIANGLE, "points": [["5", 5], [25, 5], [9, 9]]}, "not a pair of numbers"),
            ({**TRIANGLE, "points": [[5, float("nan")], [25, 5], [9, 9]]}, "not finite"),
            ({**TRIANGLE, "points": [[500, 500], [525, 500], [525, 515]]}, "no pixel.*x 500 to 525"),
            ({**TRIANGLE, "points": [[5, 5], [25, 25], [15, 15]]}, "covers no pixel"),
            ({"points": [[5, 5], [25, 5], [9, 9]]}, "no label"),
            ({**TRIANGLE, "label": 5}, "the label is 5, not text"),
            ({**TRIANGLE, "label": " \n"}, "empty"),
            ({**TRIANGLE, "shape_type": "rectangle"}, "a rectangle of 3 points"),
            ({**TRIANGLE, "shape_type": "circle"}, "a circle of 3 points"),
            ({**TRIANGLE, "shape_type": "mask"}, "no 'mask'"),
            ({**TRIANGLE, "shape_type": "mask", "mask": "AAAA"}, "its mask is not an image"),
            ({**TRIANGLE, "shape_type": "mask", "mask": "#"}, "its mask is not base64"),
            (
                {**TRIANGLE, "shape_type": "mask", "points": [[0, 0], [9, 9]], "mask": png(np.ones((5, 5)))},
                "its mask is 5 x 5, its points say 10 x 10",
            ),
            ("cat", "not an object"),
            (None, "not an object"),
        ],
    )
    def test_a_damaged_shape_is_named_and_the_rest_converted(
        self, tmp_path: Path, shape: Any, message: str
    ) -> None:
        write(tmp_path / "a.json", [TRIANGLE, shape, TRIANGLE])
        write(tmp_path / "b.json", [TRIANGLE])
        conversion = convert("labelme", tmp_path)
        assert len(conversion.content["annotations"]) == 3
        (fault,) = conversion.faults
        assert fault.startswith(f"{tmp_path / 'a.json'}: shape 2: ")
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(fault)

    def test_damaged_files_are_named_and_the_rest_converted(self, tmp_path: Path) -> None:
        write(tmp_path / "good.json", [TRIANGLE])
        (tmp_path / "torn.json").write_text('{"shapes": [')
        (tmp_path / "coco.json").write_text('{"images": []}')
        write(tmp_path / "large.json", [{**TRIANGLE, "points": [[10**400, 5], [25, 5], [9, 9]]}])
        write(tmp_path / "half.json", [{**TRIANGLE, "label": "\ud800"}])
        write(tmp_path / "size.json", [TRIANGLE], imageHeight=WIDTH, imageWidth=HEIGHT)
        write(tmp_path / "image.json", [TRIANGLE])
        (tmp_path / "image.png").write_bytes(b"no image")
        write(tmp_path / "gone.json", [TRIANGLE], image=False)
        conversion = convert("labelme", tmp_path)
        assert [image["file_name"] for image in conversion.content["images"]] == ["good.png"]
        faults = "\n".join(conversion.faults)
        assert len(conversion.faults) == 6
        assert "torn.json is not valid JSON" in faults
        assert "large.json is not valid JSON: a whole number has 401 digits" in faults
        assert "half.json is not valid JSON: the text '\\ud800' has half a character" in faults
        assert "size.json is of an image of 40 x 60, but" in faults
        assert "size.png is 60 x 40 pixels" in faults
        assert "image.png is damaged or not an image" in faults
        assert "gone.json: there is no image" in faults

    def test_nothing_converted(self, tmp_path: Path) -> None:
        write(tmp_path / "a.json", [None])
        with pytest.raises(YolactError, match=r"nothing is converted, 1 fault: .*a\.json: shape 1"):
            convert("labelme", tmp_path)

    def test_no_labelme_files(self, tmp_path: Path) -> None:
        (tmp_path / "coco.json").write_text("{}")
        with pytest.raises(YolactError, match="holds no labelme files"):
            convert("labelme", tmp_path)


def files(folder: Path, **options: Any) -> list[str]:
    """The file names in the result, all of which must exist."""
    conversion = convert("labelme", folder, **options)
    assert conversion.faults == []
    names = [image["file_name"] for image in conversion.content["images"]]
    assert all((conversion.images / name).is_file() for name in names)
    return names


class TestImages:
    @pytest.mark.parametrize(
        "path", ["a.png", "C:\\Users\\me\\a.png", "/home/me/a.png", "../gone/a.png", "old name.png", None]
    )
    def test_next_to_the_file_whatever_its_path_was(self, tmp_path: Path, path: str | None) -> None:
        write(tmp_path / "a.json", [TRIANGLE], imagePath=path)
        assert files(tmp_path) == ["a.png"]

    def test_in_capitals(self, tmp_path: Path) -> None:
        write(tmp_path / "a.JSON", [TRIANGLE])
        (tmp_path / "a.png").rename(tmp_path / "a.PNG")
        assert files(tmp_path) == ["a.PNG"]

    def test_in_a_folder_beside_the_labels(self, tmp_path: Path) -> None:
        write(tmp_path / "labels/a.json", [TRIANGLE], image=False, imagePath="..\\photos\\a.png")
        write_image(tmp_path / "photos", "a.png")
        conversion = convert("labelme", tmp_path / "labels")
        assert conversion.images == tmp_path
        assert files(tmp_path / "labels") == ["photos/a.png"]
        assert files(tmp_path / "labels", images=tmp_path / "photos") == ["a.png"]

    def test_subfolders_of_the_given_folder(self, tmp_path: Path) -> None:
        for name in ("x/1", "y/1"):
            write(tmp_path / f"labels/{name}.json", [TRIANGLE], image=False)
            write_image(tmp_path / "photos", f"{name}.png")
        assert files(tmp_path / "labels", images=tmp_path / "photos") == ["x/1.png", "y/1.png"]

    def test_sizes_that_the_file_does_not_give(self, tmp_path: Path) -> None:
        write(tmp_path / "a.json", [TRIANGLE], imageHeight=None, imageWidth=None)
        (image,) = convert("labelme", tmp_path).content["images"]
        assert (image["height"], image["width"]) == (HEIGHT, WIDTH)

    def test_two_files_of_one_image_are_both_left_out(self, tmp_path: Path) -> None:
        write(tmp_path / "a.json", [TRIANGLE])
        write(tmp_path / "x/b.json", [TRIANGLE])
        write(tmp_path / "y/b.json", [TRIANGLE], image=False, imagePath="../x/b.png")
        conversion = convert("labelme", tmp_path)
        assert [image["file_name"] for image in conversion.content["images"]] == ["a.png"]
        (fault,) = conversion.faults
        assert all(str(tmp_path / name) in fault for name in ("x/b.json", "y/b.json", "x/b.png"))

    @pytest.mark.parametrize("given", [False, True])
    def test_inside_the_file(self, tmp_path: Path, given: bool) -> None:
        image = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
        for number, name in enumerate(("a.png", "..\\..\\b.png", "c.heic", "/d.png", "..")):
            write(
                tmp_path / f"in/sub/{number}.json", [TRIANGLE], image=False, imagePath=name,
                imageData=png(image),
            )  # fmt: skip
        (tmp_path / "photos").mkdir()
        options = {"images": tmp_path / "photos"} if given else {}
        expected = ["sub/a.png", "sub/b.png", "sub/c.heic.png", "sub/d.png", "sub/4.png"]
        assert sorted(files(tmp_path / "in", **options)) == sorted(expected)
        assert sorted(files(tmp_path / "in", **options)) == sorted(expected)
        root = tmp_path / ("photos" if given else "in")
        assert (cv2.imread(str(root / "sub/a.png")) == image).all()
        assert {path.name for path in tmp_path.iterdir()} == {"in", "photos"}

    @pytest.mark.parametrize("name", ["a\0.png", "x" * 300 + ".png", 7, ["a.png"], ""])
    def test_names_that_no_file_has(self, tmp_path: Path, name: Any) -> None:
        write(tmp_path / "a.json", [TRIANGLE], imagePath=name)
        assert files(tmp_path) == ["a.png"]
        write(tmp_path / "b.json", [TRIANGLE], image=False, imagePath=name)
        assert len(convert("labelme", tmp_path).faults) == 1

    @pytest.mark.parametrize("data", ["", "AAAA", "#", 7, {}])
    def test_damaged_images_inside_are_not_written(self, tmp_path: Path, data: Any) -> None:
        write(tmp_path / "a.json", [TRIANGLE])
        write(tmp_path / "b.json", [TRIANGLE], image=False, imageData=data)
        conversion = convert("labelme", tmp_path)
        assert len(conversion.faults) == 1
        assert "b.json: there is no image" in conversion.faults[0]
        assert not (tmp_path / "b.png").exists()


def test_labels_become_one_line(tmp_path: Path) -> None:
    labels = ["red  nut", " red nut\n", "red\tnut", "café", "می‌خواهم"]
    write(tmp_path / "a.json", [{**TRIANGLE, "label": label} for label in labels])
    content = convert("labelme", tmp_path).content
    assert [category["name"] for category in content["categories"]] == ["café", "red nut", labels[-1]]


def test_names_of_a_list_and_only(tmp_path: Path) -> None:
    write(tmp_path / "a.json", [TRIANGLE, {**TRIANGLE, "label": "cot"}])
    write(tmp_path / "b.json", [TRIANGLE])
    (tmp_path / "labels.txt").write_text("\ufeff__ignore__\n_background_\ndog\ncat\n", "utf-8")
    (tmp_path / "only.txt").write_text("\ufeffa.png\nz\n", "utf-8")
    conversion = convert("labelme", tmp_path, names=tmp_path / "labels.txt", only=tmp_path / "only.txt")
    assert conversion.content["categories"] == [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    assert [image["file_name"] for image in conversion.content["images"]] == ["a.png"]
    assert len(conversion.faults) == 2
    assert "shape 2: no class 'cot'; near ones: cat" in conversion.faults[0]
    assert conversion.faults[1].endswith("there is no such image: z")


class TestHostile:
    """Files of strangers."""

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"label": "a" * 5000}, "5,000 characters, more than the 4,096"),
            ({"points": [[10**400, 1], [2, 2], [3, 3]]}, "401 digits, more than floats hold"),
            ({"points": [[1e6, 1e6], [2, 2], [3, 3]]}, "far out of its image"),
            ({"points": [[1, 1], [1e7, 1e7]], "shape_type": "circle"}, "far out of"),
            ({"shape_type": "mask", "points": [[0, 0]], "mask": "AAAA"}, "its mask is not an image"),
            ({"shape_type": "mask", "points": [[0, 0]], "mask": "\ud800"}, "half a character"),
        ],
    )
    def test_a_bad_shape_is_one_fault(self, tmp_path: Path, change: dict[str, Any], message: str) -> None:
        write(tmp_path / "in/a.json", [TRIANGLE | change])
        write(tmp_path / "in/b.json", [TRIANGLE])
        (fault,) = convert("labelme", tmp_path / "in").faults
        assert re.search(message, fault) and len(fault) < 400

    def test_masks_of_many_pixels(self, tmp_path: Path) -> None:
        large = cv2.imencode(".png", np.zeros((20_000, 20_000), np.uint8))[1]
        mask = {"shape_type": "mask", "points": [[0, 0]], "mask": base64.b64encode(large).decode()}
        write(tmp_path / "in/a.json", [TRIANGLE | mask, TRIANGLE])
        (fault,) = convert("labelme", tmp_path / "in").faults
        assert "its mask says that it is 20000 x 20000 pixels, more than the 250,000,000 allowed" in fault

    @pytest.mark.parametrize(
        "name", ["a" * 300 + ".png", "a/" * 3000 + "b.png", "/dev/zero", "../../gone.png"]
    )
    def test_names_of_images_elsewhere(self, tmp_path: Path, name: str) -> None:
        write(tmp_path / "in/a.json", [TRIANGLE], imagePath=name)
        assert convert("labelme", tmp_path / "in").content["images"][0]["file_name"] == "a.png"

    def test_an_image_inside_the_file_replaces_no_link(self, tmp_path: Path) -> None:
        image = png(np.zeros((HEIGHT, WIDTH), np.uint8))
        write(tmp_path / "in/a.json", [TRIANGLE], image=False, imageData=image, imagePath="x.png")
        (tmp_path / "in/x.png").symlink_to(tmp_path / "elsewhere.png")
        with pytest.raises(YolactError, match=r"x.png is no image file, and is not replaced"):
            convert("labelme", tmp_path / "in")
        assert not (tmp_path / "elsewhere.png").exists()
