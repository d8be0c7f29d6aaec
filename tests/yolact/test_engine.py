"""The PyTorch engine through the runtime's protocol."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import traceback
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from yolact.engine import TorchEngine, exact_convolutions, pick_device
from yolact.model import Yolact
from yolact.model.preprocess import Normalise
from yolact.registry import get_config
from yolact.train.checkpoint import save_checkpoint
from yolact_runtime import load_engine
from yolact_runtime.errors import UsageError, YolactError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("engine") / "yolact_tiny_0_1.pth"
    model = Yolact(get_config("yolact_tiny"))
    # Untrained boxes and classes, but confident enough to be detections.
    torch.nn.init.normal_(model.prediction_layers[0].conf_layer.bias, std=2.0)  # type: ignore[union-attr]
    save_checkpoint(path, model, 0, 1, None)
    return path


def image(height: int = 90, width: int = 120) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_normalise_is_the_formula() -> None:
    config = get_config("yolact_base").model
    x = image(4, 4)[None]
    ours = Normalise(config)(torch.from_numpy(x))
    expected = ((x.astype(np.float64) - config.mean) / config.std)[..., ::-1].transpose(0, 3, 1, 2)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_predict_is_the_network_on_the_image_resized_in_float(checkpoint: Path) -> None:
    with load_engine(checkpoint) as engine:
        assert isinstance(engine, TorchEngine)
        assert engine.metadata.input_dtype == "float32"
        picture = image()
        result = engine.predict([picture], score_threshold=0, top_k=100)[0]
        resized = F.interpolate(
            torch.from_numpy(picture).float().permute(2, 0, 1)[None], (128, 128), mode="bilinear"
        )
        expected = engine.detect(resized.permute(0, 2, 3, 1).numpy())
    n = int(expected.count[0])
    assert len(result) == n > 0
    np.testing.assert_allclose(result.scores, expected.scores[0, :n], atol=1e-5)


def test_rounded_input_on_request(checkpoint: Path) -> None:
    with load_engine(checkpoint, input_dtype="uint8") as engine:
        assert engine.metadata.input_dtype == "uint8"
        assert len(engine.predict([image(), image(1, 1), image(700, 5)])) == 3


def test_kinds_of_nms(checkpoint: Path) -> None:
    counts = {}
    for nms in ("fast", "traditional", "cross_class"):
        with load_engine(checkpoint, nms=nms) as engine:
            counts[nms] = len(engine.predict([image()], score_threshold=0, top_k=100)[0])
    assert all(counts.values())
    assert counts["cross_class"] <= counts["fast"]


def test_an_engine_is_not_copied(checkpoint: Path) -> None:
    for attempt in (pickle.dumps, copy.deepcopy):
        with pytest.raises(UsageError, match=r"TorchEngine cannot be pickled .*load_engine\('.*\.pth'\)$"):
            attempt(TorchEngine(checkpoint, device="cpu"))


def test_engine_around_a_network_in_memory() -> None:
    model = Yolact(get_config("yolact_tiny")).train()
    with TorchEngine.from_model(model) as engine:
        assert engine.metadata.class_names == ("circle", "square", "triangle")
        assert len(engine.predict([image()])) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nms": "soft"}, "allowed: fast, traditional, cross_class"),
        ({"input_dtype": "float16"}, "allowed: float32, uint8"),
        ({"device": "tpu:x"}, "allowed: auto, cpu, cuda"),
        ({"config": "yolact_smal"}, "no configuration"),
        ({"providers": ["cpu"]}, "providers"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str, checkpoint: Path) -> None:
    with pytest.raises(UsageError, match=message):
        load_engine(checkpoint, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_says_what_to_do(checkpoint: Path) -> None:
    with pytest.raises(YolactError, match="--device cpu"):
        load_engine(checkpoint, device="cuda")


def test_classes_of_weights_without_names(checkpoint: Path, tmp_path: Path) -> None:
    bare = tmp_path / "yolact_tiny_0_1.pth"
    torch.save(torch.load(checkpoint, weights_only=True)["model"], bare)
    with load_engine(bare, class_names="cat,dog,hen") as engine:
        assert engine.metadata.class_names == ("cat", "dog", "hen")
        assert engine.metadata.category_ids == (1, 2, 3)
    with pytest.raises(UsageError, match="holds its class names"):
        load_engine(checkpoint, class_names="cat,dog,hen")


@pytest.mark.parametrize(
    "name", ["cpu:5", "cpu:-1", "meta", "", "gpu", "cuda:99999999999999", "xla", "\ud800"]
)
def test_devices_that_are_not_there(name):
    with pytest.raises(UsageError, match=r"^device .*(allowed: auto, cpu|use --device cpu)"):
        pick_device(name)


def settings() -> tuple[object, ...]:
    """All that decides about TensorFloat-32, and whether PyTorch lets the older setting be read."""
    cudnn, read = torch.backends.cudnn, torch._C._get_fp32_precision_getter
    try:
        old: object = cudnn.allow_tf32
    except RuntimeError:
        old = "refused"
    new = [read(*one) for one in (("generic", "all"), ("cuda", "all"), ("cuda", "conv"), ("cuda", "rnn"))]
    return (*new, read("cuda", "matmul"), old, cudnn.enabled, cudnn.benchmark, cudnn.deterministic)


def setters(*names: str) -> list[str]:
    precisions = "ieee", "tf32", "none"
    return [f"torch.backends.{name}fp32_precision = {value!r}" for name in names for value in precisions]


# Those after which PyTorch's default for convolutions, which is no value that can be set, is still there.
KEEPING = ["", "torch.backends.cudnn.deterministic = True", *setters("", "cudnn.", "cuda.matmul.")]
OTHERS = [*(f"torch.backends.cudnn.allow_tf32 = {value}" for value in (True, False)),
          *setters("cudnn.conv.", "cudnn.rnn.")]  # fmt: skip


def check_all_settings() -> None:
    """Every two settings, one after the other; and a third has the effect that it has without us."""
    for some in (KEEPING, [*KEEPING, *OTHERS]):
        for first, second, third in itertools.product(some, some, some[::5]):
            found = []
            for used in (False, True):
                for setter in setters("", "cudnn.", "cuda.matmul.")[2::3]:
                    exec(setter)
                if some != KEEPING:
                    torch.backends.cudnn.allow_tf32 = True
                exec(first)
                exec(second)
                before = settings()
                if used:
                    with exact_convolutions(True):
                        assert torch.backends.cudnn.conv.fp32_precision != "tf32"
                        assert torch.backends.cudnn.benchmark
                    assert settings() == before, (first, second, before, settings())
                exec(third)
                found.append(settings())
            assert found[0] == found[1], (first, second, third, found)


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="PyTorch before 2.9")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_convolutions_are_exact_whatever_the_settings_are() -> None:
    """In a fork, which alone loses PyTorch's default."""
    child = os.fork()
    if not child:
        try:
            check_all_settings()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, "its output says which settings"


def test_convolutions_are_exact_with_the_older_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn = SimpleNamespace(benchmark=True, allow_tf32=True)
    monkeypatch.setattr(torch.backends, "cudnn", cudnn)
    with pytest.raises(KeyError), exact_convolutions():
        assert (cudnn.benchmark, cudnn.allow_tf32) == (False, False)
        raise KeyError
    assert (cudnn.benchmark, cudnn.allow_tf32) == (True, True)
