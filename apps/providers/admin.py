"""Screens: through whom. Each kind's own settings, checked before they are saved; secrets go in and never come out."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.html import escape
from unfold.widgets import (
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanSwitchWidget,
)

from apps.providers import services
from apps.providers.models import AccountStatus, ProviderAccount
from apps.rest.admin import Boxes, Dialog, Lines, NeverDeleted, Reason, Screen, column, done, verb
from notifier.message import Platform
from notifier.providers.base import ConfigurationError
from notifier.providers.registry import PROVIDERS, provider_class
from notifier.stages.breaker import Sickness

PREFIX = "setting_"  # so that no setting of a provider meets a field of the row
FORGET = "forget_"
FROM_ENVIRONMENT = "Or env:NAME, to have it read from an environment variable."


class SecretInput(UnfoldAdminTextareaWidget):  # type: ignore[misc] # the theme has no types
    """Takes a secret, of one line or of many, and never writes one into a page, not even after a mistake."""

    def __init__(self, *, is_stored: bool) -> None:
        words = "Stored. Leave empty to keep it." if is_stored else "Not set."
        super().__init__(attrs={"rows": 2, "placeholder": words, "autocomplete": "off", "spellcheck": "false"})
        self.attrs["class"] += " screen-secret"

    def format_value(self, value: Any) -> str:
        return ""


class AccountForm(forms.ModelForm):  # type: ignore[type-arg] # has no type parameter at run time
    """The row's fields, and one for each setting of the account's kind (made by `form_for`)."""

    kind: ClassVar[str] = ""
    countries = Lines(max_each=2, help_text="Of phone numbers: two-letter codes, one a line; empty: all.")
    platforms = Boxes(Platform, required=False, help_text="None: all that it serves.")

    class Meta:
        model = ProviderAccount
        fields = ("name", "weight", "is_sandbox", "platforms", "countries")

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or {}
        if self.errors:
            return cleaned
        account = self.instance
        account.kind = self.kind
        account.settings, account.secrets = self._settings(cleaned, account)
        for name in ("name", "platforms", "countries"):
            setattr(account, name, cleaned.get(name, getattr(account, name)))
        try:
            services.check(account)
        except ConfigurationError as error:
            name, _, text = str(error).partition(": ")
            is_field = PREFIX + name in self.fields
            self.add_error(PREFIX + name if is_field else None, ValidationError(text if is_field else str(error)))
        return cleaned

    def clean_countries(self) -> list[str]:
        return [code.upper() for code in self.cleaned_data["countries"]]

    def _settings(self, cleaned: dict[str, Any], account: ProviderAccount) -> tuple[dict[str, Any], dict[str, Any]]:
        """What is stored: settings that differ from their default, and secrets, those not typed again as they were."""
        settings, secrets = {}, dict(account.secrets)
        for field in fields(provider_class(self.kind).Settings):
            value = cleaned[PREFIX + field.name]
            if not field.metadata.get("secret"):
                if value != field.default:
                    settings[field.name] = value
            elif value:
                secrets[field.name] = value
            elif cleaned.get(FORGET + field.name):
                secrets.pop(field.name, None)
        return settings, secrets


def form_for(kind: str, account: ProviderAccount | None) -> type[AccountForm]:
    """The form of one kind: its `Settings` are the fields."""
    made: dict[str, forms.Field] = {}
    for field in fields(provider_class(kind).Settings):
        made[PREFIX + field.name] = _form_field(field, account)
        if field.metadata.get("secret") and account is not None and account.secrets.get(field.name):
            made[FORGET + field.name] = forms.BooleanField(
                required=False, label=f"Forget the stored {_label(field).lower()}", widget=UnfoldBooleanSwitchWidget
            )
    return type("AccountFormOfKind", (AccountForm,), {**made, "kind": kind})


def _form_field(field: Field[Any], account: ProviderAccount | None) -> forms.Field:
    stored = account.settings if account is not None else {}
    default = "" if field.default is MISSING else field.default
    options: dict[str, Any] = {
        "label": _label(field),
        "help_text": escape(_sentence(field.metadata.get("help", ""))),  # the theme takes it for HTML
        "initial": stored.get(field.name, default),
        "required": False,
    }
    if field.metadata.get("secret"):
        is_stored = account is not None and bool(account.secrets.get(field.name))
        options["help_text"] = (options["help_text"] + ". " if options["help_text"] else "") + FROM_ENVIRONMENT
        return forms.CharField(**options | {"initial": "", "widget": SecretInput(is_stored=is_stored)})
    if isinstance(default, bool):
        return forms.BooleanField(**options, widget=UnfoldBooleanSwitchWidget)
    if isinstance(default, int):
        return forms.IntegerField(**options | {"required": True}, widget=UnfoldAdminIntegerFieldWidget)
    return forms.CharField(**options, widget=UnfoldAdminTextInputWidget)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _label(field: Field[Any]) -> str:
    return field.name.replace("_", " ").capitalize()


@admin.register(ProviderAccount)
class ProviderAccountAdmin(NeverDeleted, Screen):
    list_display = ("name", "kind", "state", "answers", "reason", "weight", "is_sandbox", "serves", "updated_at")
    list_filter = ("status", "is_sandbox")
    search_fields = ("name", "kind")
    actions = None
    actions_detail = ("pause", "activate")

    # --- the form -----------------------------------------------------------------------------------------------

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """In two steps: which kind, then what that kind asks for."""
        if request.GET.get("kind") not in PROVIDERS and self.has_add_permission(request):
            context = {
                **self.admin_site.each_context(request),
                "title": "Add a provider account",
                "opts": self.opts,
                "kinds": [(kind, _serves(kind)) for kind in sorted(PROVIDERS)],
            }
            return TemplateResponse(request, "console/choose_kind.html", context)
        answer: HttpResponse = super().add_view(request, form_url, extra_context)
        return answer

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Not while its kind is unknown here: a newer release may have made it."""
        is_known = not isinstance(obj, ProviderAccount) or obj.kind in PROVIDERS
        return is_known and bool(super().has_change_permission(request, obj))

    def get_form(self, request: HttpRequest, obj: ProviderAccount | None = None, **options: Any) -> Any:
        if obj is not None and not self.has_change_permission(request, obj):
            return super().get_form(request, obj, **options)
        form = form_for(_kind_of(request, obj), obj)
        return super().get_form(request, obj, **options | {"form": form, "fields": None})

    def get_fieldsets(self, request: HttpRequest, obj: ProviderAccount | None = None) -> Any:
        if obj is not None and not self.has_change_permission(request, obj):
            return ((None, {"fields": ("name", "kind", "state", "reason", "settings", "weight", "is_sandbox")}),)
        own = [name for name in form_for(_kind_of(request, obj), obj).base_fields if name.startswith((PREFIX, FORGET))]
        first = (("name", "kind", "state"), ("hook", "reason")) if obj is not None else ("name",)
        return (
            (None, {"fields": first}),
            ("Settings", {"fields": own}),
            ("When it is chosen", {"fields": (("weight", "is_sandbox"), ("platforms", "countries"))}),
        )

    def get_readonly_fields(self, request: HttpRequest, obj: ProviderAccount | None = None) -> tuple[str, ...]:
        return ("name", "kind", "state", "hook", "reason") if obj is not None else ()  # hooks and metrics name it

    def save_model(self, request: HttpRequest, obj: ProviderAccount, form: Any, change: bool) -> None:
        obj.kind = form.kind
        super().save_model(request, obj, form, change)

    # --- what is shown ------------------------------------------------------------------------------------------

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """With what the workers know of the accounts on the page, asked for once."""
        found = super().get_changelist_instance(request)
        accounts = list(found.result_list)
        sick = services.sickness(accounts)
        for account in accounts:
            account.answers = _answers(sick[account.pk]) if account.pk in sick else "not known"
        found.result_list = accounts
        return found

    @column("answers", label={"yes": "success", "not known": "info"})
    def answers(self, account: ProviderAccount) -> str:
        return str(getattr(account, "answers", ""))

    @column("state", label={"active": "success", "paused": "warning"})
    def state(self, account: ProviderAccount) -> str:
        return account.status

    @column("serves")
    def serves(self, account: ProviderAccount) -> str:
        return ", ".join(account.platforms) or _serves(account.kind)

    @column("hook URL")
    def hook(self, account: ProviderAccount) -> str:
        return services.hook_url(account)

    # --- verbs --------------------------------------------------------------------------------------------------

    @verb(
        "Pause", explains="Others that serve the same take over; with none, messages wait.", form=Reason, icon="pause"
    )
    def pause(self, request: HttpRequest, form: Reason, object_id: str) -> HttpResponse:
        return self._set(request, object_id, AccountStatus.PAUSED, form.cleaned_data["reason"])

    @verb("Activate", explains="It is chosen again, within seconds.", icon="play_arrow")
    def activate(self, request: HttpRequest, form: Dialog, object_id: str) -> HttpResponse:
        return self._set(request, object_id, AccountStatus.ACTIVE)

    def _set(self, request: HttpRequest, object_id: str, status: AccountStatus, reason: str = "") -> HttpResponse:
        account = self.get_object(request, object_id)
        if account is None:
            return done(request, "providers_provideraccount", None, "There is no such account.")
        services.set_status(account, status, reason)
        self.log_change(request, account, f"{status.label}. {reason}".strip())
        return done(request, "providers_provideraccount", account.pk, f"{account.name} is {status.value}.")


def _answers(sickness: Sickness | None) -> str:
    if sickness is None:
        return "yes"
    return f"no, for {sickness.since_s:,.0f} s; " + (
        f"probed in {sickness.until_s:.0f} s" if sickness.until_s >= 1 else "probed with the next message"
    )


def _kind_of(request: HttpRequest, account: ProviderAccount | None) -> str:
    return account.kind if account is not None else request.GET["kind"]


def _serves(kind: str) -> str:
    """`push:ios, push:macos`; nothing for a kind that is not registered any more."""
    return ", ".join(sorted(provider_class(kind).serves)) if kind in PROVIDERS else ""
