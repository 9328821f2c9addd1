"""Which providers there are: a dotted path each, imported when first used (some SDKs cost 30 MB)."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from notifier.providers.base import Provider

PROVIDERS: dict[str, str] = {
    "apns": "notifier.providers.apns:Apns",
    "fcm": "notifier.providers.fcm:Fcm",
    "twilio": "notifier.providers.twilio:Twilio",
    "sendgrid": "notifier.providers.sendgrid:SendGrid",
    "smtp": "notifier.providers.smtp:Smtp",
}


@cache
def provider_class(kind: str) -> type[Provider]:
    """The class for `kind`. Raises KeyError for a kind that is not registered."""
    module, _, name = PROVIDERS[kind].partition(":")
    found = getattr(import_module(module), name)
    assert issubclass(found, Provider)  # noqa: S101 - a wrong registry line is a bug, found by the first test
    return found
