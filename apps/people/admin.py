"""Screens: who receives, where, and what they allowed. What people themselves decided is changed through services."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar
from uuid import UUID

from django import forms
from django.contrib import admin
from django.contrib.admin.models import DELETION, LogEntry
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from apps.people import services
from apps.people.hashing import hash_address
from apps.people.models import Address, Category, Change, Device, Preference, Suppression, SuppressionReason, User
from apps.people.services.suppressions import PROTECTED
from apps.rest.admin import (
    Boxes,
    Dialog,
    LongScreen,
    NeverDeleted,
    ReadOnly,
    Reason,
    Screen,
    as_uuid,
    column,
    done,
    link,
    masked,
    refused,
    shown_address,
    staff_id,
    staff_name,
    verb,
)
from apps.rest.formats import normal_email, normal_phone
from apps.rest.problems import Problem
from notifier.message import Channel

STATES = {"active": "success", "retired": "warning"}
BY_OPERATOR = "by_operator"
LIFT_PROTECTED = "people.delete_suppression"
_BETWEEN_DIGITS = re.compile(r"[\s().-]")


def hashes_of(text: str) -> list[UUID]:
    """The keyed hashes of `text`, if it is an email address, or a phone number as people write it: +44 20 7946 0958."""
    email, phone = (normal_email(text), None) if "@" in text else (None, normal_phone(_BETWEEN_DIGITS.sub("", text)))
    found = [(Channel.EMAIL, email), (Channel.SMS, phone)]
    return [hash_address(channel, value) for channel, value in found if value]


class UserScreen(ReadOnly, LongScreen):
    """A list of people, found by any of their ids; the console adds their page."""

    list_display = ("external_id", "locale", "time_zone", "country", "allows", "created_at")
    list_filter = ("is_opted_out", ("erased_at", admin.EmptyFieldListFilter))
    search_help_text = "External id, email, phone in E.164, or the id of an address or device"
    fields: Any = (
        "external_id",
        "locale",
        "time_zone",
        "country",
        "attributes",
        "created_at",
        "updated_at",
        "erased_at",
    )

    def find(self, queryset: QuerySet[User], term: str) -> QuerySet[User]:
        if (id := as_uuid(term)) is not None:
            owners = [*Address.objects.filter(pk=id).values_list("user_id", flat=True)]
            owners += Device.objects.filter(pk=id).values_list("user_id", flat=True)
        else:
            owners = list(Address.objects.filter(value_hash__in=hashes_of(term)).values_list("user_id", flat=True))
        named = User.objects.filter(external_id=term).values_list("pk", flat=True)
        return queryset.filter(pk__in={*owners, *named})

    @column("allows", label={"by category": "success", "nothing": "warning", "erased": "danger"})
    def allows(self, user: User) -> str:
        if user.erased_at is not None:
            return "erased"
        return "nothing" if user.is_opted_out else "by category"


class Owned(ReadOnly, LongScreen):
    """What belongs to a person: their rows, when the search names a person."""

    list_select_related: Sequence[str] = ("user",)

    def find(self, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        if (id := as_uuid(term)) is not None and self.model._meta.pk.get_internal_type() == "UUIDField":
            return queryset.filter(pk=id)
        owner = User.objects.filter(external_id=term).values_list("pk", flat=True).first()
        return queryset.filter(user_id=owner) if owner is not None else queryset.none()

    @column("person")
    def person(self, row: Any) -> str:
        return link("people_user", row.user_id, row.user.external_id) if row.user_id else ""


@admin.register(Address)
class AddressAdmin(Owned):
    list_display = ("ending", "channel", "person", "state", "reason", "is_primary", "is_verified", "created_at")
    list_filter = ("channel", "status", "is_primary", "is_verified", "is_sandbox")
    search_help_text = "Email, phone in E.164, the address's id, or a person's external id"
    fields = (
        ("shown", "channel", "person"),
        ("is_primary", "is_verified", "is_sandbox"),
        ("state", "reason", "retired_at"),
        ("created_at", "updated_at"),
    )
    readonly_fields = ("shown", "person", "state")
    actions_detail = ("retire",)

    def get_form(self, request: HttpRequest, obj: Any = None, **options: Any) -> Any:
        if obj is not None:
            obj.shown = shown_address(request, obj.value)
        return super().get_form(request, obj, **options)

    def find(self, queryset: QuerySet[Address], term: str) -> QuerySet[Address]:
        hashes = hashes_of(term)
        return queryset.filter(value_hash__in=hashes) if hashes else super().find(queryset, term)

    @column("address")
    def ending(self, address: Address) -> str:
        return masked(address.value)

    @column("address")
    def shown(self, address: Any) -> str:
        return str(address.shown)

    @column("state", label=STATES)
    def state(self, address: Address) -> str:
        return address.status

    @verb(
        "Retire",
        explains="Nothing more goes to this address until the person gives it again.",
        permission="people.change_address",
        icon="block",
        dangerous=True,
    )
    def retire(self, request: HttpRequest, form: Dialog, object_id: str) -> HttpResponse:
        id = as_uuid(object_id)
        if id is not None and services.retire_address(id, BY_OPERATOR, source=staff_name(request)):
            self.log_change(request, Address.objects.get(pk=id), "Retired.")
            return done(request, "people_address", object_id, "The address is retired.")
        return refused(request, "people_address", object_id, ValueError("The address was retired already."))


@admin.register(Device)
class DeviceAdmin(Owned):
    list_display = ("ending", "platform", "provider", "person", "state", "reason", "app_version", "last_seen_at")
    list_filter = ("platform", "status", "is_sandbox")
    search_help_text = "The device's id, or a person's external id"
    fields = (
        ("ending", "platform", "person"),
        ("provider", "token_kind", "app_id"),
        ("apns_environment", "app_version", "locale"),
        ("state", "reason", "retired_at"),
        ("registered_at", "last_seen_at", "is_sandbox"),
    )
    readonly_fields = ("ending", "person", "state")
    actions_detail = ("retire",)

    @column("token")
    def ending(self, device: Device) -> str:
        return masked(device.token)

    @column("state", label=STATES)
    def state(self, device: Device) -> str:
        return device.status

    @verb(
        "Retire",
        explains="Nothing more goes to this device until its app registers again.",
        permission="people.change_device",
        icon="block",
        dangerous=True,
    )
    def retire(self, request: HttpRequest, form: Dialog, object_id: str) -> HttpResponse:
        id = as_uuid(object_id)
        if id is not None and services.retire_device(id, BY_OPERATOR, source=staff_name(request)):
            self.log_change(request, Device.objects.get(pk=id), "Retired.")
            return done(request, "people_device", object_id, "The device is retired.")
        return refused(request, "people_device", object_id, ValueError("The device was retired already."))


class CategoryForm(forms.ModelForm):  # type: ignore[type-arg] # has no type parameter at run time
    channels = Boxes(Channel)


@admin.register(Category)
class CategoryAdmin(NeverDeleted, Screen):
    form = CategoryForm
    list_display = ("key", "name", "lane", "is_mandatory", "is_marketing", "is_on_by_default", "goes_by")
    list_filter = ("lane", "is_mandatory", "is_marketing", "is_on_by_default")
    search_fields = ("key", "name")
    actions = None
    fieldsets: ClassVar[Any] = (
        (None, {"fields": (("key", "name"), "description")}),
        ("Who gets it", {"fields": (("is_mandatory", "is_marketing", "is_on_by_default"), "channels")}),
        ("How it is sent", {"fields": (("lane", "expires_after_s", "on_uncertain"),)}),
    )

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return ("key",) if obj is not None else ()  # callers, templates and people's choices name it

    @column("channels")
    def goes_by(self, category: Category) -> str:
        return ", ".join(category.channels)


@admin.register(Preference)
class PreferenceAdmin(Owned):
    list_display = ("person", "category", "channel", "choice", "source", "updated_at")
    list_display_links = ("category",)
    list_filter = ("channel", "is_on", "category")
    list_select_related = ("user", "category")
    search_help_text = "A person's external id"
    fields = ("person", "category", "channel", "choice", "source", "updated_at")
    readonly_fields = ("person", "choice")

    @column("choice", label={"on": "success", "off": "warning"})
    def choice(self, preference: Preference) -> str:
        return "on" if preference.is_on else "off"


class SuppressionForm(forms.ModelForm):  # type: ignore[type-arg] # has no type parameter at run time
    """By hand, so the reason is always that."""

    channel = forms.ChoiceField(
        choices=[(c.value, c.value) for c in (Channel.EMAIL, Channel.SMS)], widget=UnfoldAdminSelectWidget
    )
    address = forms.CharField(max_length=320, widget=UnfoldAdminTextInputWidget)

    class Meta:
        model = Suppression
        fields = ("channel", "address", "category", "note", "expires_at")

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        text = cleaned.get("address", "")
        is_email = cleaned.get("channel") == Channel.EMAIL
        normal = normal_email(text) if is_email else normal_phone(_BETWEEN_DIGITS.sub("", text))
        if normal is None:
            self.add_error("address", ValidationError("Give an email address, or a phone number such as +447700900123"))
        cleaned["address"] = normal
        if cleaned.get("expires_at") and cleaned["expires_at"] <= timezone.now():
            self.add_error("expires_at", ValidationError("That is over already; leave it empty for no end"))
        return cleaned

    def validate_unique(self) -> None:
        """An entry that is there already takes the new note: the service decides, not the index."""

    def validate_constraints(self) -> None:
        """The same."""


@admin.register(Suppression)
class SuppressionAdmin(LongScreen):
    """Made by hand here, or by bounces, complaints and unsubscribing elsewhere; lifted, never edited."""

    form = SuppressionForm
    list_display = ("ending", "channel", "why", "category", "source", "expires_at", "created_at")
    list_filter = ("channel", "reason", "category")
    list_select_related = ("category",)
    search_help_text = "Email, phone in E.164, or the entry's id"
    actions = None
    actions_detail = ("lift",)

    def find(self, queryset: QuerySet[Suppression], term: str) -> QuerySet[Suppression]:
        hashes = hashes_of(term)
        return queryset.filter(address_hash__in=hashes) if hashes else super().find(queryset, term)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_fields(self, request: HttpRequest, obj: Any = None) -> tuple[Any, ...]:
        if obj is None:
            return ("channel", "address", "category", "note", "expires_at")
        return (("shown", "channel"), ("why", "category"), "note", ("source", "created_at", "expires_at"))

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        if obj is None:
            return ()
        obj.shown = shown_address(request, obj.address)
        return ("shown", "why")

    def save_model(self, request: HttpRequest, obj: Suppression, form: Any, change: bool) -> None:
        values = form.cleaned_data
        stored, _ = services.suppress(
            values["channel"],
            values["address"],
            SuppressionReason.MANUAL,
            values["category"],
            source=staff_name(request),
            note=values["note"],
            expires_at=values["expires_at"],
        )
        obj.pk, obj.address, obj.address_hash = stored.pk, "", stored.address_hash

    @column("address")
    def ending(self, entry: Suppression) -> str:
        return masked(entry.address) or "a device, or erased"

    @column("address")
    def shown(self, entry: Any) -> str:
        return entry.shown or "a device, or erased"

    @column("reason", label={word: "danger" for word in map(str, PROTECTED)} | {"manual": "info"})
    def why(self, entry: Suppression) -> str:
        return entry.reason

    @verb(
        "Lift",
        explains="The address may be written to again, from the next message on.",
        form=Reason,
        permission=LIFT_PROTECTED,
        icon="undo",
        dangerous=True,
    )
    def lift(self, request: HttpRequest, form: Reason, object_id: str) -> HttpResponse:
        entry = self.get_object(request, object_id)
        if entry is None:
            return done(request, "people_suppression", None, "It was lifted already.")
        try:
            services.lift_suppression(entry.pk, source=staff_name(request), may_lift_protected=True)
        except Problem as problem:
            return refused(request, "people_suppression", None, problem)
        why = f"Lifted: {form.cleaned_data['reason']}"
        LogEntry.objects.log_actions(staff_id(request), [entry], DELETION, change_message=why, single_object=True)
        return done(request, "people_suppression", None, why)


@admin.register(Change)
class ChangeAdmin(Owned):
    list_display = ("at", "kind", "person", "subject", "source")
    list_filter = ()
    search_help_text = "A person's external id"
    fields = ("at", "kind", "person", "subject", "source", "data")
    readonly_fields = ("person",)
