"""Which providers there are: a dotted path each, imported when first used (some SDKs cost 30 MB)."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from notifier.message import Platform
from notifier.providers.base import Provider

PROVIDERS: dict[str, str] = {
    "apns": "notifier.providers.apns:Apns",
    "fcm": "notifier.providers.fcm:Fcm",
    "twilio": "notifier.providers.twilio:Twilio",
    "sendgrid": "notifier.providers.sendgrid:SendGrid",
    "smtp": "notifier.providers.smtp:Smtp",
}

# Which kinds can reach a device of each platform. The first is the platform's own service and the default; tokens of
# the others are strings of their vendors'. A kind may be named before it is registered: its devices wait for it.
DEVICE_KINDS: dict[Platform, tuple[str, ...]] = {
    Platform.IOS: ("apns", "jpush", "pushy"),
    Platform.MACOS: ("apns",),
    Platform.ANDROID: ("fcm", "jpush", "pushy"),
    Platform.ANDROID_CN: ("jpush", "pushy"),
    Platform.WEB: ("webpush",),
}

# The push services of the browsers; a subscription elsewhere would make us call any host that a caller names.
WEB_PUSH_HOSTS: tuple[str, ...] = (
    "fcm.googleapis.com",
    "updates.push.services.mozilla.com",
    ".push.apple.com",
    ".notify.windows.com",
    "push.sandbox.invalid",
)


@cache
def provider_class(kind: str) -> type[Provider]:
    """The class for `kind`. Raises KeyError for a kind that is not registered."""
    module, _, name = PROVIDERS[kind].partition(":")
    found: type[Provider] = getattr(import_module(module), name)
    assert issubclass(found, Provider)  # noqa: S101 - a wrong registry line is a bug, found by the first test
    return found
