"""The company's own mail server, over kept SMTP connections.

Replies: RFC 5321 4.2, enhanced codes: RFC 3463 and https://www.iana.org/assignments/smtp-enhanced-status-codes
Bounces: RFC 3464 (delivery status), complaints: RFC 5965 (feedback report); both reach us as raw mails at the hook.
The envelope sender carries delivery, try and a signature (VERP), so that a bounce of any form finds its delivery
and nobody else can report one. SMTP has no idempotency: every try of a delivery has the same Message-ID.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from email import message_from_bytes
from email.message import Message as MimeMessage
from email.utils import formataddr, formatdate, parseaddr
from functools import lru_cache
from typing import ClassVar, TypeVar
from uuid import UUID

import aiosmtplib

from notifier.message import EmailContent, Message
from notifier.outcome import Callback, Kind, Outcome, Receipt, ReceiptKind, Scope
from notifier.providers import http
from notifier.providers.base import ConfigurationError, Provider, Surroundings, setting

MAILS_PER_CONNECTION = 100  # servers close after some hundreds; a new one now and then also spreads over a server pool
IDLE_S = 20.0  # below the shortest idle timeout in use; RFC 5321 4.5.3.2 asks servers for five minutes

_ADDRESS_UNKNOWN = Outcome(Kind.GONE, Scope.ADDRESS, reason="address_unknown")
_WRONG_SENDER = Outcome(Kind.MISCONFIGURED, Scope.SENDER)
_MAILBOX_BUSY = Outcome(Kind.UNAVAILABLE, Scope.ADDRESS)

_REPLIES: http.Table = {
    "421": http.UNAVAILABLE,
    "454": http.UNAVAILABLE,  # RFC 4954: temporary authentication failure
    **dict.fromkeys(
        ("500", "501", "502", "503", "504", "555"), http.MISCONFIGURED
    ),  # the server does not speak our way
    **dict.fromkeys(("530", "534", "535", "538"), http.MISCONFIGURED),
}
"""By reply code, whatever the enhanced code says."""

_ENHANCED: http.Table = {
    "4.2.2": Outcome(Kind.THROTTLED, Scope.ADDRESS, retry_after_s=3600.0),  # mailbox full
    "4.2": _MAILBOX_BUSY,
    "4.7": Outcome(Kind.THROTTLED, Scope.ADDRESS, retry_after_s=600.0),  # greylisted, or too fast for this receiver
    "5.1.7": _WRONG_SENDER,
    "5.1.8": _WRONG_SENDER,
    "5.1": _ADDRESS_UNKNOWN,
    "5.2.1": _ADDRESS_UNKNOWN,  # disabled
    "5.2.2": http.REJECTED,  # mailbox full, and the server does not want us back: the address lives
    "5.2.3": http.TOO_LARGE,
    "5.3.4": http.TOO_LARGE,
    "5.7": http.REJECTED,  # policy, relay, DMARC, spam: says nothing of the address
}
"""By enhanced code, the longest match first."""

_BARE: http.Table = {"450": _MAILBOX_BUSY, "551": _ADDRESS_UNKNOWN}
"""By reply code where there is no enhanced code that is known. Others: 4xx UNAVAILABLE, 5xx REJECTED."""

_DSN_ACTIONS: Mapping[str, ReceiptKind] = {
    "failed": ReceiptKind.UNDELIVERED,
    "delayed": ReceiptKind.DEFERRED,
    "delivered": ReceiptKind.DELIVERED,
    "relayed": ReceiptKind.SENT,
    "expanded": ReceiptKind.SENT,
}
"""RFC 3464 2.3.3"""

_BOUNCES: Mapping[str, str] = {
    "4.4.7": "ttl_elapsed",
    "4": "soft_bounce",
    "5.1.7": "undelivered_other",
    "5.1.8": "undelivered_other",
    "5.1": "hard_bounce",
    "5.2.1": "hard_bounce",
    "5.2.2": "soft_bounce",
    "5.4.7": "ttl_elapsed",
    "5.7": "spam_blocked",
}
"""`Status` of a failed recipient -> reason code, the longest match first; others are `undelivered_other`."""

_FEEDBACK: Mapping[str, ReceiptKind] = {
    "abuse": ReceiptKind.COMPLAINED,
    "fraud": ReceiptKind.COMPLAINED,
    "virus": ReceiptKind.COMPLAINED,
    "other": ReceiptKind.COMPLAINED,
    "opt-out": ReceiptKind.UNSUBSCRIBED,
}
"""RFC 5965 7.3; `not-spam` and `auth-failure` complain of nothing."""

_OUR_HEADERS = frozenset(
    {"from", "to", "cc", "bcc", "sender", "subject", "date", "reply-to", "return-path", "message-id"}
    | {"x-delivery-id", "mime-version", "content-type", "content-transfer-encoding"}
)
T = TypeVar("T")

_SECURITY = ("starttls", "tls", "none")


@dataclass(frozen=True, slots=True)
class SmtpSettings:
    host: str = setting(help="the mail server")
    port: int = setting(587, help="587 for starttls, 465 for tls")
    security: str = setting("starttls", help="starttls, tls, or none (a server on the same machine)")
    username: str = setting(help="empty: no login")
    password: str = setting(secret=True)
    sender: str = setting(help='whom mails come from by default: "Name <a@b>"')
    bounce_domain: str = setting(help="where bounces are received and handed to our hook; empty: the sender gets them")
    bounce_key: str = setting(secret=True, help="any long random text; it signs the bounce addresses")
    helo_name: str = setting("localhost", help="the name we greet with, best the one our IP address resolves to")
    connections: int = setting(10, help="kept connections per worker process")
    ca_file: str = setting(help="PEM file of a further authority to trust")


@dataclass(slots=True)
class _Line:
    """A connection and how much it was used."""

    smtp: aiosmtplib.SMTP
    mails: int = 0
    idle_since: float = 0.0
    has_open_mail: bool = False  # refused between MAIL and DATA: to be reset before the next

    @property
    def is_good(self) -> bool:
        idle_s = time.monotonic() - self.idle_since
        return self.smtp.is_connected and self.mails < MAILS_PER_CONNECTION and idle_s < IDLE_S


@dataclass(slots=True)
class _Mail:
    """One mail as it goes over the wire: `data` has CRLF throughout, its dots doubled, and the final dot."""

    sender: str
    recipient: str
    data: bytes = field(repr=False)
    options: tuple[str, ...]
    message_id: str
    is_handed_over: bool = False  # the last byte went to the socket: from here a lost answer is uncertain


class _NoSense(Exception):
    """The server's answer is no SMTP, or not to what was asked."""


