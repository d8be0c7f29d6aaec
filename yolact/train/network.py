"""The forward pass in training, arranged for speed: `Yolact.forward_train` up to rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models.resnet import Bottleneck

from yolact.model import Yolact, YolactOutput
from yolact.model.backbone import ResNet
from yolact.model.head import Head
from yolact.train import winograd


def forward_train(model: Yolact, images: Tensor) -> tuple[YolactOutput, Tensor]:
    """The result of `model.forward_train(images)`, in less time.

    Frozen batch norm is folded into the weights of its convolution, the three layers of the head are one,
    and in float32 on CPUs large 3x3 convolutions use `winograd`.
    """
    with _convolutions(images):
        backbone = model.backbone
        maps = _resnet(backbone, images) if isinstance(backbone, ResNet) else backbone(images)
        pyramid = model.fpn(maps)
        (head,) = model.prediction_layers
        assert isinstance(head, Head)
        loc, logits, coefficients = _head(head, pyramid)
        prototypes = model.proto_net(pyramid[0]).permute(0, 2, 3, 1).contiguous()  # (N, Hp, Wp, M)
        semantic = model.semantic_seg_conv(pyramid[0])
    return YolactOutput(loc, logits, coefficients, prototypes), semantic


def _convolutions(images: Tensor) -> AbstractContextManager[object]:
    """What computes the convolutions of a forward pass on these images."""
    plain = images.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return _CpuConvolutions() if plain and not torch.compiler.is_compiling() else nullcontext()


class _CpuConvolutions(TorchFunctionMode):
    """Computes the convolutions that `winograd.suits` with it."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call `function`, or `winograd.convolve` in its place."""
        if function is torch.conv2d and not kwargs and len(args) == 7:
            x, weight, bias, stride, padding, dilation, groups = args
            if (
                weight.shape[2:] == (3, 3)
                and groups == 1
                and all(set(_pair(value)) == {1} for value in (stride, padding, dilation))
                and winograd.suits(x, weight)
            ):
                return winograd.convolve(x, weight, bias)
        return function(*args, **(kwargs or {}))


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _resnet(backbone: ResNet, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`backbone(x)`."""
    x = backbone.maxpool(_convolve(x, backbone.conv1, backbone.bn1).relu_())
    maps = []
    for stage in backbone.layers:
        for block in stage.children():
            assert isinstance(block, Bottleneck)
            x = _bottleneck(block, x)
        maps.append(x)
    return maps[1], maps[2], maps[3]


def _bottleneck(block: Bottleneck, x: Tensor) -> Tensor:
    """`block(x)`."""
    shortcut = x if block.downsample is None else _convolve(x, *block.downsample)
    x = _convolve(x, block.conv1, block.bn1).relu_()
    x = _convolve(x, block.conv2, block.bn2).relu_()
    return _convolve(x, block.conv3, block.bn3).add_(shortcut).relu_()


def _convolve(x: Tensor, layer: nn.Module, norm: nn.Module) -> Tensor:
    """`norm(layer(x))`; a frozen norm is computed on the weights, which are fewer numbers."""
    if norm.training or not (isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
        result: Tensor = norm(layer(x))
        return result
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    weight = layer.weight * scale[:, None, None, None]
    return F.conv2d(x, weight, shift, layer.stride, layer.padding, layer.dilation, layer.groups)


def _head(head: Head, pyramid: list[Tensor]) -> list[Tensor]:
    """The outputs of `head` for all levels (N, P, 4), (N, P, C+1), (N, P, M)."""
    layers = head.bbox_layer, head.conf_layer, head.mask_layer
    weight = torch.cat([layer.weight for layer in layers])
    bias = torch.cat([layer.bias for layer in layers])  # type: ignore[misc]
    sizes = [layer.out_channels for layer in layers]
    levels = []
    for x in pyramid:
        # All arguments by position, as `_CpuConvolutions` expects them.
        y = F.conv2d(head.upfeature(x), weight, bias, 1, 1, 1, 1)  # (N, all sizes, H, W)
        levels.append(y.permute(0, 2, 3, 1).flatten(1, 2).split(sizes, dim=-1))
    loc, logits, coefficients = (
        torch.cat(parts, dim=1).unflatten(-1, (head.priors, -1)).flatten(1, 2)  # (N, cells, A*V) to (N, P, V)
        for parts in zip(*levels, strict=True)
    )
    return [loc, logits, coefficients.tanh()]
