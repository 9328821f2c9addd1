"""SendGrid v3 mail send and its signed event webhook, as the documents describe them.

Send: https://www.twilio.com/docs/sendgrid/api-reference/mail-send/mail-send
Errors: https://www.twilio.com/docs/sendgrid/api-reference/mail-send/errors
Events: https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/event
Signature: https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/getting-started-event-webhook-security-features
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import secrets
import time
from collections.abc import Iterator
from typing import Any, ClassVar

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from notifier.sandbox.faults import Mode
from notifier.sandbox.keys import SENDGRID_KEY_END
from notifier.sandbox.ledger import Entry
from notifier.sandbox.magic import (
    SLOW_ACCEPT_S,
    SLOW_DELIVERED_S,
    THROTTLED_RETRY_AFTER_S,
    Effect,
    email_effect,
)
from notifier.sandbox.mailbox import is_mailbox
from notifier.sandbox.shape import STRINGS, Shape, misfits
from notifier.sandbox.vendor import Answer, Call, HttpVendor, Interned, Parts, Preview

_RECIPIENTS_MOST = 1000
_CUSTOM_ARGS_LIMIT_BYTES = 10_000
_SIZE_LIMIT_BYTES = 30 * 1024 * 1024
_SEND_AT_MOST_S = 72 * 3600
_FLUSH_S, _FLUSH_EVENTS = 0.25, 500
_COMPLAINT_AFTER_S = 1.0
_RATE_LIMIT = 600  # requests a minute, as the answer's headers tell it
_HELP = "http://sendgrid.com/docs/API_Reference/Web_API_v3/Mail/errors.html#message."
_KEY = re.compile(rf"Bearer SG\.([A-Za-z0-9_-]{{1,100}})\.{SENDGRID_KEY_END}[A-Za-z0-9_-]*\Z")
_RESERVED_HEADERS = {
    "x-sg-id", "x-sg-eid", "received", "dkim-signature", "content-type", "content-transfer-encoding", "to", "from",
    "subject", "reply-to", "cc", "bcc",
}  # fmt: skip
_KNOWN = {
    "personalizations", "from", "reply_to", "reply_to_list", "subject", "content", "attachments", "template_id",
    "headers", "categories", "custom_args", "send_at", "batch_id", "asm", "ip_pool_name", "mail_settings",
    "tracking_settings", "sections",
}  # fmt: skip
_KNOWN_PERSONAL = {
    "to", "cc", "bcc", "from", "subject", "headers", "substitutions", "dynamic_template_data", "custom_args", "send_at",
}  # fmt: skip
_ONE = {"email": str, "name": str}
_SHAPE: Shape = {
    "personalizations": [
        {
            **dict.fromkeys(("to", "cc", "bcc"), [_ONE]),
            **dict.fromkeys(("headers", "custom_args", "substitutions"), STRINGS),
            "from": _ONE,
            "subject": str,
            "send_at": int,
            "dynamic_template_data": {},
        }
    ],
    **dict.fromkeys(("from", "reply_to"), _ONE),
    "reply_to_list": [_ONE],
    **dict.fromkeys(("subject", "template_id", "batch_id", "ip_pool_name"), str),
    "content": [{"type": str, "value": str}],
    "attachments": [dict.fromkeys(("content", "type", "filename", "disposition", "content_id"), str)],
    **dict.fromkeys(("headers", "custom_args", "sections"), STRINGS),
    "categories": [str],
    "send_at": int,
    "asm": {},
    "mail_settings": {"sandbox_mode": {"enable": bool}},
    "tracking_settings": {},
}
_NO_PERSONALIZATION = "The personalizations field is required and must have at least one personalization."
_NO_TO = "The to array is required for all personalization objects, and must have at least one email object."
_TWICE = "Each email address in the personalization block should be unique between to, cc, and bcc."
_NO_SUBJECT = (
    "The subject is required. You can get around this requirement if you use a template with a subject defined."
)
_NO_CONTENT = (
    "Unless a valid template_id is provided, the content parameter is required. There must be at least one defined "
    "content block."
)
_EMPTY_CONTENT = "The content value must be a string at least one character in length."
_CONTENT_ORDER = "If present, text/plain and text/html must come first, in this order."


class Invalid(Exception):
    def __init__(self, text: str, field: str | None, *, status: int = 400) -> None:
        super().__init__(text)
        self.field = field
        self.status = status


class SendGrid(HttpVendor):
    provider: ClassVar[str] = "sendgrid"
    channel: ClassVar[str] = "email"
    messages: ClassVar[re.Pattern[str]] = re.compile(r"/v3/mail/send\Z")

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._kept_headers = Interned("user-agent", "content-type")
        self._events: dict[str, list[dict[str, Any]]] = {}  # by account, until the next flush

    def receive(self, call: Call) -> Answer:
        key = _KEY.match(call.headers.get("authorization", ""))
        if key is None:
            return self.refusal(Mode.HTTP_401, None, call)
        try:
            mail = _parse(call)
            _check(mail)
        except Invalid as invalid:
            return _error(invalid.status, str(invalid), invalid.field)
        if any(self._held_back(one["email"]) for _, one in _recipients(mail)):
            return self.refusal(Mode.HTTP_429, THROTTLED_RETRY_AFTER_S, call)
        message_id = secrets.token_urlsafe(16)
        headers = {"X-Message-Id": message_id, "Access-Control-Allow-Origin": "https://sendgrid.api-docs.io"}
        if _is_sandboxed(mail):
            return Answer(200, headers=headers)
        is_slow = self._accept(call, mail, key[1], message_id)
        return Answer(202, headers=headers, accepted=True, delay_s=SLOW_ACCEPT_S if is_slow else 0.0)

    def _held_back(self, address: str) -> bool:
        return email_effect(address) is Effect.THROTTLED and self.parts.throttle.holds_back(address)

    def _accept(self, call: Call, mail: dict[str, Any], account: str, message_id: str) -> bool:
        """Write down each recipient and set off its events. True when one of them is a slow mailbox."""
        recipients = list(_recipients(mail))
        headers = self._kept_headers(call.headers)
        is_slow = False
        for number, (part, recipient) in enumerate(recipients):
            personal = mail["personalizations"][part]
            custom = {**(mail.get("custom_args") or {}), **(personal.get("custom_args") or {})}
            self.parts.ledger.accept(
                provider=self.provider,
                channel=self.channel,
                to=recipient["email"],
                delivery_id=custom.get("delivery_id"),
                headers=headers,
                body=call.body,
                part=part,
                shared_by=len(recipients),
            )
            effect = email_effect(recipient["email"])
            is_slow = is_slow or effect is Effect.SLOW
            if self.parts.options.receipts:
                sent_as = f"{message_id}.recvd-sandbox-1-{number}.0"
                self._report(account, recipient["email"], sent_as, custom, mail.get("categories"), effect)
        return is_slow

    # What comes back

    def _report(
        self, account: str, address: str, sent_as: str, custom: dict[str, str], categories: Any, effect: Effect
    ) -> None:
        base = {**custom, "email": address, "smtp-id": f"<{sent_as}@sandbox>", "sg_message_id": sent_as}
        if categories:
            base["category"] = categories
        soon = 0.0
        self._tell(account, {**base, "event": "processed", "send_at": 0}, soon)
        if effect is Effect.BOUNCED:
            reason = "550 5.1.1 The email account that you tried to reach does not exist."
            bounce = {"event": "bounce", "type": "bounce", "reason": reason, "status": "5.1.1"}
            self._tell(account, {**base, **bounce, "bounce_classification": "Invalid Address", "tls": 1}, soon)
            return
        after = SLOW_DELIVERED_S if effect is Effect.SLOW else soon
        delivered = {"event": "delivered", "response": "250 2.0.0 OK", "ip": "127.0.0.1", "tls": 1}
        self._tell(account, {**base, **delivered}, after)
        if effect is Effect.COMPLAINT:
            self._tell(account, {**base, "event": "spamreport"}, _COMPLAINT_AFTER_S)

    def _tell(self, account: str, event: dict[str, Any], delay_s: float) -> None:
        if delay_s:
            asyncio.get_running_loop().call_later(delay_s, self._tell, account, event, 0.0)
            return
        event = {**event, "timestamp": int(time.time()), "sg_event_id": secrets.token_urlsafe(24)}
        waiting = self._events.setdefault(account, [])
        if not waiting:
            asyncio.get_running_loop().call_later(_FLUSH_S, self._flush, account)
        waiting.append(event)
        if len(waiting) >= _FLUSH_EVENTS:
            self._flush(account)

    def _flush(self, account: str) -> None:
        events = self._events.pop(account, None)
        if not events:
            return
        body = json.dumps(events).encode()
        timestamp = str(int(time.time()))
        signature = self.parts.keys.sendgrid_private.sign(timestamp.encode() + body, ec.ECDSA(hashes.SHA256()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "SendGrid Event API",
            "X-Twilio-Email-Event-Webhook-Signature": base64.b64encode(signature).decode(),
            "X-Twilio-Email-Event-Webhook-Timestamp": timestamp,
        }
        self.parts.courier.post(self.parts.courier.hook("sendgrid", account), body, headers)

    def refusal(self, mode: Mode, retry_after: float | None, call: Call) -> Answer:
        if mode is Mode.HTTP_401:
            return _error(401, "The provided authorization grant is invalid, expired, or revoked", None)
        if mode is Mode.HTTP_429:
            wait_s = 60 if retry_after is None else retry_after
            headers = {
                "X-RateLimit-Limit": str(_RATE_LIMIT),
                "X-RateLimit-Remaining": "0",
                "X-RateLimit-Reset": str(int(time.time() + wait_s + 0.999)),
            }
            if retry_after is not None:
                headers["Retry-After"] = f"{retry_after:.0f}"
            return _error(429, "too many requests", None, headers=headers)
        if mode is Mode.GONE:
            return _error(400, "Does not contain a valid address.", "personalizations.0.to.0.email")
        return _error(500, "Internal Server Error", None)

    # How people see it

    def body(self, entry: Entry, raw: bytes) -> Any:
        """The mail as this recipient gets it: nobody else's personalization."""
        mail = json.loads(raw)
        mail["personalizations"] = [mail["personalizations"][entry.part]]
        return mail

    def preview(self, entry: Entry, raw: bytes) -> Preview:
        mail = self.body(entry, raw)
        personal = mail["personalizations"][0]
        attached = [one.get("filename") or "file" for one in mail.get("attachments") or []]
        return Preview(
            look="mail",
            sender=_named(personal.get("from") or mail["from"]),
            title=_filled(personal, personal.get("subject") or mail.get("subject", "")),
            text=_filled(personal, _content(mail, "text/plain")),
            html=bool(_content(mail, "text/html")),
            note=f"attached: {', '.join(attached)}" if attached else "",
        )

    def html(self, entry: Entry, raw: bytes) -> str:
        mail = self.body(entry, raw)
        return _filled(mail["personalizations"][0], _content(mail, "text/html"))


