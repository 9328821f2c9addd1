"""Taking work: the claim by ids, the top-up of a lane, and the gates as they stand at that moment.

Lives on Pending alone for the taking (`FOR UPDATE SKIP LOCKED`, so that nobody waits), then reads the
deliveries with everything the gates look at in one statement of the same transaction: an opt-out that was
committed before it is always seen.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from django.db import connection, transaction

from apps.notifications.arrays import plain
from apps.notifications.patience import LET_GO
from notifier.ledger import Claimed, Stop
from notifier.lifecycle import State
from notifier.message import Address, Channel, Lane, Mode, Platform
from notifier.stages.gates import Facts, decide
from notifier.stages.settle import may_duplicate


def machine_time() -> float:
    """Seconds on a clock that also runs while the machine sleeps: a lease must not look longer after a freeze."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Taken(NamedTuple):
    """A Pending row as the claim left it."""

    id: UUID
    claim_no: int
    tries: int
    crashes: int
    queue_lane: str
    waiting: str


_TAKE = """
UPDATE notifications_pending p
   SET claim_no = p.claim_no + 1, lease_until = now() + %(lease)s * interval '1 second',
       wake_at = now() + %(lease)s * interval '1 second'
 WHERE p.id = ANY (ARRAY(SELECT id FROM me))
RETURNING p.id, p.claim_no, p.tries, p.crashes, p.lane, p.waiting
"""

_CLAIM = (
    LET_GO
    + """
WITH me AS MATERIALIZED (
  SELECT id FROM notifications_pending
   WHERE id = ANY (%(ids)s::uuid[]) AND due_at <= now() AND lease_until IS NULL AND (crashes = 0 OR %(alone)s)
   ORDER BY id FOR UPDATE SKIP LOCKED)
"""
    + _TAKE
)

# Clients with rows in this lane, by one index probe each; from each its share, oldest first. What was rung is
# at most 10 s ahead in wake_at; what is leased or scheduled lies further ahead but for a bounded few.
_TOP_UP = (
    LET_GO
    + """
WITH RECURSIVE c AS (
  (SELECT client_id FROM notifications_pending WHERE channel = %(channel)s AND lane = %(lane)s
    ORDER BY client_id LIMIT 1)
  UNION ALL
  SELECT (SELECT t.client_id FROM notifications_pending t
           WHERE t.channel = %(channel)s AND t.lane = %(lane)s AND t.client_id > c.client_id
           ORDER BY t.client_id LIMIT 1) FROM c WHERE c.client_id IS NOT NULL
), me AS MATERIALIZED (
  SELECT r.id FROM (SELECT client_id FROM c WHERE client_id IS NOT NULL ORDER BY random()) c
   CROSS JOIN LATERAL (
     SELECT t.id FROM notifications_pending t
      WHERE t.channel = %(channel)s AND t.lane = %(lane)s AND t.client_id = c.client_id
        AND t.wake_at <= now() + interval '10 seconds'
        AND t.due_at <= now() AND t.lease_until IS NULL AND t.crashes = 0
      ORDER BY t.wake_at
      LIMIT greatest(1, %(limit)s / (SELECT count(*) FROM c WHERE client_id IS NOT NULL))
      FOR UPDATE SKIP LOCKED) r
   LIMIT %(limit)s)
"""
    + _TAKE
)

