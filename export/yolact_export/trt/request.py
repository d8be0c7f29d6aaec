"""What the building process is told, and what it answers: plain data that goes through JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Request:
    """One build.

    Attributes:
        library: Module to import, "tensorrt" or "tensorrt_rtx".
        onnx: Path of the graph.
        engine: Path to write the engine to.
        precision: What the graph is to compute in: "fp32", "fp16" or "int8".
        profile: Fewest, best and most images in one call.
        capabilities: To build for, where the library can choose; empty for its default.
        workspace_mib: Limit of scratch memory, or None.
        timing_cache: Path of the timing cache, or empty for the default.
        default_cache: Path of the default one, to which the library's version is added; empty for none.
        plugin: Properties of the metadata where detection plugins are to be added, or empty.
        tf32, hardware_compatible, version_compatible: As in `BuildOptions`.
    """

    library: str
    onnx: str
    engine: str
    precision: str
    profile: tuple[int, int, int]
    capabilities: tuple[str, ...] = ()
    workspace_mib: int | None = None
    timing_cache: str = ""
    default_cache: str = ""
    plugin: dict[str, str] = field(default_factory=dict)
    tf32: bool = False
    hardware_compatible: bool = False
    version_compatible: bool = False

    def to_text(self) -> str:
        """As one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Request:
        """From what `to_text` gave."""
        values = json.loads(text)
        for name in ("profile", "capabilities"):
            values[name] = tuple(values[name])
        return cls(**values)


@dataclass(frozen=True)
class Answer:
    """What came of it.

    Attributes:
        version: Of the library.
        compute: Convolutions and matrix products by the type they compute in.
        inspected: "engine" or "network": what was counted.
        seconds: Time of the build.
        network: Convolutions and matrix products of the network that was built, by type.
        notes: Warnings for the user, one line each.
    """

    version: str
    compute: dict[str, int]
    inspected: str
    seconds: float
    network: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
