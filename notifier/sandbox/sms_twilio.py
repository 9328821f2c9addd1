"""Twilio Programmable Messaging, as its documents describe it.

Send: https://www.twilio.com/docs/messaging/api/message-resource#create-a-message-resource
Errors: https://www.twilio.com/docs/api/errors
Callbacks: https://www.twilio.com/docs/messaging/guides/track-outbound-message-status
Signature: https://www.twilio.com/docs/usage/security#validating-requests
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import time
from email.utils import formatdate
from typing import Any, ClassVar
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

from notifier.sandbox.faults import Mode
from notifier.sandbox.keys import TWILIO_ACCOUNT_SID, TWILIO_AUTH_TOKEN
from notifier.sandbox.ledger import Entry
from notifier.sandbox.magic import Effect, phone_effect
from notifier.sandbox.vendor import Answer, Call, HttpVendor, Interned, Parts, Preview

_API_VERSION = "2010-04-01"
_BODY_LIMIT = 1600
_VALIDITY_MOST_S = 36_000
_SENT_AFTER_S, _DELIVERED_AFTER_S, _STOP_AFTER_S = 0.1, 0.3, 1.0
_FROM_OF_A_SERVICE = "+15005550006"
_E164 = re.compile(r"\+[1-9]\d{6,14}\Z")
_SENDER = re.compile(r"(\+[1-9]\d{6,14}|\d{3,8}|(?=.*[A-Za-z])[A-Za-z0-9 &+_-]{1,11})\Z")
_SERVICE = re.compile(r"MG[0-9a-fA-F]{32}\Z")
_BASIC = "Basic " + base64.b64encode(f"{TWILIO_ACCOUNT_SID}:{TWILIO_AUTH_TOKEN}".encode()).decode()
_FORM = "application/x-www-form-urlencoded"
_GSM7 = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿"
    "abcdefghijklmnopqrstuvwxyzäöñüà"
)
_GSM7_DOUBLE = frozenset("^{}\\[~]|€\f")
_REFUSED = {
    Effect.INVALID_NUMBER: (21211, "Invalid 'To' Phone Number: {to}"),
    Effect.UNROUTABLE: (21612, "Message cannot be sent with the current combination of 'To' ({to}) and/or 'From'"),
    Effect.NO_PERMISSION: (21408, "Permission to send an SMS is not enabled for the region of 'To': {to}"),
    Effect.OPTED_OUT: (21610, "Attempt to send to unsubscribed recipient"),
    Effect.CANNOT_RECEIVE: (21614, "'To' number is not a valid mobile number: {to}"),
}  # fmt: skip
# The vendor's own test senders: https://www.twilio.com/docs/iam/test-credentials
_REFUSED_SENDERS = {
    "+15005550001": (21212, "Invalid From Number (caller ID): {sender}"),
    "+15005550007": (21606, "The 'From' phone number provided ({sender}) is not a valid message-capable Twilio number"),
    "+15005550008": (21611, "This 'From' number has exceeded the maximum number of queued messages"),
}


class Refused(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Twilio(HttpVendor):
    provider: ClassVar[str] = "twilio"
    channel: ClassVar[str] = "sms"
    messages: ClassVar[re.Pattern[str]] = re.compile(r"/2010-04-01/Accounts/([^/]+)/Messages\.json\Z")

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._kept_headers = Interned("user-agent", "content-type")

    def receive(self, call: Call) -> Answer:
        if not hmac.compare_digest(call.headers.get("authorization", "").encode(), _BASIC.encode()):
            return self.refusal(Mode.HTTP_401, None, call)
        if call.path != f"/{_API_VERSION}/Accounts/{TWILIO_ACCOUNT_SID}/Messages.json":
            return _error(404, 20404, f"The requested resource {call.path} was not found")
        if call.method != "POST":
            return _error(405, 20004, "Method not allowed")
        form = dict(parse_qsl(call.body.decode("utf-8", "replace"), keep_blank_values=True))
        try:
            _check(form)
        except Refused as refused:
            return _error(400, refused.code, str(refused))
        sid = "SM" + secrets.token_hex(16)
        callback = form.get("StatusCallback", "")
        self.parts.ledger.accept(
            provider=self.provider,
            channel=self.channel,
            to=form["To"],
            delivery_id=parse_qs(urlsplit(callback).query).get("d", [None])[0],
            headers=self._kept_headers(call.headers),
            body=call.body,
        )
        if self.parts.options.receipts:
            if callback:
                self._report(sid, form, callback)
            if phone_effect(form["To"]) is Effect.STOP:
                self._answer_stop(form, callback)
        return Answer(201, _resource(sid, form), "application/json;charset=utf-8", accepted=True)

    def refusal(self, mode: Mode, retry_after: float | None, call: Call) -> Answer:
        if mode is Mode.HTTP_401:
            return _error(401, 20003, "Authenticate")
        if mode is Mode.HTTP_429:
            return _error(429, 20429, "Too Many Requests", retry_after)
        if mode is Mode.GONE:
            return _error(400, 21211, "Invalid 'To' Phone Number")
        return _error(500, 20500, "An internal server error has occurred", retry_after)

    # What comes back

    def _report(self, sid: str, form: dict[str, str], url: str) -> None:
        """`queued` was the answer; the vendor calls back for what follows it."""
        said = {
            "AccountSid": TWILIO_ACCOUNT_SID,
            "ApiVersion": _API_VERSION,
            "From": form.get("From") or _FROM_OF_A_SERVICE,
            "MessageSid": sid,
            "SmsSid": sid,
            "To": form["To"],
        }
        if form.get("MessagingServiceSid"):
            said["MessagingServiceSid"] = form["MessagingServiceSid"]
        for status, delay_s in (("sent", _SENT_AFTER_S), ("delivered", _DELIVERED_AFTER_S)):
            params = {**said, "MessageStatus": status, "SmsStatus": status}
            if status == "delivered":
                params["RawDlrDoneDate"] = time.strftime("%y%m%d%H%M", time.gmtime())
            self._post(url, params, delay_s)

    def _answer_stop(self, form: dict[str, str], callback: str) -> None:
        """The person writes STOP. The inbound hook is the account's: the callback's address without its query."""
        url = callback.partition("?")[0] or self.parts.courier.hook("twilio", "twilio-sandbox")
        sid = "SM" + secrets.token_hex(16)
        params = {
            "AccountSid": TWILIO_ACCOUNT_SID,
            "ApiVersion": _API_VERSION,
            "Body": "STOP",
            "From": form["To"],
            "MessageSid": sid,
            "NumMedia": "0",
            "NumSegments": "1",
            "OptOutType": "STOP",
            "SmsMessageSid": sid,
            "SmsSid": sid,
            "SmsStatus": "received",
            "To": form.get("From") or _FROM_OF_A_SERVICE,
        }
        if form.get("MessagingServiceSid"):
            params["MessagingServiceSid"] = form["MessagingServiceSid"]
        self._post(url, params, _STOP_AFTER_S)

    def _post(self, url: str, params: dict[str, str], delay_s: float) -> None:
        headers = {
            "Content-Type": f"{_FORM}; charset=UTF-8",
            "User-Agent": "TwilioProxy/1.1",
            "I-Twilio-Idempotency-Token": secrets.token_hex(16),
            "X-Twilio-Signature": sign(url, params),
        }
        self.parts.courier.post(url, urlencode(params).encode(), headers, delay_s=delay_s)

    # How people see it

    def body(self, entry: Entry, raw: bytes) -> Any:
        return dict(parse_qsl(raw.decode("utf-8", "replace"), keep_blank_values=True))

    def preview(self, entry: Entry, raw: bytes) -> Preview:
        form = self.body(entry, raw)
        parts, coding = _segments(form["Body"])
        return Preview(
            look="sms",
            sender=form.get("From") or form.get("MessagingServiceSid", ""),
            text=form["Body"],
            note=f"{parts} segment{'s' * (parts != 1)}, {coding}",
        )


def sign(url: str, params: dict[str, str]) -> str:
    signed = url + "".join(name + params[name] for name in sorted(params))
    return base64.b64encode(hmac.new(TWILIO_AUTH_TOKEN.encode(), signed.encode(), hashlib.sha1).digest()).decode()


def _check(form: dict[str, str]) -> None:
    """Raises Refused with the vendor's code."""
    to, text = form.get("To", ""), form.get("Body", "")
    sender, service = form.get("From", ""), form.get("MessagingServiceSid", "")
    if not to:
        raise Refused(21604, "A 'To' phone number is required.")
    if not _E164.match(to):
        raise Refused(21211, f"Invalid 'To' Phone Number: {to[:20]}")
    if not sender and not service:
        raise Refused(21603, "A 'From' phone number is required.")
    if service and not _SERVICE.match(service):
        raise Refused(21703, "The Messaging Service does not have a phone number available to send a message")
    if sender and not _SENDER.match(sender):
        raise Refused(21212, f"Invalid From Number (caller ID): {sender[:20]}")
    if sender in _REFUSED_SENDERS:
        code, refusal = _REFUSED_SENDERS[sender]
        raise Refused(code, refusal.format(sender=sender))
    if not text and "MediaUrl" not in form and "ContentSid" not in form:
        raise Refused(21602, "Message body is required.")
    if len(text) > _BODY_LIMIT:
        raise Refused(21617, "The concatenated message body exceeds the 1600 character limit")
    validity = form.get("ValidityPeriod", "1")
    if not validity.isascii() or not validity.isdigit() or not 1 <= int(validity) <= _VALIDITY_MOST_S:
        raise Refused(20001, "ValidityPeriod must be a number of seconds from 1 to 36000")
    callback = form.get("StatusCallback", "")
    if callback and urlsplit(callback).scheme not in ("http", "https"):
        raise Refused(21609, "The 'StatusCallback' URL is not a valid URL")
    if (effect := phone_effect(to)) in _REFUSED:
        code, refusal = _REFUSED[effect]
        raise Refused(code, refusal.format(to=to))


