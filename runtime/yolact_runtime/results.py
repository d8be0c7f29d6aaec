"""`Result`: the instances found in one image."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from yolact_runtime import masks as mask_ops
from yolact_runtime.detections import Detections
from yolact_runtime.draw import draw_instances, track_colour
from yolact_runtime.errors import YolactError, counted
from yolact_runtime.exchange.instances import TOLERANCE, Instance, check_tolerance
from yolact_runtime.exchange.to_fiftyone import fiftyone_detections
from yolact_runtime.exchange.to_label_studio import label_studio_prediction
from yolact_runtime.exchange.to_labelme import labelme_content
from yolact_runtime.exchange.to_supervision import compact_masks, supervision_detections
from yolact_runtime.metadata import Metadata

if TYPE_CHECKING:
    import fiftyone
    import supervision

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Result:
    """The n instances found in one image, best score first.

    Masks are computed when first used, and only inside their boxes.

    Attributes:
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        relative_boxes: (n, 4) float32, x1 y1 x2 y2 relative to the image, as decoded; may leave 0..1.
        scores: (n,) float32, box scores, 0..1.
        mask_scores: (n,) float32; equal to `scores` unless the model re-scores masks.
        classes: (n,) int64, 0-based.
        coefficients: (n, M) float32 mask coefficients.
        prototypes: (Hp, Wp, M) float32; may be (0, Wp, M) if n is 0.
        class_names: Name of every class of the model.
        class_ids: The dataset's category id of every class of the model.
        contours: The masks if the engine computed them; the prototypes may be missing then.
        track_ids: (n,) int64, the track of each instance, from 1; -1 where it has none. None if not tracked.
    """

    height: int
    width: int
    relative_boxes: np.ndarray
    scores: np.ndarray
    mask_scores: np.ndarray
    classes: np.ndarray
    coefficients: np.ndarray
    prototypes: np.ndarray
    class_names: tuple[str, ...]
    class_ids: tuple[int, ...]
    contours: Sequence[mask_ops.Region] | None = None
    track_ids: np.ndarray | None = None

    def __repr__(self) -> str:
        """Size and classes; the arrays would fill the screen."""
        counts = ", ".join(f"{name}: {count}" for name, count in Counter(self.names).items())
        found = counted(len(self), "detection") + (f" ({counts})" if counts else "")
        return f"Result({self.width} x {self.height}, {found})"

    def __len__(self) -> int:
        return len(self.scores)

    @cached_property
    def boxes_float(self) -> np.ndarray:
        """(n, 4) float32: x1 y1 x2 y2 in pixels, ordered and clamped to the image, not rounded."""
        size = np.array([self.width, self.height], np.float32)
        with np.errstate(over="ignore"):
            corners = self.relative_boxes.reshape(-1, 2, 2) * size  # (n, corner, xy)
        return np.clip(np.sort(corners, axis=1), 0, size).reshape(-1, 4)

    @property
    def boxes(self) -> np.ndarray:
        """(n, 4) int64: x1 y1 x2 y2 in whole pixels, rounded down."""
        return self.boxes_float.astype(np.int64)

    @property
    def category_ids(self) -> np.ndarray:
        """(n,) int64: the dataset's id of each instance's class."""
        return np.array(self.class_ids, np.int64)[self.classes]

    @property
    def names(self) -> list[str]:
        """Class name of each instance."""
        return [self.class_names[index] for index in self.classes]

    @cached_property
    def regions(self) -> list[mask_ops.Region]:
        """The mask of each instance as the edges of its runs."""
        if self.contours is not None:
            return list(self.contours)
        return mask_ops.box_masks(
            self.coefficients, self.prototypes, self.relative_boxes, self.height, self.width
        )

    @cached_property
    def masks(self) -> np.ndarray:
        """(n, height, width) bool."""
        return mask_ops.full_masks(self.regions, self.height, self.width)

    @cached_property
    def rles(self) -> list[dict[str, Any]]:
        """COCO run-length encoding of each mask: {"size": [height, width], "counts": str}."""
        return mask_ops.encode(self.regions, self.height, self.width)

    @cached_property
    def areas(self) -> np.ndarray:
        """(n,) int64: pixels of each mask."""
        return mask_ops.areas(self.regions)

    @cached_property
    def centroids(self) -> np.ndarray:
        """(n, 2) float64: mean x and y of each mask in pixels, as of boxes; NaN for an empty mask."""
        return mask_ops.centroids(self.regions)

    def label_map(self) -> np.ndarray:
        """(height, width): 0 for background, else 1 + the row of the instance that a pixel belongs to.

        Where masks overlap, the lower row wins: the better score. uint8, or uint16 for more than 255 rows.

        Raises:
            YolactError: there are more than 65,535 rows.
        """
        return mask_ops.label_map(self.regions, self.height, self.width)

    def cutout(self, image: np.ndarray, row: int) -> np.ndarray:
        """One instance, cut out of its image along the rectangle around its mask.

        Args:
            image: (height, width, 3) uint8 BGR, the one that the instances were found in.
            row: Of the instance, from 0.

        Returns:
            (h, w, 4) uint8 BGRA, alpha 255 in the mask and 0 outside, where the colours are kept;
            (0, 0, 4) for an empty mask.

        Raises:
            YolactError: the image has another size or type.
            IndexError: there is no such row.
        """
        self._check_size(image)
        return mask_ops.cutout(image, self.regions[row])

    def to_coco(self, image_id: int, polygons: bool = False, masks: bool = True) -> list[dict[str, Any]]:
        """The instances as entries of a COCO results file.

        Args:
            image_id: The id in each entry.
            polygons: Polygons instead of RLE; holes are lost, and empty masks remain RLE.
            masks: Include masks, and use mask scores; otherwise boxes only, with box scores.

        Returns:
            {image_id, category_id, bbox [x, y, width, height] in pixels, score} each; with tracks also
            track_id; with masks also segmentation, and area in pixels.
        """
        scores = self.mask_scores if masks else self.scores
        entries = coco_entries(image_id, self.boxes_float, self.category_ids.tolist(), scores)
        if self.track_ids is not None:
            for entry, track in zip(entries, self.track_ids.tolist(), strict=True):
                entry["track_id"] = track
        if masks:
            areas = self.areas.tolist()
            for index, (entry, rle) in enumerate(zip(entries, self.rles, strict=True)):
                outlines = mask_ops.polygons(self.regions[index]) if polygons else []
                entry["segmentation"] = outlines or rle
                entry["area"] = areas[index]
        return entries

    def to_supervision(self, compact: bool = False) -> supervision.Detections:
        """The instances as `supervision.Detections`; needs `pip install "yolact[supervision]"`.

        It has `xyxy` (the float boxes), `mask`, `confidence` (of the mask), `class_id` (0-based),
        `tracker_id` if there are tracks (-1 for none), and `data["class_name"]`.

        Args:
            compact: Masks as supervision's `CompactMask`, which keeps their runs only. Otherwise they are
                `Result.masks` itself: a byte for each pixel of the image and instance.

        Raises:
            YolactError: supervision is not installed.
        """
        mask = compact_masks(self.regions, self.height, self.width) if compact else self.masks
        fields = {
            "xyxy": self.boxes_float,
            "confidence": self.mask_scores,
            "class_id": self.classes,
            "tracker_id": self.track_ids,
            "data": {"class_name": np.array(self.names, dtype=np.str_)},
        }
        return supervision_detections(mask, fields)

    def to_fiftyone(self) -> fiftyone.core.labels.Detections:
        """The instances as FiftyOne's `Detections`; needs `pip install "yolact[fiftyone]"`.

        The bounding box of each is the smallest around its mask: FiftyOne would stretch a mask to any other.
        `detected_box` is the one that the network found. Both are x, y, width, height relative to the image.
        `index` is the track. An empty mask is None.

        Raises:
            YolactError: FiftyOne is not installed.
        """
        pairs = zip(self._instances(), self.boxes_float.astype(np.float64), strict=True)
        return fiftyone_detections(pairs, self.height, self.width)

    def to_labelme(
        self, image_path: str, masks: bool = False, tolerance: float = TOLERANCE
    ) -> dict[str, Any]:
        """The content of a labelme file, to be written as JSON; instances with an empty mask are left out.

        Args:
            image_path: The image, relative to the folder of the file.
            masks: Exact masks; otherwise polygons, one for each connected component, without holes. Those of
                an instance have the same group id.
            tolerance: Farthest distance of a polygon from the exact outline, in pixels; 0 gives that.

        Raises:
            UsageError: the tolerance is not within 0 and 100.
        """
        check_tolerance(tolerance)
        found = self._instances(empty=False)
        return labelme_content(found, self.height, self.width, image_path, masks, tolerance)

    def to_label_studio(
        self,
        polygons: bool = False,
        tolerance: float = TOLERANCE,
        model_version: str = "yolact",
        from_name: str = "label",
        to_name: str = "image",
    ) -> dict[str, Any]:
        """A prediction for Label Studio; instances with an empty mask are left out.

        A task with it is `{"data": {"image": address}, "predictions": [prediction]}`.

        Args:
            polygons: Polygons, one for each connected component, without holes; otherwise exact brush masks.
            tolerance: Farthest distance of a polygon from the exact outline, in pixels; 0 gives that.
            model_version: What Label Studio shows as the origin.
            from_name, to_name: The names of the control and image tags in the labeling interface.

        Raises:
            UsageError: the tolerance is not within 0 and 100.
        """
        check_tolerance(tolerance)
        names = model_version, from_name, to_name
        found = self._instances(empty=False)
        return label_studio_prediction(found, self.height, self.width, polygons, tolerance, *names)

    def _instances(self, empty: bool = True) -> list[Instance]:
        """What other tools get of each instance, with or without those that have an empty mask."""
        tracks = [-1] * len(self) if self.track_ids is None else self.track_ids.tolist()
        rows = zip(self.names, self.mask_scores, self.regions, tracks, strict=True)
        return [
            Instance(name, float(str(score)), region, None if track < 0 else track)
            for name, score, region, track in rows
            if empty or len(region.edges)
        ]

    def draw(self, image: np.ndarray) -> np.ndarray:
        """A copy of `image` with mask, box and label of each instance drawn on it, the best one on top.

        Args:
            image: (height, width, 3) uint8 BGR, the one that the instances were found in.

        Raises:
            YolactError: the image has another size or type.
        """
        self._check_size(image)
        pairs = zip(self.names, self.mask_scores.tolist(), strict=True)
        texts = [f"{name} {score:.2f}" for name, score in pairs]
        if self.track_ids is None:
            return draw_instances(image, self.regions, self.boxes, texts)
        tracks = self.track_ids.tolist()
        texts = [
            f"#{track} {text}" if track >= 0 else text for track, text in zip(tracks, texts, strict=True)
        ]
        return draw_instances(image, self.regions, self.boxes, texts, list(map(track_colour, tracks)))

    def _check_size(self, image: np.ndarray) -> None:
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,):
            found = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
            raise YolactError(f"the image is {found}; (height, width, 3) uint8 BGR is needed")
        if image.shape[:2] != (self.height, self.width):
            raise YolactError(
                f"the image is {image.shape[1]} x {image.shape[0]}, the result {self.width} x {self.height}"
            )


def coco_entries(
    image_id: int, boxes: np.ndarray, category_ids: Sequence[int], scores: np.ndarray
) -> list[dict[str, Any]]:
    """Entries of a COCO results file without masks, see `Result.to_coco`.

    Args:
        image_id: The id in each entry.
        boxes: (n, 4) float32 x1 y1 x2 y2 in pixels.
        category_ids: n ids of the dataset.
        scores: (n,) float32.
    """
    corners = boxes.astype(np.float64).round(2)
    sides = (corners[:, 2:] - corners[:, :2]).round(2)
    bboxes = np.concatenate([corners[:, :2], sides], axis=1).tolist()
    return [
        # The shortest decimal of the same float32: half as many digits as for float64.
        {"image_id": image_id, "category_id": category, "bbox": bbox, "score": float(str(score))}
        for category, bbox, score in zip(category_ids, bboxes, scores, strict=True)
    ]


def result_of(
    found: Detections,
    index: int,
    size: tuple[int, int],
    meta: Metadata,
    score_threshold: float,
    top_k: int,
    contours: Sequence[mask_ops.Region] | None = None,
    copy: bool = True,
    classes: frozenset[int] | None = None,
) -> Result:
    """The result of the `index`-th image; detections that are not finite are dropped with a warning.

    Args:
        found: Detections of the batch.
        index: Position of the image in the batch.
        size: Height and width of the image.
        meta: Metadata of the engine.
        score_threshold, top_k: As for `Engine.predict`.
        contours: The masks of the image's rows, if the engine computed them.
        copy: Copy the prototypes; otherwise the result may share those of the batch.
        classes: 0-based indices of the classes to keep; None for all.

    Raises:
        YolactError: nothing was found, and the prototypes are not finite: the network failed.
    """
    count = int(found.count[index])
    prototypes = found.prototypes[index]
    boxes, coefficients = found.boxes[index, :count], found.coefficients[index, :count]
    scores, mask_scores = found.scores[index, :count], found.mask_scores[index, :count]
    sound = np.isfinite(scores) & np.isfinite(mask_scores)
    sound &= np.isfinite(boxes).all(1) & np.isfinite(coefficients).all(1)
    if (count or contours is None) and not _all_finite(prototypes):
        if not count:
            raise YolactError(
                "nothing was found, but the network's output is not finite: its weights are damaged, or too"
                " large for its precision"
            )
        sound[:] = False  # every mask depends on all prototypes
    dropped = count - np.count_nonzero(sound)
    if dropped:
        log.warning(
            "dropped %s that are not finite; if this happens often, export in fp32",
            counted(dropped, "detection"),
        )
    kept = sound & (scores > score_threshold)
    if classes is not None:
        kept &= np.isin(found.classes[index, :count], list(classes))
    rows = np.flatnonzero(kept)[:top_k]
    if not len(rows):
        prototypes, copy = prototypes[:0], True
    return Result(
        height=size[0],
        width=size[1],
        relative_boxes=boxes[rows].astype(np.float32, copy=False),
        scores=scores[rows].astype(np.float32, copy=False),
        mask_scores=mask_scores[rows].astype(np.float32, copy=False),
        classes=found.classes[index, rows].astype(np.int64),
        coefficients=coefficients[rows].astype(np.float32, copy=False),
        prototypes=np.array(prototypes, np.float32) if copy else prototypes.astype(np.float32, copy=False),
        class_names=meta.class_names,
        class_ids=meta.category_ids,
        contours=None if contours is None else [contours[row] for row in rows.tolist()],
    )


def _all_finite(values: np.ndarray) -> bool:
    """Whether all of them are finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        # NaN and infinity reach the sum of squares, and large values may overflow in it: one pass, no array.
        return bool(np.isfinite(np.vdot(values, values)) or np.isfinite(values).all())
