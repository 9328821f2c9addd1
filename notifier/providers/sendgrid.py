"""Twilio SendGrid: email through the v3 Mail Send API.

Send: https://www.twilio.com/docs/sendgrid/api-reference/mail-send/mail-send
Errors: https://www.twilio.com/docs/sendgrid/api-reference/mail-send/errors
Receipts: https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/event
Signatures: https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/getting-started-event-webhook-security-features
The SDK builds, authenticates and verifies; our carrier carries (the SDK, 6.12, opens a connection a mail and never
times out). SendGrid sets its own Message-ID: the delivery id travels in `custom_args` and comes back in each event.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.header import Header as MimeHeader
from email.utils import parseaddr
from typing import Any, ClassVar

from sendgrid import SendGridAPIClient
from sendgrid.helpers.eventwebhook import EventWebhook, EventWebhookHeader
from sendgrid.helpers.mail import (
    Content,
    CustomArg,
    From,
    Header,
    Mail,
    MailSettings,
    Personalization,
    ReplyTo,
    SandBoxMode,
    Subject,
    To,
)
from sendgrid.helpers.mail.exceptions import SendGridException

from notifier.message import EmailContent, Message
from notifier.outcome import Callback, Kind, Outcome, Receipt, ReceiptKind, Scope
from notifier.providers import http
from notifier.providers.base import ConfigurationError, Provider, Surroundings, setting

REQUEST_LIMIT_BYTES = 30_000_000
SIGNED_WITHIN_S = 600.0  # a signed callback older than this is a replay; SendGrid signs each of its tries anew

_HTTP: Mapping[int, Outcome] = {
    400: http.REJECTED_CONTENT,
    401: http.MISCONFIGURED,
    403: http.MISCONFIGURED,
    404: http.MISCONFIGURED,
    405: http.MISCONFIGURED,
    406: http.MISCONFIGURED,
    413: http.TOO_LARGE,
    415: http.MISCONFIGURED,
    429: http.THROTTLED,
    500: http.UNAVAILABLE,
    502: http.UNAVAILABLE,
    503: http.UNAVAILABLE,
}
"""The errors page. It calls 5xx "an error on a SendGrid server" to send again after; a 504's answer is simply lost."""

_FIELDS: Sequence[tuple[re.Pattern[str], Outcome]] = (
    (re.compile(r"personalizations\.\d+\.to\b"), Outcome(Kind.GONE, Scope.ADDRESS, reason="address_unknown")),
    (re.compile(r"from\b"), Outcome(Kind.MISCONFIGURED, Scope.SENDER)),
)
"""What `errors[].field` of a 400 or 403 says more than the status; first match."""

_EVENTS: Mapping[str, ReceiptKind] = {
    "processed": ReceiptKind.SENT,
    "deferred": ReceiptKind.DEFERRED,
    "delivered": ReceiptKind.DELIVERED,
    "bounce": ReceiptKind.UNDELIVERED,
    "dropped": ReceiptKind.UNDELIVERED,
    "open": ReceiptKind.OPENED,
    "click": ReceiptKind.CLICKED,
    "spamreport": ReceiptKind.COMPLAINED,
    "unsubscribe": ReceiptKind.UNSUBSCRIBED,
    "group_unsubscribe": ReceiptKind.UNSUBSCRIBED,
}

_DROPPED: Mapping[str, str] = {
    "bounced address": "hard_bounce",
    "invalid": "hard_bounce",
    "spam reporting address": "spam_blocked",
    "spam content": "spam_blocked",
}
"""`reason` of a `dropped` event -> reason code; others (unsubscribed, over quota ...) say nothing of the address."""

_ABOUT_A_PERSON = frozenset({ReceiptKind.COMPLAINED, ReceiptKind.UNSUBSCRIBED})


@dataclass(frozen=True, slots=True)
class SendGridSettings:
    api_key: str = setting(secret=True, help="an API key with the scope Mail Send")
    sender: str = setting(help='whom mails come from by default: "Name <a@b>", a verified sender')
    webhook_public_key: str = setting(help="the verification key of the signed event webhook (base64)")
    sandbox_mode: bool = setting(False, help="let SendGrid check each mail and send none")
    base_url: str = setting("https://api.sendgrid.com", help="https://api.eu.sendgrid.com for an EU subuser")
    ca_file: str = setting(help="PEM file of a further authority to trust, for a stand-in server")


