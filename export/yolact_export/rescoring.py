"""The mask IoU net in a form that the runtime evaluates itself."""

from __future__ import annotations

import base64
import io

import numpy as np
from torch import nn

from yolact.model import Yolact


def pack_mask_iou_net(model: Yolact) -> str:
    """The weights as base64 of an .npz with weight0, bias0, weight1, ... (empty without re-scoring).

    With raw heads as outputs, detection happens outside the graph, and so must re-scoring.
    """
    if not model.config.model.mask_iou:
        return ""
    convs = [module for module in model.maskiou_net.modules() if isinstance(module, nn.Conv2d)]
    arrays: dict[str, np.ndarray] = {}
    for index, conv in enumerate(convs):
        assert conv.bias is not None
        arrays[f"weight{index}"] = conv.weight.detach().cpu().numpy()
        arrays[f"bias{index}"] = conv.bias.detach().cpu().numpy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return base64.b64encode(buffer.getvalue()).decode("ascii")
