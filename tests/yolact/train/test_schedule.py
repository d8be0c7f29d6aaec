"""Rates and batches, iteration by iteration."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolact.config import TrainConfig
from yolact.train.sampler import EpochBatches
from yolact.train.step import learning_rate

CONFIG = TrainConfig()


@pytest.mark.parametrize(
    ("iteration", "rate"),
    [
        (0, 1e-4), (250, 5.5e-4), (500, 1e-3), (279_999, 1e-3), (280_000, 1e-4), (600_000, 1e-5),
        (700_000, 1e-6), (799_999, 1e-7),
    ],
)  # fmt: skip
def test_the_published_schedule(iteration: int, rate: float) -> None:
    assert learning_rate(iteration, CONFIG) == pytest.approx(rate)


def test_no_warmup() -> None:
    assert learning_rate(0, replace(CONFIG, warmup_iterations=0)) == 1e-3


@given(st.integers(1, 50), st.integers(1, 12), st.integers(0, 60), st.integers(0, 3))
def test_a_run_resumed_anywhere_sees_the_same_images(images: int, batch: int, start: int, seed: int) -> None:
    whole = list(EpochBatches(images, batch, seed, 0, 60))
    assert list(EpochBatches(images, batch, seed, start, 60)) == whole[start:]


@given(st.integers(1, 50), st.integers(1, 12))
def test_an_epoch_has_no_image_twice(images: int, batch: int) -> None:
    batches = EpochBatches(images, batch, 0, 0, 40)
    first = [key for batch in list(batches)[: batches.epoch_length] for key in batch]
    assert {number for number, _ in first} == {0}
    epoch = [index for _, index in first]
    assert len(set(epoch)) == len(epoch)
    assert set(epoch) <= set(range(images))


def test_epochs_differ_and_seeds_differ() -> None:
    batches = list(EpochBatches(100, 100, 0, 0, 2))
    assert [[epoch for epoch, _ in batch] for batch in batches] == [[0] * 100, [1] * 100]
    assert [index for _, index in batches[0]] != [index for _, index in batches[1]]
    assert batches[0] != next(iter(EpochBatches(100, 100, 1, 0, 1)))
