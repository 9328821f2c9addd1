"""JPush's push API v3, as its documents describe it.

Send: https://docs.jiguang.cn/en/jpush/server/push/rest_api_v3_push
Repeats (`cid`): https://docs.jiguang.cn/en/jpush/server/push/rest_api_v3_push_advanced
Limits: https://docs.jiguang.cn/en/jpush/server/push/server_overview
"""

from __future__ import annotations

import base64
import json
import re
import time
import uuid
from collections import OrderedDict
from typing import Any, ClassVar
from urllib.parse import parse_qs

from notifier.sandbox.faults import Mode
from notifier.sandbox.keys import JPUSH_APP_KEY, JPUSH_MASTER_SECRET
from notifier.sandbox.ledger import Entry
from notifier.sandbox.magic import THROTTLED_RETRY_AFTER_S, Effect, token_effect
from notifier.sandbox.shape import Shape, misfits
from notifier.sandbox.vendor import Answer, Call, HttpVendor, Interned, Parts, Preview

_BASIC = "Basic " + base64.b64encode(f"{JPUSH_APP_KEY}:{JPUSH_MASTER_SECRET}".encode()).decode()
_PAYLOAD_LIMIT_BYTES = 4000
_AUDIENCE_MOST = {"tag": 20, "tag_and": 20, "tag_not": 20, "alias": 1000, "registration_id": 1000}
_AUDIENCE = {*_AUDIENCE_MOST, "segment", "abtest", "live_activity_id", "file"}
_PLATFORMS = {"ios", "android", "winphone", "quickapp", "hmos"}
_FIELDS = {
    "platform", "audience", "notification", "message", "inapp_message", "notification_3rd", "sms_message", "options",
    "callback", "cid", "live_activity", "voip",
}  # fmt: skip
_TTL_MOST_S = 864_000
_COLLAPSE_ID_MOST_BYTES = 64
_CIDS_MOST = 1000
_REMEMBERED = 200_000
_CID_FOR_S = 86_400
_QUOTA = 600
_CID = re.compile(rf"{JPUSH_APP_KEY}-[0-9a-f]{{8}}-?([0-9a-f]{{4}}-?){{3}}[0-9a-f]{{12}}\Z")
_COMMON = {"sound": str, "extras": {}}
_SHAPE: Shape = {
    "cid": str,
    "audience": {},
    "notification": {
        "alert": str,
        "android": {
            **_COMMON,
            **dict.fromkeys(
                ("alert", "title", "channel_id", "big_pic_path", "big_text", "category", "large_icon"), str
            ),
            **dict.fromkeys(("priority", "style", "badge_add_num", "badge_set_num", "builder_id"), int),
            "intent": {},
        },
        "ios": {
            **dict.fromkeys(("thread-id", "category", "interruption-level"), str),
            **dict.fromkeys(("content-available", "mutable-content"), bool),
            "extras": {},
        },
    },
    "message": {**dict.fromkeys(("msg_content", "title", "content_type"), str), "extras": {}},
    "options": {
        **dict.fromkeys(("sendno", "time_to_live", "override_msg_id", "big_push_duration", "classification"), int),
        "apns_production": bool,
        "apns_collapse_id": str,
        "third_party_channel": {},
    },
}


