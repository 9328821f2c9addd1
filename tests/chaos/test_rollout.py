"""T16: every process is stopped by SIGTERM and started again, while callers go on."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial

import requests

from apps.console.supervisor import GRACE_S, WORKER_GRACE_S
from tests.acceptance.stack import Stack, descendants
from tests.chaos.form import SEED, sized
from tests.chaos.havoc import IN_FLIGHT, WORKERS, is_alive
from tests.chaos.load import Load, Mix, People
from tests.chaos.oracle import assert_books_balance, judge, wait_ended
from tests.chaos.report import Report

ROUNDS = sized(20, 3)
AT_ONCE = sized(1, 6)
RATE = sized(40.0, 30.0)
SLOW_MS = 200
ROLLED = (*WORKERS, "relay", "beat", "web")


def test_a_rolling_restart_loses_nothing_and_sends_nothing_twice(stack: Stack, people: People, report: Report) -> None:
    slow = {"mode": "latency", "latency_ms": SLOW_MS}
    requests.post(f"{stack.sandbox_url}/_faults", json=slow, timeout=10).raise_for_status()
    load = Load(stack, people, SEED, Mix(), rate=RATE).start()
    stops: list[float] = []
    hung: list[str] = []
    for _ in range(ROUNDS):
        for first in range(0, len(ROLLED), AT_ONCE):
            names = ROLLED[first : first + AT_ONCE]
            took, late = stop(stack, names)
            stops += took
            hung += late
            stack.start(*names)
            # Granian's workers hear no SIGTERM while they load the service; they serve nobody then either.
            stack.wait_for(partial(accepts, load, time.monotonic()), "a 202")
            time.sleep(sized(1.0, 0.5))
    load.stop()
    load.finish()
    requests.delete(f"{stack.sandbox_url}/_faults", timeout=10).raise_for_status()
    ended_after_s = wait_ended(stack, 120)
    verdict = judge(stack, load.accepted)
    report.add(
        "T16 rollout",
        accepted=verdict.accepted,
        stops=ROUNDS * len(ROLLED),
        hung=Counter(hung),
        slowest_stop_s=max(stops, default=0.0),
        lost=len(verdict.lost),
        sent_twice=verdict.duplicates,
        answers=load.statuses,
        ended_after_s=ended_after_s,
    )
    assert verdict.lost == []
    assert verdict.deliveries == verdict.accepted == len(load.accepted)
    assert verdict.made_twice == 0
    assert set(verdict.states) <= {"sent", "delivered", "opened", "clicked"}
    assert verdict.duplicates <= IN_FLIGHT * len([name for name in hung if name in WORKERS])
    assert_books_balance(stack)


def stop(stack: Stack, names: Sequence[str]) -> tuple[list[float], list[str]]:
    """SIGTERM to the main processes; (seconds of those that ended in time, names of those that had to be killed).

    In time means: with all their children, within the grace that the supervisor gives.
    """
    family = {name: [stack.fleet[name].pid, *descendants(stack.fleet[name].pid)] for name in names}
    began = time.monotonic()
    for name in names:
        stack.fleet[name].signal(signal.SIGTERM)
    took: dict[str, float] = {}
    while len(took) < len(names) and time.monotonic() - began < WORKER_GRACE_S:
        for name in names:
            if name not in took and not stack.fleet[name].is_running and not any(map(is_alive, family[name])):
                took[name] = time.monotonic() - began
        time.sleep(0.05)
    late = [name for name in names if took.get(name, WORKER_GRACE_S + 1) > grace_of(name)]
    for name in names:
        stack.fleet[name].kill()
    return [seconds for name, seconds in took.items() if name not in late], late


def accepts(load: Load, since: float) -> bool:
    return any(answer.status == 202 for answer in load.since(since))


def grace_of(name: str) -> float:
    return WORKER_GRACE_S if name in WORKERS else GRACE_S
