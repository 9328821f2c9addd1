"""JPush: what it is sent, what each of its documented answers means, and that a repeat is recognised."""

from __future__ import annotations

import asyncio
import base64
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from notifier.message import Address, Channel, Lane, Message, Platform, PushContent, PushOptions
from notifier.outcome import Kind, Outcome, Scope
from notifier.providers.base import Provider, Surroundings
from notifier.providers.carrier import Carrier
from notifier.providers.jpush import JPush, JPushSettings
from notifier.providers.registry import DEVICE_KINDS, provider_class
from tests.providers.conftest import Sandbox
from tests.providers.contract import TIMEOUT_S, HttpContract, ProviderContract, SandboxContract, World, run
from tests.providers.sink import Answer, HttpSink, Request, free_port

APP_KEY = "7d431e42dfa6a6d693ac2d04"
SECRET = "5e987ac6d2e04d95a9d8f0d1"
TOKEN = "1104a89792a1d9f3e4"


def accepted(request: Request) -> Answer:
    return Answer(200, {"sendno": "0", "msg_id": "18100287008546141"})


def failed(status: int, code: int, message: str = "refused", **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, {"error": {"code": code, "message": message}}, named)


@asynccontextmanager
async def jpush(
    answer: Callable[[Request], Answer] = accepted, tls: ssl.SSLContext | None = None, **settings: Any
) -> AsyncIterator[tuple[JPush, HttpSink]]:
    async with HttpSink(answer, tls) as sink, Carrier() as carrier:
        given = {"app_key": APP_KEY, "master_secret": SECRET, "base_url": sink.url, **settings}
        yield JPush(JPushSettings(**given), Surroundings(carrier)), sink


def send(
    message: Message, answer: Callable[[Request], Answer] = accepted, **settings: Any
) -> tuple[Outcome, list[Request]]:
    async def case() -> tuple[Outcome, list[Request]]:
        async with jpush(answer, **settings) as (provider, sink):
            (outcome,) = await provider.send([message])
            return outcome, sink.requests

    return run(case())


