"""Pushy's API, as its documents describe it.

Send: https://pushy.me/docs/api/send-notifications
Errors: https://pushy.me/docs/api/errors
"""

from __future__ import annotations

import json
import re
import secrets
import time
from typing import Any, ClassVar
from urllib.parse import parse_qs

from notifier.sandbox.faults import Mode
from notifier.sandbox.keys import PUSHY_API_KEY
from notifier.sandbox.ledger import Entry
from notifier.sandbox.magic import THROTTLED_RETRY_AFTER_S, Effect, token_effect
from notifier.sandbox.shape import Shape, misfits
from notifier.sandbox.vendor import Answer, Call, HttpVendor, Interned, Parts, Preview

_DATA_LIMIT_BYTES = 4096
_TTL_MOST_S = 31_536_000
_COLLAPSE_KEY_MOST = 32
_TOKENS_MOST, _TOPICS_MOST = 100_000, 100
_DEAD = (Effect.UNREGISTERED, Effect.BAD_TOKEN)
_SHAPE: Shape = {
    "data": {},
    "time_to_live": int,
    "schedule": int,
    "collapse_key": str,
    "content_available": bool,
    "mutable_content": bool,
    "notification": {**dict.fromkeys(("title", "subtitle", "body", "sound", "category"), str), "badge": int},
}


class Invalid(Exception):
    """The request cannot pass, for the vendor's `code`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Pushy(HttpVendor):
    provider: ClassVar[str] = "pushy"
    channel: ClassVar[str] = "push"
    messages: ClassVar[re.Pattern[str]] = re.compile(r"/push/?\Z")

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._kept_headers = Interned("user-agent", "content-type")

    def receive(self, call: Call) -> Answer:
        if call.method != "POST":
            return _error(404, "NOT_FOUND", "The API endpoint was not found.")
        if parse_qs(call.query).get("api_key") != [PUSHY_API_KEY]:
            return self.refusal(Mode.HTTP_401, None, call)
        try:
            body, to = _check(call.body)
        except Invalid as invalid:
            return _error(400, invalid.code, str(invalid))
        effects = {one: token_effect(one) for one in to}
        for one, effect in effects.items():
            if effect is Effect.THROTTLED and self.parts.throttle.holds_back(one):
                return self.refusal(Mode.HTTP_429, THROTTLED_RETRY_AFTER_S, call)
        reached = [one for one, effect in effects.items() if effect not in _DEAD]
        if not reached:
            return self.refusal(Mode.GONE, None, call)
        given = body["data"].get("n_id")
        for part, one in enumerate(reached):
            self.parts.ledger.accept(
                provider=self.provider,
                channel=self.channel,
                to=one,
                delivery_id=given if isinstance(given, str) else None,
                headers=self._kept_headers(call.headers),
                body=call.body,
                part=part,
                shared_by=len(reached),
            )
        info = {"devices": len(reached), "failed": [one for one in to if one not in reached]}
        said = {"success": True, "id": secrets.token_hex(10), "info": info}
        return Answer(200, json.dumps(said).encode(), accepted=True)

    def refusal(self, mode: Mode, retry_after: float | None, call: Call) -> Answer:
        if mode is Mode.HTTP_401:
            return _error(401, "INVALID_API_KEY", "The provided API key is invalid. Check it in the dashboard.")
        if mode is Mode.HTTP_429:
            limited = _error(429, "RATE_LIMIT_EXCEEDED", "You have exceeded the rate limit. Please try again later.")
            wait = {} if retry_after is None else {"Retry-After": f"{retry_after:.0f}"}
            return Answer(limited.status, limited.body, headers=wait)
        if mode is Mode.GONE:
            return _error(400, "NO_RECIPIENTS", "No devices matched the specified condition.")
        return _error(500, "INTERNAL_ERROR", "An internal error occurred. Please try again later.")

    # How people see it

    def body(self, entry: Entry, raw: bytes) -> Any:
        return json.loads(raw)

    def preview(self, entry: Entry, raw: bytes) -> Preview:
        body = json.loads(raw)
        shown, data = body.get("notification") or {}, body["data"]
        title, text = shown.get("title") or data.get("title") or "", shown.get("body") or data.get("message") or ""
        own = ("n_id", "title", "message", "image")
        return Preview(
            look="phone",
            sender="iOS (Pushy)" if shown or body.get("content_available") else "Android (Pushy)",
            title=str(title),
            text=str(text) or ("" if title else "Silent: data only"),
            image=str(data.get("image") or ""),
            replaces=str(body.get("collapse_key") or ""),
            note=" · ".join(f"{name}: {value}" for name, value in data.items() if name not in own),
        )


def _check(raw: bytes) -> tuple[dict[str, Any], list[str]]:
    """The request and whom it is for. Raises Invalid."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise Invalid("INVALID_PARAM", "The request body must be valid JSON.") from None
    if not isinstance(body, dict):
        raise Invalid("INVALID_PARAM", "The request body must be a JSON object.")
    to = body.get("to")
    named = [to] if isinstance(to, str) else to
    if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
        raise Invalid("INVALID_PARAM", "Please provide the 'to' parameter: a device token, a topic, or an array.")
    recipients = [one for one in dict.fromkeys(named) if one]
    if not recipients:
        raise Invalid("NO_RECIPIENTS", "Please provide at least one recipient.")
    topics = sum(one.startswith("/topics/") for one in recipients)
    if topics > _TOPICS_MOST or len(recipients) - topics > _TOKENS_MOST:
        raise Invalid("INVALID_PARAM", "Too many recipients were provided.")
    if not isinstance(body.get("data"), dict):
        raise Invalid("INVALID_PARAM", "Please provide the 'data' parameter as an object.")
    for path, _ in misfits(body, _SHAPE, ""):
        raise Invalid("INVALID_PARAM", f"The parameter '{path}' has an invalid type.")
    if not 0 <= (body.get("time_to_live") or 0) <= _TTL_MOST_S:
        raise Invalid("INVALID_PARAM", "The time_to_live must not exceed one year.")
    if not 0 <= (body.get("schedule") or 0) <= time.time() + _TTL_MOST_S:
        raise Invalid("INVALID_PARAM", "The scheduled time must not exceed one year.")
    if len(body.get("collapse_key") or "") > _COLLAPSE_KEY_MOST:
        raise Invalid("INVALID_PARAM", "The collapse_key must not exceed 32 characters.")
    written = json.dumps(body["data"], ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    if len(written) > _DATA_LIMIT_BYTES:
        raise Invalid("PAYLOAD_LIMIT_EXCEEDED", "The payload exceeds the limit of 4 KB.")
    return body, recipients


def _error(status: int, code: str, text: str) -> Answer:
    return Answer(status, json.dumps({"code": code, "error": text}).encode())
