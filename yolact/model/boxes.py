"""Box conversion, overlap and encoding relative to priors. Coordinates are relative to the image (0..1)."""

from __future__ import annotations

import torch
from torch import Tensor

# SSD's variances: the scale of centre and size regression.
CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2


def corners(boxes: Tensor) -> Tensor:
    """Boxes (..., 4): centre x, centre y, width, height to x1, y1, x2, y2."""
    half = boxes[..., 2:] / 2
    return torch.cat([boxes[..., :2] - half, boxes[..., :2] + half], dim=-1)


def decode(loc: Tensor, priors: Tensor) -> Tensor:
    """Box regression (..., P, 4) and priors (P, 4) to boxes (..., P, 4): x1, y1, x2, y2."""
    centres = priors[:, :2] + loc[..., :2] * CENTRE_VARIANCE * priors[:, 2:]
    sizes = priors[:, 2:] * torch.exp(loc[..., 2:] * SIZE_VARIANCE)
    top_left = centres - sizes / 2
    return torch.cat([top_left, top_left + sizes], dim=-1)


def encode(boxes: Tensor, priors: Tensor) -> Tensor:
    """The inverse of `decode`: boxes (..., P, 4), one for each prior, to box regression (..., P, 4).

    A box without width or height is taken as 1e-6 wide, so that the result is finite.
    """
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2 - priors[:, :2]
    sizes = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-6)
    return torch.cat(
        [
            centres / (CENTRE_VARIANCE * priors[:, 2:]),
            torch.log(sizes / priors[:, 2:]) / SIZE_VARIANCE,
        ],
        dim=-1,
    )


def with_sides_of_at_least(boxes: Tensor, side: float) -> Tensor:
    """Boxes (..., 4) corners, enlarged around their centres where a side is shorter; others to the bit."""
    near, far = boxes[..., :2], boxes[..., 2:]
    short = far - near < side
    centres = (near + far) / 2
    near, far = torch.where(short, centres - side / 2, near), torch.where(short, centres + side / 2, far)
    return torch.cat([near, far], dim=-1)


def areas(boxes: Tensor) -> Tensor:
    """Areas (...) of boxes (..., 4)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """Shared areas (..., A, B) of every box of a (..., A, 4) with every box of b (..., B, 4)."""
    # One coordinate at a time: an innermost dimension of two leaves vector units idle.
    left, top, right, bottom = (side[..., :, None] for side in a.unbind(-1))  # (..., A, 1)
    other_left, other_top, other_right, other_bottom = (side[..., None, :] for side in b.unbind(-1))
    width = (torch.minimum(right, other_right) - torch.maximum(left, other_left)).clamp(min=0)
    height = (torch.minimum(bottom, other_bottom) - torch.maximum(top, other_top)).clamp(min=0)
    return width * height


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (..., A, B) of a (..., A, 4) and b (..., B, 4); 0 where both are empty."""
    shared = intersection(a, b)
    union = areas(a)[..., :, None] + areas(b)[..., None, :] - shared
    return torch.where(union > 0, shared / union, 0.0)


def crop_window(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Which pixels of an (H, W) mask lie in a box, with one pixel of padding (YOLACT, Sec. 3.3).

    Args:
        boxes: (..., 4) relative corners, in any order.
        size: (H, W) of the mask.

    Returns:
        (..., H, W) bool. Pixel x is inside when `x1*W - 1 <= x < x2*W + 1`, as in the original's crop.
    """
    height, width = size

    def inside(first: Tensor, second: Tensor, length: int) -> Tensor:  # (...) to (..., length) bool
        low = (torch.minimum(first, second) * length - 1).clamp(min=0)
        high = (torch.maximum(first, second) * length + 1).clamp(max=length)
        pixels = torch.arange(length, device=boxes.device, dtype=boxes.dtype)
        return (pixels >= low[..., None]) & (pixels < high[..., None])

    columns = inside(boxes[..., 0], boxes[..., 2], width)
    rows = inside(boxes[..., 1], boxes[..., 3], height)
    return rows[..., :, None] & columns[..., None, :]  # (..., H, W)
