from __future__ import annotations

import time

import pytest
from google.auth.transport.requests import Request
from google.oauth2.service_account import Credentials

from tests.sandbox.conftest import Sandbox, start
from tests.sandbox.wires import FCM, fcm_assertion, fcm_bearer, fcm_exchange, fcm_send, service_account


def to(token: str = "a-device", **more: object) -> dict[str, object]:
    return {"token": token, "notification": {"title": "On its way", "body": "Order A-1001"}, **more}


def error_code(body: dict) -> str | None:
    details = body["error"].get("details", [])
    return next((one["errorCode"] for one in details if one["@type"].endswith("FcmError")), None)


def test_a_message_is_accepted_and_can_be_read_back(sandbox: Sandbox) -> None:
    reply = fcm_send(sandbox, to("a-device", data={"n_id": "d-7", "order": "A-1001"}))
    assert reply.status == 200
    assert reply.json["name"].startswith("projects/notifier-sandbox/messages/")
    (entry,) = sandbox.inbox("provider=fcm")
    assert (entry["channel"], entry["to"], entry["delivery_id"]) == ("push", "a-device", "d-7")
    assert entry["body"]["message"]["notification"]["title"] == "On its way"
    assert "authorization" not in {name.lower() for name in entry["headers"]}


def test_a_wrong_or_missing_bearer_is_refused_without_the_vendors_own_detail(sandbox: Sandbox) -> None:
    for authorization in ("", "Bearer wrong", "Bearer ya29.9999999999.x.0123", f"Bearer {fcm_bearer(sandbox)}x"):
        reply = sandbox.request("POST", FCM, {"message": to()}, {"Authorization": authorization})
        assert (reply.status, reply.json["error"]["status"]) == (401, "UNAUTHENTICATED")
        assert error_code(reply.json) is None
    assert sandbox.inbox() == []


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"iss": "someone@else"}, "invalid_grant"),
        ({"aud": "https://elsewhere.example/token"}, "invalid_grant"),
        ({"exp": time.time() - 1000}, "invalid_grant"),
        ({"exp": time.time() + 20_000}, "invalid_grant"),
        ({"scope": "https://www.googleapis.com/auth/drive"}, "invalid_scope"),
    ],
)
def test_an_assertion_that_is_wrong_gets_no_token(sandbox: Sandbox, changes: dict, error: str) -> None:
    reply = fcm_exchange(sandbox, fcm_assertion(sandbox, **changes))
    assert (reply.status, reply.json["error"]) == (400, error)


def test_the_vendors_own_library_gets_a_token_that_works(sandbox: Sandbox) -> None:
    account = str(sandbox.tls_dir / "fcm-service-account.json")
    scopes = ["https://www.googleapis.com/auth/firebase.messaging"]
    credentials = Credentials.from_service_account_file(account, scopes=scopes)
    credentials.refresh(Request())
    reply = sandbox.request("POST", FCM, {"message": to()}, {"Authorization": f"Bearer {credentials.token}"})
    assert reply.status == 200


def test_an_assertion_signed_by_another_key_gets_no_token(sandbox: Sandbox, tmp_path) -> None:
    other = start(tmp_path)
    try:
        foreign = fcm_assertion(other, aud=service_account(sandbox)["token_uri"])
    finally:
        other.stop()
    assert fcm_exchange(sandbox, foreign).json["error_description"] == "Invalid JWT Signature."


def test_a_token_outlives_a_restart(tmp_path) -> None:
    first = start(tmp_path)
    bearer = fcm_bearer(first)
    first.stop()
    second = start(tmp_path)
    try:
        reply = second.request("POST", FCM, {"message": to()}, {"Authorization": f"Bearer {bearer}"})
        assert reply.status == 200
    finally:
        second.stop()


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"notification": {"title": "x"}}, "Recipient of the message is not set."),
        ({"token": "a", "topic": "b"}, "oneof field 'target' is already set"),
        ({"token": 5}, "TYPE_STRING"),
        ({"topic": "no blanks"}, "Malformed topic name"),
        (to(data={"n": 5}), "TYPE_STRING"),
        (to(data={"from": "x"}), "Invalid data payload key: from"),
        (to(surprise=1), 'Unknown name "surprise"'),
        (to(android={"ttl": "9999999s"}), "Invalid time to live"),
        (to(android={"priority": "urgent"}), "message.android.priority"),
        (to(notification={"title": "x" * 5000}), "Android message is too big"),
        (to(data={"k": "x" * 4090, "l": "y" * 10}), "Android message is too big"),
        ({"topic": "news", "notification": {"body": "x" * 2100}}, "Android message is too big"),
    ],
)
def test_what_the_vendor_documents_as_invalid_is_refused(sandbox: Sandbox, message: dict, text: str) -> None:
    reply = fcm_send(sandbox, message)
    assert reply.status == 400, reply.body
    assert reply.json["error"]["status"] == "INVALID_ARGUMENT"
    assert text in reply.json["error"]["message"]
    assert sandbox.inbox() == []


def test_a_payload_at_the_limit_passes(sandbox: Sandbox) -> None:
    reply = fcm_send(sandbox, {"token": "a", "data": {"k": "x" * 4095}})
    assert reply.status == 200, reply.body


def test_camel_case_is_taken_like_the_vendor_does(sandbox: Sandbox) -> None:
    message = to(android={"collapseKey": "c", "directBootOk": True}, fcmOptions={"analyticsLabel": "x"})
    assert fcm_send(sandbox, message).status == 200


def test_bodies_that_are_no_json_object_are_refused(sandbox: Sandbox) -> None:
    headers = {"Authorization": f"Bearer {fcm_bearer(sandbox)}"}
    for body in (
        b"",
        b"[]",
        b"nonsense",
        b"[" * 100_000,
        b'{"message": 1}',
        b"\xff\xfe",
        b'{"message": {"token": null}}',
    ):
        assert sandbox.request("POST", FCM, body, headers).status == 400


def test_another_project_is_not_found_and_says_nothing_of_the_token(sandbox: Sandbox) -> None:
    headers = {"Authorization": f"Bearer {fcm_bearer(sandbox)}"}
    reply = sandbox.request("POST", "/v1/projects/other/messages:send", {"message": to()}, headers)
    assert reply.status == 404
    assert error_code(reply.json) is None


def test_a_dry_run_is_checked_and_not_accepted(sandbox: Sandbox) -> None:
    assert fcm_send(sandbox, to(), validate_only=True).status == 200
    assert fcm_send(sandbox, {}, validate_only=True).status == 400
    assert sandbox.inbox() == []


def test_an_unregistered_token(sandbox: Sandbox) -> None:
    reply = fcm_send(sandbox, to("sandbox-unregistered-1"))
    assert (reply.status, error_code(reply.json)) == (404, "UNREGISTERED")


def test_a_bad_token_is_named_as_the_field_at_fault(sandbox: Sandbox) -> None:
    reply = fcm_send(sandbox, to("sandbox-badtoken-1"))
    violations = reply.json["error"]["details"][1]["fieldViolations"]
    assert (reply.status, violations[0]["field"]) == (400, "message.token")


def test_a_throttled_token_is_refused_twice_and_then_passes_and_so_again(sandbox: Sandbox) -> None:
    replies = [fcm_send(sandbox, to("sandbox-throttled-fcm")) for _ in range(6)]
    assert [reply.status for reply in replies] == [429, 429, 200, 429, 429, 200]
    assert replies[0].headers["retry-after"] == "2"
    assert error_code(replies[0].json) == "QUOTA_EXCEEDED"
    assert len(sandbox.inbox("to=sandbox-throttled-fcm")) == 2