class Smtp(Provider):
    kind: ClassVar[str] = "smtp"
    serves: ClassVar[frozenset[str]] = frozenset({"email"})
    Settings: ClassVar[type] = SmtpSettings

    settings: SmtpSettings

    def __init__(self, settings: SmtpSettings, surroundings: Surroundings) -> None:
        super().__init__(settings, surroundings)
        self._tls = http.trusting(settings.ca_file)
        self._places = asyncio.Semaphore(settings.connections)
        self._kept: list[_Line] = []

    @classmethod
    def check(cls, settings: SmtpSettings) -> None:
        http.check_given(settings, "host", "sender")
        if not 0 < settings.port < 65536:
            raise ConfigurationError("port: is no port; 587 for starttls, 465 for tls")
        if settings.security not in _SECURITY:
            raise ConfigurationError(f"security: is not one of {', '.join(_SECURITY)}")
        if "@" not in parseaddr(settings.sender)[1]:
            raise ConfigurationError('sender: is no mail address; give "Name <a@b>" or a@b')
        if settings.bounce_domain and len(settings.bounce_key) < 16:
            raise ConfigurationError("bounce_key: is shorter than 16 characters; give a long random text")
        if settings.connections < 1:
            raise ConfigurationError("connections: is less than 1; leave the default")
        http.check_ca_file(settings.ca_file)

    async def aclose(self) -> None:
        while self._kept:
            with suppress(aiosmtplib.SMTPException, TimeoutError):
                await self._kept.pop().smtp.quit(timeout=1.0)

    async def send(self, batch: Sequence[Message]) -> list[Outcome]:
        return await http.each(self._send, batch)

    async def _send(self, message: Message) -> Outcome:
        try:
            mail = self._mail(message)
        except ValueError as error:  # UnicodeError is one
            return http.classified(http.REJECTED_CONTENT, code="not_built", detail=http.readable(error))
        try:
            async with asyncio.timeout(message.timeout_s):
                async with self._places:
                    return await self._hand_over(mail)
        except TimeoutError:
            return _lost(mail, f"no answer within {message.timeout_s:g} s")

    async def _hand_over(self, mail: _Mail) -> Outcome:
        line = self._free()
        if line is not None:
            outcome = await self._on(line, mail)
            if line.smtp.is_connected or mail.is_handed_over or outcome.kind is not Kind.UNAVAILABLE:
                return outcome
            self._forget()  # the server closed what was kept: nothing was taken, and the others are closed too
        try:
            line = await self._connected()
        except aiosmtplib.SMTPResponseException as error:
            if error.code < 400:
                return _lost(mail, "no mail server answers there")
            return _refused(error, "connect", mail)
        except (aiosmtplib.SMTPConnectError, aiosmtplib.SMTPTimeoutError, aiosmtplib.SMTPServerDisconnected) as error:
            return _lost(mail, f"no connection: {type(error.__cause__ or error).__name__}")
        except aiosmtplib.SMTPException as error:  # no STARTTLS, no AUTH, no login method in common
            return http.classified(http.MISCONFIGURED, code="not_supported", detail=http.readable(error))
        except OSError as error:  # TLS refused during STARTTLS
            return _lost(mail, f"no connection: {type(error).__name__}")
        return await self._on(line, mail)

    def _forget(self) -> None:
        while self._kept:
            self._kept.pop().smtp.close()

    def _free(self) -> _Line | None:
        while self._kept:
            line = self._kept.pop()
            if line.is_good:
                return line
            line.smtp.close()
        return None

    async def _connected(self) -> _Line:
        settings = self.settings
        smtp = aiosmtplib.SMTP(
            hostname=settings.host,
            port=settings.port,
            username=settings.username or None,
            password=settings.password if settings.username else None,
            local_hostname=settings.helo_name,
            use_tls=settings.security == "tls",
            start_tls=settings.security == "starttls",
            tls_context=self._tls,
            timeout=None,  # the whole send is timed, by _send
        )
        await smtp.connect()
        return _Line(smtp)

    async def _on(self, line: _Line, mail: _Mail) -> Outcome:
        """One mail over this connection, which is kept afterwards if it can be."""
        is_kept = False
        try:
            outcome = await self._transact(line, mail)
            is_kept = line.smtp.is_connected
        except aiosmtplib.SMTPServerDisconnected:
            outcome = _lost(mail, "the connection was lost")
        except _NoSense:
            outcome = _lost(mail, "an answer that is no SMTP", garbled=True)
        finally:  # also when the time is up: an answer that comes later must not meet the next mail
            if is_kept:
                line.mails += 1
                line.idle_since = time.monotonic()
                self._kept.append(line)
            else:
                line.smtp.close()
        return outcome

    async def _transact(self, line: _Line, mail: _Mail) -> Outcome:
        smtp = line.smtp
        limit = smtp.esmtp_extensions.get("size", "")
        if limit.isdecimal() and 0 < int(limit) < len(mail.data):
            return http.classified(http.TOO_LARGE, code="size", detail=f"{len(mail.data)} bytes, at most {limit}")
        if mail.options and not smtp.supports_extension("smtputf8"):
            return http.classified(http.REJECTED, code="no_smtputf8", detail="the server takes ASCII addresses only")
        size = (f"SIZE={len(mail.data)}",) if smtp.supports_extension("size") else ()
        encoding = "utf-8" if mail.options else "ascii"
        stage = "sender"
        try:
            if line.has_open_mail:
                await smtp.rset()
            line.has_open_mail = False
            await smtp.mail(mail.sender, options=(*size, *mail.options), encoding=encoding)
            stage, line.has_open_mail = "recipient", True
            await smtp.rcpt(mail.recipient, encoding=encoding)
            stage = "data"
            end = await self._data(line, mail)
        except aiosmtplib.SMTPResponseException as error:
            if error.code < 400:  # no SMTP, or out of step: we no longer know which reply answers what
                raise _NoSense from error
            return _refused(error, stage, mail)
        queued = re.search(r"queued as ([\w.-]{1,64})", end.message)
        return Outcome(Kind.ACCEPTED, provider_ref=queued[1] if queued else mail.message_id, code=str(end.code))

    async def _data(self, line: _Line, mail: _Mail) -> aiosmtplib.SMTPResponse:
        """DATA in its two halves, so that we know on which side of the last byte a connection was lost."""
        start = await line.smtp.execute_command(b"DATA")
        if start.code != 354 or line.smtp.protocol is None:
            raise aiosmtplib.SMTPDataError(start.code, start.message)
        mail.is_handed_over = True
        line.smtp.protocol.write(mail.data)
        end = await line.smtp.protocol.read_response()
        line.has_open_mail = False
        if end.code != 250:
            raise aiosmtplib.SMTPDataError(end.code, end.message)
        return end

    # --- Building ---------------------------------------------------------------------------------------------

    def _mail(self, message: Message) -> _Mail:
        """Raises ValueError for what cannot be a mail."""
        content = message.content
        if not isinstance(content, EmailContent) or not (content.text or content.html):
            raise ValueError("a mail without text and html")
        sender, sender_address = _from(content.sender or self.settings.sender)
        recipient = _deliverable(message.address.value)
        domain = self.settings.bounce_domain or sender_address.rpartition("@")[2]
        message_id = f"{message.delivery_id}@{domain}"
        lines = [
            f"From: {sender}",
            f"To: {recipient}",
            f"Subject: {_words(content.subject)}",
            f"Date: {_date(int(time.time()))}",
            f"Message-ID: <{message_id}>",
            f"X-Delivery-Id: {message.delivery_id}",
        ]
        if content.reply_to:
            lines.append(f"Reply-To: {_from(content.reply_to)[0]}")
        lines += [_header(name, value) for name, value in content.headers.items()]
        data = "\r\n".join(lines).encode() + b"\r\n" + _body(content, message.delivery_id)
        return _Mail(
            sender=self._bounce_address(message.delivery_id, message.claim_no) or sender_address,
            recipient=recipient,
            data=data.replace(b"\r\n.", b"\r\n..") + b".\r\n",
            options=() if recipient.isascii() and sender_address.isascii() else ("SMTPUTF8",),
            message_id=message_id,
        )

    def _bounce_address(self, delivery_id: UUID, claim_no: int) -> str:
        if not self.settings.bounce_domain:
            return ""
        mac = self._mac(str(delivery_id), str(claim_no))
        return f"bounce+{delivery_id}.{claim_no}.{mac}@{self.settings.bounce_domain}"

    def _mac(self, delivery_id: str, claim_no: str) -> str:
        signed = f"{delivery_id}.{claim_no}".encode()
        return hmac.new(self.settings.bounce_key.encode(), signed, hashlib.sha256).hexdigest()[:10]

    # --- What comes back --------------------------------------------------------------------------------------

    def verify(self, callback: Callback) -> bool:
        return self._addressed(callback.body) is not None

    def receipts(self, callback: Callback) -> list[Receipt]:
        """One receipt per recipient of a bounce, one for a complaint; UNKNOWN for any other mail that came back."""
        if (addressed := self._addressed(callback.body)) is None:
            return []
        delivery_id, claim_no = addressed
        return [
            Receipt(
                event_id=f"{delivery_id}.{claim_no}:{back.word}:{back.code}"[:200],
                kind=back.kind,
                delivery_id=delivery_id,
                claim_no=claim_no,
                reason=back.reason,
                code=back.code,
                detail=back.detail,
            )
            for back in _came_back(message_from_bytes(callback.body))
        ]

    def _addressed(self, body: bytes) -> tuple[UUID, int] | None:
        """The delivery and try whose bounce address stands in this mail, signed by us: wherever it stands."""
        if not self.settings.bounce_key:
            return None
        for found in _BOUNCE_ADDRESS.finditer(body):
            delivery_id, claim_no, mac = (group.decode().lower() for group in found.groups())
            if hmac.compare_digest(mac, self._mac(delivery_id, claim_no)):
                return UUID(delivery_id), int(claim_no)
        return None


