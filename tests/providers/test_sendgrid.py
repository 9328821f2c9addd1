"""SendGrid: what it is sent, what each of its documented answers means, and what it reports back."""

from __future__ import annotations

import base64
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from notifier.message import Address, Channel, Content, EmailContent, Message
from notifier.outcome import Callback, Kind, Outcome, ReceiptKind, Scope
from notifier.providers.base import ConfigurationError, Provider, Surroundings
from notifier.providers.carrier import Carrier
from notifier.providers.sendgrid import SendGrid, SendGridSettings
from tests.providers.conftest import Sandbox
from tests.providers.contract import (
    DELIVERY_ID,
    CallbackContract,
    HttpContract,
    ProviderContract,
    SandboxContract,
    World,
    only,
    run,
)
from tests.providers.sink import Answer, Fault, HttpSink, Request, free_port

API_KEY = "SG.key-of-no.value-whatever"
PRIVATE = ec.generate_private_key(ec.SECP256R1())
PUBLIC_PEM = PRIVATE.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)
PUBLIC = base64.b64encode(
    PRIVATE.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
).decode()
MESSAGE_ID = "Nrn-WXYZ_01-abcDEF"
HOOK = "https://notify.example.com/hooks/sendgrid/main"
GOOD = SendGridSettings(api_key=API_KEY, sender="Shop <orders@shop.example>", webhook_public_key=PUBLIC)


def accepted(request: Request) -> Answer:
    return Answer(202, b"", {"X-Message-Id": MESSAGE_ID})


def failed(status: int, *errors: tuple[str, str | None], **headers: str) -> Answer:
    rows = [{"message": message, "field": field, "help": None} for message, field in errors]
    return Answer(status, {"errors": rows}, {name.replace("_", "-"): value for name, value in headers.items()})


@asynccontextmanager
async def sendgrid(
    answer: Callable[[Request], Answer] = accepted, settings: SendGridSettings = GOOD, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[SendGrid, HttpSink]]:
    async with HttpSink(answer, tls) as sink, Carrier() as carrier:
        yield SendGrid(replace(settings, base_url=sink.url), Surroundings(carrier, hook_url=HOOK)), sink


def send(
    batch: list[Message], answer: Callable[[Request], Answer] = accepted, settings: SendGridSettings = GOOD
) -> tuple[list[Outcome], list[Request]]:
    async def case() -> tuple[list[Outcome], list[Request]]:
        async with sendgrid(answer, settings) as (provider, sink):
            return await provider.send(batch), sink.requests

    return run(case())


def recipients(request: Request) -> list[str]:
    return [each["to"][0]["email"] for each in request.json["personalizations"]]


def signed(events: Any, key: ec.EllipticCurvePrivateKey = PRIVATE, at: float | None = None) -> Callback:
    body = json.dumps(events, ensure_ascii=False).encode()
    timestamp = str(int(time.time() if at is None else at))
    signature = key.sign(timestamp.encode() + body, ec.ECDSA(hashes.SHA256()))
    headers = {
        "x-twilio-email-event-webhook-signature": base64.b64encode(signature).decode(),
        "x-twilio-email-event-webhook-timestamp": timestamp,
    }
    return Callback("POST", HOOK, headers, body)


def event(name: str, **more: Any) -> dict[str, Any]:
    return {
        "email": "bob@example.com",
        "timestamp": 1_795_000_000,
        "event": name,
        "sg_event_id": f"id-{name}",
        "sg_message_id": f"{MESSAGE_ID}.recvd-7b8d9-1-6741-2.0",
        "delivery_id": str(DELIVERY_ID),
        "claim_no": "3",
        **more,
    }


