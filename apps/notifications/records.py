"""Writing results: one statement for up to a hundred, behind the fence.

A result counts only while `claim_no` is still the row's. Pending is deleted (or rescheduled) first, and only
what that touched moves the delivery and is tallied; the attempt is written in any case. Being one statement, it
is its own transaction: one round trip, and a repeat after a lost COMMIT finds nothing left to do.

Pending is joined by `= ANY`, Delivery by a literal BETWEEN: the planner takes a narrow BETWEEN for one row and
compares each with each, which costs nothing at a hundred rows and 60 ms at five hundred. So `BATCH` stays small.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from django.db import connection

from apps.notifications.arrays import jsons, plain, storable, texts, times
from notifier.ids import derived_id
from notifier.ledger import Result

BATCH = 100

_RECORD = """
WITH v AS MATERIALIZED (
  SELECT v.*, to_timestamp(v.expires_s) AS expires FROM unnest(
    %(id)s::uuid[], %(claim_no)s::int[], %(state)s::text[], %(reason)s::text[], %(detail)s::text[],
    %(stopped_by)s::text[], %(seen)s::jsonb[], %(account)s::int[], %(retry_in)s::float8[], %(waiting)s::text[],
    %(lane)s::text[], %(counted)s::int[], %(expires)s::float8[], %(attempt)s::uuid[], %(started)s::float8[],
    %(ended)s::float8[], %(outcome)s::text[], %(scope)s::text[], %(ref)s::text[], %(code)s::text[],
    %(http)s::int[], %(said)s::text[], %(tally)s::int[]
  ) AS v(id, claim_no, state, reason, detail, stopped_by, seen, account, retry_in, waiting, lane, counted, expires_s,
         attempt, started, ended, outcome, scope, ref, code, http, said, tally)
), ended AS (
  DELETE FROM notifications_pending p USING v
   WHERE p.id = v.id AND p.claim_no = v.claim_no AND v.retry_in IS NULL AND p.id = ANY (%(ending)s::uuid[])
  RETURNING p.id
), again AS (
  UPDATE notifications_pending p
     SET due_at = least(now() + v.retry_in * interval '1 second', v.expires), -- the claim then ends what is over
         wake_at = least(now() + v.retry_in * interval '1 second', v.expires),
         lease_until = NULL, waiting = v.waiting, lane = v.lane, tries = p.tries + v.counted, crashes = 0
    FROM v WHERE p.id = v.id AND p.claim_no = v.claim_no AND p.id = ANY (%(waiting_on)s::uuid[])
     AND (p.lease_until IS NOT NULL OR p.crashes > 0) -- else it is written already: the repeat of a lost COMMIT
  RETURNING p.id
), mine AS MATERIALIZED (
  SELECT id FROM ended UNION ALL SELECT id FROM again
), tried AS (
  INSERT INTO notifications_attempt (id, delivery_id, claim_no, account_id, started_at, ended_at, outcome, scope,
                                     provider_ref, provider_code, http_status, detail, is_late)
  SELECT v.attempt, v.id, v.claim_no, v.account, to_timestamp(v.started), to_timestamp(v.ended), v.outcome, v.scope,
         v.ref, v.code, v.http, v.said, v.id NOT IN (SELECT id FROM mine)
    FROM v WHERE v.attempt IS NOT NULL
  ON CONFLICT (id) DO UPDATE
     SET account_id = excluded.account_id, started_at = excluded.started_at, ended_at = excluded.ended_at,
         outcome = excluded.outcome, scope = excluded.scope, provider_ref = excluded.provider_ref,
         provider_code = excluded.provider_code, http_status = excluded.http_status, detail = excluded.detail,
         is_late = excluded.is_late
   WHERE notifications_attempt.provider_code = 'worker_lost'
), moved AS (
  UPDATE notifications_delivery d
     SET state = v.state, reason = v.reason, detail = v.detail, stopped_by = v.stopped_by, seen = v.seen,
         account_id = coalesce(v.account, d.account_id), claim_no = v.claim_no,
         sent_at = CASE WHEN v.state = 'sent' THEN to_timestamp(v.ended) ELSE d.sent_at END,
         ended_at = CASE WHEN v.retry_in IS NULL THEN now() ELSE NULL END
    FROM v WHERE d.id = v.id AND d.id BETWEEN %(lo)s AND %(hi)s AND v.id IN (SELECT id FROM mine)
), counted AS (
  INSERT INTO notifications_tally (hour, client_id, mode, channel, lane, category_id, template_version_id,
                                   campaign_id, account_id, from_state, to_state, n)
  SELECT date_trunc('hour', now()), g.client, g.mode, g.channel, g.lane, g.category, g.version, g.campaign, g.account,
         g.from_state, g.to_state, m.n
    FROM (SELECT v.tally, count(*) AS n FROM v WHERE v.tally > 0 AND v.id IN (SELECT id FROM mine) GROUP BY 1) m
    JOIN unnest(%(g_no)s::int[], %(g_client)s::int[], %(g_mode)s::text[], %(g_channel)s::text[], %(g_lane)s::text[],
                %(g_category)s::int[], %(g_version)s::int[], %(g_campaign)s::uuid[], %(g_account)s::int[],
                %(g_from)s::text[], %(g_to)s::text[])
      AS g(no, client, mode, channel, lane, category, version, campaign, account, from_state, to_state)
      ON g.no = m.tally
)
SELECT id FROM mine
"""


def write(results: Sequence[Result]) -> set[UUID]:
    """Record up to `BATCH` results; returns the deliveries whose result counted. The rest came too late.

    Safe to repeat with the same results. Raises OperationalError when the database is away.
    """
    assert 0 < len(results) <= BATCH  # noqa: S101 - see the planner's trap above
    rows = sorted(results, key=lambda r: r.claimed.delivery_id)
    with connection.cursor() as cursor:
        cursor.execute(_RECORD, _values(rows))
        return {row[0] for row in cursor.fetchall()}


def attempt_id(delivery: UUID, claim_no: int) -> UUID:
    """One attempt for one claim, however often it is written."""
    return derived_id(delivery, "attempt", str(claim_no))


def _values(rows: list[Result]) -> dict[str, Any]:
    claims = [r.claimed for r in rows]
    verdicts = [r.verdict for r in rows]
    outcomes = [r.outcome for r in rows]
    ids = [c.delivery_id for c in claims]
    groups, numbers = _groups(rows)
    return {
        "id": plain(ids),
        "lo": ids[0],
        "hi": ids[-1],
        "claim_no": plain(c.claim_no for c in claims),
        "state": texts(v.state for v in verdicts),
        "reason": texts(storable(v.reason, 40) for v in verdicts),
        "detail": texts(storable(v.detail, 500) for v in verdicts),
        "stopped_by": texts(c.stop.gate if c.stop and o is None else "" for c, o in zip(claims, outcomes, strict=True)),
        "seen": jsons(c.stop.seen if c.stop and o is None else None for c, o in zip(claims, outcomes, strict=True)),
        "account": plain(r.account_id for r in rows),
        "retry_in": times(v.retry_in_s for v in verdicts),
        "waiting": texts(v.waiting for v in verdicts),
        "lane": texts(v.queue_lane or c.queue_lane for c, v in zip(claims, verdicts, strict=True)),
        "counted": plain(int(v.is_counted) for v in verdicts),
        "expires": times(c.expires_at for c in claims),
        "attempt": plain(
            attempt_id(c.delivery_id, c.claim_no) if o is not None else None
            for c, o in zip(claims, outcomes, strict=True)
        ),
        "started": times(r.started_at or None for r in rows),
        "ended": times(r.ended_at or None for r in rows),
        "outcome": texts(o.kind if o else "" for o in outcomes),
        "scope": texts(o.scope if o else "" for o in outcomes),
        "ref": texts(storable(o.provider_ref, 200) if o else "" for o in outcomes),
        "code": texts(storable(o.code, 100) if o else "" for o in outcomes),
        "http": plain(o.http_status if o else None for o in outcomes),
        "said": texts(storable(o.detail, 500) if o else "" for o in outcomes),
        "tally": plain(numbers),
        "ending": plain(c.delivery_id for c, v in zip(claims, verdicts, strict=True) if v.retry_in_s is None),
        "waiting_on": plain(c.delivery_id for c, v in zip(claims, verdicts, strict=True) if v.retry_in_s is not None),
        **groups,
    }


def _groups(rows: list[Result]) -> tuple[dict[str, str], list[int]]:
    """The tally rows, and for each result the number of its own (0: its state does not move)."""
    keys: dict[tuple[Any, ...], int] = {}
    numbers = []
    for r in rows:
        c = r.claimed
        if r.verdict.state is c.state:
            numbers.append(0)
            continue
        key = (
            c.client_id,
            c.mode,
            c.channel,
            c.lane,
            c.category_id,
            c.template_version_id,
            c.campaign_id,
            r.account_id,
            c.state,
            r.verdict.state,
        )
        numbers.append(keys.setdefault(key, len(keys) + 1))
    columns = list(zip(*keys, strict=True)) or [()] * 10
    return {
        "g_no": plain(range(1, len(keys) + 1)),
        "g_client": plain(columns[0]),
        "g_mode": texts(columns[1]),
        "g_channel": texts(columns[2]),
        "g_lane": texts(columns[3]),
        "g_category": plain(columns[4]),
        "g_version": plain(columns[5]),
        "g_campaign": plain(columns[6]),
        "g_account": plain(columns[7]),
        "g_from": texts(columns[8]),
        "g_to": texts(columns[9]),
    }, numbers
