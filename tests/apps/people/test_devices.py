"""Devices: what may be registered, who owns it, and when it is retired."""

from __future__ import annotations

import base64
import threading
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection
from django.utils import timezone

from apps.people import services
from apps.people.devices import RAW_DEVICE
from apps.people.hashing import hash_address, hash_token
from apps.people.models import Change, Device
from apps.rest.validation import Errors
from notifier.message import Channel, Platform
from tests.apps.rest.callers import Api, assert_problem, pointers

APPLE = "5a0db0c50200aaaabbbbccccddddeeeeffff00001111222233334444555566ab"
P256DH = base64.urlsafe_b64encode(b"\x04" + bytes(64)).decode().rstrip("=")
AUTH = base64.urlsafe_b64encode(bytes(16)).decode().rstrip("=")


def web(endpoint: str = "https://push.sandbox.invalid/sandbox-ok-1", p256dh: str = P256DH, auth: str = AUTH) -> Any:
    return {"platform": "web", "token": {"endpoint": endpoint, "keys": {"p256dh": p256dh, "auth": auth}}}


@pytest.fixture
def ada(api: Api) -> Api:
    assert api.put("/v1/users/ada", {}).status_code == 201
    assert api.put("/v1/users/bob", {}).status_code == 201
    return api


def test_a_device_is_registered_and_its_token_never_shown(ada: Api) -> None:
    sent = {
        "platform": "ios",
        "token": APPLE,
        "app_id": "com.example.shop",
        "apns_environment": "production",
        "app_version": "3.2.0",
        "locale": "de",
    }
    answer = ada.post("/v1/users/ada/devices", sent)
    assert answer.status_code == 201
    body = answer.json()
    assert (body["user_id"], body["platform"], body["provider"], body["status"], body["reason"]) == (
        "ada",
        "ios",
        "apns",
        "active",
        None,
    )
    assert body["token"] == "...66ab"
    assert APPLE not in answer.content.decode()
    assert APPLE not in ada.get("/v1/users/ada").content.decode()
    assert ada.get("/v1/users/ada/devices").json()["data"] == [body]
    assert ada.get("/v1/users/ada").json()["devices"] == [body]
    assert Device.objects.get().is_sandbox