_BOUNCE_ADDRESS = re.compile(
    rb"bounce\+([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.([0-9]{1,9})\.([0-9a-f]{10})@", re.I
)


def _lost(mail: _Mail, why: str, *, garbled: bool = False) -> Outcome:
    return http.without_answer(http.Uncertain(why, garbled=garbled) if mail.is_handed_over else http.NotSent(why))


def _refused(error: aiosmtplib.SMTPResponseException, stage: str, mail: _Mail) -> Outcome:
    """What a reply means. `stage`: connect, sender, recipient or data."""
    code = str(error.code)
    found = re.match(rf"({code[0]}\.\d{{1,3}}\.\d{{1,3}})(?!\S)", error.message)
    enhanced = found[1] if found else ""
    row = _REPLIES.get(code) or _longest(_ENHANCED, enhanced) or _BARE.get(code)
    if row is None:
        row = http.UNAVAILABLE if error.code < 500 else http.REJECTED
    if stage in ("connect", "sender"):  # the recipient was not named yet: it is we who are refused
        if row.kind in (Kind.GONE, Kind.REJECTED) and row is not http.TOO_LARGE:
            row = _WRONG_SENDER if stage == "sender" else http.MISCONFIGURED
        if row.scope is Scope.ADDRESS:
            row = replace(row, scope=Scope.ACCOUNT)
    return http.classified(
        row, code=f"{code} {enhanced}".strip(), detail=http.readable(error.message, mail.recipient, mail.sender)
    )


