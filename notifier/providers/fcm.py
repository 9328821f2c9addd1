"""Firebase Cloud Messaging, HTTP v1: pushes to Android devices.

Send: https://firebase.google.com/docs/reference/fcm/rest/v1/projects.messages/send
Errors: https://firebase.google.com/docs/reference/fcm/rest/v1/ErrorCode
Limits and retries: https://firebase.google.com/docs/cloud-messaging/scale-fcm
firebase-admin builds and checks the message and signs for the token; its own send functions are not used (7.7:
a thread per message, sleeping retries). FCM reports nothing back by itself: there are no receipts.
Android has no threads: `thread_id` is not sent.
"""

from __future__ import annotations

import asyncio
import functools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import msgspec
import requests
from firebase_admin import credentials, messaging
from firebase_admin._messaging_encoder import MessageEncoder
from google.auth.credentials import TokenState
from google.auth.exceptions import GoogleAuthError, RefreshError
from google.auth.transport.requests import Request

from notifier.message import Message, PushContent
from notifier.outcome import Kind, Outcome, Scope
from notifier.providers import http
from notifier.providers.base import ConfigurationError, Provider, Surroundings, setting

SCOPE = "https://www.googleapis.com/auth/firebase.messaging"
PAYLOAD_LIMIT_BYTES = 4096
TTL_LIMIT_S = 2_419_200  # 4 weeks
TOKEN_TIMEOUT_S = 8.0
RENEWAL_GAP_S = 60.0  # one token after another refused within it: then it is not the token

_ENCODER = MessageEncoder()  # what `str(messaging.Message)` encodes with, to JSON's own types

_BAD_TOKEN = Outcome(Kind.GONE, Scope.ADDRESS, reason="bad_token")
_TARGET_FIELDS = frozenset({"message.token", "message.fid"})
_TARGET_WORDS = "not a valid FCM registration token"

_ERRORS: http.Table = {
    "UNREGISTERED": Outcome(Kind.GONE, Scope.ADDRESS, reason="device_unregistered"),
    "INVALID_ARGUMENT": http.REJECTED_CONTENT,  # the token's own fault is told apart by `_TARGET_*`
    # Either an old token of another project or our account is of the wrong one: then every device says it.
    # So the device is not retired; only this address waits, and people are told.
    "SENDER_ID_MISMATCH": Outcome(Kind.MISCONFIGURED, Scope.ADDRESS),
    "THIRD_PARTY_AUTH_ERROR": Outcome(Kind.MISCONFIGURED, Scope.SENDER),
    "APNS_AUTH_ERROR": Outcome(Kind.MISCONFIGURED, Scope.SENDER),
    "QUOTA_EXCEEDED": Outcome(Kind.THROTTLED, Scope.ACCOUNT, retry_after_s=60.0),
    "INTERNAL": http.UNAVAILABLE,
    "UNAVAILABLE": http.UNAVAILABLE,
}
"""https://firebase.google.com/docs/reference/fcm/rest/v1/ErrorCode (`details[FcmError].errorCode`)"""

_STATUSES: http.Table = {
    "UNAUTHENTICATED": http.MISCONFIGURED,
    "PERMISSION_DENIED": http.MISCONFIGURED,
    "NOT_FOUND": http.MISCONFIGURED,  # without an FcmError it is the project that is not found, never the device
    "INVALID_ARGUMENT": http.REJECTED_CONTENT,
    "RESOURCE_EXHAUSTED": Outcome(Kind.THROTTLED, Scope.ACCOUNT, retry_after_s=60.0),
    "INTERNAL": http.UNAVAILABLE,
    "UNAVAILABLE": http.UNAVAILABLE,
    "DEADLINE_EXCEEDED": http.UNCERTAIN,
}
"""https://cloud.google.com/apis/design/errors#handling_errors (`error.status`, when there is no FcmError)"""

_HTTP: Mapping[int, Outcome] = {429: _STATUSES["RESOURCE_EXHAUSTED"], 500: http.UNAVAILABLE, 502: http.UNAVAILABLE}

