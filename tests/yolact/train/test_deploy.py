"""The files in deploy/training start what exists."""

from __future__ import annotations

import os
import subprocess
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

from yolact.cli.train import build_parser

FOLDER = Path(__file__).parents[3] / "deploy/training"
TRAIN = ("--config", "yolact_base", "--dataset", "/shared/coco", "--save-folder", "/shared/w y")


def check_torchrun(words: list[str]) -> tuple[Any, Any]:
    """The parsed options of a `torchrun` that starts `yolact-train`, and those of this."""
    assert words[0] == "torchrun"
    torchrun: ArgumentParser = get_args_parser()
    launcher = torchrun.parse_args(words[1:])
    assert (launcher.module, launcher.training_script) == (True, "yolact.cli.train")
    return launcher, build_parser().parse_args(launcher.training_script_args)


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_the_slurm_script_starts_torchrun_and_goes_back_into_the_queue(tmp_path: Path) -> None:
    """Run with a fake Slurm: srun prints its command; the second one ends when the job gets SIGTERM."""
    fakes = {
        "scontrol": 'case "$*" in "show hostnames n[7-8]") echo n7; echo n8;; *) echo "$*" >> calls;; esac',
        "scancel": 'echo "scancel $*" >> calls; kill -USR1 "$(cat srun.pid)"',
        "srun": 'echo "$SRUN_CPUS_PER_TASK $TORCH_ELASTIC_SHUTDOWN_TIMEOUT" > given;'
        ' printf "%s\\n" "$@" > words; echo $$ > srun.pid; trap "exit 1" USR1;'
        ' [ -z "$WAIT" ] || { kill -TERM $PPID; while :; do sleep 0.05; done; }; exit 3',
    }
    for name, text in fakes.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    job = {"JOB_ID": "42", "NNODES": "2", "JOB_NODELIST": "n[7-8]", "GPUS_ON_NODE": "8"}
    job["CPUS_PER_TASK"] = "64"
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])

    def run(wait: str) -> int:
        script = ["bash", str(FOLDER / "slurm.sh"), *TRAIN]
        slurm = {f"SLURM_{name}": value for name, value in job.items()}
        environment = {**os.environ, **slurm, "PATH": path, "WAIT": wait}
        return subprocess.run(script, cwd=tmp_path, env=environment, check=False, timeout=30).returncode

    assert run("") == 3  # the training failed: it does not go back
    assert not (tmp_path / "calls").exists()
    launcher, options = check_torchrun((tmp_path / "words").read_text().splitlines())
    assert (launcher.nnodes, launcher.nproc_per_node, launcher.rdzv_id) == ("2", "8", "42")
    assert launcher.rdzv_endpoint == "n7:20042"
    assert (options.resume, options.save_folder) == ("auto", Path("/shared/w y"))
    assert (tmp_path / "given").read_text().split() == ["64", "100"]
    run("yes")
    assert (tmp_path / "calls").read_text().splitlines() == ["scancel --signal=TERM 42", "requeue 42"]


def test_the_job_of_kubeflow_trainer_starts_yolact_train(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = yaml.safe_load((FOLDER / "trainjob.yaml").read_text())["spec"]
    # Those that the operator sets.
    given = {
        "NNODES": "2",
        "NPROC_PER_NODE": "8",
        "NODE_RANK": "1",
        "MASTER_ADDR": "a.b",
        "MASTER_PORT": "1234",
    }
    words = [*spec["trainer"]["command"], *spec["trainer"]["args"]]
    for name, value in given.items():
        monkeypatch.setenv(f"PET_{name}", value)
        words = [word.replace(f"$(PET_{name})", value) for word in words]
    launcher, options = check_torchrun(words)
    assert (launcher.nnodes, launcher.nproc_per_node, launcher.rdzv_endpoint) == ("2", "8", "a.b:1234")
    assert spec["trainer"]["numNodes"] == 2
    jobs = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    check_pod(options, jobs[0]["template"]["spec"]["template"]["spec"], spec["trainer"]["env"])


def test_the_older_job_starts_yolact_train(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = yaml.safe_load((FOLDER / "pytorchjob.yaml").read_text())["spec"]
    pod = spec["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]
    (container,) = pod["containers"]
    for name, value in {"NNODES": "1:4", "RDZV_BACKEND": "c10d", "MAX_RESTARTS": "10"}.items():
        monkeypatch.setenv(f"PET_{name}", value)
    launcher, options = check_torchrun([*container["command"], *container["args"]])
    assert (launcher.nnodes, launcher.max_restarts) == ("1:4", 10)
    check_pod(options, pod, container["env"])


def check_pod(options: Any, pod: dict[str, Any], env: list[dict[str, str]]) -> None:
    """Dataset and checkpoints are on a volume, and there is time to save."""
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}
    assert options.resume == "auto"
    assert options.save_folder.is_relative_to("/data") and options.dataset.startswith("/data")
    assert {"/data", "/dev/shm"} == set(mounts)
    given = {one["name"]: one["value"] for one in env}
    assert given.keys() == {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"}
    assert given["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    # torchrun kills first, so that what it kills has had its time.
    assert pod["terminationGracePeriodSeconds"] > int(given["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) > 30
