"""POST /v1/notifications: what is accepted, what is refused, and what is written either way."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from apps.notifications.models import Content, EventKey, Expansion, IdempotencyKey, Notification, Tally
from apps.people import services as people
from tests.apps.notifications.world import World, deliveries, device, pending, person, states
from tests.apps.rest.callers import assert_problem, pointers


def test_a_request_is_laid_out_and_waits_to_be_sent(world: World) -> None:
    answer = world.send("ada")
    assert answer.status_code == 202
    body = answer.json()
    assert body["status"] == "accepted"
    assert body["template"] == {"key": "shipped", "version": 1}
    assert body["lane"] == "normal"
    assert answer.headers["Location"] == f"/v1/notifications/{body['id']}"
    assert states(body["id"]) == [("email", "queued", ""), ("push", "queued", ""), ("sms", "queued", "")]
    rows = pending(body["id"])
    assert {row.channel for row in rows} == {"email", "push", "sms"}
    assert all(row.lane == "normal" and row.claim_no == 0 and row.lease_until is None for row in rows)


def test_the_ids_of_deliveries_share_the_notifications_first_eight_bytes(world: World) -> None:
    id = world.send("ada").json()["id"]
    assert {str(d.id)[:18] for d in deliveries(id)} == {id[:18]}


def test_an_unknown_person_is_accepted_and_ends_suppressed(world: World) -> None:
    id = world.send("nobody").json()["id"]
    assert [(state, reason) for _, state, reason in states(id)] == [("suppressed", "user_not_found")]


def test_a_person_without_device_or_phone_gets_what_reaches_them(world: World) -> None:
    id = world.send("bob").json()["id"]
    assert states(id) == [
        ("email", "queued", ""),
        ("push", "suppressed", "no_device"),
        ("sms", "suppressed", "no_address"),
    ]


@pytest.mark.parametrize(
    ("choices", "template", "expected"),
    [
        ({"everything": False}, "shipped", ("suppressed", "global_opt_out")),
        ({"everything": False}, "code", ("queued", "")),
        ({"choices": {"orders": {"email": False}}}, "shipped", ("suppressed", "category_opt_out")),
        ({}, "weekly", ("suppressed", "not_opted_in")),
        ({"choices": {"offers": {"email": True}}}, "weekly", ("queued", "")),
        ({}, "letter", ("queued", "")),
    ],
)
def test_what_a_person_chose_decides(
    world: World, choices: dict[str, Any], template: str, expected: tuple[str, str]
) -> None:
    people.set_preferences("bob", **choices)
    id = world.send("bob", template=template, channels=["email"]).json()["id"]
    assert states(id) == [("email", *expected)]


def test_a_suppressed_address_gets_nothing_mandatory_or_not(world: World) -> None:
    people.suppress("email", "bob@example.com", "bounce", source="test")
    id = world.send("bob", template="code", channels=["email"]).json()["id"]
    assert states(id) == [("email", "suppressed", "suppressed_bounce")]


def test_a_raw_address_of_a_known_person_takes_their_choice_and_their_identity(world: World) -> None:
    people.set_preferences("bob", everything=False)
    id = world.send({"email": "bob@example.com"}, channels=["email"]).json()["id"]
    [row] = deliveries(id)
    assert (row.state, row.reason) == ("suppressed", "global_opt_out")
    assert row.user is not None and row.user.external_id == "bob"


def test_of_several_owners_of_an_address_the_strictest_counts(world: World) -> None:
    person("rob", email="bob@example.com")
    people.set_preferences("rob", choices={"orders": {"email": False}})
    id = world.send({"email": "bob@example.com"}, channels=["email"]).json()["id"]
    assert states(id) == [("email", "suppressed", "category_opt_out")]


def test_a_person_named_by_id_and_by_address_gets_one_message(world: World) -> None:
    id = world.send("bob", {"email": "bob@example.com"}, channels=["email"]).json()["id"]
    assert states(id) == [("email", "queued", "")]


def test_the_same_entry_twice_is_refused(world: World) -> None:
    body = assert_problem(world.send("bob", "bob"), 422, "validation-failed")
    assert pointers(body) == [("/to/1", "duplicate_recipient")]


def test_a_raw_address_that_nobody_owns_is_sent_to(world: World) -> None:
    id = world.send({"phone": "+4915112345678"}, {"email": "new@example.com"}).json()["id"]
    assert states(id) == [("email", "queued", ""), ("sms", "queued", "")]


def test_an_unverified_client_reaches_sandbox_recipients_only(world: World) -> None:
    world.api.client.is_verified = False
    world.api.client.save()
    id = world.send("ada", "bob", channels=["email"]).json()["id"]
    assert states(id) == [("email", "queued", ""), ("email", "suppressed", "recipient_not_allowed")]


def test_the_number_of_statements_is_the_same_for_one_recipient_and_for_a_hundred(world: World) -> None:
    for number in range(100):
        person(f"p{number}", email=f"p{number}@example.com", phone=f"+4915112345{number:03}")
        device(f"p{number}", f"sandbox-ok-{number}")

    def statements(size: int) -> int:
        with CaptureQueriesContext(connection) as captured:
            answer = world.send(*[f"p{number}" for number in range(size)], event_id=uuid4().hex)
        assert answer.status_code == 202
        assert len(deliveries(answer.json()["id"])) == 3 * size
        return len(captured)

    # The fewest of three: what is kept of callers, templates and categories is read again when it is 1.5 s old.
    fewest = [min(statements(size) for _ in range(3)) for size in (1, 100)]
    assert fewest[0] == fewest[1] <= 9


def test_what_is_due_later_is_laid_out_when_due(world: World) -> None:
    at = datetime.now(UTC) + timedelta(hours=2)
    id = world.send("ada", send_at=at.isoformat()).json()["id"]
    assert deliveries(id) == []
    expansion = Expansion.objects.get(pk=id)
    assert expansion.due_at == expansion.wake_at == at
    assert Notification.objects.get(pk=id).status == "scheduled"


def test_a_refused_request_leaves_nothing_behind(world: World) -> None:
    answer = world.send("ada", event_id="e1", send_at="2099-01-01T00:00:00Z", headers=None)
    assert_problem(answer, 422, "validation-failed")
    for model in (Notification, Content, EventKey, IdempotencyKey, Tally):
        assert not model.objects.exists()


@pytest.mark.parametrize(
    ("fields", "pointer", "code"),
    [
        ({"template": "absent"}, "/template", "not_found"),
        ({"template": {"key": "shipped", "version": 9}}, "/template", "not_found"),
        ({"data": {}}, "/data/order", "missing_variable"),
        ({"category": "offers"}, "/category", "category_mismatch"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "/expires_at", "in_the_past"),
        ({"send_at": "2099-01-01T00:00:00Z"}, "/send_at", "out_of_range"),
        ({"colour": "red"}, "/colour", "unknown_field"),
        ({"routing": {"strategy": "all"}}, "/routing", "unknown_field"),
        ({"collapse_key": "a"}, "/collapse_key", "unknown_field"),
        ({"local_time": {"at": "09:00"}}, "/local_time", "unknown_field"),
        ({"email": {"attachments": [{"filename": "a.txt", "content": "eA=="}]}}, "/email/attachments", "unknown_field"),
        ({"to": []}, "/to", "too_short"),
        ({"to": [{"user_id": "a", "email": "a@b.example"}]}, "/to/0/email", "conflict"),
        ({"to": [{"email": "nonsense"}]}, "/to/0/email", "invalid_email"),
        ({"to": [{"phone": "12"}]}, "/to/0/phone", "invalid_phone"),
        ({"to": [{"user_id": "a"}] * 101}, "/to", "too_many"),
        ({"metadata": {"a": 1}}, "/metadata/a", "wrong_type"),
        ({"email": {"headers": {"In-Reply-To": "a\r\nBcc: b"}}}, "/email/headers/In-Reply-To", "not_allowed"),
        ({"push": {"data": {"a": "x" * 5000}}}, "/push/data", "too_long"),
    ],
)
def test_a_fault_is_named_with_its_place(world: World, fields: dict[str, Any], pointer: str, code: str) -> None:
    body = assert_problem(world.send("ada", **fields), 422, "validation-failed")
    assert (pointer, code) in pointers(body)


@pytest.mark.parametrize(
    ("policy", "fields", "code"),
    [
        ({"categories": ["news"]}, {}, "category-not-allowed"),
        ({"channels": ["push"]}, {"channels": ["sms"]}, "channel-not-allowed"),
        ({"lanes": ["normal"]}, {"lane": "critical"}, "lane-not-allowed"),
        (
            {"may_send_inline": False},
            {"template": None, "content": {"sms": {"text": "a"}}},
            "inline-content-not-allowed",
        ),
        ({}, {"email": {"from": "Else <else@example.com>"}}, "sender-not-allowed"),
        ({"scopes": ["read"]}, {}, "scope-missing"),
    ],
)
def test_what_the_client_may_not_do_is_refused(
    world: World, policy: dict[str, Any], fields: dict[str, Any], code: str
) -> None:
    for name, value in policy.items():
        setattr(world.api.client, name, value)
    world.api.client.save()
    assert_problem(world.send("ada", **fields), 403, code)


def test_inline_content_needs_a_category_and_goes_out_like_a_template(world: World) -> None:
    content = {"sms": {"text": "Hello {{ name }}"}}
    refused = world.send("ada", template=None, content=content, data={"name": "Ada"})
    assert pointers(assert_problem(refused, 422, "validation-failed")) == [("/category", "required")]
    missing = world.send("ada", template=None, content=content, data={}, category="orders")
    assert pointers(assert_problem(missing, 422, "validation-failed")) == [("/data/name", "missing_variable")]
    accepted = world.send("ada", template=None, content=content, data={"name": "Ada"}, category="orders")
    assert states(accepted.json()["id"]) == [("sms", "queued", "")]


# --- duplicates -------------------------------------------------------------------------------------------------


def test_the_same_event_again_is_the_original_and_sends_nothing(world: World) -> None:
    first = world.send("ada", event_id="e1")
    again = world.send("ada", event_id="e1", reference="another label")
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.json()["duplicate"] is True
    assert again.json()["id"] == first.json()["id"]
    assert Notification.objects.count() == 1


def test_the_same_event_with_other_content_is_refused_and_names_the_original(world: World) -> None:
    first = world.send("ada", event_id="e1")
    body = assert_problem(world.send("bob", event_id="e1"), 409, "event-id-reused")
    assert body["original_id"] == first.json()["id"]


def test_the_same_key_gives_the_same_answer(world: World) -> None:
    headers = {"Idempotency-Key": "k-1"}
    body = {"template": "shipped", "data": {"order": "A"}, "to": [{"user_id": "ada"}]}
    first = world.api.post("/v1/notifications", body, headers=headers)
    again = world.api.post("/v1/notifications", body, headers=headers)
    assert first.json() == again.json()
    assert (first.status_code, again.status_code) == (202, 202)
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert Notification.objects.count() == 1


def test_the_same_key_with_another_body_is_refused(world: World) -> None:
    headers = {"Idempotency-Key": "k-1"}
    body = {"template": "shipped", "data": {"order": "A"}, "to": [{"user_id": "ada"}]}
    world.api.post("/v1/notifications", body, headers=headers)
    other = world.api.post("/v1/notifications", {**body, "reference": "x"}, headers=headers)
    assert_problem(other, 422, "idempotency-key-reused")


def test_a_key_is_free_again_after_a_refusal(world: World) -> None:
    headers = {"Idempotency-Key": "k-1"}
    body = {"template": "shipped", "data": {}, "to": [{"user_id": "ada"}]}
    assert world.api.post("/v1/notifications", body, headers=headers).status_code == 422
    mended = {**body, "data": {"order": "A"}}
    assert world.api.post("/v1/notifications", mended, headers=headers).status_code == 202


@pytest.mark.django_db(transaction=True)
def test_one_event_in_a_hundred_parallel_requests_is_one_notification(committed_world: World) -> None:
    start = threading.Barrier(20)

    def send(number: int) -> tuple[int, bool]:
        try:
            if number < 20:
                start.wait(10)
            answer = committed_world.send("ada", event_id="storm")
            return answer.status_code, answer.json().get("duplicate", False)
        finally:
            connection.close()

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(send, range(100)))
    assert sorted(answers) == [(200, True)] * 99 + [(202, False)]
    assert Notification.objects.count() == 1
    assert len(deliveries(str(Notification.objects.get().id))) == 3


@pytest.mark.django_db(transaction=True)
def test_one_key_in_parallel_requests_is_one_notification(committed_world: World) -> None:
    body = {"template": "shipped", "data": {"order": "A"}, "to": [{"user_id": "ada"}]}

    def send(_: int) -> tuple[int, str]:
        try:
            answer = committed_world.api.post("/v1/notifications", body, headers={"Idempotency-Key": "storm"})
            return answer.status_code, answer.headers.get("Idempotent-Replayed", "first")
        finally:
            connection.close()

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(send, range(100)))
    assert answers.count((202, "first")) == 1
    assert set(answers) <= {(202, "first"), (202, "true"), (409, "first")}
    assert Notification.objects.count() == 1


# --- batch ------------------------------------------------------------------------------------------------------


def item(event_id: str, user: str = "ada", **fields: Any) -> dict[str, Any]:
    return {"event_id": event_id, "template": "shipped", "data": {"order": "A"}, "to": [{"user_id": user}], **fields}


def post_batch(world: World, *items: Any, key: str = "b-1") -> Any:
    return world.api.post("/v1/notifications/batch", {"items": list(items)}, headers={"Idempotency-Key": key})


def test_a_batch_answers_for_each_item_in_order(world: World) -> None:
    world.send("ada", event_id="old")
    answer = post_batch(
        world,
        item("new"),
        item("old", data={"order": "A-1"}),
        item("bad", data={}),
        item("new"),
        item("new", user="bob"),
        {"event_id": "shapeless"},
        7,
    )
    assert answer.status_code == 202
    body = answer.json()
    assert [result["result"] for result in body["results"]] == [
        "accepted", "duplicate", "rejected", "duplicate", "rejected", "rejected", "rejected",
    ]  # fmt: skip
    assert (body["accepted"], body["duplicate"], body["rejected"]) == (1, 2, 4)
    assert body["results"][2]["errors"][0]["pointer"] == "/items/2/data/order"
    assert body["results"][3]["id"] == body["results"][0]["id"]
    assert body["results"][4]["code"] == "event-id-reused"
    assert Expansion.objects.count() == 1


def test_every_item_is_judged_by_what_its_event_came_to(world: World) -> None:
    old = world.send("ada", event_id="e", data={"order": "A"}).json()["id"]
    answer = post_batch(
        world, item("e", user="bob"), item("e"), item("e", user="bob"), item("n"), item("n", user="bob")
    )
    results = answer.json()["results"]
    assert [r["result"] for r in results] == ["rejected", "duplicate", "rejected", "accepted", "rejected"]
    assert [r.get("original_id") or r["id"] for r in results[:3]] == [old, old, old]
    assert results[4]["original_id"] == results[3]["id"]


@pytest.mark.parametrize("recipient", [{"email": "a@b.example"}, {"email": "no address"}, 7])
def test_a_batch_for_too_many_is_refused_before_its_items_are_looked_at(world: World, recipient: Any) -> None:
    full = [item(f"e{number}", to=[recipient] * 100) for number in range(100)]
    body = assert_problem(post_batch(world, *full, item("last")), 422, "validation-failed")
    assert pointers(body) == [("/items", "too_many")]
    assert body["errors"][0]["detail"] == "at most 10000 recipients in all, this has 10001"
    assert not Notification.objects.exists()


def test_a_wrong_item_is_told_its_first_ten_faults(world: World) -> None:
    wrong = item("a", **{f"field_{number}": 1 for number in range(12)})
    assert [len(result["errors"]) for result in post_batch(world, wrong, wrong).json()["results"]] == [10, 10]


def test_only_lists_that_are_read_are_counted(world: World) -> None:
    wrong = (
        item("b", to="x" * 20_000),
        item("c", to={"user_id": "ada"}),
        7,
        item("d", to=[{"user_id": "ada"}] * 20_000),
    )
    answer = post_batch(world, item("a"), *wrong)
    assert [result["result"] for result in answer.json()["results"]] == ["accepted", *["rejected"] * 4]


def test_a_batch_without_key_is_refused(world: World) -> None:
    answer = world.api.post("/v1/notifications/batch", {"items": [item("a")]})
    assert_problem(answer, 400, "idempotency-key-required")


def test_a_batch_of_which_nothing_can_be_accepted_is_answered_all_the_same(world: World) -> None:
    answer = post_batch(world, item("a", data={}))
    assert (answer.status_code, answer.json()["rejected"]) == (202, 1)
    assert not Notification.objects.exists()


def test_a_repeated_batch_gives_the_stored_answer(world: World) -> None:
    first, again = post_batch(world, item("a")), post_batch(world, item("a"))
    assert first.json() == again.json()
    assert again.headers["Idempotent-Replayed"] == "true"


def test_an_overlapping_batch_names_the_old_notifications(world: World) -> None:
    first = post_batch(world, item("a"), item("b"))
    second = post_batch(world, item("b"), item("c"), key="b-2")
    assert [r["result"] for r in second.json()["results"]] == ["duplicate", "accepted"]
    assert second.json()["results"][0]["id"] == first.json()["results"][1]["id"]
