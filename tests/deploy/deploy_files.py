"""Reads the files of `deploy/` for their tests."""

from __future__ import annotations

import fnmatch
import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(DEPLOY.rglob("Dockerfile"))
COMPOSE = DEPLOY / "compose.yaml"
JOB = DEPLOY / "kubernetes/infer-job.yaml"
SERVER = DEPLOY / "kubernetes/triton.yaml"
KSERVE = DEPLOY / "kserve/inference-service.yaml"


def name_of(path: Path) -> str:
    """The name of a file in test reports."""
    return path.relative_to(ROOT).as_posix()


def documents(path: Path) -> list[dict[str, Any]]:
    """The documents of a YAML file."""
    yaml = pytest.importorskip("yaml")
    return [one for one in yaml.safe_load_all(path.read_text(encoding="utf-8")) if one]


@dataclass
class Stage:
    """A stage of a Dockerfile: its instructions, and the values of those that the next replaces."""

    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        """The values of every instruction of that name."""
        return [value for instruction, value in self.instructions if instruction == name]

    def last(self, name: str) -> str:
        """The value of the last instruction of that name."""
        return self.all(name)[-1]

    @property
    def env(self) -> dict[str, str]:
        """The environment variables that it sets, as they are written."""
        words = [word for value in self.all("ENV") for word in shlex.split(value)]
        return dict(word.split("=", 1) for word in words)

    @property
    def health(self) -> list[str]:
        """The command of its health check."""
        command: list[str] = json.loads(self.last("HEALTHCHECK").partition("CMD ")[2])
        return command


def stages(path: Path) -> list[Stage]:
    """The stages of a Dockerfile."""
    parse = pytest.importorskip("dockerfile_parse")
    with path.open("rb") as file:
        steps = parse.DockerfileParser(fileobj=file).structure
    found: list[Stage] = []
    for step in steps:
        if step["instruction"] == "FROM":
            found.append(Stage(step["value"]))
        elif found and step["instruction"] != "COMMENT":
            found[-1].instructions.append((step["instruction"], step["value"]))
    return found


def pods() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, settings of the pod and its container, of every manifest that runs one."""
    for path in (SERVER, JOB, KSERVE):
        for one in documents(path):
            spec = one["spec"]
            spec = spec.get("template", {}).get("spec", spec)
            for container in spec.get("containers", []):
                yield f"{path.name}: {one['kind']}", spec, container


def context_files() -> list[str]:
    """The files that `.dockerignore` lets into a build, of those that git knows or would add.

    Docker's rules: the last line that matches a path or one of its folders decides.
    """
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    names = [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]
    return [name for name in names if not _ignored(name, rules)]


def _ignored(name: str, rules: list[str]) -> bool:
    parts = name.split("/")
    ancestors = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    ignored = False
    for rule in rules:
        pattern = rule.removeprefix("!")
        if pattern.startswith("**/"):
            matches = any(fnmatch.fnmatchcase(part, pattern[3:]) for part in parts)
        else:  # a star does not cross folders
            matches = any(
                fnmatch.fnmatchcase(one, pattern) for one in ancestors if one.count("/") == pattern.count("/")
            )
        if matches:
            ignored = not rule.startswith("!")
    return ignored


def copy_context(target: Path) -> None:
    """Copy what `COPY . .` would copy."""
    for name in context_files():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target / name)
