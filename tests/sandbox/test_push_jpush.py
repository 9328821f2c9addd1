from __future__ import annotations

import random
import uuid
from typing import Any

import pytest

from tests.sandbox.conftest import Reply, Sandbox
from tests.sandbox.test_shapes import bent, everything_can_be_shown

BASIC = "Basic NWEwZGIwYzUwMDAwMDAwMDAwMDAwMDAwOnNhbmRib3gtbWFzdGVyLXNlY3JldA=="
APP_KEY = "5a0db0c50000000000000000"


def push(sandbox: Sandbox, body: Any, path: str = "/v3/push", authorization: str = BASIC) -> Reply:
    headers = {"Authorization": authorization, "Content-Type": "application/json"}
    return sandbox.request("POST", path, body, headers)


def to(*tokens: str, **more: Any) -> dict[str, Any]:
    return {
        "platform": ["android"],
        "audience": {"registration_id": list(tokens) or ["a-device"]},
        "notification": {"android": {"alert": "Order A-1001", "title": "On its way", "extras": {"n_id": "d-7"}}},
        **more,
    }


def code(reply: Reply) -> tuple[int, int]:
    return reply.status, reply.json["error"]["code"]


def test_a_message_is_accepted_and_can_be_read_back(sandbox: Sandbox) -> None:
    reply = push(sandbox, to())
    assert reply.status == 200
    assert reply.json["sendno"] == "0" and reply.json["msg_id"].isdigit()
    assert int(reply.headers["x-rate-limit-remaining"]) < int(reply.headers["x-rate-limit-limit"])
    (entry,) = sandbox.inbox("provider=jpush")
    assert (entry["channel"], entry["to"], entry["delivery_id"]) == ("push", "a-device", "d-7")
    assert entry["body"]["notification"]["android"]["title"] == "On its way"
    assert "authorization" not in {name.lower() for name in entry["headers"]}


def test_people_see_it_on_a_phone(sandbox: Sandbox) -> None:
    push(sandbox, to())
    ios = {"alert": {"title": "Hello", "body": "Apple"}, "extras": {}}
    push(sandbox, to(platform=["ios"], notification={"ios": ios}, options={"apns_collapse_id": "k"}))
    push(sandbox, {**to(), "notification": None, "message": {"msg_content": "x", "extras": {"order": "A-1"}}})
    feed = sandbox.request("GET", "/_feed").body.decode()
    for seen in ("On its way", "Order A-1001", "Hello", "Apple", "Silent: data only", "order: A-1"):
        assert seen in feed


def test_a_wrong_or_missing_key_is_refused(sandbox: Sandbox) -> None:
    for authorization in ("", "Basic wrong", f"{BASIC}x", BASIC.removeprefix("Basic ")):
        assert code(push(sandbox, to(), authorization=authorization)) == (401, 1004)
    assert sandbox.inbox() == []


def test_only_posts_are_taken(sandbox: Sandbox) -> None:
    assert code(sandbox.request("GET", "/v3/push", None, {"Authorization": BASIC})) == (405, 1001)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"platform": None}, 1002),
        ({"platform": "symbian"}, 1003),
        ({"platform": []}, 1002),
        ({"platform": [["ios"]]}, 1003),
        ({"audience": None}, 1002),
        ({"audience": {"registration_id": []}}, 1003),
        ({"audience": {"registration_id": ["x"] * 1001}}, 1003),
        ({"audience": {"registration_id": [5]}}, 1003),
        ({"audience": {"surprise": ["x"]}}, 1003),
        ({"audience": "some"}, 1003),
        ({"notification": None}, 1002),
        ({"notification": {"android": {"alert": 5}}}, 1003),
        ({"notification": {"ios": {"alert": 5}}}, 1003),
        ({"notification": {"ios": {"alert": "x", "badge": "many"}}}, 1003),
        ({"notification": {"ios": {"alert": "x", "interruption-level": "loud"}}}, 1003),
        ({"message": {"title": "x"}}, 1002),
        ({"options": {"time_to_live": 864_001}}, 1003),
        ({"options": {"time_to_live": "60"}}, 1003),
        ({"options": {"classification": 2}}, 1003),
        ({"options": {"apns_collapse_id": "x" * 65}}, 1003),
        ({"cid": "of-my-own"}, 1003),
        ({"surprise": 1}, 1009),
        ({"notification": {"android": {"alert": "x" * 4000}}}, 1005),
    ],
)
def test_what_the_vendor_documents_as_invalid_is_refused(sandbox: Sandbox, change: dict, wanted: int) -> None:
    assert code(push(sandbox, to(**change))) == (400, wanted)
    assert code(push(sandbox, to(**change), "/v3/push/validate")) == (400, wanted)
    assert sandbox.inbox() == []


