"""A checkpoint as an engine of the runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch

from yolact.config import Config
from yolact.describe import describe
from yolact.model import Yolact
from yolact.model.detect import detect
from yolact.model.preprocess import Normalise
from yolact.weights.load import load_model
from yolact_runtime.detections import Detections
from yolact_runtime.engines.base import Engine
from yolact_runtime.errors import UsageError

MAX_BATCH = 64


class TorchEngine(Engine):
    """Runs a checkpoint in PyTorch.

    Args:
        path: A `.pth` or `.safetensors` file.
        config: The configuration's name, where neither the file nor its name says it.
        device: `cpu`, `cuda`, `cuda:1`, ...; `auto` takes the first GPU where there is one.
        nms: `fast`, `traditional` or `cross_class`; the configuration's where None.
        input_dtype: `float32` resizes on float values, as the original does. `uint8` rounds the
            resized image first, which is what an exported graph gets: use it to compare with one.
        threads: CPU threads; PyTorch's own choice where None.

    Raises:
        YolactError: the file cannot be opened.
        UsageError: a value that is not allowed.
    """

    def __init__(
        self,
        path: str | Path,
        config: str | None = None,
        device: str = "auto",
        nms: str | None = None,
        input_dtype: str = "float32",
        threads: int | None = None,
    ) -> None:
        if input_dtype not in ("float32", "uint8"):
            raise UsageError(f"input_dtype {input_dtype!r}; allowed: float32, uint8")
        if threads:
            torch.set_num_threads(threads)
        self._setup(load_model(path, config), device, nms, input_dtype)

    @classmethod
    def from_model(cls, model: Yolact, device: str = "auto", input_dtype: str = "float32") -> TorchEngine:
        """An engine around a network that is in memory already. Puts it in evaluation mode."""
        engine = cls.__new__(cls)
        engine._setup(model.eval(), device, None, input_dtype)
        return engine

    def _setup(self, model: Yolact, device: str, nms: str | None, input_dtype: str) -> None:
        if nms is not None:
            model.config = with_nms(model.config, nms)
        self.device = pick_device(device)
        self.model = model.to(self.device)
        self.normalise = Normalise(model.config.model).to(self.device)
        self.metadata = describe(
            model.config, input_dtype=input_dtype, max_batch=MAX_BATCH, versions={"torch": torch.__version__}
        )

    @property
    def name(self) -> str:
        return f"PyTorch ({self.device})"

    def detect(self, batch: np.ndarray) -> Detections:
        with torch.inference_mode():
            x = self.normalise(torch.from_numpy(np.ascontiguousarray(batch)).to(self.device))
            output = self.model(x)
            if self.stage_timer is not None and self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # the network's time is not detection's
            with self.timed("detect"):
                found = detect(self.model, output)
                return Detections(*(tensor.cpu().numpy() for tensor in found))


def with_nms(config: Config, nms: str) -> Config:
    """`config` with another kind of NMS.

    Raises:
        UsageError: there is no such kind.
    """
    kinds = ("fast", "traditional", "cross_class")
    if nms not in kinds:
        raise UsageError(f"nms {nms!r}; allowed: {', '.join(kinds)}")
    kind = cast("Literal['fast', 'traditional', 'cross_class']", nms)
    return replace(config, detect=replace(config.detect, nms=kind))


def pick_device(name: str) -> torch.device:
    """The device called `name`; `auto` is the first GPU, or the CPU where there is none.

    Raises:
        UsageError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device {name!r}; allowed: auto, cpu, cuda, cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {name!r}: PyTorch finds no CUDA device here; use --device cpu")
    return device
