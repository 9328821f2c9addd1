"""Which providers there are: a line each, the class imported when first used (some SDKs cost 30 MB)."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import NamedTuple

from notifier.message import Channel, Platform
from notifier.providers.base import Provider


class Entry(NamedTuple):
    """Where a provider is, and the channels that it `serves`: a worker imports those of its own channel alone."""

    path: str
    channels: frozenset[Channel]


def _at(path: str, *channels: Channel) -> Entry:
    return Entry(path, frozenset(channels))


PROVIDERS: dict[str, Entry] = {
    "apns": _at("notifier.providers.apns:Apns", Channel.PUSH),
    "fcm": _at("notifier.providers.fcm:Fcm", Channel.PUSH),
    "jpush": _at("notifier.providers.jpush:JPush", Channel.PUSH),
    "pushy": _at("notifier.providers.pushy:Pushy", Channel.PUSH),
    "twilio": _at("notifier.providers.twilio:Twilio", Channel.SMS),
    "sendgrid": _at("notifier.providers.sendgrid:SendGrid", Channel.EMAIL),
    "smtp": _at("notifier.providers.smtp:Smtp", Channel.EMAIL),
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
    entry = PROVIDERS[kind]
    module, _, name = entry.path.partition(":")
    found: type[Provider] = getattr(import_module(module), name)
    assert issubclass(found, Provider)  # noqa: S101 - a wrong registry line is a bug, found by the first test
    assert {served.split(":")[0] for served in found.serves} == entry.channels  # noqa: S101 - the same
    return found
