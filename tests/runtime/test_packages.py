"""The table of packages against pyproject.toml, and what is said about packages that do not load."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

from yolact_runtime.errors import YolactError
from yolact_runtime.packages import PACKAGES, import_failure, imports_failed, require

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
# Libraries that no Python code imports, and what is in other packages' place on some systems.
NOT_IMPORTED = {"nvidia-cuda-nvrtc-cu12", "nvidia-cuda-runtime-cu12", "onnxruntime-gpu"}


def declared() -> dict[str, set[str]]:
    """Distributions of each extra, with those of the extras in it; "" for the base install."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML reader")
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    lists = {"": project["dependencies"], **project["optional-dependencies"]}

    def names(extra: str) -> set[str]:
        found = set()
        for line in lists[extra]:
            name, inner = re.match(r"([\w.-]+)(?:\[([\w,]+)\])?", line).groups()  # type: ignore[union-attr]
            found |= set().union(*map(names, inner.split(","))) if name == "yolact" else {name}
        return found - NOT_IMPORTED

    return {extra: names(extra) for extra in lists if extra not in ("dev", "docs")}


def test_the_table_has_every_package_of_every_extra_and_no_other() -> None:
    table: dict[str, set[str]] = {}
    for distribution, extras in PACKAGES.values():
        for extra in extras:
            table.setdefault(extra, set()).add(distribution)
    assert table == declared()


def test_the_smallest_extra_comes_first() -> None:
    sizes = {extra: len(names) for extra, names in declared().items()}
    # `train` alone installs PyTorch, which is larger than all the others.
    for package, (_, extras) in PACKAGES.items():
        # Alone, onnx is for exports of checkpoints, and Pillow for the converters.
        if package not in ("onnx", "PIL"):
            assert list(extras) == sorted(extras, key=sizes.__getitem__)


def fail(source: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> BaseException:
    """What importing a package `name` with this source in its `__init__.py` raises."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder))
    for module in [one for one in importlib.sys.modules if one.partition(".")[0] == name]:  # type: ignore[attr-defined]
        monkeypatch.delitem(importlib.sys.modules, module)  # type: ignore[attr-defined]
    with pytest.raises(Exception) as caught:
        importlib.import_module(name)
    return caught.value


@pytest.mark.parametrize(
    ("package", "source", "reason", "again"),
    [
        ("cv2", "raise ImportError('libGL.so.1: lost')", "libGL.so.1: lost", "opencv-python-headless"),
        ("tensorboard", "raise OSError('libc.so.13: no file')", "libc.so.13: no file", "tensorboard"),
        ("tritonclient", "import no_such_module", "No module named 'no_such_module'", "tritonclient"),
        ("psutil", "1 / 0", "division by zero", "psutil"),
        ("sympy", "from sympy.none import x", "No module named 'sympy.none'", "sympy"),
    ],
)  # fmt: skip
def test_a_package_that_does_not_load_is_not_called_missing(
    package: str, source: str, reason: str, again: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = fail(source, package, tmp_path, monkeypatch)
    said = str(import_failure(error, "yolact-x"))
    assert said.startswith(f"yolact-x needs {package}, which is installed but does not load ({reason})")
    assert said.endswith(f"pip install --force-reinstall {again}")


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(importlib.sys.modules, "openvino", None)  # type: ignore[attr-defined,arg-type]
    with pytest.raises(ImportError) as caught:
        importlib.import_module("openvino.not_imported_yet")
    line = "x (no module 'openvino') needs packages that are not installed; run: pip install"
    assert str(imports_failed(caught.value, "x")) == f'{line} "yolact[openvino]"'
    assert str(imports_failed(caught.value, "x", "train,openvino")) == f'{line} "yolact[train,openvino]"'
    with pytest.raises(YolactError, match=r"x .no module openvino, scipy_none. needs"):
        require("x", "openvino", "openvino", "sys", "scipy_none")


def test_a_jetson_has_tensorrt_from_jetpack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.release", lambda: "5.15.148-tegra")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(YolactError, match=r"apt install python3-libnvinfer.*--system-site-packages"):
        require("building", "trt", "tensorrt")
    with pytest.raises(ImportError) as caught:
        importlib.import_module("tensorrt")
    assert "JetPack's TensorRT" in str(imports_failed(caught.value, "opening x.engine", "trt"))
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(YolactError, match=re.escape('pip install "yolact[trt]"')):
        require("building", "trt", "pycuda")


def test_a_package_of_the_base_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(importlib.sys.modules, "shtab", None)  # type: ignore[attr-defined,arg-type]
    with pytest.raises(ImportError) as caught:
        importlib.import_module("shtab")
    assert str(import_failure(caught.value, "x")).endswith("run: pip install yolact")


@pytest.mark.parametrize(
    "error", [ValueError("x"), OSError("disk"), ModuleNotFoundError("no", name="yolact_x")]
)
def test_other_errors_are_not_taken_for_missing_packages(error: Exception) -> None:
    assert import_failure(error, "x") is None
