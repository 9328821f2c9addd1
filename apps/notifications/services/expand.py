"""Laying out what was too much, or too early, to lay out when it was accepted: page by page, resumable anywhere.

A page's rows and the cursor commit together, and a delivery's id is derived: a page done twice inserts nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connection, transaction

from apps.notifications.arrays import plain
from apps.notifications.claims import loads
from apps.notifications.patience import LET_GO
from apps.notifications.request_ids import name_too
from apps.notifications.services.layout import DEFAULT_LOCALE, Entry, Outline, categories, lay_out
from apps.templates import services as templates
from notifier.message import Channel

PAGE = 1000  # recipients laid out in one transaction: 30 ms of locks
MOST_AT_ONCE = 50  # expansions taken by one page; a batch's items are small

# FOR SHARE on the notification: a cancel, which takes FOR UPDATE, wins or waits for this page. The ids three times:
# between the first and the last of them may lie months, of what was accepted for later.
_TAKE = (
    LET_GO
    + """
SELECT e.id, e.position, e.due_at, n.client_id, cl.is_active, cl.is_verified, n.mode, n.category_id, n.campaign_id,
       n.template_version_id, n.lane, n.channels, n.expires_at, n.status, n.request_id, c.recipients, c.inline
  FROM notifications_expansion e
  JOIN notifications_notification n
    ON n.id = e.id AND n.id = ANY (%(ids)s::uuid[]) AND n.id BETWEEN %(lo)s AND %(hi)s
  JOIN notifications_content c ON c.id = e.id AND c.id = ANY (%(ids)s::uuid[]) AND c.id BETWEEN %(lo)s AND %(hi)s
  JOIN LATERAL (SELECT x.is_active, x.is_verified FROM clients_client x WHERE x.id = n.client_id LIMIT 1) cl ON true
 WHERE e.id = ANY (%(ids)s::uuid[]) AND e.due_at <= now() + interval '60 seconds'
 ORDER BY e.id
   FOR UPDATE OF e SKIP LOCKED
   FOR SHARE OF n SKIP LOCKED
"""
)


class Taken(NamedTuple):
    id: UUID
    position: int
    due_at: datetime
    client_id: int
    is_client_active: bool
    is_client_verified: bool
    mode: str
    category_id: int
    campaign_id: UUID | None
    template_version_id: int | None
    lane: str
    channels: list[str]
    expires_at: datetime
    status: str
    request_id: str
    recipients: list[dict[str, Any]]
    inline: dict[str, Any] | None


def expand(ids: Sequence[UUID]) -> int:
    """Lay out the notifications of `ids` to their end; returns how many entries were laid out.

    One that another worker holds, that is not due, or that was cancelled is left alone.
    """
    done = 0
    for start in range(0, len(ids), MOST_AT_ONCE):
        part = sorted(ids[start : start + MOST_AT_ONCE])
        while page := _page(part):
            done += page
    return done


def _page(ids: Sequence[UUID]) -> int:
    with transaction.atomic():
        taken = _take(ids)
        if not taken:
            return 0
        name_too(row.request_id for row in taken)
        entries: list[Entry] = []
        ended, moved = [], []
        for number, row in enumerate(taken):
            stop = min(len(row.recipients), row.position + PAGE - len(entries))
            entries += [Entry(number, position, row.recipients[position]) for position in range(row.position, stop)]
            if stop == len(row.recipients):
                ended.append(row.id)
            elif stop > row.position:
                moved.append((row.id, stop))
        lay_out([_outline(row) for row in taken], entries)
        _move_on(ended, moved)
    return len(entries)


def _take(ids: Sequence[UUID]) -> list[Taken]:
    with connection.cursor() as cursor:
        cursor.execute(_TAKE, {"ids": plain(ids), "lo": ids[0], "hi": ids[-1]})
        rows = [_taken(row) for row in cursor.fetchall()]
        cancelled = [row.id for row in rows if row.status == "cancelled"]
        if cancelled:
            cursor.execute("DELETE FROM notifications_expansion WHERE id = ANY (%s::uuid[])", [plain(cancelled)])
    return [row for row in rows if row.status != "cancelled"]


def _taken(row: tuple[Any, ...]) -> Taken:
    values = list(row)
    for column in (11, 15, 16):  # channels, recipients, inline
        values[column] = loads(values[column])
    return Taken._make(values)


def _move_on(ended: Sequence[UUID], moved: Sequence[tuple[UUID, int]]) -> None:
    with connection.cursor() as cursor:
        if ended:
            cursor.execute(
                "WITH e AS (DELETE FROM notifications_expansion WHERE id = ANY (%(ids)s::uuid[])) "
                "UPDATE notifications_notification SET status = 'in_progress' "
                "WHERE id = ANY (%(ids)s::uuid[]) AND id BETWEEN %(lo)s AND %(hi)s",
                {"ids": plain(ended), "lo": min(ended), "hi": max(ended)},
            )
        for id, position in moved:
            cursor.execute(
                "UPDATE notifications_expansion SET position = %s, wake_at = now() + interval '10 seconds' "
                "WHERE id = %s",
                [position, str(id)],
            )


def _outline(row: Taken) -> Outline:
    category = categories().get(row.category_id)
    if category is None:  # made within the last second and a half, by another process
        category = categories(fresh=True)[row.category_id]
    if row.template_version_id is None:
        written, locale = frozenset(row.inline or {}), DEFAULT_LOCALE
    else:
        version = templates.version_by_id(row.template_version_id)
        written, locale = frozenset(version.channels), version.default_locale
    return Outline(
        id=row.id,
        client_id=row.client_id,
        is_client_active=row.is_client_active,
        is_client_verified=row.is_client_verified,
        mode=row.mode,
        category=category,
        campaign_id=row.campaign_id,
        template_version_id=row.template_version_id,
        written_channels=written,
        channels=tuple(Channel(channel) for channel in row.channels),
        lane=row.lane,
        due_at=row.due_at,
        expires_at=row.expires_at,
        default_locale=locale,
    )
