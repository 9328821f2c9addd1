"""The mails that a mail server sends back: delivery status notifications and complaints.

DSN: RFC 3464 in the multipart/report of RFC 6522. Complaint: ARF, RFC 5965.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from email.utils import formatdate

_HOST = "mx.sandbox.invalid"
_HEADERS_KEPT_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Envelope:
    """`sender`: the envelope sender, which reports are addressed to. `id`: the ENVID it was given, else empty."""

    sender: str
    recipient: str
    id: str
    original: bytes

    @property
    def header_block(self) -> str:
        end = self.original.find(b"\r\n\r\n")
        head = self.original[: end if end >= 0 else len(self.original)][:_HEADERS_KEPT_BYTES]
        return head.decode("utf-8", "surrogateescape")


def bounce(envelope: Envelope) -> bytes:
    text = f"The mail could not be delivered to {envelope.recipient}: there is no such mailbox."
    diagnostic = "smtp; 550 5.1.1 The email account that you tried to reach does not exist"
    return _status_report(envelope, "failed", "5.1.1", text, diagnostic)


def delivered(envelope: Envelope) -> bytes:
    text = f"The mail was delivered to {envelope.recipient}."
    return _status_report(envelope, "delivered", "2.0.0", text, "smtp; 250 2.0.0 OK")


def complaint(envelope: Envelope) -> bytes:
    feedback = [
        "Feedback-Type: abuse",
        "User-Agent: SandboxMailbox/1.0",
        "Version: 1",
        f"Original-Mail-From: <{envelope.sender}>",
        f"Original-Rcpt-To: <{envelope.recipient}>",
        f"Arrival-Date: {formatdate()}",
        "Reported-Domain: sandbox.invalid",
    ]
    text = f"This is an email abuse report for a message received by {envelope.recipient}."
    return _report(envelope, "feedback-report", "Abuse report", text, "message/feedback-report", feedback)


def _status_report(envelope: Envelope, action: str, status: str, text: str, diagnostic: str) -> bytes:
    fields = [f"Reporting-MTA: dns; {_HOST}", f"Arrival-Date: {formatdate()}"]
    if envelope.id:
        fields.append(f"Original-Envelope-Id: {envelope.id}")
    fields += [
        "",
        f"Final-Recipient: rfc822; {envelope.recipient}",
        f"Action: {action}",
        f"Status: {status}",
        f"Remote-MTA: dns; {_HOST}",
        f"Diagnostic-Code: {diagnostic}",
        f"Last-Attempt-Date: {formatdate()}",
    ]
    word = "failure" if action == "failed" else "success"
    subject = f"Delivery status notification ({word})"
    return _report(envelope, "delivery-status", subject, text, "message/delivery-status", fields)


def _report(envelope: Envelope, report_type: str, subject: str, text: str, part_type: str, fields: list[str]) -> bytes:
    boundary = f"=_{secrets.token_hex(16)}"
    lines = [
        "Return-Path: <>",
        f"Delivered-To: {envelope.sender}",
        f"From: Mail Delivery System <MAILER-DAEMON@{_HOST}>",
        f"To: {envelope.sender}",
        f"Subject: {subject}",
        f"Date: {formatdate()}",
        f"Message-ID: <{secrets.token_hex(16)}@{_HOST}>",
        "Auto-Submitted: auto-replied",
        "MIME-Version: 1.0",
        f'Content-Type: multipart/report; report-type={report_type}; boundary="{boundary}"',
        "",
        f"--{boundary}",
        "Content-Type: text/plain; charset=utf-8",
        "Content-Transfer-Encoding: 8bit",
        "",
        text,
        "",
        f"--{boundary}",
        f"Content-Type: {part_type}",
        "",
        *fields,
        "",
        f"--{boundary}",
        "Content-Type: text/rfc822-headers",
        "",
        envelope.header_block,
        "",
        f"--{boundary}--",
        "",
    ]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape")
