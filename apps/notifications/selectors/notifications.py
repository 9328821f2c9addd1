"""What became of a client's notifications: newest first, or one with its counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from apps.notifications.claims import loads
from apps.notifications.selectors.walk import MOST_LOOKED_AT, MOST_NOTIFICATIONS, Cursor, Owner, Window, fetch
from apps.notifications.services.keys import find_event
from apps.people.models import Category, User
from apps.rest.problems import Problem
from apps.templates.models import TemplateVersion

# The first and last id of a notification's deliveries: its first 8 bytes, then anything (`notifier.ids.range_of`).
FIRST = "(left(n.id::text, 18) || '-0000-000000000000')::uuid"
LAST = "(left(n.id::text, 18) || '-ffff-ffffffffffff')::uuid"

# Both times are of the process that accepted it, whose clock may be ahead of the database's.
_IS_SCHEDULED = "n.due_at > n.created_at AND n.due_at > now()"

# A worker never thinks that it was the last; a sweep says `completed` some seconds later. Whoever asks is told how
# it is: a delivery is open while it has a Pending row, and nothing is left to lay out without an Expansion.
# No join of Pending and Delivery: with a backlog of 100,000 the planner begins one with the whole of Delivery, and a
# page took 8 s.
_STATUS = f"""
CASE WHEN n.completed_at IS NOT NULL OR n.status IN ('completed', 'cancelled') THEN n.status
     WHEN EXISTS (SELECT 1 FROM notifications_expansion e WHERE e.id = n.id AND e.position = 0)
       THEN CASE WHEN {_IS_SCHEDULED} THEN 'scheduled' ELSE 'accepted' END
     WHEN NOT EXISTS (SELECT 1 FROM notifications_expansion e WHERE e.id = n.id) AND NOT EXISTS (
       SELECT 1 FROM notifications_pending p
        WHERE p.id BETWEEN {FIRST} AND {LAST} AND n.id = (
          SELECT d.notification_id FROM notifications_delivery d
           WHERE d.id = p.id AND d.id BETWEEN %(d_first)s AND %(d_last)s)) THEN 'completed'
     WHEN {_IS_SCHEDULED} THEN 'scheduled'
     ELSE 'in_progress' END
"""

_HAS_REFERENCE = "n.reference = %(reference)s"
_NEWEST = """
SELECT n.* FROM notifications_notification n
 WHERE n.client_id = %(client)s AND n.mode = %(mode)s AND n.id BETWEEN %(first)s AND %(last)s{and_reference}
 ORDER BY n.id DESC{at_most}
"""
_NAMED = """
SELECT n.* FROM notifications_notification n
 WHERE n.id = %(id)s AND n.client_id = %(client)s AND n.mode = %(mode)s AND n.id BETWEEN %(first)s AND %(last)s
"""
_REACHES_USER = """
EXISTS (SELECT 1 FROM notifications_delivery d
         WHERE d.user_id = %(user)s AND d.notification_id = n.id AND d.id BETWEEN %(d_first)s AND %(d_last)s)
"""
# A person's deliveries are found by an index of their own; what they belong to is in the same order.
_USERS_DELIVERIES = f"""
SELECT d.notification_id FROM notifications_delivery d
 WHERE d.user_id = %(user)s AND d.client_id = %(client)s AND d.mode = %(mode)s
   AND d.id BETWEEN %(d_first)s AND %(d_last)s AND d.notification_id BETWEEN %(first)s AND %(last)s
 ORDER BY d.id DESC LIMIT {MOST_NOTIFICATIONS}
"""
_USERS = f"""
SELECT n.* FROM notifications_notification n
 WHERE n.id = ANY (ARRAY(SELECT DISTINCT notification_id FROM ({_USERS_DELIVERIES}) d))
   AND n.id BETWEEN %(first)s AND %(last)s
 ORDER BY n.id DESC
"""

# What a page shows is joined after its rows are found, so that no plan ever looks at more of it.
_PAGE = """
SELECT n.id, n.status_now AS status, n.mode, n.event_id, n.reference, t.key AS template, v.number AS version,
       c.key AS category, n.lane, n.recipients, n.metadata, n.due_at, n.expires_at, n.created_at, n.completed_at{more}
  FROM (SELECT n.*, {status} AS status_now FROM ({source}) n{where} ORDER BY n.id DESC LIMIT %(rows)s) n
  JOIN people_category c ON c.id = n.category_id
  LEFT JOIN templates_templateversion v ON v.id = n.template_version_id
  LEFT JOIN templates_template t ON t.id = v.template_id
 ORDER BY n.id DESC
