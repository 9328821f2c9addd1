"""Shapes: every fault at once, each at its place; and a batch of a thousand in no time."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime
from typing import Any

import jsonschema
import pytest
from email_validator import EmailNotValidError, validate_email

from apps.rest.formats import (
    Clock,
    Day,
    Email,
    HttpsUrl,
    Id,
    Locale,
    Phone,
    Time,
    TimeZone,
    normal_email,
    normal_locale,
    normal_phone,
    normal_time,
)
from apps.rest.problems import Problem
from apps.rest.validation import (
    INVALID,
    Array,
    Boolean,
    Choice,
    Either,
    Errors,
    Field,
    FreeObject,
    Integer,
    Shape,
    Text,
    parse_body,
)


def faults(field: Field, value: Any) -> list[tuple[str, str]]:
    errors = Errors()
    parsed = field.parse(value, None, errors)
    assert (parsed is INVALID) == bool(errors), (parsed, errors.items)
    return [(error.pointer, error.code) for error in errors.items]


@pytest.mark.parametrize(
    ("field", "right", "wrong", "code"),
    [
        (Text(min=2), "ab", "a", "too_short"),
        (Text(max=2), "\U0001f600é", "abc", "too_long"),
        (Text(max_bytes=4), "\U0001f600", "\U0001f600a", "too_long"),
        (Text(max_bytes=4), "abcd", "éé_", "too_long"),
        (Text(pattern="[a-z]+"), "abc", "abc\n", "not_allowed"),
        (Text(), "", 1, "wrong_type"),
        (Choice(["a", "b"]), "a", "c", "not_allowed"),
        (Choice(["a"]), "a", None, "wrong_type"),
        (Integer(min=1, max=3), 3, 4, "out_of_range"),
        (Integer(min=0, max=3), 1, True, "wrong_type"),
        (Integer(min=0, max=3), 1, 1.0, "wrong_type"),
        (Boolean(), True, 1, "wrong_type"),
        (FreeObject(max_bytes=10), {"a": "é"}, {"a": "éa"}, "too_long"),
        (FreeObject(max_keys=1), {"a": 1}, {"a": 1, "b": 2}, "too_many"),
        (FreeObject(), {}, [], "wrong_type"),
        (Array(Text(), max=1), ["a"], ["a", "b"], "too_many"),
        (Array(Text(), min=1, max=9), ["a"], [], "too_short"),
        (Array(Text(), max=9), [], {}, "wrong_type"),
        (Either({str: Text(), dict: FreeObject()}), {}, [], "wrong_type"),
        (Email(), "a@b.example", "a@b", "invalid_email"),
        (Phone(), "+4915112345678", "+49", "invalid_phone"),
        (Locale(), "de", "d", "invalid_locale"),
        (TimeZone(), "Europe/Berlin", "posix/UTC", "invalid_time_zone"),
        (Time(), "2026-11-22T20:30:00Z", "2026-11-22", "invalid_time"),
        (Clock(), "09:00", "9:00", "invalid_time"),
        (Day(), "2024-02-29", "2023-02-29", "invalid_time"),
        (Id(), "01a204f4-77a0-7d3e-b1f4-2c90e1a4d7f0", "01a204f477a07d3eb1f42c90e1a4d7f0", "wrong_type"),
        (HttpsUrl(), "https://a.example/x?y=1", "http://a.example/", "invalid_url"),
        (HttpsUrl(max=20), "https://a.example/", "https://a.example/xyz", "too_long"),
    ],
)
def test_a_field_takes_the_right_and_names_the_wrong(field: Field, right: Any, wrong: Any, code: str) -> None:
    assert faults(field, right) == []
    assert faults(field, wrong) == [("", code)]
    if not isinstance(field, Day):  # its format is more than its schema says
        assert jsonschema.Draft202012Validator(field.schema()).is_valid(right)


PERSON = Shape(
    {
        "name": Text(required=True, max=5),
        "tags": Array(Choice(["a", "b"]), max=3, unique=True),
        "home": Shape({"city": Text(required=True), "zip": Text(nullable=True)}),
        "age": Integer(min=0, max=150, default=7),
        "email": Text(),
        "phone": Text(),
        "meta": FreeObject(values=Text(max=3), max_key_length=4),
    },
    one_of=[("email", "phone")],
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"name": "Ada", "email": "x"}, []),
        ({}, [("/name", "required"), ("", "required")]),
        ({"name": "Ada", "email": "x", "phone": "y"}, [("/phone", "conflict")]),
        ({"name": None, "email": "x"}, [("/name", "wrong_type")]),
        ({"name": "Ada", "email": "x", "tags": ["a", "c", 1]}, [("/tags/1", "not_allowed"), ("/tags/2", "wrong_type")]),
        ({"name": "Ada", "email": "x", "tags": ["a", "b", "a"]}, [("/tags/2", "conflict")]),
        ({"name": "Ada", "email": "x", "home": {"zip": None}}, [("/home/city", "required")]),
        ({"name": "Ada", "email": "x", "home": {"city": "B", "a/b~c": 1}}, [("/home/a~1b~0c", "unknown_field")]),
        ({"name": "Ada", "email": "x", "meta": {"k": "abcd", "lengthy": "x", "n": 1}},
         [("/meta/lengthy", "too_long"), ("/meta/k", "too_long"), ("/meta/n", "wrong_type")]),
        ({"name": "Adelheid", "email": 1, "age": -1, "x": 0},
         [("/name", "too_long"), ("/email", "wrong_type"), ("/age", "out_of_range"), ("/x", "unknown_field")]),
        ([], [("", "wrong_type")]),
    ],
)  # fmt: skip
def test_a_shape_reports_every_fault_where_it_is(value: Any, expected: list[tuple[str, str]]) -> None:
    assert faults(PERSON, value) == expected


def test_a_shape_describes_what_it_takes() -> None:
    described = jsonschema.Draft202012Validator(PERSON.schema())
    assert described.is_valid({"name": "Ada", "email": "x", "home": {"city": "B", "zip": None}})
    assert not described.is_valid({"name": "Ada"})
    assert not described.is_valid({"name": "Ada", "email": "x", "phone": "y"})
    assert not described.is_valid({"name": "Ada", "email": "x", "nope": 1})
    assert not described.is_valid({"name": "Ada", "email": "x", "home": {"zip": "1"}})


def test_defaults_fill_what_is_absent_and_nothing_else() -> None:
    assert parse_body(PERSON, {"name": "Ada", "email": "x"}) == {"name": "Ada", "email": "x", "age": 7}


def test_a_check_across_fields_runs_only_when_each_is_right() -> None:
    seen: list[dict[str, Any]] = []
    shape = Shape({"a": Integer(min=0, max=9)}, check=lambda parsed, path, errors: seen.append(parsed))
    assert faults(shape, {"a": 10}) == [("/a", "out_of_range")]
    assert seen == []
    assert faults(shape, {"a": 1}) == []
    assert seen == [{"a": 1}]


def test_at_most_a_hundred_faults_are_listed_and_all_are_counted() -> None:
    with pytest.raises(Problem) as caught:
        parse_body(Array(Text(), max=1000), [1] * 1000)
    assert len(caught.value.errors) == 100
    assert "1000 problems" in caught.value.detail


# --- Formats ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Ada.Lovelace+x@Example.COM", "Ada.Lovelace+x@example.com"),
        ("a@bücher.example", "a@xn--bcher-kva.example"),
        ("a@xn--bcher-kva.example", "a@xn--bcher-kva.example"),
        ("bounced+7@sandbox.invalid", "bounced+7@sandbox.invalid"),
        ("Delivered+x@SANDBOX.invalid", "Delivered+x@sandbox.invalid"),
        ("delivered@other.invalid", None),
        ("delivered@sub.sandbox.invalid", None),
        ("a@b@sandbox.invalid", None),
        ("a b@sandbox.invalid", None),
        ("@sandbox.invalid", None),
        ("ü@example.com", None),
        ("a@localhost", None),
        ("a@example", None),
        ("a@127.0.0.1", None),
        ("a@[127.0.0.1]", None),
        ("a@mail.test", None),
        (".a@example.com", None),
        ("a.@example.com", None),
        ("a..b@example.com", None),
        ("a@-b.example", None),
        ("a@b-.example", None),
        ("a@b..example", None),
        ("Ada <a@example.com>", None),
        ("a@example.com\r\nBcc: b@example.com", None),
        ("a@example.com\n", None),
        ("x" * 65 + "@example.com", None),
        ("a@" + "x" * 64 + ".example", None),
        ("a@" + ("x" * 60 + ".") * 4 + "example.com", None),
        ("", None),
    ],
)
def test_email_addresses_have_one_form(text: str, normal: str | None) -> None:
    assert normal_email(text) == normal


@pytest.mark.parametrize("local", ["a", "a.b", "a+b", "a_b", "a-b", "1", "-a", "a-", "_", "A.B"])
@pytest.mark.parametrize(
    "domain",
    "x.example X.Y.example a-b.example a--b.example 1.example x.e x.co xn--a.example ab--c.example a.1b a.b-c".split(),  # noqa: SIM905
)
def test_the_short_way_for_plain_addresses_answers_like_the_long_one(local: str, domain: str) -> None:
    text = f"{local}@{domain}"
    try:
        expected = validate_email(text, check_deliverability=False, allow_smtputf8=False, strict=True).ascii_email
    except EmailNotValidError:
        expected = None
    assert normal_email(text) == expected


@pytest.mark.parametrize("local", ["a", "O'Neil", "Abuse", "a b", '"a"', "ü", "x" * 64, "x" * 65, "a@b", "Ada <a", ""])
@pytest.mark.parametrize(
    "domain",
    ["BÜCHER.example", "中文。example", "straße.example", "bu\u0308cher.example", "a_b.example", "ü" * 50 + ".example",
     "ü" * 60 + ".example", "b.example>", "[::1]", "", ".".join(["bücherüberäöü"] * 12), ".".join(["b" * 60] * 4)],
)  # fmt: skip
def test_a_domain_read_for_itself_is_the_one_of_the_whole_address(local: str, domain: str) -> None:
    text = f"{local}@{domain}"
    try:
        expected = validate_email(text, check_deliverability=False, allow_smtputf8=False, strict=True).ascii_email
    except EmailNotValidError:
        expected = None
    assert normal_email(text) == normal_email(text) == expected


def test_ten_thousand_addresses_that_share_an_international_domain_take_no_second() -> None:
    domain = ".".join(["bücherüberäöü"] * 10) + ".example"
    start = time.process_time()
    assert None not in [normal_email(f"bob{number}@{domain}") for number in range(10_000)]
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ("+15005550006", True),
        ("+447700900123", True),
        ("+4915112345678", True),
        ("+8613812345678", True),
        ("4915112345678", False),
        ("+0151123456", False),
        ("+49 151 12345678", False),
        ("+1500555000", False),
        ("+150055500060000", False),
        ("+999123456789", False),
        ("+\u0661\u0665\u0660\u0660\u0665\u0665\u0665\u0660\u0660\u0660\u0666", False),
        ("+15005550006\n", False),
    ],
)
def test_phone_numbers_are_e164_and_possible(text: str, is_right: bool) -> None:
    assert normal_phone(text) == (text if is_right else None)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("de", "de"),
        ("DE-at", "de-AT"),
        ("zh-hant-tw", "zh-Hant-TW"),
        ("es-419", "es-419"),
        ("sl-rozaj", "sl-rozaj"),
        ("de_AT", None),
        ("german", None),
        ("de-", None),
        ("", None),
        ("de\n", None),
    ],
)
def test_locales_have_one_form(text: str, normal: str | None) -> None:
    assert normal_locale(text) == normal


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("2026-11-22T20:30:00Z", datetime(2026, 11, 22, 20, 30, tzinfo=UTC)),
        ("2026-11-22t20:30:00.5z", datetime(2026, 11, 22, 20, 30, 0, 500_000, tzinfo=UTC)),
        ("2026-11-22T22:30:00.1234567+02:00", datetime(2026, 11, 22, 20, 30, 0, 123_456, tzinfo=UTC)),
        ("2026-11-22 20:30:00-00:30", datetime(2026, 11, 22, 21, 0, tzinfo=UTC)),
        ("2026-11-22T20:30:00", None),
        ("2026-11-22T20:30Z", None),
        ("2026-11-22", None),
        ("2026-02-30T00:00:00Z", None),
        ("2026-11-22T24:00:00Z", None),
        ("2026-11-22T20:30:00+0200", None),
        ("2026-11-22T20:30:00+25:00", None),
        ("2026-W47-7T20:30:00Z", None),
        ("0001-01-01T00:00:00+14:00", None),
        ("9999-12-31T23:59:59-14:00", None),
        ("1795379460", None),
    ],
)
def test_times_are_rfc_3339_and_become_utc(text: str, normal: datetime | None) -> None:
    assert normal_time(text) == normal


@pytest.mark.parametrize(
    "url",
    [
        "http://a.example",
        "https://",
        "https:///x",
        "https://user@a.example/",
        "https://a.example:0/",
        "https://a.example:99999/",
        "https://a b.example/",
        "https://a.example\\@b.example/",
        "https://[::1",
        "javascript:alert(1)",
        "//a.example/",
        "https://a.example/\n",
        "https://ä.example/",
    ],
)
def test_what_is_no_plain_https_address_is_refused(url: str) -> None:
    assert faults(HttpsUrl(), url) == [("", "invalid_url")]


def test_a_date_is_a_date() -> None:
    assert Day().parse("2026-11-23", None, Errors()) == date(2026, 11, 23)


# --- Speed ------------------------------------------------------------------------------------------------------


def test_a_thousand_items_of_twenty_values_take_less_than_25_ms() -> None:
    item = Shape(
        {
            "event_id": Text(required=True, min=1, max=200),
            "template": Either({str: Text(min=1, max=100), dict: FreeObject()}, required=True),
            "to": Array(
                Shape(
                    {"user_id": Text(min=1, max=128), "email": Email(), "locale": Locale()},
                    one_of=[("user_id", "email")],
                ),
                min=1,
                max=100,
                required=True,
            ),
            "data": FreeObject(max_bytes=256 * 1024),
            "expires_at": Time(),
            "metadata": FreeObject(max_keys=20, values=Text(max=500)),
        }
    )
    value = {
        "event_id": "inv-1",
        "template": "invoice",
        "to": [{"user_id": "u_1"}, {"email": "bob@example.com", "locale": "en"}],
        "data": {"order": {"id": "A-1", "total": "12.00"}},
        "expires_at": "2026-11-23T09:00:00Z",
        "metadata": {"team": "checkout"},
    }
    spent = []
    for _ in range(7):
        errors = Errors()
        start = time.process_time()
        for index in range(1000):
            item.parse(value, (None, index), errors)
        spent.append(time.process_time() - start)
        assert not errors
    assert min(spent) < 0.025