def _longest(table: Mapping[str, T], enhanced: str) -> T | None:
    """The row of the enhanced code, else of its subject ("5.1"), else of its class ("5")."""
    parts = enhanced.split(".")
    return next((table[key] for n in (3, 2, 1) if (key := ".".join(parts[:n])) in table), None)


# --- MIME: built by hand, since building an EmailMessage costs ten times what sending it does -------------------


def _body(content: EmailContent, delivery_id: UUID) -> bytes:
    """The MIME headers, the empty line and the body; ends in CRLF."""
    parts = [_part(body, kind) for kind, body in (("plain", content.text), ("html", content.html)) if body]
    if len(parts) == 1:
        return b"MIME-Version: 1.0\r\n" + parts[0]
    boundary = b"=_" + delivery_id.hex.encode()  # "=_" is in no base64 and in no quoted-printable
    while any(boundary in part for part in parts):
        boundary += b"_"
    return b"".join(
        (
            b'MIME-Version: 1.0\r\nContent-Type: multipart/alternative; boundary="' + boundary + b'"\r\n\r\n',
            *(
                b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts
            ),  # the line end before "--" is the boundary's
            b"--" + boundary + b"--\r\n",
        )
    )


@lru_cache(maxsize=16)  # of a campaign without personal words the same two bodies go out a million times
def _part(body: str, kind: str) -> bytes:
    data = re.sub(rb"\r\n|\r|\n", b"\r\n", body.encode())
    if not data.endswith(b"\r\n"):
        data += b"\r\n"
    encoding = _encoding(data)
    if encoding == b"base64":
        data = base64.encodebytes(data).replace(b"\n", b"\r\n")
    elif encoding == b"quoted-printable":
        data = binascii.b2a_qp(data, istext=True)  # its soft breaks are CRLF, since the text's own are
    headers = b'Content-Type: text/%b; charset="utf-8"\r\nContent-Transfer-Encoding: %b\r\n\r\n'
    return headers % (kind.encode(), encoding) + data


