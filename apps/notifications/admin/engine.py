"""The engine's own rows, for whoever looks for a fault: what was tried, what came back, what waits."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from django.contrib import admin
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpRequest
from django.utils import timezone

from apps.clients.models import Client
from apps.notifications.admin.lists import OUTCOME_COLOURS, PartitionedScreen, When, deliveries_sent_as
from apps.notifications.models import (
    Attempt,
    BrokerHealth,
    Event,
    EventKey,
    Expansion,
    Heartbeat,
    IdempotencyKey,
    Pending,
    ReceiptInbox,
    Tally,
)
from apps.rest.admin import LongScreen, ReadOnly, Screen, as_uuid, column, link
from notifier.ids import range_of

SILENT_AFTER_S = 90


class OfDelivery(PartitionedScreen):
    """Rows found by their delivery; a notification's id finds those of all its deliveries."""

    @column("delivery")
    def delivery_link(self, row: Any) -> str:
        return link("notifications_delivery", row.delivery_id, row.delivery_id)

    @column("delivery")
    def delivery_end(self, row: Any) -> str:
        """In a list, where ids of one request begin alike."""
        return link("notifications_delivery", row.delivery_id, f"…{str(row.delivery_id)[-12:]}")

    def of_id(self, queryset: QuerySet[Any], term: str) -> QuerySet[Any] | None:
        id = as_uuid(term)
        if id is None:
            return None
        first, last = range_of(id)
        return queryset.filter(pk__gte=first, pk__lte=last)


@admin.register(Attempt)
class AttemptAdmin(OfDelivery):
    list_display = ("at", "how", "said", "account", "provider_ref", "delivery_end", "took")
    list_filter = ("outcome", "account", "is_late", When)
    list_select_related = ("account",)
    search_help_text = "Id of a delivery or notification, or the provider's reference"
    fields = (
        ("id", "claim_no", "account"),
        "delivery_link",
        ("how", "scope", "is_late"),
        ("provider_ref", "provider_code", "http_status"),
        "detail",
        ("started_at", "ended_at"),
    )
    readonly_fields = ("id", "delivery_link", "how")

    def find(self, queryset: QuerySet[Attempt], term: str) -> QuerySet[Attempt]:
        found = self.of_id(queryset, term)
        return found if found is not None else queryset.filter(provider_ref=term)

    @column("outcome", label=OUTCOME_COLOURS)
    def how(self, attempt: Attempt) -> str:
        return attempt.outcome

    @column("provider said")
    def said(self, attempt: Attempt) -> str:
        return f"{attempt.http_status or ''} {attempt.provider_code}".strip()

    @column("took")
    def took(self, attempt: Attempt) -> str:
        if attempt.started_at is None or attempt.ended_at is None:
            return ""
        return f"{(attempt.ended_at - attempt.started_at) / timedelta(milliseconds=1):.0f} ms"


@admin.register(Event)
class EventAdmin(OfDelivery):
    list_display = ("at", "kind", "when", "source", "is_machine", "detail", "delivery_end")
    list_filter = ("is_machine", When)
    search_help_text = "Id of a delivery or notification, or the provider's reference"
    fields = ("id", "delivery_link", ("kind", "when"), ("source", "is_machine"), "detail")
    readonly_fields = ("id", "delivery_link", "when")

    def find(self, queryset: QuerySet[Event], term: str) -> QuerySet[Event]:
        found = self.of_id(queryset, term)
        return found if found is not None else queryset.filter(delivery_id__in=deliveries_sent_as(term))

    @column("happened")
    def when(self, event: Event) -> datetime:
        return event.at


class WithClient(ReadOnly, LongScreen):
    """Rows that know their client's number only."""

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows: QuerySet[Any] = super().get_queryset(request)
        names = Client.objects.filter(pk=OuterRef("client_id")).values("name")
        named: QuerySet[Any] = rows.annotate(client_name=Subquery(names))
        return named

    @column("id")
    def short_id(self, row: Any) -> str:
        """In a list, where ids of one request begin alike."""
        return f"…{str(row.pk)[-12:]}"

    @column("client")
    def client(self, row: Any) -> str:
        return link("clients_client", row.client_id, row.client_name) if row.client_name else str(row.client_id)


@admin.register(Pending)
class PendingAdmin(WithClient):
    list_display = ("short_id", "channel", "lane", "stands", "client", "due_at", "wake_at", "tries", "crashes")
    list_filter = ("channel", "lane", "waiting")
    search_help_text = "Id of a delivery or notification"
    fields = (
        ("delivery_link", "client"),
        ("channel", "lane", "stands"),
        ("due_at", "wake_at", "lease_until"),
        ("claim_no", "tries", "crashes"),
    )
    readonly_fields = ("delivery_link", "client", "stands")

    def find(self, queryset: QuerySet[Pending], term: str) -> QuerySet[Pending]:
        id = as_uuid(term)
        if id is None:
            return queryset.none()
        first, last = range_of(id)
        return queryset.filter(pk__gte=first, pk__lte=last)

    @column("delivery")
    def delivery_link(self, row: Pending) -> str:
        return link("notifications_delivery", row.pk, row.pk)

    @column("stands", label={"sending": "info", "ready": "success"})
    def stands(self, row: Pending) -> str:
        return "sending" if row.lease_until is not None else row.waiting or "ready"