class Invalid(Exception):
    """The request cannot pass, for the vendor's `code`."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class JPush(HttpVendor):
    provider: ClassVar[str] = "jpush"
    channel: ClassVar[str] = "push"
    messages: ClassVar[re.Pattern[str]] = re.compile(r"/v3/push/?\Z")

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._kept_headers = Interned("user-agent", "content-type")
        self._last_id = time.time_ns() // 1000
        self._first: OrderedDict[str, tuple[float, str]] = OrderedDict()  # cid -> when it was pushed, and its msg_id

    def receive(self, call: Call) -> Answer:
        try:
            body = self._checked(call)
        except Invalid as invalid:
            return _error(invalid.code, str(invalid))
        if (first := self._repeated(body.get("cid"))) is not None:
            return _pushed(first)
        tokens = _tokens(body)
        effects = {token: token_effect(token) for token in tokens}
        if any(
            effect is Effect.THROTTLED and self.parts.throttle.holds_back(token) for token, effect in effects.items()
        ):
            return _rate_limited(THROTTLED_RETRY_AFTER_S)
        reached = [token for token, effect in effects.items() if effect is not Effect.UNREGISTERED]
        if tokens and not reached:
            return _error(1011, "cannot find user by this audience")
        self._last_id += 1
        msg_id = str(self._last_id)
        if cid := body.get("cid"):
            self._remember(cid, msg_id)
        for part, token in enumerate(reached or ["/all"]):
            self.parts.ledger.accept(
                provider=self.provider,
                channel=self.channel,
                to=token,
                delivery_id=_delivery_id(body),
                headers=self._kept_headers(call.headers),
                body=call.body,
                part=part,
                shared_by=max(len(reached), 1),
            )
        return _pushed(msg_id)

    def other(self, call: Call) -> Answer | None:
        if call.path == "/v3/push/validate":
            try:
                self._checked(call)
            except Invalid as invalid:
                return _error(invalid.code, str(invalid))
            return _pushed("0")
        if call.path != "/v3/push/cid":
            return None
        if call.headers.get("authorization", "") != _BASIC:
            return _error(1004, "Authen failed")
        count = parse_qs(call.query).get("count", ["1"])[0]
        if call.method != "GET" or not re.fullmatch(r"[0-9]{1,4}", count) or not 1 <= int(count) <= _CIDS_MOST:
            return _error(1003, "count must be from 1 to 1000")
        cids = [f"{JPUSH_APP_KEY}-{uuid.uuid4()}" for _ in range(int(count))]
        return Answer(200, json.dumps({"cidlist": cids}).encode())

    def _checked(self, call: Call) -> dict[str, Any]:
        if call.method != "POST":
            raise Invalid(1001, "only support HTTP Post method")
        if call.headers.get("authorization", "") != _BASIC:
            raise Invalid(1004, "Authen failed")
        return _check(call.body)

    def _repeated(self, cid: str | None) -> str | None:
        """The msg_id of the first push with this cid, within a day of it."""
        at, msg_id = self._first.get(cid or "", (0.0, ""))
        return msg_id if at > time.time() - _CID_FOR_S else None

    def _remember(self, cid: str, msg_id: str) -> None:
        self._first[cid] = (time.time(), msg_id)
        if len(self._first) > _REMEMBERED:
            self._first.popitem(last=False)

    def refusal(self, mode: Mode, retry_after: float | None, call: Call) -> Answer:
        if mode is Mode.HTTP_401:
            return _error(1004, "Authen failed")
        if mode is Mode.HTTP_429:
            return _rate_limited(60 if retry_after is None else retry_after)
        if mode is Mode.GONE:
            return _error(1011, "cannot find user by this audience")
        return _error(1000, "server internal error")

    # How people see it

    def body(self, entry: Entry, raw: bytes) -> Any:
        return json.loads(raw)

    def preview(self, entry: Entry, raw: bytes) -> Preview:
        body = json.loads(raw)
        notification, options = body.get("notification") or {}, body.get("options") or {}
        android, ios = notification.get("android"), notification.get("ios")
        shown = android or ios or notification
        alert = shown.get("alert") or notification.get("alert") or ""
        worded = alert if isinstance(alert, dict) else {"title": shown.get("title"), "body": alert}
        text = str(worded.get("body") or "")
        notes = [f"{name}: {value}" for name, value in _extras(body).items() if name not in ("n_id", "image")]
        return Preview(
            look="phone",
            sender="iOS (JPush)" if ios and not android else "Android (JPush)",
            title=str(worded.get("title") or ""),
            text=text or ("" if worded.get("title") else "Silent: data only"),
            image=str(shown.get("big_pic_path") or _extras(body).get("image") or ""),
            replaces=str(options.get("apns_collapse_id") or options.get("override_msg_id") or ""),
            note=" · ".join(notes),
        )


def _check(raw: bytes) -> dict[str, Any]:
    """Raises Invalid."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise Invalid(1003, "Push object must be valid JSON") from None
    if not isinstance(body, dict):
        raise Invalid(1003, "Push object must be a JSON object")
    if unknown := body.keys() - _FIELDS:
        raise Invalid(1009, f"The key {min(unknown)[:40]} is not supported")
    for name in ("platform", "audience"):
        if not body.get(name):
            raise Invalid(1002, f"Missing parameter: {name}")
    if not body.get("notification") and not body.get("message"):
        raise Invalid(1002, "Missing parameter: notification or message")
    platform = body["platform"]
    named = platform if isinstance(platform, list) else []
    if platform != "all" and (not named or not all(isinstance(one, str) and one in _PLATFORMS for one in named)):
        raise Invalid(1003, "The platform value is invalid")
    _check_audience(body["audience"])
    for path, _ in misfits({**body, "audience": None}, _SHAPE, ""):
        raise Invalid(1003, f"The {path} value has a wrong type")
    if body.get("message") and not body["message"].get("msg_content"):
        raise Invalid(1002, "Missing parameter: message.msg_content")
    _check_ios((body.get("notification") or {}).get("ios") or {})
    _check_options(body.get("options") or {})
    if (cid := body.get("cid")) is not None and not _CID.match(cid):
        raise Invalid(1003, "The cid value is invalid")
    carried = [body[name] for name in ("notification", "message") if body.get(name)]
    if sum(len(_compact(part)) for part in carried) > _PAYLOAD_LIMIT_BYTES:
        raise Invalid(1005, "The length of push message is too long")
    return body


