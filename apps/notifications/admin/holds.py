"""What is paused, and letting it go on."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models import Case, CharField, Model, OuterRef, QuerySet, Subquery, When
from django.db.models.functions import Cast, Coalesce
from django.http import HttpRequest, HttpResponse
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from apps.clients.models import Client
from apps.notifications.models import Hold, HoldAction, HoldScope, Notification
from apps.notifications.services import holds
from apps.people.models import Category
from apps.providers.models import ProviderAccount
from apps.rest.admin import Dialog, Screen, column, done, refused, staff_name, verb
from notifier.message import Channel

NAMED: tuple[tuple[HoldScope, type[Model], str], ...] = (
    (HoldScope.ACCOUNT, ProviderAccount, "name"),
    (HoldScope.CLIENT, Client, "name"),
    (HoldScope.CATEGORY, Category, "key"),
)
"""What a hold names by its id, and what people call that."""


def _keyed(model: type[Model]) -> QuerySet[Any]:
    """Its rows with `subject`, the id as a hold writes it."""
    return model._default_manager.annotate(subject=Cast("pk", CharField()))


def _subjects() -> list[Any]:
    """Everything that can be paused by its name, as grouped choices: value `scope:subject`."""
    channels = [(f"{HoldScope.CHANNEL}:{channel}", channel.value) for channel in Channel]
    groups = [(HoldScope.CHANNEL.label, channels)]
    for scope, model, name in NAMED:
        rows = model._default_manager.values_list("pk", name)
        groups.append((scope.label, [(f"{scope}:{key}", text) for key, text in rows]))
    return [("", "Choose, or give an id below"), *groups]


class HoldForm(forms.ModelForm):  # type: ignore[type-arg] # has no type parameter at run time
    what = forms.ChoiceField(choices=_subjects, required=False, widget=UnfoldAdminSelectWidget)
    notification = forms.UUIDField(required=False, widget=UnfoldAdminTextInputWidget, help_text="Or one notification.")
    note = forms.CharField(
        max_length=500, widget=UnfoldAdminTextInputWidget, label="Reason", help_text="Others will read it."
    )

    class Meta:
        model = Hold
        fields = ("note",)

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        what, notification = cleaned.get("what"), cleaned.get("notification")
        if bool(what) == bool(notification):
            raise ValidationError("Give one thing: a name from the list, or the id of a notification.")
        if notification and not Notification.objects.filter(pk=notification).exists():
            raise ValidationError("There is no such notification.")
        scope, _, subject = (what or f"{HoldScope.NOTIFICATION}:{notification}").partition(":")
        if Hold.objects.filter(scope=scope, subject=subject).exists():
            raise ValidationError("It is paused, or being cancelled, already.")
        cleaned["scope"], cleaned["subject"] = scope, subject
        return cleaned


@admin.register(Hold)
class HoldAdmin(Screen):
    """Made and lifted; never edited, so that the reason stays what it was."""

    form = HoldForm
    list_display = ("subject_name", "scope", "kind", "note", "created_by", "created_at")
    list_filter = ("scope", "action")
    search_fields = ("subject", "note")
    ordering = ("-created_at",)
    actions = None
    actions_detail = ("lift",)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_fields(self, request: HttpRequest, obj: Any = None) -> tuple[Any, ...]:
        if obj is None:
            return ("what", "notification", "note")
        return (("subject_name", "scope", "kind"), "note", ("created_by", "created_at"))

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return ("subject_name", "kind") if obj is not None else ()

    def get_queryset(self, request: HttpRequest) -> QuerySet[Hold]:
        rows: QuerySet[Hold] = super().get_queryset(request)
        names = [
            When(scope=scope, then=Subquery(_keyed(model).filter(subject=OuterRef("subject")).values(name)))
            for scope, model, name in NAMED
        ]
        return rows.annotate(name=Coalesce(Case(*names), "subject"))

    @column("what")
    def subject_name(self, hold: Any) -> str:
        return str(hold.name)

    @column("kind", label={"pause": "warning", "cancel": "danger"})
    def kind(self, hold: Hold) -> str:
        return hold.action

    def save_model(self, request: HttpRequest, obj: Hold, form: Any, change: bool) -> None:
        values = form.cleaned_data
        made = holds.pause(values["scope"], values["subject"], by=staff_name(request), note=values["note"])
        obj.pk, obj.scope, obj.subject = made.pk, made.scope, made.subject

    @verb("Let go on", explains="What waits is sent now.", permission="notifications.delete_hold", icon="play_arrow")
    def lift(self, request: HttpRequest, form: Dialog, object_id: str) -> HttpResponse:
        hold = Hold.objects.filter(pk=object_id).first()
        if hold is None:
            return done(request, "notifications_hold", None, "It goes on already.")
        if hold.action != HoldAction.PAUSE:
            return refused(request, "notifications_hold", object_id, ValueError("What is cancelled stays so."))
        self.log_deletions(request, [hold])
        holds.lift(hold)
        return done(request, "notifications_hold", None, f"The {hold.scope} goes on.")
