"""Pushy: what it is sent, and what each of its documented answers means."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from notifier.message import Address, Channel, Message, Platform, PushContent, PushOptions
from notifier.outcome import Kind, Outcome, Scope
from notifier.providers.base import Provider, Surroundings
from notifier.providers.carrier import Carrier
from notifier.providers.pushy import Pushy, PushySettings
from notifier.providers.registry import DEVICE_KINDS, provider_class
from tests.providers.conftest import Sandbox
from tests.providers.contract import HttpContract, ProviderContract, SandboxContract, World, run
from tests.providers.sink import Answer, HttpSink, Request, free_port

KEY = "6a547f1e7fa1dca83ec11a9210b99dfc"
TOKEN = "a6345d0278adc55d3474"
ACCEPTED: dict[str, Any] = {"success": True, "id": "5742fe0407c3674e226892f9", "info": {"devices": 1, "failed": []}}


def accepted(request: Request) -> Answer:
    return Answer(200, ACCEPTED)


def failed(status: int, code: str, error: str = "refused") -> Answer:
    return Answer(status, {"code": code, "error": error})


@asynccontextmanager
async def pushy(
    answer: Callable[[Request], Answer] = accepted, tls: ssl.SSLContext | None = None, **settings: Any
) -> AsyncIterator[tuple[Pushy, HttpSink]]:
    async with HttpSink(answer, tls) as sink, Carrier() as carrier:
        given = {"api_key": KEY, "base_url": sink.url, **settings}
        yield Pushy(PushySettings(**given), Surroundings(carrier)), sink


def send(message: Message, **settings: Any) -> tuple[Outcome, Request]:
    async def case() -> tuple[Outcome, Request]:
        async with pushy(**settings) as (provider, sink):
            (outcome,) = await provider.send([message])
            (request,) = sink.requests
            return outcome, request

    return run(case())


class TestPushy(ProviderContract, HttpContract, SandboxContract):
    secrets = (KEY,)
    accepting = Answer(200, ACCEPTED)
    throttling = failed(429, "RATE_LIMIT_EXCEEDED")

    @classmethod
    def provider_class(cls) -> type[Provider]:
        return Pushy

    @asynccontextmanager
    async def world(self) -> AsyncIterator[World]:
        async with pushy() as (provider, sink):
            yield World(
                provider,
                lambda fault: setattr(sink, "fault", fault),
                lambda: [_words(request) for request in sink.requests],
                lambda latency_s: setattr(sink, "latency_s", latency_s),
            )

    @asynccontextmanager
    async def nowhere(self) -> AsyncIterator[Provider]:
        async with Carrier() as carrier:
            yield Pushy(replace(self.settings(), base_url=f"http://127.0.0.1:{free_port()}"), Surroundings(carrier))

    @asynccontextmanager
    async def strangers(self) -> AsyncIterator[World]:
        async with pushy(lambda request: failed(401, "INVALID_API_KEY", f"no such key: {KEY}")) as (provider, sink):
            yield World(provider, lambda fault: setattr(sink, "fault", fault), list)

    def address(self, n: int) -> Address:
        return Address(Channel.PUSH, f"{TOKEN}{n}", Platform.ANDROID_CN)

    def content(self, text: str) -> PushContent:
        return PushContent(text, f"body {text}", PushOptions(data={"order": text}))

    def oversized(self) -> PushContent:
        return PushContent("title", "여" * 1400)

    def settings(self) -> PushySettings:
        return PushySettings(api_key=KEY)

    def broken_settings(self) -> dict[str, Any]:
        good = self.settings()
        return {
            "api_key": replace(good, api_key=f"{KEY}\n"),
            "base_url": replace(good, base_url="https://api.pushy.me/?api_key=1"),
            "ca_file": replace(good, ca_file="/nowhere.pem"),
        }

    def answered(
        self, answer: Answer, *, tls: ssl.SSLContext | None = None, ca_file: str = ""
    ) -> tuple[Outcome, list[Request]]:
        async def case() -> tuple[Outcome, list[Request]]:
            async with pushy(lambda request: answer, tls, ca_file=ca_file) as (provider, sink):
                (outcome,) = await provider.send([self.message()])
                return outcome, sink.requests

        return run(case())

    # --- The sandbox -------------------------------------------------------------------------------------------

    sandbox_faults = {
        "http_401": Kind.MISCONFIGURED,
        "http_429": Kind.THROTTLED,
        "http_500": Kind.UNAVAILABLE,
        "hang": Kind.UNCERTAIN,
        "reset_before": Kind.UNCERTAIN,
        "reset_after": Kind.UNCERTAIN,
        "garbage": Kind.UNCERTAIN,
        "gone": Kind.GONE,
    }

    def sandbox_provider(self, sandbox: Sandbox, carrier: Carrier) -> Pushy:
        settings = PushySettings(api_key="sandbox-pushy-key", base_url=sandbox.url)
        Pushy.check(settings)
        return Pushy(settings, Surroundings(carrier))

    def sandbox_recipients(self) -> list[tuple[Address, Kind, str]]:
        words = {
            "ok": (Kind.ACCEPTED, ""),
            "unregistered": (Kind.GONE, "device_unregistered"),
            "throttled": (Kind.THROTTLED, ""),
            "badtoken": (Kind.GONE, "device_unregistered"),  # Pushy has one word for both
        }
        return [
            (Address(Channel.PUSH, f"sandbox-{word}-{uuid4()}", platform), kind, reason)
            for platform in (Platform.ANDROID_CN, Platform.ANDROID, Platform.IOS)
            for word, (kind, reason) in words.items()
        ]

    # --- What it is sent ---------------------------------------------------------------------------------------

    OPTIONS = PushOptions(
        badge=3,
        sound="ping.aiff",
        image="https://example.com/a.png",
        deep_link="app://orders/1",
        ttl_s=600,
        data={"order": "A-1"},
    )

    def test_an_android_app_finds_in_data_what_to_show(self) -> None:
        message = replace(self.message(), content=PushContent("Title", "Body", self.OPTIONS))
        outcome, request = send(message)
        assert (outcome.kind, outcome.provider_ref) == (Kind.ACCEPTED, ACCEPTED["id"])
        assert (request.method, request.path) == ("POST", f"/push?api_key={KEY}")
        assert request.headers["content-type"] == "application/json"
        assert request.json == {
            "to": f"{TOKEN}0",
            "data": {
                "title": "Title",
                "message": "Body",
                "image": "https://example.com/a.png",
                "sound": "ping.aiff",
                "badge": 3,
                "deep_link": "app://orders/1",
                "order": "A-1",
                "n_id": str(message.delivery_id),
            },
            "time_to_live": 600,
            "collapse_key": "key-0",
        }

    def apple(self, content: PushContent) -> Message:
        address = replace(self.address(0), platform=Platform.IOS)
        return replace(self.message(), address=address, content=content)

    def test_an_iphone_is_told_what_to_show(self) -> None:
        _, request = send(self.apple(PushContent("Title", "Body", self.OPTIONS)))
        body = request.json
        assert body["notification"] == {"title": "Title", "body": "Body", "sound": "ping.aiff", "badge": 3}
        assert body["mutable_content"] is True
        assert (body["data"]["image"], body["data"]["order"]) == ("https://example.com/a.png", "A-1")
        assert "message" not in body["data"]

    def test_a_silent_message_shows_nothing(self) -> None:
        silent = PushContent("Title", "Body", PushOptions(silent=True, data={"order": "A-1"}))
        _, android = send(replace(self.message(), content=silent))
        assert set(android.json["data"]) == {"order", "n_id"}
        _, apple = send(self.apple(silent))
        assert apple.json["content_available"] is True
        assert "notification" not in apple.json

    def test_the_callers_own_data_goes_before_ours_but_not_the_deliverys_id(self) -> None:
        data = {"title": "theirs", "n_id": "theirs"}
        message = replace(self.message(), content=PushContent("ours", "Body", PushOptions(data=data)))
        _, request = send(message)
        assert request.json["data"]["title"] == "theirs"
        assert request.json["data"]["n_id"] == str(message.delivery_id)

    def test_a_long_collapse_key_is_shortened_and_stays_its_own(self) -> None:
        def key(collapse_id: str) -> str:
            found: str = send(replace(self.message(), collapse_id=collapse_id))[1].json["collapse_key"]
            return found

        assert key("k" * 32) == "k" * 32
        long, other = key("k" * 63 + "1"), key("k" * 63 + "2")
        assert len(long) == len(other) == 32
        assert long == key("k" * 63 + "1") != other

    @pytest.mark.parametrize(("left_s", "told_s"), [(3600, 3600), (10**8, 31_536_000), (-5, 1)])
    def test_it_is_kept_no_longer_than_it_is_worth_or_may_be(self, left_s: int, told_s: int) -> None:
        _, request = send(replace(self.message(), expires_at=time.time() + left_s))
        assert told_s - 5 <= request.json["time_to_live"] <= told_s
        assert request.json["time_to_live"] > 0

    def test_what_fits_is_sent_and_one_byte_more_is_not(self) -> None:
        _, request = send(replace(self.message(), content=PushContent("t", "x")))
        overhead = len(request.body.partition(b'"data":')[2].partition(b',"time_to_live"')[0]) - 1

        def sized(length: int) -> Outcome:
            async def case() -> Outcome:
                async with pushy() as (provider, _):
                    return (await provider.send([replace(self.message(), content=PushContent("t", "x" * length))]))[0]

            return run(case())

        assert sized(4096 - overhead).kind is Kind.ACCEPTED
        assert sized(4097 - overhead).reason == "payload_too_large"

    def test_it_serves_the_platforms_whose_devices_may_name_it(self) -> None:
        named = {f"push:{platform}" for platform, kinds in DEVICE_KINDS.items() if "pushy" in kinds}
        assert provider_class("pushy").serves == named

    # --- What its answers mean ---------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("status", "code", "kind", "scope", "reason"),
        [
            (400, "NO_RECIPIENTS", Kind.GONE, Scope.ADDRESS, "device_unregistered"),
            (400, "INVALID_PARAM", Kind.REJECTED, Scope.MESSAGE, "rejected_content"),
            (400, "PAYLOAD_LIMIT_EXCEEDED", Kind.REJECTED, Scope.MESSAGE, "payload_too_large"),
            (400, "NO_APNS_AUTH", Kind.MISCONFIGURED, Scope.SENDER, ""),
            (401, "INVALID_API_KEY", Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            (403, "ACCOUNT_SUSPENDED", Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            (402, "SUBSCRIPTION_ERROR", Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            (429, "RATE_LIMIT_EXCEEDED", Kind.THROTTLED, Scope.ACCOUNT, ""),
            (500, "INTERNAL_ERROR", Kind.UNAVAILABLE, Scope.ACCOUNT, ""),
            (500, "INTERNAL_SERVER_ERROR", Kind.UNAVAILABLE, Scope.ACCOUNT, ""),
            (400, "SOMETHING_NEW", Kind.REJECTED, Scope.MESSAGE, "rejected"),
            (401, "SOMETHING_NEW", Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            (402, "SOMETHING_NEW", Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            (404, "SOMETHING_NEW", Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            (429, "SOMETHING_NEW", Kind.THROTTLED, Scope.ACCOUNT, ""),
            (500, "SOMETHING_NEW", Kind.UNCERTAIN, Scope.ACCOUNT, "answer_lost"),
            (503, "SOMETHING_NEW", Kind.UNAVAILABLE, Scope.ACCOUNT, ""),
        ],
    )
    def test_each_documented_code_has_its_meaning(
        self, status: int, code: str, kind: Kind, scope: Scope, reason: str
    ) -> None:
        outcome, _ = self.answered(failed(status, code))
        assert (outcome.kind, outcome.scope, outcome.reason) == (kind, scope, reason)
        assert (outcome.code, outcome.http_status) == (code, status)

    def test_a_device_that_failed_in_a_success_is_gone(self) -> None:
        info = {"devices": 0, "failed": [f"{TOKEN}0"]}
        outcome, _ = self.answered(Answer(200, {**ACCEPTED, "info": info}))
        assert (outcome.kind, outcome.scope, outcome.reason) == (Kind.GONE, Scope.ADDRESS, "device_unregistered")

    def test_another_device_that_failed_is_not_ours(self) -> None:
        outcome, _ = self.answered(Answer(200, {**ACCEPTED, "info": {"devices": 1, "failed": ["another"]}}))
        assert outcome.kind is Kind.ACCEPTED

    @pytest.mark.parametrize(
        "body", [{}, {"success": True}, {"success": True, "id": ""}, {"success": False, "id": "1"}, {"id": 5}]
    )
    def test_a_success_that_does_not_say_so_is_no_answer(self, body: dict[str, Any]) -> None:
        outcome, _ = self.answered(Answer(200, body))
        assert (outcome.kind, outcome.reason) == (Kind.UNCERTAIN, "answer_garbled")

    @pytest.mark.parametrize("info", [None, [], "x", {"failed": None}, {"failed": "all"}])
    def test_a_success_with_odd_details_is_a_success(self, info: Any) -> None:
        outcome, _ = self.answered(Answer(200, {**ACCEPTED, "info": info}))
        assert outcome.kind is Kind.ACCEPTED

    def test_the_detail_names_neither_the_device_nor_the_key(self) -> None:
        outcome, _ = self.answered(failed(400, "INVALID_PARAM", f"{TOKEN}0 is no token of {KEY}"))
        assert outcome.detail == "... is no token of ..."


def _words(request: Request) -> str:
    data = request.json["data"]
    return " ".join((data["title"], data["message"], data["order"]))
