"""Any source, faults and settings: each frame once and in order, counts right, no thread left."""

import _thread
import logging
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine, Found
from hypothesis import given, settings
from hypothesis import strategies as st

from yolact_runtime import YolactError
from yolact_runtime.errors import UsageError
from yolact_runtime.frames import Frame, Sink, Source
from yolact_runtime.pipeline import PipelineSettings, RunStats, run_pipeline

BAD = 200  # the shade that the engine fails on
FOUND = [Found((1, 1, 20, 20)), Found((30, 30, 50, 60), label=1)]


class Shades(Source):
    """Frames filled with one shade each; None cannot be read. Shade 0 has no detections, others two."""

    def __init__(self, shades, delay=None, live=False, end=None):
        self.shades, self.delay, self.live, self.end = shades, delay, live, end
        self.closed = threading.Event()

    def __iter__(self):
        for index, shade in enumerate(self.shades):
            yield Frame(index, f"frame {index}", Path("none"), partial(self.read, index, shade))
        if self.end:
            raise self.end

    def read(self, index, shade):
        if self.delay:
            time.sleep(self.delay(index))
        if shade is None:
            raise YolactError(f"frame {index} is damaged")
        return np.full((64, 64, 3), shade, np.uint8)

    def close(self):
        self.closed.set()


class Record(Sink):
    """Keeps its input; may fail in `prepare` of some frames and in `write` of one."""

    def __init__(self, refuse=(), full_at=None, delay=None):
        self.refuse, self.full_at, self.delay = refuse, full_at, delay
        self.written, self.failed, self.order, self.closed = {}, {}, [], 0

    def prepare(self, frame, image, result):
        if self.delay:
            time.sleep(self.delay(frame.index))
        if frame.index in self.refuse:
            raise ValueError("cannot draw")
        return int(image[0, 0, 0]), len(result)

    def write(self, frame, prepared):
        if frame.index == self.full_at:
            raise YolactError("no space left on device")
        self.written[frame.index] = prepared
        self.order.append(frame.index)

    def fail(self, frame, error):
        self.failed[frame.index] = error
        self.order.append(frame.index)

    def close(self):
        self.closed += 1


def engine(streams=1, delay=None, max_batch=4):
    class Delayed(FakeEngine):
        def detect(self, batch, classes=None):
            self.sizes.append(len(batch))
            if delay:
                time.sleep(delay(len(self.sizes)))
            return super().detect(batch)

    fake = Delayed(dict.fromkeys(range(1, 256), FOUND), max_batch=max_batch, broken=[BAD])
    fake.streams, fake.sizes = streams, []
    return fake


def own_threads():
    return [
        t.name for t in threading.enumerate() if t.name.startswith(("reader", "decode", "engine-", "post"))
    ]


@settings(max_examples=60)
@given(
    shades=st.lists(st.sampled_from([0, 1, 2, 150, None, BAD]), max_size=40),
    batch=st.integers(1, 6),
    streams=st.integers(1, 3),
    workers=st.integers(1, 4),
    post=st.integers(1, 3),
    in_flight=st.none() | st.integers(1, 5),
    deadline=st.sampled_from([0.0, 0.001, 0.01]),
    jitter=st.none() | st.integers(0, 2**16),
    refuse=st.sets(st.integers(0, 40), max_size=3),
)
def test_each_frame_once_and_in_order(
    shades, batch, streams, workers, post, in_flight, deadline, jitter, refuse
):
    def delay(index):
        return hash((jitter, index)) % 5 / 2000

    pause = None if jitter is None else delay
    source, sink = Shades(shades, pause), Record(refuse, delay=pause)
    # Failures of single images only: that many in a row would end the run.
    options = PipelineSettings(
        batch, deadline, workers, post, in_flight=in_flight, engine_failures=1000, score_threshold=0.5
    )
    fake = engine(streams, pause)
    stats = run_pipeline(source, fake, [sink], options)
    bad = {i for i, s in enumerate(shades) if s in (None, BAD)} | {i for i in refuse if i < len(shades)}
    assert sink.order == list(range(len(shades)))
    assert set(sink.failed) == bad
    assert sink.written == {i: (s, 2 if s else 0) for i, s in enumerate(shades) if i not in bad}
    assert all(f"frame {index}" in text for index, text in sink.failed.items())
    assert (stats.read, stats.done, stats.failed, stats.dropped) == (
        len(shades), len(shades) - len(bad), len(bad), 0,
    )  # fmt: skip
    assert stats.detections == sum(n for _, n in sink.written.values())
    assert max(fake.sizes, default=1) <= min(batch, 4)
    assert sink.closed == 1 and source.closed.is_set() and not own_threads()


