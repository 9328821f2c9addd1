"""T15: messages that kill whoever touches them end, and take nobody with them."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence

from tests.acceptance.stack import Stack
from tests.chaos.form import SEED, SHORT, sized
from tests.chaos.havoc import IN_FLIGHT
from tests.chaos.load import Load, Mix, People
from tests.chaos.oracle import assert_books_balance, judge, ledger, wait_ended
from tests.chaos.poison import ADAPTER, BURNS, BURNT, HANGS, RENDERER
from tests.chaos.report import Report

WORKER, LANE = sized(("email", "normal"), ("email-critical", "critical"))
POISONS = sized((RENDERER, ADAPTER) * 10 + (HANGS,), (RENDERER, ADAPTER))
SLOW = (BURNS,) * sized(5, 2)
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
        slow = send(stack, people, SLOW)
        poisoned = send(stack, people, POISONS)
        load.finish(600)
        if SHORT:
            skip_to_the_fourth_death(stack, poisoned)
        ended_after_s = wait_ended(stack, ENDED_WITHIN_S)
    finally:
        stack.stop(WORKER)
        process.command = harmless
        stack.start(WORKER)
    verdict = judge(stack, load.accepted)
    burnt = judge(stack, {id: id for id in slow})
    beside = interrupted(stack, [*load.accepted.values(), *slow])
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
        held_up_for_2_s=burnt.accepted,
        interrupted_beside_them=len(beside),
        sent_twice=verdict.duplicates + burnt.duplicates,
        ended_after_s=ended_after_s,
    )
    assert [row[1:3] for row in ends] == [("dead", "attempts_exhausted")] * len(poisoned)
    assert SHORT or [row[3] for row in ends] == [MOST_CRASHES] * len(poisoned)
    assert not {row[0] for row in ends} & set(ledger(stack))
    assert stack.log(WORKER).read_text().count(BURNT) >= len(SLOW)
    assert (verdict.lost, burnt.lost) == ([], [])
    assert set(verdict.states) | set(burnt.states) <= {"sent", "delivered", "opened", "clicked"}
    # Whoever was in the air when a poison was first met may be sent again; from then on it dies alone. A death takes
    # more with it than was in the air: what its process had claimed and not begun is not sent twice.
    assert max(beside.values(), default=0) <= 1
    assert [id for id, times in (verdict.sent + burnt.sent).items() if times > 1 + beside[id]] == []
    assert verdict.duplicates + burnt.duplicates <= len(POISONS) * IN_FLIGHT
    assert_books_balance(stack)


def send(stack: Stack, people: People, poisons: Sequence[str]) -> list[str]:
    dice, ids = random.Random(SEED), []
    for poison in poisons:
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


def interrupted(stack: Stack, notifications: Sequence[str]) -> Counter[str]:
    """How often each delivery was held by a process that died."""
    rows = stack.query(
        "SELECT a.delivery_id::text FROM notifications_attempt a JOIN notifications_delivery d ON d.id = a.delivery_id "
        "WHERE (a.provider_code = 'worker_lost' OR a.is_late) AND d.notification_id = ANY (%s::uuid[])",
        list(notifications),
    )
    return Counter(id for (id,) in rows)


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
