"""Receipts: kept as they come, matched and followed later. Early, late, repeated and unmatched ones all count once.

Success counts from any try of a delivery; failure only from the latest one that the provider accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

import structlog
from django.db import connection, transaction

from apps.notifications.arrays import jsons, plain, storable, texts
from apps.notifications.claims import loads
from apps.notifications.metrics import RECEIPTS
from apps.notifications.patience import LET_GO
from apps.people import services as people
from apps.people.hashing import hash_address
from apps.people.models import Suppression
from apps.people.sandbox import is_sandbox_recipient
from notifier.ids import derived_id, floor_id
from notifier.lifecycle import OPEN, State, advance
from notifier.message import Channel
from notifier.outcome import Receipt, ReceiptKind
from notifier.providers.registry import PROVIDERS

log = structlog.get_logger(__name__)

PAGE = 200
# An unmatched receipt may be ahead of its send's record, by a database outage at most; then it stays as it is.
LOOK_AGAIN_S = (1, 2, 5, 15, 60, 300, 3600)

_STATE_OF: dict[str, State] = {
    ReceiptKind.SENT: State.SENT,
    ReceiptKind.DELIVERED: State.DELIVERED,
    ReceiptKind.OPENED: State.OPENED,
    ReceiptKind.CLICKED: State.CLICKED,
    ReceiptKind.UNDELIVERED: State.UNDELIVERED,
    ReceiptKind.COMPLAINED: State.DELIVERED,  # who complains has got it
}
_SUPPRESSES = {
    ReceiptKind.COMPLAINED: "complaint",
    ReceiptKind.UNSUBSCRIBED: "unsubscribe",
    ReceiptKind.STOPPED: "stop",
}
# All of a page is found by keys; while a table's statistics are old, the planner may rather read the whole of it.
_BY_KEYS = f"{LET_GO} SET LOCAL enable_seqscan = off; SET LOCAL jit = off;"
_STAMP = {State.DELIVERED: "delivered_at", State.OPENED: "opened_at", State.CLICKED: "clicked_at"}


class Kept(NamedTuple):
    """A row of the inbox."""

    id: int
    account_id: int
    account: str
    kind: str
    is_sandbox: bool
    event_id: str
    receipt: dict[str, Any]
    received_at: datetime
    looks: int

    @property
    def at(self) -> datetime:
        text = self.receipt.get("at")
        return datetime.fromisoformat(text) if text else self.received_at


def keep(account_id: int, receipts: Sequence[Receipt]) -> int:
    """Store what a provider reported, to be settled soon; returns how many were new. One statement."""
    if not receipts:
        return 0
    once = {storable(receipt.event_id, 250): receipt for receipt in receipts}
    rows = sorted(once.items())
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO notifications_receiptinbox "
            "(account_id, provider_event_id, receipt, received_at, wake_at, looks, outcome) "
            "SELECT %(account)s, v.event, v.receipt, now(), now(), 0, '' "
            "FROM unnest(%(events)s::text[], %(receipts)s::jsonb[]) AS v(event, receipt) ORDER BY v.event "
            "ON CONFLICT (account_id, provider_event_id) DO NOTHING RETURNING id",
            {
                "account": account_id,
                "events": texts(event for event, _ in rows),
                "receipts": jsons(as_json(receipt) for _, receipt in rows),
            },
        )
        return len(cursor.fetchall())


def as_json(receipt: Receipt) -> dict[str, Any]:
    values = {name: value for name, value in asdict(receipt).items() if value not in (None, "", {}, False)}
    values["kind"] = receipt.kind.value
    if receipt.at is not None:
        values["at"] = receipt.at.astimezone(UTC).isoformat()
    if receipt.delivery_id is not None:
        values["delivery_id"] = str(receipt.delivery_id)
    values.pop("raw", None)  # what we understood is kept; the rest may hold anything
    return {name: storable(value, 500) if isinstance(value, str) else value for name, value in values.items()}


def settle_due() -> int:
    """Settle what is due in the inbox, page by page; returns how many were looked at."""
    looked = 0
    while page := _settle_page():
        looked += page
        if page < PAGE:
            break
    return looked


def _settle_page() -> int:
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(
                f"{_BY_KEYS} SELECT r.id, r.account_id, a.name, a.kind, a.is_sandbox, r.provider_event_id, r.receipt, "
                "r.received_at, r.looks "
                "FROM notifications_receiptinbox r JOIN providers_provideraccount a ON a.id = r.account_id "
                "WHERE r.wake_at <= now() ORDER BY r.wake_at LIMIT %s FOR UPDATE OF r SKIP LOCKED",
                [PAGE],
            )
            rows = [Kept._make((*row[:6], loads(row[6]), *row[7:])) for row in cursor.fetchall()]
        matches = _match(rows)
        # Deliveries are locked in id order by `_match`; the receipts of one are followed as they happened.
        for row in sorted(rows, key=lambda row: row.at):
            _settle(row, matches.get(row.id))
    return len(rows)


class Match(NamedTuple):
    """The delivery that a receipt speaks of."""

    id: UUID
    notification_id: UUID
    state: str
    is_leased: bool
    has_pending: bool
    latest_claim: int
    claim_no: int | None
    channel: str
    client_id: int
    mode: str
    lane: str
    category_id: int
    campaign_id: UUID | None
    account_id: int | None
    user_id: int | None
    address_id: UUID | None
    device_id: UUID | None
    address_hash: UUID | None


def _match(rows: Sequence[Kept]) -> dict[int, Match]:
    """By our own ids first, else by the provider's reference of a try."""
    claims: dict[int, tuple[UUID, int | None]] = {}
    by_ref: dict[tuple[int, str], list[int]] = {}
    for row in rows:
        if row.receipt.get("delivery_id"):
            claims[row.id] = UUID(row.receipt["delivery_id"]), row.receipt.get("claim_no")
        elif row.receipt.get("provider_ref"):
            by_ref.setdefault((row.account_id, row.receipt["provider_ref"]), []).append(row.id)
    if by_ref:
        for account_id, ref, delivery, claim_no in _tries_by_ref([ref for _, ref in by_ref]):
            for id in by_ref.get((account_id, ref), ()):
                claims[id] = delivery, claim_no
    if not claims:
        return {}
    found = _deliveries(sorted({delivery for delivery, _ in claims.values()}))
    return {
        id: found[delivery]._replace(claim_no=claim_no)
        for id, (delivery, claim_no) in claims.items()
        if delivery in found
    }


