"""The runtime stands alone: a deployment box has no training framework."""

import subprocess
import sys

CODE = """
import pkgutil, importlib, sys
import yolact_runtime
light = set(sys.modules)
for module in pkgutil.walk_packages(yolact_runtime.__path__, "yolact_runtime."):
    importlib.import_module(module.name)
heavy = {"torch", "yolact", "yolact_export", "yolact_bench", "onnx", "torchvision", "PIL"}
print(sorted(heavy & set(sys.modules)), "onnxruntime" in light, len(light & {"yolact_runtime.engines.load"}))
"""


def test_no_module_of_the_runtime_imports_the_training_side():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "[] False 1"
