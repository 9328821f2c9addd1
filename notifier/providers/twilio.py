"""Twilio Programmable Messaging: SMS.

Send: https://www.twilio.com/docs/messaging/api/message-resource#create-a-message-resource
Errors: https://www.twilio.com/docs/api/errors
Receipts: https://www.twilio.com/docs/messaging/guides/track-outbound-message-status
Signatures: https://www.twilio.com/docs/usage/webhooks/webhooks-security
The SDK builds, authenticates and verifies; our carrier carries (the SDK's own async client, 9.13, never times out).
POST Messages has no idempotency key, and a 500 may have been taken: only what says "not processed" is UNAVAILABLE.
"""

from __future__ import annotations

import logging
import re
import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlencode, urlsplit

from aiohttp import encode_basic_auth
from multidict import MultiDict
from twilio.base.exceptions import TwilioException
from twilio.http import AsyncHttpClient
from twilio.http.response import Response
from twilio.request_validator import (
    HMAC_SHA1,
    SIGNATURE_HEADER,
    SIGNATURE_SETTINGS_HEADER,
    RequestValidator,
    get_signature_algorithm,
)
from twilio.rest import Client

from notifier.message import Message, SmsContent
from notifier.outcome import Callback, Kind, Outcome, Receipt, ReceiptKind, Scope
from notifier.providers import http
from notifier.providers.base import ConfigurationError, Provider, Surroundings, setting

BODY_LIMIT_CHARACTERS = 1600
VALIDITY_LIMIT_S = 36_000  # ten hours; also what Twilio takes when told nothing

_INVALID_NUMBER = Outcome(Kind.GONE, Scope.ADDRESS, reason="invalid_number")
_CANNOT_RECEIVE = Outcome(Kind.GONE, Scope.ADDRESS, reason="cannot_receive")
_WRONG_SENDER = Outcome(Kind.MISCONFIGURED, Scope.SENDER)

_ERRORS: http.Table = {
    "20003": http.MISCONFIGURED,  # authenticate
    "20005": http.MISCONFIGURED,  # account not active
    "20006": http.MISCONFIGURED,  # access denied
    "20008": http.MISCONFIGURED,  # test credentials on a live resource
    "90010": http.MISCONFIGURED,  # account inactive
    "20429": http.THROTTLED,  # "never processed, always safe to retry"
    "20500": http.UNCERTAIN,  # "a retried request may send twice"
    "20503": http.UNAVAILABLE,
    "21211": _INVALID_NUMBER,
    "21217": _INVALID_NUMBER,
    "21214": _CANNOT_RECEIVE,  # cannot be reached
    "21614": _CANNOT_RECEIVE,  # not a mobile number
    "21635": _CANNOT_RECEIVE,  # a landline
    "21408": http.REJECTED,  # region not enabled
    "21612": http.REJECTED,  # no route from this sender to this number
    "21610": Outcome(Kind.REJECTED, Scope.ADDRESS, reason="recipient_blocked", opted_out=True),
    "21602": http.REJECTED_CONTENT,  # no body
    "21605": http.TOO_LARGE,
    "21617": http.TOO_LARGE,
    "30019": http.TOO_LARGE,
    "21212": _WRONG_SENDER,
    "21603": _WRONG_SENDER,
    "21606": _WRONG_SENDER,
    "21659": _WRONG_SENDER,
    "21703": _WRONG_SENDER,
    "21704": _WRONG_SENDER,
    "21611": Outcome(Kind.THROTTLED, Scope.SENDER, retry_after_s=3600.0),  # its queue holds ten hours of messages
    "63038": Outcome(Kind.THROTTLED, Scope.ACCOUNT, retry_after_s=3600.0),  # the account's daily limit
}
"""https://www.twilio.com/docs/api/errors, by `code`. Others: 21xxx is this message's fault, the rest goes by status."""

_UNDELIVERED: Mapping[str, str] = {
    "30001": "undelivered_other",  # queue overflow
    "30002": "undelivered_other",  # our account was suspended
    "30003": "unreachable",
    "30004": "carrier_rejected",
    "30005": "hard_bounce",  # unknown number
    "30006": "hard_bounce",  # a landline, or a carrier that takes no messages
    "30007": "carrier_rejected",  # filtered
    "30008": "soft_bounce",  # unknown error
    "30017": "unreachable",  # congestion
    "30032": "carrier_rejected",  # toll-free sender not verified
    "30034": "carrier_rejected",  # 10DLC sender not registered
    "30035": "carrier_rejected",  # 10DLC sender being registered
    "30036": "ttl_elapsed",
    "21610": "undelivered_other",
}
"""`ErrorCode` of a status callback -> reason. Other 30xxx are soft: Twilio splits its codes over time."""

_STATUSES: Mapping[str, ReceiptKind] = {
    "accepted": ReceiptKind.SENT,
    "scheduled": ReceiptKind.SENT,
    "queued": ReceiptKind.SENT,
    "sending": ReceiptKind.SENT,
    "sent": ReceiptKind.SENT,
    "partially_delivered": ReceiptKind.SENT,
    "delivered": ReceiptKind.DELIVERED,
    "read": ReceiptKind.OPENED,
    "undelivered": ReceiptKind.UNDELIVERED,
    "failed": ReceiptKind.UNDELIVERED,
    "canceled": ReceiptKind.UNDELIVERED,
}

