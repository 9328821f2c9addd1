"""PUT, GET and list of users, and a thousand at once."""

from __future__ import annotations

import threading

import pytest
from django.db import close_old_connections, connection
from django.test.utils import CaptureQueriesContext

from apps.people import services
from apps.people.models import Address, Change, User
from notifier.message import Mode
from tests.apps.rest.callers import Api, assert_problem, make_api, pointers

ADA = {
    "email": "ada@example.com",
    "phone": "+4915112345678",
    "locale": "de",
    "time_zone": "Europe/Berlin",
    "country": "DE",
    "attributes": {"plan": "pro"},
}


def test_a_new_user_is_created_with_primary_addresses(api: Api) -> None:
    answer = api.put("/v1/users/u_42", ADA)
    assert answer.status_code == 201
    body = answer.json()
    assert body["id"] == "u_42"
    assert (body["locale"], body["time_zone"], body["country"]) == ("de", "Europe/Berlin", "DE")
    assert body["attributes"] == {"plan": "pro"}
    assert [(a["channel"], a["value"], a["primary"], a["verified"], a["status"]) for a in body["addresses"]] == [
        ("email", "ada@example.com", True, False, "active"),
        ("sms", "+4915112345678", True, False, "active"),
    ]
    assert body["devices"] == []
    assert body["created_at"].endswith("Z")
    assert len(body["created_at"]) == len("2026-11-22T20:30:10.120000Z")
    assert api.get("/v1/users/u_42").json() == body


def test_putting_again_says_200_and_changes_nothing(api: Api) -> None:
    first = api.put("/v1/users/u_42", ADA).json()
    changes = Change.objects.count()
    again = api.put("/v1/users/u_42", ADA)
    assert again.status_code == 200
    assert again.json() == first
    assert Change.objects.count() == changes


def test_what_is_absent_stays_and_null_clears(api: Api) -> None:
    api.put("/v1/users/u_42", ADA)
    body = api.put("/v1/users/u_42", {"locale": "en", "country": None, "phone": None}).json()
    assert (body["locale"], body["country"], body["time_zone"]) == ("en", None, "Europe/Berlin")
    assert body["attributes"] == {"plan": "pro"}
    assert [a["channel"] for a in body["addresses"]] == ["email"]


def test_attributes_merge_key_by_key(api: Api) -> None:
    api.put("/v1/users/u_42", {"attributes": {"plan": "pro", "city": "Berlin"}})
    assert api.put("/v1/users/u_42", {"attributes": {"plan": None, "age": 7}}).json()["attributes"] == {
        "city": "Berlin",
        "age": 7,
    }
    assert api.put("/v1/users/u_42", {"attributes": None}).json()["attributes"] == {}


def test_merged_attributes_are_held_to_their_size(api: Api) -> None:
    half = {"attributes": {"a": "x" * 9000}}
    assert api.put("/v1/users/u_42", half).status_code == 201
    body = assert_problem(api.put("/v1/users/u_42", {"attributes": {"b": "x" * 9000}}), 422, "validation-failed")
    assert pointers(body) == [("/attributes", "too_long")]
    assert api.get("/v1/users/u_42").json()["attributes"] == half["attributes"]


def test_a_new_email_takes_the_place_of_the_one_before(api: Api) -> None:
    before = api.put("/v1/users/u_42", ADA).json()["addresses"][0]
    after = api.put("/v1/users/u_42", {"email": "ada@new.example"}).json()["addresses"]
    assert [a["value"] for a in after if a["channel"] == "email"] == ["ada@new.example"]
    assert after[0]["id"] != before["id"]


def test_a_secondary_address_is_promoted_when_it_is_put(api: Api) -> None:
    api.put("/v1/users/u_42", ADA)
    second = api.post("/v1/users/u_42/addresses", {"channel": "email", "value": "b@example.com"}).json()
    services.retire_address(second["id"], "hard_bounce")
    [email] = [
        a for a in api.put("/v1/users/u_42", {"email": "b@example.com"}).json()["addresses"] if a["channel"] == "email"
    ]
    assert (email["id"], email["primary"], email["status"]) == (second["id"], True, "active")


def test_the_same_email_in_other_case_is_the_same_address(api: Api) -> None:
    first = api.put("/v1/users/u_42", {"email": "Ada@Example.com"}).json()["addresses"][0]
    again = api.put("/v1/users/u_42", {"email": "ada@example.COM"}).json()["addresses"][0]
    assert first["id"] == again["id"]


