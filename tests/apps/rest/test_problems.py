"""Whatever goes wrong under /v1 is problem+json, with a code that has a page."""

from __future__ import annotations

import html
import json
from pathlib import Path
from unittest.mock import patch

import pytest
from django.conf import settings
from django.db import connection
from django.test import Client as HttpClient

from apps.people.models import User
from apps.rest.catalogue import CATALOGUE, FieldCode, markdown
from tests.apps.rest.callers import Api, assert_problem

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_an_unknown_address_is_not_found(api: Api) -> None:
    for path in ("/v1/nope", "/v1/", "/v1/users/", "/v1//users", "/v1/users/a/b/c"):
        assert_problem(api.get(path), 404, "not-found")


def test_a_wrong_method_names_the_right_ones(api: Api) -> None:
    answer = api("PATCH", "/v1/users/u_1", {})
    assert_problem(answer, 405, "method-not-allowed")
    assert {name.strip() for name in answer.headers["Allow"].split(",")} == {"GET", "PUT", "HEAD"}
    assert_problem(api("OPTIONS", "/v1/users"), 405, "method-not-allowed")
    assert_problem(api("TRACE", "/v1/users"), 405, "method-not-allowed")


def test_head_answers_like_get_without_a_body(api: Api) -> None:
    api.put("/v1/users/u_1", {})
    answer = api("HEAD", "/v1/users/u_1")
    assert (answer.status_code, answer.content) == (200, b"")


def test_an_answer_in_another_form_is_not_acceptable(api: Api) -> None:
    assert_problem(api.get("/v1/users", headers={"Accept": "text/html"}), 406, "not-acceptable")
    assert api.get("/v1/users", headers={"Accept": "application/*"}).status_code == 200


def test_a_foreign_host_is_refused_in_the_same_format(api: Api) -> None:
    assert_problem(api.get("/v1/users", headers={"Host": "evil.example"}), 400, "invalid-request")
    assert_problem(api.get("/v1/nope", headers={"Host": "a b"}), 400, "invalid-request")


def test_a_crash_is_an_internal_error_and_tells_nothing(api: Api) -> None:
    with patch("apps.people.api.users.show_users", side_effect=RuntimeError("secret detail")):
        api.put("/v1/users/u_0", {})
        answer = api.get("/v1/users")
    assert_problem(answer, 500, "internal-error")
    assert b"secret detail" not in answer.content


def test_a_crash_outside_any_view_is_one_too(api: Api) -> None:
    with patch("django.middleware.common.CommonMiddleware.process_request", side_effect=RuntimeError("secret detail")):
        answer = api.get("/v1/users")
    assert_problem(answer, 500, "internal-error")
    assert b"secret detail" not in answer.content


def test_outside_the_api_djangos_own_pages_stay(api: Api) -> None:
    answer = api.get("/nope")
    assert (answer.status_code, answer.headers["Content-Type"]) == (404, "text/html; charset=utf-8")
    assert answer.headers["X-Request-Id"]


@pytest.mark.django_db(transaction=True)
def test_a_database_that_refuses_to_write_is_unavailable(api: Api) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")
        try:
            answer = api.put("/v1/users/u_1", {})
        finally:
            cursor.execute("SET default_transaction_read_only = off")
    assert_problem(answer, 503, "unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
    assert not User.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_database_connection_that_was_cut_is_unavailable_and_then_made_anew(api: Api) -> None:
    api.put("/v1/users/u_1", {})
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        pid = cursor.fetchone()[0]
    other = connection.copy("other")
    with other.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", [pid])
    other.close()
    assert_problem(api.get("/v1/users/u_1"), 503, "unavailable")
    connection.close_if_unusable_or_obsolete()  # what Django does when a real request ends
    assert api.get("/v1/users/u_1").status_code == 200


@pytest.mark.parametrize("given", ["7f3c9a52", "A-Z_0" * 12])
def test_a_callers_request_id_is_echoed(api: Api, given: str) -> None:
    assert api.get("/v1/users", headers={"X-Request-Id": given}).headers["X-Request-Id"] == given
    body = assert_problem(api.get("/v1/nope", headers={"X-Request-Id": given}), 404, "not-found")
    assert body["request_id"] == given


@pytest.mark.parametrize("given", ["", "a" * 65, "a b", "é", "a\nb", "a;b"])
def test_an_unfit_request_id_is_replaced(api: Api, given: str) -> None:
    made = api.get("/v1/users", headers={"X-Request-Id": given}).headers["X-Request-Id"]
    assert made != given
    assert len(made) == 16


def test_answers_are_kept_by_no_cache(api: Api) -> None:
    assert api.get("/v1/users").headers["Cache-Control"] == "no-store"
    assert api.get("/v1/nope").headers["Cache-Control"] == "no-store"


def test_no_answer_sets_a_cookie(api: Api) -> None:
    assert not api.get("/v1/users").cookies


# --- The pages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted(CATALOGUE))
def test_every_code_has_a_public_page(code: str) -> None:
    answer = HttpClient().get(f"/docs/errors/{code}")
    assert answer.status_code == 200
    text = html.unescape(answer.content.decode())
    assert CATALOGUE[code].title in text
    assert str(CATALOGUE[code].status) in text
    assert "`" not in text
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


def test_an_unknown_code_has_none() -> None:
    assert HttpClient().get("/docs/errors/nope").status_code == 404


def test_the_types_of_answers_lead_to_their_pages(api: Api) -> None:
    type_ = json.loads(api.get("/v1/nope").content)["type"]
    assert HttpClient().get(type_.removeprefix(settings.PUBLIC_URL)).status_code == 200


def test_the_written_list_of_codes_is_the_table() -> None:
    assert (DOCS / "errors.md").read_text() == markdown()


def test_the_codes_are_those_of_the_contract() -> None:
    contract = [
        "invalid-json",
        "duplicate-key",
        "invalid-number",
        "invalid-text",
        "too-deep",
        "invalid-cursor",
        "invalid-idempotency-key",
        "idempotency-key-required",
        "unauthenticated",
        "timestamp-out-of-range",
        "nonce-reused",
        "scope-missing",
        "category-not-allowed",
        "channel-not-allowed",
        "lane-not-allowed",
        "inline-content-not-allowed",
        "sender-not-allowed",
        "ip-not-allowed",
        "client-suspended",
        "suppression-protected",
        "not-found",
        "method-not-allowed",
        "not-acceptable",
        "event-id-reused",
        "request-in-progress",
        "invalid-state",
        "version-conflict",
        "body-too-large",
        "unsupported-media-type",
        "validation-failed",
        "idempotency-key-reused",
        "rate-limited",
        "quota-exceeded",
        "internal-error",
        "unavailable",
        "overloaded",
        "nonce-store-unavailable",
    ]
    assert set(contract) - CATALOGUE.keys() == set()
    assert CATALOGUE.keys() - set(contract) == {"invalid-request"}
    fields = [
        "required",
        "unknown_field",
        "wrong_type",
        "too_short",
        "too_long",
        "too_many",
        "out_of_range",
        "invalid_email",
        "invalid_phone",
        "invalid_token",
        "invalid_url",
        "forbidden_address",
        "invalid_time",
        "invalid_time_zone",
        "invalid_locale",
        "in_the_past",
        "not_found",
        "not_published",
        "not_allowed",
        "missing_variable",
        "conflict",
        "category_mismatch",
        "duplicate_recipient",
        "no_content",
        "payload_too_large",
        "invalid_template",
    ]
    assert set(fields) - {code.value for code in FieldCode} == set()
