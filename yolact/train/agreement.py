"""What the processes of a training must agree on: the checkpoint, the settings, the images."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch

from yolact.config import Config, DatasetConfig
from yolact.data.coco import CocoDataset
from yolact.registry import position_of
from yolact.settings import differences
from yolact.train.checkpoint import find_checkpoint, list_checkpoints
from yolact.train.distributed import Processes
from yolact.train.validation import Validation
from yolact.weights.load import Checkpoint, load_checkpoint
from yolact_runtime.errors import UsageError, YolactError, counted

log = logging.getLogger(__name__)

VISIBLE_SECONDS = 60  # until all machines see a new file: NFS remembers what a folder holds for so long
ATTEMPTS = 3  # to read a checkpoint
_WAIT = 1.0  # seconds until a folder or a file is looked at again


def open_checkpoint(
    resume: str, folder: Path, given: Config | None, processes: Processes
) -> Checkpoint | None:
    """Open the checkpoint of `--resume` in the first process; every process gets its content.

    So only the first process needs to see the file. But after a restart another machine may have the first
    process: it must not start anew, or earlier, because its folder lacks what another machine's has.

    Args:
        resume: See `find_checkpoint`. For `auto`, a file that cannot be read is reported, and the one before
            it is used.
        folder: Where checkpoints are saved.
        given: The configuration of the command line.
        processes: The processes of the training.

    Returns:
        None for `auto` if no process sees a checkpoint.

    Raises:
        YolactError: there is none, none can be read, or another process sees a later one.
    """
    name = given.name if given else None
    if processes.count > 1 and resume in ("auto", "last", "latest", "interrupt"):
        _check_visible(lambda: _latest(resume, folder, name), folder, processes)

    def read() -> Checkpoint | None:
        path = find_checkpoint(resume, folder, name)
        if path is None:
            return None
        paths = list_checkpoints(folder, path) if resume == "auto" else [path]
        checkpoint = _read_any(paths, given)
        log.info("continuing from %s", checkpoint.path)
        return checkpoint

    return processes.from_first(read)


def _latest(resume: str, folder: Path, name: str | None) -> tuple[int, str]:
    """Iteration and path of the checkpoint that `--resume` selects in this process; -1 and "" for none."""
    try:
        path = find_checkpoint(resume, folder, name)
    except YolactError:
        path = None
    return (position_of(path)[1], str(path)) if path else (-1, "")


def _check_visible(latest: Callable[[], tuple[int, str]], folder: Path, processes: Processes) -> None:
    """Wait until the first process sees the latest checkpoint that any process sees.

    Raises:
        YolactError: it does not.
    """
    iteration, path, rank = max((*found, rank) for rank, found in enumerate(processes.gather(latest())))

    def wait() -> None:
        deadline = time.monotonic() + VISIBLE_SECONDS
        while latest()[0] < iteration:
            if time.monotonic() > deadline:
                raise YolactError(
                    f"{processes.name(rank)} sees {path}, and {processes.name(0)}, which reads and writes"
                    f" checkpoints, does not: --save-folder {folder} must be a folder that all machines share"
                )
            time.sleep(_WAIT)

    processes.from_first(wait)


def _read_any(paths: list[Path], given: Config | None) -> Checkpoint:
    """The first checkpoint of `paths` that can be read; of several, each is tried again, as disks may be far.

    Raises:
        YolactError: none can be read; that of the first.
    """
    errors: list[YolactError] = []
    for path in paths:
        for last in [False] * (ATTEMPTS - 1) * (len(paths) > 1) + [True]:
            try:
                return load_checkpoint(path, default=given)
            except UsageError:
                raise
            except YolactError as error:
                if last:
                    errors.append(error)
            time.sleep(0 if last else _WAIT)
        if path != paths[-1]:
            log.warning("%s; looking for an earlier checkpoint", errors[-1])
    raise errors[0]


def check_agreement(
    config: Config,
    dataset: CocoDataset,
    validation: Validation | None,
    device: torch.device,
    start: int,
    processes: Processes,
) -> None:
    """Check that all processes were started with the same settings, and have the same images.

    Otherwise they would wait for each other, or average the gradients of different trainings.

    Raises:
        UsageError: a process differs from the first; says in what.
    """
    if processes.count == 1:
        return
    # Where its files are, and how many processes load them, is up to each machine.
    choices = DatasetConfig(**config.dataset.choices)
    own = replace(config, dataset=choices, train=replace(config.train, workers=0))
    facts = {
        "the first iteration": start,
        "the device": device.type,
        "the training part": _part((r.image_id, len(r.annotations)) for r in dataset.records),
        "the validation part": validation and _part(image["id"] for image in validation.truth.images),
    }
    everyone = processes.gather((own, facts, torch.__version__))
    first, first_facts, first_version = everyone[0]
    for rank, (other, other_facts, version) in enumerate(everyone):
        here, there = processes.name(0), processes.name(rank)
        pairs = {what: (value, other_facts[what]) for what, value in first_facts.items()}
        for what, (a, b) in (differences(first, other) | pairs).items():
            if a != b:
                raise UsageError(
                    f"{what} is {a} in {here} and {b} in {there}: start all machines with the same command,"
                    " and the same dataset"
                )
        if version != first_version and processes.main:
            log.warning("%s has torch %s, %s has %s", here, first_version, there, version)


def _part(entries: Iterable[object]) -> str:
    """A part of a dataset in a few characters: how many images it has, and a digest of their `entries`."""
    known = list(entries)
    digest = hashlib.sha256(json.dumps(known).encode()).hexdigest()
    return f"{counted(len(known), 'image')} ({digest[:8]})"