def test_a_retired_address_is_not_revived_by_a_nightly_sync(api: Api) -> None:
    address = api.put("/v1/users/u_42", ADA).json()["addresses"][0]
    services.retire_address(address["id"], "hard_bounce")
    assert api.put("/v1/users/u_42", ADA).json()["addresses"][0]["status"] == "retired"


def test_an_erased_user_is_gone_until_put_again(api: Api) -> None:
    api.put("/v1/users/u_42", {"locale": "de"})
    User.objects.update(erased_at="2026-11-22T00:00:00Z", locale="")
    assert_problem(api.get("/v1/users/u_42"), 404, "not-found")
    assert api.get("/v1/users").json()["data"] == []
    assert api.put("/v1/users/u_42", {}).status_code == 201
    assert api.get("/v1/users/u_42").status_code == 200


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"email": "no"}, [("/email", "invalid_email")]),
        ({"phone": "0151"}, [("/phone", "invalid_phone")]),
        ({"phone": "+4915112345678x"}, [("/phone", "invalid_phone")]),
        ({"locale": "german"}, [("/locale", "invalid_locale")]),
        ({"time_zone": "Mars/Base"}, [("/time_zone", "invalid_time_zone")]),
        ({"country": "de"}, [("/country", "not_allowed")]),
        ({"attributes": []}, [("/attributes", "wrong_type")]),
        ({"attributes": {"a": "x" * 17000}}, [("/attributes", "too_long")]),
        ({"name": "Ada"}, [("/name", "unknown_field")]),
        ({"email": 1, "nope": 3}, [("/email", "wrong_type"), ("/nope", "unknown_field")]),
        ([], [("", "wrong_type")]),
    ],
)
def test_every_fault_of_a_user_is_told_at_once(api: Api, body: object, expected: list[tuple[str, str]]) -> None:
    assert pointers(assert_problem(api.put("/v1/users/u_42", body), 422, "validation-failed")) == expected
    assert not User.objects.exists()


@pytest.mark.parametrize("id", ["a" * 129, "..", ".", "%0A", "%C2%80"])
def test_ids_that_no_path_can_carry_are_refused(api: Api, id: str) -> None:
    answer = api.put(f"/v1/users/{id}", {})
    assert pointers(assert_problem(answer, 422, "validation-failed"))[0][0] == "/id"


@pytest.mark.parametrize("id", ["u@example.com", "名前", "a b", "bulk", "%3Cb%3E", "a;b=c,d"])
def test_ids_are_the_callers_own(api: Api, id: str) -> None:
    assert api.put(f"/v1/users/{id}", {}).status_code == 201
    assert api.get(f"/v1/users/{id}").status_code == 200


def test_users_are_found_by_email_phone_and_token_hash(api: Api) -> None:
    api.put("/v1/users/u_1", {"email": "a@example.com", "phone": "+4915112345678"})
    api.put("/v1/users/u_2", {"email": "a@example.com"})
    device = api.post("/v1/users/u_2/devices", {"platform": "android", "token": "sandbox-ok-1"}).json()

    def found(query: str) -> list[str]:
        return [user["id"] for user in api.get(f"/v1/users?{query}").json()["data"]]

    assert found("email=A@example.com") == ["u_2", "u_1"]
    assert found("phone=%2B4915112345678") == ["u_1"]
    assert found("phone=+4915112345678") == ["u_1"]
    assert found("email=a@example.com&phone=%2B4915112345678") == ["u_1"]
    assert found(f"token_hash={device['token_hash']}") == ["u_2"]
    assert found("email=b@example.com") == []


def test_a_list_is_paged_newest_first_without_gaps_or_repeats(api: Api) -> None:
    for number in range(5):
        api.put(f"/v1/users/u_{number}", {})
    seen, cursor = [], ""
    while True:
        body = api.get(f"/v1/users?limit=2{cursor}").json()
        seen += [user["id"] for user in body["data"]]
        if body["next_cursor"] is None:
            break
        cursor = f"&cursor={body['next_cursor']}"
    assert seen == ["u_4", "u_3", "u_2", "u_1", "u_0"]


