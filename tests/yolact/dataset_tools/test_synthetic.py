from __future__ import annotations

import contextlib
import hashlib
import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from yolact.config import DatasetConfig, ModelConfig
from yolact.data.annotations import read_classes
from yolact.data.coco import CocoDataset
from yolact.data.layout import resolve_dataset
from yolact.dataset_tools.synthetic import make_shapes_dataset
from yolact_runtime.errors import UsageError, YolactError


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> DatasetConfig:
    return make_shapes_dataset(tmp_path_factory.mktemp("shapes") / "data", train_images=60, val_images=5)


def load(path: str) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(path)


def digest(config: DatasetConfig) -> str:
    files = [*sorted(Path(config.train_images).iterdir()), Path(config.train_annotations)]
    return hashlib.sha1(b"".join(file.read_bytes() for file in files)).hexdigest()


def test_annotations_describe_their_masks(shapes: DatasetConfig) -> None:
    """Area and box are those that pycocotools finds for the segmentation; nothing is annotated twice."""
    coco = load(shapes.train_annotations)
    kinds = set()
    for image_id, found in coco.imgToAnns.items():
        image = cv2.imread(str(Path(shapes.train_images) / coco.imgs[image_id]["file_name"]))
        assert image.shape[:2] == (coco.imgs[image_id]["height"], coco.imgs[image_id]["width"])
        masks = [coco.annToMask(annotation).astype(bool) for annotation in found]
        assert np.sum(masks, axis=0).max() <= 1, "the visible parts overlap"
        for mask, annotation in zip(masks, found, strict=True):
            y, x = np.nonzero(mask)
            assert annotation["area"] == mask.sum() >= 40
            box = [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]
            assert annotation["bbox"] == box
            segmentation = annotation["segmentation"]
            counts = segmentation["counts"] if isinstance(segmentation, dict) else None
            kinds.add((type(counts).__name__, annotation["iscrowd"]))
    assert kinds == {("NoneType", 0), ("str", 0), ("list", 1)}


def test_it_holds_what_makes_training_hard(shapes: DatasetConfig) -> None:
    coco = load(shapes.train_annotations)
    counts = [len(coco.imgToAnns[image_id]) for image_id in coco.imgs]
    assert min(counts) == 0, "no image without annotations"
    assert max(counts) >= 5
    crowds = [a for a in coco.anns.values() if a["iscrowd"]]
    assert crowds
    single = [a for a in coco.anns.values() if not a["iscrowd"]]
    assert {a["category_id"] for a in single} == {1, 4, 9}
    occluded = sum(isinstance(a["segmentation"], dict) for a in single)
    assert 0.2 < occluded / len(single) < 0.8
    assert len({(image["height"], image["width"]) for image in coco.imgs.values()}) > 10


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    first, again, other = (
        make_shapes_dataset(tmp_path / name, 3, 1, (48, 64), seed=seed)
        for name, seed in (("a", 5), ("b", 5), ("c", 6))
    )
    assert digest(first) == digest(again) != digest(other)


def test_a_smaller_dataset_is_the_beginning_of_a_larger(tmp_path: Path) -> None:
    small, large = (make_shapes_dataset(tmp_path / str(n), n, 1, (48, 64)) for n in (2, 4))
    for name in ("000001.png", "000002.png"):
        one, two = (Path(config.train_images) / name for config in (small, large))
        assert one.read_bytes() == two.read_bytes()


def test_large_scenes_of_small_shapes(tmp_path: Path) -> None:
    made = make_shapes_dataset(tmp_path, 1, 1, (400, 600), max_instances=40, diameter=(20, 33), crowd_share=0)
    coco = load(made.train_annotations)
    assert len(coco.anns) > 4
    # A triangle's circle is 1.35 times as wide as it is said to be.
    assert max(max(annotation["bbox"][2:]) for annotation in coco.anns.values()) <= 33 * 1.35 + 1
    assert {annotation["area"] < 32**2 for annotation in coco.anns.values()} == {True}


@pytest.mark.parametrize("option", [{"max_instances": 0}, {"max_instances": 10**9}, {"seed": -3}])
def test_numbers_out_of_range(tmp_path: Path, option: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"shapes: .*(at most 1000|1 or more|0 or more)"):
        make_shapes_dataset(tmp_path / "new", 1, 1, **option)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("ids", [(0, 1, 2), (12, 5), (0,)])
def test_category_ids_are_free(tmp_path: Path, ids: tuple[int, ...]) -> None:
    made = make_shapes_dataset(tmp_path, 4, 1, category_ids=ids)
    classes = read_classes(made.train_annotations)
    assert set(classes.category_ids) == set(ids)
    CocoDataset(made.train_images, made.train_annotations, ModelConfig(input_size=64), classes)[0]


def test_it_is_found_as_a_dataset(shapes: DatasetConfig) -> None:
    found = resolve_dataset(Path(shapes.train_images).parent)
    assert vars(found) | {"name": "shapes"} == vars(shapes)


def test_an_older_one_is_replaced_and_other_files_are_kept(tmp_path: Path) -> None:
    make_shapes_dataset(tmp_path, 3, 1, (48, 64))
    made = make_shapes_dataset(tmp_path, 2, 1, (48, 64))
    assert len(list(Path(made.train_images).iterdir())) == 2
    photo = tmp_path / "train" / "holiday.jpg"
    photo.write_bytes(b"dear")
    with pytest.raises(YolactError, match=r"holiday\.jpg"):
        make_shapes_dataset(tmp_path, 2, 1, (48, 64))
    assert photo.read_bytes() == b"dear"
    photo.unlink()
    Path(made.val_annotations).write_text(json.dumps({"images": []}))
    with pytest.raises(YolactError, match="instances_val"):
        make_shapes_dataset(tmp_path, 2, 1, (48, 64))


def test_wrong_arguments_and_folders(tmp_path: Path) -> None:
    for wrong in (
        {"train_images": 0},
        {"image_size": (20, 200)},
        {"category_ids": (1, 1)},
        {"category_ids": ()},
        {"diameter": (30, 20)},
        {"diameter": (20, 80)},
        {"image_size": (20_000, 20_000)},
    ):
        with pytest.raises(YolactError, match="shapes:"):
            make_shapes_dataset(tmp_path, **wrong)
    (tmp_path / "file").write_text("")
    with pytest.raises(YolactError, match="cannot write"):
        make_shapes_dataset(tmp_path / "file", 1, 1)


def test_a_full_disk_leaves_no_torn_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_bytes

    def fill(path: Path, data: bytes) -> int:
        if "000002" in path.name:
            write(path, data[:20])
            raise OSError(28, "No space left on device")
        return write(path, data)

    with monkeypatch.context() as full:
        full.setattr(Path, "write_bytes", fill)
        with pytest.raises(YolactError, match=r"cannot write .*: No space left on device"):
            make_shapes_dataset(tmp_path, 3, 1, (48, 64))
    assert [path.name for path in (tmp_path / "train").iterdir()] == ["000001.png"]
    (tmp_path / "train" / ".000002.x1_y.png").write_bytes(b"left by a killed process")
    make_shapes_dataset(tmp_path, 3, 1, (48, 64))