def test_one_bad_image_costs_only_itself(caplog):
    sink = Record()
    stats = run_pipeline(Shades([1, 1, BAD, 1]), engine(), [sink], PipelineSettings(4, deadline=5))
    assert list(sink.written) == [0, 1, 3] and stats.failed == 1
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert lines == ["frame 2: cannot look at shade 200; skipped"]


def test_whole_batches_where_work_is_plentiful():
    fake = engine(delay=lambda _: 0.002)
    run_pipeline(Shades([1] * 40), fake, [Record()], PipelineSettings(4, deadline=5))
    assert fake.sizes == [4] * 10


def test_a_partial_batch_goes_at_its_deadline():
    more = threading.Event()

    class Waiting(Shades):
        def __iter__(self):
            for frame in super().__iter__():
                if frame.index == 2:
                    assert more.wait(60)
                yield frame

    class Signal(Record):
        def write(self, frame, prepared):
            super().write(frame, prepared)
            if frame.index == 1:
                more.set()

    fake = engine()
    assert run_pipeline(Waiting([1, 1, 1]), fake, [Signal()], PipelineSettings(4, deadline=0.05)).done == 3
    assert fake.sizes[0] <= 2


def test_a_batch_is_never_larger_than_the_engine_takes(caplog):
    fake = engine(max_batch=2)
    for size in (2, 8, 8):  # one warning for an engine, however many runs it serves
        run_pipeline(Shades([1] * 9), fake, [Record()], PipelineSettings(size))
    assert max(fake.sizes) == 2
    (record,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert "takes at most 2 images in a call, and the batch size is 8" in record.message
    assert "--max-batch 8" in record.message and "max_batch=8" in record.message


def test_streams_run_at_the_same_time():
    both = threading.Barrier(2, timeout=60)
    fake = engine(2, delay=lambda _: both.wait() and 0)
    assert run_pipeline(Shades([1, 1]), fake, [Record()]).done == 2


def test_an_engine_that_fails_on_everything_is_given_up(caplog):
    sink = Record()
    stats = RunStats()
    with pytest.raises(YolactError, match="failed on 5 images in a row"):
        run_pipeline(
            Shades([BAD] * 10_000), engine(2), [sink], PipelineSettings(engine_failures=5), stats=stats
        )
    assert sum(r.levelno == logging.ERROR for r in caplog.records) == 5
    assert stats.done == 0 and 5 <= stats.failed < 100 and sink.closed == 1 and not own_threads()


def test_failures_between_successes_do_not_add_up():
    stats = run_pipeline(
        Shades([1, BAD] * 20), engine(), [Record()], PipelineSettings(decode_workers=1, engine_failures=2)
    )
    assert (stats.done, stats.failed) == (20, 20)


@pytest.mark.parametrize("error", [YolactError("camera 0 is gone"), OSError(5, "Input/output error")])
def test_a_source_that_breaks_off_keeps_what_it_gave(error):
    sink = Record()
    with pytest.raises(YolactError, match=r"camera 0 is gone|Input/output error"):
        run_pipeline(Shades([1, 2, 3], end=error), engine(), [sink])
    assert sink.order == [0, 1, 2] and sink.closed == 1 and not own_threads()


@pytest.mark.parametrize("at", [0, 3, 19])
def test_a_sink_that_cannot_write_ends_the_run(at):
    full, other = Record(full_at=at), Record()
    with pytest.raises(YolactError, match="no space left on device"):
        run_pipeline(Shades([1] * 20), engine(2), [other, full], PipelineSettings(2))
    assert full.order == list(range(at)) and other.order == list(range(at + 1))
    assert full.closed == other.closed == 1 and not own_threads()


def test_every_sink_is_closed_if_another_fails():
    class Stubborn(Record):
        def close(self):
            super().close()
            raise OSError(28, "No space left on device")

    first, second = Stubborn(), Record()
    with pytest.raises(YolactError, match="No space left on device"):
        run_pipeline(Shades([1]), engine(), [first, second])
    assert second.closed == 1


def test_a_live_source_drops_the_late_and_keeps_the_newest():
    busy, given_all = threading.Event(), threading.Event()

    class Live(Shades):
        def __iter__(self):
            for frame in super().__iter__():
                yield frame
                if frame.index == 0:
                    assert busy.wait(60)
            given_all.set()

    def hold(_):
        busy.set()
        assert given_all.wait(60)
        return 0

    sink = Record()
    stats = run_pipeline(Live([1] * 100, live=True), engine(delay=hold), [sink])
    assert stats.read == 100 and stats.done + stats.dropped == 100 and stats.dropped > 90
    assert sink.order == sorted(sink.order) and sink.order[0] == 0 and sink.order[-1] == 99


def test_nothing_is_dropped_where_that_is_asked_for():
    stats = run_pipeline(
        Shades([1] * 50, live=True),
        engine(delay=lambda _: 0.001),
        [Record()],
        PipelineSettings(drop_late=False),
    )
    assert (stats.done, stats.dropped) == (50, 0)


def test_memory_is_bounded_by_the_frames_in_flight():
    lock, alive, most = threading.Lock(), set(), []

    class Counting(Shades):
        def read(self, index, shade):
            with lock:
                alive.add(index)
                most.append(len(alive))
            return super().read(index, shade)

    class Slow(Record):
        def write(self, frame, prepared):
            time.sleep(0.001)
            with lock:
                alive.discard(frame.index)

    run_pipeline(Counting([1] * 200), engine(), [Slow()], PipelineSettings(2, in_flight=7))
    assert max(most) <= 7


def test_ctrl_c_finishes_what_is_under_way():
    class Interrupting(Shades):
        def read(self, index, shade):
            if index == 5:
                _thread.interrupt_main()
                assert self.closed.wait(60)
            return super().read(index, shade)

    sink, stats = Record(), RunStats()
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(Interrupting([1] * 100_000), engine(), [sink], stats=stats)
    assert sink.order == list(range(stats.done)) and 6 <= stats.done < 100
    assert sink.closed == 1 and not own_threads()


class InterruptedTwice(Shades):
    """Brings the second Ctrl-C once the first has been seen."""

    def close(self):
        if not self.closed.is_set():
            self.closed.set()
            threading.Timer(0.1, _thread.interrupt_main).start()


def test_a_second_ctrl_c_does_not_wait():
    release, ended = threading.Event(), []

    def hang(_):
        _thread.interrupt_main()
        ended.append(release.wait(20))
        return 0

    sink = Record()
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(InterruptedTwice([1] * 10), engine(delay=hang), [sink])
    assert not ended  # the engine still hangs
    assert sink.closed == 1 and sink.order == []
    release.set()


def test_a_sink_that_hangs_does_not_keep_the_others_from_closing():
    release = threading.Event()

    class Hanging(Record):
        def write(self, frame, prepared):
            _thread.interrupt_main()
            release.wait(20)

    hanging, other = Hanging(), Record()
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(InterruptedTwice([1] * 10), engine(), [other, hanging])
    assert other.closed == 1 and hanging.closed == 0
    release.set()


def test_progress_comes_at_the_end_at_least():
    seen = []
    stats = run_pipeline(Shades([1] * 3), engine(), [Record()], progress=seen.append)
    assert seen[-1] == stats and stats.fps > 0


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"deadline": -1}, {"deadline": float("inf")}, {"decode_workers": 0},
     {"post_workers": 0}, {"in_flight": 0}, {"top_k": 0}, {"score_threshold": 2}, {"engine_failures": 0},
     {"top_k": 3.0}, {"batch_size": "2"}, {"deadline": None}, {"track": True}],
)  # fmt: skip
def test_settings_outside_their_range(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        PipelineSettings(**wrong)


def test_only_the_wanted_classes_reach_the_sinks():
    sink = Record()
    fake = engine(2)
    stats = run_pipeline(Shades([1] * 9), fake, [sink], PipelineSettings(4, classes=["dog"]))
    assert stats.detections == 9 and set(sink.written.values()) == {(1, 1)}
    with pytest.raises(UsageError, match="classes: there is no class 'nothing'"):
        run_pipeline(Shades([1]), fake, [sink], PipelineSettings(classes=["nothing"]))
    assert not own_threads()
