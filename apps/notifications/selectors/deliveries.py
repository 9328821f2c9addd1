"""What became of single messages: a list of them, or one with all that is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from apps.notifications.arrays import plain
from apps.notifications.claims import loads
from apps.notifications.selectors.notifications import FIRST, LAST, STATE_NOW
from apps.notifications.selectors.walk import MOST_LOOKED_AT, MOST_NOTIFICATIONS, Cursor, Owner, Window, fetch
from apps.people.models import User
from apps.providers.models import ProviderAccount
from apps.rest.problems import Problem
from notifier.ids import range_of

MOST_SHOWN = 100  # attempts and events of one delivery, the newest
_LOWEST = UUID(int=0)

_OWN = """
  d.client_id = %(client)s AND d.mode = %(mode)s AND d.id BETWEEN %(d_first)s AND %(d_last)s
"""
# Of one notification, or of one person: a range of the primary key, or of the person's index.
_RANGE = f"SELECT d.* FROM notifications_delivery d WHERE {_OWN}{{which}} ORDER BY d.id DESC"
_ONE_NOTIFICATION = " AND d.notification_id = %(notification)s"
_ONE_USER = " AND d.user_id = %(user)s"

# Of a whole client: its notifications, newest first, and the short range of ids of each one's deliveries. So
# Delivery needs no index for it, which every send would have to write.
_NOTIFICATIONS = f"""
SELECT n.id, {FIRST} AS first, {LAST} AS last FROM notifications_notification n
 WHERE n.client_id = %(client)s AND n.mode = %(mode)s AND n.id BETWEEN %(first)s AND %(last)s
 ORDER BY n.id DESC LIMIT {MOST_NOTIFICATIONS}
"""
_WALK = f"""
SELECT n.id AS walked, d.* FROM ({_NOTIFICATIONS}) n CROSS JOIN LATERAL (
  SELECT d.* FROM notifications_delivery d
   WHERE d.id BETWEEN %(d_first)s AND %(d_last)s AND d.id BETWEEN n.first AND n.last AND d.notification_id = n.id
     AND (n.id < %(seen_notification)s OR d.id < %(seen)s)
   ORDER BY d.id DESC) d
 ORDER BY n.id DESC, d.id DESC
"""
_REACHED_BY_WALK = f"""
SELECT notification_id, id FROM (
  (SELECT x.notification_id, x.id FROM ({{walk}}) x OFFSET {MOST_LOOKED_AT - 1} LIMIT 1)
  UNION ALL
  (SELECT x.id, %(lowest)s FROM ({_NOTIFICATIONS}) x OFFSET {MOST_NOTIFICATIONS - 1})) r
 ORDER BY notification_id DESC, id DESC LIMIT 1
"""
_REACHED_BY_RANGE = f"SELECT x.notification_id, x.id FROM ({{walk}}) x OFFSET {MOST_LOOKED_AT - 1}"

# LIMIT keeps the planner from turning one probe per row into a join with all that waits.
_PENDING = """
LEFT JOIN LATERAL (
  SELECT p.lease_until, p.due_at, p.waiting FROM notifications_pending p
   WHERE p.id = d.id AND d.state IN ('queued', 'retrying') LIMIT 1) p ON true
"""
_PAGE = """
SELECT d.id, d.notification_id, u.external_id AS user_id, d.recipient_no, d.channel, d.platform, d.state_now AS state,
       d.reason, d.detail, d.due_at, d.waiting, a.name AS provider, d.sent_at, d.delivered_at, d.opened_at,
       d.clicked_at, d.ended_at, d.expires_at
  FROM (SELECT d.*, {state} AS state_now, CASE WHEN p.lease_until IS NULL THEN p.due_at END AS due_at,
               CASE WHEN p.lease_until IS NULL AND (p.due_at > now() OR p.waiting LIKE '%%\\_paused') THEN p.waiting
               END AS waiting
          FROM ({source}) d {pending}{where} ORDER BY {order} LIMIT %(rows)s) d
  LEFT JOIN people_user u ON u.id = d.user_id
  LEFT JOIN providers_provideraccount a ON a.id = d.account_id
 ORDER BY {order}
"""

# What the caller asked for, where no person of ours stands behind a delivery.
_ASKED = """
SELECT v.id, c.recipients -> v.no AS entry
  FROM unnest(%(ids)s::uuid[], %(notifications)s::uuid[], %(numbers)s::int[]) AS v(id, notification, no)
  JOIN notifications_content c ON c.id = v.notification
 WHERE c.id = ANY (%(notifications)s::uuid[]) AND c.id BETWEEN %(first)s AND %(last)s
"""

_ONE = f"""
SELECT d.id, d.notification_id, d.mode, c.key AS category, d.lane, d.user_id AS person, u.external_id AS user_id,
       d.recipient_no, d.channel, d.platform, d.locale, d.state AS stored_state, {STATE_NOW} AS state, d.reason,
       d.detail, d.stopped_by, d.seen, p.due_at, p.waiting, p.lease_until IS NOT NULL AS is_leased, a.name AS provider,
       d.address_id, d.device_id, ad.value AS address, right(v.token, 4) AS token_end,
       d.sent_at, d.delivered_at, d.opened_at, d.clicked_at, d.ended_at, d.expires_at
  FROM notifications_delivery d
  JOIN people_category c ON c.id = d.category_id
  LEFT JOIN people_user u ON u.id = d.user_id
  LEFT JOIN people_address ad ON ad.id = d.address_id
  LEFT JOIN people_device v ON v.id = d.device_id
  LEFT JOIN providers_provideraccount a ON a.id = d.account_id {_PENDING}
 WHERE d.id = %(id)s AND d.client_id = %(client)s AND d.mode = %(mode)s
