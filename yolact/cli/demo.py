"""`yolact-demo`: from synthetic images to a deployed model, by the very commands that a user types."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact_runtime.child import module_command
from yolact_runtime.commandline import Parser, print_line, run
from yolact_runtime.engines.cpu import cpu_flags
from yolact_runtime.errors import YolactError, plain_value
from yolact_runtime.files import atomic_path, read_json
from yolact_runtime.outputs import check_outputs
from yolact_runtime.packages import require

if TYPE_CHECKING:
    from rich.console import Console

MODULES = {
    "yolact-data": "yolact.cli.data",
    "yolact-train": "yolact.cli.train",
    "yolact-eval": "yolact.cli.evaluate",
    "yolact-export": "yolact_export.cli",
    "yolact-infer": "yolact_runtime.cli",
    "yolact-bench": "yolact_bench.cli",
}
STAGES = 6
PICTURES, ENLARGED, PICTURE_SCORE = 6, 2, 0.5
OUTPUT_SHOWN = 20
# Each readable on white and on black; `currentColor` is the page's text colour.
LOSS_COLOURS = {
    "total": "currentColor",
    "box": "#3b82f6",
    "cls": "#ef4444",
    "mask": "#10b981",
    "semantic": "#d97706",
}


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(
        prog="yolact-demo",
        description="Make a synthetic dataset, train, export, verify, evaluate, infer and measure; then read"
        " report.html.",
    )
    parser.add_argument("--output", type=Path, default=Path("results/demo"), help="folder for everything")
    parser.add_argument("--train-images", type=int, default=1000, help="synthetic images to train on")
    parser.add_argument("--val-images", type=int, default=80, help="synthetic images to evaluate on")
    parser.add_argument("--iterations", type=int, help="of training; the configuration's if not given")
    parser.add_argument("--seed", type=int, default=0, help="of the dataset and the training")
    return parser


@dataclass
class Demo:
    """The stages that have run.

    Attributes:
        folder: Output of the demo; `demo.log` in it has the output of all commands.
        console: Where to report progress.
        commands: Command line and seconds of each stage.
    """

    folder: Path
    console: Console
    commands: list[tuple[str, float]] = field(default_factory=list)

    def run(self, title: str, *words: str | Path) -> None:
        """Run the command of a stage, and report in one line how long it took.

        Raises:
            YolactError: the command failed.
        """
        name, *arguments = [str(word) for word in words]
        line = shlex.join([name, *arguments])
        journal = self.folder / "demo.log"
        start = time.perf_counter()
        stage = f"[{len(self.commands) + 1}/{STAGES}] {title:<32}"
        with self.console.status(stage), journal.open("ab") as file:
            file.write(f"$ {line}\n".encode(errors="surrogateescape"))
            file.flush()
            position = file.tell()
            done = subprocess.run(
                module_command(MODULES[name], *arguments), stdout=file, stderr=file, check=False
            )
        if done.returncode:
            output = journal.read_bytes()[position:].decode(errors="replace").splitlines()[-OUTPUT_SHOWN:]
            for line in output:
                print_line(line, sys.stderr)
            raise YolactError(
                f"{name} failed with exit code {done.returncode}; see its output above, or {journal}"
            )
        seconds = time.perf_counter() - start
        self.commands.append((line, seconds))
        if not self.console.quiet:
            print_line(f"{stage} {seconds:4.0f} s", sys.stdout)


def command(args: argparse.Namespace) -> None:
    """Run the command."""
    from rich.console import Console

    # All that its commands need, before the first of them works.
    needed = "torch", "torchvision", "onnx", "onnxscript", "psutil", "scipy", "matplotlib", "jinja2"
    require("yolact-demo", "train", *needed)
    for name in needed:
        importlib.import_module(name)  # one that does not load is found now, not after the training
    folder = args.output
    check_outputs([], [], [("--output", folder)])
    with atomic_path(folder / "demo.log"):
        pass  # begins empty
    demo = Demo(folder, Console(quiet=args.quiet))
    seed = "--seed", str(args.seed)
    data, weights, model = folder / "shapes", folder / "weights", folder / "yolact_tiny.onnx"
    images, annotations = data / "val", data / "annotations" / "instances_val.json"
    held_out = "--images", images, "--annotations", annotations

    counts = "--train", str(args.train_images), "--val", str(args.val_images)
    demo.run("make synthetic images", "yolact-data", "shapes", data, *counts, *seed)
    options = ["--iterations", str(args.iterations)] if args.iterations else []
    if cpu_flags() & {"avx512_bf16", "amx_bf16"}:
        # A second thread gains a sixth, and loses far more where other programs run.
        options += ["--amp", "bf16", "--threads", "1"]
    demo.run(
        "train", "yolact-train", "--config", "yolact_tiny", "--dataset", data, "--save-folder", weights,
        *seed, *options,
    )  # fmt: skip
    checkpoint = max(weights.glob("yolact_tiny_*.pth"), key=lambda path: path.stat().st_mtime)
    demo.run(
        "export to ONNX and verify", "yolact-export", "--weights", checkpoint, "--to", "onnx",
        "--output", model, "--max-batch", "8", "--verify", images,
    )  # fmt: skip
    demo.run("evaluate", "yolact-eval", "--engine", model, *held_out, "--json", folder / "ap_onnx.json")
    demo.run(
        "find instances, draw overlays", "yolact-infer", "--engine", model, images,
        "--annotations", annotations, "--output", folder / "overlays",
        "--json", folder / "mask_detections.json", "--score-threshold", "0.3",
    )  # fmt: skip
    demo.run(
        "measure speed", "yolact-bench", "--engine", model, "--engine", checkpoint, *held_out,
        "--seconds", "1", "--no-cold", "--json", folder / "bench.json", "--report", folder / "bench.html",
    )  # fmt: skip
    page = write_report(demo, weights / "yolact_tiny.jsonl", model, sorted(images.iterdir()))
    mask_ap = read_json(folder / "ap_onnx.json")["mask"]["ap"]
    seconds = sum(seconds for _, seconds in demo.commands)
    text = f"mask AP {mask_ap:.3f} on {args.val_images} held-out images, {seconds:.0f} s in all; open {page}"
    if not args.quiet:
        print_line(text, sys.stdout)


def write_report(demo: Demo, journal: Path, model: Path, images: Sequence[Path]) -> Path:
    """Write the one-page summary and return its path.

    Args:
        demo: All its commands have run.
        journal: Losses of the training, JSON Lines.
        model: ONNX file that finds the instances in the pictures.
        images: Held-out images; the first ones become the pictures.
    """
    # Only the demo needs a template engine.
    from jinja2 import Environment

    records = [json.loads(line) for line in journal.read_text().splitlines()]
    losses = [record for record in records if record.get("total") is not None]
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=plain_value)
    template = environment.from_string(
        resources.files("yolact").joinpath("assets/demo.html.j2").read_text("utf-8")
    )
    page = demo.folder / "report.html"
    html = template.render(
        metrics=read_json(demo.folder / "ap_onnx.json"),
        chart=loss_chart(losses),
        iterations=len(losses),
        pictures=[b64encode(picture).decode("ascii") for picture in draw_pictures(model, images)],
        detections=len(read_json(demo.folder / "mask_detections.json")),
        commands=demo.commands,
        bench=read_json(demo.folder / "bench.json"),
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        versions={"Python": platform.python_version()}
        | {name: version(name) for name in ("yolact", "torch", "onnx", "numpy")},
    )
    with atomic_path(page) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return page


def draw_pictures(model: Path, images: Sequence[Path]) -> list[bytes]:
    """The first images with what `model` finds in them, enlarged so that labels are readable, as JPEG."""
    import cv2

    from yolact_runtime import load_engine
    from yolact_runtime.sources.images import read_image

    pictures = []
    with load_engine(model) as engine:
        for path in images[:PICTURES]:
            image = read_image(path)
            result = engine.predict([image], score_threshold=PICTURE_SCORE)[0]
            large = cv2.resize(image, None, fx=ENLARGED, fy=ENLARGED, interpolation=cv2.INTER_CUBIC)
            # Boxes and prototypes are relative to the image, so the masks follow at the larger size.
            drawn = replace(result, height=large.shape[0], width=large.shape[1]).draw(large)
            pictures.append(cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
    return pictures


def loss_chart(records: Sequence[dict[str, Any]]) -> str:
    """Smoothed loss terms over the iterations as SVG, in `LOSS_COLOURS`; "" for fewer than two records."""
    if len(records) < 2:
        return ""
    import matplotlib
    import numpy as np
    from matplotlib.figure import Figure

    window = max(1, len(records) // 40)
    kernel = np.ones(window) / window
    iterations = [record["iteration"] for record in records][window - 1 :]
    # Matplotlib has no word for the text colour of the page: one that nothing else has takes its place.
    text = "#010203"
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "font.size": 11,
        "font.family": "sans-serif",
        "legend.frameon": False,
    }
    style |= dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), text
    )
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(8, 3.6), layout="constrained")
        axes = figure.subplots()
        for name, colour in LOSS_COLOURS.items():
            values = np.convolve([record[name] for record in records], kernel, "valid")
            line = colour.replace("currentColor", text)
            axes.plot(iterations, values, color=line, label=f"{name} {values[-1]:.2f}", linewidth=1.8)
        axes.set(xlabel="iteration", ylabel="loss (smoothed)", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(color="#888888", alpha=0.3, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=len(LOSS_COLOURS))
        output = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(output, format="svg", transparent=True, metadata=metadata)
    svg = output.getvalue()
    return svg[svg.index("<svg") :].replace(text, "currentColor")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `yolact-demo`."""
    return run(command, build_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
