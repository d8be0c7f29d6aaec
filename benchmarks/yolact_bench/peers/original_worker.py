"""Runs a checkout of github.com/dbolya/yolact; a script with its own process.

    original_worker.py CHECKOUT train CONFIG CASE.npz WEIGHTS.pth DEVICE BATCH
    original_worker.py CHECKOUT infer SETTINGS

`train` runs a training step on the case for each line it reads, and writes a line with the loss. `infer`
takes JSON {"config", "weights", "device", "threads", "input_size", "categories": id of each class}, then
reads requests, and answers each with a line of JSON:

    {"prepare": [paths]}            decode and resize them for `network_only`       {}
    {"network_only": true}          network and detection on the next of these      {}
    {"run": path}                   file to RLE masks    {"seconds": {stage: s}, "cpu_seconds", "detections"}
    {"run": path, "image_id": n}    the same, with {"results": COCO entries}

Its modules are called `yolact`, `data` and `utils`, so none of ours may be imported here.
"""

from __future__ import annotations

import sys

# The folder of this script holds modules that would hide others of the same name.
sys.path[0] = sys.argv[1] if __name__ == "__main__" else sys.path[0]

import functools  # noqa: E402
import itertools  # noqa: E402
import json  # noqa: E402
import time  # noqa: E402
import types  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from importlib import import_module  # noqa: E402
from importlib.util import find_spec  # noqa: E402
from typing import Any, TextIO  # noqa: E402

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402


def add_fallbacks() -> None:
    """Replace what the checkout imports or calls, but does not need here."""
    if not torch.cuda.is_available():
        torch.cuda.current_device = lambda: 0
        torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    absent = [("pyximport", "install"), ("utils.cython_nms", "nms")]
    if find_spec("matplotlib") is None:
        absent += [("matplotlib", "pyplot"), ("matplotlib.pyplot", "show")]
    for name, member in absent:
        module = types.ModuleType(name)
        setattr(module, member, lambda *args, **kwargs: None)
        sys.modules[name] = module
    # Checkpoints hold tensors only; any other content is refused.
    torch.load = functools.partial(torch.load, map_location="cpu", weights_only=True)


def train(arguments: list[str], answers: TextIO) -> None:
    """Run a step for each line of the input."""
    config, case_file, weights, device, batch = arguments
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
        losses = criterion(net, net(images), list(targets), list(masks), crowds)  # it changes its arguments
        loss = sum(value.mean() for value in losses.values())
        loss.backward()
        if torch.isfinite(loss).item():
            optimizer.step()
        print(loss.item(), file=answers, flush=True)


class Inference:
    """The original's evaluation of one image after another, with a time for each stage.

    Args:
        settings: As given to `infer`.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        torch.set_num_threads(settings["threads"])
        cv2.setNumThreads(settings["threads"])
        config = import_module("data.config")
        config.set_cfg(settings["config"])
        config.cfg.num_classes = len(settings["categories"]) + 1
        config.cfg.max_size = settings["input_size"]
        config.cfg.mask_proto_debug = False
        self.device = torch.device(settings["device"])
        self.evaluation = import_module("eval")
        self.evaluation.coco_cats.update(enumerate(settings["categories"]))
        self.transform = self.evaluation.FastBaseTransform()
        net = self.evaluation.Yolact()
        net.load_weights(settings["weights"])
        net.eval()
        net.to(self.device)
        net.detect.use_fast_nms = True  # what its eval.py does by default
        detect = net.detect

        def watched(*arguments: Any) -> Any:
            self.mark("network")
            found = detect(*arguments)
            self.mark("detect")
            return found

        net.detect = watched
        self.net = net
        self.times: dict[str, float] = {}
        self.last = 0.0
        self.prepared: Iterator[torch.Tensor] = iter(())

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one request."""
        if "prepare" in request:
            batches = [self.transform(self.frame(_read(path))) for path in request["prepare"]]
            self.prepared = itertools.cycle(batches)
            return {}
        if "network_only" in request:
            self.net(next(self.prepared))
            self.mark("network")
            return {}
        start = time.process_time()
        detections = self.run(request["run"], request.get("image_id", 0))
        cpu_seconds = time.process_time() - start
        found = {"seconds": self.times, "cpu_seconds": cpu_seconds, "detections": len(detections.mask_data)}
        if "image_id" in request:
            pairs = zip(detections.bbox_data, detections.mask_data, strict=True)
            found["results"] = [{**box, **mask} for box, mask in pairs]
        return found

    def frame(self, image: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(image).to(self.device).float().unsqueeze(0)  # (1, H, W, 3) BGR

    def run(self, path: str, image_id: int) -> Any:
        """Do the work of `evalimage` in its eval.py, and then of its COCO results."""
        self.times, self.last = {}, time.perf_counter()
        image = _read(path)
        self.mark("decode")
        batch = self.transform(self.frame(image))
        self.mark("preprocess")
        height, width = image.shape[:2]
        classes, scores, boxes, masks = self.evaluation.postprocess(self.net(batch), width, height)
        self.mark("masks")
        detections = self.evaluation.Detections()
        if len(classes):
            box_scores, mask_scores = scores if isinstance(scores, list) else (scores, scores)
            lists = [x.cpu().numpy().astype(float).tolist() for x in (box_scores, mask_scores)]
            boxes, masks, classes = boxes.cpu().numpy(), masks.cpu().numpy(), classes.cpu().numpy().tolist()
            for label, box, mask, box_score, mask_score in zip(classes, boxes, masks, *lists, strict=True):
                if (box[3] - box[1]) * (box[2] - box[0]) > 0:
                    detections.add_bbox(image_id, label, box, box_score)
                    detections.add_mask(image_id, label, mask, mask_score)
        self.mark("rle")
        return detections

    def mark(self, stage: str) -> None:
        """Note that a stage ends now."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.times[stage] = now - self.last
        self.last = now


def _read(path: str) -> np.ndarray:
    """(H, W, 3) uint8 BGR."""
    image = cv2.imread(path)
    if image is None:
        raise SystemExit(f"cannot read image {path}")
    return image


@torch.no_grad()
def infer(arguments: list[str], answers: TextIO) -> None:
    """Answer requests until the input ends."""
    inference = Inference(json.loads(arguments[0]))
    for line in sys.stdin:
        print(json.dumps(inference.answer(json.loads(line))), file=answers, flush=True)


def main() -> None:
    """Run the task of the command line until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # the checkout prints, too
    _, task, *arguments = sys.argv[1:]
    add_fallbacks()
    {"train": train, "infer": infer}[task](arguments, answers)


if __name__ == "__main__":
    main()