class TestSendGrid(ProviderContract, HttpContract, CallbackContract, SandboxContract):
    secrets = (API_KEY,)
    accepting = Answer(202, b"", {"X-Message-Id": MESSAGE_ID})
    throttling = Answer(429, {"errors": [{"field": None, "message": "too many requests"}]})

    @classmethod
    def provider_class(cls) -> type[Provider]:
        return SendGrid

    @asynccontextmanager
    async def world(self) -> AsyncIterator[World]:
        async with sendgrid() as (provider, sink):

            def set_latency(latency_s: float) -> None:
                sink.latency_s = latency_s

            yield World(
                provider,
                lambda fault: setattr(sink, "fault", fault),
                lambda: [text for request in sink.requests for text in _words(request)],
                set_latency,
            )

    @asynccontextmanager
    async def nowhere(self) -> AsyncIterator[Provider]:
        async with Carrier() as carrier:
            yield SendGrid(replace(GOOD, base_url=f"http://127.0.0.1:{free_port()}"), Surroundings(carrier))

    @asynccontextmanager
    async def strangers(self) -> AsyncIterator[World]:
        refused = failed(401, ("The provided authorization grant is invalid, expired, or revoked", None))
        async with sendgrid(lambda request: refused) as (provider, sink):
            yield World(provider, lambda fault: setattr(sink, "fault", fault), list)

    def address(self, n: int) -> Address:
        return Address(Channel.EMAIL, f"person+{n}@example.com")

    def content(self, text: str) -> Content:
        return EmailContent(text, text=f"plain {text}", html=f"<p>{text}</p>")

    def oversized(self) -> Content:
        return EmailContent("large", text="a" * 30_000_001)

    def settings(self) -> SendGridSettings:
        return GOOD

    def broken_settings(self) -> dict[str, Any]:
        return {
            "api_key": replace(GOOD, api_key=""),
            "sender": replace(GOOD, sender="Shop"),
            "base_url": replace(GOOD, base_url="ftp://api.sendgrid.com"),
            "ca_file": replace(GOOD, ca_file="/nowhere.pem"),
            "webhook_public_key": replace(GOOD, webhook_public_key="bm8ga2V5"),
        }

    def answered(
        self, answer: Answer, *, tls: ssl.SSLContext | None = None, ca_file: str = ""
    ) -> tuple[Outcome, list[Request]]:
        async def case() -> tuple[Outcome, list[Request]]:
            async with sendgrid(lambda request: answer, replace(GOOD, ca_file=ca_file), tls) as (provider, sink):
                (outcome,) = await provider.send([self.message()])
                return outcome, sink.requests

        return run(case())

    def test_its_own_reset_time_is_obeyed_where_there_is_no_other(self) -> None:
        answer = failed(429, ("too many requests", None), X_RateLimit_Reset=str(int(time.time()) + 40))
        outcome = send([self.message()], lambda request: answer)[0][0]
        assert outcome.retry_after_s is not None
        assert 30 < outcome.retry_after_s <= 40

    # --- The sandbox -------------------------------------------------------------------------------------------

    sandbox_faults = {
        "http_401": Kind.MISCONFIGURED,
        "http_429": Kind.THROTTLED,
        "http_500": Kind.UNAVAILABLE,
        "hang": Kind.UNCERTAIN,
        "reset_before": Kind.UNCERTAIN,
        "reset_after": Kind.UNCERTAIN,
        "garbage": Kind.UNCERTAIN,
    }

    def sandbox_provider(self, sandbox: Sandbox, carrier: Carrier) -> SendGrid:
        settings = SendGridSettings(
            api_key="SG.main.sandbox",
            sender="Shop <orders@shop.example>",
            webhook_public_key=(sandbox.keys / "sendgrid-public.txt").read_text(),
            base_url=sandbox.url,
        )
        SendGrid.check(settings)
        return SendGrid(settings, Surroundings(carrier))

    def sandbox_recipients(self) -> list[tuple[Address, Kind, str]]:
        return [
            (Address(Channel.EMAIL, f"{word}+{uuid4()}@sandbox.invalid"), Kind.ACCEPTED, "")
            for word in ("delivered", "bounced", "complaint")
        ]

    def test_a_throttled_sandbox_recipient_is_let_through_at_the_third_try(self, sandbox: Sandbox) -> None:
        message = replace(
            self.sandbox_message(), address=Address(Channel.EMAIL, f"throttled+{uuid4()}@sandbox.invalid")
        )

        async def case() -> list[Outcome]:
            async with Carrier() as carrier:
                provider = self.sandbox_provider(sandbox, carrier)
                return [(await provider.send([message]))[0] for _ in range(3)]

        outcomes = run(case())
        assert [outcome.kind for outcome in outcomes] == [Kind.THROTTLED, Kind.THROTTLED, Kind.ACCEPTED]
        assert outcomes[0].retry_after_s == 2

    @pytest.mark.parametrize(
        "word, kinds",
        [
            ("delivered", {ReceiptKind.SENT, ReceiptKind.DELIVERED}),
            ("bounced", {ReceiptKind.UNDELIVERED}),
            ("complaint", {ReceiptKind.DELIVERED, ReceiptKind.COMPLAINED}),
        ],
    )
    def test_the_sandbox_reports_what_became_of_a_mail(
        self, word: str, kinds: set[ReceiptKind], sandbox: Sandbox
    ) -> None:
        address = Address(Channel.EMAIL, f"{word}+{uuid4()}@sandbox.invalid")
        receipts = self.sandbox_receipts(sandbox, address, lambda found: kinds <= {receipt.kind for receipt in found})
        undelivered = [receipt.reason for receipt in receipts if receipt.kind is ReceiptKind.UNDELIVERED]
        assert undelivered == (["hard_bounce"] if word == "bounced" else [])

    # --- What it is sent --------------------------------------------------------------------------------------

    def test_the_request_is_the_documented_one(self) -> None:
        content = EmailContent(
            "Subject",
            text="Text",
            html="<b>Html</b>",
            sender="Sales <sales@shop.example>",
            reply_to="help@shop.example",
            headers={"List-Unsubscribe": "<https://x/u/1>", "X-Word": "größer"},
        )
        (outcome,), (request,) = send([replace(self.message(), content=content)])
        assert (request.method, request.path) == ("POST", "/v3/mail/send")
        assert request.headers["authorization"] == f"Bearer {API_KEY}"
        assert request.headers["content-type"] == "application/json"
        assert request.json == {
            "from": {"email": "sales@shop.example", "name": "Sales"},
            "reply_to": {"email": "help@shop.example"},
            "content": [
                {"type": "text/plain", "value": "Text"},
                {"type": "text/html", "value": "<b>Html</b>"},
            ],
            "personalizations": [
                {
                    "to": [{"email": "person+0@example.com"}],
                    "subject": "Subject",
                    "headers": {"List-Unsubscribe": "<https://x/u/1>", "X-Word": "=?utf-8?b?Z3LDtsOfZXI=?="},
                    "custom_args": {"delivery_id": str(DELIVERY_ID), "claim_no": "1"},
                }
            ],
        }
        assert (outcome.provider_ref, outcome.http_status) == (MESSAGE_ID, 202)

    def test_equal_bodies_share_a_request_and_nobody_sees_anybody(self) -> None:
        batch = [replace(self.message(n), content=self._personal(n)) for n in range(100)]
        outcomes, (request,) = send(batch)
        assert {outcome.kind for outcome in outcomes} == {Kind.ACCEPTED}
        personalizations = request.json["personalizations"]
        assert [len(each["to"]) for each in personalizations] == [1] * 100
        for n, each in enumerate(personalizations):
            assert each["to"] == [{"email": f"person+{n}@example.com"}]
            assert each["headers"] == {"List-Unsubscribe": f"<https://x/u/{n}>"}
            assert each["subject"] == f"For {n}"
            assert each["custom_args"] == {"delivery_id": str(batch[n].delivery_id), "claim_no": str(n + 1)}

    def test_bodies_that_differ_go_out_apart(self) -> None:
        _, requests = send([self.message(n, text=f"text-{n % 3}") for n in range(9)])
        assert sorted(map(recipients, requests)) == [
            [f"person+{n + m}@example.com" for m in (0, 3, 6)] for n in range(3)
        ]

    def test_a_name_in_an_address_is_no_name(self) -> None:
        odd = replace(self.message(), address=Address(Channel.EMAIL, "o'brien, x <y@example.com"))
        assert recipients(send([odd])[1][0]) == ["o'brien, x <y@example.com"]

    def test_the_sandbox_mode_of_the_vendor_is_accepted_without_a_message_id(self) -> None:
        async def case(settings: SendGridSettings) -> tuple[Outcome, Request]:
            async with sendgrid(lambda request: Answer(200), settings) as (provider, sink):
                (outcome,) = await provider.send([self.message()])
                return outcome, sink.requests[0]

        outcome, request = run(case(replace(GOOD, sandbox_mode=True)))
        assert outcome.kind is Kind.ACCEPTED
        assert request.json["mail_settings"] == {"sandbox_mode": {"enable": True}}
        assert run(case(GOOD))[0].kind is Kind.UNCERTAIN

    @pytest.mark.parametrize("content", [EmailContent("s"), EmailContent("s", text="SG.looks.like a key")])
    def test_what_the_sdk_will_not_build_is_refused_and_the_rest_sent(self, content: EmailContent) -> None:
        (first, second), requests = send([replace(self.message(0), content=content), self.message(1)])
        assert (first.kind, first.reason) == (Kind.REJECTED, "rejected_content")
        assert second.kind is Kind.ACCEPTED
        assert len(requests) == 1

    # --- What it answers --------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "answer, kind, scope, reason",
        [
            (
                failed(400, ("Does not contain a valid address.", "personalizations.0.to.0.email")),
                Kind.GONE,
                Scope.ADDRESS,
                "address_unknown",
            ),
            (
                failed(400, ("bad subject", "personalizations.0.subject")),
                Kind.REJECTED,
                Scope.MESSAGE,
                "rejected_content",
            ),
            (failed(400, ("bad content", "content.0.value")), Kind.REJECTED, Scope.MESSAGE, "rejected_content"),
            (failed(400, ("bad from", "from.email")), Kind.MISCONFIGURED, Scope.SENDER, ""),
            (failed(400, ("Bad Request", None)), Kind.REJECTED, Scope.MESSAGE, "rejected_content"),
            (Answer(400, "<html>"), Kind.REJECTED, Scope.MESSAGE, "rejected_content"),
            (Answer(400, '{"errors": [7, {"field": 9}]}'), Kind.REJECTED, Scope.MESSAGE, "rejected_content"),
            (failed(401, ("revoked", None)), Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            (failed(403, ("access forbidden", None)), Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            (
                failed(403, ("The from address does not match a verified Sender Identity.", "from")),
                Kind.MISCONFIGURED,
                Scope.SENDER,
                "",
            ),
            (Answer(404), Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            (Answer(405), Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            (Answer(406), Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            (Answer(415), Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            (Answer(413), Kind.REJECTED, Scope.MESSAGE, "payload_too_large"),
            (Answer(429), Kind.THROTTLED, Scope.ACCOUNT, ""),
            (Answer(500), Kind.UNAVAILABLE, Scope.ACCOUNT, ""),
            (Answer(502), Kind.UNAVAILABLE, Scope.ACCOUNT, ""),
            (Answer(503), Kind.UNAVAILABLE, Scope.ACCOUNT, ""),
            (Answer(504), Kind.UNCERTAIN, Scope.ACCOUNT, "answer_lost"),
            (Answer(202), Kind.UNCERTAIN, Scope.ACCOUNT, "answer_garbled"),
            (Answer(307, "", {"Location": "http://127.0.0.1:1/"}), Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            (Answer(422), Kind.REJECTED, Scope.MESSAGE, "rejected"),
        ],
    )
    def test_a_documented_answer_has_its_meaning(self, answer: Answer, kind: Kind, scope: Scope, reason: str) -> None:
        (outcome,), requests = send([self.message()], lambda request: answer)
        assert (outcome.kind, outcome.scope, outcome.reason) == (kind, scope, reason)
        assert outcome.http_status == answer.status
        assert len(requests) == 1

    @pytest.mark.parametrize("names_them", [True, False])
    def test_one_bad_address_costs_nobody_else_their_mail(self, names_them: bool) -> None:
        """SendGrid refuses the whole request: whether it says whose fault it is or not, the others go out once."""
        taken: list[str] = []

        def strict(request: Request) -> Answer:
            bad = [n for n, to in enumerate(recipients(request)) if "bad" in to]
            if bad:
                field = f"personalizations.{bad[0]}.to.0.email" if names_them else None
                return failed(400, ("Does not contain a valid address.", field))
            taken.extend(recipients(request))
            return accepted(request)

        def person(n: int) -> Message:
            message = self.message(n)
            return replace(message, address=Address(Channel.EMAIL, f"bad-{n}@x")) if n in (0, 7, 19) else message

        outcomes, _ = send([person(n) for n in range(20)], strict)
        lost = Kind.GONE if names_them else Kind.REJECTED
        assert [outcome.kind for outcome in outcomes] == [lost if n in (0, 7, 19) else Kind.ACCEPTED for n in range(20)]
        assert sorted(taken) == sorted(f"person+{n}@example.com" for n in range(20) if n not in (0, 7, 19))

    def test_a_fault_that_all_share_is_not_searched_for(self) -> None:
        outcomes, requests = send(
            [self.message(n) for n in range(50)], lambda request: failed(400, ("bad from", "from.email"))
        )
        assert {outcome.kind for outcome in outcomes} == {Kind.MISCONFIGURED}
        assert len(requests) == 1

    def test_a_search_that_runs_out_of_time_has_sent_nothing(self) -> None:
        async def case() -> list[Kind]:
            async with sendgrid(lambda request: failed(400, ("no", None))) as (provider, sink):
                sink.latency_s = 0.2
                batch = [self.message(n, timeout_s=0.5) for n in range(64)]
                return [outcome.kind for outcome in await provider.send(batch)]

        assert set(run(case())) <= {Kind.UNAVAILABLE, Kind.UNCERTAIN}

    def test_a_lost_answer_is_uncertain_for_the_whole_request_and_no_other(self) -> None:
        async def case() -> list[Kind]:
            async with sendgrid() as (provider, sink):
                sink.fault = Fault.HANG
                slow = [self.message(n, timeout_s=0.4) for n in range(3)]
                return [outcome.kind for outcome in await provider.send(slow)]

        assert run(case()) == [Kind.UNCERTAIN] * 3

    def test_the_address_is_not_in_what_is_kept_of_an_error(self) -> None:
        answer = failed(400, ("person+0@example.com is not valid", "personalizations.0.to.0.email"))
        (outcome,), _ = send([self.message()], lambda request: answer)
        assert "person+0" not in repr(outcome)

    # --- What it reports --------------------------------------------------------------------------------------

    def receiver(self) -> SendGrid:
        return SendGrid(GOOD, Surroundings(carrier=None))

    def callback(self) -> Callback:
        return signed([event("processed"), event("delivered", response="250 größer")])

    def forgeries(self) -> dict[str, Callback]:
        good = self.callback()
        name, stamp = good.headers
        signature, timestamp = good.headers.values()
        return {
            "body altered": replace(good, body=good.body.replace(b"delivered", b"bounce   ")),
            "space added": replace(good, body=good.body + b" "),
            "body emptied": replace(good, body=b""),
            "not UTF-8": replace(good, body=good.body + b"\xff"),
            "no signature": replace(good, headers={stamp: timestamp}),
            "empty signature": replace(good, headers={name: "", stamp: timestamp}),
            "no base64": replace(good, headers={name: "é!", stamp: timestamp}),
            "signature of nothing": replace(good, headers={name: "AAAA", stamp: timestamp}),
            "no timestamp": replace(good, headers={name: signature}),
            "another timestamp": replace(good, headers={name: signature, stamp: str(int(timestamp) + 1)}),
            "a timestamp that is none": replace(good, headers={name: signature, stamp: "now"}),
            "a timestamp of other digits": replace(good, headers={name: signature, stamp: "١٧٩٥٠٠٠٠٠٠"}),
            "a replay": signed([event("delivered")], at=time.time() - 3600),
            "the future": signed([event("delivered")], at=time.time() + 3600),
            "another key": signed([event("delivered")], ec.generate_private_key(ec.SECP256R1())),
        }

    def test_the_key_may_be_pasted_as_pem(self) -> None:
        settings = replace(GOOD, webhook_public_key=PUBLIC_PEM.decode())
        SendGrid.check(settings)
        assert SendGrid(settings, Surroundings(carrier=None)).verify(self.callback()) is True

    def test_a_key_that_was_copied_with_its_line_end_is_named(self) -> None:
        with pytest.raises(ConfigurationError, match="^api_key: "):
            SendGrid.check(replace(GOOD, api_key=f"{API_KEY}\n"))

    def test_a_key_that_cannot_be_sent_is_not_shown(self) -> None:
        outcomes, requests = send([self.message()], settings=replace(GOOD, api_key=f"{API_KEY}\n"))
        assert outcomes[0].kind is Kind.UNAVAILABLE
        assert API_KEY not in repr(outcomes)
        assert requests == []

    def test_without_a_key_nothing_is_believed(self) -> None:
        keyless = replace(GOOD, webhook_public_key="")
        SendGrid.check(keyless)
        assert SendGrid(keyless, Surroundings(carrier=None)).verify(self.callback()) is False

    @pytest.mark.parametrize(
        "given, kind, reason",
        [
            (event("processed"), ReceiptKind.SENT, ""),
            (event("deferred", response="451 try later"), ReceiptKind.DEFERRED, ""),
            (event("delivered", response="250 OK"), ReceiptKind.DELIVERED, ""),
            (event("bounce", type="bounce", status="5.1.1"), ReceiptKind.UNDELIVERED, "hard_bounce"),
            (event("bounce", type="blocked", status="5.7.1"), ReceiptKind.UNDELIVERED, "soft_bounce"),
            (event("dropped", reason="Bounced Address"), ReceiptKind.UNDELIVERED, "hard_bounce"),
            (event("dropped", reason="Invalid"), ReceiptKind.UNDELIVERED, "hard_bounce"),
            (event("dropped", reason="Spam Reporting Address"), ReceiptKind.UNDELIVERED, "spam_blocked"),
            (event("dropped", reason="Spam Content"), ReceiptKind.UNDELIVERED, "spam_blocked"),
            (event("dropped", reason="Unsubscribed Address"), ReceiptKind.UNDELIVERED, "undelivered_other"),
            (event("open"), ReceiptKind.OPENED, ""),
            (event("click", url="https://x"), ReceiptKind.CLICKED, ""),
            (event("spamreport"), ReceiptKind.COMPLAINED, ""),
            (event("unsubscribe"), ReceiptKind.UNSUBSCRIBED, ""),
            (event("group_unsubscribe", asm_group_id=1), ReceiptKind.UNSUBSCRIBED, ""),
            (event("group_resubscribe", asm_group_id=1), ReceiptKind.UNKNOWN, ""),
            (event("teleported"), ReceiptKind.UNKNOWN, ""),
            ({"sg_event_id": "x"}, ReceiptKind.UNKNOWN, ""),
        ],
    )
    def test_a_documented_event_has_its_meaning(self, given: dict[str, Any], kind: ReceiptKind, reason: str) -> None:
        receipt = only(self.receiver().receipts(signed([given])))
        assert (receipt.kind, receipt.reason) == (kind, reason)
        assert receipt.event_id == given["sg_event_id"]

    def test_an_event_finds_its_delivery_and_its_send(self) -> None:
        receipt = only(self.receiver().receipts(signed([event("delivered")])))
        assert (receipt.delivery_id, receipt.claim_no, receipt.provider_ref) == (DELIVERY_ID, 3, MESSAGE_ID)
        assert receipt.at is not None
        assert receipt.at.timestamp() == 1_795_000_000

    def test_a_machine_that_opens_is_told_from_a_person(self) -> None:
        events = [event("open", sg_machine_open=True), event("open", sg_machine_open=False)]
        assert [each.is_machine for each in self.receiver().receipts(signed(events))] == [True, False]

    def test_a_complaint_names_the_person_also_without_a_delivery(self) -> None:
        stray = event("spamreport")
        del stray["delivery_id"]
        receipt = only(self.receiver().receipts(signed([stray])))
        assert (receipt.delivery_id, receipt.address) == (None, "bob@example.com")
        assert "bob@" not in repr(receipt)

    def test_an_event_without_an_id_gets_the_same_one_each_time(self) -> None:
        nameless = event("open")
        del nameless["sg_event_id"]
        ids = {only(self.receiver().receipts(signed([nameless]))).event_id for _ in range(2)}
        assert len(ids) == 1 and ids != {""}

    def test_what_is_no_list_of_events_has_none(self) -> None:
        for body in ({"event": "open"}, 7, [7, "x", None], None):
            assert self.receiver().receipts(signed(body)) == []

    def _personal(self, n: int) -> EmailContent:
        return EmailContent(
            f"For {n}", text="Same", html="<p>Same</p>", headers={"List-Unsubscribe": f"<https://x/u/{n}>"}
        )


def _words(request: Request) -> list[str]:
    """The texts of each mail in a request."""
    bodies = " ".join(each["value"] for each in request.json["content"])
    return [f"{each['subject']} {bodies}" for each in request.json["personalizations"]]
