"""The contract by example: each request is taken, each answer says at least what was promised, as it is described.

The examples are abbreviated and answers may gain fields, so an answer must hold an example's fields, not equal it.
"""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import jsonschema
import pytest
from drf_spectacular.generators import SchemaGenerator

from apps.notifications import claims, records
from apps.notifications.models import Event, Pending
from apps.people.models import Category
from apps.providers.models import ProviderAccount
from notifier.ids import derived_id
from notifier.ledger import Result
from notifier.message import Channel
from notifier.outcome import Kind, Outcome
from notifier.stages.settle import judge
from tests.apps.notifications.world import World, publish, run
from tests.apps.rest.callers import assert_problem

USER = {
    "email": "ada@example.com", "phone": "+4915112345678", "locale": "de", "time_zone": "Europe/Berlin",
    "country": "DE", "attributes": {"plan": "pro"},
}  # fmt: skip
USER_ANSWER = {
    "id": "u_42", "locale": "de", "time_zone": "Europe/Berlin", "country": "DE", "attributes": {"plan": "pro"},
    "addresses": [{
        "id": "01a204f4-0001-7c11-9a01-5f0e7a1b2c3d", "channel": "email", "value": "ada@example.com", "primary": True,
        "verified": False, "status": "active",
    }],
    "devices": [], "created_at": "2026-11-22T20:30:10.120000Z", "updated_at": "2026-11-22T20:30:10.120000Z",
}  # fmt: skip
SANDBOX_USER = {
    "email": "delivered+ada@sandbox.invalid", "phone": "+15005550006", "locale": "en", "time_zone": "Europe/Berlin",
}  # fmt: skip
IPHONE = {
    "platform": "ios", "token": "5a0db0c50200aaaabbbbccccddddeeeeffff00001111222233334444555566ab",
    "app_id": "com.example.shop", "apns_environment": "production", "app_version": "3.2.0", "locale": "de",
}  # fmt: skip
IPHONE_ANSWER = {
    "id": "01a204f4-1b2c-7a55-8d10-7c5f0c9d1e22", "user_id": "u_42", "platform": "ios", "provider": "apns",
    "status": "active", "reason": None, "last_seen_at": "2026-11-22T20:30:12.004000Z",
}  # fmt: skip
FIRST_SEND = {
    "event_id": "order-A-1001-shipped", "template": "order-shipped", "to": [{"user_id": "u_42"}],
    "data": {"order": {"id": "A-1001", "eta": "2026-11-25"}},
}  # fmt: skip
SEND = {
    "event_id": "order-A-1001-shipped", "template": "order-shipped",
    "to": [{"user_id": "u_42"}, {"email": "bob@example.com", "locale": "en"}],
    "data": {"order": {"id": "A-1001", "eta": "2026-11-25"}}, "reference": "order-A-1001",
    "metadata": {"team": "checkout"},
}  # fmt: skip
SEND_ANSWER = {
    "id": "01a204f4-77a0-7d3e-b1f4-2c90e1a4d7f0", "status": "accepted", "duplicate": False, "mode": "live",
    "event_id": "order-A-1001-shipped", "reference": "order-A-1001",
    "template": {"key": "order-shipped", "version": 7}, "category": "orders", "lane": "normal", "recipients": 2,
    "due_at": "2026-11-22T20:31:00.000000Z", "expires_at": "2026-11-23T09:00:00.000000Z",
    "created_at": "2026-11-22T20:31:00.000000Z",
    "url": "https://notify.example.com/v1/notifications/01a204f4-77a0-7d3e-b1f4-2c90e1a4d7f0",
}  # fmt: skip
BATCH = {
    "items": [
        {"event_id": "inv-1", "template": "invoice", "to": [{"user_id": "u_1"}], "data": {"amount": "12.00"}},
        {"event_id": "inv-2", "template": "invoice", "to": [{"user_id": "u_2"}]},
    ]
}
BATCH_ANSWER = {
    "accepted": 1, "duplicate": 0, "rejected": 1,
    "results": [
        {"index": 0, "result": "accepted", "event_id": "inv-1", "id": "01a204f4-77b1-7001-8a10-0f1e2d3c4b5a"},
        {"index": 1, "result": "rejected", "event_id": "inv-2", "code": "validation-failed",
         "errors": [{"pointer": "/items/1/data/amount", "code": "missing_variable",
                     "detail": "template invoice v3 needs amount (string)"}]},
    ],
}  # fmt: skip
NOTIFICATION_ANSWER = {
    "id": "01a204f4-77a0-7d3e-b1f4-2c90e1a4d7f0", "status": "in_progress",
    "counts": {"delivered": 1, "suppressed": 1, "queued": 1},
    "deliveries": [
        {"id": "01a204f4-77a0-7b02-a3c1-9e8d7c6b5a41", "user_id": "u_42", "channel": "push", "platform": "ios",
         "state": "delivered", "reason": None},
        {"id": "01a204f4-77a0-7c93-90aa-1b2c3d4e5f60", "user_id": "u_42", "channel": "email", "state": "queued",
         "waiting": "awaiting_escalation", "due_at": "2026-11-22T20:41:00.000000Z"},
        {"id": "01a204f4-77a0-7e10-8f00-a0b1c2d3e4f5", "user_id": None, "channel": "email", "state": "suppressed",
         "reason": {"code": "suppressed_bounce", "detail": "bounced 2026-10-02, 550 5.1.1"}},
    ],
    "next_cursor": None,
}  # fmt: skip
DELIVERY_ANSWER = {
    "id": "01a204f4-77a0-7b02-a3c1-9e8d7c6b5a41", "notification_id": "01a204f4-77a0-7d3e-b1f4-2c90e1a4d7f0",
    "channel": "push", "state": "delivered", "address": "...66ab", "provider": "push-main",
    "provider_ref": "8f14e45f-ceea-467f-a0e6-1c2b3a4d5e6f", "sent_at": "2026-11-22T20:31:02.310000Z",
    "delivered_at": "2026-11-22T20:31:03.100000Z",
    "decisions": [
        {"gate": "exists", "result": "pass"}, {"gate": "mode", "result": "pass", "value": "live"},
        {"gate": "hold", "result": "pass"}, {"gate": "expiry", "result": "pass"},
        {"gate": "preference", "result": "pass", "value": {"category": "orders", "channel": "push"}},
        {"gate": "suppression", "result": "pass"}, {"gate": "address", "result": "pass"},
        {"gate": "provider", "result": "pass", "value": "push-main"},
    ],
    "attempts": [
        {"number": 1, "provider": "push-main", "started_at": "2026-11-22T20:31:01.020000Z",
         "ended_at": "2026-11-22T20:31:01.130000Z", "outcome": "unavailable", "http_status": 503,
         "provider_code": "ServiceUnavailable"},
        {"number": 2, "provider": "push-main", "started_at": "2026-11-22T20:31:02.200000Z",
         "ended_at": "2026-11-22T20:31:02.310000Z", "outcome": "accepted", "http_status": 200, "provider_code": None},
    ],
    "events": [{"id": "01a204f4-9001-7a77-8b00-000000000abc", "kind": "delivered", "source": "app", "machine": False,
                "at": "2026-11-22T20:31:03.100000Z"}],
}  # fmt: skip
PREFERENCES = {
    "all": True, "categories": {"offers": {"push": False, "email": True}},
    "quiet_hours": {"from": "22:00", "to": "08:00"},
}  # fmt: skip
PREFERENCES_ANSWER = {
    "all": True,
    "categories": {
        "offers": {"push": {"on": False, "source": "user"}, "sms": {"on": False, "source": "default"},
                   "email": {"on": True, "source": "user"}},
        "security": {channel: {"on": True, "source": "mandatory"} for channel in ("push", "sms", "email")},
    },
    "quiet_hours": {"from": "22:00", "to": "08:00", "time_zone": "Europe/Berlin"},
}  # fmt: skip
PROBLEM_ANSWER = {
    "type": "https://notify.example.com/docs/errors/validation-failed", "code": "validation-failed",
    "title": "Some fields are not valid", "status": 422, "detail": "1 problem; nothing was sent",
    "request_id": "7f3c9a52",
    "errors": [{"pointer": "/data/order/eta", "code": "missing_variable",
                "detail": "template order-shipped v7 needs order.eta (string)"}],
}  # fmt: skip

