"""Checks before a training that it writes over nothing that it reads."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from yolact.config import Config
from yolact.data.files import dataset_files
from yolact.registry import config_name_of, position_of
from yolact.train.distributed import Processes
from yolact_runtime.outputs import Named, check_outputs
from yolact_runtime.temporary import InUseError

log = logging.getLogger(__name__)

# Until a process whose torchrun was killed has ended, and the locks of a machine that is gone have expired.
LOCK_SECONDS = 120


def check_training_outputs(
    config: Config,
    folder: Path,
    init_from: str | None,
    dataset: str | None = None,
    processes: Processes = Processes(),  # noqa: B008
) -> bool:
    """Check that a training in `folder` writes over none of its inputs, its initial weights above all.

    Args:
        config: Its dataset is read; its name and schedule decide the names of checkpoints.
        folder: Where they are written.
        init_from: `--init-from`: a file, or the name of published weights.
        dataset: `--dataset`, which may be a YAML file.
        processes: The first one writes, and so locks the log against other runs. Under torchrun it waits for
            the lock: the run that it continues may not have ended on another machine.

    Returns:
        Whether it waited for the lock.

    Raises:
        UsageError: one would be written over. Of a checkpoint's name the epoch is not compared.
        YolactError: the folder cannot be written to, or another run trains this configuration in it.
    """
    settings, name = config.train.scaled(), config.name
    journal = folder / f"{name}.jsonl"
    written = [folder / f"{name}_best.pth"]
    for path in folder.glob(f"{name}_*_*.pth"):
        iteration = position_of(path)[1]
        last, saved = settings.max_iterations, iteration % settings.save_every == 0
        if config_name_of(path) == name and iteration <= last:
            written += [path] if iteration == last or saved or settings.save_epochs else []
    reads: list[Named] = [("--init-from", init_from), *dataset_files(config.dataset)]
    reads += dataset_files(dataset) if dataset and Path(dataset).is_file() else []
    # Configurations may share a folder, so only the log of this one is locked.
    named: list[Named] = [("--save-folder", path) for path in written]
    shared = ["--save-folder"] if processes.main else ["--save-folder", "the log"]
    deadline = time.monotonic() + (LOCK_SECONDS if processes.launched else 0)
    waits = False
    while True:
        try:
            check_outputs(reads, [("the log", journal), *named], [("--save-folder", folder)], shared)
            return waits
        except InUseError as error:
            if time.monotonic() > deadline:
                raise
            if not waits:
                log.info("%s; waiting for it", str(error).partition(";")[0])
            waits = True
            time.sleep(5)
