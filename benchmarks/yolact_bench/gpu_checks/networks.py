"""Networks to check and time engines with: random weights that find something, exported and built."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolact_runtime.child import module_command
from yolact_runtime.errors import YolactError

if TYPE_CHECKING:
    import torch

MAX_BATCH = 8
CONFIG = "yolact_tiny"
# One in so many priors is to score more than 0.3, so that scores are apart and there are objects to find.
_ONE_IN = 50


@dataclass(frozen=True)
class Flavour:
    """A way to run a network on a GPU.

    Attributes:
        name: Such as "tensorrt-native".
        needs: Packages that it imports.
        export: Options of `yolact-export`; empty if the checkpoint itself runs.
        options: Of `load_engine`.
        repeatable: Whether two engines opened from the file return the same bits.
    """

    name: str
    needs: tuple[str, ...]
    export: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    repeatable: bool = False

    @property
    def suffix(self) -> str:
        """Of the file that is opened."""
        if not self.export:
            return ".pth"
        return ".engine" if "trt" in self.export else ".onnx"


def _tensorrt(name: str, library: str, short: str, detect: str) -> Flavour:
    needs = (library, "pycuda", "cuda", "onnx", "torch")
    export = ("--to", "trt", "--backend", short, "--detect", detect)
    return Flavour(f"{name}-{detect}", needs, export, {"backend": "tensorrt"}, True)


# Images rounded like those of exported files.
_TORCH = {"device": "cuda", "input_dtype": "uint8"}
FLAVOURS = (
    *(_tensorrt("tensorrt", "tensorrt", "trt", detect) for detect in ("native", "runtime", "plugin")),
    *(_tensorrt("tensorrt-rtx", "tensorrt_rtx", "rtx", detect) for detect in ("native", "runtime")),
    *(
        Flavour(
            f"onnxruntime-cuda-{detect}",
            ("onnxruntime", "onnx", "torch"),
            ("--detect", detect),
            {"backend": "cuda"},
        )
        for detect in ("native", "runtime")
    ),
    Flavour("pytorch-cuda", ("torch",), (), _TORCH),
    Flavour("pytorch-cuda-half", ("torch",), (), {**_TORCH, "precision": "fp16"}),
)


def flavour(name: str) -> Flavour:
    """One of `FLAVOURS`."""
    return next(one for one in FLAVOURS if one.name == name)


def make_checkpoint(folder: Path, config: str = CONFIG) -> Path:
    """A checkpoint with random weights that find objects, written once into a folder."""
    path = folder / f"{config}_0_1.pth"
    if path.exists():
        return path
    import torch

    from yolact import Yolact, get_config
    from yolact.model.backbone import zero_init_residual
    from yolact.train.checkpoint import save_checkpoint
    from yolact_bench.peers.torch_peer import settle_batch_norm

    torch.manual_seed(0)
    model = Yolact(get_config(config)).eval()
    zero_init_residual(model)
    height, width = model.config.model.input_shape
    batch = torch.nn.functional.interpolate(torch.randn(1, 3, 12, 12), (height, width), mode="bicubic")
    settle_batch_norm(model, lambda: model(batch))
    with torch.no_grad():
        found = model(batch)
        offsets, inner = found.loc.std(), torch.atanh(found.coefficients.clamp(-0.999, 0.999)).std()
        factors = {"conf_layer": _sharpness(found.logits), "bbox_layer": 1 / offsets, "mask_layer": 1 / inner}
        for name, parameter in model.named_parameters():
            layer, _, kind = name.rpartition(".")
            if kind in ("weight", "bias") and layer.rpartition(".")[2] in factors:
                parameter.mul_(factors[layer.rpartition(".")[2]])
    save_checkpoint(path, model, 0, 1, None)
    return path


def _sharpness(logits: torch.Tensor) -> float:
    """The factor of (N, P, C+1) logits with which one in `_ONE_IN` priors scores more than 0.3."""
    flat, low, high = logits.flatten(0, 1), 1e-3, 1e3
    for _ in range(30):
        middle = (low * high) ** 0.5
        best = (middle * flat).softmax(dim=1)[:, 1:].amax(dim=1)  # (N P,)
        low, high = (low, middle) if (best > 0.3).float().mean() > 1 / _ONE_IN else (middle, high)
    return high


def make_engine(
    flavour: Flavour, folder: Path, config: str = CONFIG, more: Sequence[str] = (), capability: str = ""
) -> Path:
    """Export and build the file that a flavour opens, once.

    Args:
        flavour: One of `FLAVOURS`.
        folder: Of the files.
        config: The network.
        more: Further options of `yolact-export`.
        capability: Of the GPU, which TensorRT-RTX builds for.

    Raises:
        YolactError: the library cannot build it.
    """
    checkpoint = make_checkpoint(folder, config)
    if not flavour.export:
        return checkpoint
    path = folder / f"{config}-{flavour.name}{''.join(more)}{flavour.suffix}"
    if path.exists():
        return path
    arguments = ["--weights", str(checkpoint), *flavour.export, "--max-batch", str(MAX_BATCH), *more]
    arguments += ["--output", str(path)]
    if "rtx" in flavour.export and capability:
        arguments += ["--device-capability", capability]
    export(*arguments)
    return path


def export(*words: str) -> None:
    """Run yolact-export in a process of its own: builders keep memory, and print what is no error.

    Raises:
        YolactError: it failed, with its last line.
    """
    done = subprocess.run(module_command("yolact_export.cli", *words), capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1].removeprefix("ERROR: ") if lines else f"exit code {done.returncode}"
        raise YolactError(f"yolact-export failed: {reason}")
