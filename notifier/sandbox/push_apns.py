"""APNs' rules: provider tokens, headers, payload sizes, reasons. The wire is in `h2_wire`.

Send: https://developer.apple.com/documentation/usernotifications/sending-notification-requests-to-apns
Tokens: https://developer.apple.com/documentation/usernotifications/establishing-a-token-based-connection-to-apns
Reasons: https://developer.apple.com/documentation/usernotifications/handling-notification-responses-from-apns
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

import jwt

from notifier.sandbox.faults import Mode
from notifier.sandbox.keys import APNS_KEY_ID, APNS_TEAM_ID
from notifier.sandbox.ledger import Entry
from notifier.sandbox.magic import THROTTLED_RETRY_AFTER_S, Effect, apns_effect
from notifier.sandbox.vendor import Answer, Call, HttpVendor, Parts, Preview

PAYLOAD_LIMIT_BYTES, VOIP_PAYLOAD_LIMIT_BYTES = 4096, 5120
_TOKEN_LIFETIME_S = 3600
_TOKEN_UPDATE_S = 1200
_CLOCK_SKEW_S = 60
_PATH = re.compile(r"/3/device/([^/]*)\Z")
_DEVICE_TOKEN = re.compile(r"(?:[0-9a-fA-F]{2}){32,100}\Z")
_TOPIC = re.compile(r"[A-Za-z0-9.-]{1,255}\Z")
_PUSH_TYPES = {
    "alert", "background", "voip", "complication", "fileprovider", "mdm", "liveactivity", "location", "pushtotalk",
    "controls", "widgets",
}  # fmt: skip
_TOPIC_SUFFIX = {
    "voip": ".voip",
    "complication": ".complication",
    "fileprovider": ".pushkit.fileprovider",
    "liveactivity": ".push-type.liveactivity",
    "location": ".location-query",
    "pushtotalk": ".voip-ptt",
    "controls": ".push-type.controls",
    "widgets": ".push-type.widgets",
}
_KEPT_HEADERS = (
    "apns-id", "apns-topic", "apns-push-type", "apns-priority", "apns-expiration", "apns-collapse-id", "user-agent",
)  # fmt: skip
_NO_NEED_TO_KEEP = 10_000


class Refused(Exception):
    def __init__(self, status: int, reason: str, *, retry_after: float | None = None, at_ms: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.retry_after, self.at_ms = status, reason, retry_after, at_ms


class TokenWatch:
    """Which provider tokens were used, and whether a new one comes too soon after the last.

    One watch per connection; with `--strict-tokens` one for all, as when the vendor looks at the key. A token
    that was already in use stays good beside a newer one.
    """

    def __init__(self) -> None:
        self._used: dict[str, float] = {}
        self._last_new = 0.0

    def admits(self, token: str) -> bool:
        if token in self._used:
            return True
        now = time.time()
        if self._used and now - self._last_new < _TOKEN_UPDATE_S:
            return False
        self._used = {known: since for known, since in self._used.items() if now - since < _TOKEN_LIFETIME_S}
        self._used[token] = self._last_new = now
        return True


class Apns(HttpVendor):
    provider: ClassVar[str] = "apns"
    channel: ClassVar[str] = "push"
    messages: ClassVar[re.Pattern[str]] = _PATH

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._issued: dict[str, float] = {}  # provider tokens already verified, with their time of issue
        self._shared_watch = TokenWatch()

    def watch(self) -> TokenWatch:
        return self._shared_watch if self.parts.options.strict_tokens else TokenWatch()

    def receive(self, call: Call) -> Answer:
        """For calls without a connection of their own; `answer` is the whole of it."""
        return self.answer(call, TokenWatch())

    def answer(self, call: Call, watch: TokenWatch, *, oversized: bool = False) -> Answer:
        """`oversized`: the body went beyond every limit and was not kept. The answer's headers hold `apns-id`."""
        headers = call.headers
        apns_id = headers.get("apns-id", "")
        try:
            if apns_id and not _is_uuid(apns_id):
                apns_id = ""
                raise Refused(400, "BadMessageId")
            apns_id = apns_id or str(uuid.uuid4()).upper()
            token = self._check(call, watch)
            payload = _check_payload(call.body, headers, oversized)
            self._check_device(token)
        except Refused as refused:
            return _refusal(refused, apns_id)
        marks = payload.get("_n")
        self.parts.ledger.accept(
            provider=self.provider,
            channel=self.channel,
            to=token,
            delivery_id=marks.get("d") if isinstance(marks, dict) else None,
            headers=tuple((name, headers[name]) for name in _KEPT_HEADERS if name in headers),
            body=call.body,
        )
        return Answer(200, headers={"apns-id": apns_id}, accepted=True)

    def _check(self, call: Call, watch: TokenWatch) -> str:
        found = _PATH.match(call.path)
        if found is None:
            raise Refused(404, "BadPath")
        if call.method != "POST":
            raise Refused(405, "MethodNotAllowed")
        self._authorize(call.headers.get("authorization", ""), watch)
        _check_headers(call.headers)
        if not found[1]:
            raise Refused(400, "MissingDeviceToken")
        if not _DEVICE_TOKEN.match(found[1]):
            raise Refused(400, "BadDeviceToken")
        return found[1]

    def _authorize(self, authorization: str, watch: TokenWatch) -> None:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Refused(403, "MissingProviderToken")
        issued = self._issued.get(token)
        if issued is None:
            issued = self._verified(token)
            if len(self._issued) > _NO_NEED_TO_KEEP:
                self._issued.clear()
            self._issued[token] = issued
        if time.time() - issued > _TOKEN_LIFETIME_S:
            raise Refused(403, "ExpiredProviderToken")
        if not watch.admits(token):
            raise Refused(429, "TooManyProviderTokenUpdates")

    def _verified(self, token: str) -> float:
        """When it was issued. Its age is judged by the caller: it grows while the token is kept."""
        options: Any = {"verify_iat": False, "verify_aud": False, "verify_exp": False}
        try:
            if jwt.get_unverified_header(token).get("kid") != APNS_KEY_ID:
                raise Refused(403, "InvalidProviderToken")
            claims = jwt.decode(token, self.parts.keys.apns_public, algorithms=["ES256"], options=options)
        except jwt.PyJWTError:
            raise Refused(403, "InvalidProviderToken") from None
        issued = claims.get("iat")
        if claims.get("iss") != APNS_TEAM_ID or not isinstance(issued, int | float):
            raise Refused(403, "InvalidProviderToken")
        if issued > time.time() + _CLOCK_SKEW_S:
            raise Refused(403, "InvalidProviderToken")
        return float(issued)

    def _check_device(self, token: str) -> None:
        effect = apns_effect(token)
        if effect is Effect.BAD_TOKEN:
            raise Refused(400, "BadDeviceToken")
        if effect is Effect.UNREGISTERED:
            raise Refused(410, "Unregistered", at_ms=time.time_ns() // 1_000_000)
        if effect is Effect.THROTTLED and self.parts.throttle.holds_back(token.lower()):
            raise Refused(429, "TooManyRequests", retry_after=THROTTLED_RETRY_AFTER_S)

    def refusal(self, mode: Mode, retry_after: float | None, call: Call) -> Answer:
        apns_id = call.headers.get("apns-id", "")
        if mode is Mode.HTTP_401:
            return _refusal(Refused(403, "InvalidProviderToken"), apns_id)
        if mode is Mode.HTTP_429:
            return _refusal(Refused(429, "TooManyRequests", retry_after=retry_after), apns_id)
        if mode is Mode.GONE:
            return _refusal(Refused(410, "Unregistered", at_ms=time.time_ns() // 1_000_000), apns_id)
        return _refusal(Refused(500, "InternalServerError", retry_after=retry_after), apns_id)

    # How people see it

    def body(self, entry: Entry, raw: bytes) -> Any:
        return json.loads(raw)

    def preview(self, entry: Entry, raw: bytes) -> Preview:
        payload, headers = json.loads(raw), dict(entry.headers)
        aps = payload.get("aps") if isinstance(payload.get("aps"), dict) else {}
        alert = aps.get("alert") or {}
        if not isinstance(alert, dict):
            alert = {"body": str(alert)}
        notes = []
        if aps.get("badge") is not None:
            notes.append(f"badge {aps['badge']}")
        if aps.get("thread-id"):
            notes.append(f"thread {aps['thread-id']}")
        if aps.get("interruption-level"):
            notes.append(str(aps["interruption-level"]))
        topic = headers.get("apns-topic", "")
        return Preview(
            look="desktop" if re.search(r"(^|\.)(mac|macos|desktop)(\.|$)", topic) else "phone",
            sender=topic,
            title=str(alert.get("title", "")),
            text=str(alert.get("body", "")) or ("" if alert.get("title") else "Silent: data only"),
            image=str(payload.get("image") or payload.get("image_url") or ""),
            replaces=headers.get("apns-collapse-id", ""),
            note=" · ".join(notes),
        )


def _check_headers(headers: Mapping[str, str]) -> None:
    if "\0duplicate" in headers:
        raise Refused(400, "DuplicateHeaders")
    topic, push_type = headers.get("apns-topic", ""), headers.get("apns-push-type", "alert")
    if not topic:
        raise Refused(400, "MissingTopic")
    if not _TOPIC.match(topic):
        raise Refused(400, "BadTopic")
    if push_type not in _PUSH_TYPES:
        raise Refused(400, "InvalidPushType")
    if not topic.endswith(_TOPIC_SUFFIX.get(push_type, "")):
        raise Refused(400, "TopicDisallowed")
    priority = headers.get("apns-priority", "5" if push_type == "background" else "10")
    if priority not in ("1", "5", "10") or (push_type == "background" and priority == "10"):
        raise Refused(400, "BadPriority")
    expiration = headers.get("apns-expiration", "0")
    if not expiration.isascii() or not expiration.isdigit() or len(expiration) > 12:
        raise Refused(400, "BadExpirationDate")
    if len(headers.get("apns-collapse-id", "").encode("utf-8", "replace")) > 64:
        raise Refused(400, "BadCollapseId")


def _check_payload(body: bytes, headers: Mapping[str, str], oversized: bool) -> dict[str, Any]:
    limit = VOIP_PAYLOAD_LIMIT_BYTES if headers.get("apns-push-type") == "voip" else PAYLOAD_LIMIT_BYTES
    if oversized or len(body) > limit:
        raise Refused(413, "PayloadTooLarge")
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        payload = None
    if not isinstance(payload, dict) or not payload:
        raise Refused(400, "PayloadEmpty")
    return payload


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


def _refusal(refused: Refused, apns_id: str) -> Answer:
    body: dict[str, Any] = {"reason": refused.reason}
    if refused.at_ms is not None:
        body["timestamp"] = refused.at_ms
    headers = {"apns-id": apns_id} if apns_id else {}
    if refused.retry_after is not None:
        headers["retry-after"] = f"{refused.retry_after:.0f}"
    return Answer(refused.status, json.dumps(body, separators=(",", ":")).encode(), "application/json", headers)
