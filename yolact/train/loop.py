"""The training loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NoReturn

import cv2
import numpy as np
import torch
from torch import nn

from yolact.config import Config, TrainConfig
from yolact.data.annotations import forget_annotations
from yolact.data.batch import Batch
from yolact.data.cached import CachedDataset
from yolact.data.coco import CocoDataset, check_trainable, find_missing_images
from yolact.losses import MultiBoxLoss
from yolact.model import Yolact
from yolact.model.backbone import zero_init_residual
from yolact.train.agreement import check_agreement
from yolact.train.bad_batch import dump_batch
from yolact.train.checkpoint import Checkpoints, save_checkpoint
from yolact.train.distributed import Processes
from yolact.train.failures import Unreadable, explain, unreadable_text
from yolact.train.loader import iterations
from yolact.train.logging import TrainingLog, batch_size_text
from yolact.train.mode import memory_format, set_training_mode
from yolact.train.pictures import draw_batch
from yolact.train.resume import TrainingState, restore_optimizer, restore_scaler, training_state
from yolact.train.sampler import EpochBatches, SharedBatches
from yolact.train.signals import StopSignal, TrainingInterruptedError
from yolact.train.step import Ema, NetworkWithLoss, Step, build_optimizer, learning_rate, training_step
from yolact.train.validation import Validation, held_out_images, open_validation, quality
from yolact.weights.fine_tuning import load_for_fine_tuning
from yolact.weights.load import Checkpoint, load_pretrained_backbone, load_state
from yolact_runtime.errors import UsageError, YolactError, counted, first_line

log = logging.getLogger(__name__)


def train(
    config: Config,
    folder: Path,
    device: torch.device,
    resume: Checkpoint | None = None,
    start: int = 0,
    init_from: Checkpoint | None = None,
    processes: Processes = Processes(),  # noqa: B008
) -> Path:
    """Train a network and return its last checkpoint.

    Every process of a training calls this; the first one writes. An iteration depends only on the checkpoint,
    the settings and its number, so a resumed run repeats one that was never stopped.

    Args:
        config: Everything about the model, the data and the schedule.
        folder: For checkpoints, pictures, and `<config>.jsonl` with every loss term of every iteration.
        device: Where to train.
        resume: Initial weights and, if the file has it, the state of the training.
        start: First iteration (0-based).
        init_from: Initial weights for fine-tuning; the classes may differ.
        processes: The processes that take part.

    Raises:
        YolactError: the data cannot be used, the loss is not finite, memory is short, or (once everything is
            saved) the validation failed or an image could not be read.
        TrainingInterruptedError: on a signal to stop; `<config>_<epoch>_<iteration>_interrupt.pth` is saved.
    """
    settings = config.train.scaled()
    state = training_state(resume)
    if start >= settings.max_iterations + bool(state and state.awaits_validation):
        raise YolactError(
            f"nothing to train: the first iteration is {start} and train.max_iterations is"
            f" {settings.max_iterations} (scaled to batch size {settings.effective_batch})"
        )
    torch.manual_seed(settings.seed)
    training = _Training(config, folder, device, resume, start, init_from, processes)
    try:
        return training.run()
    except RuntimeError as error:
        known = explain(error, settings)
        if known is None:
            raise
        raise known from error


class _Training:
    """The state of a run; see `train` for the arguments."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        device: torch.device,
        resume: Checkpoint | None,
        start: int,
        init_from: Checkpoint | None,
        processes: Processes,
    ) -> None:
        settings = config.train.scaled()
        self.config, self.settings, self.folder = config, settings, folder
        self.device, self.processes, self.iteration = device, processes, start
        held = held_out_images(config)
        self.dataset = _dataset(config, settings, held, processes)
        self.validation = open_validation(config, held, processes)
        forget_annotations()
        check_agreement(config, self.dataset, self.validation, device, start, processes)

        self.layout = memory_format(device, settings)
        model = _initial_model(config, resume, init_from, processes)
        self.model = model.to(device).to(memory_format=self.layout)
        log.info("%s", set_training_mode(self.model, settings, processes.count))
        if settings.sync_bn and processes.count > 1:
            if device.type == "cpu":
                raise UsageError("train.sync_bn = true; on CPUs PyTorch has no synchronised batch norm")
            nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # in place
        self.module = processes.wrap(NetworkWithLoss(self.model, MultiBoxLoss(config.loss), settings))
        self.optimizer = build_optimizer(self.model, settings)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.amp == "fp16")
        self.ema = Ema(self.model, settings.ema_decay) if settings.ema_decay else None
        state = training_state(resume) or TrainingState()
        # Names of files in another folder say nothing about those in this one.
        here = processes.main and resume is not None and resume.path.parent.resolve() == folder.resolve()
        written, own = (state.written, state.run) if here else ([], "")
        self.checkpoints = Checkpoints(folder, config.name, settings.keep_last, written, own)
        if processes.main:
            self.checkpoints.prepare(start)
        if resume and resume.training is not None:
            restore_optimizer(self.optimizer, state.optimizer, settings, resume.path)
            restore_scaler(self.scaler, state.scaler, resume.path)
            if self.ema and resume.ema is not None:
                load_state(self.ema.model, resume.ema, f"the average of {resume.path}")
                self.ema.updates = state.ema_updates
        self.best = state.best
        self.batches = EpochBatches(
            len(self.dataset), settings.effective_batch, settings.seed, start, settings.max_iterations
        )
        self.unreadable = Unreadable(settings.max_unreadable)
        self.bad_steps = 0
        self.stop = StopSignal(processes.launched)
        # Whether the validation at the first iteration was not finished before.
        self.unvalidated = bool(
            resume and self.validation and start == resume.iteration and state.awaits_validation
        )
        self.journal = TrainingLog(
            folder / f"{config.name}.jsonl", start, settings, processes.main, not self.unvalidated
        )

    @property
    def averaged(self) -> Yolact | None:
        """The network with averaged weights, if there is one."""
        return self.ema.model if self.ema else None

    @property
    def last(self) -> bool:
        """Whether all iterations are done."""
        return self.iteration == self.settings.max_iterations

    def run(self) -> Path:
        """Run every iteration; returns the last checkpoint."""
        settings, processes = self.settings, self.processes
        log.info(
            "training %s on %s, batch %s, iterations %d to %d, %s",
            *(
                self.config.name,
                counted(len(self.dataset), "image"),
                batch_size_text(settings, processes.count),
            ),
            *(self.iteration, settings.max_iterations, self.device),
        )
        with self.stop, self.journal:
            try:
                self._iterate()
            except KeyboardInterrupt:
                saved = self.checkpoints.last
                advice = f"continue with --resume {saved}" if saved else "nothing had been saved yet"
                raise TrainingInterruptedError(
                    f"stopped at once in iteration {self.iteration}; {advice}"
                ) from None
        self._check_unreadable()
        return self.checkpoints.last or Path()

    def _iterate(self) -> None:
        """Run every iteration, with its validation and checkpoint.

        A checkpoint is saved before the validation, so that nothing is lost if this is stopped or fails, and
        again with its result.
        """
        settings, processes = self.settings, self.processes
        if self.unvalidated and self.validation:
            self._validate(self.validation, saved=self.last)
        shared = SharedBatches(self.batches, settings.accumulate, processes.rank, processes.count)
        loaded = iterations(self.dataset, shared, settings, self.device)
        for batches in self.journal.waiting(loaded):
            if self.iteration == self.batches.start:
                self._draw("batch", lambda: draw_batch(batches[0][0], self.config, settings.pictures))  # noqa: B023
            step, rate = self._step(batches)
            epoch = self.iteration // self.batches.epoch_length
            self.journal.add(self.iteration, epoch, step, rate, settings.effective_batch, self.device)
            self.iteration += 1
            self.unvalidated = bool(self.validation) and (
                self.last or self._ends_epoch(settings.validate_every)
            )
            save = (
                self.last
                or self.iteration % settings.save_every == 0
                or self._ends_epoch(settings.save_epochs)
            )
            if save:
                self._save()
            if processes.any(bool(self.stop)) and not (self.last and not self.unvalidated):
                self._interrupt()
            if self.unvalidated and self.validation:
                self._validate(self.validation, saved=save)

    def _step(self, batches: list[tuple[Batch, dict[int, str]]]) -> tuple[Step, float]:
        """One optimisation step; returns its losses and the learning rate.

        Raises:
            YolactError: too many losses in a row are not finite, or too many images unreadable.
        """
        settings, processes, iteration = self.settings, self.processes, self.iteration
        for _, failures in batches:
            self.unreadable.add(failures)
        rate = learning_rate(iteration, settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # Random numbers depend on the iteration only, so checkpoints need no generator state.
        torch.manual_seed((settings.seed * 1_000_003 + iteration) * processes.count + processes.rank)
        own = [batch.to(self.device, non_blocking=True, memory_format=self.layout) for batch, _ in batches]
        step = training_step(self.module, self.optimizer, self.scaler, own, settings.max_grad_norm, processes)
        if self.ema and step.applied:
            self.ema.update(self.model)
        self.bad_steps = 0 if step.healthy else self.bad_steps + 1
        if not step.healthy:
            log.warning("loss or gradient not finite at iteration %d: step skipped", iteration)
        if self.bad_steps == settings.max_bad_steps:
            self._give_up(own[step.suspect or 0], step, rate)
        return step, rate

    def _give_up(self, suspect: Batch, step: Step, rate: float) -> NoReturn:
        """Save the batch whose loss is not finite, and raise a YolactError."""
        rank = f"_rank{self.processes.rank}" if self.processes.rank else ""
        dump = self.folder / f"{self.config.name}_bad_batch{rank}.pt"
        if step.suspect is not None or self.processes.main:
            dump_batch(dump, self.model, suspect, self.iteration, step.losses, rate)
        terms = ", ".join(f"{name} {value:g}" for name, value in step.losses.items())
        raise YolactError(
            f"the loss was not finite {self.bad_steps} times in a row, last at iteration {self.iteration}"
            f" on images {suspect.image_ids} ({terms}; gradient {step.grad_norm:g}); lower train.lr"
            f" (now {rate:g}) or set train.max_grad_norm; analyse the batch with --debug-batch {dump}"
        )

    def _interrupt(self) -> NoReturn:
        """Save, and raise a TrainingInterruptedError."""
        path = self._save_interrupt()
        if self.last:
            raise TrainingInterruptedError(
                f"stopped before the last validation was finished; the training is complete and saved, and"
                f" --resume {path} repeats the validation"
            )
        raise TrainingInterruptedError(
            f"stopped at iteration {self.iteration}; continue with --resume {path}"
        )

    def _validate(self, validation: Validation, saved: bool) -> None:
        """Measure AP, keep the best weights, and save a checkpoint again if one is `saved`.

        Raises:
            TrainingInterruptedError: stopped by a signal; the checkpoint is saved.
            YolactError: the validation failed; the checkpoint is saved.
        """
        iteration, model = self.iteration, self.averaged or self.model
        self.stop.current = f"a batch of the validation after iteration {iteration}"
        try:
            metrics = validation.run(model, self.device, self.stop)
        except YolactError as error:
            path = str(self.checkpoints.last) if saved else self._save_interrupt()
            what = "the last validation" if self.last else f"the validation after iteration {iteration}"
            raise YolactError(
                f"{what} failed ({error}); the training is saved: repeat the validation"
                f"{'' if self.last else ' and continue'} with --resume {path}, or without validation with"
                " --validate-every 0, too"
            ) from error
        if metrics is None:
            self._interrupt()
        epoch = (iteration - 1) // self.batches.epoch_length
        self.journal.add_validation(iteration - 1, epoch, metrics)
        if validation.failures:
            log.error(
                "%d of %s could not be read and count as missed",
                *(len(validation.failures), counted(len(validation.truth.images), "validation image")),
            )
        self._draw("validation", lambda: validation.draw(model, self.device, self.settings.pictures))
        set_training_mode(self.model, self.settings, self.processes.count)
        self.unvalidated = False
        self.stop.current = "this iteration"
        if self.processes.main and quality(metrics) > self.best:
            self.best = quality(metrics)
            best = self.checkpoints.best
            with self.stop.shielded():
                save_checkpoint(best, self.model, epoch, iteration, None, self.averaged)
            log.info("saved %s", best)
        if saved:
            self._save()

    def _draw(self, name: str, draw: Callable[[], np.ndarray]) -> None:
        """Write a picture; one that cannot be drawn is reported, and the training goes on."""
        if not (self.settings.pictures and self.processes.main):
            return
        try:
            self.journal.add_picture(name, self.iteration, draw())
        except (YolactError, cv2.error) as error:
            log.warning("no picture %r of iteration %d: %s", name, self.iteration, first_line(error))

    def _save(self, interrupt: bool = False) -> None:
        """Write a checkpoint to resume from, in the first process."""
        if not self.processes.main:
            return
        state = TrainingState(
            optimizer=self.optimizer.state_dict(),
            scaler=self.scaler.state_dict(),
            ema_updates=self.ema.updates if self.ema else 0,
            best=self.best,
            awaits_validation=self.unvalidated,
        )
        epoch = self.iteration // self.batches.epoch_length
        with self.stop.shielded():
            self.checkpoints.save(self.model, epoch, self.iteration, vars(state), self.averaged, interrupt)

    def _save_interrupt(self) -> str:
        """Write the checkpoint of an interruption; returns its path, in other processes how to select it."""
        self._save(interrupt=True)
        self.processes.any(False)  # no process ends before the checkpoint is saved
        return str(self.checkpoints.last or "interrupt")

    def _ends_epoch(self, every: int) -> bool:
        """Whether a multiple of `every` epochs is complete."""
        return every > 0 and self.iteration % (self.batches.epoch_length * every) == 0

    def _check_unreadable(self) -> None:
        """Raise a YolactError if an image of any process, or of the last validation, could not be read."""
        gathered = self.processes.gather(self.unreadable.reasons)
        missed = self.validation.failures if self.validation else {}
        problem = unreadable_text(
            [reason for own in gathered for reason in own.items()], len(self.dataset), missed
        )
        if problem and self.processes.main:
            raise YolactError(f"training is complete ({self.checkpoints.last}), but {problem}")


def _initial_model(
    config: Config, resume: Checkpoint | None, init_from: Checkpoint | None, processes: Processes
) -> Yolact:
    """The network with the weights that the run starts from; the others get those of the first process."""
    model = Yolact(config)
    if resume is not None:
        load_state(model, resume.model, str(resume.path))
    elif init_from is not None:
        load_for_fine_tuning(model, init_from, "--init-from")
    elif config.train.init == "imagenet":
        if processes.main:
            load_pretrained_backbone(model)
    else:
        zero_init_residual(model)
    return model


def _dataset(
    config: Config, settings: TrainConfig, held: Collection[int], processes: Processes
) -> CocoDataset:
    """The images to train on, without those `held` out: all exist, and there are enough for every process."""
    data = config.dataset
    # Images to overfit must look the same every time.
    augment = None if settings.overfit else config.augment
    dataset = (CachedDataset if settings.cache_samples else CocoDataset)(
        data.train_images, data.train_annotations, config.model, config.classes, augment, settings.seed,
        data.crowd_as_instances, data.other_classes if data.classes else None,
    )  # fmt: skip
    if held:
        dataset.records = [record for record in dataset.records if record.image_id not in held]
    if settings.overfit:
        dataset.records = dataset.records[: settings.overfit]
    missing = find_missing_images(dataset)
    if missing:
        raise YolactError(
            f"images of {data.train_annotations} are missing ({len(missing)} of {len(dataset)}),"
            f" for example {missing[0].absolute()}"
        )
    check_trainable(dataset)
    parts = processes.count * settings.accumulate
    if parts > min(len(dataset), settings.effective_batch):
        raise UsageError(
            f"{processes.count} processes with train.accumulate {settings.accumulate} need {parts} images in"
            f" an iteration; there are {len(dataset)} images and train.batch_size is {settings.batch_size}"
        )
    return dataset
