"""Feature extractors. Module names follow the keys of the published checkpoints."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet50, resnet101
from torchvision.models.resnet import Bottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet
from torchvision.ops import deform_conv2d

from yolact.config import BackboneConfig
from yolact_runtime.errors import UsageError


class Backbone(nn.Module):
    """A feature extractor.

    Attributes:
        channels: Channels of the three maps that `forward` returns.
    """

    channels: tuple[int, int, int]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (N, 3, H, W) to C3, C4, C5 at strides 8, 16, 32."""
        raise NotImplementedError


class DeformConv(nn.Module):
    """Modulated deformable 3x3 convolution (DCNv2) with the parameters of the published ++ weights.

    `conv_offset_mask` predicts 27 channels for every position: 18 offsets (y, x for each of the 9 taps) and
    9 modulations before their sigmoid. Its weights start at zero: no offset, every tap at half strength.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.conv_offset_mask = nn.Conv2d(in_channels, 27, 3, stride, padding=1)
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)
        nn.init.zeros_(self.conv_offset_mask.weight)
        nn.init.zeros_(self.conv_offset_mask.bias)  # type: ignore[arg-type]

    def offsets_and_modulation(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 18, H, W) offsets in pixels and (N, 9, H, W) factors in 0..1."""
        raw = self.conv_offset_mask(x)  # (N, 27, H, W)
        return raw[:, :18], raw[:, 18:].sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        offsets, modulation = self.offsets_and_modulation(x)
        if x.dtype != self.weight.dtype:
            # Autocast does not cover this operator on CPUs, where it has no half precision.
            x, offsets, modulation = (part.to(self.weight.dtype) for part in (x, offsets, modulation))
        return deform_conv2d(
            x, offsets, self.weight, self.bias, stride=self.stride, padding=1, mask=modulation
        )


class ResNet(Backbone):
    """torchvision's ResNet without pooling and classifier, with deformable blocks (YOLACT++, Sec. 6.2)."""

    def __init__(
        self, build: Callable[..., TorchvisionResNet], deformable: tuple[int, ...], interval: int
    ) -> None:
        super().__init__()
        net = build(weights=None)
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layers = nn.ModuleList([net.layer1, net.layer2, net.layer3, net.layer4])
        for stage, last in zip(self.layers, deformable, strict=True):
            blocks = list(stage.children())
            for index, block in enumerate(blocks):
                if index + last >= len(blocks) and index % interval == 0:
                    assert isinstance(block, Bottleneck)
                    width, stride = block.conv2.in_channels, block.conv2.stride[0]
                    block.conv2 = DeformConv(width, width, stride)
        self.channels = (512, 1024, 2048)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        c2, c3, c4, c5 = self.layers
        x3 = c3(c2(x))
        x4 = c4(x3)
        return x3, x4, c5(x4)


def _darknet_conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.LeakyReLU(0.1, inplace=True),
    )


class DarknetBlock(nn.Module):
    """Residual block of Darknet-53 (YOLOv3, Table 1): 1x1 to half the channels, 3x3 back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _darknet_conv(channels, channels // 2, 1)
        self.conv2 = _darknet_conv(channels // 2, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x)) + x


class Darknet53(Backbone):
    """Darknet-53 without its classifier."""

    def __init__(self) -> None:
        super().__init__()
        self._preconv = _darknet_conv(3, 32, 3)
        self.layers = nn.ModuleList()
        channels = 32
        for blocks in (1, 2, 8, 8, 4):
            stage: list[nn.Module] = [_darknet_conv(channels, channels * 2, 3, stride=2)]
            channels *= 2
            stage += [DarknetBlock(channels) for _ in range(blocks)]
            self.layers.append(nn.Sequential(*stage))
        self.channels = (256, 512, 1024)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self._preconv(x)
        maps = []
        for stage in self.layers:
            x = stage(x)
            maps.append(x)
        return maps[2], maps[3], maps[4]


class MobileNetV2(Backbone):
    """torchvision's MobileNetV2, cut after its last block of each stride."""

    def __init__(self) -> None:
        super().__init__()
        features = mobilenet_v2(weights=None).features
        self.layers = nn.ModuleList([features[:7], features[7:14], features[14:18]])
        self.channels = (32, 96, 320)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c3, c4, c5 = self.layers
        x3 = c3(x)
        x4 = c4(x3)
        return x3, x4, c5(x4)


class TinyBlock(nn.Module):
    """Two 3x3 convolutions with a projected shortcut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(y)) + self.shortcut(x)).relu()


class Tiny(Backbone):
    """A small network that a laptop trains in minutes; for the demo and the tests."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        )
        self.layers = nn.ModuleList(
            [TinyBlock(16, 24), TinyBlock(24, 48), TinyBlock(48, 80), TinyBlock(80, 112)]
        )
        self.channels = (48, 80, 112)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c2, c3, c4, c5 = self.layers
        x3 = c3(c2(self.stem(x)))
        x4 = c4(x3)
        return x3, x4, c5(x4)


def zero_init_residual(model: nn.Module) -> None:
    """Make ResNet's residual blocks identities, by zero scales in their last batch norms.

    For random weights: their sum over the blocks grows so large that it saturates the mask coefficients and
    drives the prototypes to zero (Goyal et al. 2017, "Accurate, Large Minibatch SGD", Sec. 5.1).
    """
    for module in model.modules():
        if isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)


def build_backbone(config: BackboneConfig) -> Backbone:
    """The backbone that `config` describes, randomly initialised.

    Raises:
        UsageError: it asks for deformable blocks in a backbone that has none.
    """
    resnets: dict[str, Callable[..., TorchvisionResNet]] = {"resnet50": resnet50, "resnet101": resnet101}
    if config.name in resnets:
        return ResNet(resnets[config.name], config.deformable, config.deformable_interval)
    if any(config.deformable):
        raise UsageError(f"model.backbone.deformable = {config.deformable}; {config.name} allows only zeros")
    others: dict[str, Callable[[], Backbone]] = {
        "darknet53": Darknet53,
        "mobilenetv2": MobileNetV2,
        "tiny": Tiny,
    }
    return others[config.name]()