def test_bodies_that_are_no_json_object_are_refused(sandbox: Sandbox) -> None:
    for body in (b"", b"[]", b"nonsense", b"[" * 100_000, b"\xff\xfe", b"null"):
        assert code(push(sandbox, body)) == (400, 1003)


def test_a_dry_run_is_checked_and_not_accepted(sandbox: Sandbox) -> None:
    assert push(sandbox, to(), "/v3/push/validate").status == 200
    assert sandbox.inbox() == []


def test_the_same_cid_again_is_answered_as_the_first_time_and_pushed_once(sandbox: Sandbox) -> None:
    cid = f"{APP_KEY}-{uuid.uuid4()}"
    first, again, other = (push(sandbox, to(cid=one)) for one in (cid, cid, f"{APP_KEY}-{uuid.uuid4()}"))
    assert first.json["msg_id"] == again.json["msg_id"] != other.json["msg_id"]
    assert len(sandbox.inbox()) == 2


def test_a_refused_push_uses_no_cid_up(sandbox: Sandbox) -> None:
    cid = f"{APP_KEY}-{uuid.uuid4()}"
    assert push(sandbox, to("sandbox-unregistered-1", cid=cid)).status == 400
    assert push(sandbox, to("a-device", cid=cid)).status == 200
    assert len(sandbox.inbox()) == 1


def test_cids_are_given_out_and_taken(sandbox: Sandbox) -> None:
    reply = sandbox.request("GET", "/v3/push/cid?count=3&type=push", None, {"Authorization": BASIC})
    assert len(set(reply.json["cidlist"])) == 3
    assert all(push(sandbox, to(cid=cid)).status == 200 for cid in reply.json["cidlist"])
    assert sandbox.request("GET", "/v3/push/cid?count=1001", None, {"Authorization": BASIC}).status == 400
    assert sandbox.request("GET", "/v3/push/cid").status == 401


def test_an_unregistered_device_alone_is_no_target_and_among_others_is_passed_over(sandbox: Sandbox) -> None:
    assert code(push(sandbox, to("sandbox-unregistered-1"))) == (400, 1011)
    assert push(sandbox, to("sandbox-unregistered-1", "a-device")).status == 200
    assert [entry["to"] for entry in sandbox.inbox()] == ["a-device"]


def test_a_bad_token_is_named_as_the_value_at_fault(sandbox: Sandbox) -> None:
    reply = push(sandbox, to("sandbox-badtoken-1"))
    assert code(reply) == (400, 1003)
    assert "registration_id" in reply.json["error"]["message"]


def test_a_throttled_token_is_refused_twice_and_then_passes_and_so_again(sandbox: Sandbox) -> None:
    replies = [push(sandbox, to("sandbox-throttled-jpush")) for _ in range(6)]
    assert [reply.status for reply in replies] == [429, 429, 200, 429, 429, 200]
    assert (code(replies[0]), replies[0].headers["x-rate-limit-reset"]) == ((429, 2002), "2")


@pytest.mark.parametrize(
    ("mode", "answer"),
    [("http_500", (500, 1000)), ("http_429", (429, 2002)), ("http_401", (401, 1004)), ("gone", (400, 1011))],
)
def test_refusals_are_in_the_vendors_words(sandbox: Sandbox, mode: str, answer: tuple[int, int]) -> None:
    sandbox.fault(provider="jpush", mode=mode)
    assert code(push(sandbox, to())) == answer
    assert sandbox.inbox() == []


def test_odd_bodies_are_answered_and_what_was_taken_can_be_shown(sandbox: Sandbox) -> None:
    seed = random.randrange(10**6)
    dice = random.Random(seed)
    ios = {"alert": {"title": "t", "body": "b"}, "badge": 1, "sound": "s", "thread-id": "x", "extras": {"image": "i"}}
    whole = to(
        "a-device",
        notification={"alert": "x", "android": {"alert": "b", "title": "t", "extras": {"n_id": "d"}}, "ios": ios},
        message={"msg_content": "x", "extras": {"n_id": "d"}},
        options={"time_to_live": 60, "classification": 1, "apns_collapse_id": "k"},
    )
    for _ in range(400):
        assert push(sandbox, bent(whole, dice)).status in (200, 400), f"seed {seed}"
    everything_can_be_shown(sandbox)
