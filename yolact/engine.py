"""A checkpoint as an engine of the runtime, and its metadata."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from yolact.config import Config
from yolact.model import Yolact, YolactOutput
from yolact.model.detect import detect
from yolact.model.preprocess import Normalise
from yolact.model.priors import pyramid_levels
from yolact.weights.load import load_model
from yolact_runtime.detections import Detections
from yolact_runtime.engines.base import Engine
from yolact_runtime.engines.threads import check_threads
from yolact_runtime.errors import UsageError, first_line
from yolact_runtime.metadata import InputSize, Metadata, PriorSpec

MAX_BATCH = 64


class TorchEngine(Engine):
    """Runs a checkpoint in PyTorch.

    Args:
        path: A `.pth` or `.safetensors` file.
        config: The configuration or its name, if neither the file nor its name says it.
        device: `cpu`, `cuda`, `cuda:1`, ...; `auto` is a GPU, if there is one. See `pick_device`.
        nms: `fast`, `traditional` or `cross_class`; None for the configuration's.
        input_dtype: `float32` resizes on float values, as the original does. `uint8` rounds the resized
            image, like the input of an exported graph: use it to compare with one.
        threads: CPU threads; None for PyTorch's choice.
        class_names: Those of weights that hold none: separated by commas, or a file with one in each line.
        input_size: Of the network's input in pixels, instead of that it was trained with; see `load_model`.
        half: Compute in half precision, on a GPU only.

    Raises:
        YolactError: the file cannot be opened.
        UsageError: a value that is not allowed.
    """

    def __init__(
        self,
        path: str | Path,
        config: str | Config | None = None,
        device: str = "auto",
        nms: str | None = None,
        input_dtype: str = "float32",
        threads: int | None = None,
        class_names: str | None = None,
        input_size: InputSize | None = None,
        half: bool = False,
    ) -> None:
        if input_dtype not in ("float32", "uint8"):
            raise UsageError(f"input_dtype {input_dtype!r}; allowed: float32, uint8")
        check_threads(threads, 1)
        if threads:
            torch.set_num_threads(threads)
        self.path = Path(path)
        self._setup(load_model(path, config, class_names, input_size), device, nms, input_dtype, half)

    @classmethod
    def from_model(cls, model: Yolact, device: str = "auto", input_dtype: str = "float32") -> TorchEngine:
        """An engine of a network in memory, which is put in evaluation mode."""
        engine = cls.__new__(cls)
        engine._setup(model.eval(), device, None, input_dtype)
        return engine

    def _setup(
        self, model: Yolact, device: str, nms: str | None, input_dtype: str, half: bool = False
    ) -> None:
        """The rest of `__init__`; arguments as there."""
        if nms is not None:
            model.config = with_nms(model.config, nms)
        self.device = pick_device(device)
        self.model = to_half(model.to(self.device)) if half else model.to(self.device)
        self.normalise = Normalise(model.config.model).to(self.device)
        self.metadata = describe(
            model.config, input_dtype=input_dtype, max_batch=MAX_BATCH, precision="fp16" if half else "fp32",
            versions={"torch": torch.__version__},
        )  # fmt: skip

    @property
    def name(self) -> str:
        return f"PyTorch ({self.device})"

    def _forward(self, batch: np.ndarray) -> YolactOutput:
        x = self.normalise(torch.from_numpy(np.ascontiguousarray(batch)).to(self.device))
        if self.metadata.precision == "fp16":
            x = x.to(torch.half, memory_format=torch.channels_last)
        with self._exact():
            output: YolactOutput = self.model(x)
        return YolactOutput(*(value.float() for value in output))

    def _exact(self) -> AbstractContextManager[None]:
        """For whatever convolves: the network, and the re-scoring of masks in detection."""
        return exact_convolutions() if self.device.type == "cuda" else nullcontext()

    def heads(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        """Raw outputs of the network, by name in `YolactOutput`, for a batch as `detect` takes it."""
        with torch.inference_mode():
            return {name: value.cpu().numpy() for name, value in self._forward(batch)._asdict().items()}

    def detect_heads(self, heads: Mapping[str, np.ndarray]) -> Detections:
        """Detections from raw outputs of the network, by name."""
        with torch.inference_mode():
            output = YolactOutput(**{name: torch.from_numpy(v).to(self.device) for name, v in heads.items()})
            with self._exact():
                found = detect(self.model, output)
            return Detections(*(tensor.cpu().numpy() for tensor in found))

    def detect(self, batch: np.ndarray, classes: frozenset[int] | None = None) -> Detections:
        with torch.inference_mode():
            output = self._forward(batch)
            if self.stage_timer is not None and self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # the network's time is not detection's
            with self.timed("detect"):
                with self._exact():
                    found = detect(self.model, output, classes=classes)
                return Detections(*(tensor.cpu().numpy() for tensor in found))


# Flags of cuDNN are of the whole process.
_FLAGS = threading.Lock()


@contextmanager
def exact_convolutions(benchmark: bool = False) -> Iterator[None]:
    """Keep float32 convolutions on GPUs in float32, which PyTorch rounds to TensorFloat-32 by default.

    Args:
        benchmark: Also choose the fastest algorithm for each shape, by running all of them the first time.
    """
    cudnn = torch.backends.cudnn
    with _FLAGS:
        before = cudnn.benchmark
        cudnn.benchmark = benchmark
        try:
            # From 2.9 on there is a precision for each operator, and PyTorch refuses to read the older
            # setting where that contradicts it.
            with _ieee_convolutions() if hasattr(cudnn, "conv") else _without_tf32():
                yield
        finally:
            cudnn.benchmark = before


@contextmanager
def _ieee_convolutions() -> Iterator[None]:
    """Set what decides about convolutions to "ieee", and nothing if they are computed in that."""
    everything: Any = torch.backends
    cudnn: Any = everything.cudnn
    if cudnn.conv.fp32_precision != "tf32":
        yield
        return
    # What is read is what applies, also where it is inherited. What inherits changes with the other.
    above, top = cudnn.fp32_precision, everything.fp32_precision
    everything.fp32_precision = "ieee" if top == "none" else "none"
    own_above = above if cudnn.fp32_precision == above else "none"
    everything.fp32_precision = top
    # PyTorch's default for convolutions is no value that can be set, but gives way to the setting above it.
    cudnn.fp32_precision = "ieee"
    own = cudnn.conv.fp32_precision == "tf32"
    try:
        if own:
            cudnn.fp32_precision, cudnn.conv.fp32_precision = own_above, "ieee"
        yield
    finally:
        if own:
            cudnn.conv.fp32_precision = "tf32"
        else:
            cudnn.fp32_precision = own_above


@contextmanager
def _without_tf32() -> Iterator[None]:
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


def to_half(model: Yolact) -> Yolact:
    """Convert the network to half precision; what re-scores masks stays in float32."""
    for name, child in model.named_children():
        if name != "maskiou_net":
            child.half().to(memory_format=torch.channels_last)
    return model


def describe(config: Config, **fields: Any) -> Metadata:
    """The runtime's metadata of a model of `config`; `fields` are those that the configuration lacks."""
    model, detect = config.model, config.detect
    return Metadata(
        config=config.name,
        class_names=config.classes.names,
        category_ids=config.classes.category_ids,
        input_size=model.input_size,
        mean=model.mean,
        std=model.std,
        max_detections=detect.max_detections,
        score_threshold=detect.score_threshold,
        iou_threshold=detect.iou_threshold,
        nms_top_k=detect.nms_top_k,
        mask_iou=model.mask_iou,
        priors=PriorSpec(
            levels=tuple(pyramid_levels(model.input_size)),
            scales=model.prior_scales,
            aspect_ratios=model.prior_aspect_ratios,
            square=model.prior_square,
        ),
        **fields,
    )


