"""Who calls: Basic, signed requests, and everything that is neither."""

from __future__ import annotations

import base64
import secrets
import statistics
import time
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

import pytest
from django.conf import settings
from django.db import connection
from django.test.utils import CaptureQueriesContext

from apps.clients import services
from apps.clients.callers import FRESH_S, credentials
from apps.clients.models import AppKey, AppSecret, Client
from apps.clients.signing import signature
from notifier.limits import Store
from tests.apps.rest.callers import Api, assert_problem, make_api

VECTOR_BODY = b'{"template":"order-shipped","to":[{"user_id":"u_42"}],"data":{"order":{"id":"A-1001"}}}'


def test_the_contracts_test_vectors() -> None:
    signed: dict[str, Any] = {"timestamp": "1795379460", "nonce": "n-0001-abcdefgh"}
    assert len(VECTOR_BODY) == 87
    assert (
        signature("demo-secret", method="POST", target="/v1/notifications", body=VECTOR_BODY, **signed)
        == "a2eae47faf3f7e0ed3beff97a432f363a0d47f8929347b3683703ededb83c490"
    )
    assert (
        signature("demo-secret", method="GET", target="/v1/notifications?limit=2", body=b"", **signed)
        == "d365c5a60480acb90dbc5685aa4aefd1b93d305de2ce519cc0a2992aefee4425"
    )


def signed(api: Api, method: str, target: str, body: bytes = b"", **changes: str) -> dict[str, Any]:
    """The headers of a signed request; `changes` replace what is sent after it was signed."""
    timestamp = changes.pop("sign_timestamp", str(int(time.time())))
    nonce = changes.pop("sign_nonce", secrets.token_hex(8))
    made = signature(
        changes.pop("secret", api.secret), method=method, target=target, timestamp=timestamp, nonce=nonce, body=body
    )
    headers = {
        "Authorization": None,
        "X-App-Key": api.app_key,
        "X-Timestamp": timestamp,
        "X-Nonce": nonce,
        "X-Signature": f"v1={made}",
    }
    return headers | {name.replace("_", "-"): value for name, value in changes.items()}


def call(api: Api, method: str, target: str, body: bytes = b"", **changes: str) -> Any:
    return api(method, target, body, headers=signed(api, method, target, body, **changes))


# --- Basic ------------------------------------------------------------------------------------------------------


def test_a_key_and_its_secret_open_the_api(api: Api) -> None:
    assert api.get("/v1/users").status_code == 200


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Basic",
        "Basic ",
        "Basic !!!",
        "Basic " + base64.b64encode(b"no colon").decode(),
        "Basic " + base64.b64encode(b"\xff\xfe:\xff").decode(),
        "Basic " + base64.b64encode(b"ak_live_nope:as_nope").decode(),
        "Basic " + base64.b64encode(b":").decode(),
        "Basic " + base64.b64encode(b"a\0b:c\0d").decode(),
        "Basic " + base64.b64encode(b"k" * 5000 + b":x").decode(),
        "Bearer abc",
    ],
)
def test_anything_else_is_unauthenticated(api: Api, authorization: str | None) -> None:
    answer = api.get("/v1/users", headers={"Authorization": authorization})
    assert_problem(answer, 401, "unauthenticated")
    assert answer.headers["WWW-Authenticate"].startswith("Basic ")


def test_a_wrong_secret_and_an_unknown_key_get_the_same_answer(api: Api) -> None:
    def answer(app_key: str, secret: str) -> dict[str, Any]:
        basic = "Basic " + base64.b64encode(f"{app_key}:{secret}".encode()).decode()
        body = assert_problem(api.get("/v1/users", headers={"Authorization": basic}), 401, "unauthenticated")
        return body | {"request_id": ""}

    other = make_api("other")
    same = answer(api.app_key, "as_wrong")
    assert answer("ak_live_unknown", api.secret) == same
    assert answer(api.app_key, other.secret) == same
    assert answer(other.app_key, api.secret) == same


