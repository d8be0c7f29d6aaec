"""A real Triton server on this machine: `from triton_server import running_server`.

`YOLACT_TRITON_SERVER` names the Python of a virtual environment that has `nvidia-pytriton`, whose wheel
contains `tritonserver` and its Python backend, `numpy<2`, and this project.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from ports import free_ports

VARIABLE = "YOLACT_TRITON_SERVER"
_FACTS = """
import json, platform, sysconfig
import numpy, pytriton, yolact_runtime
print(json.dumps({
    "site": sysconfig.get_path("purelib"), "scripts": sysconfig.get_path("scripts"),
    "lib": sysconfig.get_config_var("LIBDIR"),
    "version": ".".join(platform.python_version_tuple()[:2]),
}))
"""


def server_python() -> str:
    """The environment's Python; skips the test where there is none."""
    python = os.environ.get(VARIABLE, "")
    if not python:
        pytest.skip(f"{VARIABLE} names no environment with nvidia-pytriton")
    return python


@functools.cache
def _environment(python: str) -> dict[str, str]:
    command = [python, "-c", _FACTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{VARIABLE}={python}:\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])


class TritonServer:
    """A server that can be killed and started again on the same ports.

    Args:
        repository: Its model repository.
        folder: For the backends and the log.
        options: More of the server's command line.
        env: More of its environment; None removes a variable.
        python: Of the environment with the server; by default `server_python`.
        threads: Threads of HTTP requests.
    """

    def __init__(
        self,
        repository: Path,
        folder: Path,
        options: Sequence[str] = (),
        env: Mapping[str, str | None] | None = None,
        python: str = "",
        threads: int = 4,
    ) -> None:
        facts = _environment(python or server_python())
        self.ports = dict(zip(("http", "grpc", "metrics"), free_ports(3), strict=True))
        self.log_file = folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        server = Path(facts["site"]) / "pytriton" / "tritonserver"
        self._shared = f"yolact_test_{os.getpid()}_{self.ports['http']}_"
        self._command = [
            str(server / "bin" / "tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={_backends(server, facts['version'], folder)}",
            f"--http-thread-count={threads}",
            *(f"--{name}-address=127.0.0.1" for name in self.ports),
            *(f"--{name}-port={port}" for name, port in self.ports.items()),
            f"--backend-config=python,shm-region-prefix-name={self._shared}",
            "--exit-timeout-secs=5",
            *options,
        ]
        libraries = [f"{facts['site']}/nvidia_pytriton.libs", facts["lib"]]
        self._env = {
            **os.environ,
            # The backend's process finds the environment by the `python3` on the path.
            "PATH": f"{facts['scripts']}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": ":".join(libraries),
            "OMP_NUM_THREADS": "1",
        }
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
            self._env.pop(name, None)
        for name, value in (env or {}).items():
            if value is None:
                self._env.pop(name, None)
            else:
                self._env[name] = value

    @property
    def http(self) -> str:
        """Address for `tritonclient.http`."""
        return f"127.0.0.1:{self.ports['http']}"

    @property
    def grpc(self) -> str:
        """Address for `tritonclient.grpc`."""
        return f"127.0.0.1:{self.ports['grpc']}"

    @property
    def log(self) -> str:
        """What the server wrote so far."""
        return self.log_file.read_text("utf-8", "replace") if self.log_file.exists() else ""

    def start(self, timeout: float = 120, ready: bool = True) -> None:
        """Start it, and wait until all its models are ready; or, with `ready=False`, until it answers."""
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, env=self._env, start_new_session=True
            )
        until = time.monotonic() + timeout
        while not self._answers("ready" if ready else "live"):
            ended = self.process.poll() is not None
            if ended or time.monotonic() > until:
                self.kill()
                why = "ended" if ended else f"is not ready after {timeout:.0f} s"
                raise AssertionError(f"the server {why}:\n{self.log[-20_000:]}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End it as an operator does."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
        self.kill()

    def kill(self) -> None:
        """End it and the processes of its models at once."""
        process, self.process = self.process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
        for left in Path("/dev/shm").glob(f"{self._shared}*"):
            left.unlink(missing_ok=True)

    def _answers(self, what: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.http}/v2/health/{what}", timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False


def _backends(server: Path, version: str, folder: Path) -> Path:
    """A folder of backends with the program for the environment's Python; the wheel's stays as it is."""
    target = folder / "backends" / "python"
    target.mkdir(parents=True, exist_ok=True)
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    files = (server / "backends" / "python").glob("*.*")
    for file in (*files, stub):
        link = target / file.name
        if not link.exists():
            link.symlink_to(file)
    return target.parent


@contextlib.contextmanager
def running_server(
    repository: Path,
    options: Sequence[str] = (),
    env: Mapping[str, str | None] | None = None,
    threads: int = 4,
    ready: bool = True,
) -> Iterator[TritonServer]:
    """A server whose models are ready; it ends with the block. The test is skipped where there is none.

    Args:
        repository: The model repository.
        options: More of the server's command line.
        env: More of its environment; None removes a variable.
        threads: Threads of HTTP requests.
        ready: False only waits until the server answers, for models that cannot be loaded.
    """
    python = server_python()
    with tempfile.TemporaryDirectory(prefix="triton") as folder:
        server = TritonServer(repository, Path(folder), options, env, python, threads)
        try:
            server.start(ready=ready)
            yield server
        finally:
            server.stop()
