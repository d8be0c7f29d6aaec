"""How long a server is waited for."""

from __future__ import annotations

import pytest

from yolact_runtime.engines.remote.outage import FIRST, LONGEST, Outage, Unavailable
from yolact_runtime.errors import EngineUnavailableError, YolactError


def test_waits_double_up_to_the_longest_and_half_of_them_is_random() -> None:
    now = 0.0
    outage = Outage("server", 1000, None, clock=lambda: now)
    for attempt in range(1, 40):
        longest = min(LONGEST, FIRST * 2 ** (attempt - 1))
        waits = [outage.wait_after(Unavailable("gone"), attempt) for _ in range(20)]
        assert all(longest / 2 <= wait <= longest for wait in waits) and len(set(waits)) > 1
    now = 999.9
    assert outage.wait_after(Unavailable("gone"), 50) == pytest.approx(0.1)  # the last attempt is at the end
    now = 1000.0
    with pytest.raises(EngineUnavailableError, match="server did not answer 51 attempts in 1000 s: gone"):
        outage.wait_after(Unavailable("gone"), 51)


def test_the_time_of_all_requests_is_one_and_begins_again_after_an_answer() -> None:
    now = 0.0
    outage = Outage("server", 10, 2, clock=lambda: now)
    assert not outage.lasts
    outage.wait_after(Unavailable("gone"), 1)
    assert outage.lasts
    now = 10.0
    with pytest.raises(EngineUnavailableError):
        outage.wait_after(Unavailable("gone"), 1)  # of another request
    outage.end()
    outage.wait_after(Unavailable("gone"), 1)
    outage.wait_after(Unavailable("gone"), 2)
    with pytest.raises(EngineUnavailableError, match="3 attempts"):
        outage.wait_after(Unavailable("gone"), 3)  # a request is sent again twice
    assert outage.retried == 3


def test_a_request_that_is_never_answered_ends_while_others_are() -> None:
    now = 0.0
    outage = Outage("server", 10, None, clock=lambda: now)
    outage.wait_after(Unavailable("gone"), 1)
    for now in (3.0, 6.0, 9.0):  # noqa: B007 - the clock reads it
        outage.end()  # by another request
        outage.wait_after(Unavailable("gone"), 2, 0.0)
    now = 10.0
    with pytest.raises(YolactError, match="not answered in 3 attempts, while others were: gone") as error:
        outage.wait_after(Unavailable("gone"), 3, 0.0)
    assert not isinstance(error.value, EngineUnavailableError)
    outage.wait_after(Unavailable("gone"), 1, 10.0)  # a younger request still waits
