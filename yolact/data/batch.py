"""Training samples and batches: images and their ground truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.utils.data import default_collate


@dataclass
class Target:
    """Ground truth of one image, G instances and Q crowd regions.

    Attributes:
        boxes: (G, 4) float32, x1 y1 x2 y2 relative to the image.
        labels: (G,) int64, 0-based class indices.
        masks: (G, Hp, Wp) bool, at the size of the prototypes.
        semantic_masks: (G, H3, W3) bool, at the size of P3.
        crowd_boxes: (Q, 4) float32, regions in which unmatched priors are neutral.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor
    semantic_masks: Tensor
    crowd_boxes: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Target:
        """The same target on `device`."""
        return Target(**{name: t.to(device, non_blocking=non_blocking) for name, t in vars(self).items()})


@dataclass(frozen=True)
class Sample:
    """One training image.

    Attributes:
        image: (3, H, W) float32, RGB, normalised.
        target: Its ground truth.
        image_id: Its id in the annotation file.
    """

    image: Tensor
    target: Target
    image_id: int


@dataclass(frozen=True)
class Batch:
    """Several samples: images (B, 3, H, W) float32, and as many targets and image ids.

    Between processes, and to pinned memory, the targets are passed on as one tensor: each tensor that
    processes share costs a file and its messages, far more than to copy its bytes.
    """

    images: Tensor
    targets: list[Target]
    image_ids: list[int]

    def __len__(self) -> int:
        return len(self.targets)

    def to(
        self,
        device: torch.device | str,
        non_blocking: bool = False,
        memory_format: torch.memory_format = torch.preserve_format,
    ) -> Batch:
        """The same batch on `device`, its images in `memory_format`."""
        return Batch(
            self.images.to(device, non_blocking=non_blocking, memory_format=memory_format),
            [target.to(device, non_blocking) for target in self.targets],
            self.image_ids,
        )

    def pin_memory(self) -> Batch:
        """The same batch in pinned host memory (what a DataLoader calls)."""
        packed, shapes = _pack(self.targets)
        return Batch(self.images.pin_memory(), _unpack(packed.pin_memory(), shapes), self.image_ids)

    def __reduce__(self) -> tuple[Callable[..., Batch], tuple[object, ...]]:
        return from_parts, (self.images, *to_parts(self))


_Shapes = list[dict[str, tuple[torch.dtype, torch.Size]]]


def _pack(targets: Sequence[Target]) -> tuple[Tensor, _Shapes]:
    """The bytes of all tensors of targets, (n,) uint8, each at a multiple of 8; their types and shapes."""
    shapes = [{name: (tensor.dtype, tensor.shape) for name, tensor in vars(t).items()} for t in targets]
    tensors = [tensor for target in targets for tensor in vars(target).values()]
    starts = list(accumulate((-(-tensor.nbytes // 8) * 8 for tensor in tensors), initial=0))
    packed = torch.empty(starts[-1], dtype=torch.uint8)
    for tensor, start in zip(tensors, starts, strict=False):
        packed[start : start + tensor.nbytes] = tensor.reshape(-1).view(torch.uint8)
    return packed, shapes


def _unpack(packed: Tensor, shapes: _Shapes) -> list[Target]:
    """The targets of `_pack`, without a copy."""
    targets, start = [], 0
    for named in shapes:
        tensors = {}
        for name, (dtype, shape) in named.items():
            size = shape.numel() * dtype.itemsize
            tensors[name] = packed[start : start + size].view(dtype).view(shape)
            start += -(-size // 8) * 8
        targets.append(Target(**tensors))
    return targets


def to_parts(batch: Batch) -> tuple[Tensor, _Shapes, list[int]]:
    """All of a batch but its images, as few objects."""
    return *_pack(batch.targets), batch.image_ids


def from_parts(images: Tensor, packed: Tensor, shapes: _Shapes, image_ids: list[int]) -> Batch:
    """The batch of these images and the result of `to_parts`."""
    return Batch(images, _unpack(packed, shapes), image_ids)


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples as one batch, its images channels last: the `collate_fn` of a DataLoader."""
    # In a worker directly to shared memory.
    images = default_collate([sample.image.permute(1, 2, 0) for sample in samples])
    return Batch(
        images.permute(0, 3, 1, 2),
        [sample.target for sample in samples],
        [sample.image_id for sample in samples],
    )
