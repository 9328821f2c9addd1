"""One message to one address: why it was sent, or why not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse

from apps.notifications.admin.lists import (
    OUTCOME_COLOURS,
    STATE_COLOURS,
    PartitionedScreen,
    When,
    deliveries_sent_as,
    notifications_named,
)
from apps.notifications.models import Delivery
from apps.notifications.selectors.decisions import decisions, gate_names
from apps.notifications.selectors.deliveries import one_delivery
from apps.notifications.selectors.walk import Owner
from apps.people.admin import hashes_of
from apps.people.models import Address, Device, User
from apps.rest.admin import as_uuid, column, link, masked, shown_address
from apps.rest.problems import Problem
from notifier.ids import range_of

GATES: dict[str, str] = {
    "exists": "There is such a person",
    "mode": "The client may send, and reach them",
    "hold": "Nothing is paused or cancelled",
    "expiry": "It is not too late",
    "preference": "The person allows it",
    "suppression": "The address is not suppressed",
    "quiet_hours": "It is not their night",
    "address": "There is an address to send to",
    "provider": "A provider can take it",
    "frequency_cap": "They did not get too many",
}
"""What each gate asks. One that is new here is shown under its own name."""

VERDICTS = {"pass": "success", "stop": "danger", "wait": "info", "not asked": ""}


@admin.register(Delivery)
class DeliveryAdmin(PartitionedScreen):
    list_display = ("at", "channel", "state_now", "reason", "person", "category", "client", "account", "mode")
    list_filter = ("state", "channel", "mode", "lane", "category", "client", "account", When)
    list_select_related = ("user", "category", "client", "account")
    search_help_text = (
        "Id of the delivery or its notification, event_id, reference, external id of a person, their address, "
        "or the provider's reference"
    )
    fields = (
        ("id", "client", "mode"),
        ("category", "lane", "locale"),
        ("expires_at", "ended_at", "claim_no"),
        ("sent_at", "delivered_at"),
        ("opened_at", "clicked_at"),
    )
    readonly_fields = ("id", "client", "category")
    change_form_outer_before_template = "console/delivery.html"

    def find(self, queryset: QuerySet[Delivery], term: str) -> QuerySet[Delivery]:
        if (id := as_uuid(term)) is not None:
            named = Q(pk=id) | _of_notification(id)
            for model in (Address, Device):
                owner = model._default_manager.filter(pk=id).values_list("user_id", flat=True).first()
                if owner is not None:
                    field = "address_id" if model is Address else "device_id"
                    named |= Q(user_id=owner, **{field: id})
            return queryset.filter(named)
        if hashes := hashes_of(term):
            owners = list(Address.objects.filter(value_hash__in=hashes).values_list("user_id", flat=True))
            return queryset.filter(user_id__in=owners, address_hash__in=hashes)
        found = [Q(pk__in=ids)] if (ids := deliveries_sent_as(term)) else []
        found += map(_of_notification, notifications_named(term))
        owner = User.objects.filter(external_id=term).values_list("pk", flat=True).first()
        if owner is not None:
            found.append(Q(user_id=owner))
        return queryset.filter(reduce(or_, found)) if found else queryset.none()

    @column("state", label=STATE_COLOURS)
    def state_now(self, delivery: Delivery) -> str:
        return delivery.state

    @column("person")
    def person(self, delivery: Delivery) -> str:
        return link("people_user", delivery.user_id, delivery.user.external_id) if delivery.user else ""

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        context = {**_explained(request, object_id), **(extra_context or {})}
        answer: HttpResponse = super().change_view(request, object_id, form_url, context)
        return answer


def _of_notification(id: UUID) -> Q:
    """Its deliveries are one short range of the key; the bound lets PostgreSQL open one partition."""
    first, last = range_of(id)
    return Q(pk__gte=first, pk__lte=last, notification_id=id)


def _explained(request: HttpRequest, object_id: str) -> dict[str, Any]:
    """What the page shows above the row's fields; nothing for an id that names nothing."""
    id = as_uuid(object_id)
    owner = Delivery.objects.filter(pk=id).values_list("client_id", "mode").first() if id else None
    if id is None or owner is None:
        return {}
    try:
        delivery = one_delivery(Owner(*owner), id)
    except Problem:
        return {}
    for attempt in delivery["attempts"]:
        attempt["colour"] = OUTCOME_COLOURS.get(attempt["outcome"], "")
    delivery["address_shown"] = _address_shown(request, delivery)
    return {"delivery": delivery, "gates": explained(delivery), "state_colour": STATE_COLOURS.get(delivery["state"])}


def explained(delivery: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every gate in order: its question, the verdict, and the value it saw. `delivery`: of `one_delivery`."""
    said = decisions(delivery)
    answered = {entry["gate"]: entry for entry in said}
    rows = []
    for name in [*gate_names(), *(entry["gate"] for entry in said if entry["gate"] not in gate_names())]:
        entry = answered.get(name, {"result": "not asked"})
        rows.append(
            {
                "name": name,
                "question": GATES.get(name, name),
                "verdict": entry["result"],
                "colour": VERDICTS[entry["result"]],
                "code": entry.get("code", ""),
                "value": _in_words(entry.get("value")),
            }
        )
    return rows


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_in_words(inner)}" for key, inner in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_in_words, value))
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _address_shown(request: HttpRequest, delivery: Mapping[str, Any]) -> str:
    """A person's address; else what the caller gave itself. A token is nobody's to see."""
    entry = delivery["entry"]
    if token := delivery["token_end"] or entry.get("device", {}).get("token"):
        return masked(token)
    return shown_address(request, delivery["address"] or entry.get("email") or entry.get("phone") or "")
