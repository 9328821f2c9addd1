"""What adapters make of HTTP: the three ways in which a call ends, and what each answer means."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from notifier.message import Message
from notifier.outcome import Kind, Outcome, Scope
from notifier.providers.base import ConfigurationError


class NotSent(Exception):
    """Known not handed over: no connection, no DNS answer, TLS refused, no free slot in the pool in time."""


class Uncertain(Exception):
    """The request may have been taken and there is no usable answer. `garbled`: one came, but unreadable."""

    def __init__(self, why: str, *, garbled: bool = False) -> None:
        super().__init__(why)
        self.garbled = garbled


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer of any status. `headers` finds its keys in any case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def json(self) -> dict[str, Any]:
        """The body as a JSON object; empty when it is anything else."""
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}


@cache
def trusting(ca_file: str) -> ssl.SSLContext | None:
    """The TLS context that trusts `ca_file` beside the system's authorities; None (the default) for ""."""
    if not ca_file:
        return None
    context = ssl.create_default_context()
    context.load_verify_locations(cafile=ca_file)
    return context


# --- Answers -------------------------------------------------------------------------------------------------

Table = Mapping[str, Outcome]
"""Classification as data: a provider's own code -> the outcome it means, without code, status and detail."""

MISCONFIGURED = Outcome(Kind.MISCONFIGURED, Scope.ACCOUNT)
THROTTLED = Outcome(Kind.THROTTLED, Scope.ACCOUNT)
UNAVAILABLE = Outcome(Kind.UNAVAILABLE, Scope.ACCOUNT)
UNCERTAIN = Outcome(Kind.UNCERTAIN, Scope.ACCOUNT, reason="answer_lost")
GARBLED = Outcome(Kind.UNCERTAIN, Scope.ACCOUNT, reason="answer_garbled")
REJECTED = Outcome(Kind.REJECTED, reason="rejected")
REJECTED_CONTENT = Outcome(Kind.REJECTED, reason="rejected_content")
TOO_LARGE = Outcome(Kind.REJECTED, reason="payload_too_large")

_BY_STATUS: Mapping[int, Outcome] = {
    401: MISCONFIGURED,
    403: MISCONFIGURED,
    404: MISCONFIGURED,  # the path is ours: an address that is not there is said in a body
    405: MISCONFIGURED,
    406: MISCONFIGURED,
    407: MISCONFIGURED,
    408: UNAVAILABLE,  # "did not receive a complete request" (RFC 9110 15.5.9)
    413: TOO_LARGE,
    415: MISCONFIGURED,
    421: UNAVAILABLE,
    429: THROTTLED,
    503: UNAVAILABLE,  # the one 5xx that says "not now" of itself; of the others nobody knows what was done
}


def by_status(status: int) -> Outcome:
    """What an HTTP status alone says, where a provider's table has no row for its code."""
    if known := _BY_STATUS.get(status):
        return known
    if status < 300:
        return GARBLED  # a success without what a success carries
    if status < 400:
        return MISCONFIGURED  # a redirect: base_url is not the provider's
    return REJECTED if status < 500 else UNCERTAIN


def classified(
    row: Outcome,
    *,
    code: object = "",
    http_status: int | None = None,
    detail: str = "",
    retry_after_s: float | None = None,
) -> Outcome:
    """A table's row, with what this answer said. `retry_after_s` is kept only where waiting is what to do."""
    waits = row.kind in (Kind.THROTTLED, Kind.UNAVAILABLE) and retry_after_s is not None
    return replace(
        row,
        code=str(code),
        http_status=http_status,
        detail=detail,
        retry_after_s=retry_after_s if waits else row.retry_after_s,
    )


def without_answer(error: NotSent | Uncertain) -> Outcome:
    """The outcome of a call that ended without an answer."""
    if isinstance(error, NotSent):
        return classified(UNAVAILABLE, code="not_sent", detail=str(error))
    return classified(GARBLED if error.garbled else UNCERTAIN, code="no_answer", detail=str(error))


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The `Retry-After` header in seconds from now, clamped to 1..3600; None when absent or malformed.

    Takes both forms of RFC 9110 10.2.3: delay-seconds and HTTP-date.
    """
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,20}(\.[0-9]{1,9})?", value):
        return clamped_s(float(value))
    try:
        return clamped_s(parsedate_to_datetime(value).timestamp() - time.time()) if value else None
    except (ValueError, TypeError, OverflowError):
        return None


def clamped_s(seconds: float) -> float:
    """Between 1 s and 1 h: a provider may slow us down, not stop us."""
    return min(max(seconds, 1.0), 3600.0)


_PERSONAL = re.compile(r"[^\s<>@\"'(),:;]+@[^\s<>@\"'(),:;]+|\+?\d{7,}|[\w:%+/=-]{32,}")


def readable(text: object, *hidden: str) -> str:
    """A provider's words as an Outcome's `detail`: one line, at most 200 characters, addresses and tokens masked."""
    line = " ".join(str(text).split())
    for value in hidden:
        if value:
            line = re.sub(re.escape(value), "...", line, flags=re.IGNORECASE)
    return _PERSONAL.sub("...", line)[:200]


async def each(send: Callable[[Message], Awaitable[Outcome]], batch: Sequence[Message]) -> list[Outcome]:
    """Send each message of a batch by itself, all at once; a single one costs no task."""
    if len(batch) == 1:
        return [await send(batch[0])]
    return list(await asyncio.gather(*map(send, batch)))


# --- What callbacks carry --------------------------------------------------------------------------------------


def uuid_or_none(value: object) -> UUID | None:
    """The delivery id that a callback names. What is no UUID there is somebody else's."""
    try:
        return UUID(value) if isinstance(value, str) else None
    except ValueError:
        return None


def int_or_none(value: object) -> int | None:
    """The claim number that a callback names: 0..2^31-1, as a number or its digits."""
    text = str(value)
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


# --- Settings that every adapter checks alike ------------------------------------------------------------------


def check_base_url(url: str) -> None:
    """Raise ConfigurationError unless `url` is an http(s) origin, with a path or not, without credentials."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise ConfigurationError("base_url: give an http(s) URL without credentials and query, or leave the default")


def check_ca_file(ca_file: str) -> None:
    """Raise ConfigurationError unless `ca_file` is empty or a readable file of PEM certificates."""
    try:
        if ca_file:
            ssl.create_default_context().load_verify_locations(cafile=Path(ca_file))
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigurationError(
            f"ca_file: {ca_file} holds no readable PEM certificates; name a file of them"
        ) from error


def check_credential(settings: Any, *names: str) -> None:
    """Raise ConfigurationError for the first of the fields that is empty or was not copied cleanly."""
    check_given(settings, *names)
    for name in names:
        if not re.fullmatch(r"[!-~]+", getattr(settings, name)):
            raise ConfigurationError(f"{name}: holds a space or another character that no key has; copy it again")


def check_given(settings: Any, *names: str) -> None:
    """Raise ConfigurationError naming the first of the fields that is empty."""
    for name in names:
        if not getattr(settings, name):
            raise ConfigurationError(f"{name}: is empty; {settings.__dataclass_fields__[name].metadata['help']}")
