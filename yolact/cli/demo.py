"""`yolact-demo`: the whole chain on a small made dataset, by the very commands that a user types."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from yolact_runtime.commandline import Parser, run
from yolact_runtime.errors import YolactError
from yolact_runtime.files import atomic_path, read_json

log = logging.getLogger(__name__)

MODULES = {
    "yolact-data": "yolact.cli.data",
    "yolact-train": "yolact.cli.train",
    "yolact-eval": "yolact.cli.evaluate",
    "yolact-export": "yolact_export.cli",
    "yolact-infer": "yolact_runtime.cli",
    "yolact-bench": "yolact_bench.cli",
}
OVERLAYS = 6
LOSS_TERMS = ("total", "box", "cls", "mask", "semantic")
COLOURS = ("#1f2937", "#2563eb", "#dc2626", "#059669", "#d97706")


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(
        prog="yolact-demo",
        description="Make a dataset, train, evaluate, export, verify, infer, measure; then read report.html.",
    )
    parser.add_argument("--output", type=Path, default=Path("results/demo"), help="folder for everything")
    parser.add_argument("--train-images", type=int, default=1600, help="made images to train on")
    parser.add_argument("--val-images", type=int, default=80, help="made images to evaluate on")
    parser.add_argument("--iterations", type=int, help="of training; the configuration's if not given")
    parser.add_argument("--seed", type=int, default=0, help="of the dataset and the training")
    return parser


@dataclass
class Demo:
    """What has been run so far.

    Attributes:
        folder: Where everything goes.
        steps: Command line and seconds of each step.
    """

    folder: Path
    steps: list[tuple[str, float]] = field(default_factory=list)

    def run(self, *words: str | Path) -> None:
        """Show a command, run it and time it.

        Raises:
            YolactError: it failed.
        """
        name, *arguments = [str(word) for word in words]
        line = " ".join([name, *arguments])
        log.info("$ %s", line)
        start = time.perf_counter()
        code = subprocess.run([sys.executable, "-m", MODULES[name], *arguments], check=False).returncode
        if code:
            raise YolactError(f"{name} failed with exit code {code}; its own words are above")
        self.steps.append((line, time.perf_counter() - start))


def command(args: argparse.Namespace) -> None:
    """Run the command."""
    folder = args.output
    demo = Demo(folder)
    seed = str(args.seed)
    data, weights = folder / "shapes", folder / "weights"
    held_out = data / "val", data / "annotations" / "instances_val.json"
    model, overlays, found = folder / "yolact_tiny.onnx", folder / "overlays", folder / "mask_detections.json"

    demo.run(
        "yolact-data", "shapes", data, "--train", str(args.train_images), "--val", str(args.val_images),
        "--seed", seed,
    )  # fmt: skip
    iterations = ["--iterations", str(args.iterations)] if args.iterations else []
    demo.run(
        "yolact-train", "--config", "yolact_tiny", "--dataset", data, "--save-folder", weights,
        "--seed", seed, *iterations,
    )  # fmt: skip
    checkpoint = max(weights.glob("yolact_tiny_*.pth"), key=lambda path: path.stat().st_mtime)
    images = "--images", held_out[0], "--annotations", held_out[1]
    demo.run("yolact-eval", "--engine", checkpoint, *images, "--json", folder / "ap_pytorch.json")
    demo.run(
        "yolact-export", "--weights", checkpoint, "--to", "onnx", "--output", model, "--max-batch", "8",
        "--verify", held_out[0],
    )  # fmt: skip
    demo.run("yolact-eval", "--engine", model, *images, "--json", folder / "ap_onnx.json")
    demo.run(
        "yolact-infer", "--engine", model, held_out[0], "--annotations", held_out[1],
        "--output", overlays, "--json", found, "--score-threshold", "0.3",
    )  # fmt: skip
    demo.run(
        "yolact-bench", "--engine", model, "--engine", checkpoint, "--images", held_out[0], "--seconds", "2",
        "--no-cold", "--json", folder / "bench.json", "--report", folder / "bench.html",
    )  # fmt: skip
    page = write_report(demo, weights / "yolact_tiny.jsonl", overlays, found)
    mask_ap = read_json(folder / "ap_onnx.json")["mask"]["ap"]
    seconds = sum(time for _, time in demo.steps)
    log.info("mask AP on held-out images: %.3f; %.0f s in all; open %s", mask_ap, seconds, page)


def write_report(demo: Demo, journal: Path, overlays: Path, found: Path) -> Path:
    """Write the one-page summary and return its path."""
    # Only the demo needs a template engine.
    from jinja2 import Environment

    engines = {
        "PyTorch": read_json(demo.folder / "ap_pytorch.json"),
        "ONNX Runtime": read_json(demo.folder / "ap_onnx.json"),
    }
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    pictures = sorted(overlays.iterdir())[:OVERLAYS]
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        resources.files("yolact").joinpath("assets/demo.html.j2").read_text("utf-8")
    )
    page = demo.folder / "report.html"
    html = template.render(
        curves=loss_curves(records),
        iterations=sum("total" in record for record in records),
        engines=engines,
        pictures=[b64encode(path.read_bytes()).decode("ascii") for path in pictures],
        detections=len(read_json(found)),
        steps=demo.steps,
        bench=read_json(demo.folder / "bench.json"),
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        versions={"Python": platform.python_version()}
        | {name: version(name) for name in ("yolact", "torch", "onnx", "numpy")},
    )
    with atomic_path(page) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return page


def loss_curves(
    records: Sequence[dict[str, Any]], width: int = 640, height: int = 240
) -> list[dict[str, str]]:
    """Smoothed loss terms as SVG polylines on a logarithmic scale, `width` x `height` in size."""
    import numpy as np

    rows = [record for record in records if record.get("total") is not None]
    if len(rows) < 2:
        return []
    values = np.array([[row[name] for name in LOSS_TERMS] for row in rows])  # (n, terms)
    window = max(1, len(rows) // 40)
    kernel = np.ones(window) / window
    smooth = np.stack([np.convolve(column, kernel, "valid") for column in values.T], axis=1)
    logs = np.log10(np.maximum(smooth, 1e-3))
    low, high = logs.min(), max(logs.max(), logs.min() + 1e-6)
    x = np.linspace(0, width, len(logs))
    y = height * (high - logs) / (high - low)  # (n, terms)
    return [
        {
            "name": name,
            "colour": COLOURS[i],
            "last": f"{smooth[-1, i]:.3f}",
            "points": " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y[:, i], strict=True)),
        }
        for i, name in enumerate(LOSS_TERMS)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `yolact-demo`."""
    return run(command, build_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
