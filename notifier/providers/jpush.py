"""JPush (Aurora, Jiguang): pushes to devices in China, through the phones' own vendors where it can.

Send: https://docs.jiguang.cn/en/jpush/server/push/rest_api_v3_push
Repeats (`cid`): https://docs.jiguang.cn/en/jpush/server/push/rest_api_v3_push_advanced
Errors: https://docs.jiguang.cn/en/jpush/server/push/rest_api_v3_push#return-codes
Each message is a call of its own: a call for many devices has one `cid` and one set of extras for all, and does not
say which of them were invalid. JPush reports back to some paying customers only: there are no receipts.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from notifier.message import Lane, Message, Platform, PushContent
from notifier.outcome import Kind, Outcome, Scope
from notifier.providers import http
from notifier.providers.base import Provider, Surroundings, setting

PAYLOAD_LIMIT_BYTES = 4000  # of `notification` and `message` together
TTL_LIMIT_S = 864_000  # 10 days

_GONE = Outcome(Kind.GONE, Scope.ADDRESS, reason="device_unregistered")
_BAD_TOKEN = Outcome(Kind.GONE, Scope.ADDRESS, reason="bad_token")

_ERRORS: http.Table = {
    "1000": http.UNAVAILABLE,
    "1001": http.MISCONFIGURED,  # only POST
    "1002": http.REJECTED_CONTENT,
    "1003": http.REJECTED_CONTENT,  # the device's or the cid's own fault is told apart by the message
    "1004": http.MISCONFIGURED,
    "1005": http.TOO_LARGE,
    "1008": http.MISCONFIGURED,
    "1011": _GONE,  # "no target": each call has one device
    "1012": http.REJECTED_CONTENT,
    "1014": http.REJECTED_CONTENT,  # sensitive words
    "1020": http.MISCONFIGURED,  # only HTTPS
    "1030": http.UNCERTAIN,  # a time-out between their own services
    "2002": http.THROTTLED,
    "2003": http.MISCONFIGURED,  # the app is blocked, or our address not allowed
}
"""https://docs.jiguang.cn/en/jpush/server/push/rest_api_v3_push#return-codes (`error.code`)"""

_HTTP: Mapping[int, Outcome] = {410: http.MISCONFIGURED}  # this version of the API is no more

_LEVELS = {"passive": "passive", "active": "active", "time_sensitive": "time-sensitive", "critical": "critical"}
_LOUDNESS = {"passive": -1, "active": 0, "time_sensitive": 1, "critical": 2}
_MARKETING, _SYSTEM = 0, 1
_BIG_PICTURE = 3
_BADGE_MOST = 99


@dataclass(frozen=True, slots=True)
class JPushSettings:
    app_key: str = setting(help="the AppKey (JPush console, application settings)")
    master_secret: str = setting(secret=True, help="the Master Secret beside the AppKey")
    android_channel_id: str = setting(help="the Android notification channel; empty: the app's default")
    apns_production: bool = setting(True, help="iOS: whether the app's certificate is for production")
    deduplicate: bool = setting(True, help="send a cid with each message, so that JPush recognises a repeat for a day")
    base_url: str = setting("https://api.jpush.cn", help="where JPush answers")
    ca_file: str = setting(help="PEM file of a further authority to trust, for a stand-in server")


class JPush(Provider):
    kind: ClassVar[str] = "jpush"
    serves: ClassVar[frozenset[str]] = frozenset({"push:ios", "push:android", "push:android_cn"})
    Settings: ClassVar[type] = JPushSettings

    settings: JPushSettings

    def __init__(self, settings: JPushSettings, surroundings: Surroundings) -> None:
        super().__init__(settings, surroundings)
        basic = base64.b64encode(f"{settings.app_key}:{settings.master_secret}".encode()).decode()
        self._headers = {"Authorization": f"Basic {basic}", "Content-Type": "application/json"}
        self._url = f"{settings.base_url.rstrip('/')}/v3/push"
        self._tls = http.trusting(settings.ca_file)

    @classmethod
    def check(cls, settings: JPushSettings) -> None:
        http.check_credential(settings, "app_key", "master_secret")
        http.check_base_url(settings.base_url)
        http.check_ca_file(settings.ca_file)

    async def send(self, batch: Sequence[Message]) -> list[Outcome]:
        return await http.each(self._send, batch)

    async def _send(self, message: Message) -> Outcome:
        content = message.content
        if not isinstance(content, PushContent):
            return http.classified(http.REJECTED_CONTENT, code="not_built", detail="a push message holds no push")
        shown = _shown(message, content, self.settings.android_channel_id)
        size = sum(len(msgspec.json.encode(part)) for part in shown.values())
        if size > PAYLOAD_LIMIT_BYTES:
            return http.classified(
                http.TOO_LARGE, code="too_large", detail=f"{size} bytes, at most {PAYLOAD_LIMIT_BYTES}"
            )
        try:
            reply = await self.surroundings.carrier.post(
                self._url,
                headers=self._headers,
                data=msgspec.json.encode(self._body(message, content, shown)),
                timeout_s=message.timeout_s,
                ssl_context=self._tls,
            )
        except (http.NotSent, http.Uncertain) as error:
            return http.without_answer(error)
        return _outcome(reply, message.address.value, self.settings.app_key)

    def _body(self, message: Message, content: PushContent, shown: dict[str, Any]) -> dict[str, Any]:
        address = message.address
        is_apple = address.platform is Platform.IOS
        left_s = int(message.expires_at - time.time())
        if content.options.ttl_s is not None:
            left_s = min(left_s, content.options.ttl_s)
        options: dict[str, Any] = {
            "time_to_live": min(max(left_s, 0), TTL_LIMIT_S),
            # The phones' vendors limit marketing by the day, and what is passed off as else is punished.
            "classification": _MARKETING if message.lane is Lane.BULK else _SYSTEM,
        }
        if is_apple:
            options["apns_production"] = self.settings.apns_production and address.apns_environment != "sandbox"
            if message.collapse_id:
                options["apns_collapse_id"] = message.collapse_id
        body = {
            "platform": ["ios" if is_apple else "android"],
            "audience": {"registration_id": [address.value]},
            **shown,
            "options": options,
        }
        if self.settings.deduplicate:
            # The delivery's own, and not one fetched ahead: whichever process tries again has the same one.
            body["cid"] = f"{self.settings.app_key}-{message.delivery_id}"
        return body


