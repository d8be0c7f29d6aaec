"""What is made of measured rates; no test looks at how fast this machine is."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from yolact_bench import cli
from yolact_bench.measure import machine
from yolact_bench.roofline import ceilings, probes
from yolact_bench.roofline.work import count_work
from yolact_runtime.errors import UsageError

PROBES = [
    ("float32", "slow", 100, None),
    ("float32", "quick", 400, None),
    ("int8", "only", 800, None),
    ("bandwidth", "copy", 50, None),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is read from or left in the user's cache; a probe takes two seconds by our clock."""
    monkeypatch.setenv("YOLACT_CACHE", str(tmp_path))
    monkeypatch.setattr(ceilings, "_fastest", lambda work: 2.0)
    monkeypatch.setattr(ceilings, "_cpu_probes", lambda threads: PROBES)
    return tmp_path / "ceilings"


def test_the_fastest_of_each_type_counts() -> None:
    found = ceilings.ceilings(1)
    assert found.operations == {"float32": 200, "int8": 400}
    assert found.by == {"float32": "quick", "int8": "only"}
    assert found.bandwidth == 25
    assert found.threads == 1
    assert 0 <= found.age_days < 1
    assert found.probes["float32"] == {"slow": 50, "quick": 200}


def test_measured_once_and_kept_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(ceilings, "_cpu_probes", lambda threads: asked.append(threads) or PROBES)
    first = ceilings.ceilings(1)
    assert ceilings.ceilings(1) == first
    ceilings.ceilings(2)
    assert asked == [1, 2]


def test_measuring_again_only_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    ceilings.ceilings(1)
    other = [("float32", "slow", 900, None), ("float32", "quick", 300, None), ("bandwidth", "copy", 20, None)]
    monkeypatch.setattr(ceilings, "_cpu_probes", lambda threads: other)
    found = ceilings.ceilings(1, fresh=True)
    assert found.operations == {"float32": 450, "int8": 400}
    assert found.by["float32"] == "slow"
    assert (found.probes["float32"]["quick"], found.bandwidth) == (200, 25)
    assert ceilings.ceilings(1) == found


def test_other_libraries_are_measured_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ceilings.ceilings(1)
    monkeypatch.setattr(machine, "describe_machine", lambda: {"versions": {"numpy": "0.1"}})
    monkeypatch.setattr(ceilings, "_cpu_probes", lambda threads: [PROBES[0], PROBES[3]])
    assert ceilings.ceilings(1).operations == {"float32": 50}


@pytest.mark.parametrize(
    "changes", [{"bandwidth": 0.0}, {"operations": {"float32": -1.0}}, {"created": "never"}, {"by": None}]
)
def test_impossible_ceilings_are_measured_again(
    cache: Path, changes: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ceilings, "asdict", lambda found: dataclasses.asdict(found) | changes)
        ceilings.ceilings(1)
    assert ceilings.ceilings(1).operations["float32"] == 200
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"sha256": "", "value": {}}'])
def test_a_cache_that_cannot_be_read_is_written_anew(cache: Path, text: str) -> None:
    first = ceilings.ceilings(1)
    (entry,) = cache.iterdir()
    content = entry.read_text()
    entry.write_text(text)
    assert dataclasses.replace(ceilings.ceilings(1), created=first.created) == first
    assert json.loads(entry.read_text()).keys() == json.loads(content).keys()


def test_a_cache_that_cannot_be_written_is_a_warning(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.write_text("a file where the folder would be")
    assert ceilings.ceilings(1).operations["float32"] == 200
    assert "the cache is not used" in caplog.text


def test_no_threads() -> None:
    with pytest.raises(UsageError, match="threads is 0; it must be 1 or more"):
        ceilings.ceilings(0)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.json"
    assert cli.main(["roofline", "--threads", "1", "2", "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert "1 thread " in out and "2 threads" in out and "just now" in out and "quick" in out
    assert [one["threads"] for one in json.loads(path.read_text())] == [1, 2]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SIDE", 16), ("CHANNELS", 8), ("CELLS", 6), ("GPU_SIDE", 16)):
        monkeypatch.setattr(probes, name, value)


def test_probes_do_as_many_operations_as_they_say(small: None) -> None:
    kinds = []
    for kind, _, operations, model, feed in probes._models():
        assert count_work(model, len(feed["x"])).floor.operations == {kind: operations}
        kinds.append(kind)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        (found,) = session.run(None, feed)
        assert np.isfinite(found).all() and found.any()
    assert kinds.count("float32") == kinds.count("int8") == 3


def test_every_library_that_is_installed_measures(small: None) -> None:
    measured = [
        probes.numpy_probes(2, 1 << 16),
        probes.torch_probes(1, 1 << 16),
        probes.ort_probes(1),
        probes.openvino_probes(1),
    ]
    reported = []
    for kind, name, amount, work in itertools.chain(*measured):  # a probe holds until the next is asked for
        assert amount > 0
        work()
        reported.append((kind, name))
    assert len(set(reported)) == len(reported)
    assert {"float32", "int8", "bandwidth"} <= {kind for kind, _ in reported}


def test_numpy_copies_all_of_the_array(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    monkeypatch.setattr(np, "copyto", lambda target, source: copied.append(source.nbytes))
    for _, _, moved, work in probes.numpy_probes(3, 4000):
        work()
        assert (sum(copied), len(copied), moved) == (4000, 3, 8000)
