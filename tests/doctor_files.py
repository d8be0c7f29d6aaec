"""Writes `data/`, the files of the doctor's network: `python -m tests.doctor_files FOLDER`."""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from yolact.engine import TorchEngine
from yolact.model import Yolact
from yolact_bench.doctor.network import FOLDED, KINDS, MAX_BATCH, build_model, sample_heads, sample_images
from yolact_export.onnx import OnnxOptions, write_onnx
from yolact_runtime.results import result_of


def main(folder: Path) -> None:
    """Write the ONNX files without their weights, where these belong, and what PyTorch finds."""
    model = build_model()
    for kind in KINDS:
        content, places = _without_weights(model, kind)
        (folder / f"{kind}.onnx.gz").write_bytes(gzip.compress(content, 9, mtime=0))
        (folder / f"{kind}.json").write_text(json.dumps(places) + "\n", encoding="utf-8")
    engine = TorchEngine.from_model(model, "cpu", "uint8")
    found = [
        one
        for number, result in enumerate(engine.predict(sample_images(), 0.0, 100))
        for one in result.to_coco(number)
    ]
    (folder / "expected.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
    detections = engine.detect_heads(sample_heads())
    size = sample_images()[1].shape[:2]
    result = result_of(detections, 0, (size[0], size[1]), engine.metadata, 0.0, 100)
    (folder / "heads.json").write_text(json.dumps(result.to_coco(0)) + "\n", encoding="utf-8")


def _without_weights(model: Yolact, kind: str) -> tuple[bytes, list[tuple[int, str, list[int], bool]]]:
    """An ONNX file with zeros for its weights, and offset, name, shape and folding of each."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "network.onnx"
        write_onnx(model, path, OnnxOptions(detect=kind, max_batch=MAX_BATCH))
        graph = onnx.load(path).graph
        content = bytearray(path.read_bytes())
    state = {name: value.numpy() for name, value in model.state_dict().items() if value.ndim == 4}
    places = []
    for initializer in graph.initializer:
        values = numpy_helper.to_array(initializer)
        for name, weight in state.items():
            for factor in (np.float32(1), np.float32(FOLDED)):
                if values.shape == weight.shape and np.allclose(values, weight * factor, rtol=1e-6, atol=0):
                    data = initializer.raw_data
                    offset = content.index(data)
                    assert content.count(data) == 1
                    content[offset : offset + len(data)] = bytes(len(data))
                    places.append((offset, name, list(weight.shape), factor != 1))
                    break
    # The first convolution has the normalisation in it; the semantic one is for training only.
    used = sorted(name for _, name, _, _ in places)
    assert used == sorted(name for name in state if "semantic" not in name and "stem" not in name), used
    return bytes(content), [(offset, name, shape, bool(folded)) for offset, name, shape, folded in places]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