class SendGrid(Provider):
    kind: ClassVar[str] = "sendgrid"
    serves: ClassVar[frozenset[str]] = frozenset({"email"})
    batch_size: ClassVar[int] = 100  # SendGrid takes 1,000; ours bounds what a dying process can repeat
    Settings: ClassVar[type] = SendGridSettings

    settings: SendGridSettings

    def __init__(self, settings: SendGridSettings, surroundings: Surroundings) -> None:
        super().__init__(settings, surroundings)
        client = SendGridAPIClient(settings.api_key, host=settings.base_url.rstrip("/"))
        self._url = f"{client.host}/v3/mail/send"
        self._headers = {**client.client.request_headers, "Content-Type": "application/json"}
        self._tls = http.trusting(settings.ca_file)
        self._hook = EventWebhook(_bare(settings.webhook_public_key)) if settings.webhook_public_key else None

    @classmethod
    def check(cls, settings: SendGridSettings) -> None:
        http.check_credential(settings, "api_key")
        http.check_given(settings, "sender")
        if "@" not in parseaddr(settings.sender)[1]:
            raise ConfigurationError('sender: is no mail address; give "Name <a@b>" or a@b')
        http.check_base_url(settings.base_url)
        http.check_ca_file(settings.ca_file)
        try:
            EventWebhook(_bare(settings.webhook_public_key))
        except ValueError:
            raise ConfigurationError(
                "webhook_public_key: is no public key; copy it from Settings, Mail Settings, Event Webhook"
            ) from None

    async def send(self, batch: Sequence[Message]) -> list[Outcome]:
        """One request for all messages of equal bodies (a personalization each), else one request each."""
        outcomes: list[Outcome] = [http.REJECTED] * len(batch)
        groups: dict[tuple[str, ...], list[int]] = {}
        for position, message in enumerate(batch):
            groups.setdefault(_shared(message), []).append(position)

        async def deliver(positions: list[int]) -> None:
            messages = [batch[position] for position in positions]
            ends_at = asyncio.get_running_loop().time() + min(message.timeout_s for message in messages)
            for position, outcome in zip(positions, await self._deliver(messages, ends_at), strict=True):
                outcomes[position] = outcome

        await asyncio.gather(*map(deliver, groups.values()))
        return outcomes

    async def _deliver(self, messages: Sequence[Message], ends_at: float) -> list[Outcome]:
        try:
            body = json.dumps(self._mail(messages).get(), ensure_ascii=False).encode()
        except (SendGridException, ValueError, TypeError) as error:  # the SDK's validators
            return [http.classified(http.REJECTED_CONTENT, code=type(error).__name__)] * len(messages)
        if len(body) > REQUEST_LIMIT_BYTES:
            return [http.classified(http.TOO_LARGE, code="too_large", detail=f"{len(body)} bytes")] * len(messages)
        try:
            reply = await self.surroundings.carrier.post(
                self._url,
                headers=self._headers,
                data=body,
                timeout_s=ends_at - asyncio.get_running_loop().time(),
                ssl_context=self._tls,
            )
        except (http.NotSent, http.Uncertain) as error:
            return [http.without_answer(error)] * len(messages)
        if reply.status == 400 and len(messages) > 1:
            return await self._apart(messages, reply, ends_at)
        return [_outcome(reply, error, self.settings.sandbox_mode) for error in [_errors(reply)[0]] * len(messages)]

    async def _apart(self, messages: Sequence[Message], reply: http.Reply, ends_at: float) -> list[Outcome]:
        """A 400 refuses the whole request: find whose fault it is, and send the others."""
        errors = _errors(reply)
        at_fault: dict[int, _Error] = {}
        for error in errors:
            if found := re.match(r"personalizations\.(\d{1,4})\b", error.field):
                at_fault.setdefault(int(found[1]), error)
        innocent = [message for n, message in enumerate(messages) if n not in at_fault]
        if len(innocent) < len(messages):
            later = iter(await self._deliver(innocent, ends_at) if innocent else [])
            return [_outcome(reply, at_fault[n]) if n in at_fault else next(later) for n in range(len(messages))]
        if all(error.field for error in errors):  # a field that all of them share
            return [_outcome(reply, errors[0])] * len(messages)
        middle = len(messages) // 2
        halves = await asyncio.gather(
            self._deliver(messages[:middle], ends_at), self._deliver(messages[middle:], ends_at)
        )
        return [*halves[0], *halves[1]]

    def _mail(self, messages: Sequence[Message]) -> Any:
        content = messages[0].content
        if not isinstance(content, EmailContent) or not (content.text or content.html):
            raise ValueError("a mail without text and html")
        mail = Mail(from_email=From(content.sender or self.settings.sender))
        for mime_type, body in (("text/plain", content.text), ("text/html", content.html)):
            if body:
                mail.add_content(Content(mime_type, body))
        if content.reply_to:
            mail.reply_to = ReplyTo(content.reply_to)
        if self.settings.sandbox_mode:
            mail.mail_settings = MailSettings(sandbox_mode=SandBoxMode(True))
        for position, message in enumerate(messages):
            mail.add_personalization(_personalization(message), index=position)  # it would insert at the front
        return mail

    def verify(self, callback: Callback) -> bool:
        signature = callback.headers.get(EventWebhookHeader.SIGNATURE.lower(), "")
        timestamp = callback.headers.get(EventWebhookHeader.TIMESTAMP.lower(), "")
        if self._hook is None or not signature or not re.fullmatch(r"[0-9]{1,12}", timestamp):
            return False
        if abs(time.time() - int(timestamp)) > SIGNED_WITHIN_S:
            return False
        try:
            return bool(self._hook.verify_signature(callback.body.decode("utf-8"), signature, timestamp))
        except (ValueError, TypeError):  # no base64, no UTF-8
            return False

    def receipts(self, callback: Callback) -> list[Receipt]:
        try:
            events = json.loads(callback.body)
        except (ValueError, RecursionError):
            return []
        return [_receipt(event) for event in events if isinstance(event, dict)] if isinstance(events, list) else []