def _shown(message: Message, content: PushContent, channel_id: str) -> dict[str, Any]:
    """`notification` or `message`: what reaches the device."""
    options = content.options
    extras = {**options.data, "n_id": str(message.delivery_id)}
    if options.deep_link:
        extras["deep_link"] = options.deep_link
    if message.address.platform is Platform.IOS:
        return {"notification": {"ios": _ios(content, extras)}}
    if options.silent:
        return {"message": {"msg_content": content.body or content.title or "silent", "extras": extras}}
    return {"notification": {"android": _android(content, extras, channel_id)}}


def _ios(content: PushContent, extras: dict[str, str]) -> dict[str, Any]:
    options = content.options
    if options.image:
        extras["image"] = options.image  # the app's extension fetches it
    own: dict[str, Any] = {"extras": extras}
    if options.silent:
        return {"alert": "", "content-available": True, **own}  # an empty alert is not shown
    own["alert"] = {"title": content.title, "body": content.body}
    if options.sound:
        own["sound"] = options.sound
    if options.badge is not None:
        own["badge"] = options.badge
    if options.thread_id:
        own["thread-id"] = options.thread_id
    if options.image:
        own["mutable-content"] = True
    if level := _LEVELS.get(options.interruption_level):
        own["interruption-level"] = level
    return own


def _android(content: PushContent, extras: dict[str, str], channel_id: str) -> dict[str, Any]:
    options = content.options
    own: dict[str, Any] = {"alert": content.body or content.title, "title": content.title, "extras": extras}
    if options.sound:
        own["sound"] = options.sound
    if options.badge is not None:
        own["badge_set_num"] = min(options.badge, _BADGE_MOST)
    if options.image:
        own |= {"style": _BIG_PICTURE, "big_pic_path": options.image}
    if options.interruption_level in _LOUDNESS:
        own["priority"] = _LOUDNESS[options.interruption_level]
    if channel_id:
        own["channel_id"] = channel_id
    return own


def _outcome(reply: http.Reply, token: str, app_key: str) -> Outcome:
    answer = reply.json
    if reply.status == 200 and isinstance(msg_id := answer.get("msg_id"), str | int) and msg_id:
        return Outcome(Kind.ACCEPTED, provider_ref=str(msg_id), http_status=reply.status)
    error = answer.get("error")
    said: dict[str, Any] = error if isinstance(error, dict) else {}
    code, words = str(said.get("code", "")), str(said.get("message", ""))
    row = _ERRORS.get(code) or _HTTP.get(reply.status)
    if row is None or reply.status < 400:
        row = http.by_status(reply.status)
    if code == "1003" and "registration" in words.lower():
        row = _BAD_TOKEN
    elif code == "1003" and "cid" in words.lower():
        row = http.MISCONFIGURED  # not the message's fault: `deduplicate` is to be switched off
    return http.classified(
        row,
        code=code or reply.status,
        http_status=reply.status,
        detail=http.readable(words, token, app_key),
        retry_after_s=http.retry_after_s(reply.headers) or _reset_s(reply.headers),
    )


def _reset_s(headers: Mapping[str, str]) -> float | None:
    """`X-Rate-Limit-Reset`, the seconds until the minute's quota is whole again."""
    value = headers.get("X-Rate-Limit-Reset", "").strip()
    return http.clamped_s(float(value)) if value.isascii() and value.isdigit() and len(value) < 10 else None
