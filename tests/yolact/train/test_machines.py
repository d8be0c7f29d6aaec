"""Two machines: torchrun on each, of which one is killed or freezes, and what they must agree on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from ports import free_ports

from yolact.data.coco import CocoDataset
from yolact.data.layout import resolve_dataset
from yolact.registry import get_config
from yolact.train import agreement
from yolact.train.agreement import check_agreement, open_checkpoint
from yolact.train.checkpoint import find_checkpoint
from yolact.train.distributed import Processes, explain_lost
from yolact.train.signals import StopSignal
from yolact.weights.load import load_checkpoint
from yolact_runtime.errors import UsageError, YolactError

Agents = list[subprocess.Popen[str]]


class Machines:
    """Runs `torchrun` of two machines on this one, and everything that they started ends with the test."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        (self.port,) = free_ports(1)
        self.folder, self.command = folder, command
        self.started: Agents = []

    def start(self, name: str) -> subprocess.Popen[str]:
        """Start a machine; its output goes to `<name>.log`, at whose end it continues."""
        settings = "join_timeout=60,last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=5"
        launcher = (
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"),
            *("--max-restarts", "3", "--monitor-interval", "0.1", "--rdzv-backend", "c10d"),
            *("--rdzv-endpoint", f"127.0.0.1:{self.port}"),
            *("--rdzv-conf", f"{settings},is_host={int(name == 'first')}"),
        )
        environment = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"}
        with (self.folder / f"{name}.log").open("a") as log:
            agent = subprocess.Popen(
                [*launcher, "-m", "yolact.cli.train", *self.command],
                stdout=log, stderr=log, text=True, env=environment, start_new_session=True,
            )  # fmt: skip
        self.started.append(agent)
        return agent

    def processes(self, agent: subprocess.Popen[str]) -> list[int]:
        """Ids of torchrun and of the training processes that it started."""
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
        return [agent.pid, *map(int, children)]

    def signal(self, agent: subprocess.Popen[str], number: int) -> None:
        """Send a signal to all processes of a machine."""
        for process in self.processes(agent):
            os.kill(process, number)


@contextmanager
def machines(folder: Path, command: list[str]) -> Iterator[Machines]:
    """Two machines, not yet started."""
    both = Machines(folder, command)
    try:
        yield both
    finally:
        for agent in both.started:
            if agent.poll() is None:
                for number in (signal.SIGKILL, signal.SIGCONT):
                    both.signal(agent, number)
                agent.wait(30)


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# Ten images in two parts and two processes: 3, 3, 2 and 2. Batch norm is the one thing that is not shared.
# SGD, because AdamW divides rounding errors by gradients that are hardly larger.
OPTIONS = (
    "--iterations", "10", "--batch-size", "5", "--accumulate", "2", "--validate-every", "5",
    "--save-every", "2", "--keep-last", "0", "--set", "train.freeze_bn=always",
    "--set", "train.ema_decay=0.9", "--set", "train.optimizer=sgd", "--lr", "0.002",
)  # fmt: skip


