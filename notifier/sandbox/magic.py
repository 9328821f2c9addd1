"""Which recipients do something on purpose, and what."""

from __future__ import annotations

import re
from collections import OrderedDict
from enum import StrEnum


class Effect(StrEnum):
    OK = "ok"
    THROTTLED = "throttled"
    UNREGISTERED = "unregistered"
    BAD_TOKEN = "badtoken"
    SLOW = "slow"
    BOUNCED = "bounced"
    COMPLAINT = "complaint"
    DELIVERED = "delivered"  # asks for a delivery receipt even where the vendor sends none unasked
    STOP = "stop"
    INVALID_NUMBER = "invalid_number"
    CANNOT_RECEIVE = "cannot_receive"
    UNROUTABLE = "unroutable"
    NO_PERMISSION = "no_permission"
    OPTED_OUT = "opted_out"


SLOW_ACCEPT_S = 5.0
SLOW_DELIVERED_S = 30.0
THROTTLED_ANSWERS = 2
THROTTLED_RETRY_AFTER_S = 2

_APNS_PREFIX = "5a0db0c5"
_APNS = {"0410": Effect.UNREGISTERED, "0429": Effect.THROTTLED, "0400": Effect.BAD_TOKEN}
_WORD = re.compile(r"sandbox-(unregistered|throttled|badtoken)-")
_MAILBOX = {
    "delivered": Effect.DELIVERED,
    "slow": Effect.SLOW,
    "bounced": Effect.BOUNCED,
    "complaint": Effect.COMPLAINT,
    "throttled": Effect.THROTTLED,
}
# 01, 02, 03, 04 and 09 are the vendor's own test numbers: https://www.twilio.com/docs/iam/test-credentials
_NUMBER = {
    "+15005550001": Effect.INVALID_NUMBER,
    "+15005550002": Effect.UNROUTABLE,
    "+15005550003": Effect.NO_PERMISSION,
    "+15005550004": Effect.OPTED_OUT,
    "+15005550009": Effect.CANNOT_RECEIVE,
    "+15005550010": Effect.STOP,
}


def apns_effect(token: str) -> Effect:
    """Tokens of 64 hex digits that begin with 5a0db0c5 and a four-digit code."""
    lowered = token[:12].lower()
    if len(token) == 64 and lowered.startswith(_APNS_PREFIX):
        return _APNS.get(lowered[8:], Effect.OK)
    return Effect.OK


def token_effect(token: str) -> Effect:
    """Tokens of the form sandbox-<word>-<anything>."""
    found = _WORD.match(token)
    return Effect(found[1]) if found else Effect.OK


def email_effect(address: str) -> Effect:
    """Mailboxes at sandbox.invalid; `+anything` after the word makes as many of them as are wanted."""
    local, _, domain = address.lower().rpartition("@")
    if domain != "sandbox.invalid":
        return Effect.OK
    return _MAILBOX.get(local.partition("+")[0], Effect.OK)


def phone_effect(number: str) -> Effect:
    return _NUMBER.get(number, Effect.OK)


class Throttle:
    """Counts the refusals of each throttled address: two, then one message passes, then anew."""

    def __init__(self, remember: int = 100_000) -> None:
        self._refusals: OrderedDict[str, int] = OrderedDict()
        self._remember = remember

    def holds_back(self, address: str) -> bool:
        refused = self._refusals.pop(address, 0)
        if refused >= THROTTLED_ANSWERS:
            return False
        self._refusals[address] = refused + 1
        if len(self._refusals) > self._remember:
            self._refusals.popitem(last=False)
        return True
