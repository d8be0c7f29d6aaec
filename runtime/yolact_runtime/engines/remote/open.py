"""Opens the engine of an address, and checks that it is the one that was asked for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yolact_runtime.engines.backends import UNKNOWN
from yolact_runtime.engines.remote.address import parse_address
from yolact_runtime.engines.remote.engine import RemoteEngine
from yolact_runtime.errors import UsageError, counted
from yolact_runtime.metadata import InputSize, height_width, size_text
from yolact_runtime.version import __version__

log = logging.getLogger(__name__)


def open_remote(
    engine: str | Path, precision: str | None, input_size: InputSize | None, options: Mapping[str, Any]
) -> RemoteEngine:
    """The engine of an address; arguments as for `load_engine`, `options` of `RemoteEngine`.

    Raises:
        UsageError: the server computes in another precision or has another input size.
    """
    remote = RemoteEngine(parse_address(engine), **options)
    try:
        _check(remote, precision, input_size)
    except UsageError:
        remote.close()
        raise
    facts = f"{remote.name}, {remote.precision}, {counted(remote.streams, 'stream')}"
    log.info("%s: %s", remote.address, facts)
    if remote.server_version != __version__:
        log.info(
            "%s: the server has version %s of this toolkit, and this is %s; results may differ",
            remote.address, remote.server_version, __version__,
        )  # fmt: skip
    return remote


def _check(remote: RemoteEngine, precision: str | None, input_size: InputSize | None) -> None:
    """Raise a UsageError unless the server's engine is of this precision and input size."""
    if precision is not None and remote.precision != precision:
        unknown = remote.precision == UNKNOWN
        found = "what it computes in is not known" if unknown else f"it is {remote.precision}"
        raise UsageError(
            f"{remote.address}: precision {precision} was asked for, and {found}; leave --precision out, or"
            " name a model that has it"
        )
    size = remote.metadata.input_size
    if input_size is not None and remote.metadata.input_shape != height_width(input_size):
        raise UsageError(
            f"{remote.address}: its input is {size_text(size)}, and {size_text(input_size)} was asked for;"
            " leave --input-size out, or name a model that has it"
        )
