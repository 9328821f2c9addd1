"""From a request to a provider's answer, through every process of the service."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.acceptance.stack import Stack

ENDS = {"sent", "delivered", "failed", "suppressed", "undelivered", "dead", "unknown", "cancelled", "expired"}


def person(stack: Stack, **values: Any) -> str:
    id = f"u-{uuid.uuid4().hex[:12]}"
    assert stack.api("PUT", f"/v1/users/{id}", json=values).status_code == 201
    return id


def device(stack: Stack, user: str, platform: str, token: str) -> None:
    answer = stack.api("POST", f"/v1/users/{user}/devices", json={"platform": platform, "token": token})
    assert answer.status_code == 201, answer.text


def send(stack: Stack, user: str, channel: str, **fields: Any) -> str:
    body = {
        "template": "order-shipped",
        "to": [{"user_id": user}],
        "data": {"order": {"id": "A-1001", "eta": "2026-11-25"}},
        "channels": [channel],
        **fields,
    }
    answer = stack.api("POST", "/v1/notifications", json=body)
    assert answer.status_code == 202, answer.text
    id: str = answer.json()["id"]
    return id


def ended(stack: Stack, notification: str, within_s: float = 20) -> list[tuple[str, str]]:
    """(state, reason) of the notification's deliveries, once all have ended."""

    def look() -> list[tuple[str, str]]:
        rows = stack.query(
            "SELECT state, reason FROM notifications_delivery WHERE notification_id = %s ORDER BY id", notification
        )
        return rows if rows and all(state in ENDS for state, _ in rows) else []

    found: list[tuple[str, str]] = stack.wait_for(look, f"an end of {notification}", within_s=within_s)
    return found


@pytest.mark.parametrize(
    ("channel", "values", "platform", "token", "provider"),
    [
        ("push", {}, "android", "sandbox-ok-", "fcm"),
        ("push", {}, "ios", "5a0db0c50200", "apns"),
        ("sms", {"phone": "+15005550006"}, "", "", "twilio"),
        ("email", {"email": "delivered+{}@sandbox.invalid"}, "", "", ""),
    ],
)
def test_one_request_reaches_the_provider(
    stack: Stack, channel: str, values: dict[str, str], platform: str, token: str, provider: str
) -> None:
    mark = uuid.uuid4().hex
    user = person(stack, **{name: value.format(mark[:8]) for name, value in values.items()})
    if platform == "ios":
        device(stack, user, platform, (token + mark + "0" * 64)[:64])
    elif platform:
        device(stack, user, platform, token + mark)
    id = send(stack, user, channel)
    [(state, _)] = ended(stack, id)
    assert state in ("sent", "delivered")
    [(delivery,)] = stack.query("SELECT id::text FROM notifications_delivery WHERE notification_id = %s", id)
    taken = [entry for entry in stack.inbox(channel=channel, limit=100) if entry["delivery_id"] == delivery]
    assert len(taken) == 1
    assert not provider or taken[0]["provider"] == provider
