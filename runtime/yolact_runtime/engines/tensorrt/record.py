"""The JSON file of a TensorRT engine: what it is, what built it and where it can run."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolact_runtime.errors import YolactError, first_line
from yolact_runtime.files import read_json, sha256
from yolact_runtime.metadata import PREFIX, Metadata
from yolact_runtime.typed import convert
from yolact_runtime.untrusted import beyond, check_regular, limit

# `--backend` -> the package that builds and runs engines; the keys are also the names of the extras.
LIBRARIES = {"trt": "tensorrt", "rtx": "tensorrt_rtx"}
TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


@dataclass(frozen=True)
class EngineRecord:
    """The facts about a TensorRT engine that `Metadata` does not have.

    Attributes:
        library: "tensorrt" or "tensorrt_rtx".
        library_version: Version of the library that built it.
        capabilities: Compute capabilities it was built for, such as "8.6"; empty for TensorRT-RTX's
            default, which is 8.0 and later.
        gpu: Name of the GPU of the machine that built it; empty if there was none.
        cuda: Newest CUDA version of that machine's driver; empty if there was none.
        profile: Fewest, best and most images in one call.
        compute: Number of convolutions and matrix products by compute type, such as {"fp16": 50}.
        inspected: "engine" if `compute` was read from the engine, "network" if from the strongly typed
            network that it was built from.
        engine_sha256: Hash of the engine file.
        engine_bytes: Size of the engine file.
        onnx_file: Name of the ONNX file it was built from, in the same folder.
        build_seconds: Duration of the build.
        workspace_mib: Limit of scratch memory during the build, in MiB; None for the library's default.
        plugin: Detection runs in plugins, which were added to a graph that returns raw heads.
        tf32: float32 convolutions may round to TensorFloat-32.
        hardware_compatible: Runs on capability 8.0 and later (TensorRT).
        version_compatible: Runs on later versions of the same major version.
    """

    library: str
    library_version: str
    capabilities: tuple[str, ...]
    gpu: str
    cuda: str
    profile: tuple[int, int, int]
    compute: dict[str, int]
    inspected: str
    engine_sha256: str
    engine_bytes: int
    onnx_file: str
    build_seconds: float = 0.0
    workspace_mib: int | None = None
    plugin: bool = False
    tf32: bool = False
    hardware_compatible: bool = False
    version_compatible: bool = False

    @property
    def title(self) -> str:
        """Library and version, for messages."""
        return f"{TITLES[self.library]} {self.library_version}"

    def problem_with_library(self, version: str) -> str | None:
        """Why this version of the library cannot run the engine; None if it can."""
        if version == self.library_version:
            return None
        theirs, ours = _numbers(version), _numbers(self.library_version)
        if self.version_compatible and theirs[:1] == ours[:1] and theirs >= ours:
            return None
        return f"library_version is {self.library_version} and {TITLES[self.library]} {version} is installed"

    def problem_with_gpu(self, capability: str) -> str | None:
        """Why a GPU of this compute capability cannot run the engine; None if it can."""
        if capability in self.capabilities:
            return None
        portable = self.hardware_compatible or not self.capabilities
        if portable and _numbers(capability) >= (8, 0):
            return None
        built_for = ", ".join(self.capabilities) if not portable else "8.0 and later"
        return f"capabilities is {built_for} and this GPU has {capability}"


def record_path(engine: str | Path) -> Path:
    """The path of an engine's JSON file."""
    return Path(f"{engine}.json")


def to_json(metadata: Metadata, record: EngineRecord) -> dict[str, Any]:
    """The content of the JSON file, as `read_engine` reads it."""
    metadata.check("metadata")
    return {"metadata": dataclasses.asdict(metadata), "engine": dataclasses.asdict(record)}


