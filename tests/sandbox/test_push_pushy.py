from __future__ import annotations

import random
import time
from typing import Any

import pytest

from tests.sandbox.conftest import Reply, Sandbox
from tests.sandbox.test_shapes import bent, everything_can_be_shown


def push(sandbox: Sandbox, body: Any, query: str = "?api_key=sandbox-pushy-key") -> Reply:
    return sandbox.request("POST", f"/push{query}", body, {"Content-Type": "application/json"})


def to(token: Any = "a-device", **more: Any) -> dict[str, Any]:
    return {"to": token, "data": {"title": "On its way", "message": "Order A-1001", "n_id": "d-7"}, **more}


def code(reply: Reply) -> tuple[int, str]:
    return reply.status, reply.json["code"]


def test_a_message_is_accepted_and_can_be_read_back_without_the_key(sandbox: Sandbox) -> None:
    reply = push(sandbox, to())
    assert (reply.status, reply.json["success"]) == (200, True)
    assert reply.json["id"] and reply.json["info"] == {"devices": 1, "failed": []}
    (entry,) = sandbox.inbox("provider=pushy")
    assert (entry["channel"], entry["to"], entry["delivery_id"]) == ("push", "a-device", "d-7")
    assert entry["body"]["data"]["title"] == "On its way"
    assert "sandbox-pushy-key" not in str(entry)


def test_people_see_it_on_a_phone(sandbox: Sandbox) -> None:
    push(sandbox, to())
    push(sandbox, to(data={"order": "A-1"}, notification={"title": "Hello", "body": "Apple"}))
    push(sandbox, to(data={"n_id": "d-8"}, collapse_key="k"))
    feed = sandbox.request("GET", "/_feed").body.decode()
    for seen in ("On its way", "Order A-1001", "Hello", "Apple", "order: A-1", "Silent: data only"):
        assert seen in feed


def test_a_wrong_or_missing_key_is_refused(sandbox: Sandbox) -> None:
    for query in ("", "?api_key=", "?api_key=wrong", "?key=sandbox-pushy-key"):
        assert code(push(sandbox, to(), query)) == (401, "INVALID_API_KEY")
    assert sandbox.inbox() == []


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"to": None}, "INVALID_PARAM"),
        ({"to": 5}, "INVALID_PARAM"),
        ({"to": [5]}, "INVALID_PARAM"),
        ({"to": ""}, "NO_RECIPIENTS"),
        ({"to": []}, "NO_RECIPIENTS"),
        ({"to": [f"/topics/{number}" for number in range(101)]}, "INVALID_PARAM"),
        ({"to": [f"d{number}" for number in range(100_001)]}, "INVALID_PARAM"),
        ({"data": None}, "INVALID_PARAM"),
        ({"data": "text"}, "INVALID_PARAM"),
        ({"data": {"k": "x" * 4090}}, "PAYLOAD_LIMIT_EXCEEDED"),
        ({"time_to_live": 31_536_001}, "INVALID_PARAM"),
        ({"time_to_live": "60"}, "INVALID_PARAM"),
        ({"schedule": int(time.time()) + 40_000_000}, "INVALID_PARAM"),
        ({"collapse_key": "x" * 33}, "INVALID_PARAM"),
        ({"content_available": 1}, "INVALID_PARAM"),
        ({"notification": {"badge": "3"}}, "INVALID_PARAM"),
    ],
)
def test_what_the_vendor_documents_as_invalid_is_refused(sandbox: Sandbox, change: dict, wanted: str) -> None:
    assert code(push(sandbox, to() | change)) == (400, wanted)
    assert sandbox.inbox() == []


def test_a_payload_at_the_limit_passes(sandbox: Sandbox) -> None:
    assert push(sandbox, to(data={"k": "x" * 4088})).status == 200


def test_bodies_that_are_no_json_object_are_refused(sandbox: Sandbox) -> None:
    for body in (b"", b"[]", b"nonsense", b"[" * 100_000, b"\xff\xfe", b"null"):
        assert code(push(sandbox, body)) == (400, "INVALID_PARAM")


@pytest.mark.parametrize("word", ["unregistered", "badtoken"])
def test_a_dead_device_alone_is_no_recipient_and_among_others_has_failed(sandbox: Sandbox, word: str) -> None:
    dead = f"sandbox-{word}-1"
    assert code(push(sandbox, to(dead))) == (400, "NO_RECIPIENTS")
    reply = push(sandbox, to([dead, "a-device"]))
    assert reply.json["info"] == {"devices": 1, "failed": [dead]}
    assert [entry["to"] for entry in sandbox.inbox()] == ["a-device"]


def test_a_throttled_token_is_refused_twice_and_then_passes_and_so_again(sandbox: Sandbox) -> None:
    replies = [push(sandbox, to("sandbox-throttled-pushy")) for _ in range(6)]
    assert [reply.status for reply in replies] == [429, 429, 200, 429, 429, 200]
    assert (code(replies[0])[1], replies[0].headers["retry-after"]) == ("RATE_LIMIT_EXCEEDED", "2")


@pytest.mark.parametrize(
    ("mode", "answer"),
    [
        ("http_500", (500, "INTERNAL_ERROR")),
        ("http_429", (429, "RATE_LIMIT_EXCEEDED")),
        ("http_401", (401, "INVALID_API_KEY")),
        ("gone", (400, "NO_RECIPIENTS")),
    ],
)
def test_refusals_are_in_the_vendors_words(sandbox: Sandbox, mode: str, answer: tuple[int, str]) -> None:
    sandbox.fault(provider="pushy", mode=mode)
    assert code(push(sandbox, to())) == answer
    assert sandbox.inbox() == []


def test_odd_bodies_are_answered_and_what_was_taken_can_be_shown(sandbox: Sandbox) -> None:
    seed = random.randrange(10**6)
    dice = random.Random(seed)
    shown = {"title": "t", "body": "b", "badge": 1, "sound": "s"}
    whole = to(["a-device", "b"], notification=shown, time_to_live=60, collapse_key="k", content_available=True)
    for _ in range(400):
        assert push(sandbox, bent(whole, dice)).status in (200, 400), f"seed {seed}"
    everything_can_be_shown(sandbox)
