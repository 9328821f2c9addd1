"""How notifications and deliveries are shown to callers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.conf import settings

from apps.notifications.selectors.decisions import decisions, gate_names
from apps.rest.schema import (
    ANY_OBJECT,
    BOOLEAN,
    INTEGER,
    OPTIONAL_TEXT,
    OPTIONAL_TIME,
    TEXT,
    TIME,
    UUID,
    answer,
    array,
)
from notifier.ids import time_of
from notifier.lifecycle import SENDING, State
from notifier.message import Channel, Lane, Mode
from notifier.outcome import Kind

STATUSES = ("accepted", "scheduled", "in_progress", "completed", "cancelled")
STATES = (*(state.value for state in State), SENDING)


def _one_of(*words: str) -> dict[str, Any]:
    # No `enum`: words may be added within /v1, and callers must treat an unknown one as "other".
    return {"type": "string", "description": f"One of: {', '.join(words)}. Treat any other as unknown."}


def _optional(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


_NOTIFICATION = {
    "id": UUID,
    "status": _one_of(*STATUSES),
    "mode": _one_of(*Mode),
    "event_id": OPTIONAL_TEXT,
    "reference": OPTIONAL_TEXT,
    "template": _optional(answer(key=TEXT, version=INTEGER)),
    "category": TEXT,
    "lane": _one_of(*Lane),
    "recipients": INTEGER,
    "due_at": TIME,
    "expires_at": TIME,
    "created_at": TIME,
    "url": {"type": "string", "format": "uri"},
}
ACCEPTED_OUT = answer(**{**_NOTIFICATION, "duplicate": BOOLEAN})
LISTED_NOTIFICATION_OUT = answer(**_NOTIFICATION, metadata=ANY_OBJECT, completed_at=OPTIONAL_TIME)
BATCH_OUT = answer(
    accepted=INTEGER,
    duplicate=INTEGER,
    rejected=INTEGER,
    results=array(answer(index=INTEGER, result=_one_of("accepted", "duplicate", "rejected"), event_id=OPTIONAL_TEXT)),
)
CANCELLED_OUT = answer(id=UUID, status=_one_of("cancelled"))

REASON_OUT = _optional(answer(code=TEXT, detail=OPTIONAL_TEXT))
_DELIVERY = {
    "id": UUID,
    "notification_id": UUID,
    "user_id": OPTIONAL_TEXT,
    "recipient": {"type": "integer", "description": "Which entry of the request's `to`, from 0."},
    "channel": _one_of(*Channel),
    "platform": OPTIONAL_TEXT,
    "state": _one_of(*STATES),
    "reason": REASON_OUT,
    "waiting": OPTIONAL_TEXT,
    "due_at": OPTIONAL_TIME,
    "provider": OPTIONAL_TEXT,
    "created_at": TIME,
    "sent_at": OPTIONAL_TIME,
    "delivered_at": OPTIONAL_TIME,
    "opened_at": OPTIONAL_TIME,
    "clicked_at": OPTIONAL_TIME,
    "ended_at": OPTIONAL_TIME,
    "expires_at": TIME,
}
LISTED_DELIVERY_OUT = answer(**_DELIVERY)

DECISION_OUT = answer(gate=_one_of(*gate_names()), result=_one_of("pass", "stop", "wait"))
DECISION_OUT["properties"] |= {"code": TEXT, "value": {}}
ATTEMPT_OUT = answer(
    number=INTEGER,
    provider=OPTIONAL_TEXT,
    started_at=OPTIONAL_TIME,
    ended_at=OPTIONAL_TIME,
    outcome=_one_of(*Kind),
    http_status={"type": ["integer", "null"]},
    provider_code=OPTIONAL_TEXT,
    provider_ref=OPTIONAL_TEXT,
    detail=OPTIONAL_TEXT,
    late={"type": "boolean", "description": "Its result came after another try had begun: kept, not followed."},
)
EVENT_OUT = answer(id=UUID, kind=TEXT, source=TEXT, machine=BOOLEAN, at=TIME, detail=OPTIONAL_TEXT)
DELIVERY_OUT = answer(
    **_DELIVERY,
    mode=_one_of(*Mode),
    category=TEXT,
    lane=_one_of(*Lane),
    locale=OPTIONAL_TEXT,
    address=OPTIONAL_TEXT,
    provider_ref=OPTIONAL_TEXT,
    decisions=array(DECISION_OUT),
    attempts=array(ATTEMPT_OUT),
    events=array(EVENT_OUT),
)
NOTIFICATION_OUT = answer(
    **_NOTIFICATION,
    metadata=ANY_OBJECT,
    completed_at=OPTIONAL_TIME,
    counts={"type": "object", "additionalProperties": INTEGER, "description": "Deliveries by state; none is left out."},
    deliveries=array(LISTED_DELIVERY_OUT),
    next_cursor=OPTIONAL_TEXT,
)


def show_notification(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "status": row["status"],
        "mode": row["mode"],
        "event_id": row["event_id"] or None,
        "reference": row["reference"] or None,
        "template": {"key": row["template"], "version": row["version"]} if row["template"] else None,
        "category": row["category"],
        "lane": row["lane"],
        "recipients": row["recipients"],
        "metadata": row["metadata"],
        "due_at": row["due_at"],
        "expires_at": row["expires_at"],
        "created_at": row["created_at"],
        "completed_at": row["completed_at"],
        "url": f"{settings.PUBLIC_URL}/v1/notifications/{row['id']}",
    }


def show_delivery(row: Mapping[str, Any]) -> dict[str, Any]:
    """`user_id` of a person we do not know is the one that was asked for."""
    return {
        "id": row["id"],
        "notification_id": row["notification_id"],
        "user_id": row["user_id"] or row["entry"].get("user_id"),
        "recipient": row["recipient_no"],
        "channel": row["channel"],
        "platform": row["platform"] or None,
        "state": row["state"],
        "reason": {"code": row["reason"], "detail": row["detail"] or None} if row["reason"] else None,
        "waiting": row["waiting"] or None,
        "due_at": row["due_at"],
        "provider": row["provider"],
        "created_at": time_of(row["notification_id"]),
        "sent_at": row["sent_at"],
        "delivered_at": row["delivered_at"],
        "opened_at": row["opened_at"],
        "clicked_at": row["clicked_at"],
        "ended_at": row["ended_at"],
        "expires_at": row["expires_at"],
    }


def show_whole_delivery(row: Mapping[str, Any], *, is_address_shown: bool) -> dict[str, Any]:
    attempts = [_attempt(attempt) for attempt in row["attempts"]]
    refs = [attempt["provider_ref"] for attempt in attempts if attempt["provider_ref"]]
    return show_delivery(row) | {
        "mode": row["mode"],
        "category": row["category"],
        "lane": row["lane"],
        "locale": row["locale"] or None,
        "address": _address(row, is_shown=is_address_shown),
        "provider_ref": refs[-1] if refs else None,
        "decisions": decisions(row),
        "attempts": attempts,
        "events": [
            {
                "id": event["id"],
                "kind": event["kind"],
                "source": event["source"],
                "machine": event["is_machine"],
                "at": event["at"],
                "detail": event["detail"] or None,
            }
            for event in row["events"]
        ],
    }


def _attempt(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "number": row["number"],
        "provider": row["provider"],
        "started_at": row["started_at"],
        "ended_at": row["ended_at"],
        "outcome": row["outcome"],
        "http_status": row["http_status"],
        "provider_code": row["provider_code"] or None,
        "provider_ref": row["provider_ref"] or None,
        "detail": row["detail"] or None,
        "late": row["is_late"],
    }


def _address(row: Mapping[str, Any], *, is_shown: bool) -> str | None:
    """A device's token is never shown: whoever has it and our keys could push to the device."""
    if row["channel"] == Channel.PUSH:
        token = row["token_end"] or row["entry"].get("device", {}).get("token", "")
        return f"...{token[-4:]}" if token else None
    value: str | None = row["address"] or row["entry"].get("email") or row["entry"].get("phone")
    if not value or is_shown:
        return value or None
    return f"...{value[-4:]}"
