"""Pushy (pushy.me): pushes to Android devices without Google's services, and to iOS.

Send: https://pushy.me/docs/api/send-notifications
Errors: https://pushy.me/docs/api/errors
The key is part of the URL. On Android the app itself shows what is in `data`: `title`, `message`, `image`, `sound` and
`badge` are put there beside the caller's own. Each message is a call of its own, for `data` names its delivery.
Pushy knows no threads and no interruption levels, reports nothing back, and recognises no repeat: `collapse_key`
replaces a copy that still waits.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import quote

import msgspec

from notifier.message import Message, Platform, PushContent
from notifier.outcome import Kind, Outcome, Scope
from notifier.providers import http
from notifier.providers.base import Provider, Surroundings, setting

PAYLOAD_LIMIT_BYTES = 4096  # of `data`; of `notification`, too, where Apple carries both
TTL_LIMIT_S = 31_536_000  # 365 days
COLLAPSE_KEY_LIMIT = 32

_GONE = Outcome(Kind.GONE, Scope.ADDRESS, reason="device_unregistered")

_ERRORS: http.Table = {
    "NO_RECIPIENTS": _GONE,  # "no valid devices": each call has one
    "INVALID_PARAM": http.REJECTED_CONTENT,
    "PAYLOAD_LIMIT_EXCEEDED": http.TOO_LARGE,
    "NO_APNS_AUTH": Outcome(Kind.MISCONFIGURED, Scope.SENDER),  # iOS alone: the app has no Apple key at Pushy
    "INVALID_API_KEY": http.MISCONFIGURED,
    "ACCOUNT_SUSPENDED": http.MISCONFIGURED,
    "SUBSCRIPTION_ERROR": http.MISCONFIGURED,  # the plan's limit
    "RATE_LIMIT_EXCEEDED": http.THROTTLED,
    "INTERNAL_ERROR": http.UNAVAILABLE,
    "INTERNAL_SERVER_ERROR": http.UNAVAILABLE,
}
"""https://pushy.me/docs/api/errors (`code`)"""

_HTTP: Mapping[int, Outcome] = {402: http.MISCONFIGURED}


@dataclass(frozen=True, slots=True)
class PushySettings:
    api_key: str = setting(secret=True, help="the app's Secret API Key (Pushy dashboard, API Authentication)")
    base_url: str = setting("https://api.pushy.me", help="where Pushy answers")
    ca_file: str = setting(help="PEM file of a further authority to trust, for a stand-in server")


class Pushy(Provider):
    kind: ClassVar[str] = "pushy"
    serves: ClassVar[frozenset[str]] = frozenset({"push:ios", "push:android", "push:android_cn"})
    Settings: ClassVar[type] = PushySettings

    settings: PushySettings

    def __init__(self, settings: PushySettings, surroundings: Surroundings) -> None:
        super().__init__(settings, surroundings)
        self._url = f"{settings.base_url.rstrip('/')}/push?api_key={quote(settings.api_key, safe='')}"
        self._tls = http.trusting(settings.ca_file)

    @classmethod
    def check(cls, settings: PushySettings) -> None:
        http.check_credential(settings, "api_key")
        http.check_base_url(settings.base_url)
        http.check_ca_file(settings.ca_file)

    async def send(self, batch: Sequence[Message]) -> list[Outcome]:
        return await http.each(self._send, batch)

    async def _send(self, message: Message) -> Outcome:
        content = message.content
        if not isinstance(content, PushContent):
            return http.classified(http.REJECTED_CONTENT, code="not_built", detail="a push message holds no push")
        body = _body(message, content)
        size = sum(len(msgspec.json.encode(body[name])) for name in ("data", "notification") if name in body)
        if size > PAYLOAD_LIMIT_BYTES:
            return http.classified(
                http.TOO_LARGE, code="too_large", detail=f"{size} bytes, at most {PAYLOAD_LIMIT_BYTES}"
            )
        try:
            reply = await self.surroundings.carrier.post(
                self._url,
                headers={"Content-Type": "application/json"},
                data=msgspec.json.encode(body),
                timeout_s=message.timeout_s,
                ssl_context=self._tls,
            )
        except (http.NotSent, http.Uncertain) as error:
            return http.without_answer(error)
        return _outcome(reply, message.address.value, self.settings.api_key)


def _body(message: Message, content: PushContent) -> dict[str, Any]:
    options = content.options
    left_s = int(message.expires_at - time.time())
    if options.ttl_s is not None:
        left_s = min(left_s, options.ttl_s)
    data: dict[str, Any] = {}
    body: dict[str, Any] = {
        "to": message.address.value,
        "data": data,
        "time_to_live": min(max(left_s, 1), TTL_LIMIT_S),  # none at all would be a month
    }
    if message.collapse_id:
        body["collapse_key"] = _collapse_key(message.collapse_id)
    if message.address.platform is Platform.IOS:
        if options.silent:
            body["content_available"] = True
        else:
            body["notification"] = _notification(content)
        if options.image and not options.silent:
            body["mutable_content"] = True  # lets the app's extension fetch it
            data["image"] = options.image
    elif not options.silent:
        shown = {"title": content.title, "message": content.body, "image": options.image, "sound": options.sound}
        data.update({name: value for name, value in shown.items() if value})
        if options.badge is not None:
            data["badge"] = options.badge
    if options.deep_link:
        data["deep_link"] = options.deep_link
    data.update(options.data)  # the caller knows the app that reads it
    data["n_id"] = str(message.delivery_id)
    return body


def _notification(content: PushContent) -> dict[str, Any]:
    options = content.options
    shown: dict[str, Any] = {"title": content.title, "body": content.body}
    if options.sound:
        shown["sound"] = options.sound
    if options.badge is not None:
        shown["badge"] = options.badge
    return shown


def _collapse_key(collapse_id: str) -> str:
    """At most 32 characters: a longer one by its hash, so that equal ones stay equal and others do not become so."""
    if len(collapse_id) <= COLLAPSE_KEY_LIMIT:
        return collapse_id
    return hashlib.sha256(collapse_id.encode()).hexdigest()[:COLLAPSE_KEY_LIMIT]


def _outcome(reply: http.Reply, token: str, api_key: str) -> Outcome:
    answer = reply.json
    if reply.status == 200 and answer.get("success") is True and isinstance(push_id := answer.get("id"), str):
        info = answer.get("info")
        failed = info.get("failed") if isinstance(info, dict) else None
        if isinstance(failed, list) and token in failed:
            return http.classified(_GONE, code="failed", http_status=reply.status)
        if push_id:
            return Outcome(Kind.ACCEPTED, provider_ref=push_id, http_status=reply.status)
    code = str(answer.get("code", ""))
    row = _ERRORS.get(code) or _HTTP.get(reply.status)
    if row is None or reply.status < 400:
        row = http.by_status(reply.status)
    return http.classified(
        row,
        code=code[:100] or reply.status,
        http_status=reply.status,
        detail=http.readable(answer.get("error", ""), token, api_key),
        retry_after_s=http.retry_after_s(reply.headers),
    )