"""

STATE_NOW = """
CASE WHEN p.lease_until IS NOT NULL AND d.state IN ('queued', 'retrying') THEN 'sending' ELSE d.state END
"""
_COUNTS = f""",
       (SELECT json_object_agg(x.state, x.n) FROM (
          SELECT {STATE_NOW} AS state, count(*) AS n
            FROM notifications_delivery d
            LEFT JOIN notifications_pending p ON p.id = d.id AND p.id BETWEEN %(d_first)s AND %(d_last)s
           WHERE d.notification_id = n.id AND d.id BETWEEN %(d_first)s AND %(d_last)s
           GROUP BY 1) x) AS counts
"""


def list_notifications(owner: Owner, query: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str | None]:
    """A page of them, and the cursor of the next. Two statements, and one for each filter that names something.

    A page that would look at too many rows that do not fit the filters ends early, with a cursor.
    Raises Problem invalid-cursor.
    """
    cursor = Cursor("notifications", owner, query)
    window = Window.of(query, looks_back="event_id" not in query)
    if (seen := cursor.read()) is not None:
        window = window.before(seen[0])
    named = find_event(*owner, query["event_id"]) if "event_id" in query else None
    if named is not None:
        window = window.only(named)
    elif "event_id" in query:
        return [], None
    values = _values(owner, window) | {"rows": query["limit"] + 1, "id": named}
    where = _where(query, values)
    if "user_id" in query:
        values["user"] = User.objects.filter(external_id=query["user_id"]).values_list("pk", flat=True).first()
    if "reference" in query:
        values["reference"] = query["reference"]
    looked_at = ""
    if named is not None:
        source = _NAMED
        where += [_REACHES_USER] if "user_id" in query else []
        where += [_HAS_REFERENCE] if "reference" in query else []
    elif "user_id" in query:
        source, looked_at = _USERS, _USERS_DELIVERIES
        where += [_HAS_REFERENCE] if "reference" in query else []
    else:
        source = _NEWEST.format(
            and_reference=f" AND {_HAS_REFERENCE}" if "reference" in query else "",
            at_most=f" LIMIT {MOST_LOOKED_AT}" if where else "",
        )
        looked_at = source if where else ""
    found = _fetch(_page(source, where), values)
    if len(found) > query["limit"]:
        return found[:-1], cursor.make(found[-2]["id"])
    reached = _reached(looked_at, values) if looked_at else None
    return found, cursor.make(reached) if reached else None


def one_notification(owner: Owner, id: UUID) -> dict[str, Any]:
    """The notification with `counts`, the number of its deliveries by state. Raises Problem not-found."""
    values = _values(owner, Window(id, id)) | {"id": id, "rows": 1}
    found = _fetch(_page(_NAMED, [], more=_COUNTS), values)
    if not found:
        raise Problem("not-found")
    return found[0]


def _values(owner: Owner, window: Window) -> dict[str, Any]:
    d_first, d_last = window.deliveries
    return {
        "client": owner.client_id,
        "mode": str(owner.mode),
        "first": window.first,
        "last": window.last,
        "d_first": d_first,
        "d_last": d_last,
    }


def _fetch(statement: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [row | {"metadata": loads(row["metadata"])} for row in fetch(statement, values)]


def _page(source: str, where: list[str], more: str = "") -> str:
    condition = " WHERE " + " AND ".join(where) if where else ""
    return _PAGE.format(status=_STATUS, source=source, where=condition, more=more)


def _where(query: Mapping[str, Any], values: dict[str, Any]) -> list[str]:
    """The conditions that no index answers; what they compare with goes into `values`."""
    where = []
    if "template" in query:
        versions = TemplateVersion.objects.filter(template__key=query["template"]).values_list("pk", flat=True)
        where.append("n.template_version_id = ANY (%(versions)s::bigint[])")
        values["versions"] = list(versions)
    if "category" in query:
        where.append("n.category_id = %(category)s")
        values["category"] = Category.objects.filter(key=query["category"]).values_list("pk", flat=True).first()
    if "status" in query:
        where.append(f"{_STATUS} = %(status)s")
        values["status"] = query["status"]
    return where


def _reached(looked_at: str, values: Mapping[str, Any]) -> UUID | None:
    """The last notification that a page looked at, when there may be more behind it."""
    most = MOST_NOTIFICATIONS if looked_at is _USERS_DELIVERIES else MOST_LOOKED_AT
    column = "notification_id" if looked_at is _USERS_DELIVERIES else "id"
    found = fetch(f"SELECT x.{column} AS id FROM ({looked_at}) x OFFSET {most - 1}", values)
    return found[0]["id"] if found else None