def test_an_unknown_key_costs_as_much_as_a_wrong_secret(api: Api) -> None:
    """Same work on both ways: as many statements when first seen, none after, and about the same time."""

    def cost(app_key: str) -> tuple[int, float]:
        basic = "Basic " + base64.b64encode(f"{app_key}:wrong".encode()).decode()
        credentials.forget()
        with CaptureQueriesContext(connection) as queries:
            api.get("/v1/users", headers={"Authorization": basic})
        times = []
        for _ in range(9):
            start = time.perf_counter()
            api.get("/v1/users", headers={"Authorization": basic})
            times.append(time.perf_counter() - start)
        return len(queries), statistics.median(times)

    (known, known_s), (unknown, unknown_s) = cost(api.app_key), cost("ak_live_unknown")
    assert known == unknown
    assert abs(known_s - unknown_s) < 0.005


def test_a_known_key_is_not_read_for_each_request(api: Api) -> None:
    api.get("/v1/categories/x")
    with CaptureQueriesContext(connection) as queries:
        api.get("/v1/categories/x")
    assert len(queries) == 1


# --- Signed -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("GET", "/v1/users", b""),
        ("GET", "/v1/users?limit=2&email=a%40example.com", b""),
        ("PUT", "/v1/users/u_1", b'{"locale": "de"}'),
        ("PUT", "/v1/users/u_1", '{"attributes": {"city": "München"}}'.encode()),
        ("PUT", "/v1/users/u@example.com", b"{}"),
        ("PUT", "/v1/users/u%40example.com", b"{}"),
        ("PUT", "/v1/users/" + quote("名前 (1)!"), b"{}"),
        ("PUT", "/v1/users/" + quote("名前 (1)!", safe="!*'()"), b"{}"),
    ],
)
def test_a_signed_request_is_accepted(api: Api, method: str, target: str, body: bytes) -> None:
    assert call(api, method, target, body).status_code in (200, 201)


def test_the_request_line_counts_where_the_server_hands_it_over(api: Api) -> None:
    target = "/v1/users/%75_1"  # an encoding that nobody would guess
    headers = signed(api, "PUT", target, b"{}")
    assert_problem(api("PUT", target, b"{}", headers=headers), 401, "unauthenticated")
    headers = signed(api, "PUT", target, b"{}")
    assert api("PUT", target, b"{}", headers=headers, RAW_URI=target).status_code == 201


@pytest.mark.parametrize(
    "changes",
    [
        {"X_Signature": "v1=" + "0" * 64},
        {"X_Signature": "v2=" + "0" * 64},
        {"X_Signature": "0" * 64},
        {"X_Signature": ""},
        {"X_Nonce": "another-nonce-0000"},
        {"X_Nonce": "short"},
        {"X_Nonce": "n" * 65},
        {"X_Nonce": "white space in it"},
        {"X_Timestamp": "now"},
        {"X_Timestamp": "-1"},
        {"X_App_Key": "ak_live_unknown"},
        {"X_App_Key": ""},
        {"secret": "as_wrong"},
    ],
)
def test_a_request_that_is_not_signed_right_is_unauthenticated(api: Api, changes: dict[str, str]) -> None:
    assert_problem(call(api, "PUT", "/v1/users/u_1", b"{}", **changes), 401, "unauthenticated")


def test_what_was_signed_cannot_be_changed(api: Api) -> None:
    def answer(**wrong: Any) -> Any:
        sent = {"method": "PUT", "target": "/v1/users/u_1", "body": b"{}"}
        headers = signed(api, *sent.values())
        changed = sent | wrong
        return api(changed["method"], changed["target"], changed["body"], headers=headers)

    assert_problem(answer(body=b"{ }"), 401, "unauthenticated")
    assert_problem(answer(target="/v1/users/u_2"), 401, "unauthenticated")
    assert_problem(answer(target="/v1/users/u_1?a=1"), 401, "unauthenticated")
    assert_problem(answer(method="GET"), 401, "unauthenticated")


@pytest.mark.parametrize("off", [-301, 301, -86400])
def test_a_timestamp_far_from_now_is_out_of_range(api: Api, off: int) -> None:
    answer = call(api, "GET", "/v1/users", sign_timestamp=str(int(time.time()) + off))
    assert_problem(answer, 401, "timestamp-out-of-range")


