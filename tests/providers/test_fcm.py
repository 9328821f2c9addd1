"""FCM: what it is sent, and what each of its documented answers means."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from notifier.message import Address, Channel, Content, Message, Platform, PushContent, PushOptions
from notifier.outcome import Kind, Outcome, Scope
from notifier.providers.base import Provider, Surroundings
from notifier.providers.carrier import Carrier
from notifier.providers.fcm import Fcm, FcmSettings
from tests.providers.conftest import Sandbox
from tests.providers.contract import DELIVERY_ID, HttpContract, ProviderContract, SandboxContract, World, run
from tests.providers.sink import Answer, HttpSink, Request, free_port

PRIVATE = rsa.generate_private_key(public_exponent=65537, key_size=2048)
KEY = PRIVATE.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()
KEY_LINE = KEY.splitlines()[3]
BEARER = "ya29.bearer-token-of-no-value"
TOKEN = "sandbox-ok-" + "fGk3" * 30


def service_account(token_uri: str, **changes: str) -> str:
    account = {
        "type": "service_account",
        "project_id": "shop",
        "private_key_id": "1",
        "private_key": KEY,
        "client_email": "push@shop.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": token_uri,
    }
    return json.dumps(account | changes)


def accepted(request: Request) -> Answer:
    return Answer(200, {"name": "projects/shop/messages/0:1500415314455276%31bd1c9631bd1c96"})


def failed(
    status: int, code: str = "", rpc: str = "", message: str = "refused", details: Any = None, **headers: str
) -> Answer:
    kind = {"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code}
    error = {"code": status, "message": message, "status": rpc, "details": details or ([kind] if code else [])}
    return Answer(status, {"error": error}, {name.replace("_", "-"): value for name, value in headers.items()})


def issued(expires_in_s: int = 3600, token: str = BEARER) -> Callable[[Request], Answer]:
    return lambda request: Answer(200, {"access_token": token, "expires_in": expires_in_s, "token_type": "Bearer"})


@asynccontextmanager
async def fcm(
    answer: Callable[[Request], Answer] = accepted, tls: ssl.SSLContext | None = None, **settings: Any
) -> AsyncIterator[tuple[Fcm, HttpSink]]:
    async with HttpSink(answer, tls) as sink, Carrier() as carrier:
        sink.aside["/token"] = issued()
        made = Fcm(
            FcmSettings(service_account=service_account(f"{sink.url}/token"), base_url=sink.url, **settings),
            Surroundings(carrier),
        )
        yield made, sink
        await made.aclose()


def send(
    message: Message, answer: Callable[[Request], Answer] = accepted, **settings: Any
) -> tuple[Outcome, list[Request]]:
    async def case() -> tuple[Outcome, list[Request]]:
        async with fcm(answer, **settings) as (provider, sink):
            (outcome,) = await provider.send([message])
            return outcome, sink.requests

    return run(case())


class TestFcm(ProviderContract, HttpContract, SandboxContract):
    secrets = (KEY_LINE, BEARER)
    accepting = Answer(200, {"name": "projects/shop/messages/0:1"})
    throttling = Answer(429, {"error": {"status": "RESOURCE_EXHAUSTED"}})
    waits_s = 60.0

    @classmethod
    def provider_class(cls) -> type[Provider]:
        return Fcm

    @asynccontextmanager
    async def world(self) -> AsyncIterator[World]:
        async with fcm() as (provider, sink):

            def set_latency(latency_s: float) -> None:
                sink.latency_s = latency_s

            yield World(
                provider,
                lambda fault: setattr(sink, "fault", fault),
                lambda: [_words(request) for request in sink.requests],
                set_latency,
            )

    @asynccontextmanager
    async def nowhere(self) -> AsyncIterator[Provider]:
        async with fcm() as (good, sink), Carrier() as carrier:
            settings = replace(good.settings, base_url=f"http://127.0.0.1:{free_port()}")
            provider = Fcm(settings, Surroundings(carrier))
            yield provider
            await provider.aclose()

    @asynccontextmanager
    async def strangers(self) -> AsyncIterator[World]:
        async with fcm(lambda request: failed(401, rpc="UNAUTHENTICATED")) as (provider, sink):
            yield World(provider, lambda fault: setattr(sink, "fault", fault), list)

    def address(self, n: int) -> Address:
        return Address(Channel.PUSH, f"{TOKEN}{n}", Platform.ANDROID, token_kind="fcm_token")

    def content(self, text: str) -> Content:
        return PushContent(text, f"body {text}", PushOptions(data={"order": text}))

    def oversized(self) -> Content:
        return PushContent("title", "여" * 1400)

    def settings(self) -> FcmSettings:
        return FcmSettings(service_account=service_account("https://oauth2.googleapis.com/token"))

    def broken_settings(self) -> dict[str, Any]:
        good = self.settings()
        return {
            "service_account": replace(good, service_account=""),
            "base_url": replace(good, base_url="https://user:pw@fcm.googleapis.com"),
            "ca_file": replace(good, ca_file="/nowhere.pem"),
            "project_id": replace(good, service_account=service_account("https://x/token", project_id="")),
        }

    def answered(
        self, answer: Answer, *, tls: ssl.SSLContext | None = None, ca_file: str = ""
    ) -> tuple[Outcome, list[Request]]:
        async def case() -> tuple[Outcome, list[Request]]:
            async with fcm(lambda request: answer, tls, ca_file=ca_file) as (provider, sink):
                (outcome,) = await provider.send([self.message()])
                return outcome, sink.requests

        return run(case())

    @pytest.mark.parametrize("account", ["{", "[]", '{"type": "service_account"}', '{"type": "authorized_user"}'])
    def test_what_is_no_service_account_is_said_to_be_none(self, account: str) -> None:
        broken = {"service_account": replace(self.settings(), service_account=account)}
        self.broken_settings = lambda: broken  # type: ignore[method-assign]
        self.test_settings_that_work_pass_and_others_are_named()

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

    def sandbox_provider(self, sandbox: Sandbox, carrier: Carrier) -> Fcm:
        account = (sandbox.keys / "fcm-service-account.json").read_text()
        settings = FcmSettings(service_account=account, base_url=sandbox.url)
        Fcm.check(settings)
        return Fcm(settings, Surroundings(carrier))

    def sandbox_recipients(self) -> list[tuple[Address, Kind, str]]:
        words = {
            "ok": (Kind.ACCEPTED, ""),
            "unregistered": (Kind.GONE, "device_unregistered"),
            "throttled": (Kind.THROTTLED, ""),
            "badtoken": (Kind.GONE, "bad_token"),
        }
        return [
            (replace(self.address(0), value=f"sandbox-{word}-{uuid4()}"), kind, reason)
            for word, (kind, reason) in words.items()
        ]

    # --- What it is sent --------------------------------------------------------------------------------------

    def test_the_request_is_the_documented_one(self) -> None:
        options = PushOptions(
            badge=3, sound="ping", image="https://x/i.png", deep_link="shop://1", ttl_s=60, data={"a": "b"},
            interruption_level="time_sensitive", priority="normal",
        )  # fmt: skip
        message = replace(self.message(), content=PushContent("Title", "Body", options))
        _, (request,) = send(message, android_channel_id="orders")
        assert request.path == "/v1/projects/shop/messages:send"
        assert request.headers["authorization"] == f"Bearer {BEARER}"
        assert request.json == {
            "message": {
                "token": message.address.value,
                "notification": {"title": "Title", "body": "Body", "image": "https://x/i.png"},
                "data": {"a": "b", "n_id": str(DELIVERY_ID), "deep_link": "shop://1"},
                "android": {
                    "collapse_key": "key-0",
                    "priority": "normal",
                    "ttl": "60s",
                    "notification": {
                        "tag": "key-0",
                        "sound": "ping",
                        "notification_count": 3,
                        "channel_id": "orders",
                        "notification_priority": "PRIORITY_HIGH",
                    },
                },
            }
        }

    def test_a_silent_push_is_data_alone(self) -> None:
        content = PushContent("Title", "Body", PushOptions(silent=True, data={"sync": "1"}))
        _, (request,) = send(replace(self.message(), content=content))
        assert "notification" not in request.json["message"]
        assert "notification" not in request.json["message"]["android"]
        assert request.json["message"]["data"]["sync"] == "1"

    def test_an_installation_id_is_addressed_as_one(self) -> None:
        address = replace(self.address(0), token_kind="fcm_fid")
        _, (request,) = send(replace(self.message(), address=address))
        assert request.json["message"]["fid"] == address.value
        assert "token" not in request.json["message"]

    def test_it_lives_no_longer_than_the_message(self) -> None:
        ttl = [
            send(
                replace(
                    self.message(),
                    expires_at=time.time() + left_s,
                    content=PushContent("a", "b", PushOptions(ttl_s=asked)),
                )
            )[1][0].json["message"]["android"]["ttl"]
            for left_s, asked in ((100.5, None), (100.5, 900), (100.5, 5), (9_000_000, None), (-5, None))
        ]
        assert ttl == ["100s", "100s", "5s", "2419200s", "0s"]

    def test_a_collapse_id_made_from_the_delivery_is_a_tag_and_no_collapse_key(self) -> None:
        for derived in (str(DELIVERY_ID), DELIVERY_ID.hex, f"n-{DELIVERY_ID}"):
            _, (request,) = send(replace(self.message(), collapse_id=derived))
            android = request.json["message"]["android"]
            assert "collapse_key" not in android
            assert android["notification"]["tag"] == derived

    def test_a_caller_cannot_pose_as_another_delivery(self) -> None:
        content = PushContent("a", "b", PushOptions(data={"n_id": "other"}))
        _, (request,) = send(replace(self.message(), content=content))
        assert request.json["message"]["data"]["n_id"] == str(DELIVERY_ID)

    @pytest.mark.parametrize("key", ["from", "message_type", "notification", "google.sent_time", "gcm.n.e"])
    def test_a_key_that_fcm_keeps_for_itself_is_refused_by_name(self, key: str) -> None:
        content = PushContent("a", "b", PushOptions(data={key: "1"}))
        outcome, requests = send(replace(self.message(), content=content))
        assert (outcome.kind, outcome.reason) == (Kind.REJECTED, "rejected_content")
        assert key in outcome.detail
        assert requests == []

    def test_the_limit_counts_bytes_of_utf8_and_not_the_token(self) -> None:
        korean = replace(self.message(), content=PushContent("제목", "가" * 1150))  # 3,450 bytes; as \\uXXXX 6,900
        assert send(korean)[0].kind is Kind.ACCEPTED
        long_token = replace(self.message(), address=replace(self.address(0), value="t" * 4096))
        assert send(long_token)[0].kind is Kind.ACCEPTED

    def test_validate_only_asks_fcm_to_deliver_nothing(self) -> None:
        assert send(self.message(), validate_only=True)[1][0].json["validate_only"] is True

    def test_the_sdk_does_not_warn_of_each_token(self, recwarn: pytest.WarningsRecorder) -> None:
        send(self.message())
        assert [str(warning.message) for warning in recwarn if "token" in str(warning.message)] == []

    # --- What it answers --------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "answer, kind, scope, reason",
        [
            (failed(404, "UNREGISTERED", "NOT_FOUND"), Kind.GONE, Scope.ADDRESS, "device_unregistered"),
            (
                failed(
                    400,
                    rpc="INVALID_ARGUMENT",
                    details=[
                        {
                            "@type": "type.googleapis.com/google.rpc.BadRequest",
                            "fieldViolations": [{"field": "message.token"}],
                        }
                    ],
                ),
                Kind.GONE,
                Scope.ADDRESS,
                "bad_token",
            ),
            (
                failed(
                    400,
                    "INVALID_ARGUMENT",
                    "INVALID_ARGUMENT",
                    "The registration token is not a valid FCM registration token",
                ),
                Kind.GONE,
                Scope.ADDRESS,
                "bad_token",
            ),
            (
                failed(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT", "Message too big"),
                Kind.REJECTED,
                Scope.MESSAGE,
                "rejected_content",
            ),
            (failed(400, rpc="INVALID_ARGUMENT", message="bad ttl"), Kind.REJECTED, Scope.MESSAGE, "rejected_content"),
            (failed(403, "SENDER_ID_MISMATCH", "PERMISSION_DENIED"), Kind.MISCONFIGURED, Scope.ADDRESS, ""),
            (failed(401, "THIRD_PARTY_AUTH_ERROR", "UNAUTHENTICATED"), Kind.MISCONFIGURED, Scope.SENDER, ""),
            (failed(401, "APNS_AUTH_ERROR", "UNAUTHENTICATED"), Kind.MISCONFIGURED, Scope.SENDER, ""),
            (failed(401, rpc="UNAUTHENTICATED"), Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            (failed(403, rpc="PERMISSION_DENIED"), Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            (
                failed(404, rpc="NOT_FOUND", message="Requested entity was not found."),
                Kind.MISCONFIGURED,
                Scope.ACCOUNT,
                "",
            ),
            (Answer(404, "<html>"), Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            (failed(429, "QUOTA_EXCEEDED", "RESOURCE_EXHAUSTED"), Kind.THROTTLED, Scope.ACCOUNT, ""),
            (
                failed(429, "QUOTA_EXCEEDED", "RESOURCE_EXHAUSTED", "Device message rate exceeded"),
                Kind.THROTTLED,
                Scope.ADDRESS,
                "",
            ),
            (failed(500, "INTERNAL", "INTERNAL"), Kind.UNAVAILABLE, Scope.ACCOUNT, ""),
            (failed(503, "UNAVAILABLE", "UNAVAILABLE"), Kind.UNAVAILABLE, Scope.ACCOUNT, ""),
            (failed(504, "UNAVAILABLE", "UNAVAILABLE"), Kind.UNAVAILABLE, Scope.ACCOUNT, ""),
            (Answer(500), Kind.UNAVAILABLE, Scope.ACCOUNT, ""),
            (Answer(502, "<html>Bad Gateway</html>"), Kind.UNAVAILABLE, Scope.ACCOUNT, ""),
            (Answer(503), Kind.UNAVAILABLE, Scope.ACCOUNT, ""),
            (Answer(504), Kind.UNCERTAIN, Scope.ACCOUNT, "answer_lost"),
            (Answer(200, "{}"), Kind.UNCERTAIN, Scope.ACCOUNT, "answer_garbled"),
            (Answer(200, '{"name": 7}'), Kind.UNCERTAIN, Scope.ACCOUNT, "answer_garbled"),
            (Answer(200, "[" * 60_000), Kind.UNCERTAIN, Scope.ACCOUNT, "answer_garbled"),
            (Answer(302, "", {"Location": "http://127.0.0.1:1/"}), Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
            (failed(400, "NEVER_HEARD_OF", "NOR_THIS"), Kind.REJECTED, Scope.MESSAGE, "rejected"),
            (Answer(400, '{"error": "text"}'), Kind.REJECTED, Scope.MESSAGE, "rejected"),
            (
                Answer(400, '{"error": {"details": [1, {"fieldViolations": 2}]}}'),
                Kind.REJECTED,
                Scope.MESSAGE,
                "rejected",
            ),
        ],
    )
    def test_a_documented_answer_has_its_meaning(self, answer: Answer, kind: Kind, scope: Scope, reason: str) -> None:
        outcome, _ = send(self.message(), lambda request: answer)
        assert (outcome.kind, outcome.scope, outcome.reason) == (kind, scope, reason)
        assert outcome.http_status == answer.status

    def test_one_requests_answer_is_no_anothers(self) -> None:
        def by_token(request: Request) -> Answer:
            gone = request.json["message"]["token"].endswith("1")
            return failed(404, "UNREGISTERED", "NOT_FOUND") if gone else accepted(request)

        async def case() -> list[Kind]:
            async with fcm(by_token) as (provider, _):
                return [outcome.kind for outcome in await provider.send([self.message(n) for n in range(3)])]

        assert run(case()) == [Kind.ACCEPTED, Kind.GONE, Kind.ACCEPTED]

    def test_unavailable_says_how_long(self) -> None:
        answer = failed(503, "UNAVAILABLE", "UNAVAILABLE", Retry_After="30")
        assert send(self.message(), lambda request: answer)[0].retry_after_s == 30

    # --- The token --------------------------------------------------------------------------------------------

    def test_one_token_serves_all_and_is_asked_for_as_google_documents(self) -> None:
        asked: list[Request] = []

        async def case() -> None:
            async with fcm() as (provider, sink):
                sink.aside["/token"] = lambda request: asked.append(request) or issued()(request)  # type: ignore[func-returns-value]
                await provider.send([self.message(n) for n in range(20)])
                await provider.send([self.message(n) for n in range(20)])
                assert len(sink.requests) == 40

        run(case())
        (request,) = asked
        assertion = request.body.decode().partition("assertion=")[2].partition("&")[0]
        claims = jwt.decode(assertion, PRIVATE.public_key(), algorithms=["RS256"], options={"verify_aud": False})
        assert claims["scope"] == "https://www.googleapis.com/auth/firebase.messaging"
        assert claims["iss"] == "push@shop.iam.gserviceaccount.com"

    def test_a_token_refused_is_renewed_once_and_the_message_sent(self) -> None:
        def only_the_second(request: Request) -> Answer:
            good = request.headers["authorization"] == "Bearer second"
            return accepted(request) if good else failed(401, rpc="UNAUTHENTICATED")

        async def case() -> tuple[list[Kind], int]:
            async with fcm(only_the_second) as (provider, sink):
                tokens = iter(["first", "second", "third"])
                sink.aside["/token"] = lambda request: issued(token=next(tokens))(request)
                outcomes = await provider.send([self.message(n) for n in range(10)])
                return [outcome.kind for outcome in outcomes], len(sink.requests)

        kinds, requests = run(case())
        assert kinds == [Kind.ACCEPTED] * 10
        assert requests == 20

    def test_a_token_refused_for_good_does_not_storm_google(self) -> None:
        asked: list[Request] = []

        async def case() -> set[Kind]:
            async with fcm(lambda request: failed(401, rpc="UNAUTHENTICATED")) as (provider, sink):
                sink.aside["/token"] = lambda request: asked.append(request) or issued(token=f"t{len(asked)}")(request)  # type: ignore[func-returns-value]
                batches = [await provider.send([self.message(n) for n in range(10)]) for _ in range(3)]
                return {outcome.kind for batch in batches for outcome in batch}

        assert run(case()) == {Kind.MISCONFIGURED}
        assert len(asked) <= 2

    @pytest.mark.parametrize(
        "answer, kind",
        [
            (
                Answer(400, {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}),
                Kind.MISCONFIGURED,
            ),
            (Answer(401, {"error": "invalid_client"}), Kind.MISCONFIGURED),
            (Answer(200, "<html>"), Kind.UNAVAILABLE),
            (Answer(404, "<html>"), Kind.UNAVAILABLE),
        ],
    )
    def test_a_token_server_that_gives_none_sends_nothing(self, answer: Answer, kind: Kind) -> None:
        async def case() -> tuple[Outcome, int]:
            async with fcm() as (provider, sink):
                sink.aside["/token"] = lambda request: answer
                (outcome,) = await provider.send([self.message()])
                return outcome, len(sink.requests)

        outcome, requests = run(case())
        assert (outcome.kind, outcome.scope) == (kind, Scope.ACCOUNT)
        assert requests == 0

    def test_googles_reason_for_giving_no_token_is_kept(self) -> None:
        async def case() -> Outcome:
            async with fcm() as (provider, sink):
                refused = {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
                sink.aside["/token"] = lambda request: Answer(400, refused)
                return (await provider.send([self.message()]))[0]

        outcome = run(case())
        assert (outcome.code, outcome.detail) == ("invalid_grant", "no token: Invalid JWT Signature.")

    def test_a_token_server_that_is_away_is_known_not_sent(self) -> None:
        async def case() -> Outcome:
            async with Carrier() as carrier:
                account = service_account(f"http://127.0.0.1:{free_port()}/token")
                provider = Fcm(FcmSettings(service_account=account), Surroundings(carrier))
                (outcome,) = await provider.send([self.message(timeout_s=1.0)])
                await provider.aclose()
                return outcome

        outcome = run(case())
        assert (outcome.kind, outcome.scope) == (Kind.UNAVAILABLE, Scope.ACCOUNT)

    def test_a_token_near_its_end_is_used_while_the_next_is_fetched(self) -> None:
        async def case() -> list[str]:
            async with fcm() as (provider, sink):
                tokens = iter([(100, "old"), (3600, "new")])  # google-auth calls 100 s "stale"
                sink.aside["/token"] = lambda request: issued(*next(tokens))(request)
                await provider.send([self.message()])
                await provider.send([self.message()])
                await asyncio.sleep(0.3)
                await provider.send([self.message()])
                return [request.headers["authorization"] for request in sink.requests]

        assert run(case()) == ["Bearer old", "Bearer old", "Bearer new"]


def _words(request: Request) -> str:
    message = request.json["message"]
    notification = message["notification"]
    return " ".join((notification["title"], notification["body"], message["data"]["order"]))
