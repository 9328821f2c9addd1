"""Accepting: keys taken, template frozen, everything needed to finish the work committed. Then 202.

Two statements, for one recipient as for a hundred: who they are, and one that writes it all (sql/accept_1.sql), for
several requests together when they come together. Only a request whose keys are taken already costs more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import connection, transaction

from apps.clients.callers import Caller
from apps.notifications import ringing
from apps.notifications.metrics import ACCEPTED, DUPLICATES
from apps.notifications.services.checks import Checked, check
from apps.notifications.services.group_commit import GroupCommit
from apps.notifications.services.keys import (
    WAIT_MS,
    Answer,
    EventClaim,
    RequestKey,
    change_answer,
    event_row,
    find_events,
    key_row,
    take_events,
    take_request,
    waiting,
)
from apps.notifications.services.layout import Entry, Outline, document, encoded, plan, queued
from apps.rest.problems import Problem
from apps.rest.validation import Errors
from notifier.ids import uuid7
from notifier.message import Lane

LAID_OUT_AHEAD = timedelta(seconds=60)  # due within: laid out at once; later: when due, with the opt-outs of then
GROUP_WAIT_MS = 100
RUNG_BY_RELAY_IN_S = 2.0  # the relay leaves alone what this process rings itself


@dataclass(frozen=True, slots=True)
class Accepted:
    """A checked request under the id it gets."""

    id: UUID
    checked: Checked
    event: EventClaim | None

    @property
    def created_at(self) -> datetime:
        return self.checked.at


def accept(caller: Caller, body: Mapping[str, Any], *, raw: Any, key: RequestKey | None, request_id: str) -> Answer:
    """Accept one notification of up to 100 recipients. `body` is in normal form, `raw` as it came.

    Raises Problem for everything a caller can mend, OperationalError when the database is away.
    """
    errors = Errors()
    checked = check(caller, body, None, errors)
    errors.raise_if_any()
    assert checked is not None  # noqa: S101 - no errors, so there is one
    accepted = _named(caller, checked, raw)
    answer = Answer(202, shown(accepted, caller.mode), _url(accepted.id))
    queued = _write(caller, accepted, key, answer, request_id)
    if queued is None:
        earlier = _known(accepted, key, answer)
        if earlier:
            return earlier
        # Whoever had the key has let go of it since, unfinished: now it is free, or taken by the next.
        queued = _write(caller, accepted, key, answer, request_id)
        if queued is None:
            raise Problem("request-in-progress", retry_after_s=1)
    if _rings_itself(accepted):
        transaction.on_commit(lambda: ringing.ring(queued, checked.lane, request_id), robust=True)
    ACCEPTED.labels(caller.mode.value, checked.lane).inc()
    return answer


def _write(
    caller: Caller, accepted: Accepted, key: RequestKey | None, answer: Answer, request_id: str
) -> list[tuple[UUID, str]] | None:
    """Commit the request with all that belongs to it: (id, channel) of what is to be sent. None: a key is taken."""
    is_laid_out = accepted.checked.due_at - accepted.created_at <= LAID_OUT_AHEAD
    layout = None
    if is_laid_out:
        outlines = [outline_of(caller, accepted)]
        entries = [Entry(0, number, value) for number, value in enumerate(accepted.checked.recipients)]
        wake_in_s = RUNG_BY_RELAY_IN_S if _rings_itself(accepted) else 0.0
        layout = document(outlines, plan(outlines, entries), wake_in_s=wake_in_s)
    written = encoded(
        {
            "key": key_row(key, answer) if key else None,
            "event": event_row(accepted.event) if accepted.event else None,
            "notification": _row(caller, accepted, request_id, at_once=is_laid_out),
            "layout": layout,
        }
    )
    with waiting():
        if connection.in_atomic_block:  # what others wrote with us would be committed when we are, not when they answer
            told = _commit([written])[0]
        else:
            first_lock = key.id.hex if key else accepted.event.id.hex if accepted.event else ""
            told = _commits.write(written, order=first_lock)
    return None if told is None else queued(told)


def _commit(documents: Sequence[str]) -> Sequence[str | None]:
    """What sql/accept_1.sql says to each. Who waits for a lock keeps no group waiting: it does so again, alone."""
    calls = ", ".join(["notifications_accept_1(%s)"] * len(documents))
    wait_ms = WAIT_MS if len(documents) == 1 else GROUP_WAIT_MS
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {calls}", [f'{{"wait_ms":"{wait_ms}",{document[1:]}' for document in documents])
        told: Sequence[str | None] = cursor.fetchone()
        return told


_commits = GroupCommit(_commit)


def _known(accepted: Accepted, key: RequestKey | None, answer: Answer) -> Answer | None:
    """The answer that was given for a key that is taken; None: it is free again.

    Raises Problem: idempotency-key-reused, event-id-reused, request-in-progress.
    """
    with transaction.atomic():
        if key and (earlier := take_request(key, answer)):
            DUPLICATES.labels("idempotency_key").inc()
            return earlier
        if accepted.event and (taken := find_events([accepted.event.id])):
            answer = _duplicate(accepted.event, taken[accepted.event.id])
            DUPLICATES.labels("event_id").inc()
            if key:
                change_answer(key, answer)
            return answer
        transaction.set_rollback(True)  # the key is not ours by this
        return None


def accept_batch(
    caller: Caller,
    items: Sequence[tuple[Mapping[str, Any] | None, Any, list[dict[str, str]]]],
    *,
    key: RequestKey,
    request_id: str,
) -> Answer:
    """Accept what can be accepted of a batch. An item is (normal form or None, as it came, faults found so far).

    Accepted items are committed together and laid out by the workers.
    """
    results: list[dict[str, Any]] = []
    by_event: dict[EventClaim, list[tuple[int, Accepted]]] = {}
    for index, (body, raw, faults) in enumerate(items):
        event_id = raw.get("event_id") if isinstance(raw, dict) else None
        result: dict[str, Any] = {"index": index, "event_id": event_id if isinstance(event_id, str) else None}
        results.append(result)
        errors = Errors()
        checked = None
        if body is not None and not faults:
            try:
                checked = check(caller, body, ((None, "items"), index), errors)
            except Problem as problem:
                result |= {"result": "rejected", "code": problem.code, "errors": []}
                continue
        if checked is None or errors:
            found = faults or [{"pointer": e.pointer, "code": e.code, "detail": e.detail} for e in errors.items]
            result |= {"result": "rejected", "code": "validation-failed", "errors": found[:100]}
            continue
        accepted = _named(caller, checked, raw)
        assert accepted.event is not None  # noqa: S101 - the shape of an item requires event_id
        by_event.setdefault(accepted.event, []).append((index, accepted))
    with transaction.atomic():
        if earlier := take_request(key, Answer(202, {})):
            DUPLICATES.labels("idempotency_key").inc()
            return earlier
        # Each event once: the first item that names it, whatever others of the batch say under the same name.
        first: dict[UUID, tuple[EventClaim, Accepted]] = {}
        for event, same in by_event.items():
            first.setdefault(event.id, (event, same[0][1]))
        taken = take_events([(event, accepted.id) for event, accepted in first.values()]) if first else {}
        fresh = []
        for event, same in by_event.items():
            known = taken.get(event.id)
            if known is None and first[event.id][0] == event:
                index, accepted = same.pop(0)
                results[index] |= {"result": "accepted", "id": str(accepted.id)}
                fresh.append(accepted)
            fingerprint, original = known or (first[event.id][0].fingerprint, first[event.id][1].id)
            for index, _ in same:
                results[index] |= _as_duplicate(original) if fingerprint == event.fingerprint else _as_reused(original)
        if fresh:
            _insert(caller, fresh, request_id)
        counts = {word: sum(r["result"] == word for r in results) for word in ("accepted", "duplicate", "rejected")}
        answer = Answer(202, {**counts, "results": results})
        change_answer(key, answer)
    for accepted in fresh:
        ACCEPTED.labels(caller.mode.value, accepted.checked.lane).inc()
    DUPLICATES.labels("event_id").inc(counts["duplicate"])
    return answer


def _as_duplicate(original: UUID) -> dict[str, Any]:
    return {"result": "duplicate", "id": str(original)}


def _as_reused(original: UUID) -> dict[str, Any]:
    return {"result": "rejected", "code": "event-id-reused", "original_id": str(original), "errors": []}


def _named(caller: Caller, checked: Checked, raw: Mapping[str, Any]) -> Accepted:
    event = EventClaim.of(caller.client_id, caller.mode, checked.event_id, raw) if checked.event_id else None
    return Accepted(uuid7(int(checked.at.timestamp() * 1000)), checked, event)


def _duplicate(event: EventClaim, taken: tuple[UUID, UUID]) -> Answer:
    fingerprint, original = taken
    if fingerprint != event.fingerprint:
        raise Problem("event-id-reused", original_id=str(original))
    return Answer(200, stored_answer(original) | {"duplicate": True})


def stored_answer(id: UUID) -> dict[str, Any]:
    """The answer that accepted a notification, read back from its row."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT n.mode, n.event_id, n.reference, t.key, v.number, c.key, n.lane, n.recipients, n.due_at, "
            "n.expires_at, n.created_at, n.status FROM notifications_notification n "
            "JOIN people_category c ON c.id = n.category_id "
            "LEFT JOIN templates_templateversion v ON v.id = n.template_version_id "
            "LEFT JOIN templates_template t ON t.id = v.template_id WHERE n.id = %s",
            [str(id)],
        )
        row = cursor.fetchone()
    if row is None:  # its partition is gone, the key is not yet
        return {"id": str(id), "status": "completed"}
    mode, event_id, reference, template, number, category, lane, recipients, due_at, expires_at, created_at, status = (
        row
    )
    return {
        "id": str(id),
        "status": status,
        "duplicate": False,
        "mode": mode,
        "event_id": event_id or None,
        "reference": reference or None,
        "template": {"key": template, "version": number} if template else None,
        "category": category,
        "lane": lane,
        "recipients": recipients,
        "due_at": stamp(due_at),
        "expires_at": stamp(expires_at),
        "created_at": stamp(created_at),
        "url": f"{settings.PUBLIC_URL}{_url(id)}",
    }