REQUESTS = [
    ("/v1/users/{user_id}", "put", USER),
    ("/v1/users/{user_id}", "put", SANDBOX_USER),
    ("/v1/users/{user_id}/devices", "post", IPHONE),
    ("/v1/users/{user_id}/devices", "post", {"platform": "android", "token": "sandbox-ok-1"}),
    ("/v1/notifications", "post", FIRST_SEND),
    ("/v1/notifications", "post", SEND),
    ("/v1/notifications/batch", "post", BATCH),
    ("/v1/users/{user_id}/preferences", "put", PREFERENCES),
]
ANSWERS = [
    ("/v1/users/{user_id}", "put", "201", USER_ANSWER),
    ("/v1/users/{user_id}/devices", "post", "201", IPHONE_ANSWER),
    ("/v1/notifications", "post", "202", SEND_ANSWER),
    ("/v1/notifications", "post", "200", SEND_ANSWER | {"duplicate": True}),
    ("/v1/notifications/batch", "post", "202", BATCH_ANSWER),
    ("/v1/notifications/{id}", "get", "200", NOTIFICATION_ANSWER),
    ("/v1/deliveries/{id}", "get", "200", DELIVERY_ANSWER),
    ("/v1/users/{user_id}/preferences", "put", "200", PREFERENCES_ANSWER),
    ("/v1/notifications", "post", "default", PROBLEM_ANSWER),
]


