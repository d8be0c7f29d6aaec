"""Which extra of this project installs which package, and errors for packages that are missing or broken."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from types import TracebackType

from yolact_runtime.errors import YolactError, first_line, missing_extra

# Distribution and extras of each package, by the name it is imported by; the smallest extra comes first.
# "": the base install. tests/runtime/test_packages.py compares the table with pyproject.toml.
PACKAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "numpy": ("numpy", ("",)),
    "cv2": ("opencv-python-headless", ("",)),
    "pycocotools": ("pycocotools", ("",)),
    "onnxruntime": ("onnxruntime", ("",)),
    "rich": ("rich", ("",)),
    "shtab": ("shtab", ("",)),
    "torch": ("torch", ("train",)),
    "torchvision": ("torchvision", ("train",)),
    "onnx": ("onnx", ("train", "trt", "rtx")),
    "onnxscript": ("onnxscript", ("train",)),
    "safetensors": ("safetensors", ("train",)),
    "sympy": ("sympy", ("train",)),
    "yaml": ("pyyaml", ("train",)),
    "huggingface_hub": ("huggingface_hub", ("train",)),
    "PIL": ("pillow", ("train", "heif")),
    "pillow_heif": ("pillow-heif", ("heif",)),
    "tensorboard": ("tensorboard", ("train",)),
    "jinja2": ("jinja2", ("bench", "train")),
    "matplotlib": ("matplotlib", ("bench", "train")),
    "psutil": ("psutil", ("bench", "train")),
    "scipy": ("scipy", ("bench", "train")),
    "pynvml": ("nvidia-ml-py", ("bench", "train")),
    "openvino": ("openvino", ("openvino",)),
    "av": ("av", ("video",)),
    "trackers": ("trackers", ("track",)),
    "supervision": ("supervision", ("supervision", "track")),
    "fiftyone": ("fiftyone", ("fiftyone",)),
    "pyarrow": ("pyarrow", ("table", "ray")),
    "ray": ("ray", ("ray",)),
    "fsspec": ("fsspec", ("ray",)),
    "tritonclient": ("tritonclient", ("triton",)),
    "tensorrt": ("tensorrt", ("trt",)),
    "tensorrt_rtx": ("tensorrt-rtx-cu13", ("rtx",)),
    "cuda": ("cuda-bindings", ("cuda", "trt", "rtx")),
    "pycuda": ("pycuda", ("cuda", "trt", "rtx")),
}
# Folders in which several distributions put their modules.
_SHARED = ("cuda",)


def require(what: str, extra: str, *packages: str) -> None:
    """Raise a YolactError that says which extra installs the missing ones of `packages`; imports none."""
    if missing := [name for name in packages if not installed(name)]:
        raise _missing(what, missing, extra)


def import_failure(error: BaseException, what: str, extra: str = "") -> YolactError | None:
    """The error for a package that `what` needs and that is not installed, or does not load.

    Args:
        error: What an import raised, or a function that imports.
        what: What needs the package, such as a command or an option.
        extra: The extra to name for a missing package; by default the smallest that has it.

    Returns:
        None if no package of `PACKAGES` is to blame.
    """
    name = error.name or "" if isinstance(error, ModuleNotFoundError) else ""
    missing = name.partition(".")[0]
    # Other packages may have brought a folder that several share, such as `cuda`.
    shared = missing in _SHARED and not installed(name)
    if missing in PACKAGES and (name == missing or shared or not installed(missing)):
        return _missing(what, [repr(name if shared else missing)], extra or PACKAGES[missing][1][0])
    package = _failing_package(error)
    if package is None:
        return None
    return YolactError(
        f"{what} needs {package}, which is installed but does not load ({first_line(error)}); install what it"
        f" lacks, or the package again: pip install --force-reinstall {PACKAGES[package][0]}"
    )


def imports_failed(error: ImportError, what: str, extra: str = "") -> YolactError:
    """`import_failure` of an import statement, whichever package it is of."""
    return import_failure(error, what, extra) or YolactError(f"{what}: {first_line(error)}")


def installed(name: str) -> bool:
    """Whether a package is installed, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # hidden by a finder, or replaced by a module without a spec
        return False


def _missing(what: str, modules: Sequence[str], extra: str) -> YolactError:
    """The error for modules that are not installed, and that `extra` installs."""
    import platform

    if "tegra" in platform.release() and any(name.strip("'") == "tensorrt" for name in modules):
        return YolactError(
            f"{what} needs JetPack's TensorRT, which this environment does not see; run: sudo apt install"
            " python3-libnvinfer, and create the environment with python3 -m venv --system-site-packages"
        )
    return missing_extra(f"{what} (no module {', '.join(modules)})", extra)


def _failing_package(error: BaseException) -> str | None:
    """The package whose import raised `error`: the last whose top level is in the traceback."""
    names = []
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "<module>":
            names.append(trace.tb_frame.f_globals.get("__name__", ""))
        trace = trace.tb_next
    if isinstance(error, ImportError):
        names.append(error.name or "")  # a shared library that does not load has no frame
    packages = [name.partition(".")[0] for name in names]
    return next((name for name in reversed(packages) if name in PACKAGES), None)


def skip_openvino_tools() -> None:
    """Keep OpenVINO from importing its converters of models, which take most of the time.

    For processes that are all ours: `openvino.convert_model` is missing afterwards.
    """
    sys.modules.setdefault("openvino.tools", None)  # type: ignore[arg-type]
