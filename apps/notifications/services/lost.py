"""Deliveries whose worker died while it held them: the try is written as unknown, and what keeps killing ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import structlog
from django.db import connection

from apps.notifications import records
from apps.notifications.arrays import plain
from notifier.ids import range_of
from notifier.ledger import Claimed, Result, Verdict
from notifier.lifecycle import State
from notifier.message import Channel, Lane, Mode
from notifier.outcome import Kind, Outcome

log = structlog.get_logger(__name__)

MOST_CRASHES = 5

_READ = """
SELECT d.id, d.notification_id, d.client_id, d.mode, d.category_id, d.campaign_id, d.channel, d.lane, d.state,
       d.account_id, extract(epoch FROM d.expires_at)::float8, cat.on_uncertain, n.template_version_id
  FROM notifications_delivery d JOIN people_category cat ON cat.id = d.category_id
  JOIN LATERAL ( -- by its key: between the first and the last of them may lie months
    SELECT x.template_version_id FROM notifications_notification x
     WHERE x.id = d.notification_id AND x.id BETWEEN %(lo)s AND %(hi)s LIMIT 1) n ON true
 WHERE d.id = ANY (%(ids)s::uuid[]) AND d.id BETWEEN %(lo)s AND %(hi)s
"""
_LOST = Outcome(Kind.UNCERTAIN, code="worker_lost", detail="the worker died, or was frozen, while it held this")


def give_up_on(lost: Sequence[tuple[UUID, int, int]]) -> set[UUID]:
    """Write the lost try of each (delivery, claim_no, crashes); returns those that ended by it.

    A category that parks ends them `unknown`; five deaths in a row end one `dead`. The rest go on, in every lane.
    Inside the relay's transaction, which has just taken their leases away.
    """
    if not lost:
        return set()
    found = {row[0]: row for row in _rows([id for id, _, _ in lost])}
    results = [_result(found[id], claim_no, crashes) for id, claim_no, crashes in lost if id in found]
    ended = [r for r in results if r.verdict.retry_in_s is None]
    for part in range(0, len(ended), records.BATCH):
        records.write(ended[part : part + records.BATCH])
    _write_tries([r for r in results if r.verdict.retry_in_s is not None])
    for result in ended:
        log.error(
            "delivery_ended_by_lost_workers",
            delivery_id=str(result.claimed.delivery_id),
            state=result.verdict.state.value,
            crashes=result.claimed.crashes,
        )
    return {r.claimed.delivery_id for r in ended}


def _rows(ids: Sequence[UUID]) -> list[tuple[Any, ...]]:
    ids = sorted(ids)
    with connection.cursor() as cursor:
        cursor.execute(_READ, {"ids": plain(ids), "lo": range_of(ids[0])[0], "hi": range_of(ids[-1])[1]})
        return list(cursor.fetchall())


def _result(row: tuple[Any, ...], claim_no: int, crashes: int) -> Result:
    (id, notification, client, mode, category, campaign, channel, lane, state, account, expires, policy, version) = row
    claimed = Claimed(
        delivery_id=id,
        claim_no=claim_no,
        notification_id=notification,
        client_id=client,
        mode=Mode(mode),
        channel=Channel(channel),
        lane=Lane(lane),
        queue_lane="",
        category_id=category,
        campaign_id=campaign,
        template_version_id=version,
        state=State(state),
        tries=0,
        crashes=crashes,
        expires_at=expires,
        lease_ends=0.0,
        claimed_at=0.0,
        may_duplicate=policy != "park",
        address=None,
        address_id=None,
        device_id=None,
        device_provider="",
        locale="",
        last_account_id=account,
        collapse_key="",
        data={},
        options={},
    )
    if policy == "park":
        verdict = Verdict(State.UNKNOWN, "worker_lost", _LOST.detail)
    elif crashes >= MOST_CRASHES:
        verdict = Verdict(State.DEAD, "attempts_exhausted", f"{crashes} workers died with it in a row")
    else:
        verdict = Verdict(claimed.state, retry_in_s=0.0)
    return Result(claimed, verdict, _LOST, account_id=account)


def _write_tries(results: Sequence[Result]) -> None:
    if not results:
        return
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO notifications_attempt (id, delivery_id, claim_no, account_id, ended_at, outcome, scope, "
            "provider_ref, provider_code, detail, is_late) "
            "SELECT v.id, v.delivery, v.claim_no, v.account, now(), %(outcome)s, %(scope)s, '', %(code)s, "
            "%(detail)s, false "
            "FROM unnest(%(ids)s::uuid[], %(deliveries)s::uuid[], %(claims)s::int[], %(accounts)s::int[]) "
            "AS v(id, delivery, claim_no, account) ON CONFLICT (id) DO NOTHING",
            {
                "outcome": _LOST.kind.value,
                "scope": _LOST.scope.value,
                "code": _LOST.code,
                "detail": _LOST.detail,
                "ids": plain(records.attempt_id(r.claimed.delivery_id, r.claimed.claim_no) for r in results),
                "deliveries": plain(r.claimed.delivery_id for r in results),
                "claims": plain(r.claimed.claim_no for r in results),
                "accounts": plain(r.account_id for r in results),
            },
        )