def shown(accepted: Accepted, mode: str) -> dict[str, Any]:
    checked = accepted.checked
    return {
        "id": str(accepted.id),
        "status": "accepted",
        "duplicate": False,
        "mode": mode,
        "event_id": checked.event_id or None,
        "reference": checked.reference or None,
        "template": {"key": checked.template_key, "version": checked.template_number} if checked.template_key else None,
        "category": checked.category.key,
        "lane": checked.lane,
        "recipients": len(checked.recipients),
        "due_at": stamp(checked.due_at),
        "expires_at": stamp(checked.expires_at),
        "created_at": stamp(accepted.created_at),
        "url": f"{settings.PUBLIC_URL}{_url(accepted.id)}",
    }


def stamp(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _url(id: UUID) -> str:
    return f"/v1/notifications/{id}"


def _rings_itself(accepted: Accepted) -> bool:
    checked = accepted.checked
    return checked.lane != Lane.BULK and checked.due_at <= accepted.created_at + timedelta(seconds=1)


_INSERT = """
WITH v AS MATERIALIZED (
  SELECT * FROM jsonb_to_recordset(%(rows)s) AS v(
    id uuid, client int, mode text, event_id text, reference text, version bigint, category bigint, lane text,
    channels jsonb, recipients int, due timestamptz, expires timestamptz, metadata jsonb, request_id text, status text,
    created timestamptz, asked jsonb, data jsonb, options jsonb, inline jsonb, later timestamptz)
), c AS (
  INSERT INTO notifications_content (id, recipients, data, options, inline)
  SELECT id, asked, data, options, nullif(inline, 'null') FROM v
), e AS (
  INSERT INTO notifications_expansion (id, client_id, due_at, wake_at, position)
  SELECT id, client, coalesce(later, now()), coalesce(later, now()), 0 FROM v
)
INSERT INTO notifications_notification (id, client_id, mode, event_id, reference, template_version_id, category_id,
  lane, channels, recipients, due_at, expires_at, metadata, request_id, status, created_at)
SELECT id, client, mode, event_id, reference, version, category, lane, channels, recipients, due, expires,
       metadata, request_id, status, created FROM v
"""


def _insert(caller: Caller, accepted: Sequence[Accepted], request_id: str) -> None:
    """Write the notifications of a batch, for the workers to lay out."""
    rows = [_row(caller, each, request_id, at_once=False) for each in accepted]
    with connection.cursor() as cursor:
        cursor.execute(_INSERT, {"rows": encoded(rows)})


def _row(caller: Caller, accepted: Accepted, request_id: str, *, at_once: bool) -> dict[str, Any]:
    """A notification and its content, as sql/accept_1.sql and `_INSERT` read them."""
    checked = accepted.checked
    status = "in_progress" if at_once else "accepted"
    return {
        "id": accepted.id,
        "client": caller.client_id,
        "mode": caller.mode,
        "event_id": checked.event_id,
        "reference": checked.reference,
        "version": checked.template_version_id,
        "category": checked.category.pk,
        "lane": checked.lane,
        "channels": checked.channels,
        "recipients": len(checked.recipients),
        "due": checked.due_at,
        "expires": checked.expires_at,
        "metadata": checked.metadata,
        "request_id": request_id,
        "status": "scheduled" if checked.due_at - accepted.created_at > LAID_OUT_AHEAD else status,
        "created": accepted.created_at,
        "asked": checked.recipients,
        "data": checked.data,
        "options": checked.options,
        "inline": checked.inline,
        "later": checked.due_at if checked.due_at > checked.at else None,
    }


def outline_of(caller: Caller, accepted: Accepted) -> Outline:
    checked = accepted.checked
    return Outline(
        id=accepted.id,
        client_id=caller.client_id,
        is_client_active=caller.client.is_active,
        is_client_verified=caller.client.is_verified,
        mode=caller.mode,
        category=checked.category,
        campaign_id=None,
        template_version_id=checked.template_version_id,
        written_channels=checked.written_channels,
        channels=checked.channels,
        lane=checked.lane,
        due_at=checked.due_at if checked.due_at > accepted.created_at else None,
        expires_at=checked.expires_at,
        default_locale=checked.default_locale,
    )