_READ = """
SELECT d.id, d.notification_id, d.client_id, d.mode, d.category_id, d.campaign_id, d.user_id, d.recipient_no,
       d.channel, d.address_id, d.device_id, d.locale, d.lane, d.state, d.account_id,
       extract(epoch FROM d.expires_at)::float8 AS expires_at, d.expires_at <= now() AS is_expired,
       cl.is_active AS client_is_active, cl.is_verified AS client_is_verified,
       cat.key AS category, cat.is_mandatory, cat.is_on_by_default, cat.on_uncertain,
       u.id IS NOT NULL AS user_exists, u.erased_at IS NOT NULL AS user_is_erased,
       coalesce(u.is_opted_out, others.is_opted_out, false) AS is_opted_out,
       CASE WHEN d.user_id IS NULL THEN others.is_on ELSE f.is_on END AS preference,
       s.reason AS suppressed_by, s.created_at AS suppressed_at,
       a.value AS address_value, a.status AS address_status, a.user_id AS address_user, a.is_sandbox AS address_sandbox,
       v.token, v.status AS device_status, v.user_id AS device_user, v.platform, v.provider AS device_provider,
       v.token_kind, v.app_id, v.apns_environment, v.is_sandbox AS device_sandbox
  FROM notifications_delivery d
  JOIN clients_client cl ON cl.id = d.client_id
  JOIN people_category cat ON cat.id = d.category_id
  LEFT JOIN people_user u ON u.id = d.user_id
  LEFT JOIN people_preference f ON f.user_id = d.user_id AND f.category_id = d.category_id AND f.channel = d.channel
  LEFT JOIN people_address a ON a.id = d.address_id
  LEFT JOIN people_device v ON v.id = d.device_id
  LEFT JOIN LATERAL (
    SELECT x.reason, x.created_at FROM people_suppression x
     WHERE x.address_hash = d.address_hash AND x.channel = d.channel
       AND (x.category_id IS NULL OR x.category_id = d.category_id) AND (x.expires_at IS NULL OR x.expires_at > now())
     LIMIT 1) s ON true
  LEFT JOIN LATERAL ( -- a raw address: the strictest of those it belongs to
    SELECT bool_or(o.is_opted_out) AS is_opted_out, bool_and(coalesce(g.is_on, cat.is_on_by_default)) AS is_on
      FROM (SELECT b.user_id FROM people_address b WHERE b.value_hash = d.address_hash
            UNION SELECT w.user_id FROM people_device w WHERE w.token_hash = d.address_hash) owner
      JOIN people_user o ON o.id = owner.user_id
      LEFT JOIN people_preference g ON g.user_id = o.id AND g.category_id = d.category_id AND g.channel = d.channel
     WHERE d.user_id IS NULL) others ON true
 WHERE d.id = ANY (%(ids)s::uuid[]) AND d.id BETWEEN %(lo)s AND %(hi)s
"""

_HOLDS = "SELECT scope, subject, action, reason FROM notifications_hold WHERE scope <> 'account'"

_CONTENT = """
SELECT n.id, n.template_version_id, c.recipients, c.data, c.options, c.inline
  FROM notifications_notification n JOIN notifications_content c ON c.id = n.id AND c.id BETWEEN %(lo)s AND %(hi)s
 WHERE n.id = ANY (%(ids)s::uuid[]) AND n.id BETWEEN %(lo)s AND %(hi)s
"""


class Asked(NamedTuple):
    """What a notification says, for all its deliveries. Never changes once accepted."""

    template_version_id: int | None
    recipients: list[dict[str, Any]]
    data: dict[str, Any]
    options: dict[str, Any]
    inline: dict[str, Any] | None


def loads(text: str | None) -> Any:
    """A jsonb column as Django's connection hands it to a plain cursor: as text."""
    return None if text is None else msgspec.json.decode(text)


class AskedCache:
    """The last notifications read, so that a shift in the middle of a large one does not read it again."""

    def __init__(self, size: int = 128) -> None:
        self._size = size
        self._kept: dict[UUID, Asked] = {}

    def get(self, ids: Iterable[UUID]) -> Mapping[UUID, Asked]:
        wanted = sorted(set(ids))
        missing = [id for id in wanted if id not in self._kept]
        found = {id: self._kept[id] for id in wanted if id in self._kept}
        if missing:
            with connection.cursor() as cursor:
                cursor.execute(_CONTENT, {"ids": plain(missing), "lo": missing[0], "hi": missing[-1]})
                read = {row[0]: Asked(row[1], *map(loads, row[2:])) for row in cursor.fetchall()}
            while self._kept and len(self._kept) + len(read) > self._size:
                del self._kept[next(iter(self._kept))]
            self._kept.update(list(read.items())[: self._size])
            found.update(read)
        return found