def _parse(call: Call) -> dict[str, Any]:
    if call.method != "POST":
        raise Invalid("method not allowed", None, status=405)
    if not call.headers.get("content-type", "").lower().startswith("application/json"):
        raise Invalid("Content-Type should be application/json.", None, status=415)
    if len(call.body) > _SIZE_LIMIT_BYTES:
        raise Invalid("The total size of your email must be less than 30MB.", None, status=413)
    try:
        mail = json.loads(call.body)
    except (ValueError, RecursionError):
        raise Invalid("Bad Request", None) from None
    if not isinstance(mail, dict):
        raise Invalid("Bad Request", None)
    return mail


def _check(mail: dict[str, Any]) -> None:
    """Raises Invalid with the field as the vendor names it."""
    if unknown := mail.keys() - _KNOWN:
        raise Invalid(f"Additional property {min(unknown)} is not allowed", min(unknown))
    personalizations = mail.get("personalizations")
    if not personalizations or not isinstance(personalizations, list):
        raise Invalid(_NO_PERSONALIZATION, "personalizations")
    for path, _ in misfits(mail, _SHAPE, ""):
        raise Invalid("Invalid type.", path.partition("[")[0])
    if len(personalizations) > _RECIPIENTS_MOST:
        raise Invalid("There is a limit of 1000 personalizations per API request.", "personalizations")
    recipients = 0
    for position, personal in enumerate(personalizations):
        recipients += _check_personal(personal, f"personalizations.{position}", mail)
    if recipients > _RECIPIENTS_MOST:
        raise Invalid("There is a limit of 1000 total recipients per API request.", "personalizations")
    _check_address(mail.get("from"), "from")
    if mail.get("reply_to") is not None:
        _check_address(mail["reply_to"], "reply_to")
    _check_content(mail)
    _check_headers(mail.get("headers"), "headers")
    _check_custom(mail.get("custom_args"), "custom_args")
    categories = mail.get("categories") or []
    if len(categories) > 10 or len(set(categories)) != len(categories):
        raise Invalid("There is a limit of 10 unique categories per message.", "categories")
    send_at = mail.get("send_at")
    if send_at is not None and send_at > time.time() + _SEND_AT_MOST_S:
        raise Invalid("Scheduling more than 72 hours in advance is forbidden.", "send_at")


