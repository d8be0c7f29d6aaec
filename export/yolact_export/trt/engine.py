"""From an ONNX file to an engine with its JSON, both placed whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from yolact_export.inspection import read_described
from yolact_export.trt.checks import check_graph
from yolact_export.trt.options import BuildOptions
from yolact_export.trt.precision import delivered
from yolact_export.trt.process import run_build
from yolact_export.trt.request import Answer, Request
from yolact_export.trt.target import Target, choose_target
from yolact_runtime.engines.tensorrt.record import EngineRecord, record_path, to_json
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import atomic_path, cache_folder, sha256, write_json
from yolact_runtime.metadata import Metadata

log = logging.getLogger(__name__)


def build_engine(
    source: Path, output: Path, options: BuildOptions, command: str = "", precision: str | None = None
) -> EngineRecord:
    """Build an engine from an ONNX file of yolact-export.

    Args:
        source: The ONNX file.
        output: The engine to write; its JSON gets the same name and `.json`.
        options: What may be chosen.
        command: The command line, for the metadata.
        precision: What the ONNX file has to be in; None for whatever it is.

    Raises:
        YolactError: the file is not ours or damaged, the library is missing or refuses it, less precision
            was delivered than asked for, or the disk is full. Nothing is written then.
        UsageError: the options contradict each other or the file, or the output is a folder.
    """
    for path in (output, record_path(output)):
        if path.is_dir():
            raise UsageError(f"--output {output}: {path} is a folder; name a file")
    model, metadata = read_described(source)
    if precision not in (None, metadata.precision):
        raise UsageError(
            f"{source} is in {metadata.precision}, not {precision}; export it with --precision {precision}"
        )
    target = choose_target(options, metadata.precision)
    check_graph(model, target, (metadata.min_batch, metadata.max_batch))
    del model
    if options.plugin:
        _check_plugin(metadata, source)
    profile = _profile(metadata, options)
    log.info("building %s with %s for %s", output, target.title, _places(target))
    with _engine_and_json(output) as (engine, beside):
        request = Request(
            library=target.library,
            onnx=str(source),
            engine=str(engine),
            precision=metadata.precision,
            profile=profile,
            capabilities=target.capabilities,
            workspace_mib=options.workspace_mib,
            timing_cache=str(options.timing_cache or ""),
            default_cache=str(_default_cache(target)),
            plugin=metadata.to_props() if options.plugin else {},
            tf32=options.tf32,
            hardware_compatible=options.hardware_compatible,
            version_compatible=options.version_compatible,
        )
        answer = run_build(request, target.title)
        for note in answer.notes:
            log.warning("%s", note)
        delivered_precision = _accept(metadata.precision, answer, options)
        record = EngineRecord(
            library=target.library,
            library_version=answer.version,
            capabilities=target.capabilities,
            gpu=target.gpu.name if target.gpu else "",
            cuda=target.gpu.cuda if target.gpu else "",
            profile=profile,
            compute=answer.compute,
            inspected=answer.inspected,
            engine_sha256=sha256(engine),
            engine_bytes=engine.stat().st_size,
            onnx_file=_relative(source, output),
            build_seconds=round(answer.seconds, 3),
            workspace_mib=options.workspace_mib,
            plugin=options.plugin,
            tf32=options.tf32,
            hardware_compatible=options.hardware_compatible,
            version_compatible=options.version_compatible,
        )
        metadata = dataclasses.replace(
            metadata,
            precision=delivered_precision,
            # With plugins the engine returns detections, as a graph that holds them does.
            detect="native" if options.plugin else metadata.detect,
            onnx_sha256=sha256(source),
            versions=metadata.versions | {target.library: answer.version},
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            command=command or metadata.command,
        )
        write_json(beside, to_json(metadata, record), indent=1)
    log.info(
        "wrote %s (%.1f MB, %s, %s in %.1f s)",
        output, record.engine_bytes / 1e6, delivered_precision, record.title, answer.seconds,
    )  # fmt: skip
    return record


@contextlib.contextmanager
def _engine_and_json(output: Path) -> Iterator[tuple[Path, Path]]:
    """Temporary paths of an engine and its JSON; on success both are placed, else both stay as they were."""
    kept = output.with_name(f".{output.name}.{os.getpid()}")
    placed = False
    try:
        with atomic_path(record_path(output)) as beside:
            with atomic_path(output) as engine:
                yield engine, beside
                with contextlib.suppress(OSError):  # there was none, or the file system has no hard links
                    os.link(output, kept)
            placed = True
    except BaseException:
        if placed:
            # An engine without its JSON, or with another's, is not opened; one that was replaced comes back.
            kept.replace(output) if kept.exists() else output.unlink(missing_ok=True)
        raise
    finally:
        kept.unlink(missing_ok=True)


def _check_plugin(metadata: Metadata, source: Path) -> None:
    if metadata.detect != "runtime":
        raise UsageError(f"{source} detects by itself; --detect plugin needs raw heads (--detect runtime)")
    if metadata.mask_iou:
        raise UsageError(
            f"{source} re-scores its masks, which the plugins do not; use --detect native or --detect runtime"
        )


def _profile(metadata: Metadata, options: BuildOptions) -> tuple[int, int, int]:
    best = metadata.max_batch if options.opt_batch is None else options.opt_batch
    if not metadata.min_batch <= best <= metadata.max_batch:
        raise UsageError(
            f"--opt-batch {best}; the graph takes {metadata.min_batch} to {metadata.max_batch} images"
        )
    return metadata.min_batch, best, metadata.max_batch


def _accept(asked: str, answer: Answer, options: BuildOptions) -> str:
    """The precision delivered; refused where it is not the one asked for."""
    precision, met = delivered(asked, answer.compute, answer.network)
    if met:
        return precision
    text = (
        f"{asked} was asked for, and of the {answer.inspected}'s convolutions and matrix products"
        f" {_counted(answer.compute)}"
    )
    if answer.network != answer.compute:
        text += f", of the network's {_counted(answer.network)}"
    if not options.allow_fallback:
        raise YolactError(f"{text}; nothing was written (--allow-fallback accepts it)")
    log.warning("%s", text)
    return precision


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} in {name}" for name, count in sorted(counts.items())) or "none is known"


def _default_cache(target: Target) -> Path:
    device = target.gpu.name.replace(" ", "-") if target.gpu else "no-gpu"
    capability = "_".join(target.capabilities) or "default"
    return cache_folder() / "timing" / f"{target.library}-{device}-{capability}"


def _places(target: Target) -> str:
    return (
        f"capability {', '.join(target.capabilities)}" if target.capabilities else "capability 8.0 and later"
    )


def _relative(source: Path, output: Path) -> str:
    """The ONNX file as seen from the engine's folder where it lies beside it."""
    same = source.resolve().parent == output.resolve().parent
    return source.name if same else str(source.resolve())
