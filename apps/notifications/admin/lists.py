"""Lists of the partitioned tables: newest first, by the time in their ids."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.contrib.admin import SimpleListFilter
from django.db.models import QuerySet
from django.http import HttpRequest

from apps.clients.models import Client
from apps.notifications.models import Attempt, EventKey, Notification
from apps.notifications.services.keys import digest
from apps.rest.admin import MOST_FILTERED, LongScreen, ReadOnly, column
from notifier.ids import floor_id, time_of
from notifier.message import Mode

DAYS_OFFERED = 14

STATE_COLOURS = {
    "queued": "info",
    "retrying": "info",
    "sending": "info",
    "sent": "success",
    "delivered": "success",
    "opened": "success",
    "clicked": "success",
    "cancelled": "warning",
    "expired": "warning",
    "unknown": "warning",
    "failed": "danger",
    "undelivered": "danger",
    "dead": "danger",
}
"""`suppressed` has none: a person's wish is no failure, and must not look like one."""

OUTCOME_COLOURS = {
    "accepted": "success",
    "throttled": "info",
    "unavailable": "warning",
    "uncertain": "warning",
    "rejected": "danger",
    "gone": "danger",
    "misconfigured": "danger",
}


class When(SimpleListFilter):
    """A day, or the last hour: a range of ids."""

    title = "accepted"
    parameter_name = "when"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        today = _midnight()
        days = [today - timedelta(days=n) for n in range(DAYS_OFFERED)]
        return [("hour", "in the last hour"), *((f"{day:%Y-%m-%d}", f"{day:%a %d %b} (UTC)") for day in days)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        period = period_of(self.value())
        return queryset.filter(pk__gte=period[0], pk__lt=period[1]) if period else queryset


def period_of(text: str | None) -> tuple[UUID, UUID] | None:
    """The ids of that time: the first, and the first after it. None for no time."""
    if text == "hour":
        now = datetime.now(UTC)
        return floor_id(now - timedelta(hours=1)), floor_id(now + timedelta(hours=1))
    try:
        day = datetime.strptime(text or "", "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        return None
    return floor_id(day), floor_id(day + timedelta(days=1))


def _midnight() -> datetime:
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


class PartitionedScreen(ReadOnly, LongScreen):
    """Not sorted but by the id: any other order would read all that is kept (0.6 s a million rows, measured)."""

    sortable_by = ("at",)
    ordering = ("-id",)

    def newest(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Of the time asked for."""
        keys = self.model._default_manager.order_by("-pk").values_list("pk", flat=True)
        if period := period_of(request.GET.get(When.parameter_name)):
            keys = keys.filter(pk__gte=period[0], pk__lt=period[1])
        oldest = keys[MOST_FILTERED - 1 : MOST_FILTERED].first()
        return queryset if oldest is None else queryset.filter(pk__gte=oldest)

    @column("accepted", ordering="id")
    def at(self, row: Any) -> datetime:
        return time_of(row.pk)


def notifications_named(term: str) -> list[UUID]:
    """By the caller's event id or reference, of any client: both lie in indexes that begin with client and mode."""
    owners = [(client, mode.value) for client in Client.objects.values_list("pk", flat=True) for mode in Mode]
    events = [digest("event", str(client), mode, term) for client, mode in owners]
    found = list(EventKey.objects.filter(pk__in=events).values_list("notification_id", flat=True))
    referred = Notification.objects.filter(
        client_id__in={client for client, _ in owners}, mode__in=[mode.value for mode in Mode], reference=term
    )
    found += referred.order_by("-pk").values_list("pk", flat=True)[:1000]
    return found


def deliveries_sent_as(provider_ref: str) -> list[UUID]:
    """By the provider's own id of a message."""
    return list(Attempt.objects.filter(provider_ref=provider_ref).values_list("delivery_id", flat=True)[:100])
