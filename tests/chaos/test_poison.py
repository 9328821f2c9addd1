"""T15: messages that kill whoever touches them end, and take nobody with them."""

from __future__ import annotations

import random
import time

from tests.acceptance.stack import Stack
from tests.chaos.form import SEED, SHORT, sized
from tests.chaos.havoc import IN_FLIGHT
from tests.chaos.load import Load, Mix, People
from tests.chaos.oracle import assert_books_balance, judge, ledger, wait_ended
from tests.chaos.poison import ADAPTER, HANGS, RENDERER
from tests.chaos.report import Report

WORKER, LANE = sized(("email", "normal"), ("email-critical", "critical"))
POISONS = sized((RENDERER, ADAPTER) * 10 + (HANGS,), (RENDERER, ADAPTER))
NOTIFICATIONS = sized(10_000, 150)
RATE = sized(80.0, 30.0)
ENDED_WITHIN_S = sized(1800.0, 120.0)
MOST_CRASHES = 5


def test_what_kills_its_worker_five_times_is_dead_and_the_rest_is_sent(
    stack: Stack, people: People, report: Report
) -> None:
    process = stack.fleet[WORKER]
    harmless = process.command
    stack.stop(WORKER)
    process.command = f"{harmless} --include tests.chaos.poison"
    try:
        stack.start(WORKER)
        mix = Mix(channels=("email",), lanes=(LANE,), batches=0)
        load = Load(stack, people, SEED, mix, rate=RATE, count=NOTIFICATIONS).start()
        time.sleep(NOTIFICATIONS / RATE / 2)
        poisoned = send_poison(stack, people)
        load.finish(600)
        if SHORT:
            skip_to_the_fourth_death(stack, poisoned)
        ended_after_s = wait_ended(stack, ENDED_WITHIN_S)
    finally:
        stack.stop(WORKER)
        process.command = harmless
        stack.start(WORKER)
    verdict = judge(stack, load.accepted)
    ends = stack.query(
        "SELECT d.id::text, d.state, d.reason, "
        "(SELECT count(*) FROM notifications_attempt a WHERE a.delivery_id = d.id) "
        "FROM notifications_delivery d WHERE notification_id = ANY (%s::uuid[])",
        poisoned,
    )
    deaths = sum(row[3] for row in ends)
    report.add(
        "T15 poison",
        poisoned=len(poisoned),
        deaths=deaths,
        beside_them=verdict.accepted,
        lost=len(verdict.lost),
        sent_twice=verdict.duplicates,
        ended_after_s=ended_after_s,
    )
    assert [row[1:3] for row in ends] == [("dead", "attempts_exhausted")] * len(poisoned)
    assert SHORT or [row[3] for row in ends] == [MOST_CRASHES] * len(poisoned)
    assert not {row[0] for row in ends} & set(ledger(stack))
    assert verdict.lost == []
    assert set(verdict.states) <= {"sent", "delivered", "opened", "clicked"}
    # Whoever was in the air when a poison was first met may be sent again; from then on it dies alone.
    assert verdict.duplicates <= len(poisoned) * IN_FLIGHT
    assert verdict.most_times <= 2
    assert_books_balance(stack)


def send_poison(stack: Stack, people: People) -> list[str]:
    dice, ids = random.Random(SEED), []
    for poison in POISONS:
        body = {
            "template": "login-code",
            "to": [{"user_id": dice.choice(people.ids)}],
            "data": {"code": poison},
            "channels": ["email"],
            "lane": LANE,
        }
        answer = stack.api("POST", "/v1/notifications", json=body)
        assert answer.status_code == 202, answer.text
        ids.append(answer.json()["id"])
    return ids


def skip_to_the_fourth_death(stack: Stack, poisoned: list[str]) -> None:
    """After the first, so that the short form waits for two leases and not for five."""
    left = set(poisoned)

    def raised() -> bool:
        rows = stack.query(
            "UPDATE notifications_pending p SET crashes = %s FROM notifications_delivery d "
            "WHERE d.id = p.id AND p.crashes BETWEEN 1 AND %s AND d.notification_id = ANY (%s::uuid[]) "
            "RETURNING d.notification_id::text",
            MOST_CRASHES - 1,
            MOST_CRASHES - 2,
            poisoned,
        )
        left.difference_update(row[0] for row in rows)
        return not left

    stack.wait_for(raised, "the first deaths", within_s=90)
