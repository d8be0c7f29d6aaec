"""Runs NVIDIA's Triton Inference Server for tests: `with running_server(repository) as server`.

The server is that of the wheel `nvidia-pytriton`, which needs an environment of its own with NumPy 1 and this
project. `$YOLACT_TRITON_SERVER` names the `bin/python` of that environment.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

VARIABLE = "YOLACT_TRITON_SERVER"
_WHERE = (
    "import importlib.util as u, sys, sysconfig;"
    "print(u.find_spec('pytriton').submodule_search_locations[0], sysconfig.get_paths()['purelib'],"
    " '%d.%d' % sys.version_info[:2], sep='\\n')"
)


def server_python() -> str:
    """The Python of the server's environment; skips the test if there is none."""
    python = os.environ.get(VARIABLE, "")
    if not python:
        pytest.skip(
            f"no Triton server: set {VARIABLE} to the bin/python of an environment with nvidia-pytriton"
        )
    return python


@dataclass
class TritonServer:
    """A server that runs, or can be started again on the same ports."""

    repository: Path
    folder: Path
    python: str
    options: Sequence[str] = ()
    ports: dict[str, int] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.ports['grpc']}"

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.ports['http']}"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def start(self, seconds: float = 120) -> None:
        """Start it, and wait until it is ready.

        Raises:
            RuntimeError: it ended or was not ready in time; has the end of its log.
        """
        answer = subprocess.run([self.python, "-c", _WHERE], capture_output=True, text=True, check=True)
        package, site, version = answer.stdout.splitlines()
        home = Path(package) / "tritonserver"
        backends = self.folder / "backends"
        if not backends.exists():
            # The Python backend looks for the stub of the Python version in its own folder.
            shutil.copytree(home / "backends", backends)
            stub = home / "python_backend_stubs" / version / "triton_python_backend_stub"
            shutil.copy(stub, backends / "python")
        self.ports = self.ports or dict(zip(("http", "grpc", "metrics"), _free_ports(3), strict=True))
        command = [
            str(home / "bin/tritonserver"),
            f"--model-repository={self.repository}",
            f"--backend-directory={backends}",
            f"--http-port={self.ports['http']}",
            f"--grpc-port={self.ports['grpc']}",
            f"--metrics-port={self.ports['metrics']}",
            *(f"--{name}-address=127.0.0.1" for name in ("http", "grpc", "metrics")),
            *self.options,
        ]
        libraries = Path(site) / "nvidia_pytriton.libs"
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(libraries),
            "PYTHONPATH": site,
            "PATH": f"{Path(self.python).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        until = time.monotonic() + seconds
        while not self._ready():
            if self.process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise RuntimeError(f"the server is not ready:\n{self.log[-4000:]}")
            time.sleep(0.1)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.http}/v2/health/ready", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """End the server and its model processes at once."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def running_server(repository: Path, options: Sequence[str] = ()) -> Iterator[TritonServer]:
    """A server of the models in `repository`, on free ports of 127.0.0.1."""
    python = server_python()
    with tempfile.TemporaryDirectory() as folder:
        server = TritonServer(repository, Path(folder), python, options)
        try:
            server.start()
            yield server
        finally:
            server.kill()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
