"""T14: a worker that is frozen past its leases, as a paused machine is, and then goes on as if nothing had been."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

import requests

from apps.console.supervisor import Process
from tests.acceptance.stack import Stack
from tests.chaos.form import SEED, sized
from tests.chaos.havoc import IN_FLIGHT, held_by, pool_children
from tests.chaos.load import Load, Mix, People
from tests.chaos.oracle import assert_books_balance, judge, late_results, wait_ended
from tests.chaos.report import Report

# The critical lane's leases are over after 15 s, the others' after 60.
VICTIM, LANE, LEASE_S = sized(("sms", "normal", 60.0), ("sms-critical", "critical", 15.0))
BEYOND_S = sized(90.0, 5.0)
RATE = 30.0
SLOW_MS = 2000


def another(stack: Stack, name: str) -> Process:
    """A second worker for the same queues, on another machine as it were."""
    first = stack.fleet[name]
    command = first.command.replace(f"-n {name}@", f"-n {name}-2@")
    assert command != first.command
    return replace(first, name=f"{name}-2", command=command, child=None)


def test_the_results_of_a_worker_that_was_frozen_past_its_leases_are_refused(
    stack: Stack, people: People, report: Report
) -> None:
    slow = {"mode": "latency", "latency_ms": SLOW_MS}
    requests.post(f"{stack.sandbox_url}/_faults", json=slow, timeout=10).raise_for_status()
    load = Load(stack, people, SEED, Mix(channels=("sms",), lanes=(LANE,), batches=0), rate=RATE).start()
    [child] = pool_children(stack, VICTIM)
    stack.wait_for(lambda: held_by(stack, VICTIM, child) >= RATE, "calls in the air")
    time.sleep(SLOW_MS / 2000)  # what was only just claimed is with the provider by now
    main = stack.fleet[VICTIM].pid
    for pid in (main, child):  # both: the main process would end a child that does not answer
        os.kill(pid, signal.SIGSTOP)
    frozen_at = time.monotonic()
    held = held_by(stack, VICTIM, child)
    second = stack.fleet.processes[f"{VICTIM}-2"] = another(stack, VICTIM)
    try:
        stack.start(second.name)
        time.sleep(sized(10.0, 3.0))
        load.stop()
        load.finish()
        requests.delete(f"{stack.sandbox_url}/_faults", timeout=10).raise_for_status()
        ended_after_s = wait_ended(stack, LEASE_S + 60)
        time.sleep(max(0.0, frozen_at + LEASE_S + BEYOND_S - time.monotonic()))
        before = judge(stack, load.accepted)
        os.kill(child, signal.SIGCONT)
        stack.wait_for(lambda: late_results(stack, load.accepted) > 0, "a late result", within_s=30)
        time.sleep(2)
        os.kill(main, signal.SIGCONT)
        after = judge(stack, load.accepted)
        late = late_results(stack, load.accepted)
        report.add(
            "T14 frozen",
            accepted=after.accepted,
            frozen_s=time.monotonic() - frozen_at,
            held=held,
            late_results=late,
            lost=len(after.lost),
            sent_twice=after.duplicates,
            most_times_one=after.most_times,
            ended_after_s=ended_after_s,
        )
        assert after.lost == []
        assert set(after.states) <= {"sent", "delivered", "opened", "clicked"}
        assert before.states.total() == after.states.total() == len(load.accepted)
        assert 0 < late <= min(held, IN_FLIGHT)
        assert after.duplicates <= min(held, IN_FLIGHT)
        assert after.most_times <= 2
        assert_books_balance(stack)
    finally:
        stack.stop(second.name)
        del stack.fleet.processes[second.name]