def claim(ids: Sequence[UUID], *, lease_s: float, alone: bool, cache: AskedCache) -> list[Claimed]:
    """See `notifier.ledger.Ledger.claim`."""
    return _take(_CLAIM, {"ids": plain(ids), "alone": alone, "lease": lease_s}, cache)


def top_up(channel: str, queue_lane: str, limit: int, *, lease_s: float, cache: AskedCache) -> list[Claimed]:
    """See `notifier.ledger.Ledger.top_up`."""
    return _take(_TOP_UP, {"channel": channel, "lane": queue_lane, "limit": limit, "lease": lease_s}, cache)


def _take(statement: str, values: dict[str, Any], cache: AskedCache) -> list[Claimed]:
    at = machine_time()
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement, values)
        taken = {row[0]: Taken(*row) for row in cursor.fetchall()}
        # All that is read is read before the commit: a claim that is committed is known to its worker.
        return _join(taken, cache, claimed_at=at, lease_ends=at + values["lease"])


def read_again(claimed: Sequence[Claimed], cache: AskedCache) -> list[Claimed]:
    """The same claims with the gates as they stand now (see `notifier.ledger.Ledger.recheck`)."""
    taken = {c.delivery_id: Taken(c.delivery_id, c.claim_no, c.tries, c.crashes, c.queue_lane, "") for c in claimed}
    return _join(taken, cache, claimed_at=machine_time(), lease_ends=min(c.lease_ends for c in claimed))