def _tries_by_ref(refs: Sequence[str]) -> list[tuple[int, str, UUID, int]]:
    """Most receipts come within days: the recent partitions first, all of them only for what is left."""
    found: list[tuple[int, str, UUID, int]] = []
    recent = floor_id(datetime.fromtimestamp(datetime.now(UTC).timestamp() - 4 * 86_400, UTC))
    for bound in (f"AND id >= '{recent}'", ""):
        left = set(refs) - {row[1] for row in found}
        if not left:
            break
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT account_id, provider_ref, delivery_id, claim_no FROM notifications_attempt "
                f"WHERE provider_ref = ANY (%s::text[]) AND provider_ref <> '' {bound}",
                [texts(left)],
            )
            found += cursor.fetchall()
    return found


_DELIVERIES = """
SELECT d.id, d.notification_id, d.state, p.lease_until IS NOT NULL, p.id IS NOT NULL, greatest(d.claim_no, 0),
       NULL::int, d.channel, d.client_id, d.mode, d.lane, d.category_id, d.campaign_id, d.account_id, d.user_id,
       d.address_id, d.device_id, d.address_hash
  FROM notifications_delivery d
  LEFT JOIN LATERAL (SELECT x.id, x.lease_until FROM notifications_pending x WHERE x.id = d.id LIMIT 1) p ON true
 WHERE d.id = ANY (%(ids)s::uuid[]) AND d.id BETWEEN %(lo)s AND %(hi)s ORDER BY d.id FOR UPDATE OF d
"""