@pytest.fixture(scope="module")
def paths() -> dict[str, Any]:
    return dict(SchemaGenerator().get_schema(request=None, public=True)["paths"])


def validate(value: Any, schema: dict[str, Any]) -> None:
    formats = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(schema, format_checker=formats).validate(value)


def described(paths: dict[str, Any], path: str, method: str, status: str) -> dict[str, Any]:
    [content] = paths[path][method]["responses"][status]["content"].values()
    schema: dict[str, Any] = content["schema"]
    return schema


def lenient(schema: Any) -> Any:
    """The same without `required`: an example leaves out what it does not speak of."""
    if isinstance(schema, dict):
        return {key: lenient(value) for key, value in schema.items() if key != "required"}
    return [lenient(value) for value in schema] if isinstance(schema, list) else schema


FREE = {"attributes", "counts", "value"}  # objects whose keys are data, not fields


def assert_says(real: Any, example: Any, at: str = "$") -> None:
    """That `real` has every field of `example`, of the same JSON type; a null on either side fits."""
    if isinstance(example, dict) and isinstance(real, dict):
        for key, value in example.items():
            assert key in real, f"{at} has no {key}"
            if key not in FREE:
                assert_says(real[key], value, f"{at}.{key}")
    elif isinstance(example, list) and isinstance(real, list):
        for index, (one, other) in enumerate(zip(real, example, strict=False)):
            assert_says(one, other, f"{at}[{index}]")
    elif real is not None and example is not None:
        assert type(real) is type(example), f"{at} is {real!r}, the contract says {example!r}"


def name(case: Any) -> str:
    return " ".join(part.upper() if part.islower() and "/" not in part else part for part in case if type(part) is str)


@pytest.mark.parametrize("case", REQUESTS, ids=name)
def test_each_request_of_the_contract_is_described(paths: dict[str, Any], case: tuple[str, str, Any]) -> None:
    path, method, body = case
    validate(body, paths[path][method]["requestBody"]["content"]["application/json"]["schema"])