def with_nms(config: Config, nms: str) -> Config:
    """`config` with another kind of NMS.

    Raises:
        UsageError: unknown kind.
    """
    kinds = ("fast", "traditional", "cross_class")
    if nms not in kinds:
        raise UsageError(f"nms {nms!r}; allowed: {', '.join(kinds)}")
    kind = cast("Literal['fast', 'traditional', 'cross_class']", nms)
    return replace(config, detect=replace(config.detect, nms=kind))


def pick_device(name: str) -> torch.device:
    """The device called `name`, a GPU always with its number; `auto` is a GPU, or the CPU if there is none.

    `auto` and `cuda` are PyTorch's current GPU: the first, unless `torch.cuda.set_device` chose another.

    Raises:
        UsageError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError, OverflowError):
        raise UsageError(f"device {name!r}; allowed: auto, cpu, cuda, cuda:N") from None
    if device.type == "cpu" and device.index:
        raise UsageError(f"device {name!r}: there is one CPU for PyTorch; use --device cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {name!r}: PyTorch finds no CUDA device here; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device {name!r}: PyTorch finds {torch.cuda.device_count()} CUDA devices here")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    if device.type not in ("cpu", "cuda"):
        try:
            torch.zeros(1, device=device).cpu()
        except (RuntimeError, NotImplementedError, AssertionError, ImportError) as error:
            raise UsageError(
                f"device {name!r} does not work here ({first_line(error)}); use --device cpu"
            ) from None
    return device
