"""FCM HTTP v1, as its documents describe it.

Send: https://firebase.google.com/docs/reference/fcm/rest/v1/projects.messages
Errors: https://firebase.google.com/docs/reference/fcm/rest/v1/ErrorCode
Token: https://developers.google.com/identity/protocols/oauth2/service-account#httprest
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import time
from typing import Any, ClassVar
from urllib.parse import parse_qs

import jwt

from notifier.sandbox.faults import Mode
from notifier.sandbox.keys import FCM_ACCOUNT, FCM_PROJECT
from notifier.sandbox.ledger import Entry
from notifier.sandbox.magic import THROTTLED_RETRY_AFTER_S, Effect, token_effect
from notifier.sandbox.shape import STRINGS, Shape, misfits
from notifier.sandbox.vendor import Answer, Call, HttpVendor, Interned, Parts, Preview

_AUDIENCE = "https://oauth2.googleapis.com/token"  # google-auth names it whatever the account's token_uri is
_FCM_ERROR = "type.googleapis.com/google.firebase.fcm.v1.FcmError"
_BAD_REQUEST = "type.googleapis.com/google.rpc.BadRequest"
_PAYLOAD_LIMIT_BYTES = 4096
_TOPIC_PAYLOAD_LIMIT_BYTES = 2048
_TOKEN_LIFETIME_S = 3599
_ASSERTION_LIFETIME_S = 3600
_CLOCK_SKEW_S = 300
_TTL_MOST_S = 2_419_200
_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_SCOPES = {"https://www.googleapis.com/auth/firebase.messaging", "https://www.googleapis.com/auth/cloud-platform"}
_NOT_A_TOKEN = "The registration token is not a valid FCM registration token"

_TARGETS = ("token", "fid", "topic", "condition")
_FIELDS = {
    "": {"message", "validate_only"},
    "message": {"name", "data", "notification", "android", "webpush", "apns", "fcm_options", *_TARGETS},
    "message.notification": {"title", "body", "image"},
    "message.android": {
        "collapse_key", "priority", "ttl", "restricted_package_name", "data", "notification", "fcm_options",
        "direct_boot_ok", "bandwidth_constrained_ok", "restricted_satellite_ok",
    },
    "message.apns": {"headers", "payload", "fcm_options", "live_activity_token"},
    "message.webpush": {"headers", "data", "notification", "fcm_options"},
}  # fmt: skip
_TEXTS = dict.fromkeys(("title", "body", "image", "tag"), str)
_SHAPE: Shape = {
    **dict.fromkeys(("name", *_TARGETS), str),
    "data": STRINGS,
    "notification": STRINGS,
    "fcm_options": {},
    "android": {
        **dict.fromkeys(("collapse_key", "priority", "ttl", "restricted_package_name"), str),
        **dict.fromkeys(("direct_boot_ok", "bandwidth_constrained_ok", "restricted_satellite_ok"), bool),
        "data": STRINGS,
        "notification": _TEXTS,
        "fcm_options": {},
    },
    "apns": {"headers": STRINGS, "payload": {}, "fcm_options": {}, "live_activity_token": str},
    "webpush": {"headers": STRINGS, "data": STRINGS, "notification": _TEXTS, "fcm_options": {}},
}
_CAMEL = re.compile(r"(?<=[a-z])([A-Z])")
_DURATION = re.compile(r"\d{1,10}(\.\d{1,9})?s\Z")
_TOPIC = re.compile(r"[a-zA-Z0-9-_.~%]+\Z")
_RESERVED_KEY = re.compile(r"(from|message_type)\Z|google\.|gcm\.notification\.")
_NO_NEED_TO_KEEP = 10_000


class Invalid(Exception):
    """The request cannot pass. `field` is named in a BadRequest detail where the vendor does so."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class Fcm(HttpVendor):
    provider: ClassVar[str] = "fcm"
    channel: ClassVar[str] = "push"
    messages: ClassVar[re.Pattern[str]] = re.compile(r"/v1/projects/([^/]+)/messages:send\Z")

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._kept_headers = Interned("user-agent", "content-type", "x-firebase-client", "x-goog-api-client")
        self._tokens: dict[str, float] = {}  # bearer tokens already verified, with their end

    def receive(self, call: Call) -> Answer:
        if call.method != "POST":
            return _error(404, "NOT_FOUND", "Requested entity was not found.")
        if (refused := self._unauthorized(call)) is not None:
            return refused
        if call.path != f"/v1/projects/{FCM_PROJECT}/messages:send":
            return _error(404, "NOT_FOUND", "Requested entity was not found.")
        try:
            message, validate_only = _parse(call.body)
            target = _check(message)
            _check_size(message, len(call.body))
        except Invalid as invalid:
            violation = {"field": invalid.field, "description": str(invalid)} if invalid.field else None
            return _error(400, "INVALID_ARGUMENT", str(invalid), fcm="INVALID_ARGUMENT", violation=violation)
        value = message[target]
        effect = token_effect(value) if target in ("token", "fid") else Effect.OK
        if effect is Effect.UNREGISTERED:
            return _error(404, "NOT_FOUND", "Requested entity was not found.", fcm="UNREGISTERED")
        if effect is Effect.BAD_TOKEN:
            violation = {"field": "message.token", "description": _NOT_A_TOKEN}
            return _error(400, "INVALID_ARGUMENT", _NOT_A_TOKEN, fcm="INVALID_ARGUMENT", violation=violation)
        if effect is Effect.THROTTLED and self.parts.throttle.holds_back(value):
            return _quota_exceeded(THROTTLED_RETRY_AFTER_S)
        if validate_only:
            return Answer(200, json.dumps({"name": f"projects/{FCM_PROJECT}/messages/fake_message_id"}).encode())
        self._accept(call, message, value if target in ("token", "fid") else f"/{target}s/{value}")
        name = f"projects/{FCM_PROJECT}/messages/0:{time.time_ns() // 1000}%{secrets.token_hex(8)}"
        return Answer(200, b'{\n  "name": "%s"\n}\n' % name.encode(), accepted=True)

    def _accept(self, call: Call, message: dict[str, Any], to: str) -> None:
        self.parts.ledger.accept(
            provider=self.provider,
            channel=self.channel,
            to=to,
            delivery_id=(message.get("data") or {}).get("n_id"),
            headers=self._kept_headers(call.headers),
            body=call.body,
        )

    # The OAuth 2.0 side

    def other(self, call: Call) -> Answer | None:
        if call.path != "/token":
            return None
        if call.method != "POST":
            return _oauth_error("invalid_request", "Only POST is allowed.", status=405)
        form = {name: values[0] for name, values in parse_qs(call.body.decode("latin-1")).items()}
        if form.get("grant_type") != _GRANT:
            return _oauth_error("unsupported_grant_type", f"Invalid grant_type: {form.get('grant_type', '')[:80]}")
        if (fault := self._assertion_fault(form.get("assertion", ""), call)) is not None:
            return fault
        ends = int(time.time()) + _TOKEN_LIFETIME_S
        token = f"ya29.{ends}.{secrets.token_urlsafe(12)}"
        answer = {
            "access_token": f"{token}.{self._seal(token)}",
            "expires_in": _TOKEN_LIFETIME_S,
            "token_type": "Bearer",
        }
        return Answer(200, json.dumps(answer).encode())

    def _assertion_fault(self, assertion: str, call: Call) -> Answer | None:
        public = self.parts.keys.fcm_private.public_key()
        try:
            claims = jwt.decode(assertion, public, algorithms=["RS256"], options={"verify_aud": False}, leeway=60)
        except jwt.ExpiredSignatureError:
            return _oauth_error("invalid_grant", "Invalid JWT: Token must be a short-lived token (60 minutes)")
        except jwt.InvalidSignatureError:
            return _oauth_error("invalid_grant", "Invalid JWT Signature.")
        except jwt.PyJWTError:
            return _oauth_error("invalid_grant", "Invalid JWT.")
        if claims.get("iss") != FCM_ACCOUNT:
            return _oauth_error("invalid_grant", "Invalid grant: account not found")
        if claims.get("aud") not in (_AUDIENCE, f"{self.parts.public_url}/token", f"{call.url}/token"):
            return _oauth_error("invalid_grant", "Invalid JWT: Failed audience check.")
        issued, ends = claims.get("iat"), claims.get("exp")
        if not isinstance(issued, int) or not isinstance(ends, int) or not 0 < ends - issued <= _ASSERTION_LIFETIME_S:
            return _oauth_error("invalid_grant", "Invalid JWT: Token must be a short-lived token (60 minutes)")
        if not _SCOPES & set(str(claims.get("scope", "")).split()):
            return _oauth_error("invalid_scope", "Invalid OAuth scope or ID token audience provided.")
        return None

    def _seal(self, token: str) -> str:
        """Tokens are sealed, not stored: like the vendor's, they outlive a restart of this process."""
        return hmac.new(self.parts.keys.token_secret, token.encode(), hashlib.sha256).hexdigest()[:32]

    def _unauthorized(self, call: Call) -> Answer | None:
        given = call.headers.get("authorization", "")
        ends = self._tokens.get(given)
        if ends is None:
            ends = self._end_of(given)
            if ends:
                if len(self._tokens) > _NO_NEED_TO_KEEP:
                    self._tokens.clear()
                self._tokens[given] = ends
        if ends > time.time():
            return None
        return self.refusal(Mode.HTTP_401, None, call)

    def _end_of(self, authorization: str) -> float:
        """When the bearer token ends, Unix seconds; 0 when it is not one of ours."""
        scheme, _, bearer = authorization.partition(" ")
        token, _, seal = bearer.strip().rpartition(".")
        if scheme.lower() != "bearer" or not hmac.compare_digest(seal.encode(), self._seal(token).encode()):
            return 0.0
        return float(token.split(".")[1])

    def refusal(self, mode: Mode, retry_after: float | None, call: Call) -> Answer:
        if mode is Mode.HTTP_401:
            text = (
                "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other "
                "valid authentication credential. See https://developers.google.com/identity/sign-in/web/devconsole-project."
            )
            return _error(401, "UNAUTHENTICATED", text)
        if mode is Mode.HTTP_429:
            return _quota_exceeded(retry_after)
        if mode is Mode.GONE:
            return _error(404, "NOT_FOUND", "Requested entity was not found.", fcm="UNREGISTERED")
        answer = _error(500, "INTERNAL", "Internal error encountered.", fcm="INTERNAL")
        return answer if retry_after is None else _with_retry_after(answer, retry_after)

    # How people see it

    def body(self, entry: Entry, raw: bytes) -> Any:
        return json.loads(raw)

    def preview(self, entry: Entry, raw: bytes) -> Preview:
        message = _snake(json.loads(raw)["message"])
        shown = dict(message.get("notification") or {})
        android, webpush = message.get("android") or {}, message.get("webpush") or {}
        for more in (android.get("notification"), webpush.get("notification")):
            shown.update(more or {})
        notes = [f"{name}: {value}" for name, value in (message.get("data") or {}).items() if not name.startswith("n_")]
        return Preview(
            look="desktop" if webpush and not android else "phone",
            sender="Android",
            title=str(shown.get("title", "")),
            text=str(shown.get("body", "")) or ("" if shown else "Silent: data only"),
            image=str(shown.get("image", "")),
            replaces=str(shown.get("tag") or android.get("collapse_key") or ""),
            note=" · ".join(notes),
        )


