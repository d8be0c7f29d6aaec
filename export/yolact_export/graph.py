"""The module that is exported: images in, detections or raw heads out; the model itself is not changed."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolact.model import Yolact
from yolact.model.backbone import DeformConv
from yolact.model.detect import detect
from yolact.model.preprocess import Normalise
from yolact_export.onnx_graph import HEADS

DETECTIONS = ("count", "boxes", "scores", "classes", "coefficients", "prototypes")


class ExportedYolact(nn.Module):
    """Preprocessing, network and, with `detect="native"`, detection, in operators that every backend has.

    Args:
        model: Copied; deformable convolutions become grid sampling.
        detect: "native" for detections, "runtime" for the raw heads.
    """

    def __init__(self, model: Yolact, detect: str) -> None:
        """Copy the model and replace the layers that some backend lacks or does not need."""
        super().__init__()
        self.model = copy.deepcopy(model).cpu().float().eval()
        first = next(layer for layer in self.model.backbone.modules() if isinstance(layer, nn.Conv2d))
        self.normalise = SubtractMean(Normalise(model.config.model), first)
        self.detect = detect
        for index, module in enumerate(self.model.proto_net):
            if isinstance(module, nn.Upsample):
                # The ReLU behind it: its input is already positive.
                self.model.proto_net[index + 1] = nn.Identity()
        for name, module in list(self.model.named_modules()):
            if isinstance(module, DeformConv):
                parent, _, child = name.rpartition(".")
                setattr(self.model.get_submodule(parent), child, GridSampleDeformConv(module))
        self.eval()  # this module too: `torch.onnx.export` sets everything back to the mode of this one

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the tensors that `forward` returns."""
        if self.detect == "runtime":
            return HEADS
        return (*DETECTIONS, "mask_scores") if self.model.config.model.mask_iou else DETECTIONS

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(N, H, W, 3) uint8 or float32 BGR 0..255 to the tensors in `output_names`."""
        output = self.model(self.normalise(images))
        if self.detect == "runtime":
            return tuple(output)
        found = detect(self.model, output, compact=False)
        return tuple(getattr(found, name) for name in self.output_names)


class SubtractMean(nn.Module):
    """The part of `Normalise` that the first convolution cannot absorb: its padding is 0 after the mean.

    Args:
        normalise: The normalisation of the model. This module keeps only its mean.
        first: The convolution that reads the image. Its weights absorb the standard deviation and the channel
            order.
    """

    mean: Tensor

    def __init__(self, normalise: Normalise, first: nn.Conv2d) -> None:
        super().__init__()
        self.register_buffer("mean", normalise.mean[:, None, None])  # (3, 1, 1), BGR
        with torch.no_grad():
            # (C', RGB, h, w) to (C', BGR, h, w), so that no call has to swap channels.
            weight = first.weight.double().flip(1) / normalise.std.double()[:, None, None]
            first.weight.copy_(weight.to(first.weight.dtype))

    def forward(self, images: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 or float32 BGR 0..255 to (N, 3, H, W) float32 BGR minus mean."""
        # Floats first, as TensorRT cannot transpose bytes; then planes, where subtracting the mean is fast.
        return images.float().permute(0, 3, 1, 2).contiguous() - self.mean


class GridSampleDeformConv(nn.Module):
    """A `DeformConv` (YOLACT++, Sec. 6.2) as grid sampling and a convolution: few runtimes have the operator.

    Args:
        source: The layer to replace, with a 3x3 kernel and C input and C' output channels.
    """

    taps: Tensor
    weight: Tensor

    def __init__(self, source: DeformConv) -> None:
        super().__init__()
        self.source = source
        rows, columns = torch.meshgrid(torch.arange(3.0) - 1, torch.arange(3.0) - 1, indexing="ij")
        self.register_buffer("taps", torch.stack([columns.flatten(), rows.flatten()], dim=-1))  # (9, 2): x, y
        # Reshaped here and not in the graph, where the weight would not be a constant that can be quantised.
        weight = source.weight.detach().flatten(1)[..., None, None]  # (C', C*9, 1, 1)
        self.register_buffer("weight", weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', h, w), each 1/stride of the input's size."""
        offsets, modulation = self.source.offsets_and_modulation(x)
        height, width = x.shape[-2:]
        h, w = offsets.shape[-2:]
        stride = self.source.stride
        # (N, 18, h, w) as (N, tap, y|x, h, w) -> x|y last: (N, 9, h, w, 2)
        moved = offsets.unflatten(1, (9, 2)).flip(2).permute(0, 1, 3, 4, 2)
        rows, columns = torch.meshgrid(
            torch.arange(h, dtype=x.dtype) * stride, torch.arange(w, dtype=x.dtype) * stride, indexing="ij"
        )
        centres = torch.stack([columns, rows], dim=-1)  # (h, w, 2)
        points = moved + self.taps[:, None, None] + centres  # (N, 9, h, w, 2), in pixels
        grid = 2 * points / torch.tensor([width - 1.0, height - 1.0]) - 1
        sampled = F.grid_sample(
            x, grid.flatten(1, 2), mode="bilinear", padding_mode="zeros", align_corners=True
        )  # (N, C, 9*h, w)
        sampled = sampled.unflatten(2, (9, h)) * modulation[:, None]  # (N, C, 9, h, w)
        return F.conv2d(sampled.flatten(1, 2), self.weight, self.source.bias)
