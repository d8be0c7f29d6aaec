"""Every command without the packages of the extras: it works, or ends in one line that names the extra."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from commands import COMMAND_LINES, COMMANDS
from fake_onnx import RUNTIME, runtime_arrays, write_onnx

from yolact.dataset_tools.synthetic import make_shapes_dataset
from yolact_runtime.packages import PACKAGES

OPTIONAL = sorted({name for name, (_, extras) in PACKAGES.items() if extras != ("",)} | {"faster_coco_eval"})
BLOCK = """
import os, sys
for name in os.environ["BLOCKED"].split(","):
    sys.modules[name] = None
"""
CALL = f"""{BLOCK}
import importlib
module, _, function = sys.argv.pop(1).partition(":")
sys.exit(getattr(importlib.import_module(module), function)())
"""
DATA = "--images shapes/val --annotations shapes/annotations/instances_val.json"
QUICK = "--engine heads.onnx --seconds 0.01 --no-cold"
# What each command line needs besides the base install: packages, and the extra to name without any of them.
LINES: dict[str, tuple[str, str]] = {
    "yolact-data check shapes/annotations/instances_val.json --images shapes/val": ("", ""),
    "yolact-data shapes made --train 1 --val 1": ("", ""),
    "yolact-data show shapes/annotations/instances_val.json --images shapes/val --output o": (
        "torch",
        "train",
    ),
    "yolact-data convert yolo yolo made.json": ("yaml", "train"),
    "yolact-data convert voc voc made.json": ("PIL", "train"),
    "yolact-train --config yolact_tiny --dataset shapes": ("torch torchvision", "train"),
    "yolact-train --config yolact_tiny --dataset data.yaml": ("torch yaml", "train"),
    "yolact-train --debug-batch w.pth": ("torch torchvision", "train"),
    "yolact-train --config yolact_tiny --dataset shapes --init-from w.safetensors": (
        "torch safetensors",
        "train",
    ),
    f"yolact-eval --engine heads.onnx {DATA}": ("", ""),
    f"yolact-eval --engine w.pth {DATA}": ("torch torchvision", "train"),
    f"yolact-eval --engine heads.onnx {DATA} --report page": ("jinja2 matplotlib", "bench"),
    "yolact-demo --output demo": (
        "torch torchvision onnx onnxscript psutil scipy jinja2 matplotlib",
        "train",
    ),
    "yolact-export --weights w.pth": ("torch onnx onnxscript", "train"),
    "yolact-export --weights heads.onnx --to trt": ("onnx", "rtx"),
    "yolact-export --weights heads.onnx --to trt --backend trt": ("onnx tensorrt", "trt"),
    "yolact-export --weights heads.onnx --to openvino --no-verify": ("onnx openvino", "train,openvino"),
    "yolact-export --weights heads.onnx --to triton": ("onnx tritonclient", "train,triton"),
    "yolact-export inspect heads.onnx": ("onnx", "train"),
    "yolact-export inspect w.pth": ("onnx torch", "train"),
    "yolact-infer --engine heads.onnx shapes/val --output o": ("", ""),
    "yolact-infer --engine w.pth shapes/val --output o": ("torch torchvision", "train"),
    "yolact-infer --engine w.safetensors shapes/val --output o": ("torch safetensors", "train"),
    "yolact-infer --engine heads.onnx --backend openvino shapes/val --output o": ("openvino", "openvino"),
    "yolact-infer --engine heads.onnx film.mp4 --output o": ("av", "video"),
    "yolact-infer --engine heads.onnx rtsp://localhost:1/x --output o": ("av", "video"),
    "yolact-infer --engine grpc://127.0.0.1:1/yolact shapes/val --output o": ("tritonclient", "triton"),
    "yolact-infer --engine heads.onnx shapes/val --output-parquet o --ray local": (
        "ray pyarrow fsspec",
        "ray",
    ),
    "yolact-infer --engine yolact_base shapes/val --output o": ("huggingface_hub", "train"),
    "yolact-infer merge part.parquet --table o.parquet": ("pyarrow", "table"),
    f"yolact-bench {QUICK}": ("psutil scipy", "bench"),
    f"yolact-bench {QUICK} {DATA}": ("psutil scipy", "bench"),
    f"yolact-bench {QUICK} --report page.html": ("psutil jinja2 matplotlib", "bench"),
    f"yolact-bench {QUICK} --roofline": ("psutil onnx sympy", "train"),
    "yolact-bench compare a.json a.json": ("psutil scipy", "bench"),
    "yolact-infer --engine heads.onnx shapes/val --track --output o": ("trackers supervision", "track"),
    "yolact-bench tracks --videos 1 --frames 2": ("psutil scipy trackers", "bench,track"),
    f"yolact-bench load --engine grpc://127.0.0.1:1/x {DATA.split(' --a')[0]}": ("psutil", "bench"),
    "yolact-doctor --only masks": ("", ""),
    "yolact-bench ray --workers 1": ("psutil ray pyarrow", "bench,ray"),
    "yolact-bench masks --repeats 1 --detections 2 --size 40x40": ("psutil", "bench"),
    f"yolact-bench peers --engine heads.onnx {DATA.split(' --a')[0]} --torchvision": ("psutil", "train"),
    "yolact-bench roofline --onnx heads.onnx": ("onnx sympy", "train"),
    "yolact-bench kernels": ("psutil", "train,trt"),
    "yolact-bench tables --list": ("psutil", "bench"),
    "yolact-bench training --dataset shapes": ("torch psutil", "train"),
    "yolact-bench data --dataset shapes": ("torch psutil", "train"),
}
PAIRS = [
    pytest.param(line, package, extra, marks=[] if "torch" in package[:6] else pytest.mark.slow)
    for line, (packages, extra) in LINES.items()
    for package in packages.split()
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with whatever the command lines name."""
    folder = tmp_path_factory.mktemp("files")
    make_shapes_dataset(folder / "shapes", 2, 2)
    metadata = replace(RUNTIME, class_names=("circle", "square", "triangle"), category_ids=(1, 4, 9))
    write_onnx(folder / "heads.onnx", runtime_arrays(), metadata)
    for name in ("w.pth", "w.safetensors", "film.mp4"):
        (folder / name).write_bytes(b"damaged")
    (folder / "data.yaml").write_text("name: x\n")
    (folder / "yolo" / "labels").mkdir(parents=True)
    (folder / "yolo" / "data.yaml").write_text("names: [a]\n")
    (folder / "yolo" / "labels" / "1.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    for name in ("SegmentationObject", "SegmentationClass", "JPEGImages"):
        (folder / "voc" / name).mkdir(parents=True)
        (folder / "voc" / name / "1.png").write_bytes((folder / "shapes/val/000001.png").read_bytes())
    (folder / "a.json").write_text(json.dumps({}))
    return folder


def call(line: str, folder: Path, blocked: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command line without the packages `blocked`."""
    name, *words = line.split()
    environment = {**os.environ, "BLOCKED": blocked, "OMP_NUM_THREADS": "1", "YOLACT_CACHE": str(folder)}
    environment |= variables
    command = [sys.executable, "-c", CALL, COMMANDS[name], *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, env=environment, timeout=120
    )


def check(done: subprocess.CompletedProcess[str], *extras: str) -> None:
    """It failed with one line that names one of these extras."""
    said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert len(said) == 1, done.stderr
    assert any(f'pip install "yolact[{extra}]"' in said[0] for extra in extras), said[0]


def test_every_command_and_subcommand_is_tried() -> None:
    for words in COMMAND_LINES:
        assert any(line.split()[: len(words)] == list(words) for line in LINES), words


@pytest.mark.parametrize("line", LINES)
def test_the_base_install(line: str, folder: Path) -> None:
    _, extra = LINES[line]
    done = call(line, folder, ",".join(OPTIONAL))
    if extra:
        check(done, extra)
    else:
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("line", "package", "extra"), PAIRS)
def test_each_package_missing_in_turn(line: str, package: str, extra: str, folder: Path) -> None:
    # If the others are there, a smaller extra may do.
    check(call(line, folder, package), extra, *set(PACKAGES[package][1]) & set(extra.split(",")))


@pytest.mark.parametrize(
    ("package", "error"),
    [
        ("torch", "ImportError"), ("onnxruntime", "OSError"), ("cv2", "ImportError"),
        ("rich", "AttributeError"), ("numpy", "AttributeError"),
    ],
)  # fmt: skip
def test_a_package_that_does_not_load(package: str, error: str, folder: Path, tmp_path: Path) -> None:
    engine = "w.pth" if package == "torch" else "heads.onnx --backend onnxruntime"
    check_broken(f"yolact-eval --engine {engine} {DATA}", package, error, folder, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "package", "error"),
    [
        ("yolact-train --config yolact_tiny --dataset shapes", "torch", "OSError"),
        ("yolact-demo --output demo", "torch", "AttributeError"),
        ("yolact-export --weights heads.onnx --to openvino --no-verify", "openvino", "AttributeError"),
        ("yolact-export inspect heads.onnx", "onnx", "OSError"),
        ("yolact-infer --engine heads.onnx film.mp4 --output o", "av", "AttributeError"),
        (f"yolact-bench {QUICK}", "psutil", "OSError"),
        ("yolact-data convert voc voc made.json", "PIL", "ImportError"),
    ],
)
def test_each_command_with_a_broken_package(
    line: str, package: str, error: str, folder: Path, tmp_path: Path
) -> None:
    check_broken(line, package, error, folder, tmp_path)


def check_broken(line: str, package: str, error: str, folder: Path, tmp_path: Path) -> None:
    """A command ends in one line if a package raises when it is imported; with rich, on a terminal."""
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(f"raise {error}('libX.so.1: cannot open shared object')")
    terminal = {"FORCE_COLOR": "1"} if package == "rich" else {}
    done = call(line, folder, "no_package", PYTHONPATH=str(tmp_path), **terminal)
    *before, said = done.stderr.splitlines()
    assert done.returncode == 1 and all("INFO" in one for one in before), done.stderr
    assert re.search(rf"needs {package}, which is installed but does not load \(libX.so.1: cannot open", said)


def test_rich_is_not_needed_for_lines_on_a_terminal(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich" / "__init__.py").write_text("raise AttributeError('broken')")
    paths = {"PYTHONPATH": str(tmp_path), "FORCE_COLOR": "1"}
    done = call("yolact-data shapes plain --train 1 --val 1", folder, "no_package", **paths)
    assert (done.returncode, done.stderr.partition(":")[0]) == (0, "INFO"), done.stderr