@pytest.mark.parametrize("case", REQUESTS, ids=name)
def test_an_unknown_field_is_against_the_description_too(
    paths: dict[str, Any], case: tuple[str, str, dict[str, Any]]
) -> None:
    path, method, body = case
    with pytest.raises(jsonschema.ValidationError, match="surprise"):
        validate(body | {"surprise": 1}, paths[path][method]["requestBody"]["content"]["application/json"]["schema"])


@pytest.mark.parametrize("case", ANSWERS, ids=name)
def test_each_answer_of_the_contract_fits_its_description(
    paths: dict[str, Any], case: tuple[str, str, str, Any]
) -> None:
    path, method, status, body = case
    validate(body, lenient(described(paths, path, method, status)))


class Story:
    """Calls the API, and holds each answer to its description and to the contract's example."""

    def __init__(self, world: World, paths: dict[str, Any]) -> None:
        self.api, self.paths = world.api, paths

    def __call__(
        self, method: str, path: str, template: str, body: Any, status: int, example: Any, **extra: Any
    ) -> Any:
        answer = self.api(method, path, body, **extra)
        assert answer.status_code == status, answer.content
        validate(answer.json(), described(self.paths, template, method.lower(), str(status)))
        assert_says(answer.json(), example)
        return answer


@pytest.fixture
def story(world: World, paths: dict[str, Any]) -> Story:
    said = "{{ order.id }} arrives on {{ order.eta }}"
    publish("order-shipped", "orders", push={"en": {"title": "Order", "body": said}}, sms={"en": {"text": said}},
            email={"en": {"subject": said, "text": said}})  # fmt: skip
    publish("invoice", "orders", email={"en": {"subject": "Invoice", "text": "{{ amount }}"}})
    Category.objects.update_or_create(key="offers", defaults={"channels": ["push", "sms", "email"]})
    return Story(world, paths)


def test_two_minutes_go_as_the_contract_tells_them(story: Story) -> None:
    story("PUT", "/v1/users/u_42", "/v1/users/{user_id}", SANDBOX_USER, 201, USER_ANSWER)
    device = {"platform": "android", "token": "sandbox-ok-1"}
    story("POST", "/v1/users/u_42/devices", "/v1/users/{user_id}/devices", device, 201, IPHONE_ANSWER)
    sent = story("POST", "/v1/notifications", "/v1/notifications", FIRST_SEND, 202, SEND_ANSWER).json()
    found = story.api.get("/v1/notifications?event_id=order-A-1001-shipped")
    validate(found.json(), described(story.paths, "/v1/notifications", "get", "200"))
    assert [row["id"] for row in found.json()["data"]] == [sent["id"]]


def test_a_person_a_device_and_a_message_go_as_the_contract_tells_them(story: Story) -> None:
    one, devices = "/v1/users/{user_id}", "/v1/users/{user_id}/devices"
    story("PUT", "/v1/users/u_42", one, USER, 201, USER_ANSWER)
    story("PUT", "/v1/users/u_42", one, USER, 200, USER_ANSWER)
    story("POST", "/v1/users/u_42/devices", devices, IPHONE, 201, IPHONE_ANSWER)
    story("POST", "/v1/users/u_42/devices", devices, IPHONE, 200, IPHONE_ANSWER)

    accepted = story("POST", "/v1/notifications", "/v1/notifications", SEND, 202, SEND_ANSWER)
    id = accepted.json()["id"]
    assert accepted.headers["Location"] == f"/v1/notifications/{id}"
    assert accepted.json()["url"].endswith(accepted.headers["Location"])
    again = story("POST", "/v1/notifications", "/v1/notifications", SEND, 200, SEND_ANSWER).json()
    assert again == accepted.json() | {"duplicate": True, "status": again["status"]}

    looked = story("GET", f"/v1/notifications/{id}", "/v1/notifications/{id}", None, 200, NOTIFICATION_ANSWER).json()
    assert sum(looked["counts"].values()) == len(looked["deliveries"])

    push = send_push_at_the_second_try()
    told = story("GET", f"/v1/deliveries/{push}", "/v1/deliveries/{id}", None, 200, DELIVERY_ANSWER).json()
    assert [decision["gate"] for decision in told["decisions"]] == [
        decision["gate"] for decision in DELIVERY_ANSWER["decisions"]
    ]
    assert told["address"] == DELIVERY_ANSWER["address"]
    for query in (f"notification_id={id}", "user_id=u_42", "state=delivered", "channel=push"):
        page = story.api.get(f"/v1/deliveries?{query}").json()
        validate(page, described(story.paths, "/v1/deliveries", "get", "200"))
        assert page["data"], query

    cancelled = story.api.post(f"/v1/notifications/{id}/cancel", {})
    validate(cancelled.json(), described(story.paths, "/v1/notifications/{id}/cancel", "post", "200"))


