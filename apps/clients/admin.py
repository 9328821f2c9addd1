"""Screens: who may send, and their keys. A secret is shown when it is made, and never again."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models import Count, Max, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from unfold.widgets import UnfoldAdminRadioSelectWidget, UnfoldAdminSelectWidget

from apps.clients import services
from apps.clients.models import AppKey, AppSecret, Client, Scope
from apps.rest.admin import (
    Boxes,
    Dialog,
    Inline,
    Lines,
    NeverDeleted,
    ReadOnly,
    Screen,
    column,
    done,
    link,
    refused,
    show_once,
    verb,
)
from apps.rest.formats import time_zones
from notifier.message import Channel, Lane

SECRET_STATES = {"live": "success", "revoked": "danger", "expired": "warning"}


def _state(secret: AppSecret) -> str:
    if secret.revoked_at is not None:
        return "revoked"
    return "expired" if secret.expires_at is not None and secret.expires_at <= timezone.now() else "live"


class ClientForm(forms.ModelForm):  # type: ignore[type-arg] # has no type parameter at run time
    scopes = Boxes(Scope.values, help_text="What its keys may call.")
    channels = Boxes(Channel)
    lanes = Boxes(Lane, help_text="Lanes it may ask for beside those of its categories; normal is everybody's.")
    categories = Lines(max_each=100, help_text="Keys of the allowed categories, one a line; empty: all.")
    senders = Lines(
        max_each=320, help_text="Email senders and SMS sender ids that it may name, one a line; empty: the default."
    )
    ip_ranges = Lines(max_each=50, help_text="Its keys work from these only, one a line: 10.0.0.0/8; empty: anywhere.")
    time_zone = forms.ChoiceField(
        choices=lambda: [(name, name) for name in sorted(time_zones())], widget=UnfoldAdminSelectWidget, initial="UTC"
    )

    class Meta:
        model = Client
        fields = (
            "name",
            "is_active",
            "is_verified",
            "may_send_inline",
            "scopes",
            "channels",
            "lanes",
            "categories",
            "senders",
            "ip_ranges",
            "requests_per_minute",
            "recipients_per_day",
            "time_zone",
        )

    def clean_categories(self) -> list[str] | None:
        return self.cleaned_data["categories"] or None

    def clean_ip_ranges(self) -> list[str]:
        ranges: list[str] = self.cleaned_data["ip_ranges"]
        for text in ranges:
            try:
                ip_network(text, strict=False)
            except ValueError as error:
                raise ValidationError(f"{text} is no address or range; give for example 10.0.0.0/8") from error
        return ranges


class KeyInline(ReadOnly, Inline):
    model = AppKey
    fields = ("name", "mode", "is_active", "created_at", "last_used_at")
    readonly_fields = fields
    hide_title = True
    verbose_name_plural = "keys"

    @column("key")
    def name(self, key: AppKey) -> str:
        return link("clients_appkey", key.pk, key.app_key)


class MakeKey(Dialog):
    mode = forms.ChoiceField(
        choices=[("live", "live: may reach people"), ("test", "test: reaches sandbox accounts only")],
        initial="live",
        widget=UnfoldAdminRadioSelectWidget,
    )


@admin.register(Client)
class ClientAdmin(NeverDeleted, Screen):
    form = ClientForm
    list_display = ("name", "status", "is_verified", "live_keys", "last_used", "requests_per_minute", "lanes_granted")
    list_filter = ("is_active", "is_verified", "may_send_inline")
    search_fields = ("name", "keys__app_key")
    inlines = (KeyInline,)
    actions = None
    actions_detail = ("make_key",)
    fieldsets: ClassVar[Any] = (
        (None, {"fields": ("name", ("is_active", "is_verified", "may_send_inline"))}),
        ("What it may do", {"fields": (("scopes", "channels", "lanes"), ("categories", "senders", "ip_ranges"))}),
        ("How much", {"fields": (("requests_per_minute", "recipients_per_day", "time_zone"),)}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Client]:
        rows: QuerySet[Client] = super().get_queryset(request)
        return rows.annotate(
            live_keys=Count("keys", filter=Q(keys__is_active=True)), last_used=Max("keys__last_used_at")
        )

    @column("status", label={"active": "success", "off": "danger"})
    def status(self, client: Client) -> str:
        return "active" if client.is_active else "off"

    @column("keys")
    def live_keys(self, client: Any) -> int:
        return int(client.live_keys)

    @column("last used", ordering="last_used")
    def last_used(self, client: Any) -> Any:
        return client.last_used or "never"

    @column("lanes")
    def lanes_granted(self, client: Client) -> str:
        return ", ".join(client.lanes)

    @verb("Make a key", explains="Its secret is shown once, here.", form=MakeKey, icon="key")
    def make_key(self, request: HttpRequest, form: MakeKey, object_id: str) -> HttpResponse:
        client = self.get_object(request, object_id)
        if client is None:
            return done(request, "clients_client", None, "There is no such client.")
        app_key, secret = services.issue_key(client, form.cleaned_data["mode"])
        self.log_change(request, client, f"Made the key {app_key}.")
        return show_once(request, f"A key for {client.name}", [("appKey", app_key), ("appSecret", secret)])


class SecretInline(ReadOnly, Inline):
    model = AppSecret
    fields = ("ends_with", "state", "created_at", "expires_at", "revoked_at")
    readonly_fields = fields
    hide_title = True
    verbose_name_plural = "secrets"
    ordering = ("-pk",)

    @column("secret")
    def ends_with(self, secret: AppSecret) -> str:
        return link("clients_appsecret", secret.pk, f"…{secret.hint}")

    @column("state", label=SECRET_STATES)
    def state(self, secret: AppSecret) -> str:
        return _state(secret)

    def get_queryset(self, request: HttpRequest) -> QuerySet[AppSecret]:
        rows: QuerySet[AppSecret] = super().get_queryset(request)
        return rows.defer("secret")


@admin.register(AppKey)
class AppKeyAdmin(ReadOnly, Screen):
    list_display = ("app_key", "client", "mode", "status", "created_at", "last_used")
    list_filter = ("mode", "is_active")
    list_select_related = ("client",)
    search_fields = ("app_key", "client__name")
    fields = (("app_key", "client", "mode"), ("is_active", "created_at", "last_used_at"))
    inlines = (SecretInline,)
    actions_detail = ("add_secret", "revoke")

    @column("status", label={"active": "success", "revoked": "danger"})
    def status(self, key: AppKey) -> str:
        return "active" if key.is_active else "revoked"

    @column("last used", ordering="last_used_at")
    def last_used(self, key: AppKey) -> Any:
        return key.last_used_at or "never"

    @verb(
        "Add a secret",
        explains="A second one, to move over to. It is shown once, here; the first works until you revoke it.",
        permission="clients.change_appkey",
        icon="key",
    )
    def add_secret(self, request: HttpRequest, form: Dialog, object_id: str) -> HttpResponse:
        try:
            secret = services.add_secret(object_id)
        except (services.CredentialError, AppKey.DoesNotExist) as error:
            return refused(request, "clients_appkey", object_id, error)
        self.log_change(request, AppKey.objects.get(pk=object_id), f"Added the secret …{secret[-4:]}.")
        return show_once(request, "A further secret", [("appKey", object_id), ("appSecret", secret)])

    @verb(
        "Revoke this key",
        explains="Within two seconds it opens nothing any more, with any of its secrets. This cannot be undone.",
        permission="clients.change_appkey",
        icon="key_off",
        dangerous=True,
    )
    def revoke(self, request: HttpRequest, form: Dialog, object_id: str) -> HttpResponse:
        services.revoke_key(object_id)
        self.log_change(request, AppKey.objects.get(pk=object_id), "Revoked.")
        return done(request, "clients_appkey", object_id, "The key is revoked.")


@admin.register(AppSecret)
class AppSecretAdmin(ReadOnly, Screen):
    list_display = ("ends_with", "key", "client", "state", "created_at")
    list_filter = (("revoked_at", admin.EmptyFieldListFilter), "key__mode")
    list_select_related = ("key__client",)
    search_fields = ("key__app_key", "hint")
    fields = (("ends_with", "key", "state"), ("created_at", "expires_at", "revoked_at"))
    ordering = ("-pk",)
    actions_detail = ("revoke",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[AppSecret]:
        rows: QuerySet[AppSecret] = super().get_queryset(request)
        return rows.defer("secret")

    @column("secret")
    def ends_with(self, secret: AppSecret) -> str:
        return f"…{secret.hint}"

    @column("client")
    def client(self, secret: AppSecret) -> str:
        return secret.key.client.name

    @column("state", label=SECRET_STATES)
    def state(self, secret: AppSecret) -> str:
        return _state(secret)

    @verb(
        "Revoke this secret",
        explains="Within two seconds it opens nothing any more. The key's other secret goes on working.",
        permission="clients.change_appsecret",
        icon="key_off",
        dangerous=True,
    )
    def revoke(self, request: HttpRequest, form: Dialog, object_id: str) -> HttpResponse:
        services.revoke_secret(int(object_id))
        return done(request, "clients_appsecret", object_id, "The secret is revoked.")
