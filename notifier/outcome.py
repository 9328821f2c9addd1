"""What a provider said: seven kinds of outcome for a send, and receipts for what came back later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID


class Kind(StrEnum):
    ACCEPTED = "accepted"  # the provider has it; provider_ref known
    THROTTLED = "throttled"  # slow down: retry_after_s holds back the outcome's scope, no try counted
    UNAVAILABLE = "unavailable"  # known NOT handed over: connect error, a documented not-taken 5xx
    UNCERTAIN = "uncertain"  # handed over (or may have been), no usable answer
    REJECTED = "rejected"  # this message can never pass; the address is untouched
    GONE = "gone"  # this address is dead
    MISCONFIGURED = "misconfigured"  # our credential, topic or sender is wrong; no address is touched


class Scope(StrEnum):
    """What an outcome speaks of, and so what it holds back: never more than that."""

    ADDRESS = "address"
    SENDER = "sender"
    ACCOUNT = "account"
    MESSAGE = "message"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one send came to. Remote faults are outcomes, never exceptions.

    `reason` is a reason code of the API (`invalid_number`, `rejected_content` ...), empty where the kind
    alone decides. `code` is the provider's own word, `detail` for people; neither holds an address or secret.
    """

    kind: Kind
    scope: Scope = Scope.MESSAGE
    provider_ref: str = ""
    code: str = ""
    http_status: int | None = None
    detail: str = ""
    reason: str = ""
    retry_after_s: float | None = None
    # GONE only: the provider's "dead since" (APNs 410 timestamp). A device registered again after it lives on.
    gone_since: datetime | None = None
    # REJECTED only: the recipient opted out at the provider (Twilio 21610): a suppression is written.
    opted_out: bool = False


class ReceiptKind(StrEnum):
    SENT = "sent"
    DEFERRED = "deferred"
    DELIVERED = "delivered"
    OPENED = "opened"
    CLICKED = "clicked"
    UNDELIVERED = "undelivered"
    COMPLAINED = "complained"
    UNSUBSCRIBED = "unsubscribed"
    STOPPED = "stopped"  # inbound STOP
    STARTED = "started"  # inbound START
    INBOUND = "inbound"  # any other inbound message
    UNKNOWN = "unknown"  # kept and counted, never raised


@dataclass(frozen=True, slots=True)
class Receipt:
    """One thing a provider reported. `event_id` is unique within the account: a repeat has the same one."""

    event_id: str
    kind: ReceiptKind
    at: datetime | None = None
    delivery_id: UUID | None = None
    claim_no: int | None = None
    provider_ref: str = ""
    reason: str = ""  # for UNDELIVERED: hard_bounce, soft_bounce, spam_blocked, carrier_rejected ...
    code: str = ""
    detail: str = ""
    address: str = field(default="", repr=False)  # for STOP, START, complaints without a delivery id
    is_machine: bool = False
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Callback:
    """An HTTP request a provider made to our hook, as it arrived.

    `url` is the public URL the provider called, query included (rebuilt from the configured base URL).
    """

    method: str
    url: str
    headers: Mapping[str, str]  # keys in lower case
    body: bytes = field(repr=False)
