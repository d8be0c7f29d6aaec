"""Small valid engines, checkpoints and what the commands themselves wrote before."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import mutate
import mutate_models
import targets
from corpus_data import INFER, JSONL, TRAIN, Seed, annotations, encoded
from fake_onnx import NATIVE, RUNTIME, int8_file, native_arrays, runtime_arrays, write_onnx

ENGINE = ("--workers", "1", "--streams", "1", "--threads", "1", "--engine")
IMAGE = ("{shared}/a.png", *JSONL)


def onnx_files() -> dict[str, bytes]:
    """ONNX files in the forms that are exported."""
    native = dataclasses.replace(NATIVE, created="2026-01-01", command="yolact-export --weights x")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_onnx(folder / "native.onnx", native_arrays(), native)
        write_onnx(folder / "runtime.onnx", runtime_arrays(), RUNTIME)
        int8_file(folder / "int8.onnx", relu=True)
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def onnx_seeds() -> Iterator[Seed]:
    file = "{run}/in/m.onnx"
    for data in onnx_files().values():
        for argv in (
            ("yolact-infer", *ENGINE, file, "--backend", "onnxruntime", *IMAGE),
            ("yolact-infer", *ENGINE, file, "--backend", "openvino", *IMAGE),
            ("yolact-export", "inspect", file),
        ):
            yield Seed("m.onnx", data, argv, mutate_models.mutate_onnx)
    data = onnx_files()["native.onnx"]
    others = {"in/a.json": mutate.dump_json(annotations()), "in/a.png": encoded(".png")}
    others["in/b.png"] = others["in/a.png"]
    for command in (
        "yolact-eval --engine {run}/in/m.onnx --images {run}/in --annotations {run}/in/a.json --per-class",
        "yolact-infer --engine {run}/in/m.onnx {shared}/a.png --output {run}/out --json {run}/out/x.json"
        " --coco-dataset {run}/out/d.json --arrays {run}/out/n",
        "yolact-export --weights {run}/in/m.onnx --to openvino --output {run}/out/m.xml --no-verify",
        "yolact-export --weights {run}/in/m.onnx --to triton --output {run}/out/models",
    ):
        yield Seed("m.onnx", data, tuple(command.split()), mutate_models.mutate_onnx, others)


def openvino_seeds() -> Iterator[Seed]:
    try:
        from yolact_export.openvino import write_openvino
    except ImportError:
        return
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for key, data in onnx_files().items():
                (folder / key).write_bytes(data)
            write_openvino(folder / "native.onnx", folder / "m.xml")
            graph, weights = (folder / "m.xml").read_bytes(), (folder / "m.bin").read_bytes()
    except ImportError:
        return
    file = "{run}/in/m.xml"
    for argv in (("yolact-infer", *ENGINE, file, *IMAGE), ("yolact-export", "inspect", file)):
        yield Seed("m.xml", graph, argv, mutate.mutate_xml, {"in/m.bin": weights})
        yield Seed("m.bin", weights, argv, mutate.mutate_bytes, {"in/m.xml": graph})


def engine_record_seeds() -> Iterator[Seed]:
    from engine_files import write_engine

    with tempfile.TemporaryDirectory() as name:
        path = write_engine(Path(name), native_arrays(), NATIVE)
        engine, record = path.read_bytes(), Path(f"{path}.json").read_bytes()
    file, others = "{run}/in/m.engine", {"in/m.engine": engine, "in/m.onnx": engine}
    triton = ("yolact-export", "--weights", file, "--to", "triton", "--output", "{run}/out/models")
    yield Seed("m.engine.json", record, ("yolact-export", "inspect", file), mutate.mutate_json, others)
    yield Seed("m.engine.json", record, triton, mutate.mutate_json, others)
    argv = ("yolact-infer", "--engine", file, *IMAGE)
    yield Seed("m.engine.json", record, argv, mutate.mutate_json, others, good=1)


@functools.cache
def checkpoint_files() -> dict[str, bytes]:
    """A checkpoint to resume from, one of weights only, and safetensors."""
    import torch
    from safetensors.torch import save

    from yolact.model import Yolact
    from yolact.registry import get_config
    from yolact.train.checkpoint import save_checkpoint
    from yolact.weights.load import FORMAT

    torch.manual_seed(0)
    config = get_config("yolact_tiny")
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, input_size=64, fpn_features=8, num_prototypes=4)
    )
    model = Yolact(config)
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "lr": 0.003}])
    training = {
        "optimizer": optimizer.state_dict(),
        "scaler": {},
        "ema_updates": 0,
        "best": 0.5,
        "written": ["yolact_tiny_0_1.pth"],
    }
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "m.pth"
        save_checkpoint(path, model, 0, 1, training, ema=model)
        full = path.read_bytes()
    plain = io.BytesIO()
    torch.save({"state_dict": model.state_dict()}, plain)
    metadata = {"format": FORMAT, "config": json.dumps(config.to_dict())}
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    return {
        "full.pth": full,
        "plain.pth": plain.getvalue(),
        "m.safetensors": save(tensors, metadata),
    }


def mutate_checkpoint(data: bytes, random: Random, other: bytes = b"") -> bytes:
    """Change values, names or tensors of a checkpoint, or the zip file that it is."""
    import torch

    if random.randrange(3) == 0:
        return mutate_models.mutate_zip(data, random, other)
    content: Any = torch.load(io.BytesIO(data), weights_only=True)
    known = "config", "training", "epoch", "iteration", "format", "losses", "lr", "image_ids"
    plain = [key for key in content if key in known]
    if plain and random.randrange(4):
        key = random.choice((*plain, *(key for key in ("config", "config", "training") if key in plain)))
        content[key] = mutate.mutate_value(content[key], random)
    else:
        states = [value for key, value in content.items() if key in ("model", "ema", "state_dict")]
        if "targets" in content:
            states = [states[0], content, content["targets"][0], content["targets"][0]]
        state = random.choice(states)
        name = random.choice(list(state))
        tensor = state[name]
        if not isinstance(tensor, torch.Tensor):
            tensor = torch.zeros(1)
        state[name] = random.choice(
            (
                lambda: tensor[:1] if tensor.ndim else tensor,
                lambda: tensor.double() * float("nan"),
                lambda: torch.zeros(()),
                lambda: torch.zeros(1).expand(1 << random.choice((8, 31, 40))),
                lambda: torch.zeros((0, 3)),
                lambda: tensor.to(torch.complex64),
                lambda: tensor.to(torch.int8),
                lambda: tensor.half(),
                lambda: torch.sparse_coo_tensor(size=tensor.shape, check_invariants=False),
                lambda: torch.zeros(tensor.shape, dtype=torch.bool),
                lambda: "text",
                lambda: None,
                lambda: {"a": tensor},
            )
        )()
        if random.randrange(6) == 0:
            state[random.choice(mutate.TEXTS)] = state.pop(name)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def checkpoint_seeds() -> Iterator[Seed]:
    files = checkpoint_files()
    name = "yolact_tiny_0_1"
    for key, data in files.items():
        suffix = key.rpartition(".")[2]
        file = f"{{run}}/in/{name}.{suffix}"
        mutator = mutate_models.mutate_safetensors if suffix == "safetensors" else mutate_checkpoint
        good = 1 if key == "plain.pth" else 0  # of another size than the configuration says
        yield Seed(f"{name}.{suffix}", data, ("yolact-export", "inspect", file), mutator, good=good)
        yield Seed(f"{name}.{suffix}", data, ("yolact-infer", *ENGINE, file, *IMAGE), mutator, good=good)
    data, file = files["full.pth"], f"{{run}}/in/{name}.pth"
    train = (*TRAIN, "--dataset", "{shared}/shapes.yaml")
    yield Seed(f"{name}.pth", data, (*train, "--resume", file, "--iterations", "2"), mutate_checkpoint)
    yield Seed(f"{name}.pth", data, (*train, "--init-from", file, "--iterations", "1"), mutate_checkpoint)


def setting_seeds() -> Iterator[Seed]:
    train = (
        *TRAIN,
        "--dataset",
        "{shared}/shapes.yaml",
        "--config",
        "yolact_tiny",
        "--iterations",
        "1",
        "--set",
    )
    settings = """
        model.input_size=64 model.mean=[1.0,2.0,3.0] model.prior_aspect_ratios=[1.0] train.lr=0.001
        model.prior_scales=[[24.0],[48.0],[88.0],[120.0],[126.0]] model.fpn_features=8 train.steps=[1,2]
        model.num_prototypes=4 model.backbone.name=tiny train.seed=1 train.momentum=0.9
        loss.max_masks=10 loss.positive_iou=0.5 detect.nms_top_k=200 augment.contrast=[0.5,1.5]
        augment.crop_min_ious=[0.1,0.3] train.keep_last=5 loss.mask_weight=6.0 augment.expand_ratio=4.0
        train.accumulate=1 train.ema_decay=0.5 train.warmup_iterations=2 detect.max_detections=10
        model.backbone.deformable=[0,0,0,0] train.max_bad_steps=10 train.schedule=cosine
    """
    for setting in settings.split():
        yield Seed("x", b"", (*train, setting), words=True)


def _run(*argv: str) -> dict[str, bytes]:
    """The files that a command writes to {run}, run once with the shared files."""
    return _run_all(argv)


@functools.cache
def _run_all(*commands: tuple[str, ...]) -> dict[str, bytes]:
    """As `_run`, of several commands in one folder."""
    from corpus import shared_files

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shared_files(folder)
        before = set(folder.rglob("*"))
        for argv in commands:
            words = [word.replace("{shared}", name).replace("{run}", name) for word in argv]
            subprocess.run([sys.executable, "-m", *words], check=True, capture_output=True)
        new = sorted(path for path in folder.rglob("*") if path not in before and path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in new}


def lines_seeds() -> Iterator[Seed]:
    """JSON Lines to continue."""
    argv = ("{shared}/a.png", "--no-overlay", "--no-json", "--jsonl", "{run}/a.jsonl")
    data = _run("yolact_runtime.cli", "--engine", "{shared}/m.onnx", *argv)["a.jsonl"]
    data += data.replace(b"a.png", b"b.png").replace(b'"index": 0', b'"index": 1')
    # The file is changed by design, so it is not one of `in`.
    resume = ("{run}/in/a.png", "{run}/in/b.png", "--no-overlay", "--no-json", "--jsonl", "{run}/out/a.jsonl")
    others = {"in/a.png": encoded(".png"), "in/b.png": encoded(".png")}
    yield Seed("../out/a.jsonl", data, (*INFER, *resume, "--resume"), mutate.mutate_jsonl, others)


def merge_seeds() -> Iterator[Seed]:
    """Outputs of the two shards of a run: the first is changed, with all that belongs to it."""
    names = ("a.jsonl", "mask_detections.json", "bbox_detections.json", "images.json", "t.csv")
    commands = []
    for number in (1, 2):
        outputs = ("--jsonl", "a.jsonl", "--json", "mask_detections.json", "--table", "t.csv")
        words = [f"{{run}}/{number}/{word}" if "." in word else word for word in outputs]
        argv = ("{shared}/a.png", "{shared}/d", "--no-overlay", "--shard", f"{number}/2", *words)
        commands.append(("yolact_runtime.cli", "--engine", "{shared}/m.onnx", *argv))
    files = _run_all(*commands)  # the names of images begin with the folder, which all shards must share
    for name, option in zip(names, ("--json", "--json", "--json", "--json", "--table"), strict=True):
        inputs = ["mask_detections.json" if name in names[1:4] else name]
        argv = ("yolact-infer", "merge", *(f"{{run}}/in/{n}/{inputs[0]}" for n in (1, 2)))
        out = "{run}/out/o.csv" if option == "--table" else "{run}/out/o.json"
        mutator = {"a.jsonl": mutate.mutate_jsonl, "t.csv": mutate.mutate_lines}.get(name, mutate.mutate_json)
        others = {f"in/{path}": data for path, data in files.items() if path != f"1/{name}"}
        yield Seed(f"1/{name}", files[f"1/{name}"], (*argv, option, out), mutator, others)


def report_seeds() -> Iterator[Seed]:
    """Reports of two benchmarks."""
    data = _run(
        "yolact_bench.cli", "--engine", "{shared}/m.onnx", "--runs", "3", "--seconds", "0.1", "--no-cold",
        "--json", "{run}/r.json",
    )["r.json"]  # fmt: skip
    argv = ("yolact-bench", "compare", "{run}/in/a.json", "{run}/in/b.json")
    yield Seed("a.json", data, argv, mutate.mutate_json, {"in/b.json": data})
    yield Seed("b.json", data, argv, mutate.mutate_json, {"in/a.json": data})


def cache_seeds() -> Iterator[Seed]:
    """Entries of caches: values with a digest that fits, and whole entries."""
    entries = {
        "calibration": targets.CALIBRATION,
        "kernels": targets.KERNELS,
        "ceilings": targets.CEILINGS,
        "engines": True,
    }
    for name, value in entries.items():
        argv = ("targets:read_cache", name, "{run}/in/a.json")
        yield Seed("a.json", mutate.dump_json(value), argv, mutate_cached)
        entry = mutate.dump_json({"sha256": "0" * 64, "value": value})
        yield Seed("a.json", entry, (*argv, "raw"), mutate.mutate_json)


def mutate_cached(data: bytes, random: Random, other: bytes = b"") -> bytes:
    """Change a value in a way that a digest of it can be computed: Python reads what it wrote."""
    while True:
        changed = mutate.dump_json(mutate.mutate_value(json.loads(data), random))
        try:
            json.dumps(json.loads(changed)).encode()
        except ValueError:
            continue
        return changed


def roofline_seeds() -> Iterator[Seed]:
    words = "--weights {shared}/yolact_tiny_0_1.pth --detect runtime --no-verify --output {run}/tiny.onnx"
    data = _run("yolact_export.cli", *words.split())["tiny.onnx"]
    yield Seed("m.onnx", data, ("targets:roofline", "{run}/in/m.onnx"), mutate_models.mutate_onnx)


def batch_seeds() -> Iterator[Seed]:
    """A batch that was saved because its loss was not finite."""
    import torch

    from yolact.config import Config
    from yolact.model import Yolact
    from yolact.train.bad_batch import DUMP_FORMAT

    content = torch.load(io.BytesIO(checkpoint_files()["full.pth"]), weights_only=True)
    config = Config.from_dict(content["config"], "x")
    size = config.model.input_size
    model = Yolact(config)
    saved = {
        "format": DUMP_FORMAT,
        "config": content["config"],
        "model": model.state_dict(),
        "images": torch.zeros(1, 3, size, size),
        "targets": [
            {
                "boxes": torch.tensor([[0.1, 0.1, 0.6, 0.6]]),
                "labels": torch.zeros(1, dtype=torch.int64),
                "masks": torch.ones((1, size // 4, size // 4), dtype=torch.bool),
                "semantic_masks": torch.ones((1, size // 8, size // 8), dtype=torch.bool),
                "crowd_boxes": torch.zeros((0, 4)),
            }
        ],
        "image_ids": [1],
        "iteration": 3,
        "losses": {"box": 1.0, "total": float("nan")},
        "lr": 0.001,
    }
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    argv = ("yolact-train", "--device", "cpu", "--debug-batch", "{run}/in/b.pt")
    yield Seed("b.pt", buffer.getvalue(), argv, mutate_checkpoint)