def _read(taken: Mapping[UUID, Taken]) -> list[dict[str, Any]]:
    ids = sorted(taken)
    with connection.cursor() as cursor:
        cursor.execute(_READ, {"ids": plain(ids), "lo": ids[0], "hi": ids[-1]})
        names = [column.name for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


Holds = Mapping[tuple[str, str], tuple[str, str]]


def read_holds() -> Holds:
    """(scope, subject) -> (action, reason) of everything paused or cancelled, but for accounts: route sees to those."""
    with connection.cursor() as cursor:
        cursor.execute(_HOLDS)
        return {(scope, subject): (action, reason) for scope, subject, action, reason in cursor.fetchall()}


def _join(taken: Mapping[UUID, Taken], cache: AskedCache, *, claimed_at: float, lease_ends: float) -> list[Claimed]:
    if not taken:
        return []
    rows = _read(taken)
    holds = read_holds()
    asked = cache.get(row["notification_id"] for row in rows)
    return [
        _claimed(
            taken[row["id"]], row, asked[row["notification_id"]], holds, claimed_at=claimed_at, lease_ends=lease_ends
        )
        for row in rows
    ]


def _claimed(
    taken: Taken, row: dict[str, Any], asked: Asked, holds: Holds, *, claimed_at: float, lease_ends: float
) -> Claimed:
    channel, lane = Channel(row["channel"]), Lane(row["lane"])
    entry = asked.recipients[row["recipient_no"]] if asked.recipients else {}
    address = _address(channel, row, entry)
    own_data = entry.get("data")
    return Claimed(
        delivery_id=taken.id,
        claim_no=taken.claim_no,
        notification_id=row["notification_id"],
        client_id=row["client_id"],
        mode=Mode(row["mode"]),
        channel=channel,
        lane=lane,
        queue_lane=taken.queue_lane,
        category_id=row["category_id"],
        campaign_id=row["campaign_id"],
        template_version_id=asked.template_version_id,
        state=State(row["state"]),
        tries=taken.tries,
        crashes=taken.crashes,
        expires_at=row["expires_at"],
        lease_ends=lease_ends,
        claimed_at=claimed_at,
        may_duplicate=may_duplicate(lane, channel, row["on_uncertain"]),
        address=address,
        address_id=row["address_id"],
        device_id=row["device_id"],
        device_provider=row["device_provider"] or entry.get("device", {}).get("provider", ""),
        locale=row["locale"],
        last_account_id=row["account_id"],
        collapse_key=asked.options.get("collapse_key", ""),
        data=merged(asked.data, own_data) if own_data else asked.data,
        options=asked.options,
        inline=asked.inline,
        shares_data=not own_data,
        stop=_stop(taken, row, address, holds),
    )


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, objects merged at every depth."""
    out = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = merged(out[key], value)
        else:
            out[key] = value
    return out


def _address(channel: Channel, row: dict[str, Any], entry: dict[str, Any]) -> Address | None:
    if row["device_id"] is not None:
        if row["token"] is None:
            return None
        return Address(
            channel,
            row["token"],
            platform=Platform(row["platform"]),
            token_kind=row["token_kind"],
            app_id=row["app_id"],
            apns_environment=row["apns_environment"],
            is_sandbox=row["device_sandbox"],
        )
    if row["address_id"] is not None:
        if row["address_value"] is None:
            return None
        return Address(channel, row["address_value"], is_sandbox=row["address_sandbox"])
    return raw_address(channel, entry)


def raw_address(channel: Channel, entry: Mapping[str, Any]) -> Address | None:
    """The address that the caller gave in `to` itself, as accept normalised it; None: gave none for this channel."""
    if channel is Channel.PUSH:
        device = entry.get("device")
        if not device:
            return None
        return Address(
            channel,
            device["token"],
            platform=Platform(device["platform"]),
            token_kind=device.get("token_kind", ""),
            app_id=device.get("app_id", ""),
            apns_environment=device.get("apns_environment", ""),
            is_sandbox=bool(entry.get("is_sandbox")),
        )
    value = entry.get("email" if channel is Channel.EMAIL else "phone")
    return Address(channel, value, is_sandbox=bool(entry.get("is_sandbox"))) if value else None


def _stop(taken: Taken, row: dict[str, Any], address: Address | None, holds: Holds) -> Stop | None:
    scope, action, reason = held(holds, row)
    return decide(
        Facts(
            mode=row["mode"],
            channel=row["channel"],
            is_client_active=row["client_is_active"],
            is_client_verified=row["client_is_verified"],
            user_exists=row["user_exists"] if row["user_id"] is not None else None,
            is_user_erased=row["user_is_erased"],
            is_sandbox_recipient=address is not None and address.is_sandbox,
            hold_scope=scope,
            hold_action=action,
            hold_reason=reason,
            is_expired=row["is_expired"],
            was_tried=taken.tries > 0 or taken.crashes > 0,  # a worker that died may have sent it
            waiting=taken.waiting,
            category=row["category"],
            is_mandatory=row["is_mandatory"],
            is_on_by_default=row["is_on_by_default"],
            is_opted_out=row["is_opted_out"],
            preference=row["preference"],
            suppressed_by=row["suppressed_by"] or "",
            suppressed_since=f"{row['suppressed_at']:%Y-%m-%d}" if row["suppressed_at"] else "",
            target=_target(row, address),
        )
    )


def _target(row: dict[str, Any], address: Address | None) -> str:
    if address is None:
        return "retired"
    if row["device_id"] is not None:
        status, owner = row["device_status"], row["device_user"]
    elif row["address_id"] is not None:
        status, owner = row["address_status"], row["address_user"]
    else:
        return "active"
    if owner != row["user_id"]:
        return "moved"
    return "active" if status == "active" else "retired"


def held(holds: Holds, row: Mapping[str, Any]) -> tuple[str, str, str]:
    """(scope, action, reason) of the hold over a delivery, a cancel before a pause; empty when there is none."""
    found = ("", "", "")
    if not holds:
        return found
    for scope, column in _HELD_BY:
        action, reason = holds.get((scope, str(row[column])), ("", ""))
        if action == "cancel":
            return scope, action, reason
        if action and not found[0]:
            found = (scope, action, reason)
    return found


_HELD_BY = (
    ("channel", "channel"),
    ("client", "client_id"),
    ("category", "category_id"),
    ("campaign", "campaign_id"),
    ("notification", "notification_id"),
)
