"""What is sent: the frozen values that every stage and every provider speaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from uuid import UUID


class Channel(StrEnum):
    PUSH = "push"
    SMS = "sms"
    EMAIL = "email"


class Lane(StrEnum):
    """How urgent a delivery is: decides its queue, call timeout, lease, retry schedule and tries."""

    CRITICAL = "critical"
    NORMAL = "normal"
    BULK = "bulk"


class Mode(StrEnum):
    """`live` may reach people; `test` runs the whole pipeline but reaches sandbox accounts only."""

    LIVE = "live"
    TEST = "test"


class Platform(StrEnum):
    IOS = "ios"
    MACOS = "macos"
    ANDROID = "android"
    ANDROID_CN = "android_cn"
    WEB = "web"


@dataclass(frozen=True, slots=True)
class Address:
    """Where one message goes.

    `value` is the email address, the E.164 number with its `+`, or the device token (for `web`: the
    subscription as JSON text). It is personal data: `repr` shows only its last four characters.
    """

    channel: Channel
    value: str = field(repr=False)
    platform: Platform | None = None
    token_kind: str = ""  # android: "fcm_token" or "fcm_fid"
    app_id: str = ""  # ios/macos: the bundle id (APNs topic)
    apns_environment: str = ""  # "production" or "sandbox"
    is_sandbox: bool = False  # a recipient that never reaches a real provider

    @property
    def masked(self) -> str:
        return f"...{self.value[-4:]}"


@dataclass(frozen=True, slots=True)
class PushOptions:
    badge: int | None = None
    sound: str = ""
    image: str = ""
    deep_link: str = ""
    priority: str = "high"  # "high" or "normal"
    ttl_s: int | None = None
    thread_id: str = ""
    interruption_level: str = ""
    silent: bool = False
    data: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PushContent:
    title: str
    body: str
    options: PushOptions = PushOptions()


@dataclass(frozen=True, slots=True)
class SmsContent:
    text: str
    sender: str = ""  # empty: the account's default


@dataclass(frozen=True, slots=True)
class EmailContent:
    """At least one of `text` and `html` is non-empty. No field holds CR, LF (but in bodies) or NUL."""

    subject: str
    text: str = ""
    html: str = ""
    sender: str = ""  # "Name <a@b>"; empty: the account's default
    reply_to: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


Content = PushContent | SmsContent | EmailContent


@dataclass(frozen=True, slots=True)
class Message:
    """One message to one address, ready to hand to a provider.

    `delivery_id` and `claim_no` travel with the message (custom arguments, callback URL, Message-ID), so
    that a receipt finds its try. `collapse_id` makes a second copy replace the first where the channel can.
    """

    delivery_id: UUID
    claim_no: int
    channel: Channel
    lane: Lane
    mode: Mode
    address: Address
    content: Content
    expires_at: float  # Unix seconds
    collapse_id: str  # at most 64 bytes; the caller's collapse key, else derived from the delivery
    timeout_s: float = 10.0  # for the whole call, by lane
    locale: str = "en"
    metadata: Mapping[str, Any] = field(default_factory=dict)
