"""How an adapter talks HTTP: the worker process's one pooled client, and what is made of its answers.

A send ends in exactly one of three ways: a `Reply`, `NotSent` (the provider cannot have it) or `Uncertain`
(it may have it). The line between the last two is one fact: was any byte of the body handed to the socket.
aiohttp repeats no POST by itself (3.14, `IDEMPOTENT_METHODS`), follows no redirect here and keeps no cookie.
"""

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
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit
from uuid import UUID

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import HttpProcessingError

from notifier.message import Message
from notifier.outcome import Kind, Outcome, Scope
from notifier.providers.base import ConfigurationError

ANSWER_LIMIT_BYTES = 64 * 1024  # no provider's answer to a send comes near; more is not an answer to it
KEEPALIVE_S = 15.0  # below the 60 s and more after which vendors close, so that we never write into a closing socket

_Failure = (aiohttp.ClientError, HttpProcessingError, OSError, ValueError)


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


class _Body(aiohttp.BytesPayload):
    """A request body that knows whether any of it went to the socket (aiohttp sends the headers with it)."""

    is_written = False

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        self.is_written = True
        await super().write_with_length(writer, content_length)


class Carrier:
    """The pooled HTTP client of one worker process. Make it on the process's event loop, after the fork."""

    def __init__(self, *, limit: int = 200, limit_per_host: int = 100, keepalive_s: float = KEEPALIVE_S) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=limit, limit_per_host=limit_per_host, keepalive_timeout=keepalive_s, ttl_dns_cache=60
            ),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # post() times the whole call
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,  # nobody inflates a 64 KiB answer into our memory
            trust_env=False,
        )

    async def post(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        data: bytes,
        timeout_s: float,
        ssl_context: ssl.SSLContext | None = None,
    ) -> Reply:
        """POST once. `timeout_s` covers the wait for a connection, the request and the whole answer.

        Raises NotSent or Uncertain and nothing else (but what cancels the caller).
        """
        body = _Body(data)
        try:
            async with asyncio.timeout(timeout_s):
                async with self._session.post(
                    url, headers=headers, data=body, allow_redirects=False, ssl=ssl_context or True
                ) as response:
                    return Reply(response.status, response.headers, await _read(response))
        except TimeoutError as error:
            if body.is_written:
                raise Uncertain(f"no whole answer within {timeout_s:g} s") from error
            raise NotSent(f"no connection within {timeout_s:g} s") from error
        except _Failure as error:
            if body.is_written:
                garbled = isinstance(error, (aiohttp.ClientResponseError, HttpProcessingError))
                raise Uncertain(f"{type(error).__name__} after the request was written", garbled=garbled) from error
            words = f": {error}" if isinstance(error, aiohttp.ClientConnectionError) else ""  # others quote the request
            raise NotSent(readable(f"{type(error).__name__}{words}")) from error

    async def aclose(self) -> None:
        await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


async def _read(response: aiohttp.ClientResponse) -> bytes:
    found = bytearray()
    while chunk := await response.content.read(ANSWER_LIMIT_BYTES + 1 - len(found)):
        found += chunk
        if len(found) > ANSWER_LIMIT_BYTES:
            response.close()  # not release(): the rest must not be read into the pool
            raise Uncertain(f"an answer of more than {ANSWER_LIMIT_BYTES} bytes", garbled=True)
    return bytes(found)


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
