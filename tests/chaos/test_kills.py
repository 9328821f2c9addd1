"""T1: any process may die at any moment."""

from __future__ import annotations

import os
import signal
import time

import requests

from tests.acceptance.stack import Stack
from tests.chaos.form import SEED, SHORT, sized
from tests.chaos.havoc import SENDERS, Havoc, is_alive
from tests.chaos.load import Load, Mix, People
from tests.chaos.oracle import assert_books_balance, judge, wait_ended
from tests.chaos.report import Report

KILLS = sized(30, 6)
NOTIFICATIONS = sized(10_000, 600)
PAUSE_S = sized((1.5, 5.0), (0.5, 1.5))
ENDED_WITHIN_S = 120.0
# The critical lane's leases are over after 15 s, the others' after 60: the short form kills in that lane alone.
VICTIMS = tuple(name for name, queues in SENDERS.items() if not SHORT or queues[0].endswith(".critical"))
LANES = ("critical", "normal", "bulk")


def test_nothing_is_lost_and_little_is_sent_twice_when_processes_are_killed(
    stack: Stack, people: People, report: Report
) -> None:
    slow = {"mode": "latency", "latency_ms": 800}
    requests.post(f"{stack.sandbox_url}/_faults", json=slow, timeout=10).raise_for_status()
    lanes = ("critical", "critical", "normal", "bulk") if SHORT else LANES
    load = Load(stack, people, SEED, Mix(lanes=lanes), rate=sized(80.0, 60.0))
    load.start()
    havoc = Havoc(stack, load, SEED, senders=VICTIMS)
    havoc.run(KILLS, pause_s=PAUSE_S, within_s=sized(1200, 120))
    havoc.revive()
    last_kill = time.monotonic()
    while len(load.accepted) < NOTIFICATIONS:
        assert time.monotonic() - last_kill < 600, f"{len(load.accepted)} accepted"
        time.sleep(0.2)
    load.stop()
    load.finish()
    requests.delete(f"{stack.sandbox_url}/_faults", timeout=10).raise_for_status()
    last_kill = max(last_kill, time.monotonic())
    ended_after_s = wait_ended(stack, ENDED_WITHIN_S)

    verdict = judge(stack, load.accepted)
    by_role: dict[str, int] = {}
    for kill in havoc.kills:
        by_role[kill.role] = by_role.get(kill.role, 0) + 1
    report.add(
        "T1 kills",
        accepted=verdict.accepted,
        kills=by_role,
        that_interrupted_work=havoc.counted,
        ended_by_themselves=len(havoc.gave_up),
        lost=len(verdict.lost),
        sent_twice=verdict.duplicates,
        of_at_most=havoc.in_flight,
        most_times_one=verdict.most_times,
        answers=load.statuses,
        ends=verdict.states,
        ended_after_s=ended_after_s,
    )
    assert verdict.lost == []
    assert verdict.deliveries == verdict.accepted == len(load.accepted)
    assert verdict.made_twice == 0
    assert set(verdict.states) <= {"sent", "delivered", "opened", "clicked"}
    assert verdict.duplicates <= havoc.in_flight
    assert [id for id, times in verdict.sent.items() if times > 2 and times > 1 + losses(stack, id)] == []
    assert_books_balance(stack)
    assert left_over(havoc.orphans) == []


def losses(stack: Stack, delivery: str) -> int:
    """How many workers died while they held it."""
    [(count,)] = stack.query(
        "SELECT count(*) FROM notifications_attempt "
        "WHERE delivery_id = %s AND (provider_code = 'worker_lost' OR is_late)",
        delivery,
    )
    return int(count)


def left_over(orphans: list[int], within_s: float = 30) -> list[int]:
    """Children that outlived their worker's main process for good; ended here, whatever the test says."""
    deadline = time.monotonic() + within_s
    while any(map(is_alive, orphans)) and time.monotonic() < deadline:
        time.sleep(0.2)
    left = [pid for pid in orphans if is_alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return left
