"""What mutators promise: the same change for the same seed, and containers that stay readable."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from random import Random

import corpus_data
import mutate
import mutate_images
import mutate_models
import pytest
from hypothesis import given
from hypothesis import strategies as st

JSON = mutate.dump_json(corpus_data.annotations())
PNG = corpus_data.encoded(".png")
SEEDS = st.integers(0, 2**32)
MUTATORS = [
    (mutate.mutate_bytes, PNG),
    (mutate_images.mutate_png, PNG),
    (mutate_images.mutate_jpeg, corpus_data.encoded(".jpg")),
    (mutate_images.mutate_tiff, corpus_data.encoded(".tif")),
    (mutate.mutate_json, JSON),
    (mutate.mutate_jsonl, JSON + b"\n" + JSON + b"\n"),
    (mutate.mutate_yaml, b"a: {b: [c, d]}\ne: f\n"),
    (mutate.mutate_lines, b"0 0.5 0.5\n1 0.1 0.2\n"),
    (mutate.mutate_xml, b'<a b="1"><c d="2">3</c></a>'),
]


@pytest.mark.parametrize(("mutator", "data"), MUTATORS, ids=lambda value: getattr(value, "__name__", ""))
@given(seed=SEEDS)
def test_a_seed_gives_one_change(mutator, data, seed):
    assert mutator(data, Random(seed), data) == mutator(data, Random(seed), data)


@pytest.mark.parametrize(("mutator", "data"), MUTATORS, ids=lambda value: getattr(value, "__name__", ""))
def test_most_seeds_change_something(mutator, data):
    results = {mutator(data, Random(seed), data) for seed in range(100)}
    assert len(results) > 60


def test_checksums_of_png_are_repaired():
    right = 0
    for seed in range(200):
        data = mutate_images.mutate_png(PNG, Random(seed))
        chunks = mutate_images._png_chunks(data)
        at, sound = 8, bool(chunks)
        for kind, content in chunks:
            at += 12 + len(content)
            sound &= data[at - 4 : at] == zlib.crc32(kind + content).to_bytes(4, "big")
        right += sound and data != PNG
    assert right > 100


def test_most_json_stays_json():
    read = 0
    for seed in range(200):
        try:
            json.loads(mutate.mutate_json(JSON, Random(seed)))
        except (ValueError, RecursionError):
            continue
        read += 1
    assert read > 140


def test_most_zip_files_stay_readable():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a/data.pkl", b"x" * 100)
        file.writestr("a/data/0", b"y" * 100)
    read = 0
    for seed in range(100):
        changed = mutate_models.mutate_zip(buffer.getvalue(), Random(seed))
        read += zipfile.is_zipfile(io.BytesIO(changed)) and changed != buffer.getvalue()
    assert read > 70