def _resource(sid: str, form: dict[str, str]) -> bytes:
    now = formatdate(usegmt=False)
    uri = f"/{_API_VERSION}/Accounts/{TWILIO_ACCOUNT_SID}/Messages/{sid}"
    return json.dumps(
        {
            "account_sid": TWILIO_ACCOUNT_SID,
            "api_version": _API_VERSION,
            "body": form.get("Body", ""),
            "date_created": now,
            "date_sent": None,
            "date_updated": now,
            "direction": "outbound-api",
            "error_code": None,
            "error_message": None,
            "from": form.get("From") or None,
            "messaging_service_sid": form.get("MessagingServiceSid") or None,
            "num_media": "0",
            "num_segments": str(_segments(form.get("Body", ""))[0]),
            "price": None,
            "price_unit": "USD",
            "sid": sid,
            "status": "queued" if form.get("From") else "accepted",
            "subresource_uris": {"media": f"{uri}/Media.json"},
            "to": form["To"],
            "uri": f"{uri}.json",
        }
    ).encode()


def _segments(text: str) -> tuple[int, str]:
    """GSM 03.38: how many parts, and in which coding."""
    if all(character in _GSM7 or character in _GSM7_DOUBLE for character in text):
        length, coding = sum(2 if character in _GSM7_DOUBLE else 1 for character in text), "GSM-7"
        single, part = 160, 153
    else:
        length, coding = len(text.encode("utf-16-le", "replace")) // 2, "UCS-2"
        single, part = 70, 67
    return (1 if length <= single else -(-length // part)), coding


def _error(status: int, code: int, text: str, retry_after: float | None = None) -> Answer:
    body = {
        "code": code,
        "message": text,
        "more_info": f"https://www.twilio.com/docs/errors/{code}",
        "status": status,
    }
    headers = {} if retry_after is None else {"Retry-After": f"{retry_after:.0f}"}
    return Answer(status, json.dumps(body).encode(), "application/json;charset=utf-8", headers)