def test_bulk_answers_item_by_item_in_order(api: Api) -> None:
    api.put("/v1/users/u_42", ADA)
    answer = api.post(
        "/v1/users/bulk",
        {
            "users": [
                {"id": "a", "email": "x"},
                {"id": "b", "email": "b@example.com"},
                {"id": "b"},
                {"id": "u_42", "phone": None},
                {"email": "c@example.com"},
                7,
                {"id": "u_43", "attributes": {"a": 1}},
            ]
        },
    )
    assert answer.status_code == 200
    body = answer.json()
    assert (body["created"], body["updated"], body["rejected"]) == (2, 1, 4)
    assert [(r["index"], r["result"], r["id"]) for r in body["results"]] == [
        (0, "rejected", "a"),
        (1, "created", "b"),
        (2, "rejected", "b"),
        (3, "updated", "u_42"),
        (4, "rejected", None),
        (5, "rejected", None),
        (6, "created", "u_43"),
    ]
    assert [pointers(r) for r in body["results"] if r["result"] == "rejected"] == [
        [("/users/0/email", "invalid_email")],
        [("/users/2/id", "conflict")],
        [("/users/4/id", "required")],
        [("/users/5", "wrong_type")],
    ]
    assert {r.get("code") for r in body["results"] if r["result"] == "rejected"} == {"validation-failed"}
    assert [a["channel"] for a in api.get("/v1/users/u_42").json()["addresses"]] == ["email"]
    assert api.get("/v1/users/b").json()["addresses"][0]["value"] == "b@example.com"


def test_bulk_takes_a_thousand_in_as_many_statements_as_one(api: Api) -> None:
    def statements(first: int, count: int) -> int:
        users = [
            {"id": f"b_{n}", "email": f"b{n}@example.com", "phone": f"+49151{n:08d}", "attributes": {"n": n}}
            for n in range(first, first + count)
        ]
        with CaptureQueriesContext(
            connection,
        ) as queries:
            body = api.post("/v1/users/bulk", {"users": users}).json()
        assert body["created"] + body["updated"] == count, body["results"][:2]
        return len(queries)

    statements(10_000, 1)  # the key is read once
    assert statements(20_000, 1) == statements(0, 1000)
    assert User.objects.count() == 1002
    assert Address.objects.count() == 2004


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, [("/users", "required")]),
        ({"users": []}, [("/users", "too_short")]),
        ({"users": [{}] * 1001}, [("/users", "too_many")]),
        ({"users": {}, "x": 1}, [("/users", "wrong_type"), ("/x", "unknown_field")]),
    ],
)
def test_a_bulk_body_has_1_to_1000_users(api: Api, body: object, expected: list[tuple[str, str]]) -> None:
    assert pointers(assert_problem(api.post("/v1/users/bulk", body), 422, "validation-failed")) == expected


def test_a_wrong_bulk_user_is_told_its_first_ten_faults(api: Api) -> None:
    wrong = {"id": "a", **{f"field_{number}": 1 for number in range(12)}}
    results = api.post("/v1/users/bulk", {"users": [wrong, wrong]}).json()["results"]
    assert [len(result["errors"]) for result in results] == [10, 10]


def test_users_belong_to_the_company_and_are_seen_by_every_client(api: Api) -> None:
    api.put("/v1/users/u_42", ADA)
    other = make_api("other", Mode.TEST)
    assert other.get("/v1/users/u_42").status_code == 200


def test_changes_are_told_without_personal_data(api: Api) -> None:
    api.put("/v1/users/u_42", ADA)
    api.put("/v1/users/u_42", {"email": "ada@new.example", "locale": "en"})
    told = list(Change.objects.order_by("id").values_list("kind", "data"))
    assert [kind for kind, _ in told] == [
        "address.added",
        "address.added",
        "user.created",
        "address.removed",
        "address.added",
        "user.updated",
    ]
    assert not any("@" in str(data) or "+49" in str(data) for _, data in told)


@pytest.mark.django_db(transaction=True)
def test_the_same_new_users_put_by_many_at_once_are_made_once() -> None:
    """Overlapping bulks in different orders: no deadlock reaches a caller, nothing is made twice."""
    failures: list[BaseException] = []
    made: list[int] = []

    def put(ids: list[int]) -> None:
        try:
            results = services.put_users([(f"r_{n}", {"email": f"r{n}@example.com"}) for n in ids])
            made.append(sum(result.is_new for result in results))
        except BaseException as error:
            failures.append(error)
        finally:
            close_old_connections()
            connection.close()

    orders = [list(range(200)), list(reversed(range(200))), list(range(100, 300)), list(range(0, 300, 3))]
    threads = [threading.Thread(target=put, args=(order,)) for order in orders * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sum(made) == 300
    assert User.objects.count() == 300
    assert Address.objects.filter(is_primary=True).count() == 300
