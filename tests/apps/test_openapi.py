"""The contract as a whole: it holds every address there is, with its scope, and says how each refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from apps.notifications import shown
from apps.notifications.models import Waiting
from apps.rest.schema import endpoints
from apps.templates.versions import forget_all
from notifier.message import Mode
from tests.apps.notifications.world import EVERYTHING, World
from tests.apps.rest.callers import Api, assert_problem, forget_callers, make_api

SCOPES = ("send", "read", "users", "templates", "campaigns", "webhooks")
SAMPLES = {"user_id": "ada", "key": "shipped", "number": "1"}
UNKNOWN_ID = "01936d3c-0000-7000-8000-000000000000"


@pytest.fixture(scope="module")
def contract() -> dict[str, Any]:
    answer = Client().get("/v1/openapi.json")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


@pytest.fixture
def world(db: None) -> World:
    forget_callers()
    forget_all()
    return World.make(Mode.LIVE)


def operations(contract: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(method, path, operation) of each."""
    for path, methods in contract["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def filled(path: str, ids: dict[str, str] | None = None) -> str:
    return re.sub(r"{(\w+)}", lambda found: (ids or {}).get(found[1]) or SAMPLES.get(found[1], UNKNOWN_ID), path)


def routes(resolver: URLResolver) -> Iterator[str]:
    for pattern in resolver.url_patterns:
        if isinstance(pattern, URLResolver):
            yield from routes(pattern)
        elif isinstance(pattern, URLPattern) and str(pattern.pattern).startswith("v1/"):
            yield "/" + re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", str(pattern.pattern))


def test_every_address_of_the_api_is_in_the_contract_and_no_other(contract: dict[str, Any]) -> None:
    assert set(contract["paths"]) == set(routes(get_resolver())) - {"/v1/openapi.json"}


def test_each_operation_tells_its_scope_its_credentials_and_its_errors(contract: dict[str, Any]) -> None:
    seen = set()
    for method, path, operation in operations(contract):
        at = f"{method} {path}"
        assert re.match(r"Scope: `(send|read|users|templates|campaigns|webhooks)`\.", operation["description"]), at
        assert {"basic": []} in operation["security"], at
        assert len(operation["security"]) == 2, at
        assert "application/problem+json" in operation["responses"]["default"]["content"], at
        assert operation["operationId"] not in seen, at
        seen.add(operation["operationId"])
        asked = set(re.findall(r"{(\w+)}", path))
        assert {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"} == asked, at


def test_each_list_has_pages_of_at_most_a_hundred(contract: dict[str, Any]) -> None:
    lists = 0
    for method, path, operation in operations(contract):
        content = operation["responses"].get("200", {}).get("content", {})
        fields = content.get("application/json", {}).get("schema", {}).get("properties", {})
        if method == "GET" and "next_cursor" in fields and "data" in fields:
            lists += 1
            named = {parameter["name"]: parameter["schema"] for parameter in operation["parameters"]}
            assert named["limit"] == {"type": "integer", "minimum": 1, "maximum": 100, "default": 50}, path
            assert named["cursor"]["type"] == "string", path
    assert lists >= 2


def test_sending_names_the_idempotency_key_and_a_batch_requires_it(contract: dict[str, Any]) -> None:
    required = {}
    for path in ("/v1/notifications", "/v1/notifications/batch"):
        [header] = [p for p in contract["paths"][path]["post"]["parameters"] if p["in"] == "header"]
        assert header["name"] == "Idempotency-Key"
        assert header["schema"]["maxLength"] == 255
        required[path] = header.get("required", False)
    assert required == {"/v1/notifications": False, "/v1/notifications/batch": True}


def test_the_contract_may_be_kept_for_a_while_and_names_our_address(contract: dict[str, Any], settings: Any) -> None:
    answer = Client().get("/v1/openapi.json")
    assert "max-age" in answer.headers["Cache-Control"]
    assert contract["openapi"].startswith("3.1")
    assert contract["servers"] == [{"url": settings.PUBLIC_URL}]
    assert assert_problem(Client(raise_request_exception=False).post("/v1/openapi.json"), 405, "method-not-allowed")


# --- Whoever may not ---------------------------------------------------------------------------------------------


def call(api: Api, method: str, path: str, operation: dict[str, Any]) -> Any:
    headers = {p["name"]: "k-1" for p in operation.get("parameters", []) if p["in"] == "header" and p.get("required")}
    return api(method, path, {} if method in ("POST", "PUT") else None, headers=headers)


def test_every_operation_refuses_a_key_that_lacks_just_its_scope(world: World, contract: dict[str, Any]) -> None:
    apis = {
        scope: make_api(f"without {scope}", scopes=[other for other in SCOPES if other != scope]) for scope in SCOPES
    }
    for method, path, operation in operations(contract):
        [scope] = re.findall(r"Scope: `(\w+)`", operation["description"])
        answer = call(apis[scope], method, filled(path), operation)
        assert assert_problem(answer, 403, "scope-missing")["scope"] == scope, f"{method} {path}"


def test_what_belongs_to_a_client_is_not_found_by_another_nor_in_the_other_mode(
    world: World, contract: dict[str, Any]
) -> None:
    notification = world.send("ada").json()["id"]
    delivery = world.api.get("/v1/deliveries").json()["data"][0]["id"]
    ids = {"notifications": {"id": notification}, "deliveries": {"id": delivery}}
    strangers = (make_api("rival", **EVERYTHING), make_api("shop", Mode.TEST, **EVERYTHING))
    looked = 0
    for method, path, operation in operations(contract):
        owned = ids.get(path.split("/")[2])
        if owned is not None and "{" in path:
            looked += 1
            for api in strangers:
                assert_problem(call(api, method, filled(path, owned), operation), 404, "not-found")
            assert call(world.api, method, filled(path, owned), operation).status_code == 200, f"{method} {path}"
    assert looked >= 3


def test_an_id_that_nobody_has_is_not_found_anywhere(world: World, contract: dict[str, Any]) -> None:
    for method, path, operation in operations(contract):
        if path.endswith("id}") and "user_id" not in path and method != "PUT":
            assert_problem(call(world.api, method, filled(path), operation), 404, "not-found")


def test_a_method_that_an_address_does_not_take_is_refused_with_those_it_does(
    world: World, contract: dict[str, Any]
) -> None:
    for path, methods in contract["paths"].items():
        known = {method.upper() for method in methods}
        for method in {"GET", "POST", "PUT", "DELETE", "PATCH"} - known - ({"GET", "PUT"} if "bulk" in path else set()):
            answer = world.api(method, filled(path), {} if method != "GET" else None)
            assert_problem(answer, 405, "method-not-allowed")
            assert known <= set(answer.headers["Allow"].split(", ")), f"{method} {path}"


# --- The page ----------------------------------------------------------------------------------------------------


def test_the_page_of_the_contract_runs_and_loads_only_our_own_files() -> None:
    page = Client().get("/docs")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    text = page.content.decode()
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", text, re.DOTALL)
    assert scripts
    assert all("src=" in attributes and not body.strip() for attributes, body in scripts), "an inline script"
    files = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert len(files) >= 4
    for file in files:
        assert file.startswith("/"), file
        answer = Client().get(file)
        assert answer.status_code == 200, file
    [start] = [file for file in files if file.startswith("/docs")]
    script = Client().get(start)
    assert "javascript" in script.headers["Content-Type"]
    assert "/v1/openapi.json" in script.content.decode()


# --- The page for people -----------------------------------------------------------------------------------------

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
PRINTED_BY = (
    "python manage.py shell -v 0 -c 'import json; from apps.rest.schema import endpoints; from config.urls "
    'import contract; print(endpoints(json.loads(contract())), end="")\''
)


def test_the_reference_lists_every_address(contract: dict[str, Any]) -> None:
    _, _, rest = REFERENCE.read_text().partition("<!-- endpoints -->\n")
    table, _, _ = rest.partition("<!-- /endpoints -->")
    assert table == endpoints(contract), f"put there what this prints: {PRINTED_BY}"


def test_the_reference_names_every_state_and_every_word_of_waiting() -> None:
    text = REFERENCE.read_text()
    words = [*shown.STATES, *shown.STATUSES, *(word for word in Waiting.values if word)]
    assert [word for word in words if not re.search(rf"\b{word}\b", text)] == []
