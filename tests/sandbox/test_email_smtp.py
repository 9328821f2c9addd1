from __future__ import annotations

import email
import email.policy
import smtplib
import socket
import ssl
import time
from collections.abc import Iterator
from email.message import EmailMessage

import pytest

from tests.sandbox.conftest import Hook, Sandbox

VERP = "bounce+01a204f4-77a0-7c93-90aa-1b2c3d4e5f60.2.abcdef@notify.example.com"


@pytest.fixture
def smtp(sandbox: Sandbox) -> Iterator[smtplib.SMTP]:
    client = smtplib.SMTP("127.0.0.1", sandbox.smtp_port, timeout=15)
    client.ehlo()
    yield client
    client.close()


def mail(delivery_id: str = "d-1", **headers: str) -> EmailMessage:
    message = EmailMessage()
    message["Subject"], message["From"], message["To"] = "Your order", "Shop <shop@example.com>", "a@example.com"
    message["X-Delivery-Id"] = delivery_id
    for name, value in headers.items():
        message[name] = value
    message.set_content("It is on its way\n.\nreally: \u00e9\n")
    message.add_alternative("<b>On its way</b>", subtype="html")
    return message


def send(client: smtplib.SMTP, *to: str, sender: str = VERP, **more: str) -> None:
    client.send_message(mail(**more), sender, list(to))


