"""Duplicates: the keys a caller names a request and an event by, written in the notification's own transaction.

The unique index is the lock: a second request with the same key waits for the first to commit (two seconds at
most), then reads its answer. A rollback frees the key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.db import OperationalError, connection

from apps.notifications.arrays import plain
from apps.rest.problems import Problem

WAIT_MS = 2000
_LOCK_NOT_AVAILABLE = "55P03"
_SAID_BY_AN_EVENT = ("template", "content", "to", "data", "category", "channels")


def digest(*parts: str) -> UUID:
    hashed = hashlib.blake2b(digest_size=16)
    for part in parts:
        raw = part.encode()
        hashed.update(len(raw).to_bytes(4, "big") + raw)
    return UUID(bytes=hashed.digest())


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class RequestKey:
    """An Idempotency-Key, in the scope of one client and mode, with the content it stands for."""

    id: UUID
    fingerprint: UUID

    @classmethod
    def of(cls, client_id: int, mode: str, key: str, *, method: str, path: str, body: Any) -> RequestKey:
        return cls(digest("request", str(client_id), mode, key), digest(method, path, canonical(body)))


@dataclass(frozen=True, slots=True)
class EventClaim:
    """An event_id, in the scope of one client and mode, with what the event says."""

    id: UUID
    fingerprint: UUID

    @classmethod
    def of(cls, client_id: int, mode: str, event_id: str, body: Mapping[str, Any]) -> EventClaim:
        said = {name: body[name] for name in _SAID_BY_AN_EVENT if name in body}
        return cls(digest("event", str(client_id), mode, event_id), digest(canonical(said)))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a caller gets, and gets again for the same key."""

    status: int
    body: dict[str, Any]
    location: str = ""
    is_replay: bool = False


_TAKE_REQUEST = """
SET LOCAL lock_timeout = '%(wait)sms';
INSERT INTO notifications_idempotencykey (id, fingerprint, status, answer, location, created_at)
VALUES (%(id)s, %(fingerprint)s, %(status)s, %(answer)s, %(location)s, now())
ON CONFLICT DO NOTHING RETURNING id
"""


def take_request(key: RequestKey, answer: Answer) -> Answer | None:
    """Take the key with the answer that will be given, or return the answer that was given before.

    First statement of the transaction. Raises Problem: request-in-progress when the first one is still at it,
    idempotency-key-reused when that said something else.
    """
    with connection.cursor() as cursor, waiting():
        cursor.execute(
            _TAKE_REQUEST,
            {
                "wait": WAIT_MS,
                "id": str(key.id),
                "fingerprint": str(key.fingerprint),
                "status": answer.status,
                "answer": json.dumps(answer.body),
                "location": answer.location,
            },
        )
        if cursor.fetchone():
            return None
        cursor.execute(
            "SELECT fingerprint, status, answer, location FROM notifications_idempotencykey WHERE id = %s",
            [str(key.id)],
        )
        fingerprint, status, body, location = cursor.fetchone()
    if fingerprint != key.fingerprint:
        raise Problem("idempotency-key-reused")
    return Answer(status, json.loads(body), location, is_replay=True)


def key_row(key: RequestKey, answer: Answer) -> dict[str, Any]:
    """What sql/accept_1.sql takes the key by."""
    return {
        "id": key.id,
        "fingerprint": key.fingerprint,
        "status": answer.status,
        "answer": json.dumps(answer.body),
        "location": answer.location,
    }


def event_row(event: EventClaim) -> dict[str, Any]:
    """What sql/accept_1.sql takes the event by."""
    return {"id": event.id, "fingerprint": event.fingerprint}


def change_answer(key: RequestKey, answer: Answer) -> None:
    """The key was taken for one answer, but another one is given."""
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE notifications_idempotencykey SET status = %s, answer = %s, location = %s WHERE id = %s",
            [answer.status, json.dumps(answer.body), answer.location, str(key.id)],
        )


_TAKE_EVENTS = """
SET LOCAL lock_timeout = '%(wait)sms';
INSERT INTO notifications_eventkey (id, fingerprint, notification_id, created_at)
SELECT v.id, v.fingerprint, v.notification_id, now()
  FROM unnest(%(ids)s::uuid[], %(fingerprints)s::uuid[], %(notifications)s::uuid[])
    AS v(id, fingerprint, notification_id)
 ORDER BY v.id
ON CONFLICT DO NOTHING RETURNING id
"""


def take_events(events: Sequence[tuple[EventClaim, UUID]]) -> dict[UUID, tuple[UUID, UUID]]:
    """Take (event, notification) pairs, each event once; returns what was taken before: event -> (fingerprint,
    notification). In id order, so that two requests never wait for each other. Raises Problem request-in-progress.
    """
    with connection.cursor() as cursor, waiting():
        cursor.execute(
            _TAKE_EVENTS,
            {
                "wait": WAIT_MS,
                "ids": plain(event.id for event, _ in events),
                "fingerprints": plain(event.fingerprint for event, _ in events),
                "notifications": plain(notification for _, notification in events),
            },
        )
        mine = {row[0] for row in cursor.fetchall()}
    others = [event.id for event, _ in events if event.id not in mine]
    return find_events(others) if others else {}


def find_events(ids: Sequence[UUID]) -> dict[UUID, tuple[UUID, UUID]]:
    """Those of the events that are taken: event -> (fingerprint, notification)."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id, fingerprint, notification_id FROM notifications_eventkey WHERE id = ANY (%s::uuid[])",
            [plain(ids)],
        )
        return {id: (fingerprint, notification) for id, fingerprint, notification in cursor.fetchall()}


def find_event(client_id: int, mode: str, event_id: str) -> UUID | None:
    """The notification of an event id, while it is kept."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT notification_id FROM notifications_eventkey WHERE id = %s",
            [str(digest("event", str(client_id), mode, event_id))],
        )
        row = cursor.fetchone()
    return row[0] if row else None


class waiting:
    """A lock that did not come in time is an answer, not an error."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OperationalError) and getattr(error.__cause__, "pgcode", None) == _LOCK_NOT_AVAILABLE:
            raise Problem("request-in-progress", retry_after_s=1) from error
