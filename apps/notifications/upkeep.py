"""What beat ticks for: each job may run twice, late, or beside itself without harm."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog
from django.conf import settings
from django.db import connection

from apps.notifications import invariants, partitions
from apps.notifications.services import holds
from notifier.ids import floor_id

log = structlog.get_logger(__name__)

PAGE = 5000
IDEMPOTENCY_KEPT_DAYS = 7
RECEIPTS_KEPT_DAYS = 7
HEARTBEATS_KEPT_HOURS = 24
RECENT = timedelta(days=2)  # what is due within hours ends in these partitions; the rest is looked at hourly
FOLDED_H = 3  # hours that are still folded; what a longer standstill left unfolded is summed all the same


def complete_notifications(since: timedelta = RECENT) -> None:
    """Set `completed` on what has no open delivery left. Nobody else sets it: no worker knows that it is the last.

    Deliveries of a notification share its first 8 bytes, so one probe of Pending's key tells.
    """
    first = floor_id(datetime.now(UTC) - since)
    last = "00000000-0000-0000-0000-000000000000"
    while True:
        with connection.cursor() as cursor:
            cursor.execute(_COMPLETE, {"after": last, "page": PAGE, "since": str(first)})
            seen, last = cursor.fetchone()
        if not seen or seen < PAGE:
            return


_COMPLETE = """
WITH open AS MATERIALIZED (
  SELECT id, status FROM notifications_notification
   WHERE completed_at IS NULL AND id > %(after)s AND id >= %(since)s ORDER BY id LIMIT %(page)s
), done AS (
  SELECT id FROM open o
   WHERE NOT EXISTS (SELECT 1 FROM notifications_expansion e WHERE e.id = o.id)
     AND NOT EXISTS (
       SELECT 1 FROM notifications_pending p
        WHERE p.id BETWEEN (left(o.id::text, 18) || '-0000-000000000000')::uuid
                       AND (left(o.id::text, 18) || '-ffff-ffffffffffff')::uuid)
), written AS (
  UPDATE notifications_notification n
     SET completed_at = now(), status = CASE WHEN n.status = 'cancelled' THEN n.status ELSE 'completed' END
   WHERE n.id = ANY (ARRAY(SELECT id FROM done))
     AND n.id >= %(since)s
)
SELECT count(*), coalesce(max(id::text), %(after)s) FROM open
"""


def complete_old_notifications() -> None:
    """The same for what was accepted long ago: due days ahead, or held for long."""
    complete_notifications(timedelta(days=settings.KEPT_DAYS))


def compact_tallies() -> None:
    """Fold the counts of the last hours into few rows per group: what is read stays small, whatever was sent.

    Goes through all that was there when it began: each accepted request and each record write rows of their own,
    thousands in the second at the peak. What it folds gets new ids, and so its turn with the next run.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT max(id) FROM notifications_tally")
        (newest,) = cursor.fetchone()
    while newest is not None and _fold_tallies(newest) == PAGE:
        pass


def _fold_tallies(newest: int) -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            "WITH old AS (DELETE FROM notifications_tally WHERE id IN (SELECT id FROM notifications_tally "
            "  WHERE hour >= date_trunc('hour', now()) - %s * interval '1 hour' AND id <= %s "
            "  LIMIT %s FOR UPDATE SKIP LOCKED) RETURNING *), folded AS ("
            "INSERT INTO notifications_tally (hour, client_id, mode, channel, lane, category_id, template_version_id, "
            "  campaign_id, account_id, from_state, to_state, n) "
            "SELECT hour, client_id, mode, channel, lane, category_id, template_version_id, campaign_id, account_id, "
            "  from_state, to_state, sum(n) FROM old GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11) "
            "SELECT count(*) FROM old",
            [FOLDED_H, newest, PAGE],
        )
        return int(cursor.fetchone()[0])


def forget_old_keys() -> None:
    """Keys and receipts past their time go, in batches that hold no lock for long."""
    event_days = settings.EVENT_KEYS_KEPT_DAYS
    for table, column, days in (
        ("notifications_idempotencykey", "created_at", IDEMPOTENCY_KEPT_DAYS),
        ("notifications_eventkey", "created_at", event_days),
        ("notifications_receiptinbox", "received_at", RECEIPTS_KEPT_DAYS),
        ("notifications_heartbeat", "at", HEARTBEATS_KEPT_HOURS / 24),
    ):
        key = "name" if table.endswith("heartbeat") else "id"
        while _delete_page(table, key, column, days) == PAGE:
            pass


def _delete_page(table: str, key: str, column: str, days: float) -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            f"DELETE FROM {table} WHERE {key} IN (SELECT {key} FROM {table} "
            f"WHERE {column} < now() - %s * interval '1 day' LIMIT %s)",
            [days, PAGE],
        )
        return int(cursor.rowcount)


def keep_partitions() -> None:
    """Make partitions ahead and drop old ones; alert when time is running out."""
    made = partitions.ensure_partitions()
    kept, content = timedelta(days=settings.KEPT_DAYS), timedelta(days=settings.CONTENT_KEPT_DAYS)
    keep = dict.fromkeys(partitions.PARTITIONED, kept) | {"notifications_content": content}
    dropped = partitions.retire_partitions(keep)
    log.info("partitions_kept", made=made, dropped=dropped)
    if partitions.days_ahead() < 7:
        log.error("partitions_running_out", days=round(partitions.days_ahead(), 1))


def check_invariants() -> None:
    invariants.check_invariants()


def sweep_cancels() -> None:
    holds.sweep_cancels()


JOBS: dict[str, Callable[[], None]] = {
    "complete_notifications": complete_notifications,
    "complete_old_notifications": complete_old_notifications,
    "compact_tallies": compact_tallies,
    "forget_old_keys": forget_old_keys,
    "keep_partitions": keep_partitions,
    "check_invariants": check_invariants,
    "sweep_cancels": sweep_cancels,
}
