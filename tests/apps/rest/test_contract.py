"""The OpenAPI file is made from the shapes that are really used, and the answers keep to it."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from drf_spectacular.generators import SchemaGenerator

from apps.people.models import Category
from apps.rest.views import ClientView
from tests.apps.rest.callers import Api


@pytest.fixture(scope="module")
def paths() -> dict[str, Any]:
    return dict(SchemaGenerator().get_schema(request=None, public=True)["paths"])


def check(paths: dict[str, Any], path: str, method: str, answer: Any) -> Any:
    described = paths[path][method.lower()]["responses"][str(answer.status_code)]
    if answer.status_code == 204:
        assert "content" not in described
        return None
    jsonschema.validate(answer.json(), described["content"]["application/json"]["schema"])
    return answer.json()


USER = {"email": "ada@example.com", "phone": "+4915112345678", "locale": "de", "attributes": {"plan": "pro"}}


def test_what_people_are_answered_is_what_is_described(api: Api, paths: dict[str, Any]) -> None:
    Category.objects.create(key="offers", name="Offers")

    def call(method: str, path: str, template: str, body: Any = None) -> Any:
        return check(paths, template, method, api(method, path, body))

    one, devices, addresses = "/v1/users/{user_id}", "/v1/users/{user_id}/devices", "/v1/users/{user_id}/addresses"
    call("PUT", "/v1/users/ada", one, USER)
    call("PUT", "/v1/users/ada", one, USER)
    device = call("POST", "/v1/users/ada/devices", devices, {"platform": "android", "token": "sandbox-ok-1"})
    address = call("POST", "/v1/users/ada/addresses", addresses, {"channel": "email", "value": "b@example.com"})
    call("GET", "/v1/users/ada", one)
    call("GET", "/v1/users?limit=1", "/v1/users")
    call("GET", "/v1/users/ada/devices", devices)
    call("GET", "/v1/users/ada/addresses", addresses)
    call("PUT", f"/v1/users/ada/addresses/{address['id']}", f"{addresses}/{{address_id}}", {"verified": True})
    call("DELETE", f"/v1/users/ada/addresses/{address['id']}", f"{addresses}/{{address_id}}")
    call("DELETE", f"/v1/users/ada/devices/{device['id']}", f"{devices}/{{device_id}}")
    call("POST", "/v1/users/bulk", "/v1/users/bulk", {"users": [{"id": "x"}, {"id": "x"}, {}]})
    quiet = {"quiet_hours": {"from": "22:00", "to": "08:00"}}
    call("PUT", "/v1/users/ada/preferences", f"{one}/preferences", quiet)
    call("GET", "/v1/users/ada/preferences", f"{one}/preferences")
    entry = call("POST", "/v1/suppressions", "/v1/suppressions", {"channel": "email", "address": "b@example.com"})
    call("GET", "/v1/suppressions", "/v1/suppressions")
    call("DELETE", f"/v1/suppressions/{entry['id']}", "/v1/suppressions/{suppression_id}")
    call("GET", "/v1/categories", "/v1/categories")
    call("GET", "/v1/categories/offers", "/v1/categories/{key}")


@pytest.mark.parametrize(
    ("body", "is_right"),
    [(USER, True), ({}, True), ({"email": None}, True), ({"nope": 1}, False), ({"locale": 1}, False), ([], False)],
)
def test_what_is_described_is_what_is_taken(api: Api, paths: dict[str, Any], body: Any, is_right: bool) -> None:
    described = paths["/v1/users/{user_id}"]["put"]["requestBody"]["content"]["application/json"]["schema"]
    assert jsonschema.Draft202012Validator(described).is_valid(body) is is_right
    assert (api.put("/v1/users/ada", body).status_code < 300) is is_right


def test_both_ways_to_authenticate_are_described(paths: dict[str, Any]) -> None:
    assert paths["/v1/users"]["get"]["security"] == [
        {"basic": []},
        {"app_key": [], "timestamp": [], "nonce": [], "signature": []},
    ]


def test_filters_are_described_and_our_own_words_are_not(paths: dict[str, Any]) -> None:
    users = paths["/v1/users"]["get"]
    assert {parameter["name"] for parameter in users["parameters"]} == {
        "email",
        "phone",
        "token_hash",
        "limit",
        "cursor",
    }
    assert set(paths["/v1/users/bulk"]) == {"post"}
    inherited = str(ClientView.__doc__).splitlines()[0]
    texts = [operation.get("description", "") for path in paths.values() for operation in path.values()]
    assert not any(inherited in text for text in texts)