def _shared(message: Message) -> tuple[str, ...]:
    """What messages must have in common to be one request; subject and headers are each personalization's own."""
    content = message.content
    if not isinstance(content, EmailContent):
        return (str(message.delivery_id),)
    return content.text, content.html, content.sender, content.reply_to


def _personalization(message: Message) -> Any:
    content = message.content
    if not isinstance(content, EmailContent):
        raise ValueError(f"a mail holds {type(content).__name__}")
    personal = Personalization()
    to = To()
    to.email = message.address.value  # given to the constructor, it would be parsed as "name <address>"
    personal.add_to(to)
    personal.subject = Subject(content.subject).get()
    for name, value in content.headers.items():
        personal.add_header(Header(name, value if value.isascii() else MimeHeader(value, "utf-8").encode(maxlinelen=0)))
    personal.add_custom_arg(CustomArg("delivery_id", str(message.delivery_id)))
    personal.add_custom_arg(CustomArg("claim_no", str(message.claim_no)))
    return personal


@dataclass(frozen=True, slots=True)
class _Error:
    field: str = ""
    message: str = ""


def _errors(reply: http.Reply) -> list[_Error]:
    """The `errors` of an answer; at least one, empty where the answer says nothing."""
    found = reply.json.get("errors")
    rows = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    return [_Error(str(row.get("field") or ""), str(row.get("message") or "")) for row in rows] or [_Error()]


def _outcome(reply: http.Reply, error: _Error, sandbox_mode: bool = False) -> Outcome:
    reference = reply.headers.get("X-Message-Id", "")
    if (reply.status == 202 and reference) or (reply.status == 200 and sandbox_mode and not reply.body.strip()):
        return Outcome(Kind.ACCEPTED, provider_ref=reference, http_status=reply.status)
    row = _HTTP.get(reply.status) or http.by_status(reply.status)
    if reply.status in (400, 403):
        row = next((named for pattern, named in _FIELDS if pattern.match(error.field)), row)
    return http.classified(
        row,
        code=f"{reply.status} {error.field}"[:100].strip(),
        http_status=reply.status,
        detail=http.readable(error.message),
        retry_after_s=_wait_s(reply.headers),
    )


def _wait_s(headers: Mapping[str, str]) -> float | None:
    """`Retry-After`, else SendGrid's own `X-RateLimit-Reset` in Unix seconds."""
    reset = headers.get("X-RateLimit-Reset", "")
    told = http.retry_after_s(headers)
    if told is None and re.fullmatch(r"[0-9]{1,12}", reset):
        return http.clamped_s(int(reset) - time.time())
    return told


def _receipt(event: Mapping[str, Any]) -> Receipt:
    name = str(event.get("event", ""))
    kind = _EVENTS.get(name, ReceiptKind.UNKNOWN)
    delivery_id = http.uuid_or_none(event.get("delivery_id"))
    words = str(event.get("reason") or event.get("response") or "")
    names_person = kind in _ABOUT_A_PERSON or delivery_id is None
    return Receipt(
        event_id=str(event.get("sg_event_id") or _digest(event)),
        kind=kind,
        at=_time(event.get("timestamp")),
        delivery_id=delivery_id,
        claim_no=http.int_or_none(event.get("claim_no")),
        provider_ref=re.split(r"\.(?:filter|recvd)", str(event.get("sg_message_id", "")))[0],  # the X-Message-Id
        reason=_why(event) if kind is ReceiptKind.UNDELIVERED else "",
        code=" ".join(str(event[key]) for key in ("event", "type", "status") if event.get(key))[:100],
        detail=http.readable(words, str(event.get("email", ""))),
        address=str(event.get("email", "")) if names_person else "",
        is_machine=event.get("sg_machine_open") is True,
        raw=event,
    )


def _why(event: Mapping[str, Any]) -> str:
    if event.get("event") == "bounce":
        return "soft_bounce" if event.get("type") == "blocked" else "hard_bounce"
    return _DROPPED.get(str(event.get("reason", "")).strip().lower(), "undelivered_other")


def _time(value: object) -> datetime | None:
    try:
        return datetime.fromtimestamp(float(value), UTC) if isinstance(value, int | float) else None
    except (ValueError, OverflowError, OSError):
        return None


def _digest(event: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(event, sort_keys=True).encode(), digest_size=16).hexdigest()


def _bare(public_key: str) -> str:
    """The key's base64 in one line, as the SDK wants it; a whole PEM is taken as well."""
    return re.sub(r"-----[A-Z ]+-----|\s", "", public_key)