def _snake(value: Any) -> Any:
    """Google's JSON takes `validateOnly` and `validate_only` alike. Only the vendor's own levels are renamed."""
    if not isinstance(value, dict):
        return value
    return {(_CAMEL.sub(r"_\1", key).lower() if not key.islower() else key): held for key, held in value.items()}


def _parse(body: bytes) -> tuple[dict[str, Any], bool]:
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        raise Invalid("Invalid JSON payload received. Unexpected token.") from None
    if not isinstance(request, dict):
        raise Invalid('Invalid JSON payload received. Unknown name "": Root element must be a message.')
    request = _known(request, "")
    message = request.get("message")
    if not isinstance(message, dict):
        raise Invalid("Message is missing.", "message")
    validate_only = request.get("validate_only", False)
    if not isinstance(validate_only, bool):
        raise Invalid("Invalid value at 'validate_only' (TYPE_BOOL)", "validate_only")
    return _known(message, "message"), validate_only


def _known(given: dict[str, Any], path: str) -> dict[str, Any]:
    fields = _FIELDS[path]
    if not given.keys() <= fields:
        given = _snake(given)
        if unknown := given.keys() - fields:
            where = f" at '{path}'" if path else ""
            name = min(unknown)
            raise Invalid(f'Invalid JSON payload received. Unknown name "{name}"{where}: Cannot find field.', path)
    return given


