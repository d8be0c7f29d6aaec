"""The Ray cluster of a run: connecting to one or starting it, and its errors as one line."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

from yolact_runtime.errors import YolactError, first_line

_BLOCK_BYTES = 16 << 20  # of images that tasks pass on
_CRASHES = (
    "ActorDiedError",
    "ActorUnavailableError",
    "OutOfMemoryError",
    "RayActorError",
    "WorkerCrashedError",
)
RESTARTS = 5  # of a worker's process, so that an image that ends it ends the run; Ray's default is no end


def address_of(text: str) -> str:
    """The address of a cluster.

    Args:
        text: HOST:PORT, "auto" or "local"; "" for that of $RAY_ADDRESS, else "local".
    """
    return text or os.environ.get("RAY_ADDRESS") or "local"


@contextlib.contextmanager
def cluster(address: str, progress: bool = False, debug: bool = False, **options: Any) -> Iterator[None]:
    """Connect to a cluster, or start one on this machine; what fails in it becomes one line.

    Args:
        address: As for `address_of`.
        progress: Show Ray Data's progress.
        debug: Show Ray's messages and those of the workers.
        options: For `ray.init`, of a cluster that is started.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports its use over the network
    if not debug:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    from ray.exceptions import RayError

    started = not ray.is_initialized()
    address = address_of(address)
    own = {"include_dashboard": False, **options} if address == "local" else {}
    try:
        if started:
            _check_reachable(address)
            with contextlib.nullcontext() if debug else _silent():
                handler = signal.getsignal(signal.SIGTERM)
                ray.init(address, log_to_driver=debug, logging_level=logging.ERROR, **own)
                if threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGTERM, handler)  # Ray's ends the process without a word
        _set_up_data(progress, debug)
        yield
    except (ConnectionError, RayError) as error:
        raise error_of_ray(error) from error
    finally:
        if started:
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise a YolactError if nothing listens at HOST:PORT, where Ray would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, ValueError) as error:
            raise YolactError(f"no Ray cluster at {address}: {first_line(error)}") from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without standard error, to which Ray's C++ writes that it was told to write nothing."""
    if sys.stderr is not None:
        sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _set_up_data(progress: bool, debug: bool) -> None:
    """Set what Ray Data shows, and how large its blocks are."""
    import ray.data

    if not debug:
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = progress
    context.print_on_execution_start = False
    context.target_max_block_size = _BLOCK_BYTES


def error_of_ray(error: BaseException) -> YolactError:
    """The one line for an error of Ray: of the YolactError of a worker, if that is its cause."""
    chain = [error]
    while isinstance(cause := getattr(chain[-1], "cause", None) or chain[-1].__cause__, BaseException):
        chain.append(cause)
    for one in reversed(chain):
        if isinstance(one, YolactError) and not hasattr(one, "cause"):  # else Ray's, with a traceback in it
            return one
    if any("AuthenticationError" in f"{type(one)} {one}" for one in chain):
        return YolactError(
            "the Ray cluster wants its token: set RAY_AUTH_MODE=token, and copy ~/.ray/auth_token of its head"
            " node to the same place here"
        )
    names = [type(one).__name__ for one in chain]
    if crash := next((name for name in names if name in _CRASHES), None):
        return YolactError(
            f"a worker ended {RESTARTS + 1} times ({crash}): it lacked memory, or an image made it crash;"
            " Ray's logs on its node say more"
        )
    shown = [one for one in chain if str(one).strip()] or chain
    lines = [line for line in str(shown[-1]).splitlines() if line.strip()]
    why = first_line(RuntimeError(lines[-1] if lines else ""))
    return YolactError(f"Ray: {type(shown[-1]).__name__}: {why}")