@pytest.mark.slow
def test_two_machines_of_which_one_freezes_and_is_started_again_equal_one_process(
    run: Any, command: Callable[..., list[str]], records: Any, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(one, *OPTIONS) == 0
    with machines(tmp_path, [*command(two, *OPTIONS), "--resume", "auto", "--timeout", "20"]) as both:
        first, second = both.start("first"), both.start("second")
        log = tmp_path / "first.log"
        wait_for(lambda: list(two.glob("*_4.pth")))
        both.signal(second, signal.SIGSTOP)
        wait_for(lambda: "has not answered for 20 s" in log.read_text())
        both.signal(second, signal.SIGKILL)
        second.wait(60)
        second = both.start("second")
        assert (first.wait(120), second.wait(120)) == (0, 0), log.read_text()
    assert log.read_text().count("INFO: continuing from") == 1
    assert (tmp_path / "second.log").read_text().count("INFO: this is process 1") == 2
    for a, b in zip(records(one), records(two), strict=True):
        for name in ("box", "cls", "mask", "semantic", "grad_norm", "lr"):
            assert b[name] == pytest.approx(a[name], rel=1e-4), (a["iteration"], name)
    a, b = (load_checkpoint(find_checkpoint("last", folder, "yolact_tiny")) for folder in (one, two))
    for key in a.model:
        torch.testing.assert_close(b.model[key], a.model[key], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(b.ema[key], a.ema[key], rtol=1e-4, atol=1e-6)
    merged, whole = (records(folder, "validation")[-1]["validation"] for folder in (two, one))
    assert merged == pytest.approx(whole, abs=2e-3)


class Paired(Processes):
    """One of two processes, which gets from the test what the other one has."""

    other: ClassVar[Any] = None

    def gather(self, value: Any) -> list[Any]:
        return [value, self.other(value)]

    def from_first(self, compute: Callable[[], Any]) -> Any:
        return compute()


@pytest.fixture()
def paired(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Processes]:
    """`paired(other)`: the first of two processes; `other` makes the second one's value of its value."""
    monkeypatch.setattr(agreement, "VISIBLE_SECONDS", 0)
    monkeypatch.setattr(agreement, "_WAIT", 0.01)

    def paired(other: Callable[[Any], Any]) -> Processes:
        monkeypatch.setattr(Paired, "other", staticmethod(other))
        return Paired(0, 2, ("left", "right"))

    return paired


def test_a_checkpoint_that_only_another_machine_sees_is_an_error(paired: Any, tmp_path: Path) -> None:
    for resume in ("auto", "last"):
        with pytest.raises(YolactError, match=r"process 1 on right sees w/x_0_5\.pth, and process 0 on left"):
            open_checkpoint(resume, tmp_path, None, paired(lambda _: (5, "w/x_0_5.pth")))
    # Nobody has one, or only the first process, whose content the others get.
    assert open_checkpoint("auto", tmp_path, None, paired(lambda _: (-1, ""))) is None
    (tmp_path / "yolact_tiny_0_7.pth").write_bytes(b"damaged")
    with pytest.raises(YolactError, match="yolact_tiny_0_7"):
        open_checkpoint("auto", tmp_path, None, paired(lambda _: (5, "w/x_0_5.pth")))


def test_auto_passes_over_a_damaged_checkpoint(
    run: Any, paired: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--iterations", "1") == 0
    (whole,) = tmp_path.glob("yolact_tiny_*_1.pth")
    for iteration in (2, 3):
        (tmp_path / f"yolact_tiny_0_{iteration}.pth").write_bytes(whole.read_bytes()[: 1000 * iteration])
    found = open_checkpoint("auto", tmp_path, None, paired(lambda value: value))
    assert (found.path, found.iteration) == (whole, 1)
    lines = [line for line in capsys.readouterr().err.splitlines() if "WARNING" in line]
    assert [name in line for name, line in zip(("0_3.pth", "0_2.pth"), lines, strict=True)] == [True, True]
    with pytest.raises(YolactError, match=r"yolact_tiny_0_3\.pth"):
        open_checkpoint("last", tmp_path, None, paired(lambda value: value))


def test_other_settings_or_images_on_a_machine_are_an_error(shapes: Path, paired: Any) -> None:
    config = replace(get_config("yolact_tiny"), dataset=resolve_dataset(shapes))
    data = config.dataset
    dataset = CocoDataset(data.train_images, data.train_annotations, config.model, config.classes)
    device = torch.device("cpu")

    def check(other: Callable[[Any], Any]) -> None:
        check_agreement(config, dataset, None, device, 3, paired(other))

    def with_train(**changes: Any) -> Callable[[Any], Any]:
        return lambda v: (replace(v[0], train=replace(v[0].train, **changes)), *v[1:])

    def with_dataset(**changes: Any) -> Callable[[Any], Any]:
        return lambda v: (replace(v[0], dataset=replace(v[0].dataset, **changes)), *v[1:])

    def with_fact(name: str, value: object) -> Callable[[Any], Any]:
        return lambda v: (v[0], {**v[1], name: value}, v[2])

    check(lambda value: value)
    for other, text in (
        (with_dataset(crowd_as_instances=True), "dataset.crowd_as_instances is False in process 0 on left"),
        (with_train(batch_size=99), "train.batch_size is 8 in process 0 on left and 99 in process 1"),
        (with_fact("the first iteration", 0), "the first iteration is 3 in process 0 on left and 0"),
        (with_fact("the training part", "9 images (0)"), "the training part is 24 images"),
    ):
        with pytest.raises(UsageError, match=text):
            check(other)


def test_only_torchrun_stops_its_processes_at_once() -> None:
    """Slurm sends SIGTERM to every process, and torchrun sends its own."""
    with StopSignal(launched=True) as stop:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
    assert stop


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[unbound_buffer.cc:78] Timed out waiting 10000ms for recv", "has not answered for 10 s"),
        ("[pair.cc:561] Connection closed by peer [127.0.0.1]:37019. gloo", "failed; see its output"),
        ("CUDA error: the launch timed out and was terminated", None),
        ("mat1 and mat2 shapes cannot be multiplied", None),
    ],
)
def test_lost_processes_are_one_line(text: str, said: str | None) -> None:
    error = explain_lost(RuntimeError(text), 10)
    assert said in str(error) if said else error is None


# It has a parent that is killed, as torchrun may be.
ORPHAN = """
import os, subprocess, sys, threading, time

if len(sys.argv) > 1:
    from yolact.train import distributed

    threading.Thread(target=distributed._end_without, args=(os.getppid(),), daemon=True).start()
    print("started", flush=True)
    time.sleep(60)
else:
    subprocess.run([sys.executable, __file__, "child"])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a parent's end is not seen on Windows")
def test_a_process_ends_without_its_torchrun(tmp_path: Path) -> None:
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline()
        parent.kill()
        # The pipe has no writer any more once the child has ended, too, long before its 60 s.
        assert parent.stdout.read() == ""
