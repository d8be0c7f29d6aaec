"""The plans of `masks.cu`: detections and prototypes to masks, bits or the edges of an RLE."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from yolact_runtime.cuda.plans.plan import Buffer, Launch, Plan, check_limits, float_type
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.masks import Region

SOURCE = "masks.cu"
RESULTS = ("masks", "bits", "edges")
_FLOAT, _INT, _WORD = np.dtype(np.float32), np.dtype(np.int32), np.dtype(np.uint32)
# Same as in the source.
_TILE = (32, 8, 1)
_GROUP = 16
_EDGE_BLOCK = (256, 1, 1)
# Blocks that share one mask's bits: enough to fill a large GPU with one large mask, few idle ones otherwise.
_MOST_BLOCKS = 16


@dataclass(frozen=True)
class MaskShapes:
    """The sizes that a mask plan is for.

    Attributes:
        batch: N, number of images; 1..65535.
        detections: K, detections per image; 1..1024.
        coefficients: M, coefficients per detection; 1..64.
        rows: Hp, rows of the prototypes; 1..1024.
        columns: Wp, columns of the prototypes; 1..1024.
        height: Height of the tallest image in pixels; 1..32768.
        width: Width of the widest image in pixels; 1..32768.
        prototype_dtype: float32 or float16.
        edge_capacity: Largest number of edges in all masks of one image; None for 4 per detection and image
            column, which is twice what masks without holes over the whole image have.
    """

    batch: int
    detections: int
    coefficients: int
    rows: int
    columns: int
    height: int
    width: int
    prototype_dtype: np.typing.DTypeLike = np.float32
    edge_capacity: int | None = None

    def __post_init__(self) -> None:
        """Raise a UsageError for sizes that the kernels do not support."""
        limits = {
            "batch": 65535, "detections": 1024, "coefficients": 64, "rows": 1024, "columns": 1024,
            "height": 32768, "width": 32768,
        }  # fmt: skip
        check_limits(
            "the mask kernels take", {name: (getattr(self, name), most) for name, most in limits.items()}
        )
        float_type("the mask kernels take", "prototypes", self.prototype_dtype)
        if self.detections * self.most_edges >= 2**31:
            raise UsageError(
                f"{self.detections} masks of {self.height}x{self.width} pixels may have 2**31 edges or more,"
                " which the mask kernels do not support; use fewer detections or smaller images"
            )
        if self.edge_capacity is not None and not 1 <= self.edge_capacity < 2**31:
            raise UsageError(f"the mask kernels take edge_capacity 1..{2**31 - 1}, not {self.edge_capacity}")

    @property
    def most_edges(self) -> int:
        """The most edges that one mask can have: between two prototype rows a column crosses 0.5 once."""
        return self.width * min(self.height, self.rows) + 1

    @property
    def capacity(self) -> int:
        """The number of edges of one image that fit in the buffer."""
        return self.edge_capacity or self.detections * min(4 * self.width, self.most_edges)


def mask_plan(shapes: MaskShapes, result: str = "edges") -> Plan:
    """The launches that compute masks.

    Inputs of the plan: `boxes` float32 (N, K, 4) relative x1 y1 x2 y2; `kept_coefficients` float32 (N, K, M);
    `count` int32 (N,), the number of detections; `prototypes` (N, Hp, Wp, M); and, except for "masks",
    `sizes` int32 (N, 2), height and width of each image.

    Args:
        shapes: The sizes.
        result: The plan's outputs:
            "masks": `masks` float32 (N, K, Hp, Wp), 0..1, zero outside the boxes and past `count`;
            "bits": `bits` uint32 (N, K, ceil(height / 32), width), 1 where a mask at image size is set; word
            w of column x holds the rows 32 w to 32 w + 31, lowest bit first;
            "edges": input of `read_regions`: `regions` int32 (N, K, 4), `offsets` int32 (N, K + 1) and
            `edges` int32 (N, capacity), written as far as `offsets` says.

    Raises:
        UsageError: `result` is something else.
    """
    if result not in RESULTS:
        raise UsageError(f"the mask kernels compute {', '.join(RESULTS)}, not {result!r}")
    batch, detections = shapes.batch, shapes.detections
    rows, columns = shapes.rows, shapes.columns
    words = -(-shapes.height // 32)
    kind = np.dtype(shapes.prototype_dtype)
    boxes = Buffer("boxes", (batch, detections, 4), _FLOAT)
    coefficients = Buffer("kept_coefficients", (batch, detections, shapes.coefficients), _FLOAT)
    count = Buffer("count", (batch,), _INT)
    prototypes = Buffer("prototypes", (batch, rows, columns, shapes.coefficients), kind)
    sizes = Buffer("sizes", (batch, 2), _INT)
    masks = Buffer("masks", (batch, detections, rows, columns), _FLOAT)
    bits = Buffer("bits", (batch, detections, words, shapes.width), _WORD)
    totals = Buffer("totals", (batch, detections), _INT)
    regions = Buffer("regions", (batch, detections, 4), _INT)
    offsets = Buffer("offsets", (batch, detections + 1), _INT)
    edges = Buffer("edges", (batch, shapes.capacity), _INT)

    detected = (boxes, coefficients, count, prototypes)
    cells = (np.int32(detections), np.int32(rows), np.int32(columns))
    words_and_width = (np.int32(words), np.int32(shapes.width))
    tiles = _tiles(columns, _TILE[0]) * _tiles(rows, _TILE[1])
    element = float_type("the mask kernels take", "prototypes", kind)
    assemble = Launch(
        SOURCE, f"assemble_masks<{element}, {shapes.coefficients}>",
        (tiles, _tiles(detections, _GROUP), batch), _TILE, 0,
        ("boxes", "kept_coefficients", "count", "prototypes", *cells, np.int32(result == "masks"), "masks"),
    )  # fmt: skip
    if result == "masks":
        return Plan(detected, (masks,), (), (assemble,))
    tiles = _tiles(shapes.width, _TILE[0]) * _tiles(words, _TILE[1])
    threshold = Launch(
        SOURCE, "mask_bits", (min(tiles, _MOST_BLOCKS), detections, batch), _TILE, 0,
        ("boxes", "count", "sizes", "masks", *cells, *words_and_width, np.int32(result == "bits"), "bits"),
    )  # fmt: skip
    if result == "bits":
        return Plan((*detected, sizes), (bits,), (masks,), (assemble, threshold))
    each = (detections, batch, 1)
    read = ("boxes", "count", "sizes", "bits")
    scalars = (*cells, *words_and_width)
    count_edges = Launch(SOURCE, "count_edges", each, _EDGE_BLOCK, 0, (*read, *scalars, "regions", "totals"))
    write_edges = Launch(
        SOURCE, "write_edges", each, _EDGE_BLOCK, 0,
        (*read, "totals", *scalars, np.int32(shapes.capacity), "offsets", "edges"),
    )  # fmt: skip
    return Plan(
        (*detected, sizes),
        (regions, offsets, edges),
        (masks, bits, totals),
        (assemble, threshold, count_edges, write_edges),
    )


def read_regions(
    count: np.ndarray, sizes: np.ndarray, regions: np.ndarray, offsets: np.ndarray, edges: np.ndarray
) -> list[list[Region]]:
    """The masks of each image from the outputs of the "edges" plan, for `yolact_runtime.masks.encode`.

    Only the first `offsets[n, count[n]]` entries of `edges[n]` are read, so only they have to be downloaded.

    Args:
        count: (N,) number of detections.
        sizes: (N, 2) height and width of each image.
        regions: (N, K, 4).
        offsets: (N, K + 1).
        edges: (N, capacity).

    Raises:
        YolactError: the edges of an image did not fit in the buffer; says how many there are.
    """
    images = []
    for n, number in enumerate(count.tolist()):
        bounds = offsets[n].tolist()
        if bounds[number] > edges.shape[1]:
            raise YolactError(
                f"the masks of image {n} have {bounds[number]} edges, and the buffer holds {edges.shape[1]}; "
                f"plan them with edge_capacity={bounds[number]} or more"
            )
        height = int(sizes[n, 0])
        found = []
        for k, (x, y, across, down) in enumerate(regions[n, :number].tolist()):
            pixels = edges[n, bounds[k] : bounds[k + 1]].astype(np.int64)
            found.append(Region(x, y, across, down, height, pixels))
        images.append(found)
    return images


def _tiles(size: int, tile: int) -> int:
    return -(-size // tile)
