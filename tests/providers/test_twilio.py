"""Twilio: what it is sent, what each of its documented codes means, and what it reports back."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlencode

import pytest

from notifier.message import Address, Channel, Content, Message, SmsContent
from notifier.outcome import Callback, Kind, Outcome, Receipt, ReceiptKind, Scope
from notifier.providers.base import Provider, Surroundings
from notifier.providers.carrier import Carrier
from notifier.providers.twilio import Twilio, TwilioSettings
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
from tests.providers.sink import Answer, HttpSink, Request, free_port

ACCOUNT = "AC" + "0123456789abcdef" * 2
AUTH_TOKEN = "auth-token-of-no-value"
SHARED_KEY = "shared-key-of-no-value"
SID = "SM" + "0123456789abcdef" * 2
HOOK = "https://notify.example.com/hooks/twilio/main"
GOOD = TwilioSettings(account_sid=ACCOUNT, auth_token=AUTH_TOKEN, sender="+15550001111", callback_key_secret=SHARED_KEY)


def accepted(request: Request) -> Answer:
    return Answer(201, {"sid": SID, "status": "queued", "error_code": None, "to": "+15005550006"})


def failed(status: int, code: int | None, message: str = "refused", **headers: str) -> Answer:
    body = {
        "code": code,
        "message": message,
        "more_info": f"https://www.twilio.com/docs/errors/{code}",
        "status": status,
    }
    return Answer(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


@asynccontextmanager
async def twilio(
    answer: Callable[[Request], Answer] = accepted, settings: TwilioSettings = GOOD, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[Twilio, HttpSink]]:
    async with HttpSink(answer, tls) as sink, Carrier() as carrier:
        yield Twilio(replace(settings, base_url=sink.url), Surroundings(carrier, hook_url=HOOK)), sink


def send(
    message: Message, answer: Callable[[Request], Answer] = accepted, settings: TwilioSettings = GOOD
) -> tuple[Outcome, list[Request]]:
    async def case() -> tuple[Outcome, list[Request]]:
        async with twilio(answer, settings) as (provider, sink):
            (outcome,) = await provider.send([message])
            return outcome, sink.requests

    return run(case())


def form(request: Request) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(request.body.decode(), strict_parsing=True).items()}


def signed(
    url: str, fields: dict[str, str], key: str = AUTH_TOKEN, algorithm: Any = hashlib.sha1, **headers: str
) -> Callback:
    """As the vendor describes it: the URL, then each name and value in the order of the names."""
    text = url + "".join(name + fields[name] for name in sorted(fields))
    signature = base64.b64encode(hmac.new(key.encode(), text.encode(), algorithm).digest()).decode()
    given = {"x-twilio-signature": signature, "content-type": "application/x-www-form-urlencoded", **headers}
    return Callback("POST", url, given, urlencode(fields).encode())


def status(name: str, **fields: str) -> dict[str, str]:
    return {"MessageSid": SID, "MessageStatus": name, "To": "+15005550006", "AccountSid": ACCOUNT, **fields}


class TestTwilio(ProviderContract, HttpContract, CallbackContract, SandboxContract):
    secrets = (AUTH_TOKEN, SHARED_KEY)
    accepting = Answer(201, {"sid": SID, "status": "queued"})
    throttling = Answer(429, {"code": 20429, "message": "Too Many Requests", "status": 429})

    @classmethod
    def provider_class(cls) -> type[Provider]:
        return Twilio

    @asynccontextmanager
    async def world(self) -> AsyncIterator[World]:
        async with twilio() as (provider, sink):

            def set_latency(latency_s: float) -> None:
                sink.latency_s = latency_s

            yield World(
                provider,
                lambda fault: setattr(sink, "fault", fault),
                lambda: [form(request)["Body"] for request in sink.requests],
                set_latency,
            )

    @asynccontextmanager
    async def nowhere(self) -> AsyncIterator[Provider]:
        async with Carrier() as carrier:
            yield Twilio(replace(GOOD, base_url=f"http://127.0.0.1:{free_port()}"), Surroundings(carrier))

    @asynccontextmanager
    async def strangers(self) -> AsyncIterator[World]:
        async with twilio(lambda request: failed(401, 20003, "Authenticate")) as (provider, sink):
            yield World(provider, lambda fault: setattr(sink, "fault", fault), list)

    def address(self, n: int) -> Address:
        return Address(Channel.SMS, f"+1500555100{n}")

    def content(self, text: str) -> Content:
        return SmsContent(text)

    def oversized(self) -> Content:
        return SmsContent("a" * 1601)

    def settings(self) -> TwilioSettings:
        return GOOD

    def broken_settings(self) -> dict[str, Any]:
        return {
            "account_sid": replace(GOOD, account_sid="SK123"),
            "auth_token": replace(GOOD, auth_token=""),
            "api_key_secret": replace(GOOD, api_key_sid="SK1", api_key_secret=""),
            "sender": replace(GOOD, sender=""),
            "base_url": replace(GOOD, base_url="api.twilio.com"),
            "ca_file": replace(GOOD, ca_file=__file__),
        }

    def answered(
        self, answer: Answer, *, tls: ssl.SSLContext | None = None, ca_file: str = ""
    ) -> tuple[Outcome, list[Request]]:
        async def case() -> tuple[Outcome, list[Request]]:
            async with twilio(lambda request: answer, replace(GOOD, ca_file=ca_file), tls) as (provider, sink):
                (outcome,) = await provider.send([self.message()])
                return outcome, sink.requests

        return run(case())

    # --- The sandbox -------------------------------------------------------------------------------------------

    sandbox_faults = {
        "http_401": Kind.MISCONFIGURED,
        "http_429": Kind.THROTTLED,
        "http_500": Kind.UNCERTAIN,
        "hang": Kind.UNCERTAIN,
        "reset_before": Kind.UNCERTAIN,
        "reset_after": Kind.UNCERTAIN,
        "garbage": Kind.UNCERTAIN,
    }

    def sandbox_provider(self, sandbox: Sandbox, carrier: Carrier) -> Twilio:
        settings = TwilioSettings(
            account_sid="AC" + "0" * 32,
            auth_token="sandbox-auth-token",
            sender="+15005550006",
            base_url=sandbox.url,
        )
        Twilio.check(settings)
        return Twilio(settings, Surroundings(carrier, hook_url=f"{sandbox.hooks.url}/hooks/twilio/main"))

    def sandbox_recipients(self) -> list[tuple[Address, Kind, str]]:
        numbers = {
            "+15005550006": (Kind.ACCEPTED, ""),
            "+15005551000": (Kind.ACCEPTED, ""),
            "+15005559999": (Kind.ACCEPTED, ""),
            "+15005550010": (Kind.ACCEPTED, ""),
            "+15005550001": (Kind.GONE, "invalid_number"),
            "+15005550002": (Kind.REJECTED, "rejected"),
            "+15005550003": (Kind.REJECTED, "rejected"),
            "+15005550004": (Kind.REJECTED, "recipient_blocked"),
            "+15005550009": (Kind.GONE, "cannot_receive"),
        }
        return [(Address(Channel.SMS, number), kind, reason) for number, (kind, reason) in numbers.items()]

    def test_the_sandbox_reports_a_delivery_in_its_steps(self, sandbox: Sandbox) -> None:
        address = Address(Channel.SMS, "+15005551234")
        receipts = self.sandbox_receipts(
            sandbox, address, lambda found: any(receipt.kind is ReceiptKind.DELIVERED for receipt in found)
        )
        assert ReceiptKind.SENT in {receipt.kind for receipt in receipts}

    # --- What it is sent --------------------------------------------------------------------------------------

    def test_the_request_is_the_documented_one(self) -> None:
        outcome, (request,) = send(replace(self.message(), expires_at=time.time() + 600.9))
        assert (request.method, request.path) == ("POST", f"/2010-04-01/Accounts/{ACCOUNT}/Messages.json")
        basic = base64.b64encode(f"{ACCOUNT}:{AUTH_TOKEN}".encode()).decode()
        assert request.headers["authorization"] == f"Basic {basic}"
        assert request.headers["content-type"] == "application/x-www-form-urlencoded"
        assert form(request) == {
            "To": "+15005551000",
            "From": "+15550001111",
            "Body": "Your order has shipped",
            "ValidityPeriod": "600",
            "StatusCallback": f"{HOOK}?d={DELIVERY_ID}&n=1",
        }
        assert outcome.provider_ref == SID

    def test_an_api_key_sends_for_its_account(self) -> None:
        keyed = replace(GOOD, api_key_sid="SK1", api_key_secret="secret-of-no-value")
        _, (request,) = send(self.message(), settings=keyed)
        assert ACCOUNT in request.path
        assert request.headers["authorization"] == "Basic " + base64.b64encode(b"SK1:secret-of-no-value").decode()

    def test_a_messaging_service_chooses_the_sender_unless_one_is_named(self) -> None:
        service = replace(GOOD, sender="", messaging_service_sid="MG1")
        _, (request,) = send(self.message(), settings=service)
        assert form(request)["MessagingServiceSid"] == "MG1"
        assert "From" not in form(request)
        _, (request,) = send(replace(self.message(), content=SmsContent("hi", sender="SHOP")), settings=service)
        assert form(request)["From"] == "SHOP"

    @pytest.mark.parametrize("left_s, told", [(-5, "1"), (0.5, "1"), (90.9, "90"), (999_999, "36000")])
    def test_it_waits_at_twilio_no_longer_than_it_lives(self, left_s: float, told: str) -> None:
        _, (request,) = send(replace(self.message(), expires_at=time.time() + left_s))
        assert form(request)["ValidityPeriod"] == told

    def test_the_environment_of_the_process_changes_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {"TWILIO_EDGE": "sydney", "TWILIO_REGION": "au1", "TWILIO_AUTH_TOKEN": "other"}.items():
            monkeypatch.setenv(name, value)
        assert send(self.message())[0].kind is Kind.ACCEPTED

    def test_a_message_of_1600_characters_goes_out_and_an_empty_one_does_not(self) -> None:
        assert send(replace(self.message(), content=SmsContent("é" * 1600)))[0].kind is Kind.ACCEPTED
        outcome, requests = send(replace(self.message(), content=SmsContent("")))
        assert (outcome.kind, outcome.reason, requests) == (Kind.REJECTED, "rejected_content", [])

    # --- What it answers --------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "answer, kind, scope, reason",
        [
            (failed(429, 20429), Kind.THROTTLED, Scope.ACCOUNT, ""),
            (failed(401, 20003), Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            (failed(403, 20005), Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            (failed(403, 20006), Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            (failed(403, 20008), Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            (failed(403, 90010), Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            (failed(400, 21610), Kind.REJECTED, Scope.ADDRESS, "recipient_blocked"),
            (failed(400, 21211), Kind.GONE, Scope.ADDRESS, "invalid_number"),
            (failed(400, 21217), Kind.GONE, Scope.ADDRESS, "invalid_number"),
            (failed(400, 21214), Kind.GONE, Scope.ADDRESS, "cannot_receive"),
            (failed(400, 21614), Kind.GONE, Scope.ADDRESS, "cannot_receive"),
            (failed(400, 21635), Kind.GONE, Scope.ADDRESS, "cannot_receive"),
            (failed(400, 21408), Kind.REJECTED, Scope.MESSAGE, "rejected"),
            (failed(400, 21612), Kind.REJECTED, Scope.MESSAGE, "rejected"),
            (failed(400, 21606), Kind.MISCONFIGURED, Scope.SENDER, ""),
            (failed(400, 21603), Kind.MISCONFIGURED, Scope.SENDER, ""),
            (failed(400, 21212), Kind.MISCONFIGURED, Scope.SENDER, ""),
            (failed(400, 21659), Kind.MISCONFIGURED, Scope.SENDER, ""),
            (failed(400, 21704), Kind.MISCONFIGURED, Scope.SENDER, ""),
            (failed(400, 21703), Kind.MISCONFIGURED, Scope.SENDER, ""),
            (failed(429, 21611), Kind.THROTTLED, Scope.SENDER, ""),
            (failed(400, 21617), Kind.REJECTED, Scope.MESSAGE, "payload_too_large"),
            (failed(400, 21605), Kind.REJECTED, Scope.MESSAGE, "payload_too_large"),
            (failed(400, 21602), Kind.REJECTED, Scope.MESSAGE, "rejected_content"),
            (failed(400, 30019), Kind.REJECTED, Scope.MESSAGE, "payload_too_large"),
            (failed(429, 63038), Kind.THROTTLED, Scope.ACCOUNT, ""),
            (failed(500, 20500), Kind.UNCERTAIN, Scope.ACCOUNT, "answer_lost"),
            (failed(503, 20503), Kind.UNAVAILABLE, Scope.ACCOUNT, ""),
            (failed(400, 21999), Kind.REJECTED, Scope.MESSAGE, "rejected"),  # not in any table: 21xxx
            (failed(400, 30999), Kind.REJECTED, Scope.MESSAGE, "rejected"),
            (failed(404, 20404), Kind.MISCONFIGURED, Scope.ACCOUNT, ""),  # no such account
            (failed(400, None), Kind.REJECTED, Scope.MESSAGE, "rejected"),
            (Answer(429, "slow down"), Kind.THROTTLED, Scope.ACCOUNT, ""),
            (Answer(500, "<html>"), Kind.UNCERTAIN, Scope.ACCOUNT, "answer_lost"),
            (Answer(502, "<html>"), Kind.UNCERTAIN, Scope.ACCOUNT, "answer_lost"),
            (Answer(503, "<html>"), Kind.UNAVAILABLE, Scope.ACCOUNT, ""),
            (Answer(504, ""), Kind.UNCERTAIN, Scope.ACCOUNT, "answer_lost"),
            (Answer(301, "", {"Location": "http://127.0.0.1:1/"}), Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            (Answer(201, ""), Kind.UNCERTAIN, Scope.ACCOUNT, "answer_garbled"),
            (Answer(201, "{}"), Kind.UNCERTAIN, Scope.ACCOUNT, "answer_garbled"),
            (Answer(201, "[]"), Kind.UNCERTAIN, Scope.ACCOUNT, "answer_garbled"),
            (Answer(201, '{"sid": 7}'), Kind.UNCERTAIN, Scope.ACCOUNT, "answer_garbled"),
            (Answer(201, "[" * 60_000), Kind.UNCERTAIN, Scope.ACCOUNT, "answer_garbled"),
            (Answer(400, "[" * 60_000), Kind.REJECTED, Scope.MESSAGE, "rejected"),
            (
                Answer(400, {"type": "about:blank", "title": "Bad number", "status": 400, "code": 21211}),  # RFC 9457
                Kind.GONE,
                Scope.ADDRESS,
                "invalid_number",
            ),
        ],
    )
    def test_a_documented_answer_has_its_meaning(self, answer: Answer, kind: Kind, scope: Scope, reason: str) -> None:
        outcome, requests = send(self.message(), lambda request: answer)
        assert (outcome.kind, outcome.scope, outcome.reason) == (kind, scope, reason)
        assert outcome.http_status == answer.status
        assert len(requests) == 1

    def test_who_stopped_at_twilio_is_marked_as_opted_out_and_nobody_else(self) -> None:
        assert send(self.message(), lambda request: failed(400, 21610))[0].opted_out is True
        assert send(self.message(), lambda request: failed(400, 21211))[0].opted_out is False

    def test_a_sender_with_ten_hours_of_messages_waiting_waits_long(self) -> None:
        assert send(self.message(), lambda request: failed(429, 21611))[0].retry_after_s == 3600

    def test_the_number_is_not_in_what_is_kept_of_an_error(self) -> None:
        words = "The 'To' number +15005551000 (15005551000) is not a valid phone number."
        outcome, _ = send(self.message(), lambda request: failed(400, 21211, words))
        assert "5005551000" not in repr(outcome)
        assert "is not a valid phone number" in outcome.detail

    def test_each_of_many_at_once_has_its_own_wait(self) -> None:
        def by_number(request: Request) -> Answer:
            n = form(request)["To"][-1]
            return failed(429, 20429, Retry_After=f"1{n}")

        async def case() -> list[float | None]:
            async with twilio(by_number) as (provider, _):
                return [outcome.retry_after_s for outcome in await provider.send([self.message(n) for n in range(9)])]

        assert run(case()) == [10.0 + n for n in range(9)]

    # --- What it reports --------------------------------------------------------------------------------------

    def receiver(self) -> Twilio:
        return Twilio(GOOD, Surroundings(carrier=None, hook_url=HOOK))

    def callback(self) -> Callback:
        return signed(f"{HOOK}?d={DELIVERY_ID}&n=1", status("delivered"))

    def forgeries(self) -> dict[str, Callback]:
        good = self.callback()
        signature = good.headers["x-twilio-signature"]
        unsigned = {name: value for name, value in good.headers.items() if name != "x-twilio-signature"}
        settings = "x-twilio-webhooks-signature-settings"
        return {
            "body altered": replace(good, body=good.body.replace(b"delivered", b"undelivered")),
            "field added": replace(good, body=good.body + b"&ErrorCode=30005"),
            "field removed": replace(good, body=good.body.replace(b"&To=%2B15005550006", b"")),
            "body emptied": replace(good, body=b""),
            "another delivery": replace(good, url=good.url.replace(str(DELIVERY_ID), str(DELIVERY_ID)[::-1])),
            "another host": replace(good, url=good.url.replace("notify.example.com", "evil.example.com")),
            "no signature": replace(good, headers=unsigned),
            "empty signature": replace(good, headers={**unsigned, "x-twilio-signature": ""}),
            "signature cut": replace(good, headers={**unsigned, "x-twilio-signature": signature[:-1]}),
            "signature in another case": replace(
                good, headers={**unsigned, "x-twilio-signature": signature.swapcase()}
            ),
            "signature of other text": replace(good, headers={**unsigned, "x-twilio-signature": "é" * 28}),
            "another key": signed(good.url, status("delivered"), key="another"),
            "empty key": signed(good.url, status("delivered"), key=""),
            "the weaker key called the stronger": signed(
                good.url, status("delivered"), **{settings: "key=1,algorithm=HMAC_SHA256"}
            ),
            "an algorithm nobody knows": signed(good.url, status("delivered"), **{settings: "algorithm=NONE"}),
            "a body hash in place of the fields": replace(signed(f"{good.url}&bodySHA256=0", {}), body=good.body),
        }

    def test_a_shared_key_signs_with_sha256(self) -> None:
        header = {"x-twilio-webhooks-signature-settings": "key=webhooks_sharedkey_1,algorithm=HMAC_SHA256"}
        callback = signed(HOOK, status("sent"), SHARED_KEY, hashlib.sha256, **header)
        assert self.receiver().verify(callback) is True

    def test_without_a_key_nothing_is_believed(self) -> None:
        keyless = Twilio(
            replace(GOOD, auth_token="", api_key_sid="SK1", api_key_secret="s"), Surroundings(carrier=None)
        )
        assert keyless.verify(signed(HOOK, status("sent"), key="")) is False

    @pytest.mark.parametrize("url", [f"{HOOK}", HOOK.replace(".com/", ".com:443/")])
    def test_a_port_in_the_url_may_be_there_or_not(self, url: str) -> None:
        callback = signed(url, status("sent"))
        assert self.receiver().verify(replace(callback, url=HOOK)) is True

    def test_repeated_and_empty_fields_are_signed_as_they_are(self) -> None:
        text = HOOK + "A1" + "A2" + "B"
        signature = base64.b64encode(hmac.new(AUTH_TOKEN.encode(), text.encode(), hashlib.sha1).digest()).decode()
        callback = Callback("POST", HOOK, {"x-twilio-signature": signature}, b"B=&A=2&A=1")
        assert self.receiver().verify(callback) is True

    @pytest.mark.parametrize(
        "name, code, kind, reason",
        [
            ("accepted", "", ReceiptKind.SENT, ""),
            ("scheduled", "", ReceiptKind.SENT, ""),
            ("queued", "", ReceiptKind.SENT, ""),
            ("sending", "", ReceiptKind.SENT, ""),
            ("sent", "", ReceiptKind.SENT, ""),
            ("partially_delivered", "", ReceiptKind.SENT, ""),
            ("delivered", "", ReceiptKind.DELIVERED, ""),
            ("read", "", ReceiptKind.OPENED, ""),
            ("canceled", "", ReceiptKind.UNDELIVERED, "undelivered_other"),
            ("failed", "30001", ReceiptKind.UNDELIVERED, "undelivered_other"),
            ("failed", "30002", ReceiptKind.UNDELIVERED, "undelivered_other"),
            ("undelivered", "30003", ReceiptKind.UNDELIVERED, "unreachable"),
            ("undelivered", "30017", ReceiptKind.UNDELIVERED, "unreachable"),
            ("undelivered", "30008", ReceiptKind.UNDELIVERED, "soft_bounce"),
            ("undelivered", "30004", ReceiptKind.UNDELIVERED, "carrier_rejected"),
            ("undelivered", "30007", ReceiptKind.UNDELIVERED, "carrier_rejected"),
            ("undelivered", "30005", ReceiptKind.UNDELIVERED, "hard_bounce"),
            ("undelivered", "30006", ReceiptKind.UNDELIVERED, "hard_bounce"),
            ("undelivered", "30034", ReceiptKind.UNDELIVERED, "carrier_rejected"),
            ("undelivered", "30032", ReceiptKind.UNDELIVERED, "carrier_rejected"),
            ("undelivered", "30035", ReceiptKind.UNDELIVERED, "carrier_rejected"),
            ("undelivered", "30036", ReceiptKind.UNDELIVERED, "ttl_elapsed"),
            ("undelivered", "30999", ReceiptKind.UNDELIVERED, "soft_bounce"),
            ("failed", "", ReceiptKind.UNDELIVERED, "undelivered_other"),
            ("teleported", "", ReceiptKind.UNKNOWN, ""),
        ],
    )
    def test_a_documented_status_has_its_meaning(self, name: str, code: str, kind: ReceiptKind, reason: str) -> None:
        fields = status(name, **({"ErrorCode": code} if code else {}))
        receipt = only(self._receipts(f"{HOOK}?d={DELIVERY_ID}&n=3", fields))
        assert (receipt.kind, receipt.reason, receipt.provider_ref) == (kind, reason, SID)
        assert (receipt.delivery_id, receipt.claim_no) == (DELIVERY_ID, 3)
        assert receipt.event_id == f"{SID}:{name}"

    def test_a_stop_that_twilio_knew_of_before_us_is_told_too(self) -> None:
        first, second = self._receipts(HOOK, status("failed", ErrorCode="21610"))
        assert (first.kind, second.kind) == (ReceiptKind.UNDELIVERED, ReceiptKind.STOPPED)
        assert second.address == "+15005550006"
        assert first.event_id != second.event_id

    @pytest.mark.parametrize(
        "body, kind, code",
        [
            ("STOP", ReceiptKind.STOPPED, "STOP"),
            (" stop\n", ReceiptKind.STOPPED, "STOP"),
            ("Unsubscribe", ReceiptKind.STOPPED, "UNSUBSCRIBE"),
            ("STOPALL", ReceiptKind.STOPPED, "STOPALL"),
            ("CANCEL", ReceiptKind.STOPPED, "CANCEL"),
            ("END", ReceiptKind.STOPPED, "END"),
            ("QUIT", ReceiptKind.STOPPED, "QUIT"),
            ("start", ReceiptKind.STARTED, "START"),
            ("UNSTOP", ReceiptKind.STARTED, "UNSTOP"),
            ("HELP", ReceiptKind.INBOUND, "HELP"),
            ("Please stop by at the shop", ReceiptKind.INBOUND, ""),
        ],
    )
    def test_what_a_person_answers_is_understood(self, body: str, kind: ReceiptKind, code: str) -> None:
        receipt = only(self._receipts(HOOK, {"MessageSid": SID, "From": "+4915112345678", "To": "+1555", "Body": body}))
        assert (receipt.kind, receipt.code, receipt.address) == (kind, code, "+4915112345678")
        assert receipt.delivery_id is None
        assert "+4915112345678" not in repr(receipt)

    def test_twilios_own_word_on_an_opt_out_comes_first(self) -> None:
        fields = {"MessageSid": SID, "From": "+49151", "Body": "ARRÊT", "OptOutType": "STOP"}
        assert only(self._receipts(HOOK, fields)).kind is ReceiptKind.STOPPED

    def test_a_callback_url_of_another_age_still_yields_its_receipt(self) -> None:
        receipt = only(self._receipts(f"{HOOK}?d=not-a-uuid&n=-1", status("delivered")))
        assert (receipt.kind, receipt.delivery_id, receipt.claim_no) == (ReceiptKind.DELIVERED, None, None)

    def _receipts(self, url: str, fields: dict[str, str]) -> list[Receipt]:
        callback = signed(url, fields)
        assert self.receiver().verify(callback) is True
        return self.receiver().receipts(callback)
