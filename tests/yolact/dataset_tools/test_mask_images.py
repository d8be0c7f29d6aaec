"""Masks in image files: what pycocotools reads is what was drawn."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converted import HEIGHT, WIDTH, disc, opened, write_image, write_values
from PIL import Image

from yolact.dataset_tools.convert import convert
from yolact_runtime.errors import YolactError

BOX = (slice(10, 30), slice(20, 50))


def box() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[BOX] = 1
    return mask


class TestVoc:
    def write(self, root: Path, mode: str = "P") -> tuple[np.ndarray, np.ndarray]:
        """Two images with three instances each and a void rim, as palette, grey or colour images."""
        write_image(root / "JPEGImages", "a.png", "b.png")
        instances, kinds = np.zeros((2, HEIGHT, WIDTH), np.uint8)
        for number, kind, x in ((1, 8, 12), (2, 15, 30), (3, 8, 48)):
            instances[disc(x, 20, 8)] = number
            kinds[disc(x, 20, 8)] = kind
        rim = disc(30, 20, 8) & ~disc(30, 20, 6)
        instances[rim] = kinds[rim] = 255
        # Pascal VOC's palette: the bits of a number, dealt to the channels from the highest on.
        palette = np.zeros((256, 3), np.uint8)
        for number in range(256):
            for bit in range(8):
                palette[number, bit % 3] |= (number >> bit & 1) << (7 - bit // 3)
        for folder, values in (("SegmentationObject", instances), ("SegmentationClass", kinds)):
            (root / folder).mkdir()
            image = Image.fromarray(palette[values] if mode.startswith("RGB") else values)
            if mode == "P":
                image.putpalette(palette.reshape(-1).tolist())
            image = image.convert(mode) if mode != "I;16" else Image.fromarray(values.astype(np.uint16))
            for name in ("a.png", "b.PNG"):
                image.save(root / folder / name)
        return instances, kinds

    @pytest.mark.parametrize("mode", ["P", "L", "LA", "RGB", "RGBA"])
    def test_instances_and_classes(self, tmp_path: Path, mode: str) -> None:
        instances, _ = self.write(tmp_path, mode)
        conversion = convert("voc", tmp_path)
        assert conversion.faults == []
        found = opened(conversion, tmp_path)
        assert list(found) == ["a.png", "b.png"]
        assert sorted(name for name, _ in found["a.png"]) == ["cat", "cat", "person"]
        drawn = {(instances == number).tobytes() for number in (1, 2, 3)}
        assert {mask.tobytes() for _, mask in found["a.png"]} == drawn

    def test_more_than_255_instances(self, tmp_path: Path) -> None:
        write_image(tmp_path / "JPEGImages", "a.png")
        values = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) // 8
        for folder, content in (("SegmentationObject", values), ("SegmentationClass", (values > 0) * 8)):
            (tmp_path / folder).mkdir()
            Image.fromarray(content.astype(np.uint16)).save(tmp_path / folder / "a.png")
        assert len(convert("voc", tmp_path).content["annotations"]) == 299

    def test_colours_of_a_labelmap(self, tmp_path: Path) -> None:
        write_image(tmp_path / "JPEGImages", "x/a.jpg")
        colours = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        colours[BOX] = (10, 200, 30)
        for folder in ("SegmentationObject", "SegmentationClass"):
            write_values(tmp_path / folder / "x" / "a.png", colours[:, :, ::-1])
        (tmp_path / "labelmap.txt").write_text(
            "# label:color_rgb:parts:actions\nbackground:0,0,0::\nred: nut:10,200,30:head,tail:run\nbolt:::\n"
        )
        conversion = convert("voc", tmp_path)
        assert conversion.content["categories"] == [{"id": 1, "name": "red: nut"}, {"id": 2, "name": "bolt"}]
        ((name, mask),) = opened(conversion, tmp_path)["x/a.jpg"]
        assert name == "red: nut"
        assert (mask == box()).all()
        (tmp_path / "labelmap.txt").write_text("nut\n")
        with pytest.raises(YolactError, match=r"labelmap\.txt: 'nut' is not name:r,g,b"):
            convert("voc", tmp_path)

    def test_a_list_of_images_and_other_names(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.write(tmp_path)
        write_image(tmp_path / "JPEGImages", "c.png")
        (tmp_path / "val.txt").write_text("b  1\nc -1\nd  1\n")
        (tmp_path / "names.txt").write_text("\n".join(f"class{number}" for number in range(1, 16)))
        conversion = convert("voc", tmp_path, names=tmp_path / "names.txt", only=tmp_path / "val.txt")
        assert conversion.faults == [f"1 name is in {tmp_path}/val.txt, but there is no such image: d"]
        assert "1 image of the list without masks: c" in caplog.text
        found = opened(conversion, tmp_path)
        assert list(found) == ["b.png"]
        assert [name for name, _ in found["b.png"]] == ["class8", "class15", "class8"]

    def test_faults_are_named_and_the_rest_converted(self, tmp_path: Path) -> None:
        with pytest.raises(YolactError, match="SegmentationObject"):
            convert("voc", tmp_path)
        instances, kinds = self.write(tmp_path)
        bad = np.where(instances == 2, 77, kinds).astype(np.uint8)
        expected = {}
        for name, values, fault in (
            ("class", bad, "class.png: no known class at the instance"),
            ("size", kinds[:9], "size.png is 60x9;"),
            ("torn", None, "torn.png is cut off"),
            ("bomb", None, "bomb.png says that it is 20000 x 20000 pixels, more"),
            ("alone", kinds, "alone.png has no image in"),
            ("half", None, "half.png has no class image in"),
        ):
            expected[name] = fault
            if name != "alone":
                write_image(tmp_path / "JPEGImages", f"{name}.png")
            write_values(tmp_path / "SegmentationObject" / f"{name}.png", instances)
            path = tmp_path / "SegmentationClass" / f"{name}.png"
            if values is not None:
                write_values(path, values)
            elif name != "half":
                content = io.BytesIO()
                Image.new("1", (20000, 20000) if name == "bomb" else (WIDTH, HEIGHT)).save(content, "png")
                path.write_bytes(content.getvalue()[: None if name == "bomb" else 40])
        conversion = convert("voc", tmp_path)
        assert len(conversion.content["annotations"]) == 3 + 3 + 2
        assert len(conversion.faults) == len(expected)
        for fault in expected.values():
            assert sum(fault in found for found in conversion.faults) == 1, fault

    def test_against_datumaro(self, tmp_path: Path) -> None:
        """CVAT's "Segmentation mask" is what Datumaro writes with colours."""
        dm = pytest.importorskip("datumaro")
        media = dm.Image.from_numpy(data=np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
        drawn = [disc(12, 20, 8), disc(45, 20, 9)]
        masks = [dm.Mask(mask, label=n, id=n + 1, group=n + 1) for n, mask in enumerate(drawn)]
        items = [dm.DatasetItem("x/a", subset="train", media=media, annotations=masks)]
        dataset = dm.Dataset.from_iterable(items, categories=["nut", "bolt"])
        labelmap = tmp_path / "map.txt"
        labelmap.write_text(
            "# label:color_rgb:parts:actions\nbackground:0,0,0::\nnut:9,8,7::\nbolt:1,2,3::\n"
        )
        for colours in (True, False):
            root = tmp_path / str(colours)
            dataset.export(
                str(root),
                "voc_segmentation",
                save_media=True,
                label_map=str(labelmap),
                apply_colormap=colours,
            )
            only = root / "ImageSets" / "Segmentation" / "train.txt"
            found = opened(convert("voc", root, only=only), tmp_path)["x/a.jpg"]
            assert {name: mask.tobytes() for name, mask in found} == {
                "nut": drawn[0].tobytes(), "bolt": drawn[1].tobytes()
            }  # fmt: skip


def written(path: Path, kind: str) -> None:
    """A mask of `box()` as people's tools write it."""
    mask = box()
    path.parent.mkdir(parents=True, exist_ok=True)
    white, colour = mask * 255, np.dstack([mask * 0, mask * 9, mask * 250])
    images: dict[str, Any] = {
        "grey": white,
        "0 and 1": mask,
        "16 bits, small": mask.astype(np.uint16),
        "16 bits, large": mask.astype(np.uint16) * 65535,
        "1 bit": mask.astype(bool),
        "blue": colour,
        "alpha, white": np.dstack([white * 0 + 255] * 3 + [white]),
        "alpha, black": np.dstack([white * 0] * 3 + [white]),
        "alpha, a cut-out photo": np.dstack([np.full_like(colour, 77) + colour // 9, white]),
        "opaque": np.dstack([white, white, white, white * 0 + 255]),
        "nearly opaque": np.dstack([white, white, white, 254 + mask]),
        "grey and alpha": np.dstack([white * 0 + 255, white]),
        "soft edges": white // 255 * 200 + 20,
    }
    image = Image.fromarray(images[kind] if kind != "palette" else mask)
    if kind == "palette":
        image.putpalette([10, 0, 0, 0, 90, 0])
    image.save(path)


KINDS = (
    "grey", "0 and 1", "16 bits, small", "16 bits, large", "1 bit", "blue", "palette", "alpha, white",
    "opaque", "alpha, black", "alpha, a cut-out photo", "nearly opaque", "grey and alpha", "soft edges",
)  # fmt: skip


class TestMasks:
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_kind_of_png(self, tmp_path: Path, kind: str) -> None:
        write_image(tmp_path / "images", "a.jpg")
        written(tmp_path / "masks" / "a" / "cat_1.png", kind)
        conversion = convert("masks", tmp_path / "masks", tmp_path / "images")
        ((_, mask),) = opened(conversion, tmp_path)["a.jpg"]
        assert (mask == box()).all()

    @pytest.mark.parametrize("name", ["cat_1.PNG", "cat-1.tif", "cat.bmp", "cat_0001.webp", "cat_1.JPG"])
    @pytest.mark.parametrize("folder", ["a", "a.jpg"])
    def test_every_name(self, tmp_path: Path, name: str, folder: str) -> None:
        write_image(tmp_path / "images", "a.jpg")
        write_values(tmp_path / "masks" / folder / name, box() * 255)
        conversion = convert("masks", tmp_path / "masks", tmp_path / "images")
        ((label, mask),) = opened(conversion, tmp_path)["a.jpg"]
        assert label == "cat"
        assert (mask ^ box().astype(bool)).sum() <= 8  # JPEG blurs edges

    def test_a_folder_of_masks_for_each_image(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        images, masks = tmp_path / "images", tmp_path / "masks"
        write_image(images, "a.png", "b.png", "day 1/c.v2.png")
        write_values(masks / "a" / "red_cell_1.png", disc(15, 20, 8))
        write_values(masks / "a" / "red_cell_2.png", disc(35, 20, 8))
        write_values(masks / "a" / "nucleus.png", disc(50, 20, 4))
        write_values(masks / "a" / "nucleus-2.png", np.zeros((HEIGHT, WIDTH)))
        write_values(masks / "a" / "._nucleus.png", disc(50, 20, 4))
        write_values(masks / "day 1" / "c.v2" / "nucleus_1.png", np.ones((HEIGHT, WIDTH)))
        conversion = convert("masks", masks, images)
        assert conversion.faults == []
        assert conversion.content["categories"] == [
            {"id": 1, "name": "nucleus"},
            {"id": 2, "name": "red_cell"},
        ]
        found = opened(conversion, tmp_path)
        assert found["b.png"] == []
        assert [name for name, _ in found["a.png"]] == ["nucleus", "red_cell", "red_cell"]
        for (_, mask), (x, radius) in zip(found["a.png"], ((50, 4), (15, 8), (35, 8)), strict=True):
            assert (mask == disc(x, 20, radius)).all()
        assert found["day 1/c.v2.png"][0][1].all()
        assert "nucleus-2.png is empty" in caplog.text
        assert "nucleus_1.png covers the whole image" in caplog.text

    def test_faults_are_named_and_the_rest_converted(self, tmp_path: Path) -> None:
        images, masks = tmp_path / "images", tmp_path / "masks"
        write_image(images, "a.png")
        with pytest.raises(YolactError, match="--images"):
            convert("masks", tmp_path)
        masks.mkdir()
        with pytest.raises(YolactError, match="no folder with masks"):
            convert("masks", masks, images)
        write_values(masks / "a" / "cell_1.png", box())
        write_values(masks / "a" / "cell_2.png", np.ones((9, 9)))
        write_values(masks / "a" / "call_3.png", box())
        (masks / "a" / "cell_4.png").write_bytes(b"")
        (masks / "a" / "cell_5.png").write_bytes(b"no image")
        # OpenCV would reserve the 1.3 GB that the second chunk says it has.
        whole = (masks / "a" / "cell_1.png").read_bytes()
        (masks / "a" / "cell_6.png").write_bytes(whole[:33] + b"IEND" + whole[37:])
        write_values(masks / "z" / "cell_1.png", box())
        (tmp_path / "names.txt").write_text("cell\n")
        conversion = convert("masks", masks, images, tmp_path / "names.txt")
        assert len(conversion.content["annotations"]) == 1
        faults = "\n".join(conversion.faults)
        assert len(conversion.faults) == 6
        for text in (
            "cell_2.png is 9x9;", "call_3.png: no class 'call'; near ones: cell",
            "cell_4.png is not an image", "cell_5.png is not an image", "cell_6.png is cut off",
            f"{masks / 'z'} has no image of its name",
        ):  # fmt: skip
            assert text in faults

    def test_masks_outside_of_folders(self, tmp_path: Path) -> None:
        write_image(tmp_path / "images", "a.png")
        write_values(tmp_path / "masks" / "a.png", box())
        with pytest.raises(YolactError, match=r"a\.png is in no folder"):
            convert("masks", tmp_path / "masks", tmp_path / "images")


class TestHostile:
    """Mask images of strangers."""

    def voc(self, root: Path, instances: np.ndarray, kinds: np.ndarray) -> Path:
        write_image(root / "JPEGImages", "a.png")
        for folder, values in (("SegmentationObject", instances), ("SegmentationClass", kinds)):
            (root / folder).mkdir()
            Image.fromarray(values).save(root / folder / "a.png")
        return root

    def test_thousands_of_instances_are_those_that_were_drawn(self, tmp_path: Path) -> None:
        numbers = np.arange(1, HEIGHT * WIDTH + 1, dtype=np.uint16).reshape(HEIGHT, WIDTH)
        numbers[:, ::2] = numbers[:, 1::2]
        conversion = convert("voc", self.voc(tmp_path, numbers, np.full((HEIGHT, WIDTH), 8, np.uint8)))
        assert conversion.faults == []
        found = [mask for _, mask in opened(conversion, tmp_path)["a.png"]]
        assert len(found) == HEIGHT * WIDTH // 2
        assert {mask.tobytes() for mask in found} == {
            (numbers == number).tobytes() for number in np.unique(numbers)
        }

    @pytest.mark.parametrize("name", ["RLE", "INSTANCES"])
    def test_noise_is_a_fault(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        noise = np.random.default_rng(0).integers(1, 255, (HEIGHT, WIDTH), np.uint8)
        self.voc(tmp_path, noise, noise % 20 + 1)
        monkeypatch.setenv(f"YOLACT_MAX_{name}", "200")
        with pytest.raises(YolactError, match=rf"more than the 200 allowed \(YOLACT_MAX_{name} "):
            convert("voc", tmp_path)

    def test_postscript_by_the_name_of_a_png_is_not_run(self, tmp_path: Path) -> None:
        self.voc(tmp_path, box(), box() * 8)
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.eps")
        (tmp_path / "a.eps").replace(tmp_path / "SegmentationObject" / "a.png")
        with pytest.raises(YolactError, match="is not an image"):
            convert("voc", tmp_path)

    @pytest.mark.parametrize("make", [os.mkfifo, Path.touch, lambda path: path.symlink_to("/dev/zero")])
    def test_pipes_devices_and_empty_files(self, tmp_path: Path, make: Callable[[Path], object]) -> None:
        write_image(tmp_path / "images", "a.png")
        write_values(tmp_path / "masks/a/cat_1.png", box() * 255)
        make(tmp_path / "masks/a/cat_2.png")
        (fault,) = convert("masks", tmp_path / "masks", tmp_path / "images").faults
        assert re.search("cat_2.png is (a pipe|a device|not an image)", fault)