class TestJPush(ProviderContract, HttpContract, SandboxContract):
    secrets = (SECRET, base64.b64encode(f"{APP_KEY}:{SECRET}".encode()).decode())
    accepting = Answer(200, {"sendno": "0", "msg_id": "1"})
    throttling = failed(429, 2002)

    @classmethod
    def provider_class(cls) -> type[Provider]:
        return JPush

    @asynccontextmanager
    async def world(self) -> AsyncIterator[World]:
        async with jpush() as (provider, sink):
            yield World(
                provider,
                lambda fault: setattr(sink, "fault", fault),
                lambda: [_words(request) for request in sink.requests],
                lambda latency_s: setattr(sink, "latency_s", latency_s),
            )

    @asynccontextmanager
    async def nowhere(self) -> AsyncIterator[Provider]:
        async with Carrier() as carrier:
            settings = replace(self.settings(), base_url=f"http://127.0.0.1:{free_port()}")
            yield JPush(settings, Surroundings(carrier))

    @asynccontextmanager
    async def strangers(self) -> AsyncIterator[World]:
        async with jpush(lambda request: failed(401, 1004, "Authen failed")) as (provider, sink):
            yield World(provider, lambda fault: setattr(sink, "fault", fault), list)

    def address(self, n: int) -> Address:
        return Address(Channel.PUSH, f"{TOKEN}{n}", Platform.ANDROID_CN)

    def apple(self, **changes: Any) -> Message:
        return replace(self.message(), address=replace(self.address(0), platform=Platform.IOS, **changes))

    def content(self, text: str) -> PushContent:
        return PushContent(text, f"body {text}", PushOptions(data={"order": text}))

    def oversized(self) -> PushContent:
        return PushContent("title", "여" * 1400)

    def settings(self) -> JPushSettings:
        return JPushSettings(app_key=APP_KEY, master_secret=SECRET)

    def broken_settings(self) -> dict[str, Any]:
        good = self.settings()
        return {
            "app_key": replace(good, app_key=""),
            "master_secret": replace(good, master_secret=f"{SECRET} "),
            "base_url": replace(good, base_url="https://user:pw@api.jpush.cn"),
            "ca_file": replace(good, ca_file="/nowhere.pem"),
        }

    def answered(
        self, answer: Answer, *, tls: ssl.SSLContext | None = None, ca_file: str = ""
    ) -> tuple[Outcome, list[Request]]:
        async def case() -> tuple[Outcome, list[Request]]:
            async with jpush(lambda request: answer, tls, ca_file=ca_file) as (provider, sink):
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

    def sandbox_provider(self, sandbox: Sandbox, carrier: Carrier) -> JPush:
        settings = JPushSettings(
            app_key="5a0db0c50000000000000000", master_secret="sandbox-master-secret", base_url=sandbox.url
        )
        JPush.check(settings)
        return JPush(settings, Surroundings(carrier))

    def sandbox_message(self) -> Message:
        return replace(super().sandbox_message(), delivery_id=uuid4())

    def sandbox_recipients(self) -> list[tuple[Address, Kind, str]]:
        words = {
            "ok": (Kind.ACCEPTED, ""),
            "unregistered": (Kind.GONE, "device_unregistered"),
            "throttled": (Kind.THROTTLED, ""),
            "badtoken": (Kind.GONE, "bad_token"),
        }
        return [
            (Address(Channel.PUSH, f"sandbox-{word}-{uuid4()}", platform), kind, reason)
            for platform in (Platform.ANDROID_CN, Platform.ANDROID, Platform.IOS)
            for word, (kind, reason) in words.items()
        ]

    def test_a_message_whose_answer_was_lost_is_pushed_once_however_often_it_is_sent(self, sandbox: Sandbox) -> None:
        address = Address(Channel.PUSH, f"sandbox-ok-{uuid4()}", Platform.ANDROID_CN)
        message = replace(self.sandbox_message(), address=address)

        async def case() -> list[Outcome]:
            async with Carrier() as carrier, Carrier() as other:
                await asyncio.to_thread(sandbox.fault, "jpush", "reset_after", count=1)
                try:
                    first = await self.sandbox_provider(sandbox, carrier).send([replace(message, timeout_s=TIMEOUT_S)])
                finally:
                    await asyncio.to_thread(sandbox.calm)
                again = [
                    await self.sandbox_provider(sandbox, other).send([replace(message, claim_no=number)])
                    for number in (3, 4)
                ]
                return [outcome for batch in (first, *again) for outcome in batch]

        lost, second, third = run(case())
        assert [one.kind for one in (lost, second, third)] == [Kind.UNCERTAIN, Kind.ACCEPTED, Kind.ACCEPTED]
        assert second.provider_ref == third.provider_ref != ""
        ids = [entry["delivery_id"] for entry in sandbox.inbox("jpush")]
        assert ids.count(str(message.delivery_id)) == 1

    # --- What it is sent ---------------------------------------------------------------------------------------

    def test_the_request_is_the_documented_one(self) -> None:
        options = PushOptions(
            badge=120,
            sound="ping",
            image="https://example.com/a.png",
            deep_link="app://orders/1",
            ttl_s=600,
            thread_id="orders",
            interruption_level="time_sensitive",
            data={"order": "A-1"},
        )
        message = replace(self.message(), content=PushContent("Title", "Body", options))
        outcome, (request,) = send(message, android_channel_id="orders")
        assert (outcome.kind, outcome.provider_ref) == (Kind.ACCEPTED, "18100287008546141")
        assert (request.method, request.path) == ("POST", "/v3/push")
        assert request.headers["authorization"] == f"Basic {self.secrets[1]}"
        assert request.headers["content-type"] == "application/json"
        assert request.json == {
            "platform": ["android"],
            "audience": {"registration_id": [f"{TOKEN}0"]},
            "notification": {
                "android": {
                    "title": "Title",
                    "alert": "Body",
                    "sound": "ping",
                    "badge_set_num": 99,
                    "style": 3,
                    "big_pic_path": "https://example.com/a.png",
                    "priority": 1,
                    "channel_id": "orders",
                    "extras": {"order": "A-1", "n_id": str(message.delivery_id), "deep_link": "app://orders/1"},
                }
            },
            "options": {"time_to_live": 600, "classification": 1},
            "cid": f"{APP_KEY}-{message.delivery_id}",
        }

    def test_an_iphone_gets_what_it_knows(self) -> None:
        options = PushOptions(
            badge=3,
            sound="ping.aiff",
            image="https://example.com/a.png",
            thread_id="orders",
            interruption_level="time_sensitive",
        )
        message = replace(self.apple(), content=PushContent("Title", "Body", options))
        _, (request,) = send(message)
        assert request.json["platform"] == ["ios"]
        assert request.json["notification"] == {
            "ios": {
                "alert": {"title": "Title", "body": "Body"},
                "badge": 3,
                "sound": "ping.aiff",
                "thread-id": "orders",
                "interruption-level": "time-sensitive",
                "mutable-content": True,
                "extras": {"n_id": str(message.delivery_id), "image": "https://example.com/a.png"},
            }
        }
        assert request.json["options"]["apns_collapse_id"] == "key-0"

    def test_the_apple_environment_is_the_devices_or_else_the_accounts(self) -> None:
        def is_production(environment: str, **settings: Any) -> bool:
            _, (request,) = send(self.apple(apns_environment=environment), **settings)
            found: bool = request.json["options"]["apns_production"]
            return found

        assert is_production("") and is_production("production")
        assert not is_production("sandbox")
        assert not is_production("", apns_production=False)

    def test_a_silent_message_shows_nothing(self) -> None:
        silent = PushContent("Title", "Body", PushOptions(silent=True, data={"order": "A-1"}))
        _, (android,) = send(replace(self.message(), content=silent))
        assert "notification" not in android.json
        assert android.json["message"]["extras"]["order"] == "A-1"
        _, (apple,) = send(replace(self.apple(), content=silent))
        ios = apple.json["notification"]["ios"]
        assert (ios["alert"], ios["content-available"], ios["extras"]["order"]) == ("", True, "A-1")

    def test_bulk_is_declared_as_marketing_and_nothing_else_is(self) -> None:
        found = {}
        for lane in Lane:
            _, (request,) = send(replace(self.message(), lane=lane))
            found[lane] = request.json["options"]["classification"]
        assert found == {Lane.CRITICAL: 1, Lane.NORMAL: 1, Lane.BULK: 0}

    @pytest.mark.parametrize(("left_s", "told_s"), [(3600, 3600), (10**8, 864_000), (-5, 0)])
    def test_it_is_kept_no_longer_than_it_is_worth_or_may_be(self, left_s: int, told_s: int) -> None:
        _, (request,) = send(replace(self.message(), expires_at=time.time() + left_s))
        assert told_s - 5 <= request.json["options"]["time_to_live"] <= told_s

    def test_every_try_of_a_delivery_has_its_cid_and_every_delivery_its_own(self) -> None:
        first, second = self.message(0), self.message(1)
        cids = [send(one)[1][0].json["cid"] for one in (first, replace(first, claim_no=9), second)]
        assert cids[0] == cids[1] != cids[2]

    def test_the_cid_can_be_left_out(self) -> None:
        _, (request,) = send(self.message(), deduplicate=False)
        assert "cid" not in request.json

    def test_what_fits_is_sent_and_one_byte_more_is_not(self) -> None:
        def sized(length: int) -> Outcome:
            return send(replace(self.message(), content=PushContent("t", "x" * length)))[0]

        _, (request,) = send(replace(self.message(), content=PushContent("t", "x")))
        overhead = len(request.body.partition(b'"notification":')[2].partition(b',"options"')[0]) - 1
        assert sized(4000 - overhead).kind is Kind.ACCEPTED
        assert sized(4001 - overhead).reason == "payload_too_large"

    def test_it_serves_the_platforms_whose_devices_may_name_it(self) -> None:
        named = {f"push:{platform}" for platform, kinds in DEVICE_KINDS.items() if "jpush" in kinds}
        assert provider_class("jpush").serves == named

    # --- What its answers mean ---------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("status", "code", "kind", "scope", "reason"),
        [
            (500, 1000, Kind.UNAVAILABLE, Scope.ACCOUNT, ""),
            (405, 1001, Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            (400, 1002, Kind.REJECTED, Scope.MESSAGE, "rejected_content"),
            (400, 1003, Kind.REJECTED, Scope.MESSAGE, "rejected_content"),
            (401, 1004, Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            (400, 1005, Kind.REJECTED, Scope.MESSAGE, "payload_too_large"),
            (400, 1008, Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            (400, 1011, Kind.GONE, Scope.ADDRESS, "device_unregistered"),
            (400, 1012, Kind.REJECTED, Scope.MESSAGE, "rejected_content"),
            (400, 1014, Kind.REJECTED, Scope.MESSAGE, "rejected_content"),
            (404, 1020, Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            (503, 1030, Kind.UNCERTAIN, Scope.ACCOUNT, "answer_lost"),
            (429, 2002, Kind.THROTTLED, Scope.ACCOUNT, ""),
            (403, 2003, Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
        ],
    )
    def test_each_documented_code_has_its_meaning(
        self, status: int, code: int, kind: Kind, scope: Scope, reason: str
    ) -> None:
        outcome, _ = self.answered(failed(status, code))
        assert (outcome.kind, outcome.scope, outcome.reason) == (kind, scope, reason)
        assert (outcome.code, outcome.http_status) == (str(code), status)

    @pytest.mark.parametrize(
        ("status", "kind", "scope"),
        [
            (400, Kind.REJECTED, Scope.MESSAGE),
            (401, Kind.MISCONFIGURED, Scope.ACCOUNT),
            (404, Kind.MISCONFIGURED, Scope.ACCOUNT),
            (410, Kind.MISCONFIGURED, Scope.ACCOUNT),
            (429, Kind.THROTTLED, Scope.ACCOUNT),
            (500, Kind.UNCERTAIN, Scope.ACCOUNT),
            (502, Kind.UNCERTAIN, Scope.ACCOUNT),
            (503, Kind.UNAVAILABLE, Scope.ACCOUNT),
            (504, Kind.UNCERTAIN, Scope.ACCOUNT),
        ],
    )
    def test_a_status_without_a_code_says_what_it_can(self, status: int, kind: Kind, scope: Scope) -> None:
        for body in ("<html>", '{"error": null}', '{"error": {"code": 9999}}'):
            outcome, _ = self.answered(Answer(status, body))
            assert (outcome.kind, outcome.scope) == (kind, scope)

    def test_a_device_id_that_is_none_is_told_apart_from_other_wrong_values(self) -> None:
        outcome, _ = self.answered(failed(400, 1003, "The registration_id value is invalid"))
        assert (outcome.kind, outcome.scope, outcome.reason) == (Kind.GONE, Scope.ADDRESS, "bad_token")

    def test_a_cid_that_is_not_taken_is_the_accounts_matter_and_costs_no_message(self) -> None:
        outcome, _ = self.answered(failed(400, 1003, "The cid value is invalid"))
        assert (outcome.kind, outcome.scope) == (Kind.MISCONFIGURED, Scope.ACCOUNT)

    @pytest.mark.parametrize(("reset", "meant"), [("23", 23.0), ("0", 1.0), ("99999", 3600.0), ("soon", None)])
    def test_the_quotas_own_header_says_how_long_to_wait(self, reset: str, meant: float | None) -> None:
        outcome, _ = self.answered(failed(429, 2002, X_Rate_Limit_Reset=reset))
        assert (outcome.kind, outcome.retry_after_s) == (Kind.THROTTLED, meant)

    @pytest.mark.parametrize("body", [{}, {"msg_id": None}, {"msg_id": ""}, {"msg_id": ["1"]}, {"sendno": "0"}])
    def test_a_success_without_an_id_is_no_answer(self, body: dict[str, Any]) -> None:
        outcome, _ = self.answered(Answer(200, body))
        assert (outcome.kind, outcome.reason) == (Kind.UNCERTAIN, "answer_garbled")

    def test_the_detail_names_neither_the_device_nor_the_key(self) -> None:
        outcome, _ = self.answered(failed(400, 1011, f"no user {TOKEN}0 for {APP_KEY}"))
        assert outcome.detail == "no user ... for ..."


def _words(request: Request) -> str:
    shown = request.json["notification"]["android"]
    return " ".join((shown["title"], shown["alert"], shown["extras"]["order"]))
