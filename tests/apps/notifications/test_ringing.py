"""When the thread that rings publishes: at once, together, and never later than an urgent one can bear."""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import uuid4

import pytest

from apps.notifications import ringing
from apps.notifications.ringing import Ring, Ringer


class Listened(Ringer):
    """Publishes into a list."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds: list[list[str]] = []

    def _publish(self, rings: list[Ring]) -> None:
        self.rounds.append([ring.queue for ring in rings])


@pytest.fixture
def ringer(monkeypatch: pytest.MonkeyPatch) -> Listened:
    monkeypatch.setattr(ringing, "RING_EVERY_S", 30.0)
    monkeypatch.setattr(ringing, "RING_AT_LEAST_EVERY_S", 30.0)
    return Listened()


def wait_for(found: Callable[[], bool]) -> None:
    until = time.monotonic() + 5
    while not found():
        assert time.monotonic() < until
        time.sleep(0.005)


def rings(queue: str, count: int = 1) -> list[Ring]:
    return [Ring(queue, uuid4(), "") for _ in range(count)]


def test_what_comes_first_is_rung_at_once_and_what_follows_goes_out_together(ringer: Listened) -> None:
    ringer.ring(rings("push.normal"))
    wait_for(lambda: ringer.rounds == [["push.normal"]])
    for _ in range(5):
        ringer.ring(rings("push.normal"))
    time.sleep(0.2)
    assert len(ringer.rounds) == 1


def test_what_is_critical_waits_for_no_rest_and_takes_along_what_does(ringer: Listened) -> None:
    ringer.ring(rings("push.normal"))
    wait_for(lambda: len(ringer.rounds) == 1)
    ringer.ring(rings("push.normal", 2))
    ringer.ring(rings("sms.critical"), is_urgent=True)
    wait_for(lambda: len(ringer.rounds) == 2)
    assert ringer.rounds[1] == ["push.normal", "push.normal", "sms.critical"]
    ringer.ring(rings("sms.critical"), is_urgent=True)
    wait_for(lambda: len(ringer.rounds) == 3)


def test_the_rest_grows_with_the_load_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ringing, "RING_AT_LEAST_EVERY_S", 0.5)
    ringer = Listened()
    ringer.ring(rings("push.normal", 200))
    wait_for(lambda: len(ringer.rounds) == 1)
    began = time.monotonic()
    ringer.ring(rings("push.normal"))
    wait_for(lambda: len(ringer.rounds) == 2)
    assert 0.3 < time.monotonic() - began < 3
