"""SMTP: what goes over the wire, what each reply means, how connections are kept, and what mails come back."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from notifier.message import Address, Channel, Content, EmailContent, Message
from notifier.outcome import Callback, Kind, Outcome, Receipt, ReceiptKind, Scope
from notifier.providers.base import Provider, Surroundings
from notifier.providers.carrier import Carrier
from notifier.providers.smtp import MAILS_PER_CONNECTION, Smtp, SmtpSettings
from tests.providers.conftest import Authority, Sandbox
from tests.providers.contract import (
    DELIVERY_ID,
    UNICODE,
    CallbackContract,
    ProviderContract,
    SandboxContract,
    World,
    only,
    run,
)
from tests.providers.sink import Fault, Mail, SmtpSink, free_port

PASSWORD = "smtp-password-of-no-value"
BOUNCE_KEY = "bounce-key-of-no-value-at-all"
GOOD = SmtpSettings(
    host="127.0.0.1",
    security="none",
    username="notifier",
    password=PASSWORD,
    sender="Shop <orders@shop.example>",
    bounce_domain="bounces.shop.example",
    bounce_key=BOUNCE_KEY,
)
HOOK = "https://notify.example.com/hooks/smtp/main"


@asynccontextmanager
async def smtp(sink: SmtpSink | None = None, **settings: Any) -> AsyncIterator[tuple[Smtp, SmtpSink]]:
    async with sink or SmtpSink() as server:
        provider = Smtp(replace(GOOD, port=server.port, **settings), Surroundings(carrier=None, hook_url=HOOK))
        yield provider, server
        await provider.aclose()


def send(message: Message, replies: dict[str, str] | None = None, **settings: Any) -> tuple[Outcome, SmtpSink]:
    async def case() -> tuple[Outcome, SmtpSink]:
        async with smtp(**settings) as (provider, sink):
            sink.replies.update(replies or {})
            (outcome,) = await provider.send([message])
            return outcome, sink

    return run(case())


def parsed(mail: Mail) -> EmailMessage:
    raw = mail.data.replace(b"\r\n..", b"\r\n.")
    found = message_from_bytes(raw, policy=policy.default)
    assert isinstance(found, EmailMessage)
    return found


def bounce_address(claim_no: int = 1, key: str = BOUNCE_KEY) -> str:
    mac = hmac.new(key.encode(), f"{DELIVERY_ID}.{claim_no}".encode(), hashlib.sha256).hexdigest()[:10]
    return f"bounce+{DELIVERY_ID}.{claim_no}.{mac}@bounces.shop.example"


def returned(report: str, *, to: str | None = None, kind: str = "delivery-status") -> Callback:
    text = f"""\
From: MAILER-DAEMON@mx.example.com
To: <{to or bounce_address()}>
Subject: Undelivered Mail Returned to Sender
Message-ID: <1@mx.example.com>
MIME-Version: 1.0
Content-Type: multipart/report; report-type={kind}; boundary="b1"

--b1
Content-Type: text/plain

I could not.

--b1
Content-Type: message/{kind}

{report}
--b1
Content-Type: message/rfc822

From: orders@shop.example
X-Delivery-Id: {DELIVERY_ID}
Subject: Your order

--b1--
"""
    return Callback("POST", HOOK, {"content-type": "message/rfc822"}, text.replace("\n", "\r\n").encode())


def bounced(action: str, status: str, diagnostic: str = "smtp; 550 no") -> Callback:
    return returned(
        f"""Reporting-MTA: dns; mx.example.com
Arrival-Date: Sun, 22 Nov 2026 10:00:00 +0000

