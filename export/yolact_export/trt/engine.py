"""Builds an engine and its JSON from an ONNX file; both are written, or neither."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from yolact_export.onnx_graph import graph_metadata, read_graph
from yolact_export.trt.checks import check_graph
from yolact_export.trt.compute import delivered
from yolact_export.trt.int8 import signed_int8
from yolact_export.trt.options import BuildOptions
from yolact_export.trt.process import BuildRequest, BuildResult, run_build
from yolact_export.trt.target import Target, choose_target
from yolact_runtime.engines.tensorrt.record import EngineRecord, record_path, to_json
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import atomic_path, follow_links, sha256, write_json
from yolact_runtime.metadata import Metadata

log = logging.getLogger(__name__)

# Options that go to the builder and into the JSON as they are.
_RECORDED = ("workspace_mib", "tf32", "hardware_compatible", "version_compatible")


def build_engine(
    source: Path, output: Path, options: BuildOptions, command: str = "", precision: str | None = None
) -> EngineRecord:
    """Build an engine from an ONNX file of yolact-export.

    Args:
        source: The ONNX file.
        output: The engine to write; its JSON gets the same name with `.json` appended.
        options: How to build it.
        command: The command line, for the metadata.
        precision: The precision that the ONNX file has to be in; None for any.

    Returns:
        What the JSON says of the engine.

    Raises:
        YolactError: the file is damaged or has no metadata, the library is missing or refuses it, the engine
            has less of the precision than requested, or the disk is full. Nothing is written then.
        UsageError: the options contradict each other or the file, or the output is a folder.
    """
    for path in (output, record_path(output)):
        if path.is_dir():
            raise UsageError(f"--output {output}: {path} is a folder; name a file")
    model = read_graph(source)
    metadata = graph_metadata(model, source)
    if precision not in (None, metadata.precision):
        raise UsageError(
            f"{source} is in {metadata.precision}, not {precision}; export it with --precision {precision}"
        )
    target = choose_target(options, metadata.precision)
    check_graph(signed_int8(model), target, (metadata.min_batch, metadata.max_batch))
    del model
    if options.plugin:
        _check_plugin(metadata, source)
    profile = _profile(metadata, options)
    log.info("building %s with %s for %s", output, target.title, _capability_text(target))
    flags = {name: getattr(options, name) for name in _RECORDED}
    with _engine_and_json(output) as (engine, json_path):
        request = BuildRequest(
            library=target.library,
            onnx=str(source),
            engine=str(engine),
            precision=metadata.precision,
            profile=profile,
            capabilities=target.capabilities,
            timing_cache=str(options.timing_cache or ""),
            default_cache=_default_cache(target),
            plugin=metadata.to_props() if options.plugin else {},
            **flags,
        )
        result = run_build(request, target.title)
        for note in result.notes:
            log.warning("%s", note)
        metadata = dataclasses.replace(
            metadata,
            precision=_accept(metadata.precision, result, options),
            # With plugins the engine returns detections, like a graph that detects by itself.
            detect="native" if options.plugin else metadata.detect,
            onnx_sha256=sha256(source),
            versions=metadata.versions | {target.library: result.version},
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            command=command or metadata.command,
        )
        record = EngineRecord(
            library=target.library,
            library_version=result.version,
            capabilities=target.capabilities,
            gpu=target.gpu.name if target.gpu else "",
            cuda=target.gpu.cuda if target.gpu else "",
            profile=profile,
            compute=result.compute,
            inspected=result.inspected,
            engine_sha256=sha256(engine),
            engine_bytes=engine.stat().st_size,
            onnx_file=_relative_path(source, output),
            build_seconds=round(result.seconds, 3),
            plugin=options.plugin,
            **flags,
        )
        write_json(json_path, to_json(metadata, record), indent=1)
    size, details = record.engine_bytes / 1e6, f"{metadata.precision}, {record.title}"
    log.info("wrote %s (%.1f MB, %s in %.1f s)", output, size, details, result.seconds)
    return record


@contextlib.contextmanager
def _engine_and_json(output: Path) -> Iterator[tuple[Path, Path]]:
    """Temporary paths of an engine and its JSON; on success they replace both files, else neither."""
    target = follow_links(output)
    previous = target.with_name(f".{target.name[:40]}.{os.getpid()}")
    placed = False
    try:
        with atomic_path(record_path(output)) as json_path:
            with atomic_path(output) as engine:
                yield engine, json_path
                with contextlib.suppress(OSError):  # there is none, or the file system has no hard links
                    os.link(target, previous)
            placed = True
    except BaseException:
        if placed:
            # An engine is useless without its own JSON: restore the previous one.
            previous.replace(target) if previous.exists() else target.unlink(missing_ok=True)
        raise
    finally:
        previous.unlink(missing_ok=True)


def _check_plugin(metadata: Metadata, source: Path) -> None:
    """Refuse graphs that detection plugins cannot be added to."""
    if metadata.detect != "runtime":
        raise UsageError(f"{source} detects by itself; --detect plugin needs raw heads (--detect runtime)")
    if metadata.mask_iou:
        raise UsageError(
            f"{source} re-scores its masks, which the plugins cannot; use --detect native or --detect runtime"
        )


def _profile(metadata: Metadata, options: BuildOptions) -> tuple[int, int, int]:
    """Fewest, best and most images in one call."""
    best = metadata.max_batch if options.opt_batch is None else options.opt_batch
    if not metadata.min_batch <= best <= metadata.max_batch:
        raise UsageError(
            f"--opt-batch {best}; the graph takes {metadata.min_batch} to {metadata.max_batch} images"
        )
    return metadata.min_batch, best, metadata.max_batch


def _accept(requested: str, result: BuildResult, options: BuildOptions) -> str:
    """The engine's precision; refused if it is not the requested one, unless the user accepts that."""
    precision, met = delivered(requested, result.compute, result.network)
    if met:
        return precision
    text = f"{requested} was requested, but convolutions and matrix products of the {result.inspected} are"
    text += f" {_count_text(result.compute)}"
    if result.network != result.compute:
        text += f" (of the network: {_count_text(result.network)})"
    if not options.allow_fallback:
        raise YolactError(f"{text}; nothing was written (--allow-fallback accepts it)")
    log.warning("%s", text)
    return precision


def _count_text(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} in {name}" for name, count in sorted(counts.items())) or "of unknown type"


def _default_cache(target: Target) -> str:
    """The name of the timing cache of a library and device."""
    device = re.sub(r"[^A-Za-z0-9]+", "-", target.gpu.name) if target.gpu else "no-gpu"
    return f"{target.library}-{device}-{'_'.join(target.capabilities) or 'default'}"


def _capability_text(target: Target) -> str:
    return f"capability {', '.join(target.capabilities) or '8.0 and later'}"


def _relative_path(source: Path, output: Path) -> str:
    """The ONNX file's name if it is in the engine's folder, else its absolute path."""
    same = source.resolve().parent == output.resolve().parent
    return source.name if same else str(source.resolve())
