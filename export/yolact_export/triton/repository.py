"""Adds models to a model repository of the Triton Inference Server.

REPOSITORY/<name>/config.pbtxt, labels.txt                      image in, instances out
REPOSITORY/<name>/1/model.py, model.onnx | model.engine
REPOSITORY/<name>_raw/config.pbtxt, labels.txt                  the plain network
REPOSITORY/<name>_raw/1/model.onnx | model.plan
REPOSITORY/<name>_prepare, <name>_instances, <name>_ensemble    steps around it, and all as one model
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from yolact_export.triton import config
from yolact_export.triton.network import BACKENDS, Network, read_network
from yolact_export.triton.options import MODELS, TritonOptions
from yolact_runtime.engines.tensorrt.record import record_path
from yolact_runtime.errors import UsageError, YolactError, escape_controls
from yolact_runtime.files import atomic_folder
from yolact_runtime.metadata import Metadata
from yolact_runtime.serving.triton import METADATA_FILE

# A model of the Python backend; the server's Python needs yolact_runtime, and no PyTorch.
_MODEL = '''"""Run by Triton's Python backend, in a Python with this toolkit: pip install yolact"""

from yolact_runtime.serving.triton import {name} as TritonPythonModel  # noqa: F401
'''


def write_repository(model: Path, repository: Path, name: str, options: TritonOptions | None = None) -> Path:
    """Add a model to a repository; on an error, nothing is added.

    Args:
        model: `.onnx`, `.engine` or `.plan` of yolact-export; it is copied.
        repository: Folder of the repository, which is created if it does not exist.
        name: The model's name on the server: letters, digits, `_`, `-`, `.`.
        options: What is written, and how the server runs it.

    Returns:
        The folder of the model to send requests to.

    Raises:
        UsageError: the name or the suffix is not allowed, or the ensemble cannot run the model.
        YolactError: the repository has a model of that name, or `model` is damaged or has no metadata.
    """
    options = options or TritonOptions()
    if not re.fullmatch(r"[\w.-]+", name) or len(name.encode()) > 200:
        raise UsageError(f"model name {name!r}; allowed: up to 200 letters, digits, '_', '-' and '.'")
    if model.suffix not in BACKENDS:
        raise UsageError(f"{model}: Triton takes {', '.join(BACKENDS)} files")
    writers = _writers(name, MODELS[options.models])
    for folder in writers:
        if (target := repository / folder).exists():
            raise YolactError(f"{target} exists; delete it, or choose another name with --triton-name")
    network = read_network(model)
    metadata = network.metadata
    if "ensemble" in MODELS[options.models] and metadata.min_batch > 1:
        raise UsageError(
            f"{model} takes {metadata.min_batch} images or more in a call, and an ensemble sends one:"
            " use --triton-models python, or export with --max-batch"
        )
    # A server that polls its repository must not see half a model, nor an ensemble without its steps: all
    # are written, and get their names from the last to the first.
    with contextlib.ExitStack() as stack:
        for folder, write in writers.items():
            write(stack.enter_context(atomic_folder(repository / folder)), network, folder, options)
    return repository / next(iter(writers))


_Writer = Callable[[Path, Network, str, TritonOptions], None]


def _writers(name: str, models: tuple[str, ...]) -> dict[str, _Writer]:
    """What writes each model's folder, by its name; those that others need come later."""
    raw, prepare, instances = f"{name}_raw", f"{name}_prepare", f"{name}_instances"

    def ensemble(folder: Path, network: Network, own_name: str, options: TritonOptions) -> None:
        message = config.ensemble_config(network, own_name, raw, prepare, instances)
        _write_config(folder, message)

    found: dict[str, _Writer] = {}
    if "python" in models:
        found[name] = _write_python
    if "ensemble" in models:
        found |= {f"{name}_ensemble": ensemble, prepare: _write_prepare, instances: _write_instances}
    if "raw" in models:
        found[raw] = _write_raw
    return found


def _write_raw(folder: Path, network: Network, name: str, options: TritonOptions) -> None:
    version = _write_config(folder, config.raw_config(network, name, options))
    _write_labels(folder, network.metadata)
    shutil.copyfile(network.file, version / BACKENDS[network.file.suffix][1])


def _write_python(folder: Path, network: Network, name: str, options: TritonOptions) -> None:
    version = _write_config(folder, config.python_config(network, name, options))
    _write_labels(folder, network.metadata)
    _write_code(version, "InstancesModel")
    target = version / f"model{network.file.suffix}"
    shutil.copyfile(network.file, target)
    if network.file.suffix != ".onnx":
        shutil.copyfile(record_path(network.file), record_path(target))


def _write_prepare(folder: Path, network: Network, name: str, options: TritonOptions) -> None:
    version = _write_config(folder, config.prepare_config(network, name, options))
    _write_code(version, "PrepareModel", network.metadata)


def _write_instances(folder: Path, network: Network, name: str, options: TritonOptions) -> None:
    version = _write_config(folder, config.instances_config(network, name, options))
    _write_code(version, "ResultModel", network.metadata)


def _write_config(folder: Path, message: Any) -> Path:
    """Write a model's configuration; returns the new folder of its version."""
    (folder / "config.pbtxt").write_text(config.config_text(message), encoding="utf-8")
    version = folder / "1"
    version.mkdir()
    return version


def _write_code(version: Path, name: str, metadata: Metadata | None = None) -> None:
    """Write what the Python backend runs: a class of `yolact_runtime.serving.triton`, and what it reads."""
    (version / "model.py").write_text(_MODEL.format(name=name), encoding="utf-8")
    if metadata is not None:
        (version / METADATA_FILE).write_text(json.dumps(metadata.to_props()), encoding="utf-8")


def _write_labels(folder: Path, metadata: Metadata) -> None:
    """Write the class names, one on each line; line ends and other control characters are escaped."""
    names = (escape_controls(name) for name in metadata.class_names)
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