def _check_personal(personal: dict[str, Any], path: str, mail: dict[str, Any]) -> int:
    """How many recipients this personalization has."""
    if unknown := personal.keys() - _KNOWN_PERSONAL:
        raise Invalid(f"Additional property {min(unknown)} is not allowed", f"{path}.{min(unknown)}")
    if not personal.get("to"):
        raise Invalid(_NO_TO, f"{path}.to")
    seen: set[str] = set()
    for kind in ("to", "cc", "bcc"):
        for number, one in enumerate(personal.get(kind) or []):
            _check_address(one, f"{path}.{kind}.{number}")
            if one["email"].lower() in seen:
                raise Invalid(_TWICE, path)
            seen.add(one["email"].lower())
    if not personal.get("subject") and not mail.get("subject") and not mail.get("template_id"):
        raise Invalid(_NO_SUBJECT, "subject")
    _check_headers(personal.get("headers"), f"{path}.headers")
    _check_custom(personal.get("custom_args"), f"{path}.custom_args")
    return len(seen)


def _check_address(one: dict[str, Any] | None, path: str) -> None:
    if one is None:
        raise Invalid(f"The {path} object must be provided.", path)
    if not is_mailbox(one.get("email") or ""):
        raise Invalid("Does not contain a valid address.", f"{path}.email")


