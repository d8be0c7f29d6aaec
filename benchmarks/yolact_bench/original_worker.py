"""Training steps of a checkout of github.com/dbolya/yolact, run as a script in a process of its own.

    original_worker.py CHECKOUT CONFIG CASE.npz WEIGHTS.pth DEVICE BATCH

Its modules are called `yolact`, `data` and `utils`, so nothing of ours may be imported beside them. For each
line read it makes a step on the case and writes the loss in a line.
"""

from __future__ import annotations

import sys
import types
from importlib import import_module
from typing import Any

import numpy as np
import torch


def stand_in() -> None:
    """What the checkout asks for when it is imported, and does not need for training."""
    if not torch.cuda.is_available():
        torch.cuda.current_device = lambda: 0
    for name, member in (("pyximport", "install"), ("utils.cython_nms", "nms")):
        module = types.ModuleType(name)
        setattr(module, member, lambda *args, **kwargs: None)
        sys.modules[name] = module


def main() -> None:
    """Serve steps until the input ends."""
    checkout, config, case_file, weights, device, batch = sys.argv[1:]
    answers, sys.stdout = sys.stdout, sys.stderr  # what the checkout prints is no answer
    sys.path[0] = checkout
    stand_in()
    case = np.load(case_file)
    settings = import_module("data.config")
    cfg = settings.cfg
    settings.set_cfg(config)
    cfg.num_classes = int(case["classes"]) + 1
    cfg.max_size = case["image0"].shape[-1]
    cfg.freeze_bn = bool(case["freeze"])
    net: Any = import_module("yolact").Yolact()
    net.train()
    net.load_weights(weights)
    net.to(device)
    criterion = import_module("layers.modules").MultiBoxLoss(
        cfg.num_classes, cfg.positive_iou_threshold, cfg.negative_iou_threshold, cfg.ohem_negpos_ratio
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0, momentum=cfg.momentum, weight_decay=cfg.decay)

    def tensors(name: str) -> list[torch.Tensor]:
        return [torch.from_numpy(case[f"{name}{index}"]).to(device) for index in range(int(batch))]

    images, targets, masks = torch.stack(tensors("image")), tensors("target"), tensors("mask")
    crowds = case["crowds"].tolist()
    for _ in sys.stdin:
        optimizer.zero_grad()
        losses = criterion(net, net(images), list(targets), list(masks), crowds)  # it changes its lists
        loss = sum(value.mean() for value in losses.values())
        loss.backward()
        if torch.isfinite(loss).item():
            optimizer.step()
        print(loss.item(), file=answers, flush=True)


if __name__ == "__main__":
    main()