@pytest.mark.parametrize("off", [-290, 290])
def test_a_clock_may_be_five_minutes_off(api: Api, off: int) -> None:
    assert call(api, "GET", "/v1/users", sign_timestamp=str(int(time.time()) + off)).status_code == 200


def test_a_nonce_is_good_once_per_key(api: Api) -> None:
    nonce = secrets.token_hex(8)
    assert call(api, "GET", "/v1/users", sign_nonce=nonce).status_code == 200
    assert_problem(call(api, "GET", "/v1/users", sign_nonce=nonce), 401, "nonce-reused")
    other = make_api("other")
    assert call(other, "GET", "/v1/users", sign_nonce=nonce).status_code == 200


def test_a_wrong_signature_uses_up_no_nonce(api: Api) -> None:
    nonce = secrets.token_hex(8)
    assert_problem(call(api, "GET", "/v1/users", sign_nonce=nonce, secret="as_wrong"), 401, "unauthenticated")
    assert call(api, "GET", "/v1/users", sign_nonce=nonce).status_code == 200


def test_both_ways_in_one_request_are_refused(api: Api) -> None:
    headers = signed(api, "GET", "/v1/users", Authorization=api.basic)
    assert_problem(api("GET", "/v1/users", headers=headers), 401, "unauthenticated")


def test_too_large_a_body_is_refused_before_it_is_signed_for(api: Api) -> None:
    body = b" " * (2**20 + 1)
    assert_problem(call(api, "PUT", "/v1/users/u_1", body), 413, "body-too-large")


def test_without_a_nonce_store_signed_requests_wait_and_basic_goes_on(api: Api) -> None:
    away = Store("redis://127.0.0.1:1/0")  # nothing listens there
    with patch("apps.clients.auth._nonces", lambda: away):
        for _ in range(2):
            answer = call(api, "GET", "/v1/users")
            assert_problem(answer, 503, "nonce-store-unavailable")
            assert answer.headers["Retry-After"] == "1"
        assert_problem(call(api, "GET", "/v1/users", secret="as_wrong"), 401, "unauthenticated")
        assert api.get("/v1/users").status_code == 200


# --- What a key may do ------------------------------------------------------------------------------------------


def test_two_secrets_open_a_key_while_it_is_rotated(api: Api) -> None:
    first = AppSecret.objects.get()
    second = Api(api.client, api.app_key, services.add_secret(api.app_key))
    credentials.forget()
    assert api.get("/v1/users").status_code == second.get("/v1/users").status_code == 200
    assert call(second, "GET", "/v1/users").status_code == 200
    with pytest.raises(services.CredentialError, match="2 live secrets"):
        services.add_secret(api.app_key)
    services.revoke_secret(first.pk)
    credentials.forget()
    assert_problem(api.get("/v1/users"), 401, "unauthenticated")
    assert_problem(call(api, "GET", "/v1/users"), 401, "unauthenticated")
    assert second.get("/v1/users").status_code == 200
    assert services.add_secret(api.app_key)


def test_a_secret_past_its_end_opens_nothing(api: Api) -> None:
    AppSecret.objects.update(expires_at="2020-01-01T00:00:00Z")
    assert_problem(api.get("/v1/users"), 401, "unauthenticated")
    assert services.add_secret(api.app_key)


def test_a_revoked_key_takes_no_new_secret(api: Api) -> None:
    services.revoke_key(api.app_key)
    assert_problem(api.get("/v1/users"), 401, "unauthenticated")
    with pytest.raises(services.CredentialError, match="revoked"):
        services.add_secret(api.app_key)


@pytest.mark.parametrize("what", ["secret", "key", "client"])
def test_a_revocation_holds_within_two_seconds(api: Api, what: str) -> None:
    assert api.get("/v1/users").status_code == 200
    if what == "secret":
        services.revoke_secret(AppSecret.objects.get().pk)
    elif what == "key":
        services.revoke_key(api.app_key)
    else:
        Client.objects.update(is_active=False)
    start = time.monotonic()
    while api.get("/v1/users").status_code == 200:
        assert time.monotonic() - start < 2
        time.sleep(0.05)
    expected = (403, "client-suspended") if what == "client" else (401, "unauthenticated")
    assert_problem(api.get("/v1/users"), *expected)
    assert FRESH_S < 2