class Raw:
    """A connection without a client library: what is written is exactly what goes over the wire."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.socket = socket.create_connection(("127.0.0.1", sandbox.smtp_port), timeout=10)
        self.file = self.socket.makefile("rb")
        assert self.reply().startswith("220")

    def reply(self) -> str:
        while True:
            line = self.file.readline().decode()
            if not line or line[3:4] != "-":
                return line.strip()

    def say(self, text: str) -> str:
        self.socket.sendall(text.encode() + b"\r\n")
        return self.reply()


def test_the_extensions_are_announced(smtp: smtplib.SMTP) -> None:
    wanted = {"pipelining", "size", "8bitmime", "smtputf8", "starttls", "auth", "enhancedstatuscodes", "dsn"}
    assert wanted <= smtp.esmtp_features.keys()
    assert set(smtp.esmtp_features["auth"].split()) == {"PLAIN", "LOGIN"}


def test_a_mail_is_accepted_with_an_entry_for_each_recipient(sandbox: Sandbox, smtp: smtplib.SMTP) -> None:
    send(smtp, "a@example.com", "b@example.com", delivery_id="d-3")
    entries = sandbox.inbox("provider=smtp")
    assert [entry["to"] for entry in entries] == ["b@example.com", "a@example.com"]
    assert {(entry["channel"], entry["delivery_id"]) for entry in entries} == {("email", "d-3")}
    assert entries[0]["headers"]["Subject"] == "Your order"
    assert "really: \u00e9" in entries[0]["body"]["text"]
    assert entries[0]["body"]["text"].replace("\r\n", "\n").startswith("It is on its way\n.\n")
    assert entries[0]["body"]["html"].strip() == "<b>On its way</b>"


def test_a_connection_carries_many_mails(sandbox: Sandbox, smtp: smtplib.SMTP) -> None:
    for n in range(50):
        send(smtp, "a@example.com", delivery_id=f"d-{n}")
    assert [line[0] for line in sandbox.ledger()] == [f"d-{n}" for n in range(50)]


def test_starttls_protects_the_connection_with_the_sandboxs_certificate(sandbox: Sandbox) -> None:
    client = smtplib.SMTP("localhost", sandbox.smtp_port, timeout=10)
    client.starttls(context=ssl.create_default_context(cafile=str(sandbox.tls_dir / "ca.pem")))
    client.ehlo()
    assert "starttls" not in client.esmtp_features
    client.login("team-a", "sandbox")
    send(client, "a@example.com")
    client.quit()
    assert len(sandbox.inbox("provider=smtp")) == 1


def test_commands_pipelined_behind_starttls_are_never_read(sandbox: Sandbox) -> None:
    raw = Raw(sandbox)
    raw.say("EHLO me")
    raw.socket.sendall(b"STARTTLS\r\nRSET\r\n")
    assert raw.reply().startswith("220")
    raw.socket.settimeout(0.5)
    with pytest.raises(TimeoutError):
        raw.socket.recv(100)


@pytest.mark.parametrize("mechanism", ["auth_plain", "auth_login"])
@pytest.mark.parametrize("initial", [True, False])
def test_both_ways_to_log_in(smtp: smtplib.SMTP, mechanism: str, initial: bool) -> None:
    smtp.user, smtp.password = "team-a", "sandbox"
    code, _ = smtp.auth(mechanism.removeprefix("auth_").upper(), getattr(smtp, mechanism), initial_response_ok=initial)
    assert code == 235


def test_a_wrong_password_is_refused(smtp: smtplib.SMTP) -> None:
    with pytest.raises(smtplib.SMTPAuthenticationError) as refused:
        smtp.login("team-a", "wrong")
    assert refused.value.smtp_code == 535


@pytest.mark.parametrize(
    ("lines", "codes"),
    [
        (["MAIL FROM:<a@b.c>"], ["503 5.5.1"]),
        (["EHLO"], ["501 5.5.4"]),
        (["EHLO me", "RCPT TO:<a@b.c>"], ["250 STARTTLS", "503 5.5.1"]),
        (["EHLO me", "MAIL FROM:nonsense"], ["250 STARTTLS", "501 5.1.7"]),
        (["EHLO me", "MAIL FROM:<a@b.c> SIZE=99999999"], ["250 STARTTLS", "552 5.3.4"]),
        (["EHLO me", "MAIL FROM:<a@b.c> WHAT=1"], ["250 STARTTLS", "555 5.5.4"]),
        (["EHLO me", "MAIL FROM:<a@b.c>", "MAIL FROM:<a@b.c>"], ["250 STARTTLS", "250 2.1.0", "503 5.5.1"]),
        (["EHLO me", "MAIL FROM:<a@b.c>", "RCPT TO:<nonsense>"], ["250 STARTTLS", "250 2.1.0", "553 5.1.3"]),
        (["EHLO me", "MAIL FROM:<a@b.c>", "RCPT TO:<\u00e9@b.c>"], ["250 STARTTLS", "250 2.1.0", "553 5.6.7"]),
        (["EHLO me", "MAIL FROM:<> SMTPUTF8", "RCPT TO:<\u00e9@b.c>"], ["250 STARTTLS", "250 2.1.0", "250 2.1.5"]),
        (["EHLO me", "MAIL FROM:<a@b.c>", "DATA"], ["250 STARTTLS", "250 2.1.0", "554 5.5.1"]),
        (["EHLO me", "AUTH CRAM-MD5"], ["250 STARTTLS", "504 5.5.4"]),
        (["EHLO me", "AUTH PLAIN !!!"], ["250 STARTTLS", "501 5.5.2"]),
        (["NONSENSE", "NOOP", "RSET", "VRFY x"], ["500 5.5.1", "250 2.0.0", "250 2.0.0", "252 2.5.2"]),
    ],
)
def test_replies_of_the_dialogue(sandbox: Sandbox, lines: list[str], codes: list[str]) -> None:
    raw = Raw(sandbox)
    replies = [raw.say(line) for line in lines]
    assert [reply[: len(code)] for reply, code in zip(replies, codes, strict=True)] == codes


def test_a_hundred_recipients_at_most(sandbox: Sandbox) -> None:
    raw = Raw(sandbox)
    raw.say("EHLO me")
    raw.say("MAIL FROM:<a@b.c>")
    replies = [raw.say(f"RCPT TO:<{n}@b.c>") for n in range(101)]
    assert {reply[:3] for reply in replies[:100]} == {"250"}
    assert replies[100].startswith("452 4.5.3")


def test_a_whole_pipelined_dialogue_in_one_write(sandbox: Sandbox) -> None:
    raw = Raw(sandbox)
    raw.say("EHLO me")
    one = "MAIL FROM:<a@b.c>\r\nRCPT TO:<x@y.z>\r\nRCPT TO:<bad>\r\nDATA\r\n"
    raw.socket.sendall(one.encode())
    assert [raw.reply()[:3] for _ in range(4)] == ["250", "250", "553", "354"]
    raw.socket.sendall(b"X-Delivery-Id: d-1\r\n\r\n..dot\r\n.\r\nMAIL FROM:<a@b.c>\r\n")
    assert [raw.reply()[:3] for _ in range(2)] == ["250", "250"]
    (entry,) = sandbox.inbox()
    assert (entry["to"], entry["delivery_id"]) == ("x@y.z", "d-1")
    assert entry["body"]["raw"] == "X-Delivery-Id: d-1\r\n\r\n.dot\r\n"


def test_a_mail_that_comes_byte_by_byte_and_an_empty_one(sandbox: Sandbox) -> None:
    raw = Raw(sandbox)
    for command in ("EHLO me", "MAIL FROM:<a@b.c>", "RCPT TO:<x@y.z>", "DATA"):
        raw.say(command)
    for byte in b"Subject: x\r\n\r\nhello\r\n.\r\n":
        raw.socket.sendall(bytes([byte]))
    assert raw.reply().startswith("250 2.0.0")
    for command in ("MAIL FROM:<a@b.c>", "RCPT TO:<x@y.z>", "DATA"):
        raw.say(command)
    raw.socket.sendall(b".")
    time.sleep(0.05)
    raw.socket.sendall(b"\r\n")
    assert raw.reply().startswith("250 2.0.0")
    assert [entry["body"]["raw"] for entry in sandbox.inbox()] == ["", "Subject: x\r\n\r\nhello\r\n"]


def test_only_crlf_dot_crlf_ends_a_mail(sandbox: Sandbox) -> None:
    raw = Raw(sandbox)
    for command in ("EHLO me", "MAIL FROM:<a@b.c>", "RCPT TO:<x@y.z>", "DATA"):
        raw.say(command)
    raw.socket.sendall(b"Subject: x\r\n\r\none\n.\nMAIL FROM:<evil@b.c>\n.\r\n\r\n.\r\n")
    assert raw.reply().startswith("250 2.0.0")
    (entry,) = sandbox.inbox()
    assert "evil@b.c" in entry["body"]["raw"]


def test_a_mail_beyond_the_announced_size_is_refused_and_the_connection_lives(sandbox: Sandbox) -> None:
    raw = Raw(sandbox)
    for command in ("EHLO me", "MAIL FROM:<a@b.c>", "RCPT TO:<x@y.z>", "DATA"):
        raw.say(command)
    line = b"x" * 998 + b"\r\n"
    for _ in range(27):
        raw.socket.sendall(line * 1000)
    raw.socket.sendall(b".\r\n")
    assert raw.reply().startswith("552 5.3.4")
    assert raw.say("NOOP").startswith("250")
    assert sandbox.inbox() == []


def report(call: dict) -> tuple[EmailMessage, dict[str, str]]:
    """The report, and the fields of its machine-readable part."""
    assert call["headers"]["content-type"] == "message/rfc822"
    message = email.message_from_bytes(call["body"], policy=email.policy.default)
    boundary = message.get_boundary()
    assert boundary
    machine = call["body"].decode().split(f"--{boundary}\r\n")[2]
    return message, dict(line.split(": ", 1) for line in machine.split("\r\n") if ": " in line)


def test_a_bounce_comes_as_a_delivery_status_notification(sandbox: Sandbox, smtp: smtplib.SMTP, hook: Hook) -> None:
    smtp.login("team-a", "sandbox")
    send(smtp, "bounced+3@sandbox.invalid")
    call = hook.wait(lambda call: b"Action: failed" in call["body"])
    assert call["path"] == "/hooks/smtp/team-a"
    message, fields = report(call)
    assert message.get_content_type() == "multipart/report"
    assert (message["To"], message["Auto-Submitted"]) == (VERP, "auto-replied")
    assert (fields["Final-Recipient"], fields["Status"]) == ("rfc822; bounced+3@sandbox.invalid", "5.1.1")
    assert "X-Delivery-Id: d-1" in list(message.iter_parts())[2].as_string()


def test_a_complaint_comes_as_a_feedback_report_after_the_delivery(
    sandbox: Sandbox, smtp: smtplib.SMTP, hook: Hook
) -> None:
    send(smtp, "complaint+3@sandbox.invalid")
    hook.wait(lambda call: b"Action: delivered" in call["body"])
    call = hook.wait(lambda call: b"Feedback-Type: abuse" in call["body"])
    assert call["path"] == "/hooks/smtp/smtp-sandbox"
    _, fields = report(call)
    assert fields["Original-Rcpt-To"] == "<complaint+3@sandbox.invalid>"
    assert fields["Original-Mail-From"] == f"<{VERP}>"


def test_success_is_reported_to_those_who_ask(sandbox: Sandbox, smtp: smtplib.SMTP, hook: Hook) -> None:
    send(smtp, "quiet@example.com")
    smtp.sendmail(VERP, ["asked@example.com"], mail().as_bytes(), ["ENVID=e-1"], ["NOTIFY=SUCCESS,FAILURE"])
    _, fields = report(hook.wait(lambda call: b"@example.com" in call["body"]))
    assert (fields["Action"], fields["Final-Recipient"]) == ("delivered", "rfc822; asked@example.com")
    assert fields["Original-Envelope-Id"] == "e-1"


def test_a_throttled_mailbox_is_refused_twice_and_then_passes(sandbox: Sandbox, smtp: smtplib.SMTP) -> None:
    for _ in range(2):
        with pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
            send(smtp, "throttled+smtp@sandbox.invalid")
        assert refused.value.recipients["throttled+smtp@sandbox.invalid"][0] == 450
    send(smtp, "throttled+smtp@sandbox.invalid")
    assert len(sandbox.inbox("provider=smtp")) == 1


def test_a_slow_mailbox_is_accepted_after_five_seconds(sandbox: Sandbox, smtp: smtplib.SMTP) -> None:
    begun = time.monotonic()
    send(smtp, "slow+1@sandbox.invalid")
    assert 4.9 < time.monotonic() - begun < 7