_KEYWORDS: Mapping[str, ReceiptKind] = {
    **dict.fromkeys(
        ("STOP", "STOPALL", "UNSUBSCRIBE", "CANCEL", "END", "QUIT", "REVOKE", "OPTOUT"), ReceiptKind.STOPPED
    ),
    **dict.fromkeys(("START", "UNSTOP", "YES"), ReceiptKind.STARTED),
    **dict.fromkeys(("HELP", "INFO"), ReceiptKind.INBOUND),
}
"""https://help.twilio.com/articles/223134027 (a message that is one of these words and nothing else)"""


@dataclass(frozen=True, slots=True)
class TwilioSettings:
    account_sid: str = setting(help="the account's SID, AC and 32 digits (Twilio console)")
    auth_token: str = setting(secret=True, help="the account's auth token; it also signs the callbacks")
    api_key_sid: str = setting(help="an API key to send with in place of the auth token; empty: the auth token")
    api_key_secret: str = setting(secret=True, help="the API key's secret")
    sender: str = setting(help="the number, short code or name that messages come from by default")
    messaging_service_sid: str = setting(
        help="a messaging service to send through; it chooses the sender when none is set"
    )
    callback_key_secret: str = setting(secret=True, help="the SharedKey that signs callbacks, where one is in use")
    base_url: str = setting("https://api.twilio.com", help="where Twilio's API answers")
    ca_file: str = setting(help="PEM file of a further authority to trust, for a stand-in server")


@dataclass(slots=True)
class _Call:
    """What the SDK has no room for: our timeout on the way in, the answer's headers on the way out."""

    timeout_s: float
    reply: http.Reply | None = None


_call: ContextVar[_Call] = ContextVar("twilio_call")


class _Transport(AsyncHttpClient):  # type: ignore[misc]  # the SDK is untyped
    """The SDK's transport, replaced by the process's carrier: one request a call, always with a timeout."""

    def __init__(self, carrier: Any, tls: ssl.SSLContext | None) -> None:
        super().__init__(logging.getLogger(__name__), True, None)
        self._carrier = carrier
        self._tls = tls

    async def request(
        self,
        method: str,
        uri: str,
        params: dict[str, object] | None = None,
        data: dict[str, object] | None = None,
        headers: dict[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the SDK's signature; it hands None over
        allow_redirects: bool = False,
    ) -> Response:
        call = _call.get()
        call.reply = await self._carrier.post(
            uri,
            headers={**(headers or {}), "Authorization": encode_basic_auth(*auth) if auth else ""},
            data=urlencode(data or {}, doseq=True).encode(),
            timeout_s=call.timeout_s,
            ssl_context=self._tls,
        )
        return Response(call.reply.status, call.reply.body.decode("utf-8", "replace"), call.reply.headers)


class Twilio(Provider):
    kind: ClassVar[str] = "twilio"
    serves: ClassVar[frozenset[str]] = frozenset({"sms"})
    Settings: ClassVar[type] = TwilioSettings

    settings: TwilioSettings

    def __init__(self, settings: TwilioSettings, surroundings: Surroundings) -> None:
        super().__init__(settings, surroundings)
        self._client = Client(
            settings.api_key_sid or settings.account_sid,
            settings.api_key_secret if settings.api_key_sid else settings.auth_token,
            account_sid=settings.account_sid,
            http_client=_Transport(surroundings.carrier, http.trusting(settings.ca_file)),
            environment={"TWILIO_EDGE": ""},  # not empty, or the SDK reads account, edge and region from os.environ
        )
        self._client.api.base_url = settings.base_url.rstrip("/")

    @classmethod
    def check(cls, settings: TwilioSettings) -> None:
        http.check_credential(settings, "account_sid")
        if settings.api_key_sid:
            http.check_credential(settings, "api_key_sid", "api_key_secret")
        else:
            http.check_credential(settings, "auth_token")
        if not re.fullmatch(r"AC[0-9a-fA-F]{32}", settings.account_sid):
            raise ConfigurationError("account_sid: is AC and 32 hexadecimal digits; copy it from the Twilio console")
        if not (settings.sender or settings.messaging_service_sid):
            raise ConfigurationError("sender: is empty, and so is messaging_service_sid; give one of them")
        http.check_base_url(settings.base_url)
        http.check_ca_file(settings.ca_file)

    async def send(self, batch: Sequence[Message]) -> list[Outcome]:
        return await http.each(self._send, batch)

    async def _send(self, message: Message) -> Outcome:
        content = message.content
        if not isinstance(content, SmsContent) or not content.text:
            return http.classified(http.REJECTED_CONTENT, code="empty", detail="no text")
        if len(content.text) > BODY_LIMIT_CHARACTERS:
            return http.classified(
                http.TOO_LARGE, code="too_large", detail=f"{len(content.text)} of {BODY_LIMIT_CHARACTERS} characters"
            )
        call = _Call(message.timeout_s)
        kept = _call.set(call)
        try:
            created = await self._client.messages.create_async(message.address.value, **self._fields(message, content))
        except (http.NotSent, http.Uncertain) as error:
            return http.without_answer(error)
        except TwilioException as error:
            return _refused(error, call.reply, message)
        except (
            ValueError,
            TypeError,
            AttributeError,
            KeyError,
            RecursionError,
        ):  # the SDK on a 2xx that is not its JSON
            return http.classified(http.GARBLED, http_status=call.reply.status if call.reply else None)
        finally:
            _call.reset(kept)
        status = call.reply.status if call.reply else None
        if not isinstance(created.sid, str) or not created.sid:
            return http.classified(http.GARBLED, http_status=status)
        return Outcome(Kind.ACCEPTED, provider_ref=created.sid, http_status=status)

    def _fields(self, message: Message, content: SmsContent) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "body": content.text,
            "validity_period": min(max(int(message.expires_at - time.time()), 1), VALIDITY_LIMIT_S),
        }
        if sender := content.sender or self.settings.sender:
            fields["from_"] = sender
        if self.settings.messaging_service_sid:
            fields["messaging_service_sid"] = self.settings.messaging_service_sid
        if hook := self.surroundings.hook_url:
            fields["status_callback"] = (
                f"{hook}{'&' if '?' in hook else '?'}d={message.delivery_id}&n={message.claim_no}"
            )
        return fields

    def verify(self, callback: Callback) -> bool:
        signature = callback.headers.get(SIGNATURE_HEADER.lower(), "")
        algorithm = get_signature_algorithm(callback.headers.get(SIGNATURE_SETTINGS_HEADER.lower(), ""))
        key = self.settings.auth_token if algorithm == HMAC_SHA1 else self.settings.callback_key_secret
        if not signature or not key:
            return False
        try:
            # Sorted names and values are all that is signed of a form, so each pair that counts is among them.
            return bool(RequestValidator(key).validate(callback.url, _form(callback), signature, algorithm))
        except (ValueError, TypeError):  # UnicodeError is a ValueError
            return False

    def receipts(self, callback: Callback) -> list[Receipt]:
        try:
            form = dict(_form(callback))
        except ValueError:
            return []
        return list(_receipts(form, dict(parse_qsl(urlsplit(callback.url).query))))


