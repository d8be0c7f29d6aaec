"""`yolact-bench data`: how fast one process makes training samples, stage by stage.

One thread, as in a worker of a DataLoader. Every image is decoded and augmented anew. Times are wall-clock
and, for machines shared with others, CPU time. `--torchvision` runs the same recipe through
`torchvision.transforms.v2` on tv_tensors, interleaved with ours.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact_bench.options import check_number
from yolact_runtime.commandline import Table, print_line, printing_beside
from yolact_runtime.errors import counted
from yolact_runtime.files import write_json
from yolact_runtime.metadata import size_text
from yolact_runtime.packages import require

if TYPE_CHECKING:
    from yolact.data.coco import CocoDataset, Record

RATE = 200  # images/s that fast GPUs train on

STAGES = ("decode", "draw", "photometric", "geometry", "normalise", "masks")


class Clock:
    """Seconds of wall-clock and CPU time by name."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time of a block to `name`."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall[name] += time.perf_counter() - wall
        self.cpu[name] += time.process_time() - cpu


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `yolact-bench data`."""
    parser.add_argument("--dataset", required=True, help="a folder in COCO layout or a .yaml")
    parser.add_argument("--config", default="yolact_base", help="configuration to make samples for")
    parser.add_argument("--rounds", type=int, default=3, help="passes over the dataset")
    text = "time the loader with so many processes, too; several values are allowed"
    parser.add_argument("--workers", type=int, nargs="+", default=[], metavar="N", help=text)
    parser.add_argument("--batch-size", type=int, default=8, help="images in a batch of the loader")
    parser.add_argument("--torchvision", action="store_true", help="torchvision.transforms.v2, interleaved")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")


def command(args: argparse.Namespace) -> None:
    """Time the making of samples."""
    require("yolact-bench data", "train", "torch")
    check_number("--rounds", args.rounds, 1, "runs")
    for workers in args.workers:
        check_number("--workers", workers, 1, "workers")
    check_number("--batch-size", args.batch_size, 1, "batch")
    # The libraries read this when they are first imported.
    os.environ["OMP_NUM_THREADS"] = "1"
    import cv2
    import torch

    from yolact.data.annotations import read_classes
    from yolact.data.coco import CocoDataset
    from yolact.data.layout import resolve_dataset
    from yolact.data.workers import keep_freed_memory
    from yolact.registry import get_config

    keep_freed_memory()  # as in a worker
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    config, folders = get_config(args.config), resolve_dataset(args.dataset)
    files = folders.train_images, folders.train_annotations
    augment = replace(config.augment, enabled=True)
    dataset = CocoDataset(*files, config.model, read_classes(folders.train_annotations), augment)
    variants: dict[str, Callable[[int, int, Clock], object]] = {
        "samples": lambda epoch, index, clock: dataset[epoch, index],
        "stages": lambda epoch, index, clock: _stages(dataset, epoch, index, clock),
    }
    if args.torchvision:
        peer = torchvision_recipe(dataset)
        variants["torchvision"] = lambda epoch, index, clock: peer(dataset.records[index])
    clock = Clock()
    # The first round fills the caches of the file system and of the libraries.
    for epoch in range(args.rounds + 1):
        if epoch == 1:
            clock = Clock()
        for name, make in variants.items():
            with clock(name):
                for index in range(len(dataset)):
                    make(epoch, index, clock)
    count = args.rounds * len(dataset)
    figures = {
        name: {"images_per_s": count / clock.wall[name], "images_per_cpu_s": count / clock.cpu[name]}
        for name in (*STAGES, *variants)
    }
    instances = sum(len(record.annotations) for record in dataset.records) / len(dataset)
    title = (
        f"{counted(len(dataset), 'image')}, {instances:.1f} instances each,"
        f" input {size_text(config.model.input_size)}, {args.rounds} rounds, one process, one thread"
    )
    rows = []
    for name in (*STAGES, *(name for name in variants if name != "stages")):
        whole, cpu = figures[name].values()
        label = "whole sample" if name == "samples" else name
        rows.append([label, f"{whole:.1f}", f"{1000 / whole:.2f}", f"{1000 / cpu:.2f}"])
    batch_size = min(args.batch_size, len(dataset))
    loaders = {n: _time_loader(dataset, n, batch_size, count) for n in args.workers}
    with printing_beside(args.json):
        Table(title, ("", "images/s", "ms/image", "CPU ms"), rows).show()
        for workers, loader in loaders.items():
            rate, cpu = loader["images_per_s"], loader["cpu_ms"]
            text = (
                f"loader, {counted(workers, 'worker')}, batch {batch_size}: {rate:.1f} images/s,"
                f" {cpu:.2f} ms of CPU time an image; {RATE} images/s need {RATE * cpu / 1000:.1f} cores"
            )
            print_line(text, sys.stdout)
            figures[f"loader_{workers}"] = loader
    if args.json:
        write_json(args.json, figures, indent=2)


def _time_loader(dataset: CocoDataset, workers: int, batch_size: int, images: int) -> dict[str, float]:
    """Images per second of the loader of `yolact-train`, and CPU milliseconds an image of all processes."""
    import torch

    from yolact.config import TrainConfig
    from yolact.train.loader import iterations
    from yolact.train.sampler import EpochBatches, SharedBatches

    steps = max(2 * workers, images // batch_size)
    settings = TrainConfig(batch_size=batch_size, workers=workers)
    shared = SharedBatches(EpochBatches(len(dataset), batch_size, 0, 0, steps), 1)
    before = _cpu_seconds()
    loaded = iterations(dataset, shared, settings, torch.device("cpu"))
    # The workers start together, so their first batches are ready together: the clock starts after these.
    ends = [time.perf_counter() for _ in loaded][workers - 1 :]
    return {
        "images_per_s": (steps - workers) * batch_size / (ends[-1] - ends[0]),
        # The workers have ended, so their CPU time is known.
        "cpu_ms": 1000 * (_cpu_seconds() - before) / (steps * batch_size),
    }


def _cpu_seconds() -> float:
    """CPU time of this process and of those that it started and that have ended."""
    return sum(os.times()[:4])


def _stages(dataset: CocoDataset, epoch: int, index: int, clock: Clock) -> None:
    """Do the work of `dataset[epoch, index]` stage by stage."""
    augmenter, record = dataset.augmenter, dataset.records[index]
    assert augmenter is not None
    with clock("decode"):
        image = dataset.read_image(record)
    height, width = image.shape[:2]
    with clock("draw"):
        boxes, crowd = dataset.boxes(record, height, width)
        photometric, geometry = augmenter.draw(epoch, index, boxes, crowd, height, width)
    with clock("geometry"):
        part, inside = geometry.visible_pixels(image, augmenter.fill)
    with clock("photometric"):
        photometric(part[inside])
    with clock("geometry"):
        resized = geometry.resize(part, (height, width), dataset.model.input_size, augmenter.fill)
        pixels = geometry.turn_pixels(resized)
    with clock("normalise"):
        augmenter.normalise(pixels)
    with clock("masks"):
        dataset.target(record, boxes, crowd, geometry, height, width)


def torchvision_recipe(dataset: CocoDataset) -> Callable[[Record], Any]:
    """A function that makes the sample of a record, with both mask targets, by the transforms of torchvision.

    This is the default recipe on masks at full size. It clips colours after each step, and its crops do reach
    their IoU: close to the original, not equal.
    """
    import numpy as np
    import torch
    import torch.nn.functional as F
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    from yolact.data.segmentation import to_mask
    from yolact.model.priors import prototype_size, pyramid_levels

    model, recipe = dataset.model, dataset.augmenter.config  # type: ignore[union-attr]
    mean, std, size = model.mean[::-1], model.std[::-1], model.input_size
    prototypes = prototype_size(size, model.proto_scale)
    fill = {tv_tensors.Image: [round(value) for value in mean], "others": 0}
    transform = v2.Compose(
        [
            v2.RandomPhotometricDistort(
                brightness=(1 - recipe.brightness / 255, 1 + recipe.brightness / 255),
                contrast=recipe.contrast,
                saturation=recipe.saturation,
                hue=(-recipe.hue / 360, recipe.hue / 360),
            ),
            v2.RandomZoomOut(fill=fill, side_range=(1, recipe.expand_ratio)),
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(),
            v2.Resize(model.input_shape, antialias=False),
            v2.SanitizeBoundingBoxes(),
            v2.ToDtype(torch.float32),
            v2.Normalize(list(mean), list(std)),
        ]
    )

    def make(record: Record) -> Any:
        """The dictionary that the transforms return, and the mask targets; None without instances."""
        image = dataset.read_image(record)
        height, width = image.shape[:2]
        boxes, crowd = dataset.boxes(record, height, width)
        single = np.flatnonzero(~crowd & (boxes[:, 2:] > boxes[:, :2]).all(1))
        if len(single) == 0:
            return None
        masks = [to_mask(record.annotations[i]["segmentation"], height, width) for i in single]
        corners = torch.from_numpy(boxes[single])
        sample = transform(
            {
                "image": tv_tensors.Image(torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)),
                "boxes": tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(height, width)),
                "masks": tv_tensors.Mask(torch.from_numpy(np.stack(masks))),
                "labels": torch.from_numpy(single),
            }
        )
        full = sample["masks"].as_subclass(torch.Tensor).float()[None]  # (1, G, H, W)
        for name, shape in (("prototype", prototypes), ("semantic", pyramid_levels(size)[0])):
            if full.shape[1]:
                sample[name] = F.interpolate(full, shape, mode="bilinear") > 0.5
        return sample

    return make
