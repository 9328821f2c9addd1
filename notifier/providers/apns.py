"""Apple Push Notification service: alerts and background pushes to iOS and macOS devices.

Send     https://developer.apple.com/documentation/usernotifications/sending-notification-requests-to-apns
Payload  https://developer.apple.com/documentation/usernotifications/generating-a-remote-notification
Errors   https://developer.apple.com/documentation/usernotifications/handling-notification-responses-from-apns
Keys     https://developer.apple.com/documentation/usernotifications/establishing-a-token-based-connection-to-apns

There are no receipts: a 200 is the last that APNs says. HTTP/2 only, one request per device, no batch call; how
requests travel is `notifier.providers.apns_http2`.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, ClassVar
from urllib.parse import urlsplit

import msgspec
from aioapns.common import PushType
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from notifier.ids import derived_id
from notifier.message import Message, PushContent
from notifier.outcome import Kind, Outcome, Scope
from notifier.providers import http
from notifier.providers.apns_http2 import NotSent, Pool, Request, Result, SharedToken, Uncertain
from notifier.providers.base import ConfigurationError, Provider, Surroundings, setting

HOSTS = {"production": "api.push.apple.com", "sandbox": "api.sandbox.push.apple.com"}
MAX_PAYLOAD_BYTES = 4096
MAX_COLLAPSE_ID_BYTES = 64
TOKEN_UPDATES_WAIT_S = 300.0  # "retry after minutes": Apple names no figure


_MISCONFIGURED_SENDER = Outcome(Kind.MISCONFIGURED, Scope.SENDER)
_BAD_TOKEN = Outcome(Kind.GONE, Scope.ADDRESS, reason="bad_token")
_UNREGISTERED = Outcome(Kind.GONE, Scope.ADDRESS, reason="device_unregistered")

REASONS: http.Table = {
    # 400
    "BadDeviceToken": _BAD_TOKEN,
    "DeviceTokenNotForTopic": _BAD_TOKEN,
    "BadCollapseId": http.REJECTED,
    "BadExpirationDate": http.REJECTED,
    "BadMessageId": http.REJECTED,
    "BadPriority": http.REJECTED,
    "DuplicateHeaders": http.REJECTED,
    "InvalidPushType": http.REJECTED,
    "MissingDeviceToken": http.REJECTED,
    "PayloadEmpty": http.REJECTED_CONTENT,
    "BadTopic": _MISCONFIGURED_SENDER,
    "MissingTopic": _MISCONFIGURED_SENDER,
    "TopicDisallowed": _MISCONFIGURED_SENDER,
    "IdleTimeout": http.UNAVAILABLE,
    # 403; ExpiredProviderToken comes here only when a new token was of no help: the clock or the key is wrong
    "BadCertificate": http.MISCONFIGURED,
    "BadCertificateEnvironment": http.MISCONFIGURED,
    "BadEnvironmentKeyIdInToken": http.MISCONFIGURED,
    "BadEnvironmentKeyInToken": http.MISCONFIGURED,  # seen so in the wild
    "ExpiredProviderToken": http.MISCONFIGURED,
    "Forbidden": http.MISCONFIGURED,
    "InvalidProviderToken": http.MISCONFIGURED,
    "MissingProviderToken": http.MISCONFIGURED,
    "UnrelatedKeyIdInToken": http.MISCONFIGURED,
    # 404, 405: our own request is malformed
    "BadPath": http.REJECTED,
    "MethodNotAllowed": http.REJECTED,
    # 410
    "Unregistered": _UNREGISTERED,
    "ExpiredToken": _UNREGISTERED,
    # 413
    "PayloadTooLarge": http.TOO_LARGE,
    # 429: the first speaks of one device, the second of our key
    "TooManyRequests": Outcome(Kind.THROTTLED, Scope.ADDRESS),
    "TooManyProviderTokenUpdates": replace(http.THROTTLED, retry_after_s=TOKEN_UPDATES_WAIT_S),
    # 500, 503: an answer with a reason is a refusal
    "InternalServerError": http.UNAVAILABLE,
    "ServiceUnavailable": http.UNAVAILABLE,
    "Shutdown": http.UNAVAILABLE,
}

_INTERRUPTION_LEVELS = {"time_sensitive": "time-sensitive"}  # the others are spelled alike
_TOKEN = re.compile(r"[0-9a-fA-F]{8,200}")  # Apple: of variable length, do not assume one
_TOPIC = re.compile(r"[A-Za-z0-9.-]{1,155}")
_HEADER_TEXT = re.compile(r"[!-~](?:[ -~]*[!-~])?")


class Apns(Provider):
    kind = "apns"
    serves = frozenset({"push:ios", "push:macos"})

    @dataclass(frozen=True, slots=True)
    class Settings:
        key: str = setting(secret=True, help="the .p8 file of the APNs key, as text")
        key_id: str = setting(help="the key's id, 10 characters")
        team_id: str = setting(help="the developer team's id, 10 characters")
        topic: str = setting(help="the bundle id, for devices that name no app_id of their own")
        environment: str = setting("production", help="production or sandbox, for devices that name none")
        base_url: str = setting(help="https://host:port in place of Apple's hosts")
        ca_file: str = setting(help="a PEM file of authorities to trust beside the system's")

    settings: Settings
    batch_size: ClassVar[int] = 1

    def __init__(self, settings: Any, surroundings: Surroundings) -> None:
        super().__init__(settings, surroundings)
        self._token = SharedToken(settings.key, settings.key_id, settings.team_id, surroundings.exchange_token)
        self._pools: dict[str, Pool] = {}

    @classmethod
    def check(cls, settings: Any) -> None:
        http.check_given(settings, "key", "key_id", "team_id", "topic")
        try:
            key = load_pem_private_key(settings.key.encode(), password=None)
        except (ValueError, TypeError):  # TypeError: the key wants a password
            key = None
        if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
            raise ConfigurationError("key: is no P-256 private key in PEM; paste the whole .p8 file as Apple gave it")
        for name in ("key_id", "team_id"):
            if not re.fullmatch(r"[A-Za-z0-9]+", getattr(settings, name)):
                raise ConfigurationError(f"{name}: give the letters and digits that Apple's developer site shows")
        if not _TOPIC.fullmatch(settings.topic):
            raise ConfigurationError("topic: give a bundle id such as com.example.shop")
        if settings.environment not in HOSTS:
            raise ConfigurationError(f"environment: give one of {', '.join(HOSTS)}")
        if settings.base_url:
            _host_and_port(settings.base_url)
        http.check_ca_file(settings.ca_file)

    async def send(self, batch: Sequence[Message]) -> list[Outcome]:
        if len(batch) == 1:
            return [await self._send(batch[0])]
        return list(await asyncio.gather(*map(self._send, batch)))

    async def _send(self, message: Message) -> Outcome:
        address = message.address
        environment = address.apns_environment or self.settings.environment
        request = self._request(message)
        if isinstance(request, Outcome):
            return request
        if environment not in HOSTS:
            return replace(http.REJECTED, code="BadEnvironment", detail=f"apns_environment is not {' or '.join(HOSTS)}")
        try:
            pool = self._pools.get(environment) or self._open(environment)
            result = await pool.send_notification(request, message.timeout_s)
        except (NotSent, Uncertain) as error:
            return _without_answer(error)
        except ConfigurationError as error:
            return replace(http.MISCONFIGURED, code="BadKey", detail=str(error))
        except OSError as error:
            return replace(http.MISCONFIGURED, code="BadCaFile", detail=f"ca_file: {type(error).__name__}")
        return _judge(result)

    def _open(self, environment: str) -> Pool:
        host, port = HOSTS[environment], 443
        if self.settings.base_url:
            host, port = _host_and_port(self.settings.base_url)
        # Not `http.trusting`: that one is shared, and the pool sets its own ALPN.
        context = ssl.create_default_context()
        if self.settings.ca_file:
            context.load_verify_locations(cafile=self.settings.ca_file)
        pool = Pool(self._token, self.settings.topic, host, port, ssl_context=context)
        self._pools[environment] = pool
        return pool

    def _request(self, message: Message) -> Request | Outcome:
        """The request, or the outcome of a message that APNs would refuse or, worse, misread."""
        address, content = message.address, message.content
        if not isinstance(content, PushContent):
            return replace(http.REJECTED_CONTENT, code="NotPush", detail="the content is not for push")
        if not _TOKEN.fullmatch(address.value):
            return replace(_BAD_TOKEN, code="BadDeviceToken", detail="the token is not hexadecimal")
        topic = address.app_id or self.settings.topic
        if not _TOPIC.fullmatch(topic):
            return replace(_MISCONFIGURED_SENDER, code="BadTopic", detail=f"not a bundle id: {topic[:80]!a}")
        collapse_id = _collapse_id(message.collapse_id)
        if len(collapse_id) > MAX_COLLAPSE_ID_BYTES:
            return replace(http.REJECTED, code="BadCollapseId", detail=f"over {MAX_COLLAPSE_ID_BYTES} bytes")
        try:
            body = msgspec.json.encode(payload(message, content))
        except UnicodeEncodeError:
            return replace(http.REJECTED_CONTENT, code="BadText", detail="the text holds a lone surrogate")
        if len(body) > MAX_PAYLOAD_BYTES:
            return replace(
                http.TOO_LARGE, code="PayloadTooLarge", detail=f"{len(body)} bytes, at most {MAX_PAYLOAD_BYTES}"
            )
        options = content.options
        return Request(
            address.value,
            body,
            expiration=_expiration(message.expires_at, options.ttl_s),
            notification_id=str(derived_id(message.delivery_id, "apns", str(message.claim_no))),
            priority=10 if options.priority == "high" and not options.silent else 5,
            collapse_key=collapse_id,
            push_type=PushType.BACKGROUND if options.silent else PushType.ALERT,
            apns_topic=topic,
        )

    async def aclose(self) -> None:
        pools, self._pools = list(self._pools.values()), {}
        await asyncio.gather(*(pool.aclose() for pool in pools))


def payload(message: Message, content: PushContent) -> dict[str, Any]:
    """What the device receives: Apple's `aps`, and beside it our `_n` and the caller's own fields.

    `_n` says which delivery (`d`) and which try (`n`) this is, for the app to report back.
    """
    options = content.options
    if options.silent:
        aps: dict[str, Any] = {"content-available": 1}  # Apple: a background push carries nothing else in aps
    else:
        alert = {"title": content.title, "body": content.body}
        aps = {"alert": {part: text for part, text in alert.items() if text}}
        if options.badge is not None:
            aps["badge"] = options.badge
        if options.sound:
            aps["sound"] = options.sound
        if options.thread_id:
            aps["thread-id"] = options.thread_id
        if options.interruption_level:
            aps["interruption-level"] = _INTERRUPTION_LEVELS.get(options.interruption_level, options.interruption_level)
        if options.image:
            aps["mutable-content"] = 1  # lets the app's extension fetch the image
    body: dict[str, Any] = {"aps": aps, "_n": {"d": str(message.delivery_id), "n": message.claim_no}}
    if options.deep_link:
        body["deep_link"] = options.deep_link
    if options.image:
        body["image"] = options.image
    if options.data:
        body["data"] = dict(options.data)
    return body


def _expiration(expires_at: float, ttl_s: int | None) -> int:
    """apns-expiration: Unix seconds until which APNs stores the message; 0 is one try and no storing."""
    if ttl_s == 0:
        return 0
    until = expires_at if ttl_s is None else min(expires_at, time.time() + ttl_s)
    return max(int(until), 1)


def _collapse_id(key: str) -> str:
    """`key`, or a digest of one that no header can carry: equal keys still replace each other."""
    if not key or _HEADER_TEXT.fullmatch(key):
        return key
    return hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _judge(result: Result) -> Outcome:
    status = int(result.status) if re.fullmatch(r"[1-9][0-9]{2}", result.status) else 0
    if status == 200 and not result.unreadable:
        return Outcome(Kind.ACCEPTED, provider_ref=result.notification_id, http_status=200)
    reason = result.description or ""
    row = REASONS.get(reason) or (http.by_status(status) if status else http.UNCERTAIN)
    outcome = http.classified(
        row,
        code=http.readable(reason),
        http_status=status or None,
        retry_after_s=http.retry_after_s({"Retry-After": result.retry_after}),
    )
    if outcome.kind is Kind.GONE and result.timestamp is not None:
        return replace(outcome, gone_since=_from_ms(result.timestamp))
    return outcome


def _from_ms(timestamp: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(timestamp / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return None


def _without_answer(error: NotSent | Uncertain) -> Outcome:
    if isinstance(error.__cause__, ssl.SSLCertVerificationError):
        # Ours to mend (ca_file, base_url, a proxy that breaks TLS), and no next try will change it.
        return replace(http.MISCONFIGURED, code="UntrustedCertificate", detail="the server's certificate is untrusted")
    return http.without_answer(error)


def _host_and_port(base_url: str) -> tuple[str, int]:
    """From `https://host:port` or `host:port`. Raises ConfigurationError."""
    parts = urlsplit(base_url if "//" in base_url else f"//{base_url}", scheme="https")
    try:
        if parts.scheme == "https" and parts.hostname and parts.path in ("", "/") and not parts.username:
            return parts.hostname, parts.port or 443
    except ValueError:  # a port that is none
        pass
    raise ConfigurationError("base_url: give https://host:port, or leave it empty for Apple's own hosts")
