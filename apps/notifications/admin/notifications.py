"""One accepted request: what became of it, and how to stop it."""

from __future__ import annotations

from collections import Counter
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse

from apps.notifications.admin.lists import STATE_COLOURS, PartitionedScreen, When, notifications_named
from apps.notifications.models import Content, Delivery, Hold, HoldAction, HoldScope, Notification
from apps.notifications.services import holds
from apps.rest.admin import MAY_SEE_ADDRESSES, Dialog, Reason, as_uuid, column, done, link, refused, staff_name, verb
from apps.rest.problems import Problem
from notifier.ids import range_of
from notifier.lifecycle import State

DELIVERIES_SHOWN = 50
DELIVERIES_COUNTED = 10_000  # some 10 ms; a campaign of a million is read in its tallies
STATUS_COLOURS = {"accepted": "info", "scheduled": "info", "in_progress": "info", "completed": "success"}
MAY_STOP = "notifications.change_notification"


@admin.register(Notification)
class NotificationAdmin(PartitionedScreen):
    list_display = ("at", "says", "status_now", "recipients", "category", "client", "reference", "lane", "mode")
    list_filter = ("status", "mode", "lane", "category", "client", When)
    list_select_related = ("client", "category", "template_version__template")
    search_help_text = "Id of the notification or of one of its deliveries, event_id, or reference"
    fields = (
        ("id", "client", "mode"),
        ("says", "category", "lane"),
        ("event_id", "reference", "request_id"),
        ("due_at", "expires_at", "completed_at"),
        "metadata",
    )
    readonly_fields = ("id", "client", "category", "says")
    change_form_outer_before_template = "console/notification.html"
    actions_detail = ("pause", "resume", "cancel")

    def find(self, queryset: QuerySet[Notification], term: str) -> QuerySet[Notification]:
        if (id := as_uuid(term)) is not None:
            first, last = range_of(id)  # a delivery's id begins like its notification's
            return queryset.filter(pk__gte=first, pk__lte=last)
        return queryset.filter(pk__in=notifications_named(term))

    @column("says")
    def says(self, notification: Notification) -> str:
        return str(notification.template_version) if notification.template_version else "its own content"

    @column("status", label=STATUS_COLOURS)
    def status_now(self, notification: Notification) -> str:
        return notification.status

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        id = as_uuid(object_id)
        shown = _deliveries_of(id) if id else {}
        shown["may_see_content"] = request.user.has_perm(MAY_SEE_ADDRESSES)
        answer: HttpResponse = super().change_view(request, object_id, form_url, {**shown, **(extra_context or {})})
        return answer

    # --- verbs --------------------------------------------------------------------------------------------------

    @verb(
        "Pause",
        explains="What is not sent yet waits until somebody lets it go on, or it expires.",
        form=Reason,
        permission=MAY_STOP,
        icon="pause",
    )
    def pause(self, request: HttpRequest, form: Reason, object_id: str) -> HttpResponse:
        found = self.get_object(request, object_id)
        if found is None:
            return done(request, "notifications_notification", None, "There is no such notification.")
        why = form.cleaned_data["reason"]
        hold = holds.pause(HoldScope.NOTIFICATION, str(found.pk), by=staff_name(request), note=why)
        if hold.action != HoldAction.PAUSE:
            return refused(request, "notifications_notification", object_id, ValueError("It is being cancelled."))
        self.log_change(request, found, f"Paused: {why}")
        return done(request, "notifications_notification", object_id, "Paused.")

    @verb("Go on", explains="What waits because of the pause is sent now.", permission=MAY_STOP, icon="play_arrow")
    def resume(self, request: HttpRequest, form: Dialog, object_id: str) -> HttpResponse:
        found = self.get_object(request, object_id)
        hold = _hold_on(found.pk) if found is not None else None
        if hold is None or hold.action != HoldAction.PAUSE:
            return refused(request, "notifications_notification", object_id, ValueError("It is not paused."))
        holds.lift(hold)
        self.log_change(request, found, "Let go on.")
        return done(request, "notifications_notification", object_id, "It goes on.")

    @verb(
        "Cancel",
        explains="What is not sent yet ends as cancelled. This cannot be undone.",
        form=Reason,
        permission=MAY_STOP,
        icon="cancel",
        dangerous=True,
    )
    def cancel(self, request: HttpRequest, form: Reason, object_id: str) -> HttpResponse:
        found = self.get_object(request, object_id)
        if found is None:
            return done(request, "notifications_notification", None, "There is no such notification.")
        try:
            holds.cancel_notification(
                found.pk, client_id=found.client_id, mode=found.mode, by=staff_name(request), reason="by_operator"
            )
        except Problem as problem:
            return refused(request, "notifications_notification", object_id, problem)
        self.log_change(request, found, f"Cancelled: {form.cleaned_data['reason']}")
        return done(request, "notifications_notification", object_id, "Cancelled.")


def _hold_on(id: UUID) -> Hold | None:
    return Hold.objects.filter(scope=HoldScope.NOTIFICATION, subject=str(id)).first()


def _deliveries_of(id: UUID) -> dict[str, Any]:
    """The first deliveries, and how many there are in each state, counted no further than `DELIVERIES_COUNTED`."""
    first, last = range_of(id)
    rows = Delivery.objects.filter(pk__gte=first, pk__lte=last, notification_id=id)
    states = Counter(rows.values_list("state", flat=True)[: DELIVERIES_COUNTED + 1])
    shown = rows.select_related("user", "account").order_by("pk")[:DELIVERIES_SHOWN]
    return {
        "hold": _hold_on(id),
        "counts": [(state, states[state], STATE_COLOURS.get(state)) for state in map(str, State) if states[state]],
        "counted": min(states.total(), DELIVERIES_COUNTED),
        "is_cut": states.total() > DELIVERIES_COUNTED,
        "deliveries": [
            {
                "row": row,
                "colour": STATE_COLOURS.get(row.state),
                "person": link("people_user", row.user_id, row.user.external_id) if row.user else "",
            }
            for row in shown
        ],
        "deliveries_shown": DELIVERIES_SHOWN,
    }


@admin.register(Content)
class ContentAdmin(PartitionedScreen):
    """What was asked for, with everything personal in it: for those who may see addresses."""

    list_display = ("at", "id")
    search_help_text = "Id of the notification"
    fields = ("id", "recipients", "data", "options", "inline")

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        may_view: bool = super().has_view_permission(request, obj)
        return may_view and request.user.has_perm(MAY_SEE_ADDRESSES)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Content]:
        rows: QuerySet[Content] = super().get_queryset(request)
        return rows if request.resolver_match and request.resolver_match.kwargs else rows.only("id")