def send_push_at_the_second_try() -> UUID:
    account = ProviderAccount.objects.get(name="mail-main")
    for kind, said in ((Kind.UNAVAILABLE, ("ServiceUnavailable", 503)), (Kind.ACCEPTED, ("", 200))):
        run("UPDATE notifications_pending SET due_at = now()")
        ids = list(Pending.objects.filter(channel=Channel.PUSH).values_list("id", flat=True))
        [claimed] = claims.claim(ids, lease_s=60, alone=False)
        outcome = Outcome(kind, code=said[0], http_status=said[1], provider_ref="ref-1" if not said[0] else "")
        at = claimed.expires_at - 3600
        records.write([Result(claimed, judge(claimed, outcome), outcome, account.pk, at, at + 0.1)])
    run("UPDATE notifications_delivery SET state = 'delivered', delivered_at = now() WHERE id = %s", str(ids[0]))
    Event.objects.create(id=derived_id(ids[0], "event"), delivery_id=ids[0], kind="delivered", source="app",
                         at="2026-11-22T20:31:03.1Z")  # fmt: skip
    return UUID(str(ids[0]))


def test_a_batch_goes_as_the_contract_tells_it(story: Story) -> None:
    batch, key = "/v1/notifications/batch", {"Idempotency-Key": "nightly-2026-11-22-p3"}
    first = story("POST", batch, batch, BATCH, 202, BATCH_ANSWER, headers=key)
    faults = first.json()["results"][1]["errors"]
    assert [(fault["pointer"], fault["code"]) for fault in faults] == [("/items/1/data/amount", "missing_variable")]
    again = story("POST", batch, batch, BATCH, 202, BATCH_ANSWER, headers=key)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.json() == first.json()


def test_preferences_go_as_the_contract_tells_them(story: Story) -> None:
    path = "/v1/users/{user_id}/preferences"
    story("PUT", "/v1/users/u_42", "/v1/users/{user_id}", USER, 201, USER_ANSWER)
    answer = story("PUT", "/v1/users/u_42/preferences", path, PREFERENCES, 200, PREFERENCES_ANSWER).json()
    for category, choices in PREFERENCES_ANSWER["categories"].items():  # type: ignore[attr-defined]
        assert answer["categories"][category] == choices
    assert answer["quiet_hours"] == PREFERENCES_ANSWER["quiet_hours"]


def test_an_error_goes_as_the_contract_tells_it(story: Story) -> None:
    body = json.loads(json.dumps(SEND))
    del body["data"]["order"]["eta"]
    problem = assert_problem(story.api.post("/v1/notifications", body), 422, "validation-failed")
    validate(problem, described(story.paths, "/v1/notifications", "post", "default"))
    assert_says(problem, PROBLEM_ANSWER)
    assert [(fault["pointer"], fault["code"]) for fault in problem["errors"]] == [
        ("/data/order/eta", "missing_variable")
    ]