_RESERVED_KEYS = frozenset({"from", "message_type", "notification"})
_RESERVED_PREFIXES = ("google", "gcm")
_LOUDNESS = {"passive": "low", "active": "default", "time_sensitive": "high", "critical": "max"}


@dataclass(frozen=True, slots=True)
class FcmSettings:
    service_account: str = setting(
        secret=True, help="paste the service account's JSON key (Firebase console, Project settings, Service accounts)"
    )
    project_id: str = setting(help="the Firebase project; empty: the service account's own")
    android_channel_id: str = setting(help="the Android notification channel; empty: the app's default")
    validate_only: bool = setting(False, help="let FCM check each message and deliver none")
    base_url: str = setting("https://fcm.googleapis.com", help="where FCM answers")
    ca_file: str = setting(help="PEM file of a further authority to trust, for a stand-in server")


class CredentialRefused(Exception):
    """Google does not give this service account a token: `code` is its word for why, the text its sentence."""

    def __init__(self, code: str, why: str) -> None:
        super().__init__(why)
        self.code = code


class _Bearer:
    """The OAuth token of one service account, fetched by one caller for all who wait."""

    def __init__(self, credential: Any, ca_file: str) -> None:
        self._credential = credential
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.verify = ca_file or True
        self._request = functools.partial(Request(self._session), timeout=TOKEN_TIMEOUT_S)
        self._fetching: asyncio.Task[None] | None = None
        self._renewed_at = -RENEWAL_GAP_S

    @property
    def fresh(self) -> str | None:
        """The token in hand, if it is good for minutes yet: nearly always."""
        return str(self._credential.token) if self._credential.token_state is TokenState.FRESH else None

    async def token(self) -> str:
        """A token that is valid now. Raises NotSent or CredentialRefused."""
        state = self._credential.token_state
        if state is not TokenState.FRESH:
            fetching = self._fetch()
            if state is TokenState.INVALID:
                await asyncio.shield(fetching)
        return str(self._credential.token)

    async def renewed(self, refused: str) -> str | None:
        """Another token than `refused`, which FCM did not take; None when it was renewed only just."""
        if self._credential.token == refused:
            if self._fetching is None:
                if time.monotonic() - self._renewed_at < RENEWAL_GAP_S:
                    return None
                self._renewed_at = time.monotonic()
            await asyncio.shield(self._fetch())
        return str(self._credential.token)

    def _fetch(self) -> asyncio.Task[None]:
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._refresh())
            self._fetching.add_done_callback(self._fetched)
        return self._fetching

    def _fetched(self, task: asyncio.Task[None]) -> None:
        self._fetching = None
        if not task.cancelled():
            task.exception()  # seen: who waits for it gets it, a renewal ahead of time has nobody waiting

    async def _refresh(self) -> None:
        try:
            await asyncio.to_thread(self._credential.refresh, self._request)
        except RefreshError as error:
            answer = error.args[1] if len(error.args) > 1 else None
            if error.retryable or not isinstance(answer, dict) or "error" not in answer:
                raise http.NotSent("no token: its server did not give a usable answer") from error
            raise CredentialRefused(str(answer["error"])[:100], str(answer.get("error_description", ""))) from error
        except (GoogleAuthError, OSError, ValueError, TypeError, KeyError) as error:  # the last three: garbage (2.62)
            raise http.NotSent(f"no token: {type(error).__name__}") from error

    async def aclose(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
        self._session.close()


class Fcm(Provider):
    kind: ClassVar[str] = "fcm"
    serves: ClassVar[frozenset[str]] = frozenset({"push:android"})
    Settings: ClassVar[type] = FcmSettings

    settings: FcmSettings

    def __init__(self, settings: FcmSettings, surroundings: Surroundings) -> None:
        super().__init__(settings, surroundings)
        certificate = _certificate(settings)
        self._bearer = _Bearer(certificate.get_credential().with_scopes([SCOPE]), settings.ca_file)
        project = settings.project_id or certificate.project_id
        self._url = f"{settings.base_url.rstrip('/')}/v1/projects/{project}/messages:send"
        self._tls = http.trusting(settings.ca_file)

    @classmethod
    def check(cls, settings: FcmSettings) -> None:
        http.check_given(settings, "service_account")
        http.check_base_url(settings.base_url)
        http.check_ca_file(settings.ca_file)
        if not (settings.project_id or _certificate(settings).project_id):
            raise ConfigurationError("project_id: neither given nor in the service account; name the Firebase project")

    async def aclose(self) -> None:
        await self._bearer.aclose()

    async def prepare(self) -> None:
        async with asyncio.timeout(2 * TOKEN_TIMEOUT_S):
            await self._bearer.token()

    async def send(self, batch: Sequence[Message]) -> list[Outcome]:
        return await http.each(self._send, batch)

    async def _send(self, message: Message) -> Outcome:
        try:
            body = self._body(message)
        except ValueError as error:  # the SDK's validators
            return http.classified(http.REJECTED_CONTENT, code="not_built", detail=http.readable(error))
        if isinstance(body, Outcome):
            return body
        try:
            return _outcome(await self._deliver(body, asyncio.get_running_loop().time() + message.timeout_s))
        except TimeoutError:
            return http.without_answer(http.NotSent("no token in time"))
        except (http.NotSent, http.Uncertain) as error:
            return http.without_answer(error)
        except CredentialRefused as error:
            return http.classified(http.MISCONFIGURED, code=error.code, detail=http.readable(f"no token: {error}"))

    async def _deliver(self, body: bytes, ends_at: float) -> http.Reply:
        token = self._bearer.fresh
        if token is None:
            async with asyncio.timeout_at(ends_at):
                token = await self._bearer.token()
        reply = await self._carry(body, token, ends_at)
        if reply.status == 401 and _error(reply).status == "UNAUTHENTICATED":
            async with asyncio.timeout_at(ends_at):
                fresh = await self._bearer.renewed(token)
            if fresh is not None:  # a 401 was not taken, so this makes no second copy
                reply = await self._carry(body, fresh, ends_at)
        return reply

    async def _carry(self, body: bytes, token: str, ends_at: float) -> http.Reply:
        reply: http.Reply = await self.surroundings.carrier.post(
            self._url,
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
            data=body,
            timeout_s=ends_at - asyncio.get_running_loop().time(),
            ssl_context=self._tls,
        )
        return reply

    def _body(self, message: Message) -> bytes | Outcome:
        content = message.content
        if not isinstance(content, PushContent):
            raise ValueError(f"a push message holds {type(content).__name__}")
        data = {**content.options.data, "n_id": str(message.delivery_id)}
        if content.options.deep_link:
            data["deep_link"] = content.options.deep_link
        for key in data:
            if key in _RESERVED_KEYS or key.startswith(_RESERVED_PREFIXES):
                return http.classified(
                    http.REJECTED_CONTENT, code="reserved_key", detail=f"data key {key[:40]!r} is FCM's own"
                )
        built = messaging.Message(data=data)
        if not content.options.silent:
            built.notification = messaging.Notification(content.title, content.body, content.options.image or None)
        # Set as an attribute: given to the constructor, a token costs a DeprecationWarning each (7.7).
        setattr(built, "fid" if message.address.token_kind == "fcm_fid" else "token", message.address.value)
        encoded = _ENCODER.default(built)
        encoded["android"] = self._android(message, content)
        wire = msgspec.json.encode(encoded)
        if len(wire) > PAYLOAD_LIMIT_BYTES and (size := _payload_bytes(encoded)) > PAYLOAD_LIMIT_BYTES:
            return http.classified(
                http.TOO_LARGE, code="too_large", detail=f"{size} bytes, at most {PAYLOAD_LIMIT_BYTES}"
            )
        validate = b', "validate_only": true' if self.settings.validate_only else b""
        return b'{"message": ' + wire + validate + b"}"

    def _android(self, message: Message, content: PushContent) -> dict[str, Any]:
        options = content.options
        left_s = int(message.expires_at - time.time())
        if options.ttl_s is not None:
            left_s = min(left_s, options.ttl_s)
        loudness = _LOUDNESS.get(options.interruption_level)
        shared = _android(options.priority, options.sound, options.badge, self.settings.android_channel_id, loudness)
        own = {**shared, "ttl": f"{min(max(left_s, 0), TTL_LIMIT_S)}s"}
        if collapse_key := _collapse_key(message):
            own["collapse_key"] = collapse_key
        shown = own.pop("notification", {})
        if not options.silent and (shown := shown | ({"tag": message.collapse_id} if message.collapse_id else {})):
            own["notification"] = shown
        return own


@functools.lru_cache(256)
def _android(priority: str, sound: str, badge: int | None, channel_id: str, loudness: str | None) -> Mapping[str, Any]:
    """What many messages have in common, built and checked once. Raises ValueError for what FCM refuses."""
    notification = messaging.AndroidNotification(
        sound=sound or None, notification_count=badge, channel_id=channel_id or None, priority=loudness
    )
    config = messaging.AndroidConfig(priority=priority, notification=notification)
    encoded: dict[str, Any] = _ENCODER.encode_android(config)
    return encoded


@dataclass(frozen=True, slots=True)
class _Error:
    """The `error` object of an answer, empty fields where the answer has none."""

    status: str = ""  # google.rpc.Code
    code: str = ""  # FcmError.errorCode
    message: str = ""
    fields: frozenset[str] = frozenset()  # BadRequest.fieldViolations[].field
    quotas: str = ""  # QuotaFailure.violations[], as text


def _error(reply: http.Reply) -> _Error:
    error = reply.json.get("error")
    if not isinstance(error, dict):
        return _Error()
    details = [detail for detail in _list(error.get("details")) if isinstance(detail, dict)]
    codes = [detail["errorCode"] for detail in details if isinstance(detail.get("errorCode"), str)]
    violations = [each for detail in details for each in _list(detail.get("fieldViolations")) if isinstance(each, dict)]
    return _Error(
        status=str(error.get("status", "")),
        code=codes[0] if codes else "",
        message=str(error.get("message", "")),
        fields=frozenset(str(each.get("field")) for each in violations),
        quotas=json.dumps([detail.get("violations") for detail in details if "violations" in detail]),
    )


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _outcome(reply: http.Reply) -> Outcome:
    if reply.status == 200 and isinstance(name := reply.json.get("name"), str) and name:
        return Outcome(Kind.ACCEPTED, provider_ref=name, http_status=reply.status)
    error = _error(reply)
    code = error.code or error.status
    row = _ERRORS.get(error.code) or _STATUSES.get(error.status) or _HTTP.get(reply.status)
    if row is None or reply.status < 400:
        row = http.by_status(reply.status)
    if code == "INVALID_ARGUMENT" and (error.fields & _TARGET_FIELDS or _TARGET_WORDS in error.message):
        row = _BAD_TOKEN
    if row.kind is Kind.THROTTLED and "device" in (error.message + error.quotas).lower():
        row = replace(row, scope=Scope.ADDRESS)  # one device's own rate shares the code with the project's
    return http.classified(
        row,
        code=code or reply.status,
        http_status=reply.status,
        detail=http.readable(error.message),
        retry_after_s=http.retry_after_s(reply.headers),
    )


def _payload_bytes(encoded: Mapping[str, Any]) -> int:
    """The size of a message as FCM counts it, on the safe side: all but its target, compact, in UTF-8."""
    return len(msgspec.json.encode({name: value for name, value in encoded.items() if name not in ("token", "fid")}))


def _collapse_key(message: Message) -> str | None:
    """The caller's collapse key; None for one derived from the delivery.

    FCM stores four keys per device: a key of its own for each message would make an offline device lose the fifth.
    https://firebase.google.com/docs/cloud-messaging/customize-messages/set-message-type
    """
    derived = message.delivery_id.hex in message.collapse_id.replace("-", "")
    return None if derived else message.collapse_id or None


def _certificate(settings: FcmSettings) -> credentials.Certificate:
    """Raises ConfigurationError without the cause's text, which may quote the key."""
    try:
        info = json.loads(settings.service_account)
        return credentials.Certificate(info if isinstance(info, dict) else {})
    except ValueError:
        raise ConfigurationError(
            "service_account: is not a service account's JSON key; paste the whole file that the Firebase console gives"
        ) from None
