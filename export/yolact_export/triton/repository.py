"""Adds models to a model repository of the Triton Inference Server.

REPOSITORY/NAME/            config.pbtxt, labels.txt, 1/model.py, 1/model.onnx | .engine
REPOSITORY/NAME_raw/        config.pbtxt, labels.txt, 1/model.onnx | .plan
REPOSITORY/NAME_prepare/    config.pbtxt, 1/model.py, 1/metadata.json
REPOSITORY/NAME_instances/  the same
REPOSITORY/NAME_ensemble/   config.pbtxt, 1/
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from yolact_export.triton.config import BACKENDS, ConfigWriter, engine_name
from yolact_export.triton.network import read_model
from yolact_export.triton.options import TritonOptions
from yolact_runtime.engines.tensorrt.record import record_path
from yolact_runtime.errors import UsageError, YolactError, escape_controls
from yolact_runtime.files import atomic_folder
from yolact_runtime.metadata import Metadata
from yolact_runtime.serving.triton import METADATA

_CODE = '''"""What the server runs; its Python needs yolact_runtime."""

from yolact_runtime.serving.triton import {} as TritonPythonModel  # noqa: F401
'''


def write_repository(model: Path, repository: Path, name: str, options: TritonOptions | None = None) -> Path:
    """Add `model` to a repository; on an error, nothing is added.

    Args:
        model: `.onnx`, `.engine` or `.plan` of yolact-export; it is copied.
        repository: Folder of the repository, which is created if it does not exist.
        name: The model's name on the server: letters, digits, `_`, `-`, `.`. That of the network alone and of
            the steps of the ensemble have a suffix.
        options: What is written, and how the server runs it.

    Returns:
        The folder of the first model of `options.models`.

    Raises:
        UsageError: the name or the suffix is not allowed, or the network has no ensemble.
        YolactError: the repository has a model of that name, or `model` is damaged or has no metadata.
    """
    options = options or TritonOptions()
    if not re.fullmatch(r"[\w.-]+", name) or len(name.encode()) > 200:
        raise UsageError(f"model name {name!r}; allowed: up to 200 letters, digits, '_', '-' and '.'")
    if model.suffix not in BACKENDS:
        raise UsageError(f"{model}: Triton takes {', '.join(BACKENDS)} files")
    targets = [repository / f"{name}{suffix}" for suffix in _suffixes(options)]
    for target in targets:
        if target.exists():
            raise YolactError(f"{target} exists; delete it, or choose another name with --triton-name")
    metadata, tensors = read_model(model)
    if "ensemble" in options.models and metadata.min_batch > 1:
        raise UsageError(
            f"{model} takes {metadata.min_batch} images in each call: a request is for one, so there is no"
            " ensemble of it; export it with --batch 1 or --max-batch"
        )
    writer = ConfigWriter(name, metadata, tensors, options)
    # A server that polls its repository must not see half a model, nor the ensemble before its steps.
    for target in targets:
        with atomic_folder(target) as folder:
            (folder / "1").mkdir()
            _write(folder, target.name.removeprefix(name), model, metadata, writer)
    return targets[0]


def _suffixes(options: TritonOptions) -> list[str]:
    """What the names of the models end in; steps of the ensemble before it."""
    steps = ["_raw", "_prepare", "_instances", "_ensemble"]
    of_kind = {"instances": [""], "raw": ["_raw"], "ensemble": steps}
    return list(dict.fromkeys(suffix for kind in options.models for suffix in of_kind[kind]))


def _write(folder: Path, suffix: str, model: Path, metadata: Metadata, writer: ConfigWriter) -> None:
    """Write one model into its folder."""
    if suffix == "":
        text = writer.instances(engine_name(model))
        _write_code(folder, "ImageModel")
        shutil.copyfile(model, folder / "1" / engine_name(model))
        if model.suffix != ".onnx":
            shutil.copyfile(record_path(model), record_path(folder / "1" / engine_name(model)))
    elif suffix == "_raw":
        text = writer.raw(model.suffix)
        shutil.copyfile(model, folder / "1" / BACKENDS[model.suffix][1])
    elif suffix == "_ensemble":
        text = writer.ensemble()
    else:
        text = writer.prepare() if suffix == "_prepare" else writer.assemble()
        _write_code(folder, "PrepareModel" if suffix == "_prepare" else "InstancesModel")
        (folder / "1" / METADATA).write_text(json.dumps(metadata.to_props()), encoding="utf-8")
    (folder / "config.pbtxt").write_text(text, encoding="utf-8")
    if suffix in ("", "_raw"):
        (folder / "labels.txt").write_text(_label_lines(metadata), encoding="utf-8")


def _write_code(folder: Path, name: str) -> None:
    (folder / "1" / "model.py").write_text(_CODE.format(name), encoding="utf-8")


def _label_lines(metadata: Metadata) -> str:
    """The class names, one on each line; line ends and other control characters within a name are escaped."""
    names = (escape_controls(name) for name in metadata.class_names)
    return "".join(f"{name}\n" for name in names)
