"""The scripts that bring the project to a GPU machine without a network: no GPU is needed here."""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).resolve().parent
MIB = 2**20


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for it
    spec.loader.exec_module(module)
    return module


wheels, bring_up = load("wheels"), load("bring_up")


@pytest.fixture
def kit(tmp_path: Path) -> tuple[dict[str, bytes], list[Path]]:
    """Contents of files, and the transfers that they were cut into."""
    contents = {
        name: random.Random(name).randbytes(size)
        for name, size in (
            ("large.whl", 3 * MIB + 17),
            ("small-1.whl", 1000),
            ("pycuda-1.0.tar.gz", MIB // 4),
        )
    }
    (tmp_path / "files").mkdir()
    for name, content in contents.items():
        (tmp_path / "files" / name).write_bytes(content)
    out = tmp_path / "kit"
    out.mkdir()
    count = wheels.cut(sorted((tmp_path / "files").iterdir()), out, MIB, {"python": "3.12", "folder": out})
    transfers = sorted(out.iterdir())
    assert len(transfers) == count
    return contents, transfers


def test_every_transfer_fits(kit: tuple[dict[str, bytes], list[Path]]) -> None:
    _, transfers = kit
    assert len(transfers) == 7
    for transfer in transfers:
        assert sum(file.stat().st_size for file in transfer.iterdir()) <= MIB
        assert (transfer / "wheels.py").exists()
        assert "folder" not in json.loads((transfer / "kit.json").read_text())


def test_files_arrive_as_they_left(
    kit: tuple[dict[str, bytes], list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents, transfers = kit
    store = tmp_path / "store"
    for transfer in reversed(transfers):
        for _ in range(2):  # once more does no harm
            assert wheels.main(["store", str(transfer), str(store)]) == 0
    assert capsys.readouterr().out.endswith("complete\n")
    files = wheels.join(store, tmp_path / "joined")
    assert {file.name: file.read_bytes() for file in files} == contents


def test_a_transfer_that_is_missing(
    kit: tuple[dict[str, bytes], list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, transfers = kit
    for transfer in transfers[1:]:
        assert wheels.main(["store", str(transfer), str(tmp_path / "store")]) == 0
    assert "1 parts are missing, such as large.whl.part-000" in capsys.readouterr().out
    with pytest.raises(wheels.KitError, match=r"large\.whl\.part-000 is missing; send the transfer"):
        wheels.join(tmp_path / "store", tmp_path / "joined")
    assert not (tmp_path / "joined" / "large.whl").exists()


def edit(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def spoil(transfer: Path) -> None:
        file = transfer / "kit.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return spoil


def flip(transfer: Path) -> None:
    part = next(transfer.glob("*.part-*"))
    part.write_bytes(bytes([part.read_bytes()[0] ^ 1]) + part.read_bytes()[1:])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (flip, "is damaged"),
        (lambda transfer: (transfer / "kit.json").unlink(), "cannot be read"),
        (edit(lambda kit: kit.update(kit=2)), "is no list of a kit"),
        (edit(lambda kit: kit["files"][0]["parts"][0].update(name="../out")), "is no name of a file"),
    ],
)
def test_damaged_and_hostile_transfers(
    spoil: Callable[[Path], None],
    words: str,
    kit: tuple[dict[str, bytes], list[Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    transfer = kit[1][0]
    spoil(transfer)
    assert wheels.main(["store", str(transfer), str(tmp_path / "store")]) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not list(tmp_path.glob("out*"))


def test_names_and_versions(tmp_path: Path) -> None:
    file = tmp_path / "freeze"
    file.write_text("Torch==2.11.0+cu130\nml_dtypes==0.5\n-e /work/x\npillow @ file:///x\nSciPy\n")
    assert wheels._frozen(file) == {"torch": "2.11.0+cu130", "ml-dtypes": "0.5", "scipy": ""}
    assert wheels._name_and_version("ml_dtypes-0.5-cp312-cp312-linux_x86_64.whl") == ("ml-dtypes", "0.5")
    assert wheels._name_and_version("pycuda-2026.1.tar.gz") == ("pycuda", "2026.1")
    assert "nvidia-cuda-nvrtc==13.0.*" in wheels._cuda_packages("13.0")
    assert "nvidia-cuda-runtime-cu12==12.8.*" in wheels._cuda_packages("12.8")


def test_each_step_ends_and_the_next_ones_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [
        bring_up.Step("fails", ("python", "-c", "print('x'); raise SystemExit(3)"), 60),
        bring_up.Step("absent", ("no-such-program",), 60),
        bring_up.Step("hangs", ("python", "-c", "import time; print(1, flush=True); time.sleep(60)"), 3),
        bring_up.Step("works", ("python", "-c", "print('done')"), 60),
    ]
    monkeypatch.setattr(bring_up, "steps", lambda *arguments: made)
    output = tmp_path / "output"
    assert bring_up.main([str(output)]) == 1
    summary = json.loads((output / "summary.json").read_text())
    codes = [entry["code"] for entry in summary]
    assert codes[0] == 3 and "no-such-program" in codes[1] and codes[2] == "ended after 3 s" and codes[3] == 0
    assert (output / "hangs.log").read_text().endswith("1\n")
    assert (tmp_path / "output.tar.gz").exists()
    assert bring_up.main([str(output), "--only", "works", "--minutes", "0"]) == 1
    summary = json.loads((output / "summary.json").read_text())
    assert [entry["code"] for entry in summary] == codes  # what has run is kept


def test_a_call_adds_its_steps_to_the_summary(tmp_path: Path) -> None:
    file = tmp_path / "summary.json"
    for name, code in (("a", 1), ("b", 0), ("a", 0), ("b", bring_up.NO_TIME), ("c", bring_up.NO_TIME)):
        bring_up.merge(file, [{"step": name, "code": code}])
    found = {entry["step"]: entry["code"] for entry in json.loads(file.read_text())}
    assert found == {"a": 0, "b": 0, "c": bring_up.NO_TIME}


def test_a_step_may_end_its_own_children(tmp_path: Path) -> None:
    program = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('ended them')))\n"
        "print('on', flush=True); time.sleep(60)"
    )
    entry = bring_up.run(bring_up.Step("s", ("python", "-c", program), 60), tmp_path, 3)
    assert entry["code"] == "ended after 3 s"
    assert (tmp_path / "s.log").read_text().endswith("on\nended them\n")


def test_packages_for_a_cuda() -> None:
    assert "onnxruntime-gpu[cuda,cudnn]<1.27" in wheels._cuda_packages("12.8")
    assert "onnxruntime-gpu[cuda,cudnn]>=1.28" in wheels._cuda_packages("13.0")
    wheels._check_indexes(["torch"], "13.0", [])
    wheels._check_indexes(["torch", "tensorrt"], "12.8", ["https://index"])
    with pytest.raises(wheels.KitError, match=r"--with torch .* add --index https://download\S+/cu128$"):
        wheels._check_indexes(["torch"], "12.8", [])
    with pytest.raises(wheels.KitError, match=r"add --index https://pypi\.nvidia\.com"):
        wheels._check_indexes(["tensorrt"], "13.0", [])


def test_toolkit_and_driver_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_PATH", "CUDA_HOME", "CUDA_ROOT", "LD_LIBRARY_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(wheels.shutil, "which", lambda name: None)  # neither nvcc nor ldconfig
    for name in ("cu13", "cuda_runtime"):
        toolkit = tmp_path / name / "nvidia" / name
        (toolkit / "include").mkdir(parents=True)
        (toolkit / "include" / "cuda.h").touch()
        monkeypatch.setenv("CUDA_PATH", str(toolkit))
        assert wheels.find_toolkit() == toolkit
        monkeypatch.delenv("CUDA_PATH")
        if not any((Path(place) / "include/cuda.h").is_file() for place in ("/usr", "/usr/local/cuda")):
            assert wheels.find_toolkit([tmp_path / name]) == toolkit
    (toolkit / "lib" / "stubs").mkdir(parents=True)
    (toolkit / "lib" / "stubs" / "libcuda.so").touch()
    assert wheels.find_driver(toolkit).name.startswith("libcuda.so")


def test_pycuda_that_is_there_is_not_built(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "build_pycuda", lambda *_: pytest.fail("built"))
    wheels._install_pycuda([Path("numpy-2.0.whl")], Path("python"), argparse.Namespace())
    assert "the one that is there is used" in capsys.readouterr().out


def test_the_steps_name_commands_that_exist(tmp_path: Path) -> None:
    """Their options are those of the parsers."""
    from yolact_bench.cli import build_parser
    from yolact_bench.doctor.cli import build_parser as doctor_parser

    names = [step.name for step in bring_up.steps(tmp_path / "out", tmp_path / "work", tmp_path)]
    assert names[2:4] == ["test-kernels", "kernels"] and len(set(names)) == len(names)
    limits = {step.name: step.seconds for step in bring_up.steps(tmp_path, tmp_path, None)}
    assert sum(limits.values()) - limits["test-tensorrt"] <= 25 * 60
    page = (bring_up.ROOT / "docs/contributing/first-gpu.md").read_text()
    calls = re.findall(r"bring_up\.py results --minutes 9 --only (.+)", page)
    assert [name for call in calls for name in call.split()] == [*limits][:-1]
    assert all(sum(limits[name] for name in call.split()) <= 540 for call in calls)
    for step in bring_up.steps(tmp_path / "out", tmp_path / "work", tmp_path):
        if step.command[0] == "yolact-doctor":
            doctor_parser().parse_args(step.command[1:])
        if step.command[0] == "yolact-bench":
            build_parser().parse_args(step.command[1:])
        if "tests/gpu" in step.command[-1]:
            assert (bring_up.ROOT / step.command[-1]).exists()