def _encoding(data: bytes) -> bytes:
    """The plainest that passes everywhere: lines of at most 998 ASCII characters need none (RFC 5322 2.1.1)."""
    if data.isascii():
        is_plain = b"\0" not in data and max(map(len, data.split(b"\r\n"))) <= 998
        return b"7bit" if is_plain else b"quoted-printable"
    wide = len(data) - len(data.decode())
    return b"base64" if wide * 5 > len(data) else b"quoted-printable"


def _words(text: str) -> str:
    """A header's text: as it is when short ASCII, else RFC 2047 words of at most 75 characters, a line each."""
    if _has_controls(text):
        raise ValueError("a header holds a control character")
    if text.isascii() and len(text) <= 200 and "=?" not in text:
        return text
    words, word = [], b""
    for character in text:
        encoded = character.encode()
        if len(word) + len(encoded) > 39:  # 64 characters, so that the first fits a line with "Subject: "
            words.append(word)
            word = b""
        word += encoded
    return "\r\n ".join(f"=?utf-8?b?{base64.b64encode(each).decode()}?=" for each in (*words, word))


def _has_controls(text: str) -> bool:
    return re.search(r"[\x00-\x08\x0a-\x1f\x7f]", text) is not None


def _header(name: str, value: str) -> str:
    if name.lower() in _OUR_HEADERS or not re.fullmatch(r"[!-9;-~]{1,76}", name):
        raise ValueError(f"{name[:40]!r} is no header that a caller sets")
    if value.isascii() and len(name) + len(value) < 990 and not _has_controls(value):
        return f"{name}: {value}"  # never folded or encoded: List-Unsubscribe is a URL
    return f"{name}: {_words(value)}"


