"""What a person allows, and the topics they choose from."""

from __future__ import annotations

import pytest

from apps.people import services
from apps.people.models import Category, Change, Preference
from tests.apps.rest.callers import Api, assert_problem, make_api, pointers


@pytest.fixture
def ada(api: Api) -> Api:
    Category.objects.create(key="security", name="Security", is_mandatory=True, lane="critical")
    Category.objects.create(key="offers", name="Offers", is_marketing=True, is_on_by_default=False, lane="bulk")
    Category.objects.create(key="orders", name="Orders", channels=["push", "email"])
    api.put("/v1/users/ada", {"time_zone": "Europe/Berlin"})
    return api


PATH = "/v1/users/ada/preferences"


def test_without_choices_the_categories_defaults_count(ada: Api) -> None:
    assert ada.get(PATH).json() == {
        "all": True,
        "categories": {
            "offers": {c: {"on": False, "source": "default"} for c in ("push", "sms", "email")},
            "orders": {c: {"on": True, "source": "default"} for c in ("push", "email")},
            "security": {c: {"on": True, "source": "mandatory"} for c in ("push", "sms", "email")},
        },
        "quiet_hours": None,
    }


def test_choices_merge_and_the_answer_is_the_effective_matrix(ada: Api) -> None:
    sent = {
        "all": True,
        "categories": {"offers": {"push": False, "email": True}},
        "quiet_hours": {"from": "22:00", "to": "08:00"},
    }
    body = ada.put(PATH, sent).json()
    assert body["categories"]["offers"] == {
        "push": {"on": False, "source": "user"},
        "sms": {"on": False, "source": "default"},
        "email": {"on": True, "source": "user"},
    }
    assert body["quiet_hours"] == {"from": "22:00", "to": "08:00", "time_zone": "Europe/Berlin"}
    body = ada.put(PATH, {"categories": {"orders": {"email": False}}}).json()
    assert body["categories"]["offers"]["email"] == {"on": True, "source": "user"}
    assert body["categories"]["orders"]["email"] == {"on": False, "source": "user"}
    assert body["quiet_hours"]["from"] == "22:00"
    assert ada.get(PATH).json() == body


def test_null_takes_a_choice_back(ada: Api) -> None:
    ada.put(PATH, {"categories": {"orders": {"email": False}}, "quiet_hours": {"from": "22:00", "to": "08:00"}})
    body = ada.put(PATH, {"categories": {"orders": {"email": None}}, "quiet_hours": None}).json()
    assert body["categories"]["orders"]["email"] == {"on": True, "source": "default"}
    assert body["quiet_hours"] is None
    assert not Preference.objects.exists()


def test_all_off_leaves_only_what_is_mandatory(ada: Api) -> None:
    ada.put(PATH, {"categories": {"orders": {"push": True}}})
    body = ada.put(PATH, {"all": False}).json()
    assert body["all"] is False
    assert body["categories"]["orders"]["push"] == {"on": False, "source": "all"}
    assert body["categories"]["security"]["sms"] == {"on": True, "source": "mandatory"}
    assert ada.put(PATH, {"all": True}).json()["categories"]["orders"]["push"] == {"on": True, "source": "user"}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"categories": {"security": {"sms": False}}}, [("/categories/security/sms", "not_allowed")]),
        ({"categories": {"nope": {"sms": False}}}, [("/categories/nope", "not_found")]),
        ({"categories": {"orders": {"sms": True}}}, [("/categories/orders/sms", "not_allowed")]),
        ({"categories": {"orders": {"fax": True}}}, [("/categories/orders/fax", "unknown_field")]),
        ({"categories": {"orders": {"push": "yes"}}}, [("/categories/orders/push", "wrong_type")]),
        ({"categories": {"orders": True}}, [("/categories/orders", "wrong_type")]),
        ({"all": None}, [("/all", "wrong_type")]),
        ({"quiet_hours": {"from": "22:00"}}, [("/quiet_hours/to", "required")]),
        ({"quiet_hours": {"from": "24:00", "to": "08:00"}}, [("/quiet_hours/from", "invalid_time")]),
        ({"quiet_hours": {"from": "22:00", "to": "8:00"}}, [("/quiet_hours/to", "invalid_time")]),
        ({"quiet_hours": {"from": "22:00", "to": "22:00"}}, [("/quiet_hours/to", "out_of_range")]),
    ],
)
def test_a_wrong_choice_changes_nothing(ada: Api, body: dict, expected: list[tuple[str, str]]) -> None:
    sent = {"categories": {}, **body}
    sent["categories"] = {"offers": {"push": True}, **sent["categories"]}
    assert pointers(assert_problem(ada.put(PATH, sent), 422, "validation-failed")) == expected
    assert not Preference.objects.exists()


def test_switching_a_mandatory_category_on_is_no_fault(ada: Api) -> None:
    assert ada.put(PATH, {"categories": {"security": {"sms": True}}}).status_code == 200


def test_only_what_changed_is_told(ada: Api) -> None:
    ada.put(PATH, {"categories": {"orders": {"push": False, "email": True}}})
    ada.put(PATH, {"categories": {"orders": {"push": False, "email": False}}})
    ada.put(PATH, {"categories": {"orders": {"push": False, "email": False}}, "all": True})
    told = Change.objects.filter(kind="user.preferences_changed").order_by("id")
    assert [row.data for row in told] == [
        {"categories": {"orders": {"email": True, "push": False}}},
        {"categories": {"orders": {"email": False}}},
    ]


def test_where_a_choice_was_made_is_kept(ada: Api) -> None:
    services.set_preferences("ada", choices={"offers": {"email": True}}, source="preference page")
    assert Preference.objects.get().source == "preference page"


def test_preferences_of_nobody_are_not_found(ada: Api) -> None:
    assert_problem(ada.get("/v1/users/nobody/preferences"), 404, "not-found")
    assert_problem(ada.put("/v1/users/nobody/preferences", {"all": False}), 404, "not-found")


def test_categories_are_listed_and_read_with_the_read_scope(ada: Api) -> None:
    body = ada.get("/v1/categories").json()
    assert [category["key"] for category in body["data"]] == ["orders", "offers", "security"]
    assert body["data"][0]["channels"] == ["push", "email"]
    one = ada.get("/v1/categories/security").json()
    assert (one["mandatory"], one["lane"], one["expires_after_s"], one["on_uncertain"]) == (
        True,
        "critical",
        None,
        None,
    )
    assert_problem(ada.get("/v1/categories/nope"), 404, "not-found")
    narrow = make_api("narrow", scopes=["users"])
    assert assert_problem(narrow.get("/v1/categories"), 403, "scope-missing")["scope"] == "read"
