"""Pausing, lifting and cancelling: one row each, effective with the next claim, whatever it covers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

from django.db import connection, transaction

from apps.notifications.models import Hold, HoldAction, HoldScope
from apps.rest.problems import Problem
from notifier.ids import range_of
from notifier.ledger import Account

PAGE = 1000

# Neither waits for a lock: a receipt takes the delivery before the Pending row, and each would wait for the other. What
# is skipped here is ended by its next claim, which reads the hold.
_END = """
WITH gone AS (
  DELETE FROM notifications_pending p WHERE p.id IN (
    SELECT p.id FROM notifications_pending p
      JOIN notifications_delivery d ON d.id = p.id AND d.id BETWEEN %(lo)s AND %(hi)s AND d.notification_id = %(id)s
     WHERE p.id BETWEEN %(lo)s AND %(hi)s AND p.lease_until IS NULL
     ORDER BY p.id LIMIT %(page)s FOR UPDATE OF p, d SKIP LOCKED)
  RETURNING p.id
), old AS (
  SELECT d.id, d.state, d.client_id, d.mode, d.channel, d.lane, d.category_id, d.campaign_id, d.account_id
    FROM notifications_delivery d WHERE d.id IN (SELECT id FROM gone) AND d.id BETWEEN %(lo)s AND %(hi)s
), moved AS (
  UPDATE notifications_delivery d SET state = 'cancelled', reason = %(reason)s, stopped_by = 'hold', ended_at = now()
    FROM gone WHERE d.id = gone.id AND d.id BETWEEN %(lo)s AND %(hi)s
), counted AS (
  INSERT INTO notifications_tally (hour, client_id, mode, channel, lane, category_id, template_version_id, campaign_id,
                                   account_id, from_state, to_state, n)
  SELECT date_trunc('hour', now()), client_id, mode, channel, lane, category_id,
         (SELECT template_version_id FROM notifications_notification WHERE id = %(id)s), campaign_id, account_id,
         state, 'cancelled', count(*) FROM old GROUP BY 2, 3, 4, 5, 6, 8, 9, 10
)
SELECT count(*) FROM gone
"""


def cancel_notification(id: UUID, *, client_id: int, mode: str, by: str, reason: str = "by_caller") -> None:
    """Stop what is not sent yet. What is `sending` is not called back, but is not tried again.

    Repeating changes nothing. Raises Problem: not-found; invalid-state when all had ended before.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        # Waits for a page that is being laid out (FOR SHARE), and no further one is.
        cursor.execute(
            "SELECT status FROM notifications_notification WHERE id = %s AND client_id = %s AND mode = %s FOR UPDATE",
            [str(id), client_id, mode],
        )
        row = cursor.fetchone()
        if row is None:
            raise Problem("not-found")
        [status] = row
        if status == "cancelled":
            return
        if status == "completed" or (status == "in_progress" and not has_open(id)):
            raise Problem("invalid-state", "every delivery has ended", state="completed")
        cursor.execute("DELETE FROM notifications_expansion WHERE id = %s", [str(id)])
        cursor.execute("UPDATE notifications_notification SET status = 'cancelled' WHERE id = %s", [str(id)])
        # Covers what is on its way right now, and whatever a worker gives back. A pause gives way to it.
        Hold.objects.update_or_create(
            scope=HoldScope.NOTIFICATION,
            subject=str(id),
            defaults={"action": HoldAction.CANCEL, "reason": reason, "created_by": by},
        )
    end_waiting(id, reason)


def end_waiting(id: UUID, reason: str) -> None:
    """End the notification's deliveries that no worker holds."""
    while _end_page(id, reason) == PAGE:
        pass


def _end_page(id: UUID, reason: str) -> int:
    lo, hi = range_of(id)
    with connection.cursor() as cursor:
        cursor.execute(
            _END,
            {"id": str(id), "lo": lo, "hi": hi, "page": PAGE, "reason": reason},
        )
        return int(cursor.fetchone()[0])


def has_open(id: UUID) -> bool:
    """Whether a delivery of the notification is still to be sent, or still to be laid out."""
    lo, hi = range_of(id)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT 1 FROM notifications_pending p JOIN notifications_delivery d ON d.id = p.id "
            "AND d.id BETWEEN %(lo)s AND %(hi)s AND d.notification_id = %(id)s WHERE p.id BETWEEN %(lo)s AND %(hi)s) "
            "OR EXISTS (SELECT 1 FROM notifications_expansion WHERE id = %(id)s)",
            {"id": str(id), "lo": lo, "hi": hi},
        )
        return bool(cursor.fetchone()[0])


def pause(scope: HoldScope | str, subject: str, *, by: str, note: str = "") -> Hold:
    """Hold everything of `subject` back, from the next claim on. Nothing ends but by its own expiry."""
    hold, _ = Hold.objects.get_or_create(
        scope=scope, subject=subject, defaults={"action": HoldAction.PAUSE, "created_by": by, "note": note}
    )
    return hold


def without_held(accounts: Sequence[Account]) -> list[Account]:
    """The accounts, those on hold as not active: route goes round them, and what only they serve waits."""
    held = set(Hold.objects.filter(scope=HoldScope.ACCOUNT).values_list("subject", flat=True))
    return [replace(account, is_active=False) if str(account.id) in held else account for account in accounts]


def lift(hold: Hold) -> None:
    """Let go again what a pause held, now rather than when each row is next looked at."""
    word = "provider_paused" if hold.scope == HoldScope.ACCOUNT else f"{hold.scope}_paused"
    Hold.objects.filter(pk=hold.pk).delete()
    last = UUID(int=0)
    while (woken := _wake(word, last)) and len(woken) == PAGE:
        last = max(woken)


def _wake(word: str, after: UUID) -> Sequence[UUID]:
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE notifications_pending "
            "SET wake_at = least(wake_at, now()), due_at = least(due_at, now()), waiting = '' "
            "WHERE id IN (SELECT id FROM notifications_pending WHERE id > %s AND waiting = %s AND lease_until IS NULL "
            "ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED) RETURNING id",
            [str(after), word, PAGE],
        )
        return [row[0] for row in cursor.fetchall()]


def sweep_cancels() -> int:
    """End what cancels have left, and drop those with nothing open any more, so that claims read few; returns how many.

    Left is what was locked or leased at the moment, or everything when the process died after its first commit.
    """
    done = []
    for hold in Hold.objects.filter(scope=HoldScope.NOTIFICATION, action=HoldAction.CANCEL):
        end_waiting(UUID(hold.subject), hold.reason)
        if not has_open(UUID(hold.subject)):
            done.append(hold.pk)
    Hold.objects.filter(pk__in=done).delete()
    return len(done)
