"""The runtime imports no training framework, which deployment machines do not have."""

import subprocess
import sys

import pytest

import yolact_runtime
from yolact_runtime.engines.load import load_engine

CODE = """
import pkgutil, importlib.util, sys
import yolact_runtime
light = set(sys.modules)
for module in pkgutil.walk_packages(yolact_runtime.__path__, "yolact_runtime."):
    if not module.name.endswith(".grpc_client") or importlib.util.find_spec("tritonclient"):
        importlib.import_module(module.name)
heavy = {"torch", "yolact", "yolact_export", "yolact_bench", "onnx", "torchvision", "PIL"}
print(sorted(heavy & set(sys.modules)), sorted({"cv2", "numpy", "onnxruntime"} & light))
"""


def test_no_module_of_the_runtime_imports_the_training_side():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "[] []"


def test_the_names_of_the_package_are_imported_when_first_used():
    assert set(yolact_runtime.__all__) <= set(dir(yolact_runtime))
    assert yolact_runtime.load_engine is load_engine and yolact_runtime.__version__
    with pytest.raises(AttributeError, match="'yolact_runtime' has no attribute 'nothing'"):
        yolact_runtime.nothing