@admin.register(Expansion)
class ExpansionAdmin(WithClient):
    list_display = ("short_id", "client", "position", "due_at", "wake_at")
    search_help_text = "Id of the notification"
    fields = (("notification_link", "client"), "position", ("due_at", "wake_at"))
    readonly_fields = ("notification_link", "client")

    @column("notification")
    def notification_link(self, row: Expansion) -> str:
        return link("notifications_notification", row.pk, row.pk)


@admin.register(Tally)
class TallyAdmin(WithClient):
    list_display = ("hour", "client", "channel", "lane", "mode", "moved", "n")
    search_help_text = "Name of a client"
    fields = ("hour", "client", ("channel", "lane", "mode"), ("moved", "n"), ("category_id", "account_id"))
    readonly_fields = ("client", "moved", "category_id", "account_id")

    def find(self, queryset: QuerySet[Tally], term: str) -> QuerySet[Tally]:
        return queryset.filter(client_id__in=Client.objects.filter(name__icontains=term).values("pk"))

    @column("moved")
    def moved(self, tally: Tally) -> str:
        return f"{tally.from_state or 'accepted'} → {tally.to_state}"


@admin.register(ReceiptInbox)
class ReceiptInboxAdmin(ReadOnly, LongScreen):
    list_display = ("received_at", "account", "provider_event_id", "what", "became", "looks", "wake_at")
    list_filter = ("account", ("wake_at", admin.EmptyFieldListFilter))
    list_select_related = ("account",)
    search_help_text = "The provider's id of the event"
    fields = (
        ("account", "received_at"),
        "provider_event_id",
        ("what", "delivery_link"),
        ("became", "looks", "wake_at"),
        "said",
    )
    readonly_fields = ("what", "delivery_link", "became", "said")

    def find(self, queryset: QuerySet[ReceiptInbox], term: str) -> QuerySet[ReceiptInbox]:
        return queryset.filter(account_id__isnull=False, provider_event_id=term)

    @column("what")
    def what(self, inbox: ReceiptInbox) -> str:
        return str(_of(inbox).get("kind", ""))

    @column("became", label={"": "info"})
    def became(self, inbox: ReceiptInbox) -> str:
        return inbox.outcome or ("waits" if inbox.wake_at else "settled")

    @column("delivery")
    def delivery_link(self, inbox: ReceiptInbox) -> str:
        id = _of(inbox).get("delivery_id")
        return link("notifications_delivery", id, id) if id else ""

    @column("said")
    def said(self, inbox: ReceiptInbox) -> str:
        """Without the address, and without what the provider sent beside, which may hold anything."""
        shown = ("provider_ref", "reason", "code", "detail", "at", "is_machine")
        return ", ".join(f"{name}: {value}" for name in shown if (value := _of(inbox).get(name)))


def _of(inbox: ReceiptInbox) -> Mapping[str, Any]:
    return inbox.receipt if isinstance(inbox.receipt, Mapping) else {}


@admin.register(IdempotencyKey)
class IdempotencyKeyAdmin(ReadOnly, LongScreen):
    """The key itself is kept nowhere: its digest is the id."""

    list_display = ("id", "status", "location", "created_at")
    fields = ("id", "status", "location", "created_at", "fingerprint", "answer")


@admin.register(EventKey)
class EventKeyAdmin(ReadOnly, LongScreen):
    list_display = ("id", "notification_link", "created_at")
    fields = ("id", "notification_link", "created_at", "fingerprint")
    readonly_fields = ("notification_link",)
    search_help_text = "The key's digest"

    @column("notification")
    def notification_link(self, key: EventKey) -> str:
        return link("notifications_notification", key.notification_id, key.notification_id)


@admin.register(Heartbeat)
class HeartbeatAdmin(ReadOnly, Screen):
    list_display = ("name", "kind", "lives", "queues", "at")
    list_filter = ()
    search_fields = ("name", "queues")
    ordering = ("kind", "name")
    fields = ("name", "kind", "queues", "at")

    @column("lives", label={"yes": "success", "silent": "danger"})
    def lives(self, heartbeat: Heartbeat) -> str:
        return "silent" if timezone.now() - heartbeat.at > timedelta(seconds=SILENT_AFTER_S) else "yes"


@admin.register(BrokerHealth)
class BrokerHealthAdmin(ReadOnly, Screen):
    list_display = ("stands", "checked_at")
    fields = ("is_up", "checked_at")

    @column("broker", label={"up": "success", "away": "danger"})
    def stands(self, health: BrokerHealth) -> str:
        return "up" if health.is_up else "away"
