"""The health check, the Job's script and the build steps of the CPU image, run outside of a container."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from deploy_files import DEPLOY, JOB, SERVER, copy_context, documents, stages
from fake_onnx import NATIVE, native_arrays, write_onnx

CPU = DEPLOY / "cpu/Dockerfile"
HERE = Path(sys.executable).parent


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with five images, and a model in the folder next to it."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(5):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((20, 30, 3), 255, np.uint8))
    (tmp_path / "models").mkdir()
    write_onnx(tmp_path / "models/model.onnx", native_arrays(), NATIVE)
    return folder


@pytest.mark.skipif(os.name == "nt", reason="for Linux")
def test_the_health_check_is_about_the_last_two_minutes(tmp_path: Path) -> None:
    command = stages(CPU)[-1].health
    file = tmp_path / "beat"

    def healthy() -> bool:
        env = os.environ | {"YOLACT_HEARTBEAT": str(file)}
        return subprocess.run(command, env=env, capture_output=True, check=False).returncode == 0

    assert not healthy()
    file.touch()
    assert healthy()
    os.utime(file, (time.time() - 200,) * 2)
    assert not healthy()


def test_kubernetes_asks_for_the_same_health() -> None:
    final = stages(CPU)[-1]
    (job,) = documents(JOB)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["livenessProbe"]["exec"]["command"] == final.health
    assert container["startupProbe"]["exec"]["command"] == final.health
    # Where the image says that it writes, there is a volume.
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {final.env["YOLACT_HEARTBEAT"].rpartition("/")[0], "/results"} <= mounts
    assert final.env["YOLACT_CACHE"].startswith("/tmp/")
    server = documents(SERVER)[0]["spec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    exposed = set(map(int, stages(DEPLOY / "triton/Dockerfile")[-1].last("EXPOSE").split()))
    assert exposed == set(ports.values())


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="for Linux")
def test_the_pods_of_the_job_share_the_images(tmp_path: Path, images: Path) -> None:
    spec = documents(JOB)[0]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert int(container["env"][0]["value"]) == spec["completions"]
    (script,) = container["args"]
    for name in ("models", "images", "results"):
        script = re.sub(rf"(?<=[ \"])/{name}", str(tmp_path / name), script)
    (tmp_path / "results").mkdir()
    path = f"{HERE}{os.pathsep}{os.environ['PATH']}"
    for index in (0, 1, 1):  # the last as after a failure
        env = os.environ | {"PATH": path, "SHARDS": "2", "JOB_COMPLETION_INDEX": str(index)}
        subprocess.run([*container["command"], script], env=env, check=True, capture_output=True)
    found = []
    for number in (1, 2):
        lines = (tmp_path / f"results/shard-{number}.jsonl").read_text(encoding="utf-8").splitlines()
        found.append([json.loads(line)["image"] for line in lines if "image" in json.loads(line)])
    assert [[Path(name).name for name in part] for part in found] == [
        ["0.png", "2.png", "4.png"],
        ["1.png", "3.png"],
    ]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="for Linux")
def test_the_build_steps_of_the_cpu_image_make_a_runtime(tmp_path: Path, images: Path) -> None:
    build, final = stages(CPU)
    (tmp_path / "source").mkdir()
    copy_context(tmp_path / "source")
    # The Python of the base image.
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "base"], check=True)
    env = {
        **os.environ,
        **build.env,
        "UV_NO_CACHE": "0",  # packages that are here need no download
        "UV_LINK_MODE": "hardlink",
        "EXTRAS": "",
        "PATH": f"{tmp_path}/base/bin:/usr/bin:/bin",
    }
    env.pop("VIRTUAL_ENV", None)
    for step in build.all("RUN"):
        command = re.sub(r"(?<=[ (/=])/?(/opt/yolact|/wheels)", rf"{tmp_path}\1", step)
        command = command.replace("pip install --no-cache-dir", "pip install -q").replace(
            "--compile-bytecode", ""
        )
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=tmp_path / "source",
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    prefix = tmp_path / "opt/yolact"
    installed = {path.name.partition("-")[0] for path in prefix.glob("lib/*/site-packages/*.dist-info")}
    assert {"onnxruntime", "yolact"} <= installed
    assert not installed & {"onnxruntime_gpu", "torch", "openvino"}
    (tmp_path / "work").mkdir()
    beat = tmp_path / "beat"
    run = {
        "PATH": f"{prefix}/bin:/usr/bin:/bin",
        "YOLACT_CACHE": str(tmp_path / "cache"),
        "YOLACT_HEARTBEAT": str(beat),
        "YOLACT_TRUST_ENGINES": "1",
    }
    entry = json.loads(final.last("ENTRYPOINT"))
    words = ["--engine", str(tmp_path / "models/model.onnx"), str(images)]
    done = subprocess.run(
        [*entry, *words], cwd=tmp_path / "work", env=run, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "5 images, 10 detections, 0 failures" in done.stdout
    assert (tmp_path / "work/results/mask_detections.json").is_file()
    assert subprocess.run(final.health, env=run, check=False, capture_output=True).returncode == 0
