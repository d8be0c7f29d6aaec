"""The JSON beside a TensorRT engine: what it is, what built it and where it may run."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolact_runtime.errors import YolactError
from yolact_runtime.files import read_json, sha256
from yolact_runtime.metadata import PREFIX, Metadata
from yolact_runtime.typed import convert

# The packages that build and run engines, by what `--backend` calls them; also the names of the extras.
LIBRARIES = {"trt": "tensorrt", "rtx": "tensorrt_rtx"}
TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


@dataclass(frozen=True)
class EngineRecord:
    """What `Metadata` does not say of a TensorRT engine.

    Attributes:
        library: "tensorrt" or "tensorrt_rtx".
        library_version: Of the library that built it.
        capabilities: Compute capabilities it was built for, such as "8.6"; empty for TensorRT-RTX's
            default, which is 8.0 and later.
        gpu: Where it was built; empty where there was none.
        cuda: Newest CUDA version of that machine's driver; empty where there was none.
        profile: Fewest, best and most images in one call.
        compute: Convolutions and matrix products by the type they compute in, such as {"fp16": 50}.
        inspected: "engine" where `compute` was read from the engine, "network" where from the strongly
            typed network it was built from.
        engine_sha256: Of the engine file.
        engine_bytes: Its size.
        onnx_file: Name of the ONNX file it was built from, beside it unless it was moved.
        build_seconds: Time of the build.
        workspace_mib: Limit of scratch memory while building, in MiB; None for the library's.
        plugin: It detects with plugins, added to a graph that returns raw heads.
        tf32: float32 convolutions may round to TensorFloat-32.
        hardware_compatible: Runs on capability 8.0 and every later one (TensorRT).
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
        """Library and version, for people."""
        return f"{TITLES[self.library]} {self.library_version}"

    def problem_with_library(self, version: str) -> str | None:
        """Why version `version` of the library cannot run the engine; None if it can."""
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
    """Where the JSON of an engine lies."""
    return Path(f"{engine}.json")


def to_json(metadata: Metadata, record: EngineRecord) -> dict[str, Any]:
    """What `read_engine` reads back."""
    metadata.check("metadata")
    return {"metadata": dataclasses.asdict(metadata), "engine": dataclasses.asdict(record)}


def read_engine(path: str | Path) -> tuple[Metadata, EngineRecord]:
    """Read what an engine says of itself, and check that the file is the one described.

    An engine is code that the GPU runs: it is not to be opened before this has passed.

    Raises:
        YolactError: the engine or its JSON is missing or cannot be read, the JSON is wrong, or the engine's
            size or hash differs from it.
    """
    path = Path(path)
    if not path.is_file():
        raise YolactError(f"engine {path} does not exist")
    beside = record_path(path)
    remedy = f"build it again: {rebuild_command(path)}"
    if not beside.exists():
        raise YolactError(f"{path}: {beside.name} is missing beside it; copy it here, or {remedy}")
    value = read_json(beside, "engine metadata")
    try:
        metadata = Metadata.from_props(
            {PREFIX + name: json.dumps(item) for name, item in value["metadata"].items()}, beside
        )
        record = _record(value["engine"])
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise YolactError(f"{beside} is not the metadata of an engine ({error!r}); {remedy}") from error
    if wrong := _wrong_field(metadata, record):
        raise YolactError(f"{beside}: field {wrong}; {remedy}")
    remedy = f"copy both files again, or build it again: {rebuild_command(path, record)}"
    try:
        size, digest = path.stat().st_size, sha256(path)
    except OSError as error:
        raise YolactError(f"cannot read engine {path}: {error.strerror or error}") from error
    if size != record.engine_bytes:
        raise YolactError(f"{path}: engine_bytes is {record.engine_bytes} and the file has {size}; {remedy}")
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
    low, best, high = record.profile
    rules = [
        (record.library not in TITLES, "library", "tensorrt or tensorrt_rtx is allowed"),
        (not _numbers(record.library_version), "library_version", "a version is needed"),
        (
            not all(re.fullmatch(r"\d+\.\d", item) for item in record.capabilities),
            "capabilities",
            "numbers such as 8.6 are needed",
        ),
        (
            not (metadata.min_batch == low <= best <= high == metadata.max_batch),
            "profile",
            f"{metadata.min_batch} <= best <= {metadata.max_batch} is needed",
        ),
        (
            not re.fullmatch(r"[0-9a-f]{64}", record.engine_sha256),
            "engine_sha256",
            "64 hexadecimal digits are needed",
        ),
    ]
    for wrong, name, needed in rules:
        if wrong:
            return f"{name} is {getattr(record, name)!r}: {needed}"
    return None


def rebuild_command(
    path: str | Path, record: EngineRecord | None = None, capability: str | None = None
) -> str:
    """The command that builds an engine again, from its ONNX file.

    Args:
        path: The engine.
        record: What is known of it.
        capability: Of the GPU it is to run on, where that is another one.
    """
    path = Path(path)
    words = ["yolact-export", "--weights"]
    if record is None:
        return shlex.join([*words, str(path.with_suffix(".onnx")), "--to", "trt", "--output", str(path)])
    backend = next(short for short, name in LIBRARIES.items() if name == record.library)
    words += [str(path.parent / record.onnx_file), "--to", "trt", "--backend", backend]
    if record.library == "tensorrt_rtx":
        # TensorRT builds for the GPU it finds; there is nothing to say.
        wanted = [capability] if capability else record.capabilities
        for item in wanted:
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
