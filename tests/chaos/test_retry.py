"""T3: a task that finds no database comes again by itself. With nobody else to ring for it, that alone sends."""

from __future__ import annotations

import json
import random

from apps.console.servers import Servers
from tests.acceptance.stack import Stack
from tests.chaos.form import SEED
from tests.chaos.load import Mix, People
from tests.chaos.oracle import judge, wait_ended
from tests.chaos.report import Report

WORKER, CHANNEL, LANE = "email-critical", "email", "critical"  # the lane whose every request rings
TASKS = 5  # each draws its own waits, which may all be short: one that comes again sends for all


def test_a_task_that_finds_no_database_comes_again_and_sends(
    stack: Stack, own_servers: Servers, people: People, report: Report
) -> None:
    postgres = own_servers.postgres
    assert postgres is not None
    mix, dice, accepted = Mix(channels=(CHANNEL,), lanes=(LANE,)), random.Random(SEED), {}
    read = len(stack.log(WORKER).read_bytes())
    stack.stop("relay")
    try:
        stack.pause(WORKER)
        for _ in range(TASKS):
            body = mix.item(people, dice)
            answer = stack.api("POST", "/v1/notifications", json=body)
            assert answer.status_code == 202, answer.text
            accepted[body["event_id"]] = answer.json()["id"]
        postgres.stop()
        stack.resume(WORKER)
        stack.wait_for(lambda: retries(stack, read), "a task that is tried again")
        postgres.start()
        ended_after_s = wait_ended(stack, 60)
    finally:
        stack.start("relay")
        stack.restart("web")  # whose idle connections are dead: each would cost the next scenario a 503
    verdict = judge(stack, accepted)
    report.add(
        "T3 retry",
        accepted=verdict.accepted,
        tasks_tried_again=retries(stack, read),
        lost=len(verdict.lost),
        sent_twice=verdict.duplicates,
        ended_after_s=ended_after_s,
    )
    assert (verdict.lost, verdict.duplicates, verdict.deliveries) == ([], 0, TASKS)


def retries(stack: Stack, read: int) -> int:
    """How often the worker said, past the first `read` bytes of its log, that a delivery's task comes again."""
    lines = stack.log(WORKER).read_bytes()[read:].splitlines()
    events = [json.loads(line) for line in lines if line.startswith(b"{") and line.endswith(b"}")]
    return sum((event.get("event"), event.get("task")) == ("task_retried", "deliver") for event in events)