def _check(message: dict[str, Any]) -> str:
    """Raises Invalid. Returns which target field is set."""
    targets = [name for name in _TARGETS if message.get(name) not in (None, "")]
    if not targets:
        raise Invalid("Recipient of the message is not set.")
    if len(targets) > 1:
        raise Invalid("Invalid value at 'message' (oneof), oneof field 'target' is already set. Cannot set more.")
    for part in ("notification", "android", "apns", "webpush"):
        if isinstance(message.get(part), dict):
            message[part] = _known(message[part], f"message.{part}")
    for path, wanted in misfits(message, _SHAPE, "message"):
        raise Invalid(f"Invalid value at '{path}'{' (TYPE_STRING)' if wanted is str else ''}", path.partition("[")[0])
    if message.get("topic") and not _TOPIC.match(message["topic"]):
        raise Invalid("Malformed topic name", "message.topic")
    android, webpush = message.get("android") or {}, message.get("webpush") or {}
    _check_keys(message, "message.data")
    _check_keys(android, "message.android.data")
    _check_keys(webpush, "message.webpush.data")
    if (android.get("priority") or "normal").lower() not in ("normal", "high"):
        raise Invalid("Invalid value at 'message.android.priority'", "message.android.priority")
    ttl = android.get("ttl") or "0s"
    if not _DURATION.match(ttl) or float(ttl[:-1]) > _TTL_MOST_S:
        raise Invalid("Invalid time to live: it must be from 0 to 2419200 seconds", "message.android.ttl")
    return targets[0]