def _deliveries(ids: Sequence[UUID]) -> dict[UUID, Match]:
    with connection.cursor() as cursor:
        cursor.execute(_DELIVERIES, {"ids": plain(ids), "lo": ids[0], "hi": ids[-1]})
        return {row[0]: Match(*row) for row in cursor.fetchall()}


def _settle(row: Kept, match: Match | None) -> None:
    kind = row.receipt["kind"]
    _heed(row, match)
    if match is not None and match.is_leased:
        _look_again(row, "early")  # our own record of this try is on its way: it says where things stand
    elif match is not None:
        _follow(row, match)
        _close(row, "settled")
    elif kind == ReceiptKind.STARTED:
        _reopen(row)
        _close(row, "followed")
    elif kind in _STATE_OF:
        _look_again(row, "unmatched")
    else:
        _close(row, "followed" if kind in _SUPPRESSES else "kept")


def _heed(row: Kept, match: Match | None) -> None:
    """What says "stop" is obeyed at first sight, whatever the delivery's state, and with or without a delivery."""
    reason = _suppression(row.receipt["kind"], row.receipt.get("reason", ""))
    if not reason:
        return
    note = " ".join(filter(None, [row.receipt.get("code"), row.receipt.get("detail")]))[:500]
    address = row.receipt.get("address", "")
    if match is not None:
        if match.address_hash is not None and _may_touch(match):
            value = _address_of(match) or address
            people.suppress(
                Channel(match.channel), value, reason, source=row.account, note=note, address_hash=match.address_hash
            )
        return
    channel = _channel_of(row.kind)
    # A sandbox account speaks of sandbox recipients; of anybody else it knows nothing.
    if address and channel and (not row.is_sandbox or is_sandbox_recipient(channel, address)):
        people.suppress(channel, address, reason, source=row.account, note=note)


def _channel_of(kind: str) -> Channel | None:
    channels = PROVIDERS[kind].channels if kind in PROVIDERS else frozenset()
    return next((channel for channel in (Channel.EMAIL, Channel.SMS) if channel in channels), None)


def _follow(row: Kept, match: Match) -> None:
    kind = row.receipt["kind"]
    current = _current_state(match)
    target = _STATE_OF.get(kind)
    if target is State.UNDELIVERED and (match.has_pending or _is_of_earlier_try(match)):
        target = None  # another try is to come, or came after: this one's failure says nothing of that
    if target is State.SENT and match.has_pending:
        target = None  # handed on by a try that we could not be sure of; the next one decides
    if row.receipt.get("is_machine"):
        target = None  # a scanner's open or click is kept, and moves nothing
    if target is not None and (new := advance(current, target)) is not current:
        _move(match, current, new, row)
    _write_event(row, match)


def _is_of_earlier_try(match: Match) -> bool:
    return match.claim_no is not None and match.claim_no < match.latest_claim


