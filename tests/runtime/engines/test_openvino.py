import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from fake_onnx import BOXES, CLASSES, NATIVE, RUNTIME, SCORES, native_arrays, runtime_arrays, write_onnx

from yolact_runtime import YolactError, load_engine
from yolact_runtime.engines.openvino import shared_core
from yolact_runtime.errors import UsageError

pytest.importorskip("openvino")
from yolact_export.openvino import write_openvino

WHITE, BLACK = np.full((20, 30, 3), 255, np.uint8), np.zeros((9, 9, 3), np.uint8)


@pytest.fixture
def convert(tmp_path):
    def convert_(arrays, metadata, **options):
        source = write_onnx(tmp_path / "m.onnx", arrays, metadata)
        write_openvino(source, tmp_path / "m.xml", **options)
        return tmp_path / "m.xml"

    return convert_


def test_native_detections(convert):
    with load_engine(convert(native_arrays(), NATIVE), threads=1) as engine:
        assert engine.metadata == NATIVE
        assert engine.name == "OpenVINO CPU"
        first, second, third = engine.predict([WHITE, BLACK, WHITE])
    for result in (first, third):
        np.testing.assert_array_equal(result.relative_boxes, BOXES)
        np.testing.assert_array_equal(result.scores, SCORES)
        np.testing.assert_array_equal(result.classes, CLASSES)
    assert len(second) == 0


@pytest.mark.parametrize(("arrays", "metadata"), [(native_arrays(), NATIVE), (runtime_arrays(), RUNTIME)])
def test_results_outlive_the_next_call(convert, arrays, metadata):
    with load_engine(convert(arrays, metadata)) as engine:
        batch = np.full((1, 16, 16, 3), 255, np.uint8)
        first = engine.detect(batch)
        kept = first._make(map(np.array, first))
        first.prototypes[:] += 1  # the next call neither reads nor writes this memory
        later = [engine.detect(np.full((n, 16, 16, 3), 0, np.uint8)) for n in (1, 3, 2)]
    for value, expected in zip(first._replace(prototypes=first.prototypes - 1), kept, strict=True):
        np.testing.assert_array_equal(value, expected)
    for n, found in zip((1, 3, 2), later, strict=True):
        np.testing.assert_array_equal(found.prototypes, np.repeat(kept.prototypes, n, axis=0))


def test_raw_heads_as_onnx_runtime(convert, tmp_path):
    with load_engine(convert(runtime_arrays(), RUNTIME)) as engine, load_engine(tmp_path / "m.onnx") as other:
        (found,), (expected,) = engine.predict([WHITE]), other.predict([WHITE])
    assert len(found) == 2
    np.testing.assert_array_equal(found.relative_boxes, expected.relative_boxes)
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_wrong_files_and_options_are_one_line(convert, tmp_path):
    path = convert(native_arrays(), NATIVE)
    with pytest.raises(UsageError, match="precision fp16 was asked for, but OpenVINO CPU delivers fp32"):
        load_engine(path, precision="fp16")
    with pytest.raises(UsageError, match="threads is 0"):
        load_engine(path, threads=0)
    if "BF16" not in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(YolactError, match="no bf16"):
            load_engine(path, precision="bf16")
    text = path.read_text()
    path.write_text(text.replace("<yolact>", "<other>").replace("</yolact>", "</other>"))
    with pytest.raises(YolactError, match=r"metadata field yolact\.config is missing"):
        load_engine(path)
    path.write_text(text[: len(text) // 2])
    with pytest.raises(YolactError, match="OpenVINO cannot read it") as error:
        load_engine(path)
    assert "\n" not in str(error.value)


def test_outputs_of_another_kind_of_graph(convert):
    lying = dataclasses.replace(RUNTIME)
    with pytest.raises(YolactError, match="lacks the outputs"):
        load_engine(convert(native_arrays(), lying))


def test_a_failed_check_leaves_what_was_there(convert, tmp_path):
    convert(native_arrays(), NATIVE)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("m.[xb]*")}

    def refuse(path):
        assert path.exists() and path.with_suffix(".bin").exists()
        raise YolactError("not equal")

    with pytest.raises(YolactError, match="not equal"):
        convert(native_arrays(), dataclasses.replace(NATIVE, config="other"), check=refuse)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("m.[xb]*")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.bin", "m.onnx", "m.xml"]


def test_no_onnx_file(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no graph")
    with pytest.raises(YolactError, match="not an ONNX file"):
        write_openvino(tmp_path / "m.onnx", tmp_path / "m.xml")


def test_signals_still_have_a_stack_when_engines_have_gone(convert):
    """A dangling signal stack of OpenVINO would kill the process at the next signal."""
    path = convert(native_arrays(), NATIVE)
    code = f"""
import ctypes, faulthandler, gc, signal
from yolact_runtime import load_engine
faulthandler.enable()
signal.signal(signal.SIGUSR1, lambda *_: None)
engines = [load_engine({str(path)!r}) for _ in range(3)]
while engines:
    engines.pop(0).close()
    gc.collect()
    signal.raise_signal(signal.SIGUSR1)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_first_inferences_in_two_threads_do_not_wait_for_each_other() -> None:
    code = (
        "import sys, threading, openvino;"
        "from yolact_runtime.engines.openvino import shared_core; shared_core();"
        "sys.setswitchinterval(1e-6); both = threading.Barrier(2);"
        "run = lambda: (both.wait(), openvino.Type.u8.to_dtype());"
        "threads = [threading.Thread(target=run) for _ in range(2)];"
        "[one.start() for one in threads]; [one.join() for one in threads]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_command_does_without_the_tools_of_openvino(convert, tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 2 2 255 " + b"\xff" * 4)
    words = ["--engine", str(convert(runtime_arrays(), RUNTIME)), "--output", "o.json", "a.pgm"]
    code = f"from yolact_runtime.cli import program; program({words})"
    command = [sys.executable, "-X", "importtime", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines()]
    # The attempt to import them is listed, too.
    assert "openvino" in imported and "openvino.tools.ovc.convert" not in imported
    assert (tmp_path / "o.json").exists()