@pytest.mark.parametrize(
    ("device", "provider", "is_sandbox"),
    [
        ({"platform": "ios", "token": "AB" * 32}, "apns", False),
        ({"platform": "ios", "token": "ab" * 100}, "apns", False),
        ({"platform": "macos", "token": APPLE.upper()}, "apns", True),
        ({"platform": "ios", "token": "sandbox-ok-9", "provider": "pushy"}, "pushy", True),
        ({"platform": "ios", "token": "a1b2c3", "provider": "jpush"}, "jpush", False),
        ({"platform": "android", "token": "x:" + "y" * 4094}, "fcm", False),
        ({"platform": "android", "token": "abc", "token_kind": "fcm_fid"}, "fcm", False),
        ({"platform": "android", "token": "sandbox-badtoken-1", "provider": "jpush"}, "jpush", True),
        ({"platform": "android_cn", "token": "sandbox-ok-1"}, "jpush", True),
        (web(), "webpush", True),
        (web("https://updates.push.services.mozilla.com/wpush/v2/abc"), "webpush", False),
        (web("https://wns2-par02p.notify.windows.com/w/?token=a"), "webpush", False),
        (web(p256dh=P256DH + "=", auth=AUTH + "=="), "webpush", True),
    ],
)
def test_each_platform_takes_its_own_tokens(ada: Api, device: Any, provider: str, is_sandbox: bool) -> None:
    answer = ada.post("/v1/users/ada/devices", device)
    assert answer.status_code == 201, answer.content
    assert answer.json()["provider"] == provider
    assert Device.objects.get().is_sandbox is is_sandbox


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ({}, [("/platform", "required"), ("/token", "required")]),
        ({"platform": "windows", "token": "x"}, [("/platform", "not_allowed")]),
        ({"platform": "ios", "token": "zz" * 32}, [("/token", "invalid_token")]),
        ({"platform": "ios", "token": "ab" * 31}, [("/token", "invalid_token")]),
        ({"platform": "ios", "token": "ab" * 101}, [("/token", "invalid_token")]),
        ({"platform": "ios", "token": {}}, [("/token", "wrong_type")]),
        ({"platform": "ios", "token": APPLE, "token_kind": "fcm_fid"}, [("/token_kind", "not_allowed")]),
        ({"platform": "ios", "token": APPLE, "provider": "fcm"}, [("/provider", "not_allowed")]),
        ({"platform": "macos", "token": APPLE, "provider": "jpush"}, [("/provider", "not_allowed")]),
        ({"platform": "android_cn", "token": "abc", "provider": "fcm"}, [("/provider", "not_allowed")]),
        ({"platform": "android_cn", "token": "x" * 256}, [("/token", "too_long")]),
        ({"platform": "android", "token": "x" * 4097}, [("/token", "too_long")]),
        ({"platform": "android", "token": "a b"}, [("/token", "invalid_token")]),
        ({"platform": "android", "token": "é"}, [("/token", "invalid_token")]),
        ({"platform": "android", "token": ""}, [("/token", "too_short")]),
        ({"platform": "android", "token": 5}, [("/token", "wrong_type")]),
        ({"platform": "web", "token": "x"}, [("/token", "wrong_type")]),
        ({"platform": "web", "token": {"endpoint": "x"}}, [("/token/keys", "required")]),
        ({"platform": "web", "token": {**web()["token"], "y": 1}}, [("/token/y", "unknown_field")]),
        (web("https://evil.example/x"), [("/token/endpoint", "invalid_url")]),
        (web("http://fcm.googleapis.com/x"), [("/token/endpoint", "invalid_url")]),
        (web("https://fcm.googleapis.com.evil.example/x"), [("/token/endpoint", "invalid_url")]),
        (web("https://fcm.googleapis.com@evil.example/x"), [("/token/endpoint", "invalid_url")]),
        (web("https://evilpush.apple.com/x"), [("/token/endpoint", "invalid_url")]),
        (web(p256dh="AAAA"), [("/token/keys/p256dh", "invalid_token")]),
        (web(auth="????"), [("/token/keys/auth", "invalid_token")]),
        (web(p256dh=base64.urlsafe_b64encode(bytes(65)).decode()), [("/token/keys/p256dh", "invalid_token")]),
        ({"platform": "ios", "token": APPLE, "locale": 3}, [("/locale", "wrong_type")]),
        ({"platform": "ios", "token": APPLE, "x": 1}, [("/x", "unknown_field")]),
    ],
)
def test_what_no_provider_could_use_is_refused(ada: Api, device: Any, expected: list[tuple[str, str]]) -> None:
    body = assert_problem(ada.post("/v1/users/ada/devices", device), 422, "validation-failed")
    assert pointers(body) == expected
    assert not Device.objects.exists()


def test_registering_again_answers_200_and_makes_it_active_again(ada: Api) -> None:
    first = ada.post("/v1/users/ada/devices", {"platform": "ios", "token": APPLE}).json()
    services.retire_device(first["id"], "device_unregistered")
    assert ada.get("/v1/users/ada/devices").json()["data"][0]["reason"] == "device_unregistered"
    again = ada.post("/v1/users/ada/devices", {"platform": "ios", "token": APPLE.upper()})
    assert again.status_code == 200
    assert (again.json()["id"], again.json()["status"], again.json()["reason"]) == (first["id"], "active", None)
    assert again.json()["registered_at"] > first["registered_at"]


def test_an_app_that_says_hello_each_day_is_no_news(ada: Api) -> None:
    ada.post("/v1/users/ada/devices", {"platform": "ios", "token": APPLE})
    told = Change.objects.count()
    ada.post("/v1/users/ada/devices", {"platform": "ios", "token": APPLE})
    assert Change.objects.count() == told


def test_a_token_moves_to_its_new_user_at_once(ada: Api) -> None:
    first = ada.post("/v1/users/ada/devices", {"platform": "ios", "token": APPLE}).json()
    moved = ada.post("/v1/users/bob/devices", {"platform": "ios", "token": APPLE})
    assert moved.status_code == 200
    assert (moved.json()["id"], moved.json()["user_id"]) == (first["id"], "bob")
    assert ada.get("/v1/users/ada/devices").json()["data"] == []
    assert [d["id"] for d in ada.get("/v1/users/bob/devices").json()["data"]] == [first["id"]]
    assert Change.objects.filter(kind="device.moved", subject=first["id"]).exists()