def read_engine(path: str | Path) -> tuple[Metadata, EngineRecord]:
    """Read the JSON file of an engine and check that it describes this engine file.

    An engine is code that runs on the GPU, so do not open it before this check passed.

    Raises:
        YolactError: the engine or its JSON is missing or cannot be read, the JSON is invalid, or the engine's
            size or hash differs from it.
    """
    path = Path(path)
    check_regular(path, "engine")
    json_path = record_path(path)
    remedy = f"build it again: {rebuild_command(path)}"
    if not os.path.lexists(json_path):
        raise YolactError(f"{path}: its {json_path.name} is missing; copy it to the same folder, or {remedy}")
    value = read_json(json_path, "engine metadata")
    try:
        metadata = Metadata.from_props(
            {PREFIX + name: json.dumps(item) for name, item in value["metadata"].items()}, json_path
        )
        record = _record(value["engine"])
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise YolactError(f"{json_path} is not the metadata of an engine ({reason}); {remedy}") from error
    if wrong := _wrong_field(metadata, record):
        raise YolactError(f"{json_path}: field {wrong}; {remedy}")
    remedy = f"copy both files again, or build it again: {rebuild_command(path, record)}"
    try:
        size = path.stat().st_size
        if size != record.engine_bytes:
            raise YolactError(
                f"{path}: engine_bytes is {record.engine_bytes} and the file has {size}; {remedy}"
            )
        if size > limit("engine_file_bytes"):  # which would be hashed for minutes
            raise YolactError(f"{path} has {size:,} bytes, more than {beyond('engine_file_bytes')}")
        digest = sha256(path)
    except OSError as error:
        raise YolactError(f"cannot read engine {path}: {error.strerror or error}") from error
    if digest != record.engine_sha256:
        raise YolactError(
            f"{path}: engine_sha256 is {record.engine_sha256[:12]}... and the file's is {digest[:12]}...;"
            f" {remedy}"
        )
    return metadata, record


def _record(values: Mapping[str, Any]) -> EngineRecord:
    hints = typing.get_type_hints(EngineRecord)
    return EngineRecord(**{name: convert(values[name], kind) for name, kind in hints.items()})


def _wrong_field(metadata: Metadata, record: EngineRecord) -> str | None:
    """The first field with an invalid value, with the value and what is needed; None if all are valid."""
    low, best, high = record.profile
    profile = metadata.min_batch == low <= best <= high == metadata.max_batch
    capabilities = all(re.fullmatch(r"[0-9]{1,3}\.[0-9]", item) for item in record.capabilities)
    version = re.fullmatch(r"[0-9]{1,9}(\.[0-9A-Za-z+-]{1,40}){0,9}", record.library_version)
    rules = {
        "library": (record.library in TITLES, "tensorrt or tensorrt_rtx is allowed"),
        "library_version": (version is not None, "a version is needed"),
        "onnx_file": ("\0" not in record.onnx_file, "the name of a file is needed"),
        "capabilities": (capabilities, "numbers such as 8.6 are needed"),
        "profile": (profile, f"{metadata.min_batch} <= best <= {metadata.max_batch} is needed"),
        "engine_sha256": (
            bool(re.fullmatch(r"[0-9a-f]{64}", record.engine_sha256)), "64 hexadecimal digits are needed",
        ),
    }  # fmt: skip
    for name, (valid, needed) in rules.items():
        if not valid:
            value = repr(getattr(record, name))
            return f"{name} is {value if len(value) <= 60 else value[:57] + '...'}: {needed}"
    return None


def rebuild_command(
    path: str | Path, record: EngineRecord | None = None, capability: str | None = None
) -> str:
    """The command that builds an engine again from its ONNX file.

    Args:
        path: The engine.
        record: Its record, if it could be read.
        capability: Of the GPU it should run on, if that differs from the record.
    """
    path = Path(path)
    words = ["yolact-export", "--weights"]
    if record is None:
        return shlex.join([*words, str(path.with_suffix(".onnx")), "--to", "trt", "--output", str(path)])
    backend = next(short for short, name in LIBRARIES.items() if name == record.library)
    words += [str(path.parent / record.onnx_file), "--to", "trt", "--backend", backend]
    if record.library == "tensorrt_rtx":
        # TensorRT always builds for the GPU of the machine.
        for item in [capability] if capability else record.capabilities:
            words += ["--device-capability", item]
    if record.profile[1] != record.profile[2]:
        words += ["--opt-batch", str(record.profile[1])]
    if record.workspace_mib is not None:
        words += ["--workspace", str(record.workspace_mib)]
    if record.plugin:
        words += ["--detect", "plugin"]
    for name in ("tf32", "hardware_compatible", "version_compatible"):
        if getattr(record, name):
            words.append("--" + name.replace("_", "-"))
    return shlex.join([*words, "--output", str(path)])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
