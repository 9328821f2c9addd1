from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from apps.templates.models import Template, TemplateVersion
from tests.apps.templates.conftest import DRAFT, Call

SHIPPED = "/templates/order-shipped"


def draft(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(DRAFT) | changes


def saying(text: str) -> dict[str, Any]:
    return draft(channels={"sms": {"en": {"text": text}}})


def errors(answer: Any) -> set[tuple[str, str]]:
    return {(error["pointer"], error["code"]) for error in answer.json().get("errors", [])}


def test_a_new_template_is_a_draft_that_nobody_sends_yet(call: Call) -> None:
    answer = call("PUT", SHIPPED, draft())
    assert answer.status_code == 201
    assert answer["Location"] == "/v1/templates/order-shipped"
    body = answer.json()
    assert (body["version"], body["status"], body["published_version"]) == (1, "draft", None)
    assert body["locales"] == {"sms": ["en"], "push": ["en"], "email": ["de", "en"]}
    assert call("GET", SHIPPED).json()["channels"] == DRAFT["channels"]


def test_equal_content_makes_no_new_version(call: Call) -> None:
    call("PUT", SHIPPED, draft())
    reordered = json.loads(json.dumps(draft(), sort_keys=True))
    again = call("PUT", SHIPPED, reordered)
    assert (again.status_code, again.json()["version"]) == (200, 1)
    assert call("PUT", SHIPPED, saying("Other {{ order.id }}")).json()["version"] == 2
    assert TemplateVersion.objects.count() == 2


def test_a_new_name_alone_makes_no_version(call: Call) -> None:
    call("PUT", SHIPPED, draft())
    answer = call("PUT", SHIPPED, draft(name="Shipped!"))
    assert (answer.status_code, answer.json()["name"], answer.json()["version"]) == (200, "Shipped!", 1)
    unnamed = draft()
    del unnamed["name"]
    assert call("PUT", SHIPPED, unnamed).json()["name"] == "Shipped!"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"channels": {"fax": {}}}, ("/channels/fax", "unknown_field")),
        ({"channels": {}}, ("/channels", "no_content")),
        ({"channels": {"sms": {"en": {"text": "{% if x %}"}}}}, ("/channels/sms/en/text", "invalid_template")),
        ({"channels": {"sms": {"en": {"text": "{{ x | nope }}"}}}}, ("/channels/sms/en/text", "invalid_template")),
        ({"channels": {"sms": {"en": {"text": "{% include 'a' %}"}}}}, ("/channels/sms/en/text", "invalid_template")),
        ({"channels": {"sms": {"en": {"body": "x"}}}}, ("/channels/sms/en/body", "unknown_field")),
        ({"channels": {"sms": {"en": {"text": 7}}}}, ("/channels/sms/en/text", "wrong_type")),
        ({"channels": {"sms": {"en": {"text": "x" * 65537}}}}, ("/channels/sms/en/text", "too_long")),
        ({"channels": {"sms": {"english!": {"text": "x"}}}}, ("/channels/sms/english!", "invalid_locale")),
        ({"channels": {"sms": {"de": {"text": "x"}}}}, ("/channels/sms/en", "required")),
        ({"channels": {"push": {"en": {"title": "x"}}}}, ("/channels/push/en/body", "required")),
        ({"channels": {"email": {"en": {"subject": "x"}}}}, ("/channels/email/en/html", "required")),
        (
            {"channels": {"email": {"en": {"subject": "a\r\nBcc: b@example.com", "text": "x"}}}},
            ("/channels/email/en/subject", "invalid_template"),
        ),
        ({"category": "Not A Key"}, ("/category", "not_allowed")),
        ({"default_locale": "???"}, ("/default_locale", "invalid_locale")),
        ({"data_schema": {"type": "array"}}, ("/data_schema/type", "not_allowed")),
        (
            {"data_schema": {"properties": {"a": {"pattern": "(a+)+$"}}}},
            ("/data_schema/properties/a/pattern", "not_allowed"),
        ),
        (
            {"data_schema": {"properties": {"a": {"$ref": "https://example.com/s.json"}}}},
            ("/data_schema/properties/a/$ref", "not_allowed"),
        ),
        ({"data_schema": {"required": "order"}}, ("/data_schema/required", "not_allowed")),
        ({"sample_data": {"order": {"eta": 7}}}, ("/sample_data/order/eta", "wrong_type")),
        ({"surprise": 1}, ("/surprise", "unknown_field")),
    ],
)
def test_what_cannot_be_sent_is_not_stored(call: Call, changes: dict[str, Any], expected: tuple[str, str]) -> None:
    answer = call("PUT", SHIPPED, draft(**changes))
    assert answer.status_code == 422
    assert answer.json()["code"] == "validation-failed"
    assert expected in errors(answer)
    assert not Template.objects.exists()


