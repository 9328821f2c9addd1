"""Addresses that get nothing."""

from __future__ import annotations

import threading
from datetime import timedelta
from uuid import uuid4

import pytest
from django.db import connection
from django.utils import timezone

from apps.people import services
from apps.people.models import Category, Change, Suppression
from tests.apps.rest.callers import Api, assert_problem, pointers

PATH = "/v1/suppressions"
ADA = {"channel": "email", "address": "ada@example.com"}


def test_an_address_is_suppressed_once(api: Api) -> None:
    answer = api.post(PATH, {**ADA, "note": "asked by phone"})
    assert answer.status_code == 201
    body = answer.json()
    assert (body["reason"], body["category"], body["note"], body["address"]) == (
        "manual",
        None,
        "asked by phone",
        "ada@example.com",
    )
    again = api.post(PATH, {"channel": "email", "address": "ADA@example.com", "note": "asked by phone"})
    assert (again.status_code, again.json()["id"]) == (200, body["id"])
    assert Change.objects.filter(kind="address.suppressed").count() == 1


def test_all_and_one_category_are_entries_of_their_own(api: Api) -> None:
    Category.objects.create(key="offers", name="Offers")
    assert api.post(PATH, {**ADA, "category": "offers"}).status_code == 201
    assert api.post(PATH, ADA).status_code == 201
    assert {row["category"] for row in api.get(PATH).json()["data"]} == {"offers", None}


@pytest.mark.parametrize(
    ("first", "second", "stays"),
    [
        ("manual", "bounce", "bounce"),
        ("bounce", "manual", "bounce"),
        ("complaint", "manual", "complaint"),
        ("stop", "bounce", "stop"),
        ("import", "unsubscribe", "unsubscribe"),
    ],
)
def test_the_stronger_reason_stays(api: Api, first: str, second: str, stays: str) -> None:
    api.post(PATH, {**ADA, "reason": first})
    assert api.post(PATH, {**ADA, "reason": second}).json()["reason"] == stays
    assert Suppression.objects.count() == 1


def test_an_entry_that_has_ended_is_replaced_by_any_reason(api: Api) -> None:
    past = timezone.now() - timedelta(days=1)
    services.suppress("email", "ada@example.com", "complaint", source="provider", expires_at=past)
    answer = api.post(PATH, ADA)
    assert (answer.status_code, answer.json()["reason"], answer.json()["expires_at"]) == (201, "manual", None)


def test_the_same_reason_takes_the_newer_end(api: Api) -> None:
    api.post(PATH, ADA)
    later = api.post(PATH, {**ADA, "expires_at": "2030-01-01T01:00:00+01:00"})
    assert (later.status_code, later.json()["expires_at"]) == (200, "2030-01-01T00:00:00.000000Z")


def test_complaint_and_stop_are_not_lifted_here(api: Api) -> None:
    for reason in ("complaint", "stop"):
        entry, _ = services.suppress("email", f"{reason}@example.com", reason, source="provider")
        assert_problem(api.delete(f"{PATH}/{entry.pk}"), 403, "suppression-protected")
    assert Suppression.objects.count() == 2


def test_every_entry_of_a_sandbox_recipient_is_lifted(api: Api) -> None:
    for address, reason in (("complaint+1@sandbox.invalid", "complaint"), ("bounced@sandbox.invalid", "bounce")):
        entry, _ = services.suppress("email", address, reason, source="provider")
        assert api.delete(f"{PATH}/{entry.pk}").status_code == 204
    entry, _ = services.suppress("sms", "+15005550010", "stop", source="provider")
    assert api.delete(f"{PATH}/{entry.pk}").status_code == 204
    assert not Suppression.objects.exists()
    assert Change.objects.filter(kind="suppression.lifted").count() == 3


def test_lifting_twice_is_not_found(api: Api) -> None:
    id = api.post(PATH, ADA).json()["id"]
    assert api.delete(f"{PATH}/{id}").status_code == 204
    assert_problem(api.delete(f"{PATH}/{id}"), 404, "not-found")
    assert_problem(api.delete(f"{PATH}/{uuid4()}"), 404, "not-found")


def test_entries_are_found_by_channel_address_and_reason(api: Api) -> None:
    api.post(PATH, ADA)
    api.post(PATH, {"channel": "sms", "address": "+4915112345678", "reason": "import"})

    def found(query: str) -> list[str]:
        return [row["address"] for row in api.get(f"{PATH}?{query}").json()["data"]]

    assert found("channel=sms") == ["+4915112345678"]
    assert found("address=Ada@example.com") == ["ada@example.com"]
    assert found("address=%2B4915112345678") == ["+4915112345678"]
    assert found("reason=manual") == ["ada@example.com"]
    assert found("reason=bounce") == []
    answer = api.get(f"{PATH}?reason=whim&address=x")
    assert pointers(assert_problem(answer, 422, "validation-failed")) == [
        ("?reason", "not_allowed"),
        ("?address", "wrong_type"),
    ]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"channel": "email", "address": "x"}, [("/address", "invalid_email")]),
        ({"channel": "push", "address": "x"}, [("/channel", "not_allowed")]),
        ({**ADA, "reason": "whim"}, [("/reason", "not_allowed")]),
        ({**ADA, "category": "nope"}, [("/category", "not_found")]),
        ({**ADA, "expires_at": "tomorrow"}, [("/expires_at", "invalid_time")]),
        ({**ADA, "note": "x" * 501}, [("/note", "too_long")]),
    ],
)
def test_what_cannot_be_suppressed_is_refused(api: Api, body: dict, expected: list[tuple[str, str]]) -> None:
    assert pointers(assert_problem(api.post(PATH, body), 422, "validation-failed")) == expected


def test_the_hash_outlives_the_address(api: Api) -> None:
    entry, _ = services.suppress("email", "ada@example.com", "bounce", source="provider")
    Suppression.objects.filter(pk=entry.pk).update(address="")  # what erasure does
    assert api.get(f"{PATH}?address=ada@example.com").json()["data"][0]["address"] is None
    assert services.suppress("email", "ada@example.com", "bounce", source="provider")[1] is False


@pytest.mark.django_db(transaction=True)
def test_the_same_address_suppressed_and_lifted_by_many_at_once_fails_for_nobody() -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(20):
                entry, _ = services.suppress("email", "ada@example.com", "manual", source=f"t{number}")
                if number % 2:
                    Suppression.objects.filter(pk=entry.pk).delete()
        except BaseException as error:
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