def _form(callback: Callback) -> MultiDict[str]:
    """The body's fields. Raises ValueError for what is no UTF-8 form."""
    text = callback.body.decode("utf-8")
    return MultiDict(parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=200))


def _refused(error: TwilioException, reply: http.Reply | None, message: Message) -> Outcome:
    code, status = str(getattr(error, "code", "") or ""), int(getattr(error, "status", 0) or 0)
    status = reply.status if reply else status
    row = _ERRORS.get(code) or (http.REJECTED if re.fullmatch(r"21\d{3}", code) else http.by_status(status))
    words = getattr(error, "msg", None) or getattr(error, "detail", None) or getattr(error, "title", "")
    return http.classified(
        row,
        code=code or status,
        http_status=status,
        detail=http.readable(words, message.address.value, message.address.value.lstrip("+")),
        retry_after_s=http.retry_after_s(reply.headers) if reply else None,
    )


def _receipts(form: Mapping[str, str], query: Mapping[str, str]) -> Iterable[Receipt]:
    sid = form.get("MessageSid") or form.get("SmsSid") or ""
    status = form.get("MessageStatus", "")
    if not sid:
        return
    if not status:
        yield _inbound(sid, form)
        return
    code = form.get("ErrorCode", "")
    kind = _STATUSES.get(status, ReceiptKind.UNKNOWN)
    reported = Receipt(
        event_id=f"{sid}:{status}",
        kind=kind,
        delivery_id=http.uuid_or_none(query.get("d")),
        claim_no=http.int_or_none(query.get("n")),
        provider_ref=sid,
        code=code or status,
        raw=dict(form),
    )
    if kind is ReceiptKind.UNDELIVERED:
        soft = "soft_bounce" if re.fullmatch(r"30\d{3}", code) else "undelivered_other"
        reported = replace(reported, reason=_UNDELIVERED.get(code, soft))
    yield reported
    if code == "21610":  # stopped at Twilio earlier than we heard of it
        yield replace(
            reported, event_id=f"{sid}:stopped", kind=ReceiptKind.STOPPED, reason="", address=form.get("To", "")
        )


def _inbound(sid: str, form: Mapping[str, str]) -> Receipt:
    word = (form.get("OptOutType") or form.get("Body", "")).strip().upper()
    kind = _KEYWORDS.get(word, ReceiptKind.INBOUND)
    return Receipt(
        event_id=f"{sid}:inbound",
        kind=kind,
        provider_ref=sid,
        code=word if word in _KEYWORDS else "",
        address=form.get("From", ""),
        raw=dict(form),
    )