def _check_audience(audience: Any) -> None:
    if audience == "all":
        return
    if not isinstance(audience, dict) or not audience.keys() <= _AUDIENCE:
        raise Invalid(1003, "The audience value is invalid")
    for name, most in _AUDIENCE_MOST.items():
        given = audience.get(name)
        if given is None:
            continue
        if not isinstance(given, list) or not given or not all(isinstance(one, str) and one for one in given):
            raise Invalid(1003, f"The {name} value is invalid")
        if len(given) > most:
            raise Invalid(1003, f"The {name} list is too long, at most {most}")
    if any(token_effect(token) is Effect.BAD_TOKEN for token in audience.get("registration_id") or ()):
        raise Invalid(1003, "The registration_id value is invalid")


def _check_ios(ios: dict[str, Any]) -> None:
    alert, badge = ios.get("alert"), ios.get("badge")
    if alert is not None and not isinstance(alert, str | dict):
        raise Invalid(1003, "The notification.ios.alert value has a wrong type")
    is_badge = isinstance(badge, int | str) and re.fullmatch(r"[+-]?\d{1,9}", str(badge))
    if badge is not None and not is_badge:
        raise Invalid(1003, "The notification.ios.badge value is invalid")
    if ios.get("interruption-level") not in (None, "passive", "active", "time-sensitive", "critical"):
        raise Invalid(1003, "The notification.ios.interruption-level value is invalid")


def _check_options(options: dict[str, Any]) -> None:
    if not 0 <= (options.get("time_to_live") or 0) <= _TTL_MOST_S:
        raise Invalid(1003, "The time_to_live value is invalid")
    if options.get("classification") not in (None, 0, 1):
        raise Invalid(1003, "The classification value is invalid")
    if len((options.get("apns_collapse_id") or "").encode("utf-8", "replace")) > _COLLAPSE_ID_MOST_BYTES:
        raise Invalid(1003, "The apns_collapse_id value is too long")


def _compact(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _tokens(body: dict[str, Any]) -> list[str]:
    audience = body["audience"]
    return list(dict.fromkeys(audience.get("registration_id") or ())) if isinstance(audience, dict) else []


def _extras(body: dict[str, Any]) -> dict[str, Any]:
    notification = body.get("notification") or {}
    for part in (notification.get("android"), notification.get("ios"), body.get("message")):
        if part and part.get("extras"):
            return dict(part["extras"])
    return {}


def _delivery_id(body: dict[str, Any]) -> str | None:
    found = _extras(body).get("n_id")
    return found if isinstance(found, str) else None


def _pushed(msg_id: str) -> Answer:
    return Answer(
        200, json.dumps({"sendno": "0", "msg_id": msg_id}).encode(), headers=_quota(_QUOTA - 1), accepted=True
    )


def _quota(left: int, reset_s: float = 60) -> dict[str, str]:
    return {
        "X-Rate-Limit-Limit": str(_QUOTA),
        "X-Rate-Limit-Remaining": str(left),
        "X-Rate-Limit-Reset": f"{reset_s:.0f}",
    }


_STATUS = {1000: 500, 1001: 405, 1004: 401, 2002: 429}


def _error(code: int, message: str) -> Answer:
    status = _STATUS.get(code, 400)
    return Answer(status, json.dumps({"error": {"code": code, "message": message}}).encode())


def _rate_limited(reset_s: float) -> Answer:
    refused = _error(2002, "Request times of the app_key exceed the limit of current time window")
    return Answer(refused.status, refused.body, headers=_quota(0, reset_s))