def test_a_syntax_error_names_its_line(call: Call) -> None:
    answer = call("PUT", SHIPPED, saying("one\ntwo\n{% for x %}{% endfor %}"))
    assert answer.json()["errors"][0]["detail"].startswith("line 3: ")


def test_several_problems_are_told_at_once(call: Call) -> None:
    answer = call("PUT", SHIPPED, draft(channels={"sms": {"en": {}}, "push": {"en": {"title": "{{"}}}))
    assert errors(answer) == {
        ("/channels/sms/en/text", "required"),
        ("/channels/push/en/title", "invalid_template"),
        ("/channels/push/en/body", "required"),
    }


@pytest.mark.parametrize("key", ["UPPER", "-x", "a b", "a" * 101])
def test_a_key_has_few_characters(call: Call, key: str) -> None:
    assert call("PUT", f"/templates/{key}", draft()).status_code == 404
    assert not Template.objects.exists()


def test_publishing_is_checked_against_what_the_author_saw(call: Call) -> None:
    call("PUT", SHIPPED, saying("one"))
    call("PUT", SHIPPED, saying("two"))
    first = call("POST", f"{SHIPPED}/publish", {"version": 1, "expected_published": None})
    assert (first.status_code, first.json()["published_version"], first.json()["status"]) == (200, 1, "published")
    late = call("POST", f"{SHIPPED}/publish", {"version": 2, "expected_published": None})
    assert (late.status_code, late.json()["code"]) == (409, "version-conflict")
    assert call("POST", f"{SHIPPED}/publish", {"version": 2, "expected_published": 1}).status_code == 200
    repeated = call("POST", f"{SHIPPED}/publish", {"version": 2, "expected_published": 1})
    assert (repeated.status_code, repeated.json()["published_version"]) == (200, 2)


def test_an_older_version_comes_back_by_rollback_only(call: Call) -> None:
    call("PUT", SHIPPED, saying("one"))
    call("PUT", SHIPPED, saying("two"))
    call("POST", f"{SHIPPED}/publish", {"version": 2})
    answer = call("POST", f"{SHIPPED}/publish", {"version": 1})
    assert (answer.status_code, errors(answer)) == (422, {("/version", "not_allowed")})
    assert errors(call("POST", f"{SHIPPED}/publish", {"version": 9})) == {("/version", "not_found")}
    assert errors(call("POST", f"{SHIPPED}/rollback", {"version": 1})) == {("/version", "not_published")}


def test_a_rollback_publishes_the_old_content_as_a_new_version(call: Call) -> None:
    for number, text in enumerate(["one", "two"], start=1):
        call("PUT", SHIPPED, saying(text))
        call("POST", f"{SHIPPED}/publish", {"version": number})
    call("PUT", SHIPPED, saying("a draft that stays one"))
    conflict = call("POST", f"{SHIPPED}/rollback", {"version": 1, "expected_published": 1})
    assert (conflict.status_code, conflict.json()["code"]) == (409, "version-conflict")
    body = call("POST", f"{SHIPPED}/rollback", {"version": 1, "expected_published": 2}).json()
    assert (body["version"], body["published_version"]) == (4, 4)
    assert body["channels"] == saying("one")["channels"]
    again = call("POST", f"{SHIPPED}/rollback", {"version": 1, "expected_published": 2})
    assert (again.status_code, again.json()["version"]) == (200, 4)
    assert TemplateVersion.objects.count() == 4


def test_versions_are_listed_newest_first_and_shown_one_by_one(call: Call) -> None:
    for number in range(1, 4):
        call("PUT", SHIPPED, saying(f"text {number}"))
    call("POST", f"{SHIPPED}/publish", {"version": 2})
    first = call("GET", f"{SHIPPED}/versions?limit=2").json()
    assert [(row["version"], row["status"]) for row in first["data"]] == [(3, "draft"), (2, "published")]
    second = call("GET", f"{SHIPPED}/versions?limit=2&cursor={first['next_cursor']}").json()
    assert [row["version"] for row in second["data"]] == [1]
    assert "channels" not in second["data"][0]
    assert call("GET", f"{SHIPPED}/versions/1").json()["channels"] == saying("text 1")["channels"]
    assert call("GET", f"{SHIPPED}/versions/4").status_code == 404
    assert call("GET", f"{SHIPPED}/versions/99999999999999999999").status_code == 404