def _current_state(match: Match) -> State:
    """Read under the lock: an earlier receipt of this page may have moved it."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT state FROM notifications_delivery WHERE id = %s", [str(match.id)])
        return State(cursor.fetchone()[0])


def _move(match: Match, old: State, new: State, row: Kept) -> None:
    stamp = _STAMP.get(new)
    with connection.cursor() as cursor:
        if old in OPEN:  # a try that we thought uncertain had arrived: nothing more is to be sent
            cursor.execute("DELETE FROM notifications_pending WHERE id = %s", [str(match.id)])
        cursor.execute(
            "UPDATE notifications_delivery SET state = %(state)s, reason = %(reason)s, detail = %(detail)s, "
            "ended_at = coalesce(ended_at, now()), "
            "sent_at = coalesce(sent_at, CASE WHEN %(state)s <> 'undelivered' THEN now() END)"
            + (f", {stamp} = %(at)s" if stamp else "")
            + " WHERE id = %(id)s",
            {
                "id": str(match.id),
                "state": new.value,
                "reason": (row.receipt.get("reason") or "undelivered_other") if new is State.UNDELIVERED else "",
                "detail": row.receipt.get("detail", "")[:500] if new is State.UNDELIVERED else "",
                "at": row.at,
            },
        )
        cursor.execute(
            "INSERT INTO notifications_tally (hour, client_id, mode, channel, lane, category_id, template_version_id, "
            "campaign_id, account_id, from_state, to_state, n) "
            "SELECT date_trunc('hour', now()), %(client)s, %(mode)s, %(channel)s, %(lane)s, %(category)s, "
            "n.template_version_id, %(campaign)s, %(account)s, %(old)s, %(new)s, 1 "
            "FROM notifications_notification n WHERE n.id = %(notification)s",
            {
                "client": match.client_id,
                "mode": match.mode,
                "channel": match.channel,
                "lane": match.lane,
                "category": match.category_id,
                "campaign": match.campaign_id,
                "account": match.account_id,
                "old": old.value,
                "new": new.value,
                "notification": str(match.notification_id),
            },
        )


def _write_event(row: Kept, match: Match) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO notifications_event (id, delivery_id, kind, source, is_machine, at, detail) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (id) DO NOTHING",
            [
                str(derived_id(match.id, "event", str(row.account_id), row.event_id)),
                str(match.id),
                row.receipt["kind"],
                row.account,
                bool(row.receipt.get("is_machine")),
                row.at,
                row.receipt.get("detail", "")[:500],
            ],
        )


def _suppression(kind: str, reason: str) -> str:
    if kind == ReceiptKind.UNDELIVERED and reason == "hard_bounce":
        return "bounce"
    return _SUPPRESSES.get(ReceiptKind(kind), "")


def _may_touch(match: Match) -> bool:
    """A test leaves no trace on real people; a sandbox recipient is there for it."""
    return match.mode == "live" or _is_sandbox(match)


def _is_sandbox(match: Match) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT coalesce((SELECT is_sandbox FROM people_address WHERE id = %s), "
            "(SELECT is_sandbox FROM people_device WHERE id = %s), false)",
            [str(match.address_id) if match.address_id else None, str(match.device_id) if match.device_id else None],
        )
        return bool(cursor.fetchone()[0])


def _address_of(match: Match) -> str:
    """The address a delivery went to: the person's, or the one the caller gave."""
    with connection.cursor() as cursor:
        if match.address_id is not None:
            cursor.execute("SELECT value FROM people_address WHERE id = %s", [str(match.address_id)])
        else:
            cursor.execute(
                "SELECT coalesce("
                "c.recipients -> d.recipient_no ->> 'email', c.recipients -> d.recipient_no ->> 'phone') "
                "FROM notifications_delivery d JOIN notifications_content c ON c.id = d.notification_id "
                "WHERE d.id = %s AND c.id = %s",
                [str(match.id), str(match.notification_id)],
            )
        found = cursor.fetchone()
    return found[0] if found and found[0] else ""


def _reopen(row: Kept) -> None:
    """START from a phone: what its STOP closed is open again."""
    number = row.receipt.get("address", "")
    for entry in Suppression.objects.filter(channel="sms", address_hash=hash_address("sms", number), reason="stop"):
        people.lift_suppression(entry.pk, source=row.account, may_lift_protected=True)


def _look_again(row: Kept, outcome: str) -> None:
    if row.looks >= len(LOOK_AGAIN_S):
        log.warning("receipt_unmatched", account=row.account, kind=row.receipt["kind"])
        _close(row, outcome)
        return
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE notifications_receiptinbox SET looks = looks + 1, outcome = %s, "
            "wake_at = now() + %s * interval '1 second' WHERE id = %s",
            [outcome, LOOK_AGAIN_S[row.looks], row.id],
        )


def _close(row: Kept, outcome: str) -> None:
    RECEIPTS.labels(outcome).inc()
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE notifications_receiptinbox SET wake_at = NULL, outcome = %s WHERE id = %s", [outcome, row.id]
        )