def test_a_browsers_renewed_keys_are_the_same_device(ada: Api) -> None:
    other = base64.urlsafe_b64encode(b"\x04" + bytes(range(64))).decode()
    first = ada.post("/v1/users/ada/devices", web()).json()
    again = ada.post("/v1/users/ada/devices", web(p256dh=other))
    assert (again.status_code, again.json()["id"]) == (200, first["id"])
    assert other.rstrip("=") in Device.objects.get().token


def test_beyond_50_active_devices_the_oldest_is_retired(ada: Api) -> None:
    for number in range(51):
        ada.post("/v1/users/ada/devices", {"platform": "android", "token": f"t{number}"})
    assert Device.objects.filter(status="active").count() == 50
    [retired] = Device.objects.filter(status="retired")
    assert (retired.token, retired.reason) == ("t0", "too_many_devices")
    assert Change.objects.filter(kind="device.retired", subject=str(retired.pk)).exists()
    # The one that was pushed out comes back, and the next oldest goes.
    ada.post("/v1/users/ada/devices", {"platform": "android", "token": "t0"})
    assert [d.token for d in Device.objects.filter(status="retired")] == ["t1"]


def test_a_device_is_removed_once(ada: Api) -> None:
    id = ada.post("/v1/users/ada/devices", {"platform": "ios", "token": APPLE}).json()["id"]
    assert_problem(ada.delete(f"/v1/users/bob/devices/{id}"), 404, "not-found")
    answer = ada.delete(f"/v1/users/ada/devices/{id}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert_problem(ada.delete(f"/v1/users/ada/devices/{id}"), 404, "not-found")
    assert not Device.objects.exists()


@pytest.mark.parametrize("path", ["/v1/users/nobody/devices", f"/v1/users/nobody/devices/{uuid4()}"])
def test_devices_of_nobody_are_not_found(ada: Api, path: str) -> None:
    method, body = ("DELETE", None) if path.count("/") == 5 else ("POST", {"platform": "ios", "token": APPLE})
    assert_problem(ada(method, path, body), 404, "not-found")


def test_retiring_is_idempotent_and_tells_once(ada: Api) -> None:
    id = ada.post("/v1/users/ada/devices", {"platform": "ios", "token": APPLE}).json()["id"]
    assert services.retire_device(id, "device_unregistered") is True
    assert services.retire_device(id, "bad_token") is False
    assert services.retire_device(uuid4(), "bad_token") is False
    assert Device.objects.get().reason == "device_unregistered"
    assert Change.objects.filter(kind="device.retired").count() == 1


def test_a_device_that_registered_after_it_was_gone_stays(ada: Api) -> None:
    id = ada.post("/v1/users/ada/devices", {"platform": "ios", "token": APPLE}).json()["id"]
    assert services.retire_device(id, "device_unregistered", gone_since=timezone.now() - timedelta(hours=1)) is False
    assert Device.objects.get().status == "active"
    assert services.retire_device(id, "device_unregistered", gone_since=timezone.now()) is True


def test_a_tokens_hash_is_the_same_however_it_is_asked_for() -> None:
    assert hash_token(Platform.IOS, APPLE) == hash_address(Channel.PUSH, APPLE)
    stored = RAW_DEVICE.parse(web(), None, Errors())["token"]
    assert hash_token(Platform.WEB, stored) == hash_address(Channel.PUSH, stored)
    assert hash_token(Platform.IOS, APPLE) != hash_address(Channel.SMS, APPLE)


@pytest.mark.django_db(transaction=True)
def test_a_token_registered_by_many_at_once_is_one_device_of_one_user() -> None:
    for user in range(4):
        services.put_user(f"u{user}", {})
    failures: list[BaseException] = []

    def register(user: int) -> None:
        try:
            values = {"platform": "android", "provider": "fcm", "token": "shared"}
            for _ in range(10):
                services.register_device(f"u{user}", values)
        except BaseException as error:
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=register, args=(user,)) for user in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert Device.objects.count() == 1
