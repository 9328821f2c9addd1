"""A mail server's rules: who may send, which recipients are taken, what comes back. The wire is in `smtp_wire`.

SMTP: RFC 5321. Enhanced codes: RFC 3463. AUTH: RFC 4954. SIZE: RFC 1870. SMTPUTF8: RFC 6531. NOTIFY: RFC 3461.
"""

from __future__ import annotations

import base64
import binascii
import email
import email.policy
import hmac
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import Message
from functools import lru_cache
from typing import Any, ClassVar

from notifier.sandbox import dsn
from notifier.sandbox.faults import Fault, Mode
from notifier.sandbox.keys import SMTP_PASSWORD
from notifier.sandbox.ledger import Entry
from notifier.sandbox.magic import SLOW_ACCEPT_S, SLOW_DELIVERED_S, Effect, email_effect
from notifier.sandbox.mailbox import is_mailbox
from notifier.sandbox.vendor import Preview, Vendor

SIZE_LIMIT_BYTES = 25 * 1024 * 1024
RECIPIENTS_MOST = 100
DEFAULT_ACCOUNT = "smtp-sandbox"

_BOUNCE_AFTER_S, _DELIVERED_AFTER_S, _COMPLAINT_AFTER_S = 0.3, 0.3, 1.0
_PATH = re.compile(r"<(?:@[^:>]*:)?([^<>\s]*)>(?:\s+(.*))?\Z", re.DOTALL)
_DELIVERY_ID = re.compile(rb"^x-delivery-id:[ \t]*([^\r\n]{1,200}?)[ \t]*\r$", re.IGNORECASE | re.MULTILINE)
_ACCOUNT = re.compile(r"[A-Za-z0-9._-]{1,100}\Z")
_TOO_BIG = "552 5.3.4 Message size exceeds fixed limit"

_REFUSAL = {
    Mode.HTTP_500: "451 4.3.0 Temporary system failure",
    Mode.HTTP_429: "450 4.7.1 Too many messages, slow down",
    Mode.HTTP_401: "530 5.7.0 Authentication required",
}


@dataclass(slots=True)
class Transaction:
    """One MAIL ... DATA. `fault` was drawn when it began and strikes at its own stage."""

    sender: str
    fault: Fault | None = None
    is_utf8: bool = False
    envelope_id: str = ""
    recipients: list[tuple[str, bool]] = field(default_factory=list)  # address, wants to hear of success