def _check_content(mail: dict[str, Any]) -> None:
    content = mail.get("content")
    if content is None and mail.get("template_id"):
        return
    if not content:
        raise Invalid(_NO_CONTENT, "content")
    order = []
    for position, block in enumerate(content):
        if not block.get("type"):
            raise Invalid("The content type is required.", f"content.{position}.type")
        if not block.get("value"):
            raise Invalid(_EMPTY_CONTENT, f"content.{position}.value")
        order.append({"text/plain": 0, "text/html": 1}.get(block["type"].lower(), 2))
    if order != sorted(order):
        raise Invalid(_CONTENT_ORDER, "content")


def _check_headers(headers: dict[str, str] | None, path: str) -> None:
    for name, value in (headers or {}).items():
        if name.lower() in _RESERVED_HEADERS:
            raise Invalid(f"The header {name} is reserved and can not be set.", f"{path}.{name}")
        if not name.isascii() or "\n" in value or "\r" in value:
            raise Invalid("Headers must be key value pairs of strings.", f"{path}.{name}")


def _check_custom(custom: dict[str, str] | None, path: str) -> None:
    if custom and len(json.dumps(custom, ensure_ascii=False).encode("utf-8", "replace")) > _CUSTOM_ARGS_LIMIT_BYTES:
        raise Invalid("Custom args must be less than 10,000 bytes.", path)


def _recipients(mail: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each address object with the position of its personalization."""
    for part, personal in enumerate(mail["personalizations"]):
        for kind in ("to", "cc", "bcc"):
            for one in personal.get(kind) or []:
                yield part, one


def _is_sandboxed(mail: dict[str, Any]) -> bool:
    mode = (mail.get("mail_settings") or {}).get("sandbox_mode") or {}
    return mode.get("enable") is True


def _named(one: dict[str, Any]) -> str:
    return f"{one['name']} <{one['email']}>" if one.get("name") else str(one["email"])


def _content(mail: dict[str, Any], kind: str) -> str:
    return next((block["value"] for block in mail.get("content") or [] if block["type"].lower() == kind), "")


def _filled(personal: dict[str, Any], text: str) -> str:
    for tag, value in (personal.get("substitutions") or {}).items():
        text = text.replace(tag, str(value))
    return text


def _error(status: int, text: str, field: str | None, *, headers: dict[str, str] | None = None) -> Answer:
    help_text = f"{_HELP}{field.split('.')[0]}" if field else None
    body = json.dumps({"errors": [{"message": text, "field": field, "help": help_text}]}).encode()
    return Answer(status, body, "application/json", headers or {})
