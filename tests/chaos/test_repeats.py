"""T8: the same event, from many callers at the same moment, and again after hours and days."""

from __future__ import annotations

import random
import threading
import uuid
from collections import Counter
from typing import Any

import pytest
import requests

from apps.notifications.upkeep import IDEMPOTENCY_KEPT_DAYS
from tests.acceptance.stack import Stack
from tests.chaos.form import SEED, sized
from tests.chaos.load import Mix, People
from tests.chaos.oracle import judge, wait_ended
from tests.chaos.report import Report

ROUNDS = sized(50, 4)
CALLERS = 100
JUST_KEPT_H = IDEMPOTENCY_KEPT_DAYS * 24 - 1


class Volley:
    """A hundred callers, each with a connection of its own, who all ask at the same moment."""

    def __init__(self, stack: Stack) -> None:
        self._url = f"{stack.url}/v1/notifications"
        self._sessions = [requests.Session() for _ in range(CALLERS)]
        for session in self._sessions:
            session.auth = (stack.demo["NOTIFIER_APP_KEY"], stack.demo["NOTIFIER_APP_SECRET"])

    def fire(self, body: dict[str, Any], key: str = "") -> list[requests.Response]:
        start = threading.Barrier(CALLERS)
        answers: list[requests.Response] = []

        def call(session: requests.Session) -> None:
            start.wait()
            headers = {"Idempotency-Key": key} if key else {}
            answers.append(session.post(self._url, json=body, headers=headers, timeout=30))

        threads = [threading.Thread(target=call, args=(session,)) for session in self._sessions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers


def test_one_event_asked_for_a_hundred_times_at_once_is_one_notification(
    stack: Stack, people: People, report: Report
) -> None:
    dice = random.Random(SEED)
    volley, accepted = Volley(stack), {}
    statuses: Counter[int] = Counter()
    for _ in range(ROUNDS):
        body = Mix(lanes=("normal",)).item(people, dice)
        answers = volley.fire(body)
        by_status = Counter(answer.status_code for answer in answers)
        statuses += by_status
        assert by_status == {202: 1, 200: CALLERS - 1}, by_status
        assert {answer.json()["id"] for answer in answers} == {answers[0].json()["id"]}
        assert all(answer.json()["duplicate"] is (answer.status_code == 200) for answer in answers)
        accepted[body["event_id"]] = answers[0].json()["id"]
    wait_ended(stack, 60)
    verdict = judge(stack, accepted)
    report.add("T8 one event", rounds=ROUNDS, answers=statuses, sent=verdict.sent.total(), lost=len(verdict.lost))
    assert (verdict.lost, verdict.made_twice, verdict.duplicates) == ([], 0, 0)


def test_one_key_asked_for_a_hundred_times_at_once_is_one_notification(
    stack: Stack, people: People, report: Report
) -> None:
    dice = random.Random(SEED + 1)
    volley, accepted = Volley(stack), {}
    replayed = 0
    for _ in range(ROUNDS):
        body = Mix(lanes=("normal",)).item(people, dice)
        event = body.pop("event_id")  # the key alone has to do
        answers = volley.fire(body, key := uuid.uuid4().hex)
        good = [answer for answer in answers if answer.status_code == 202]
        assert {answer.status_code for answer in answers} <= {202, 409}
        assert len({answer.content for answer in good}) == 1
        first = [answer for answer in good if "Idempotent-Replayed" not in answer.headers]
        assert len(first) == 1
        replayed += len(good) - 1
        other = requests.post(
            f"{stack.url}/v1/notifications",
            json=body | {"reference": "other"},
            headers={"Idempotency-Key": key},
            auth=(stack.demo["NOTIFIER_APP_KEY"], stack.demo["NOTIFIER_APP_SECRET"]),
            timeout=30,
        )
        assert other.status_code == 422
        accepted[event] = good[0].json()["id"]
    wait_ended(stack, 60)
    verdict = judge(stack, accepted)
    report.add("T8 one key", rounds=ROUNDS, replayed=replayed, sent=verdict.sent.total(), lost=len(verdict.lost))
    assert (verdict.lost, verdict.duplicates, verdict.deliveries) == ([], 0, ROUNDS)


@pytest.mark.parametrize("hours", [1, JUST_KEPT_H])
def test_a_repeat_long_afterwards_is_the_same_notification(
    stack: Stack, people: People, report: Report, hours: int
) -> None:
    body = Mix(lanes=("normal",)).item(people, random.Random(SEED + hours))
    event, by_key = body["event_id"], {name: value for name, value in body.items() if name != "event_id"}
    key = uuid.uuid4().hex

    def ask() -> tuple[requests.Response, requests.Response]:
        return (
            stack.api("POST", "/v1/notifications", json=body),
            stack.api("POST", "/v1/notifications", json=by_key, headers={"Idempotency-Key": key}),
        )

    first = ask()
    assert [answer.status_code for answer in first] == [202, 202]
    wait_ended(stack, 60)
    so_long_ago(stack, hours)
    stack.manage("shell", "-c", "from apps.notifications.upkeep import forget_old_keys; forget_old_keys()")
    again = ask()
    assert (again[0].status_code, again[0].json()["id"]) == (200, first[0].json()["id"])
    assert again[0].json()["duplicate"] is True
    assert (again[1].status_code, again[1].content) == (202, first[1].content)
    assert again[1].headers["Idempotent-Replayed"] == "true"
    wait_ended(stack, 60)
    verdict = judge(stack, {event: first[0].json()["id"], key: first[1].json()["id"]})
    report.add(f"T8 after {hours} h", sent=verdict.sent.total(), lost=len(verdict.lost))
    assert (verdict.lost, verdict.duplicates, verdict.deliveries, verdict.made_twice) == ([], 0, 2, 0)


def so_long_ago(stack: Stack, hours: int) -> None:
    """What is known of every request happened so much earlier."""
    for table in ("idempotencykey", "eventkey"):
        moved = stack.query(
            f"UPDATE notifications_{table} SET created_at = created_at - %s * interval '1 hour' RETURNING id", hours
        )
        assert moved