"""
_ATTEMPTS = f"""
SELECT row_number() OVER (ORDER BY t.claim_no) AS number, a.name AS provider, t.started_at, t.ended_at, t.outcome,
       t.scope, t.provider_ref, t.provider_code, t.http_status, t.detail, t.is_late
  FROM notifications_attempt t LEFT JOIN providers_provideraccount a ON a.id = t.account_id
 WHERE t.delivery_id = %(id)s AND t.id BETWEEN %(d_first)s AND %(d_last)s
 ORDER BY t.claim_no DESC LIMIT {MOST_SHOWN}
"""
_EVENTS = f"""
SELECT e.id, e.kind, e.source, e.is_machine, e.at, e.detail FROM notifications_event e
 WHERE e.delivery_id = %(id)s AND e.id BETWEEN %(d_first)s AND %(d_last)s
 ORDER BY e.at DESC, e.id DESC LIMIT {MOST_SHOWN}
"""


def list_deliveries(owner: Owner, query: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str | None]:
    """A page of them, and the cursor of the next. At most three statements, and one for each filter by a name.

    A page that would look at too many rows that do not fit the filters ends early, with a cursor.
    Raises Problem invalid-cursor.
    """
    cursor = Cursor("deliveries", owner, query)
    window = Window.of(query, looks_back="notification_id" not in query)
    notification = query.get("notification_id")
    if notification is not None:
        window = window.only(notification)
    seen = cursor.read()
    if seen is not None:
        window = window.up_to(seen[0])
    d_first, d_last = window.deliveries
    values = {
        "client": owner.client_id,
        "mode": str(owner.mode),
        "first": window.first,
        "last": window.last,
        "d_first": d_first,
        "d_last": d_last,
        "rows": query["limit"] + 1,
    }
    where = _where(query, values)
    if notification is not None or "user_id" in query:
        source, reached_by, order = _range(query, values, seen), _REACHED_BY_RANGE, "d.id DESC"
    else:
        source, reached_by, order = _WALK, _REACHED_BY_WALK, "d.walked DESC, d.id DESC"
        top = seen or [UUID(int=2**128 - 1), _LOWEST]
        values |= {"seen_notification": top[0], "seen": top[1], "lowest": _LOWEST}
    looked_at = f"{source} LIMIT {MOST_LOOKED_AT}"
    found = fetch(_page(looked_at, where, order), values)
    following = None
    if len(found) > query["limit"]:
        found.pop()
        following = found[-1]
    elif where or source is _WALK:
        following = next(iter(fetch(reached_by.format(walk=looked_at), values)), None)
    _name_strangers(found)
    return found, cursor.make(following["notification_id"], following["id"]) if following else None


def one_delivery(owner: Owner, id: UUID) -> dict[str, Any]:
    """The delivery with its `attempts` and `events`, oldest first. Three statements. Raises Problem not-found."""
    d_first, d_last = range_of(id)
    values = {
        "client": owner.client_id,
        "mode": str(owner.mode),
        "id": id,
        "d_first": d_first,
        "d_last": d_last,
    }
    found = fetch(_ONE, values)
    if not found:
        raise Problem("not-found")
    [delivery] = found
    delivery["seen"] = loads(delivery["seen"])
    delivery["attempts"] = fetch(_ATTEMPTS, values)[::-1]
    delivery["events"] = fetch(_EVENTS, values)[::-1]
    _name_strangers(found)
    return delivery


def _page(source: str, where: list[str], order: str) -> str:
    condition = " WHERE " + " AND ".join(where) if where else ""
    return _PAGE.format(state=STATE_NOW, source=source, pending=_PENDING, where=condition, order=order)


def _range(query: Mapping[str, Any], values: dict[str, Any], seen: Sequence[UUID] | None) -> str:
    which = ""
    if "notification_id" in query:
        which, values["notification"] = _ONE_NOTIFICATION, query["notification_id"]
    if "user_id" in query:
        which += _ONE_USER
        values["user"] = User.objects.filter(external_id=query["user_id"]).values_list("pk", flat=True).first()
    if seen is not None:
        which += " AND d.id < %(seen)s"
        values["seen"] = seen[1]
    return _RANGE.format(which=which)


def _where(query: Mapping[str, Any], values: dict[str, Any]) -> list[str]:
    """The conditions that no index answers; what they compare with goes into `values`."""
    where = []
    for name in ("channel", "reason"):
        if name in query:
            where.append(f"d.{name} = %({name})s")
            values[name] = query[name]
    if "state" in query:
        where.append(f"{STATE_NOW} = %(state)s")
        values["state"] = query["state"]
    if "provider" in query:
        where.append("d.account_id = %(account)s")
        accounts = ProviderAccount.objects.filter(name=query["provider"])
        values["account"] = accounts.values_list("pk", flat=True).first()
    return where


def _name_strangers(found: Sequence[dict[str, Any]]) -> None:
    """Give each row its `entry` of `to`: what was asked for, where it was no person that we know."""
    strangers = [row for row in found if row["user_id"] is None]
    entries: dict[UUID, Any] = {}
    if strangers:
        notifications = [row["notification_id"] for row in strangers]
        asked = fetch(
            _ASKED,
            {
                "ids": plain(row["id"] for row in strangers),
                "notifications": plain(notifications),
                "numbers": plain(row["recipient_no"] for row in strangers),
                "first": min(notifications),
                "last": max(notifications),
            },
        )
        entries = {row["id"]: loads(row["entry"]) for row in asked}
    for row in found:
        row["entry"] = entries.get(row["id"]) or {}