def test_the_list_filters_by_what_is_published(call: Call) -> None:
    call("PUT", "/templates/mail-only", draft(channels={"email": {"en": {"subject": "x", "text": "y"}}}))
    call("PUT", "/templates/text-only", saying("hello") | {"category": "security"})
    call("POST", "/templates/text-only/publish", {"version": 1})
    call("PUT", "/templates/text-only", draft())  # a draft with email, not published

    def keys(query: str) -> list[str]:
        return [row["key"] for row in call("GET", f"/templates{query}").json()["data"]]

    assert keys("") == ["text-only", "mail-only"]
    assert keys("?channel=email") == ["mail-only"]
    assert keys("?channel=sms") == ["text-only"]
    assert keys("?category=security") == ["text-only"]
    assert keys("?category=orders") == ["mail-only"]
    assert keys("?limit=1") == ["text-only"]
    assert call("GET", "/templates?channel=fax").status_code == 422


def test_the_list_costs_the_same_number_of_queries_for_one_and_for_many(call: Call) -> None:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    counts = []
    for size in (1, 12):
        for number in range(size):
            call("PUT", f"/templates/t{size}-{number}", draft())
        with CaptureQueriesContext(connection) as queries:
            call("GET", "/templates")
        counts.append(len(queries))
    assert counts[0] == counts[1]


def test_a_preview_shows_any_version_with_what_it_costs(call: Call) -> None:
    call("PUT", SHIPPED, draft())
    body = call("POST", f"{SHIPPED}/preview", {}).json()
    assert body["template"] == {"key": "order-shipped", "version": 1}
    assert body["rendered"]["sms"] == {
        "locale": "en",
        "text": "Order A-1001 arrives 2026-11-25.",
        "encoding": "gsm7",
        "segments": 1,
    }
    assert body["rendered"]["push"]["title"] == "On its way"
    assert 100 < body["rendered"]["push"]["bytes"] < 400
    assert body["rendered"]["email"]["text"] == "Arrives 2026-11-25"
    assert body["missing"] == []

    german = call(
        "POST",
        f"{SHIPPED}/preview",
        {"version": 1, "locale": "de-AT", "channels": ["email"], "data": {"order": {"id": "<7>"}}},
    ).json()
    assert german["rendered"]["email"]["locale"] == "de"
    assert german["rendered"]["email"]["error"]["code"] == "render_error"
    assert german["missing"] == [
        {
            "pointer": "/data/order/eta",
            "code": "missing_variable",
            "detail": 'template order-shipped v1 needs order.eta (string), e.g. "2026-11-25"',
        }
    ]
    assert errors(call("POST", f"{SHIPPED}/preview", {"version": 5})) == {("/version", "not_found")}


def test_data_in_html_is_escaped_and_in_text_is_not(call: Call) -> None:
    call("PUT", SHIPPED, draft())
    data = {"order": {"id": "<b>7</b>", "eta": "<script>alert(1)</script>"}}
    email = call("POST", f"{SHIPPED}/preview", {"data": data}).json()["rendered"]["email"]
    assert email["html"] == "<p>Arrives <b>&lt;script&gt;alert(1)&lt;/script&gt;</b></p>"
    assert email["text"] == "Arrives <script>alert(1)</script>"
    assert email["subject"] == "Order <b>7</b>"


def test_reading_needs_read_and_writing_needs_templates(reader: Call) -> None:
    assert reader("GET", "/templates").status_code == 200
    assert reader("GET", SHIPPED).status_code == 404
    for method, path in [("PUT", SHIPPED), ("POST", f"{SHIPPED}/publish"), ("POST", f"{SHIPPED}/rollback")]:
        answer = reader(method, path, draft())
        assert (answer.status_code, answer.json()["code"]) == (403, "scope-missing")


def test_what_is_not_there_is_not_found(call: Call) -> None:
    for method, path in [
        ("GET", "/templates/none"),
        ("GET", "/templates/none/versions"),
        ("GET", "/templates/none/versions/1"),
        ("POST", "/templates/none/preview"),
        ("POST", "/templates/none/publish"),
        ("POST", "/templates/none/rollback"),
    ]:
        assert call(method, path, {"version": 1} if method == "POST" else None).status_code == 404