class Smtp(Vendor):
    provider: ClassVar[str] = "smtp"
    channel: ClassVar[str] = "email"

    def mail_from(self, argument: str) -> tuple[Transaction | None, str]:
        """The reply, and the transaction when it began."""
        found = _PATH.match(argument)
        if found is None or (found[1] and not is_mailbox(found[1])):
            return None, "501 5.1.7 Bad sender address syntax"
        begun = Transaction(found[1])
        for name, value in _parameters(found[2]):
            if name == "SIZE":
                if not value.isdigit():
                    return None, "501 5.5.4 Bad SIZE"
                if int(value) > SIZE_LIMIT_BYTES:
                    return None, _TOO_BIG
            elif name == "BODY" and value.upper() in ("7BIT", "8BITMIME"):
                continue
            elif name == "SMTPUTF8" and not value:
                begun.is_utf8 = True
            elif name == "ENVID":
                begun.envelope_id = value[:100]
            elif name != "RET":
                return None, f"555 5.5.4 Unsupported option: {name[:30]}"
        if not found[1].isascii() and not begun.is_utf8:
            return None, "553 5.6.7 Non-ASCII sender needs SMTPUTF8"
        begun.fault = self.parts.faults.draw(self.provider)
        return self._struck_at_mail(begun)

    def _struck_at_mail(self, begun: Transaction) -> tuple[Transaction | None, str]:
        fault = begun.fault
        if fault is not None and fault.mode in _REFUSAL:
            return None, _REFUSAL[fault.mode]
        if fault is not None and fault.mode is Mode.ANSWER and fault.stage == "mail":
            return None, scripted(fault)
        return begun, "250 2.1.0 Ok"

    def rcpt_to(self, begun: Transaction, argument: str) -> str:
        found = _PATH.match(argument)
        if found is None or not is_mailbox(found[1]):
            return "553 5.1.3 Bad recipient address syntax"
        address = found[1]
        if not address.isascii() and not begun.is_utf8:
            return "553 5.6.7 Non-ASCII recipient needs SMTPUTF8"
        if len(begun.recipients) >= RECIPIENTS_MOST:
            return "452 4.5.3 Too many recipients"
        wants_success = False
        for name, value in _parameters(found[2]):
            if name == "NOTIFY":
                wants_success = "SUCCESS" in value.upper().split(",")
            elif name != "ORCPT":
                return f"555 5.5.4 Unsupported option: {name[:30]}"
        fault = begun.fault
        if fault is not None and fault.mode is Mode.GONE:
            return "550 5.1.1 No such user here"
        if fault is not None and fault.mode is Mode.ANSWER and fault.stage in ("", "rcpt"):
            return scripted(fault)
        if email_effect(address) is Effect.THROTTLED and self.parts.throttle.holds_back(address.lower()):
            return "450 4.7.1 Mailbox receives mail too quickly, try again later"
        begun.recipients.append((address, wants_success))
        return "250 2.1.5 Ok"

    def accept(self, begun: Transaction, mail: bytes, account: str) -> tuple[str, float]:
        """The reply to the final dot, and how long it takes."""
        if begun.fault is not None and begun.fault.mode is Mode.ANSWER:
            return scripted(begun.fault), 0.0
        header_end = mail.find(b"\r\n\r\n")
        found = _DELIVERY_ID.search(mail, 0, header_end + 2 if header_end >= 0 else len(mail))
        delivery_id = found[1].decode("ascii", "replace") if found else None
        delay_s = 0.0
        for address, wants_success in begun.recipients:
            self.parts.ledger.accept(
                provider=self.provider,
                channel=self.channel,
                to=address,
                delivery_id=delivery_id,
                body=mail,
                shared_by=len(begun.recipients),
            )
            effect = email_effect(address)
            if effect is Effect.SLOW:
                delay_s = SLOW_ACCEPT_S
            if begun.sender and self.parts.options.receipts:
                envelope = dsn.Envelope(begun.sender, address, begun.envelope_id, mail)
                self._report(envelope, effect, account, wants_success)
        return f"250 2.0.0 Ok: queued as {secrets.token_hex(6).upper()}", delay_s

    def _report(self, envelope: dsn.Envelope, effect: Effect, account: str, wants_success: bool) -> None:
        """Success is reported where it was asked for, and for mailboxes made for testing."""
        if effect is Effect.BOUNCED:
            self._post(account, dsn.bounce(envelope), _BOUNCE_AFTER_S)
        elif effect is not Effect.OK or wants_success:
            after_s = SLOW_DELIVERED_S if effect is Effect.SLOW else _DELIVERED_AFTER_S
            self._post(account, dsn.delivered(envelope), after_s)
        if effect is Effect.COMPLAINT:
            self._post(account, dsn.complaint(envelope), _COMPLAINT_AFTER_S)

    def _post(self, account: str, mail: bytes, delay_s: float) -> None:
        url = self.parts.courier.hook("smtp", account if _ACCOUNT.match(account) else DEFAULT_ACCOUNT)
        self.parts.courier.post(url, mail, {"Content-Type": "message/rfc822"}, delay_s=delay_s)

    def login(self, initial: str) -> tuple[str, str]:
        """The user name (empty when refused) and the reply, for the credentials of AUTH PLAIN."""
        try:
            _, user, password = base64.b64decode(initial, validate=True).decode().split("\0")
        except (binascii.Error, ValueError):
            return "", "501 5.5.2 Cannot decode credentials"
        return self.checked(user, password)

    def checked(self, user: str, password: str) -> tuple[str, str]:
        is_struck = self.parts.faults.draw(self.provider, only=Mode.HTTP_401) is not None
        if is_struck or not user or not hmac.compare_digest(password.encode(), SMTP_PASSWORD.encode()):
            return "", "535 5.7.8 Authentication credentials invalid"
        return user, "235 2.7.0 Authentication successful"

    # How people see it

    def headers(self, entry: Entry, raw: bytes) -> dict[str, str]:
        return {name: _decoded(value) for name, value in _message(raw).raw_items()}

    def body(self, entry: Entry, raw: bytes) -> Any:
        message = _message(raw)
        return {
            "subject": _header(message, "subject"),
            "from": _header(message, "from"),
            "text": _text(message, "text/plain"),
            "html": _text(message, "text/html"),
            "attachments": _attachments(message),
            "raw": raw.decode("utf-8", "replace"),
        }

    def preview(self, entry: Entry, raw: bytes) -> Preview:
        message = _message(raw)
        attached = _attachments(message)
        return Preview(
            look="mail",
            sender=_header(message, "from"),
            title=_header(message, "subject"),
            text=_text(message, "text/plain"),
            html=bool(_text(message, "text/html")),
            note=f"attached: {', '.join(attached)}" if attached else "",
        )

    def html(self, entry: Entry, raw: bytes) -> str:
        return _text(_message(raw), "text/html")


def scripted(fault: Fault) -> str:
    return f"{fault.status} {fault.body or 'Scripted answer'}".replace("\r", " ").replace("\n", " ")


def _parameters(text: str | None) -> list[tuple[str, str]]:
    pairs = (one.partition("=") for one in (text or "").split())
    return [(name.upper(), value) for name, _, value in pairs]


@lru_cache(maxsize=8)  # one entry is asked for its headers, body and preview in turn
def _message(raw: bytes) -> Message:
    """Read with the older of the library's two policies: the newer one raises on mails that are badly broken."""
    return email.message_from_bytes(raw, policy=email.policy.compat32)


def _header(message: Message, wanted: str) -> str:
    return next((_decoded(value) for name, value in message.raw_items() if name.lower() == wanted), "")


def _decoded(value: str) -> str:
    """Unfolded, encoded words read. The library's own header objects cost 100 us each, and there are thousands."""
    unfolded = (
        str(value).replace("\r", "").replace("\n", "").encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    )
    if "=?" not in unfolded:
        return unfolded
    try:
        return str(make_header(decode_header(unfolded)))
    except (HeaderParseError, LookupError, ValueError):
        return unfolded


def _leaves(message: Message) -> Iterator[tuple[Message, bool]]:
    """The parts that hold something, each with whether it is attached."""
    for part in message.walk():
        if not part.is_multipart():
            yield part, part.get_content_disposition() == "attachment" or part.get_filename() is not None


def _text(message: Message, kind: str) -> str:
    for part, is_attached in _leaves(message):
        if part.get_content_type() == kind and not is_attached:
            payload = part.get_payload(decode=True)
            content = payload if isinstance(payload, bytes) else b""
            try:
                return content.decode(part.get_content_charset() or "utf-8", "replace")
            except LookupError:  # a charset that nobody knows
                return content.decode("utf-8", "replace")
    return ""


def _attachments(message: Message) -> list[str]:
    return [_decoded(part.get_filename() or "file") for part, is_attached in _leaves(message) if is_attached]
