"""Addresses beside the primary ones."""

from __future__ import annotations

from uuid import uuid4

import pytest

from apps.people import services
from apps.people.models import Address, Change
from tests.apps.rest.callers import Api, assert_problem, pointers


@pytest.fixture
def ada(api: Api) -> Api:
    assert api.put("/v1/users/ada", {"email": "ada@example.com"}).status_code == 201
    api.put("/v1/users/bob", {})
    return api


def add(api: Api, value: str = "second@example.com", channel: str = "email", **flags: bool) -> dict:
    answer = api.post("/v1/users/ada/addresses", {"channel": channel, "value": value, **flags})
    assert answer.status_code == 201, answer.content
    return answer.json()


def test_a_second_address_leaves_the_primary_one_alone(ada: Api) -> None:
    second = add(ada, verified=True)
    assert (second["primary"], second["verified"], second["status"]) == (False, True, "active")
    assert [a["primary"] for a in ada.get("/v1/users/ada").json()["addresses"]] == [True, False]


def test_the_first_of_a_channel_is_primary(ada: Api) -> None:
    assert add(ada, "+4915112345678", "sms")["primary"] is True


def test_primary_moves_to_the_one_that_says_so(ada: Api) -> None:
    second = add(ada, primary=True)
    by_value = {a["value"]: a["primary"] for a in ada.get("/v1/users/ada").json()["addresses"]}
    assert by_value == {"second@example.com": True, "ada@example.com": False}
    first = next(a for a in ada.get("/v1/users/ada/addresses").json()["data"] if a["id"] != second["id"])
    assert ada.put(f"/v1/users/ada/addresses/{first['id']}", {"primary": True}).json()["primary"] is True
    assert Address.objects.get(pk=second["id"]).is_primary is False


def test_adding_a_known_address_answers_200_and_takes_it_into_use_again(ada: Api) -> None:
    second = add(ada)
    services.retire_address(second["id"], "hard_bounce")
    answer = ada.post("/v1/users/ada/addresses", {"channel": "email", "value": "SECOND@example.com"})
    assert answer.status_code == 200
    assert (answer.json()["id"], answer.json()["status"], answer.json()["reason"]) == (second["id"], "active", None)


def test_an_address_never_becomes_another(ada: Api) -> None:
    second = add(ada)
    path = f"/v1/users/ada/addresses/{second['id']}"
    same = {"channel": "email", "value": "Second@Example.com", "verified": True}
    assert ada.put(path, same).json()["verified"] is True
    other = ada.put(path, {"channel": "email", "value": "third@example.com"})
    assert pointers(assert_problem(other, 422, "validation-failed")) == [("/value", "conflict")]
    number = ada.put(path, {"channel": "sms", "value": "+4915112345678"})
    assert pointers(assert_problem(number, 422, "validation-failed")) == [("/channel", "conflict")]


def test_a_channel_holds_ten_addresses(ada: Api) -> None:
    for number in range(9):
        add(ada, f"x{number}@example.com")
    answer = ada.post("/v1/users/ada/addresses", {"channel": "email", "value": "x9@example.com"})
    assert pointers(assert_problem(answer, 422, "validation-failed")) == [("", "too_many")]
    assert ada.post("/v1/users/ada/addresses", {"channel": "email", "value": "x8@example.com"}).status_code == 200
    add(ada, "+4915112345678", "sms")


def test_put_of_the_user_cannot_pass_the_ten_either(ada: Api) -> None:
    for number in range(9):
        add(ada, f"x{number}@example.com")
    primary = Address.objects.get(value="ada@example.com")
    ada.put(f"/v1/users/ada/addresses/{primary.pk}", {"primary": False})
    answer = ada.put("/v1/users/ada", {"email": "x9@example.com", "locale": "de"})
    assert pointers(assert_problem(answer, 422, "validation-failed")) == [("/email", "too_many")]
    assert ada.get("/v1/users/ada").json()["locale"] is None
    bulk = ada.post("/v1/users/bulk", {"users": [{"id": "new"}, {"id": "ada", "email": "x9@example.com"}]}).json()
    assert [r["result"] for r in bulk["results"]] == ["created", "rejected"]
    assert pointers(bulk["results"][1]) == [("/users/1/email", "too_many")]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, [("/channel", "required"), ("/value", "required")]),
        ({"channel": "push", "value": "x"}, [("/channel", "not_allowed")]),
        ({"channel": "email", "value": "x"}, [("/value", "invalid_email")]),
        ({"channel": "sms", "value": "ada@example.com"}, [("/value", "invalid_phone")]),
        ({"channel": "email", "value": "a@example.com", "primary": 1}, [("/primary", "wrong_type")]),
    ],
)
def test_what_is_no_address_is_refused(ada: Api, body: dict, expected: list[tuple[str, str]]) -> None:
    answer = ada.post("/v1/users/ada/addresses", body)
    assert pointers(assert_problem(answer, 422, "validation-failed")) == expected


def test_another_persons_address_is_not_found(ada: Api) -> None:
    second = add(ada)
    assert_problem(ada.put(f"/v1/users/bob/addresses/{second['id']}", {}), 404, "not-found")
    assert_problem(ada.delete(f"/v1/users/bob/addresses/{second['id']}"), 404, "not-found")
    assert_problem(ada.delete(f"/v1/users/ada/addresses/{uuid4()}"), 404, "not-found")


def test_an_address_is_removed(ada: Api) -> None:
    second = add(ada)
    assert ada.delete(f"/v1/users/ada/addresses/{second['id']}").status_code == 204
    assert Address.objects.count() == 1
    assert Change.objects.filter(kind="address.removed", subject=second["id"]).exists()


def test_retiring_is_idempotent_and_tells_once(ada: Api) -> None:
    second = add(ada)
    assert services.retire_address(second["id"], "hard_bounce") is True
    assert services.retire_address(second["id"], "invalid_number") is False
    assert services.retire_address(uuid4(), "hard_bounce") is False
    assert Address.objects.get(pk=second["id"]).reason == "hard_bounce"
    assert Change.objects.filter(kind="address.retired").count() == 1
