"""The running service, from a request to the phone, through the death of each of its processes."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from notifier.lifecycle import OPEN
from tests.acceptance.stack import Stack


def send(stack: Stack, user: str = "ada") -> str:
    body = {
        "template": "order-shipped",
        "to": [{"user_id": user}],
        "data": {"order": {"id": "A-1", "eta": "2026-11-25"}},
    }
    answer = stack.api("POST", "/v1/notifications", json=body)
    assert answer.status_code == 202, answer.text
    notification: str = answer.json()["id"]
    return notification


def arrived(stack: Stack, notification: str) -> list[dict[str, Any]]:
    """What the sandbox took for the notification, once none of its deliveries is still to be sent."""
    rows = stack.query("SELECT id::text, state FROM notifications_delivery WHERE notification_id = %s", notification)
    if not rows or any(state in OPEN for _, state in rows):
        return []
    ours = {delivery for delivery, _ in rows}
    return [entry for entry in stack.inbox(limit=1000) if entry["delivery_id"] in ours]


def test_an_accepted_request_arrives_in_the_sandbox(stack: Stack) -> None:
    notification = send(stack)
    entries = stack.wait_for(partial(arrived, stack, notification), "the messages in the sandbox")
    assert entries


@pytest.mark.parametrize("name", ["push", "email", "relay", "core", "web"])
def test_what_was_accepted_arrives_though_a_process_is_killed(stack: Stack, name: str) -> None:
    sent = [send(stack) for _ in range(10)]
    stack.kill(name)  # with some of them in its hands, or on their way there
    if name != "web":
        sent += [send(stack) for _ in range(5)]  # accepted while it is gone
    stack.start(name)
    for notification in sent:
        stack.wait_for(partial(arrived, stack, notification), f"{notification} in the sandbox", within_s=90)
    stack.wait_ready()


def test_what_a_frozen_worker_held_is_sent_when_it_thaws(stack: Stack) -> None:
    stack.pause("push")
    notification = send(stack)
    assert not arrived(stack, notification)
    stack.resume("push")
    assert stack.wait_for(partial(arrived, stack, notification), "the messages in the sandbox", within_s=90)


def test_tasks_open_no_database_session_of_their_own(stack: Stack) -> None:
    def sessions() -> int:
        return int(stack.query("SELECT sessions FROM pg_stat_database WHERE datname = current_database()")[0][0])

    first = send(stack)
    stack.wait_for(partial(arrived, stack, first), "a first message", within_s=60)
    before = sessions()
    sent = [send(stack) for _ in range(30)]
    for notification in sent:
        stack.wait_for(partial(arrived, stack, notification), "the messages", within_s=60)
    # At least one task each; the others are the web server's 16 threads, each at its first request, and pool children.
    assert sessions() - before < 25