def test_keys_and_secrets_are_told_apart_by_their_looks(api: Api) -> None:
    assert api.app_key.startswith("ak_live_")
    assert make_api("t", mode="test").app_key.startswith("ak_test_")
    assert api.secret.startswith("as_")
    assert len(api.secret) == 3 + 43


def test_a_secret_is_stored_encrypted_and_shown_by_no_repr(api: Api) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT secret, hint FROM clients_appsecret")
        stored, hint = cursor.fetchone()
    assert api.secret not in stored
    assert hint == api.secret[-4:]
    assert api.secret not in repr(credentials.get(api.app_key))


def test_a_suspended_client_is_told_so_only_with_the_right_secret(api: Api) -> None:
    Client.objects.update(is_active=False)
    assert_problem(api.get("/v1/users"), 403, "client-suspended")
    wrong = Api(api.client, api.app_key, "as_wrong")
    assert_problem(wrong.get("/v1/users"), 401, "unauthenticated")


@pytest.mark.parametrize(
    ("ranges", "ip", "is_allowed"),
    [
        ([], "203.0.113.9", True),
        (["203.0.113.0/24"], "203.0.113.9", True),
        (["203.0.113.0/24"], "203.0.114.9", False),
        (["203.0.113.9"], "203.0.113.9", True),
        (["2001:db8::/32"], "2001:db8::1", True),
        (["2001:db8::/32"], "203.0.113.9", False),
        (["203.0.113.0/24"], "::ffff:203.0.113.9", True),
        (["203.0.113.0/24"], "", False),
    ],
)
def test_a_client_may_be_held_to_ip_ranges(api: Api, ranges: list[str], ip: str, is_allowed: bool) -> None:
    Client.objects.update(ip_ranges=ranges)
    answer = api.get("/v1/users", REMOTE_ADDR=ip)
    if is_allowed:
        assert answer.status_code == 200
    else:
        assert_problem(answer, 403, "ip-not-allowed")


def test_a_forwarded_address_counts_only_behind_our_own_proxies(api: Api) -> None:
    Client.objects.update(ip_ranges=["203.0.113.0/24"])
    forwarded = {"X-Forwarded-For": "203.0.113.9, 198.51.100.1"}
    assert_problem(api.get("/v1/users", headers=forwarded, REMOTE_ADDR="10.0.0.1"), 403, "ip-not-allowed")
    with patch.object(settings, "TRUSTED_PROXIES", 2):
        assert api.get("/v1/users", headers=forwarded, REMOTE_ADDR="10.0.0.1").status_code == 200
    with patch.object(settings, "TRUSTED_PROXIES", 1):
        assert_problem(api.get("/v1/users", headers=forwarded, REMOTE_ADDR="10.0.0.1"), 403, "ip-not-allowed")


@pytest.mark.parametrize("path", ["/v1/users", "/v1/users/u_1", "/v1/users/u_1/devices", "/v1/suppressions"])
def test_without_the_scope_nothing_is_done(api: Api, path: str) -> None:
    narrow = make_api("narrow", scopes=["read", "send"])
    body = assert_problem(narrow.get(path), 403, "scope-missing")
    assert body["scope"] == "users"
    assert_problem(narrow("POST", path, b"[" * 1000), 403, "scope-missing")


# --- When a key was last used -----------------------------------------------------------------------------------


def test_the_last_use_of_a_key_is_written_once_a_minute(api: Api) -> None:
    def uses() -> Any:
        return AppKey.objects.values_list("last_used_at", flat=True).get()

    assert uses() is None
    api.get("/v1/users")
    first = uses()
    assert first is not None
    api.get("/v1/users")
    assert uses() == first
    services._noted.clear()  # another process, in the same minute
    api.get("/v1/users")
    assert uses() == first


def test_a_failed_try_is_no_use(api: Api) -> None:
    Api(api.client, api.app_key, "as_wrong").get("/v1/users")
    assert AppKey.objects.get().last_used_at is None
