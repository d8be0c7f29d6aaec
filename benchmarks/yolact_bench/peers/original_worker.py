"""Runs a checkout of github.com/dbolya/yolact; a script with its own process.

    original_worker.py CHECKOUT TASK SETTINGS

SETTINGS is JSON {"config", "weights", "device", "threads", "input_size", "classes"}, with {"freeze_bn",
"case": the batch} for the task `train` and {"categories": id of each class} for `infer`. Each line of the
input is a request and is answered with a line of JSON. `train` answers {} with
{"loss", "cpu_seconds"} of one step; those of
`infer` are

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
from typing import Any  # noqa: E402

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


def configure(settings: dict[str, Any]) -> Any:
    """Set the threads of this process and the configuration of the checkout, and return the latter."""
    torch.set_num_threads(settings["threads"])
    cv2.setNumThreads(settings["threads"])
    config = import_module("data.config")
    config.set_cfg(settings["config"])
    config.cfg.num_classes = settings["classes"] + 1
    config.cfg.max_size = settings["input_size"]
    return config.cfg


class Training:
    """Training steps of the original on one batch."""

    def __init__(self, settings: dict[str, Any]) -> None:
        cfg = configure(settings)
        cfg.freeze_bn = settings["freeze_bn"]
        self.net: Any = import_module("yolact").Yolact()
        self.net.train()
        self.net.load_weights(settings["weights"])
        self.net.to(settings["device"])
        self.criterion = import_module("layers.modules").MultiBoxLoss(
            cfg.num_classes, cfg.positive_iou_threshold, cfg.negative_iou_threshold, cfg.ohem_negpos_ratio
        )
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), lr=0.0, momentum=cfg.momentum, weight_decay=cfg.decay
        )
        images, targets, masks, self.crowds = torch.load(settings["case"])
        self.images = images.to(settings["device"])
        self.targets, self.masks = ([x.to(settings["device"]) for x in many] for many in (targets, masks))

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run one step."""
        torch.manual_seed(0)  # which masks are sampled
        start = time.process_time()
        self.optimizer.zero_grad()
        arguments = list(self.targets), list(self.masks), self.crowds  # it changes them
        losses = self.criterion(self.net, self.net(self.images), *arguments)
        loss = sum(value.mean() for value in losses.values())
        loss.backward()
        if torch.isfinite(loss).item():
            self.optimizer.step()
        return {"loss": loss.item(), "cpu_seconds": time.process_time() - start}


class Inference:
    """The original's evaluation of one image after another, with a time for each stage."""

    def __init__(self, settings: dict[str, Any]) -> None:
        configure(settings).mask_proto_debug = False
        self.device = torch.device(settings["device"])
        self.evaluation = import_module("eval")
        self.evaluation.coco_cats.update(enumerate(settings["categories"]))
        self.transform = self.evaluation.FastBaseTransform()
        self.net = self.evaluation.Yolact()
        self.net.load_weights(settings["weights"])
        self.net.eval()
        self.net.to(self.device)
        detect = self.net.detect
        detect.use_fast_nms = True  # what its eval.py does by default

        def timed(*arguments: Any) -> Any:
            self.mark("network")
            found = detect(*arguments)
            self.mark("detect")
            return found

        self.net.detect = timed
        self.times: dict[str, float] = {}
        self.last = 0.0
        self.prepared: Iterator[torch.Tensor] = iter(())

    @torch.no_grad()
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


def main() -> None:
    """Answer requests until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # the checkout prints, too
    add_fallbacks()
    task: Any = {"train": Training, "infer": Inference}[sys.argv[2]](json.loads(sys.argv[3]))
    for line in sys.stdin:
        print(json.dumps(task.answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
