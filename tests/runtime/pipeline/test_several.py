"""Several sources at once through the pipeline: fair, complete, and ended together."""

import _thread
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine, Found

from yolact_runtime import YolactError
from yolact_runtime.frames import Frame, Sink, Source
from yolact_runtime.pipeline import PipelineSettings, RunStats, SourceStats, run_pipeline
from yolact_runtime.sinks.routing import RoutingSink
from yolact_runtime.sources.several import ChainSource, SimultaneousSource

FOUND = [Found((1, 1, 20, 20)), Found((30, 30, 50, 60), label=1)]


class Shades(Source):
    """`count` frames of a shade, live ones every `period` seconds; frame `bad` cannot be read."""

    def __init__(self, shade, count, live=False, period=0.0, bad=None, error=None):
        self.shade, self.count, self.live, self.period, self.bad = shade, count, live, period, bad
        self.error, self.name, self.closed = error, f"shade {shade}", threading.Event()

    def __iter__(self):
        for index in range(self.count):
            if self.closed.wait(self.period) and self.live:
                return
            yield Frame(index, f"{self.name}#{index}", Path(self.name), partial(self.read, index))
        if self.error:
            raise self.error

    def read(self, index):
        if index == self.bad:
            raise YolactError(f"frame {index} is damaged")
        return np.full((64, 64, 3), self.shade, np.uint8)

    def close(self):
        self.closed.set()


class Record(Sink):
    def __init__(self):
        self.order, self.shades, self.failed, self.closed = [], set(), [], 0

    def prepare(self, frame, image, result):
        return int(image[0, 0, 0])

    def write(self, frame, shade):
        self.order.append(frame.index)
        self.shades.add(shade)

    def fail(self, frame, error):
        self.order.append(frame.index)
        self.failed.append(error)

    def close(self):
        self.closed += 1


def engine(delay=0.0, max_batch=4):
    class Slow(FakeEngine):
        def detect(self, batch):
            self.sizes.append(len(batch))
            self.mixed += len({int(image.max()) for image in batch}) > 1
            time.sleep(delay)
            return super().detect(batch)

    fake = Slow(dict.fromkeys(range(1, 256), FOUND), max_batch=max_batch)
    fake.streams, fake.sizes, fake.mixed = 1, [], 0
    return fake


def run(sources, fake=None, **settings):
    """The sinks of each source, the engine and the counts of a run."""
    source, fake, stats = SimultaneousSource(sources), fake or engine(), RunStats()
    sinks = [Record() for _ in sources]
    stats = run_pipeline(source, fake, [RoutingSink(source, sinks)], PipelineSettings(**settings))
    assert [sink.closed for sink in sinks] == [1] * len(sinks)
    return sinks, fake, stats


def test_batches_hold_frames_of_several_sources_and_each_keeps_its_order():
    chain = ChainSource([Shades(30, 5), Shades(40, 5)])
    sources = [Shades(10, 20), Shades(20, 30, bad=7), chain]
    sinks, fake, stats = run(sources, engine(0.002), batch_size=4)
    assert [sink.order for sink in sinks] == [list(range(20)), list(range(30)), list(range(10))]
    assert [sink.shades for sink in sinks] == [{10}, {20}, {30, 40}]
    assert fake.mixed > 5 and max(fake.sizes) == 4
    assert sinks[1].failed == ["shade 20#7: frame 7 is damaged"]
    assert stats.sources == {
        0: SourceStats(20, 0, 40),
        1: SourceStats(29, 1, 58),
        2: SourceStats(5, 0, 10),
        3: SourceStats(5, 0, 10),
    }
    assert stats.of([2, 3]) == SourceStats(10, 0, 20)
    assert (stats.read, stats.done, stats.failed, stats.dropped) == (60, 59, 1, 0)


def test_a_slow_engine_is_shared_fairly():
    # Much comes from one camera, less from another one, and from files as much as is taken.
    live = [Shades(10, 10**9, True, 0.0005), Shades(20, 10**9, True, 0.002)]

    class Last(Record):
        def write(self, frame, shade):
            super().write(frame, shade)
            if frame.index == 59:
                for one in live:
                    one.close()

    source, sinks, stats = (
        SimultaneousSource([*live, Shades(30, 60)]),
        [Record(), Record(), Last()],
        RunStats(),
    )
    run_pipeline(source, engine(0.02, max_batch=1), [RoutingSink(source, sinks)], stats=stats)
    counts = [len(sink.order) for sink in sinks]
    assert counts[2] == 60 and all(20 <= count <= 80 for count in counts)
    assert stats.dropped == source.dropped > 0 and stats.read == stats.done + stats.dropped
    assert all(sink.order == sorted(set(sink.order)) for sink in sinks)


def test_one_that_dies_costs_one_failure():
    sinks, _, stats = run([Shades(10, 3, error=YolactError("camera x is gone")), Shades(20, 50)])
    assert sinks[0].order == [0, 1, 2, 3] and sinks[0].failed == ["shade 10: camera x is gone"]
    assert sinks[1].order == list(range(50)) and stats.failed == 1


def test_ctrl_c_ends_all():
    sources = [Shades(10, 10**9, True, 0.001), Shades(20, 1, True, 1e6), Shades(30, 10**9)]

    class Interrupting(Record):
        def write(self, frame, shade):
            super().write(frame, shade)
            if frame.index == 10:
                _thread.interrupt_main()

    sinks, stats = [Record(), Record(), Interrupting()], RunStats()
    source = SimultaneousSource(sources)
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(source, engine(), [RoutingSink(source, sinks)], stats=stats)
    assert all(one.closed.is_set() for one in sources)
    assert stats.done == sum(len(sink.order) for sink in sinks) > 10
    assert not [t for t in threading.enumerate() if t.name.startswith("source ")]


def test_no_frames_pile_up_before_a_slow_engine():
    release = threading.Event()

    class Held(FakeEngine):
        def detect(self, batch):
            assert release.wait(60)
            return super().detect(batch)

    class Given(Shades):
        def __iter__(self):
            yield from super().__iter__()
            given.release()

    given = threading.Semaphore(0)
    source, sinks = SimultaneousSource([Given(10, 100, True), Given(20, 100, True)]), [Record(), Record()]

    def wait():
        assert given.acquire(timeout=60) and given.acquire(timeout=60)
        release.set()

    threading.Thread(target=wait).start()
    run_pipeline(source, Held({}, max_batch=1), [RoutingSink(source, sinks)])
    # One in the engine, one before it, one that waits for a worker; and the newest of each source.
    assert sum(len(sink.order) for sink in sinks) <= 5
    assert [sink.order[-1] for sink in sinks] == [99, 99]
