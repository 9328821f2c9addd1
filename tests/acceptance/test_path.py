"""What comes back, what is held back and what is laid out later, through the running service."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.acceptance.stack import Stack
from tests.acceptance.test_send import device, ended, person, send

BY_CHANNEL = {
    "email": lambda word: {"email": f"{word}+{uuid.uuid4().hex[:10]}@sandbox.invalid"},
    "sms": lambda number: {"phone": number},
}


def settled(stack: Stack, notification: str, state: str, within_s: float = 20) -> list[tuple[str, str]]:
    def look() -> list[tuple[str, str]]:
        rows = stack.query("SELECT state, reason FROM notifications_delivery WHERE notification_id = %s", notification)
        return rows if rows and all(row[0] == state for row in rows) else []

    found: list[tuple[str, str]] = stack.wait_for(look, f"{notification} to be {state}", within_s=within_s)
    return found


@pytest.mark.parametrize(
    ("channel", "recipient", "state", "reason"),
    [
        ("email", "delivered", "delivered", ""),
        ("email", "bounced", "undelivered", "hard_bounce"),
        ("email", "complaint", "delivered", ""),
        ("sms", "+15005551234", "delivered", ""),
        ("sms", "+15005550001", "failed", "invalid_number"),
        ("sms", "+15005550009", "failed", "cannot_receive"),
    ],
)
def test_a_magic_recipient_ends_as_documented(
    stack: Stack, channel: str, recipient: str, state: str, reason: str
) -> None:
    user = person(stack, **BY_CHANNEL[channel](recipient))
    assert settled(stack, send(stack, user, channel), state) == [(state, reason)]


@pytest.mark.parametrize(("platform", "token"), [("android", "sandbox-unregistered-{}"), ("ios", "5a0db0c50410{}")])
def test_a_dead_device_is_retired_and_the_next_message_says_so(stack: Stack, platform: str, token: str) -> None:
    mark = uuid.uuid4().hex
    full = token.format(mark)
    user = person(stack)
    device(stack, user, platform, (full + "0" * 64)[:64] if platform == "ios" else full)
    assert ended(stack, send(stack, user, "push")) == [("failed", "device_unregistered")]
    assert ended(stack, send(stack, user, "push")) == [("suppressed", "device_retired")]


def test_a_throttled_device_gets_its_message_later_without_a_try_counted(stack: Stack) -> None:
    user = person(stack)
    device(stack, user, "android", f"sandbox-throttled-{uuid.uuid4().hex}")
    id = send(stack, user, "push")
    assert ended(stack, id, within_s=40) == [("sent", "")]
    tries = stack.query(
        "SELECT a.outcome FROM notifications_attempt a JOIN notifications_delivery d ON d.id = a.delivery_id "
        "WHERE d.notification_id = %s ORDER BY a.claim_no", id,
    )  # fmt: skip
    assert [outcome for (outcome,) in tries] == ["throttled", "throttled", "accepted"]


def test_stop_from_a_phone_closes_its_number(stack: Stack) -> None:
    user = person(stack, phone="+15005550010")
    settled(stack, send(stack, user, "sms"), "delivered")
    stack.wait_for(
        lambda: stack.query("SELECT 1 FROM people_suppression WHERE address = '+15005550010' AND reason = 'stop'"),
        "the suppression",
    )
    assert ended(stack, send(stack, user, "sms")) == [("suppressed", "suppressed_stop")]


def test_a_bounce_closes_the_address(stack: Stack) -> None:
    user = person(stack, **BY_CHANNEL["email"]("bounced"))
    settled(stack, send(stack, user, "email"), "undelivered")
    assert ended(stack, send(stack, user, "email")) == [("suppressed", "suppressed_bounce")]


def test_a_batch_is_laid_out_by_the_workers_and_reaches_everybody(stack: Stack) -> None:
    users = [person(stack) for _ in range(20)]
    for number, user in enumerate(users):
        device(stack, user, "android", f"sandbox-ok-{uuid.uuid4().hex}-{number}")
    items = [
        {
            "event_id": uuid.uuid4().hex,
            "template": "order-shipped",
            "to": [{"user_id": user} for user in users],
            "data": {"order": {"id": f"B-{number}", "eta": "2026-11-25"}},
            "channels": ["push"],
        }
        for number in range(5)
    ]
    answer = stack.api(
        "POST", "/v1/notifications/batch", json={"items": items}, headers={"Idempotency-Key": uuid.uuid4().hex}
    )
    assert answer.json()["accepted"] == 5
    for result in answer.json()["results"]:
        states = stack.wait_for(
            lambda id=result["id"]: (rows := stack.query(
                "SELECT state FROM notifications_delivery WHERE notification_id = %s", id
            )) and len(rows) == 20 and all(row[0] == "sent" for row in rows),
            "twenty deliveries sent",
        )  # fmt: skip
        assert states


def test_what_is_due_later_is_sent_then_and_not_before(stack: Stack) -> None:
    user = person(stack, **BY_CHANNEL["email"]("delivered"))
    due = datetime.now(UTC) + timedelta(seconds=4)
    id = send(stack, user, "email", send_at=due.isoformat())
    ended(stack, id)
    [(sent_at,)] = stack.query("SELECT sent_at FROM notifications_delivery WHERE notification_id = %s", id)
    assert timedelta(0) <= sent_at - due < timedelta(seconds=5)


def test_a_cancelled_notification_is_not_sent(stack: Stack) -> None:
    user = person(stack, **BY_CHANNEL["email"]("delivered"))
    id = send(stack, user, "email", send_at=(datetime.now(UTC) + timedelta(seconds=5)).isoformat())
    assert stack.api("POST", f"/v1/notifications/{id}/cancel").status_code == 200
    assert ended(stack, id) == [("cancelled", "by_caller")]
    time.sleep(6)
    assert ended(stack, id) == [("cancelled", "by_caller")]


def test_a_finished_notification_is_said_to_be_completed(stack: Stack) -> None:
    user = person(stack, **BY_CHANNEL["email"]("delivered"))
    id = send(stack, user, "email")
    ended(stack, id)
    stack.wait_for(
        lambda: stack.query(
            "SELECT 1 FROM notifications_notification WHERE id = %s AND status = 'completed'", id
        ),
        "the sweep", within_s=25,
    )  # fmt: skip


def test_one_sick_provider_does_not_stop_the_others(stack: Stack) -> None:
    phone, mail = person(stack), person(stack, **BY_CHANNEL["email"]("delivered"))
    device(stack, phone, "android", f"sandbox-ok-{uuid.uuid4().hex}")
    with stack.fault(provider="fcm", mode="hang"):
        held = send(stack, phone, "push")
        assert ended(stack, send(stack, mail, "email"))[0][0] in ("sent", "delivered")
        rows: list[Any] = stack.query("SELECT state FROM notifications_delivery WHERE notification_id = %s", held)
        assert rows == [("queued",)]
    settled(stack, held, "sent", within_s=60)
