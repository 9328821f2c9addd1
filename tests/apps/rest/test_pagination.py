"""Cursors: opaque, signed, of one list with one set of filters, for a day."""

from __future__ import annotations

import time
from unittest.mock import patch

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from apps.people.models import User
from tests.apps.rest.callers import Api, assert_problem


@pytest.fixture
def cursor(api: Api) -> str:
    for number in range(3):
        api.put(f"/v1/users/u_{number}", {"email": "a@example.com"})
    return str(api.get("/v1/users?limit=1&email=a@example.com").json()["next_cursor"])


def test_a_cursor_goes_on_with_another_limit(api: Api, cursor: str) -> None:
    body = api.get(f"/v1/users?limit=2&email=a@example.com&cursor={cursor}").json()
    assert [user["id"] for user in body["data"]] == ["u_1", "u_0"]
    assert body["next_cursor"] is None


def test_a_cursor_belongs_to_its_filters_and_its_list(api: Api, cursor: str) -> None:
    assert_problem(api.get(f"/v1/users?cursor={cursor}"), 400, "invalid-cursor")
    assert_problem(api.get(f"/v1/users?cursor={cursor}&email=b@example.com"), 400, "invalid-cursor")
    assert_problem(api.get(f"/v1/suppressions?cursor={cursor}"), 400, "invalid-cursor")


@pytest.mark.parametrize("change", ["x", "forged", "unsigned"])
def test_a_forged_cursor_is_refused(api: Api, cursor: str, change: str) -> None:
    forged = {"x": "x", "forged": cursor[:-1] + ("a" if cursor[-1] != "a" else "b"), "unsigned": cursor.split(":")[0]}
    answer = api.get(f"/v1/users?email=a@example.com&cursor={forged[change]}")
    assert_problem(answer, 400, "invalid-cursor")


def test_a_cursor_lasts_a_day(api: Api, cursor: str) -> None:
    path = f"/v1/users?email=a@example.com&cursor={cursor}"
    now = time.time()
    with patch("django.core.signing.time.time", return_value=now + 24 * 3600 - 60):
        assert api.get(path).status_code == 200
    with patch("django.core.signing.time.time", return_value=now + 24 * 3600 + 60):
        assert_problem(api.get(path), 400, "invalid-cursor")


def test_what_is_new_does_not_shift_the_pages(api: Api, cursor: str) -> None:
    api.put("/v1/users/u_9", {"email": "a@example.com"})
    body = api.get(f"/v1/users?limit=1&email=a@example.com&cursor={cursor}").json()
    assert [user["id"] for user in body["data"]] == ["u_1"]


def test_a_page_deep_in_the_list_costs_as_many_statements_as_the_first(api: Api) -> None:
    User.objects.bulk_create(User(external_id=f"u_{number}") for number in range(300))
    api.get("/v1/users")
    spent, cursor = [], ""
    for _ in range(3):
        with CaptureQueriesContext(connection) as queries:
            cursor = (
                "&cursor=" + api.get(f"/v1/users?limit=100{cursor}").json()["next_cursor"] if len(spent) < 2 else cursor
            )
        spent.append(len(queries))
    assert spent[0] == spent[1] == 3