@lru_cache(maxsize=256)
def _from(mailbox: str) -> tuple[str, str]:
    """`Name <a@b>` as a header, and its address alone."""
    if _has_controls(mailbox):
        raise ValueError("a mail address holds a control character")
    name, address = parseaddr(mailbox)
    address = _deliverable(address)
    if not name:
        return address, address
    is_plain = name.isascii() and address.isascii() and _words(name) == name
    return (formataddr((name, address)) if is_plain else f"{_words(name)} <{address}>"), address


def _deliverable(address: str) -> str:
    """An address as it may stand in an envelope, its domain in ASCII. Raises ValueError for any other."""
    if not re.fullmatch(r"[^\s<>\"(),:;@\\\x00-\x1f\x7f]{1,64}@[^\s<>\"(),:;@\\\x00-\x1f\x7f]{1,253}", address):
        raise ValueError("no address that can be sent to")
    local, _, domain = address.partition("@")
    return address if domain.isascii() else f"{local}@{domain.encode('idna').decode()}"


@lru_cache(maxsize=2)
def _date(second: int) -> str:
    return formatdate(second)


# --- Bounces and complaints --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Back:
    """One thing that a mail sent back says. `word` is its action or feedback type."""

    kind: ReceiptKind
    word: str
    code: str = ""
    reason: str = ""
    detail: str = ""


def _came_back(mail: MimeMessage) -> Iterable[_Back]:
    reports = [*_delivery_statuses(mail), *_feedback(mail)]
    return reports or [_Back(ReceiptKind.UNKNOWN, mail.get_content_type())]


def _delivery_statuses(mail: MimeMessage) -> Iterable[_Back]:
    for part in mail.walk():
        if part.get_content_type() != "message/delivery-status":
            continue
        blocks = part.get_payload()
        for block in blocks if isinstance(blocks, list) else []:
            if not isinstance(block, MimeMessage) or "Action" not in block:
                continue  # the first block speaks of the mail, the others of a recipient each
            action = _field(block, "Action").split()[0].lower() if _field(block, "Action") else ""
            diagnosis = _field(block, "Diagnostic-Code")
            found = re.search(r"[245]\.\d{1,3}\.\d{1,3}", _field(block, "Status") or diagnosis)
            status = found[0] if found else ""
            kind = _DSN_ACTIONS.get(action, ReceiptKind.UNKNOWN)
            reason = (_longest(_BOUNCES, status) or "undelivered_other") if kind is ReceiptKind.UNDELIVERED else ""
            yield _Back(kind, action, status, reason, http.readable(diagnosis, _field(block, "Final-Recipient")))


def _feedback(mail: MimeMessage) -> Iterable[_Back]:
    for part in mail.walk():
        if part.get_content_type() == "message/feedback-report":
            blocks = part.get_payload()
            report = blocks[0] if isinstance(blocks, list) and blocks else message_from_bytes(str(blocks).encode())
            kind = _field(report, "Feedback-Type").lower()
            yield _Back(_FEEDBACK.get(kind, ReceiptKind.UNKNOWN), kind, "feedback")


def _field(block: object, name: str) -> str:
    return str(block.get(name, "")).strip() if isinstance(block, MimeMessage) else ""