Final-Recipient: rfc822; person+0@example.com
Action: {action}
Status: {status}
Diagnostic-Code: {diagnostic}
"""
    )


class TestSmtp(ProviderContract, CallbackContract, SandboxContract):
    reset_before = Kind.UNAVAILABLE  # the server has not asked for the mail yet
    secrets = (PASSWORD, BOUNCE_KEY)

    @classmethod
    def provider_class(cls) -> type[Provider]:
        return Smtp

    @asynccontextmanager
    async def world(self) -> AsyncIterator[World]:
        async with smtp() as (provider, sink):

            def set_latency(latency_s: float) -> None:
                sink.latency_s = latency_s

            yield World(
                provider,
                lambda fault: setattr(sink, "fault", fault),
                lambda: [_words(mail) for mail in sink.mails],
                set_latency,
            )

    @asynccontextmanager
    async def nowhere(self) -> AsyncIterator[Provider]:
        yield Smtp(replace(GOOD, port=free_port()), Surroundings(carrier=None))

    @asynccontextmanager
    async def strangers(self) -> AsyncIterator[World]:
        async with smtp() as (provider, sink):
            sink.replies["AUTH"] = "535 5.7.8 Authentication credentials invalid"
            yield World(provider, lambda fault: setattr(sink, "fault", fault), list)

    def address(self, n: int) -> Address:
        return Address(Channel.EMAIL, f"person+{n}@example.com")

    def content(self, text: str) -> Content:
        return EmailContent(text, text=f"plain {text}", html=f"<p>{text}</p>")

    def oversized(self) -> Content:
        return EmailContent("large", text="a line of text\n" * 700_000)  # the sink announces SIZE 10000000

    def settings(self) -> SmtpSettings:
        return GOOD

    def broken_settings(self) -> dict[str, Any]:
        return {
            "host": replace(GOOD, host=""),
            "port": replace(GOOD, port=0),
            "security": replace(GOOD, security="ssl"),
            "sender": replace(GOOD, sender="Shop"),
            "bounce_key": replace(GOOD, bounce_key="short"),
            "connections": replace(GOOD, connections=0),
            "ca_file": replace(GOOD, ca_file="/nowhere.pem"),
        }

    # --- The sandbox -------------------------------------------------------------------------------------------

    sandbox_faults = {
        "http_401": Kind.MISCONFIGURED,
        "hang": Kind.UNCERTAIN,
        "reset_after": Kind.UNCERTAIN,
        "garbage": Kind.UNCERTAIN,
    }

    def sandbox_provider(self, sandbox: Sandbox, carrier: Carrier) -> Smtp:
        settings = replace(
            GOOD,
            port=sandbox.smtp_port,
            security="starttls",
            username="main",
            password="sandbox",
            ca_file=str(sandbox.keys / "ca.pem"),
        )
        Smtp.check(settings)
        return Smtp(settings, Surroundings(carrier))

    def sandbox_recipients(self) -> list[tuple[Address, Kind, str]]:
        return [
            (Address(Channel.EMAIL, f"{word}+{uuid4()}@sandbox.invalid"), Kind.ACCEPTED, "")
            for word in ("delivered", "bounced", "complaint")
        ]

    @pytest.mark.parametrize(
        "word, kind, reason",
        [
            ("delivered", ReceiptKind.DELIVERED, ""),
            ("bounced", ReceiptKind.UNDELIVERED, "hard_bounce"),
            ("complaint", ReceiptKind.COMPLAINED, ""),
        ],
    )
    def test_the_sandbox_sends_mails_back(self, word: str, kind: ReceiptKind, reason: str, sandbox: Sandbox) -> None:
        address = Address(Channel.EMAIL, f"{word}+{uuid4()}@sandbox.invalid")
        receipts = self.sandbox_receipts(sandbox, address, lambda found: any(receipt.kind is kind for receipt in found))
        assert [receipt.reason for receipt in receipts if receipt.kind is kind] == [reason]

    # --- Envelope and headers ---------------------------------------------------------------------------------

    def test_envelope_and_headers_say_whose_mail_it_is(self) -> None:
        outcome, sink = send(self.message())
        (mail,) = sink.mails
        assert mail.sender == bounce_address()
        assert mail.recipient == "person+0@example.com"
        found = parsed(mail)
        assert found["From"] == "Shop <orders@shop.example>"
        assert found["To"] == "person+0@example.com"
        assert found["Message-ID"] == f"<{DELIVERY_ID}@bounces.shop.example>"
        assert found["X-Delivery-Id"] == str(DELIVERY_ID)
        assert abs(found["Date"].datetime.timestamp() - time.time()) < 60
        assert outcome.provider_ref == "Q1"

    def test_another_try_has_the_same_message_id_and_another_envelope(self) -> None:
        (first,), (second,) = (send(replace(self.message(), claim_no=n))[1].mails for n in (1, 2))
        assert parsed(first)["Message-ID"] == parsed(second)["Message-ID"]
        assert (first.sender, second.sender) == (bounce_address(1), bounce_address(2))

    def test_without_a_bounce_domain_bounces_go_to_the_sender(self) -> None:
        _, sink = send(self.message(), bounce_domain="", bounce_key="")
        assert sink.mails[0].sender == "orders@shop.example"
        assert parsed(sink.mails[0])["Message-ID"] == f"<{DELIVERY_ID}@shop.example>"

    def test_a_server_without_queue_ids_is_referred_to_by_message_id(self) -> None:
        outcome, _ = send(self.message(), {"END": "250 fine"})
        assert outcome.provider_ref == f"{DELIVERY_ID}@bounces.shop.example"

    def test_the_callers_headers_and_sender_are_kept(self) -> None:
        unsubscribe = "<https://notify.example.com/u/" + "x" * 300 + ">, <mailto:u@shop.example>"
        content = EmailContent(
            "s",
            text="t",
            sender="Größe & Co <sales@shop.example>",
            reply_to="Help Desk <help@shop.example>",
            headers={"List-Unsubscribe": unsubscribe, "X-Word": "größer"},
        )
        _, sink = send(replace(self.message(), content=content))
        found = parsed(sink.mails[0])
        assert found["From"] == "Größe & Co <sales@shop.example>"
        assert found["Reply-To"] == "Help Desk <help@shop.example>"
        assert f"List-Unsubscribe: {unsubscribe}\r\n".encode() in sink.mails[0].data
        assert found["X-Word"] == "größer"

    @pytest.mark.parametrize(
        "content",
        [
            EmailContent("a\r\nBcc: eve@example.com", text="t"),
            EmailContent("s", text="t", sender="A\r\nBcc: eve@example.com <a@b.example>"),
            EmailContent("s", text="t", reply_to="a@b.example\r\nBcc: eve@example.com"),
            EmailContent("s", text="t", headers={"X-A": "1\r\nBcc: eve@example.com"}),
            EmailContent("s", text="t", headers={"X-A: 1\r\nBcc": "eve@example.com"}),
            EmailContent("s", text="t", headers={"Bcc": "eve@example.com"}),
            EmailContent("s", text="t", headers={"message-id": "<x@y>"}),
            EmailContent("s"),
        ],
    )
    def test_no_content_can_add_a_recipient_or_pose_as_another_mail(self, content: EmailContent) -> None:
        outcome, sink = send(replace(self.message(), content=content))
        assert (outcome.kind, outcome.reason) == (Kind.REJECTED, "rejected_content")
        assert sink.commands == []

    @pytest.mark.parametrize(
        "address",
        ["a@b>\r\nRCPT TO:<eve@example.com", "a b@example.com", "<a@b.example>", "a@b@c", "nobody", "@x", "a@", ""],
    )
    def test_no_address_can_smuggle_a_command(self, address: str) -> None:
        outcome, sink = send(replace(self.message(), address=Address(Channel.EMAIL, address)))
        assert outcome.kind is Kind.REJECTED
        assert sink.commands == []

    def test_a_domain_of_any_script_travels_in_ascii(self) -> None:
        _, sink = send(replace(self.message(), address=Address(Channel.EMAIL, "bob@bücher.example")))
        assert sink.mails[0].recipient == "bob@xn--bcher-kva.example"

    def test_a_name_of_any_script_needs_a_server_that_knows_it(self) -> None:
        async def case(knows_it: bool) -> tuple[Outcome, SmtpSink]:
            async with smtp() as (provider, sink):
                if not knows_it:
                    sink.extensions.remove("SMTPUTF8")
                message = replace(self.message(), address=Address(Channel.EMAIL, "größe@example.com"))
                (outcome,) = await provider.send([message])
                return outcome, sink

        outcome, sink = run(case(True))
        assert outcome.kind is Kind.ACCEPTED
        assert sink.mails[0].recipient == "größe@example.com"
        assert any("SMTPUTF8" in command for command in sink.commands)
        assert run(case(False))[0].kind is Kind.REJECTED

    # --- Bodies -----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "text",
        [
            "plain",
            "",
            UNICODE,
            "서울에서 보냅니다. " * 50,
            "ein paar Umlaute in einem langen englischen Satz: äöü. " * 5,
            "a" * 5000,
            "a very long line " * 500,
            ".\n..\n.hidden\nend\n.",
            "line\r\nline\rline\nline",
            "trailing space \ntab\t\nend ",
            "From here to there\n>From",
            "=?utf-8?b?eHg=?= and = alone",
            "--=_" + DELIVERY_ID.hex + "--",
            "\n\n\nempty lines\n\n\n",
            "\u2028\u2029\x85 other line ends",
        ],
    )
    def test_text_and_html_arrive_as_written(self, text: str) -> None:
        subject = " ".join(text.split())[:250] or "s"
        content = EmailContent(subject, text=text or "x", html=f"<p>{text}</p>")
        _, sink = send(replace(self.message(), content=content))
        self._same(sink.mails[0], content)

    @pytest.mark.parametrize("content", [EmailContent("s", text="only text"), EmailContent("s", html="<b>only</b>")])
    def test_a_single_body_is_no_multipart(self, content: EmailContent) -> None:
        _, sink = send(replace(self.message(), content=content))
        found = parsed(sink.mails[0])
        assert not found.is_multipart()
        assert found.get_content().strip() == (content.text or content.html)

    def test_any_text_survives(self) -> None:
        text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=400)
        subject = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=255)

        @hypothesis_settings(max_examples=300, deadline=None, database=None)
        @given(subject, text, text)
        def survives(subject: str, plain: str, html: str) -> None:
            content = EmailContent(subject, text=plain, html=html)
            provider = Smtp(GOOD, Surroundings(carrier=None))
            mail = provider._mail(replace(self.message(), content=content))
            assert mail.data.endswith(b"\r\n.\r\n")
            self._same(Mail(data=mail.data[:-3]), content)

        survives()

    def _same(self, mail: Mail, content: EmailContent) -> None:
        lines = mail.data.split(b"\r\n")
        assert max(map(len, lines)) <= 998
        assert not any(b"\r" in line or b"\n" in line for line in lines)
        assert all(line == b"" or not line.startswith(b".") or line.startswith(b"..") for line in lines)
        assert mail.data.isascii()
        found = parsed(mail)
        assert " ".join(str(found["Subject"]).split()) == " ".join(content.subject.split())
        assert found.get_content_type() == "multipart/alternative"
        bodies = [part.get_payload(decode=True) for part in found.iter_parts()]
        assert [part.get_content_type() for part in found.iter_parts()] == ["text/plain", "text/html"]
        for body, given_body in zip(bodies, (content.text, content.html), strict=True):
            assert isinstance(body, bytes)
            want = given_body.replace("\r\n", "\n").replace("\r", "\n")
            assert body.decode().replace("\r\n", "\n") == want + ("" if want.endswith("\n") else "\n")

    # --- Replies ----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "at, reply, kind, scope, reason",
        [
            ("RCPT", "421 4.3.2 shutting down", Kind.UNAVAILABLE, Scope.ACCOUNT, ""),
            ("RCPT", "450 mailbox busy", Kind.UNAVAILABLE, Scope.ADDRESS, ""),
            ("RCPT", "450 4.2.0 mailbox busy", Kind.UNAVAILABLE, Scope.ADDRESS, ""),
            ("RCPT", "451 local error", Kind.UNAVAILABLE, Scope.ACCOUNT, ""),
            ("END", "451 4.3.0 try later", Kind.UNAVAILABLE, Scope.ACCOUNT, ""),
            ("RCPT", "452 4.5.3 too many recipients", Kind.UNAVAILABLE, Scope.ACCOUNT, ""),
            ("RCPT", "452 4.2.2 mailbox full", Kind.THROTTLED, Scope.ADDRESS, ""),
            ("RCPT", "451 4.7.1 greylisted", Kind.THROTTLED, Scope.ADDRESS, ""),
            ("END", "450 4.7.0 too fast", Kind.THROTTLED, Scope.ADDRESS, ""),
            ("MAIL", "451 4.7.1 too fast", Kind.THROTTLED, Scope.ACCOUNT, ""),
            ("RCPT", "550 5.1.1 no such user", Kind.GONE, Scope.ADDRESS, "address_unknown"),
            ("RCPT", "550 5.1.10 null MX", Kind.GONE, Scope.ADDRESS, "address_unknown"),
            ("RCPT", "550-5.1.1 no such user,\r\n550 5.1.1 really", Kind.GONE, Scope.ADDRESS, "address_unknown"),
            ("RCPT", "551 user not local", Kind.GONE, Scope.ADDRESS, "address_unknown"),
            ("RCPT", "553 5.1.3 bad address syntax", Kind.GONE, Scope.ADDRESS, "address_unknown"),
            ("RCPT", "550 5.1.2 bad domain", Kind.GONE, Scope.ADDRESS, "address_unknown"),
            ("END", "550 5.1.1 no such user", Kind.GONE, Scope.ADDRESS, "address_unknown"),
            ("RCPT", "550 5.2.1 disabled", Kind.GONE, Scope.ADDRESS, "address_unknown"),
            ("RCPT", "552 5.2.2 mailbox full", Kind.REJECTED, Scope.MESSAGE, "rejected"),
            ("END", "552 5.3.4 too big", Kind.REJECTED, Scope.MESSAGE, "payload_too_large"),
            ("MAIL", "552 5.3.4 too big", Kind.REJECTED, Scope.MESSAGE, "payload_too_large"),
            ("END", "552 5.2.3 too long", Kind.REJECTED, Scope.MESSAGE, "payload_too_large"),
            ("RCPT", "550 5.7.1 relaying denied", Kind.REJECTED, Scope.MESSAGE, "rejected"),
            ("END", "554 5.7.1 looks like spam", Kind.REJECTED, Scope.MESSAGE, "rejected"),
            ("END", "550 5.7.26 DMARC", Kind.REJECTED, Scope.MESSAGE, "rejected"),
            ("RCPT", "550 no", Kind.REJECTED, Scope.MESSAGE, "rejected"),  # a bare 550 retires nobody
            ("RCPT", "550 blocked, see http://5.1.1.example", Kind.REJECTED, Scope.MESSAGE, "rejected"),
            ("RCPT", "553 no", Kind.REJECTED, Scope.MESSAGE, "rejected"),
            ("END", "554 transaction failed", Kind.REJECTED, Scope.MESSAGE, "rejected"),
            ("RCPT", "550 5.1.8 bad sender's domain", Kind.MISCONFIGURED, Scope.SENDER, ""),
            ("MAIL", "550 5.1.1 who are you", Kind.MISCONFIGURED, Scope.SENDER, ""),
            ("MAIL", "553 5.7.1 sender not owned", Kind.MISCONFIGURED, Scope.SENDER, ""),
            ("MAIL", "530 5.7.0 authentication required", Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            ("AUTH", "534 5.7.9 mechanism too weak", Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            ("AUTH", "535 5.7.8 credentials invalid", Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            ("AUTH", "538 5.7.11 encryption required", Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            ("AUTH", "454 4.7.0 temporary failure", Kind.UNAVAILABLE, Scope.ACCOUNT, ""),
            ("RCPT", "500 unknown command", Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            ("RCPT", "501 5.5.4 syntax", Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            ("DATA", "502 not implemented", Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            ("MAIL", "503 5.5.1 bad sequence", Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            ("MAIL", "504 5.5.4 parameter", Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            ("MAIL", "555 5.5.4 unsupported option", Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            ("RCPT", "250-out\r\n250 of step", Kind.ACCEPTED, Scope.MESSAGE, ""),
            ("MAIL", "354 out of step", Kind.UNAVAILABLE, Scope.ACCOUNT, ""),
            ("END", "354 out of step", Kind.UNCERTAIN, Scope.ACCOUNT, "answer_garbled"),
            ("RCPT", "hello", Kind.UNAVAILABLE, Scope.ACCOUNT, ""),
        ],
    )
    def test_a_documented_reply_has_its_meaning(
        self, at: str, reply: str, kind: Kind, scope: Scope, reason: str
    ) -> None:
        outcome, _ = send(self.message(), {at: reply})
        assert (outcome.kind, outcome.scope, outcome.reason) == (kind, scope, reason)
        if kind in (Kind.REJECTED, Kind.GONE, Kind.THROTTLED, Kind.MISCONFIGURED):
            assert outcome.code.startswith(reply[:3])

    def test_greylisting_is_given_the_minutes_it_wants(self) -> None:
        outcome, _ = send(self.message(), {"RCPT": "451 4.7.1 greylisted"})
        assert outcome.retry_after_s is not None
        assert 300 <= outcome.retry_after_s <= 900

    @pytest.mark.parametrize(
        "greeting, kind",
        [
            ("421 too busy", Kind.UNAVAILABLE),
            ("554 5.7.1 your address is blocked", Kind.MISCONFIGURED),
            ("HTTP/1.1 400 Bad Request", Kind.UNAVAILABLE),
        ],
    )
    def test_a_server_that_does_not_greet_us_took_nothing(self, greeting: str, kind: Kind) -> None:
        async def case() -> Outcome:
            async with smtp() as (provider, sink):
                sink.greeting = greeting
                return (await provider.send([self.message()]))[0]

        outcome = run(case())
        assert (outcome.kind, outcome.scope) == (kind, Scope.ACCOUNT)

    def test_a_server_without_the_login_we_have_is_our_configuration(self) -> None:
        async def case() -> Kind:
            async with smtp() as (provider, sink):
                sink.extensions = []
                return (await provider.send([self.message()]))[0].kind

        assert run(case()) is Kind.MISCONFIGURED

    def test_the_address_is_not_in_what_is_kept_of_a_reply(self) -> None:
        outcome, _ = send(self.message(), {"RCPT": f"550 5.1.1 <person+0@example.com> via {bounce_address()} unknown"})
        assert "person+0" not in repr(outcome)
        assert "unknown" in outcome.detail

    # --- Connections ------------------------------------------------------------------------------------------

    def test_a_connection_is_kept_and_used_again(self) -> None:
        async def case() -> int:
            async with smtp() as (provider, sink):
                for n in range(30):
                    assert (await provider.send([self.message(n)]))[0].kind is Kind.ACCEPTED
                return sink.connections

        assert run(case()) == 1

    def test_no_more_connections_are_opened_than_allowed(self) -> None:
        async def case() -> tuple[int, set[Kind]]:
            async with smtp(connections=3) as (provider, sink):
                sink.latency_s = 0.02
                outcomes = await provider.send([self.message(n) for n in range(30)])
                return sink.connections, {outcome.kind for outcome in outcomes}

        assert run(case()) == (3, {Kind.ACCEPTED})

    def test_a_connection_is_given_up_after_its_share_of_mails(self) -> None:
        async def case() -> int:
            async with smtp(connections=1) as (provider, sink):
                await provider.send([self.message(n) for n in range(MAILS_PER_CONNECTION + 1)])
                return sink.connections

        assert run(case()) == 2

    @pytest.mark.parametrize("refused_at", ["MAIL", "RCPT", "DATA", "END"])
    def test_a_refused_mail_does_not_cost_the_connection(self, refused_at: str) -> None:
        async def case() -> tuple[list[Kind], int]:
            async with smtp(connections=1) as (provider, sink):
                sink.replies[refused_at] = "550 5.1.1 no"
                (refused,) = await provider.send([self.message(0)])
                del sink.replies[refused_at]
                (good,) = await provider.send([self.message(1)])
                return [refused.kind, good.kind], sink.connections

        kinds, connections = run(case())
        assert kinds[0] in (Kind.GONE, Kind.MISCONFIGURED)
        assert (kinds[1], connections) == (Kind.ACCEPTED, 1)

    @pytest.mark.parametrize("how", ["restart", "421"])
    def test_a_server_that_closed_what_we_kept_is_connected_to_again(self, how: str) -> None:
        """Nothing was taken, so this is no second try of the message: it goes out at once on a new connection."""

        async def case() -> tuple[list[Kind], int]:
            async with smtp() as (provider, sink):
                await provider.send([self.message(n) for n in range(5)])
                before = len(sink.mails)
                if how == "restart":
                    for task in tuple(sink._tasks):
                        task.cancel()
                else:
                    replies = iter(["421 idle too long"] * 5)
                    sink.replies = _Until(replies)
                outcomes = await provider.send([self.message(n) for n in range(5)])
                return [outcome.kind for outcome in outcomes], len(sink.mails) - before

        kinds, mails = run(case())
        assert kinds == [Kind.ACCEPTED] * 5
        assert mails == 5

    def test_a_mail_whose_answer_comes_late_does_not_answer_for_the_next(self) -> None:
        async def case() -> list[Kind]:
            async with smtp(connections=1) as (provider, sink):
                sink.latency_s = 0.6
                sink.replies["END"] = "550 5.1.1 the first one's answer"
                (late,) = await provider.send([self.message(0, timeout_s=0.3)])
                sink.latency_s = 0.0
                del sink.replies["END"]
                await asyncio.sleep(0.5)
                (next_one,) = await provider.send([self.message(1)])
                return [late.kind, next_one.kind]

        assert run(case()) == [Kind.UNCERTAIN, Kind.ACCEPTED]

    def test_a_mail_that_waited_in_vain_for_a_connection_was_not_sent(self) -> None:
        async def case() -> tuple[set[Kind], int]:
            async with smtp(connections=1) as (provider, sink):
                sink.fault = Fault.HANG
                outcomes = await provider.send([self.message(n, timeout_s=0.4) for n in range(4)])
                return {outcome.kind for outcome in outcomes[1:]}, len(sink.mails)

        assert run(case()) == ({Kind.UNAVAILABLE}, 1)

    # --- TLS --------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("security", ["tls", "starttls"])
    def test_a_mail_goes_out_encrypted_to_a_server_we_trust(self, security: str, authority: Authority) -> None:
        outcome, sink = self._encrypted(security, authority, ca_file=authority.ca_file)
        assert outcome.kind is Kind.ACCEPTED
        assert len(sink.mails) == 1

    @pytest.mark.parametrize("security", ["tls", "starttls"])
    def test_a_server_that_we_do_not_trust_gets_nothing(self, security: str, authority: Authority) -> None:
        outcome, sink = self._encrypted(security, authority)
        assert outcome.kind is Kind.UNAVAILABLE
        assert not any(command.startswith(("AUTH", "MAIL")) for command in sink.commands)

    def test_a_server_that_does_not_encrypt_gets_no_password(self) -> None:
        outcome, sink = send(self.message(), security="starttls")
        assert outcome.kind is Kind.MISCONFIGURED
        assert not any(command.startswith(("AUTH", "MAIL")) for command in sink.commands)

    def _encrypted(self, security: str, authority: Authority, **settings: Any) -> tuple[Outcome, SmtpSink]:
        async def case() -> tuple[Outcome, SmtpSink]:
            at_once = authority.server if security == "tls" else None
            sink = SmtpSink(at_once, starttls=None if at_once else authority.server)
            async with smtp(sink, security=security, host="localhost", **settings) as (provider, _):
                return (await provider.send([self.message(timeout_s=5)]))[0], sink

        return run(case())

    # --- What comes back --------------------------------------------------------------------------------------

    def receiver(self) -> Smtp:
        return Smtp(GOOD, Surroundings(carrier=None))

    def callback(self) -> Callback:
        return bounced("failed", "5.1.1")

    def forgeries(self) -> dict[str, Callback]:
        good = self.callback()
        genuine = bounce_address().encode()
        mac = genuine.partition(b"@")[0][-10:]
        return {
            "body emptied": replace(good, body=b""),
            "no bounce address": replace(good, body=good.body.replace(genuine, b"postmaster@shop.example")),
            "another signature": replace(good, body=good.body.replace(mac, b"0123456789")),
            "signature cut": replace(good, body=good.body.replace(mac, mac[:9])),
            "another try": replace(good, body=good.body.replace(b".1." + mac, b".2." + mac)),
            "another delivery": replace(good, body=good.body.replace(b"bounce+01", b"bounce+02")),
            "another key": replace(good, body=good.body.replace(genuine, bounce_address(key="another").encode())),
            "empty key": replace(good, body=good.body.replace(genuine, bounce_address(key="").encode())),
        }

    def test_without_a_key_nothing_is_believed(self) -> None:
        keyless = Smtp(replace(GOOD, bounce_domain="", bounce_key=""), Surroundings(carrier=None))
        callback = self.callback()
        assert keyless.verify(replace(callback, body=bounce_address(key="").encode())) is False
        assert keyless.receipts(callback) == []

    @pytest.mark.parametrize(
        "action, status, kind, reason",
        [
            ("failed", "5.1.1", ReceiptKind.UNDELIVERED, "hard_bounce"),
            ("failed", "5.1.10", ReceiptKind.UNDELIVERED, "hard_bounce"),
            ("Failed (of course)", "5.1.2 (bad domain)", ReceiptKind.UNDELIVERED, "hard_bounce"),
            ("failed", "5.2.1", ReceiptKind.UNDELIVERED, "hard_bounce"),
            ("failed", "5.2.2", ReceiptKind.UNDELIVERED, "soft_bounce"),
            ("failed", "4.2.2", ReceiptKind.UNDELIVERED, "soft_bounce"),
            ("failed", "4.4.1", ReceiptKind.UNDELIVERED, "soft_bounce"),
            ("failed", "4.4.7", ReceiptKind.UNDELIVERED, "ttl_elapsed"),
            ("failed", "5.4.7", ReceiptKind.UNDELIVERED, "ttl_elapsed"),
            ("failed", "5.7.1", ReceiptKind.UNDELIVERED, "spam_blocked"),
            ("failed", "5.3.4", ReceiptKind.UNDELIVERED, "undelivered_other"),
            ("failed", "5.1.8", ReceiptKind.UNDELIVERED, "undelivered_other"),
            ("failed", "5.0.0", ReceiptKind.UNDELIVERED, "undelivered_other"),
            ("failed", "", ReceiptKind.UNDELIVERED, "undelivered_other"),
            ("delayed", "4.4.1", ReceiptKind.DEFERRED, ""),
            ("delivered", "2.0.0", ReceiptKind.DELIVERED, ""),
            ("relayed", "2.0.0", ReceiptKind.SENT, ""),
            ("expanded", "2.0.0", ReceiptKind.SENT, ""),
            ("teleported", "2.0.0", ReceiptKind.UNKNOWN, ""),
        ],
    )
    def test_a_documented_status_has_its_meaning(
        self, action: str, status: str, kind: ReceiptKind, reason: str
    ) -> None:
        receipt = only(self._receipts(bounced(action, status)))
        assert (receipt.kind, receipt.reason) == (kind, reason)
        assert (receipt.delivery_id, receipt.claim_no) == (DELIVERY_ID, 1)

    def test_a_status_may_stand_in_the_diagnosis_alone(self) -> None:
        receipt = only(self._receipts(bounced("failed", "", "smtp; 550 5.1.1 <person+0@example.com> unknown")))
        assert (receipt.reason, receipt.code) == ("hard_bounce", "5.1.1")
        assert "person+0" not in repr(receipt)

    def test_a_report_of_a_delay_and_then_a_failure_are_two_events(self) -> None:
        ids = {only(self._receipts(bounced(action, "4.4.1"))).event_id for action in ("delayed", "failed")}
        assert len(ids) == 2

    def test_the_bounce_address_is_found_wherever_the_mail_server_put_it(self) -> None:
        elsewhere = self.callback().body.replace(bounce_address().encode(), b"bounces@shop.example")
        for line in (f"Delivered-To: {bounce_address()}", f"X-Original-To: {bounce_address().upper()}"):
            callback = replace(self.callback(), body=line.encode() + b"\r\n" + elsewhere)
            assert only(self._receipts(callback)).delivery_id == DELIVERY_ID

    @pytest.mark.parametrize(
        "feedback, kind",
        [
            ("abuse", ReceiptKind.COMPLAINED),
            ("fraud", ReceiptKind.COMPLAINED),
            ("virus", ReceiptKind.COMPLAINED),
            ("other", ReceiptKind.COMPLAINED),
            ("opt-out", ReceiptKind.UNSUBSCRIBED),
            ("not-spam", ReceiptKind.UNKNOWN),
            ("auth-failure", ReceiptKind.UNKNOWN),
        ],
    )
    def test_a_complaint_is_understood(self, feedback: str, kind: ReceiptKind) -> None:
        report = f"""Feedback-Type: {feedback}
User-Agent: Example/1.0
Version: 1
Original-Mail-From: <{bounce_address()}>
"""
        receipt = only(self._receipts(returned(report, to="fbl@shop.example", kind="feedback-report")))
        assert (receipt.kind, receipt.delivery_id) == (kind, DELIVERY_ID)

    def test_an_answer_from_holiday_is_kept_and_nothing_more(self) -> None:
        body = f"From: a@b\r\nTo: {bounce_address()}\r\nSubject: I am away\r\n\r\nUntil Monday.\r\n".encode()
        assert only(self._receipts(Callback("POST", HOOK, {}, body))).kind is ReceiptKind.UNKNOWN

    def _receipts(self, callback: Callback) -> list[Receipt]:
        assert self.receiver().verify(callback) is True
        return self.receiver().receipts(callback)


class _Until(dict[str, str]):
    """Replies for MAIL until they run out."""

    def __init__(self, replies: Any) -> None:
        super().__init__()
        self._replies = replies

    def get(self, verb: str, default: Any = None) -> Any:
        return next(self._replies, default) if verb == "MAIL" else default


def _words(mail: Mail) -> str:
    found = parsed(mail)
    return " ".join([str(found["Subject"]), *(part.get_content() for part in found.iter_parts())])
