"""Writing results: one statement for up to a hundred, behind the fence (sql/record_1.sql).

A result counts only while `claim_no` is still the row's. Being one statement, it is its own transaction: one round
trip, and a repeat after a lost COMMIT finds nothing left to do. The statement compares each of its rows with each
that it ended, which costs nothing at a hundred rows: so `BATCH` stays small.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import msgspec
from django.db import connection

from apps.notifications.arrays import storable
from notifier.ids import derived_id
from notifier.ledger import Result

BATCH = 100


def write(results: Sequence[Result]) -> set[UUID]:
    """Record up to `BATCH` results; returns the deliveries whose result counted. The rest came too late.

    Safe to repeat with the same results. Raises OperationalError when the database is away.
    """
    assert 0 < len(results) <= BATCH  # noqa: S101 - each is compared with each
    rows = sorted(results, key=lambda r: r.claimed.delivery_id)
    with connection.cursor() as cursor:
        cursor.execute("SELECT notifications_record_1(%s)", [_document(rows)])
        return set(cursor.fetchone()[0] or ())


def attempt_id(delivery: UUID, claim_no: int) -> UUID:
    """One attempt for one claim, however often it is written."""
    return derived_id(delivery, "attempt", str(claim_no))


def _document(rows: list[Result]) -> str:
    """What sql/record_1.sql reads: the results by id, and the tally rows that they name by number."""
    tallies: dict[tuple[Any, ...], dict[str, Any]] = {}
    results = [_result(r, _tally(r, tallies)) for r in rows]
    first, last = rows[0].claimed.delivery_id, rows[-1].claimed.delivery_id
    document = {"lo": first, "hi": last, "results": results, "tallies": list(tallies.values())}
    return msgspec.json.encode(document).decode()


def _result(r: Result, tally: int) -> dict[str, Any]:
    c, v, o = r.claimed, r.verdict, r.outcome
    stop = c.stop if o is None else None
    row: dict[str, Any] = {
        "id": c.delivery_id,
        "claim_no": c.claim_no,
        "state": v.state,
        "reason": storable(v.reason, 40),
        "detail": storable(v.detail, 500),
        "stopped_by": stop.gate if stop else "",
        "seen": stop.seen if stop else None,
        "account": r.account_id,
        "retry_in": v.retry_in_s,
        "waiting": v.waiting,
        "lane": v.queue_lane or c.queue_lane,
        "counted": int(v.is_counted),
        "expires_s": c.expires_at,
        "tally": tally,
    }
    if o is not None:
        row |= {
            "attempt": attempt_id(c.delivery_id, c.claim_no),
            "started": r.started_at or None,
            "ended": r.ended_at or None,
            "outcome": o.kind,
            "scope": o.scope,
            "ref": storable(o.provider_ref, 200),
            "code": storable(o.code, 100),
            "http": o.http_status,
            "said": storable(o.detail, 500),
        }
    return row


def _tally(r: Result, tallies: dict[tuple[Any, ...], dict[str, Any]]) -> int:
    """The number of the result's tally row; 0: its state does not move."""
    c = r.claimed
    if r.verdict.state is c.state:
        return 0
    row = {
        "client": c.client_id,
        "mode": c.mode,
        "channel": c.channel,
        "lane": c.lane,
        "category": c.category_id,
        "version": c.template_version_id,
        "campaign": c.campaign_id,
        "account": r.account_id,
        "from_state": c.state,
        "to_state": r.verdict.state,
    }
    number: int = tallies.setdefault(tuple(row.values()), {"no": len(tallies) + 1, **row})["no"]
    return number
