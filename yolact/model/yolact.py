"""The network."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from yolact.config import Config
from yolact.model.backbone import build_backbone
from yolact.model.fpn import FPN
from yolact.model.head import Head, MaskIoUNet, build_protonet
from yolact.model.priors import model_priors


class YolactOutput(NamedTuple):
    """Raw outputs for N images and P priors.

    Attributes:
        loc: (N, P, 4) box regression.
        logits: (N, P, C+1) class scores before softmax; index 0 is background.
        coefficients: (N, P, M) mask coefficients in -1..1.
        prototypes: (N, Hp, Wp, M), non-negative.
    """

    loc: Tensor
    logits: Tensor
    coefficients: Tensor
    prototypes: Tensor


class Yolact(nn.Module):
    """YOLACT and YOLACT++ (Bolya et al. 2019, 2020).

    Module names follow the keys of the published checkpoints.

    Attributes:
        config: What the network was built from.
        priors: (P, 4) float32 prior boxes: centre x, centre y, width, height relative to the input.
    """

    priors: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        model = config.model
        features = model.fpn_features
        self.backbone = build_backbone(model.backbone)
        self.fpn = FPN(self.backbone.channels, features)
        self.proto_net = build_protonet(features, model.num_prototypes, round(8 * model.proto_scale))
        per_cell = len(model.prior_aspect_ratios) * len(model.prior_scales[0])
        self.prediction_layers = nn.ModuleList(
            [Head(features, per_cell, config.num_classes, model.num_prototypes)]
        )
        self.semantic_seg_conv = nn.Conv2d(features, config.num_classes, 1)
        if model.mask_iou:
            self.maskiou_net = MaskIoUNet(config.num_classes)
        self.register_buffer("priors", model_priors(model), persistent=False)
        self._init_weights()

    def forward(self, x: Tensor) -> YolactOutput:
        """Raw outputs for images x (N, 3, H, W) float, RGB, normalised as `config.model` says."""
        return self._heads(self.fpn(self.backbone(x)))

    def forward_train(self, x: Tensor) -> tuple[YolactOutput, Tensor]:
        """`forward`, and the semantic segmentation logits (N, C, H3, W3) that only the loss uses."""
        pyramid = self.fpn(self.backbone(x))
        return self._heads(pyramid), self.semantic_seg_conv(pyramid[0])

    def _heads(self, pyramid: list[Tensor]) -> YolactOutput:
        """P3..P7 to the raw outputs."""
        head = self.prediction_layers[0]
        loc, logits, coefficients = (
            torch.cat(levels, dim=1) for levels in zip(*map(head, pyramid), strict=True)
        )
        prototypes = self.proto_net(pyramid[0]).permute(0, 2, 3, 1)  # (N, Hp, Wp, M)
        return YolactOutput(loc, logits, coefficients, prototypes.contiguous())

    def _init_weights(self) -> None:
        """Xavier initialisation of every convolution outside the backbone."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and not name.startswith("backbone."):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def freeze_batch_norm(self) -> None:
        """Stop updating statistics and affine parameters of every batch norm.

        `train()` undoes this for the statistics: call it before.
        """
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
                module.requires_grad_(False)