def _check_keys(holder: dict[str, Any], path: str) -> None:
    for key in holder.get("data") or ():
        if _RESERVED_KEY.match(key):
            raise Invalid(f"Invalid data payload key: {key}", path)


def _check_size(message: dict[str, Any], sent_bytes: int) -> None:
    """The payload is what reaches the device: keys and values of data and notification."""
    is_topic = "topic" in message or "condition" in message
    limit = _TOPIC_PAYLOAD_LIMIT_BYTES if is_topic else _PAYLOAD_LIMIT_BYTES
    if sent_bytes <= limit:
        return
    android = message.get("android") or {}
    carried = [
        message.get("notification"), android.get("data") or message.get("data"), android.get("notification"),
        message.get("webpush"), message.get("apns"),
    ]  # fmt: skip
    if sum(map(_weight, carried)) > limit:
        raise Invalid("Android message is too big")


def _weight(value: Any) -> int:
    if isinstance(value, dict):
        return sum(len(key.encode("utf-8", "replace")) + _weight(held) for key, held in value.items())
    if isinstance(value, list):
        return sum(map(_weight, value))
    return 0 if value is None else len(str(value).encode("utf-8", "replace"))


def _error(status: int, word: str, text: str, *, fcm: str = "", violation: dict[str, str] | None = None) -> Answer:
    error: dict[str, Any] = {"code": status, "message": text, "status": word}
    details: list[dict[str, Any]] = []
    if fcm:
        details.append({"@type": _FCM_ERROR, "errorCode": fcm})
    if violation is not None:
        details.append({"@type": _BAD_REQUEST, "fieldViolations": [violation]})
    if details:
        error["details"] = details
    return Answer(status, json.dumps({"error": error}, indent=2).encode())


def _quota_exceeded(retry_after: float | None) -> Answer:
    text = "Quota exceeded for quota metric 'Send requests' and limit 'Send requests per minute'."
    answer = _error(429, "RESOURCE_EXHAUSTED", text, fcm="QUOTA_EXCEEDED")
    return answer if retry_after is None else _with_retry_after(answer, retry_after)


def _with_retry_after(answer: Answer, seconds: float) -> Answer:
    return Answer(answer.status, answer.body, answer.content_type, {"Retry-After": f"{seconds:.0f}"})


def _oauth_error(code: str, text: str, *, status: int = 400) -> Answer:
    return Answer(status, json.dumps({"error": code, "error_description": text}).encode())
