"""The last resort: whatever somebody logs by mistake, no address, number, token or secret comes through."""

from __future__ import annotations

import base64
import json
import secrets
import uuid
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from apps.console.masking import MOST_DEPTH, masked, masked_field, masked_text

AROUND = [
    "{}",
    "could not reach {} now",
    "to={},",
    "('{}', 3)",
    '{{"to": "{}"}}',
    "<{}>",
    "[{}]",
    "reason:{}",
    "https://api.example.org/send/{}/x",
    "line one\n{}\nline three",
    "ValueError('{} is not valid')",
]
around = st.sampled_from(AROUND)


@given(st.emails(), around)
@example("john.o'neil+tag@mail.example.co.uk", "to={},")
@example("jürgen@bücher.example", "{}")
@example("x/y=z@example.com", "'{}'")
def test_no_email_address_comes_through(address: str, text: str) -> None:
    said = masked_text(text.format(address))
    local, _, domain = address.rpartition("@")
    assert address not in said
    assert domain not in said
    if len(local) > 9:
        assert local not in said


@given(st.emails())
def test_no_escaped_email_address_comes_through(address: str) -> None:
    local, _, domain = address.rpartition("@")
    assert domain not in masked_text(f"GET /v1/users/{local}%40{domain} failed")


digits = st.text("0123456789", min_size=8, max_size=13)


@given(st.sampled_from("123456789"), digits, around)
def test_no_number_in_e164_comes_through(first: str, rest: str, text: str) -> None:
    number = f"+{first}{rest}"
    said = masked_text(text.format(number))
    assert rest not in said and number not in said


@pytest.mark.parametrize("text", AROUND)
@pytest.mark.parametrize(
    "number",
    [
        "+1 (415) 555-2671",
        "+44 20 7946 0958",
        "+49-30-901820",
        "+82 10-1234-5678",
        "+86 138 0013 8000",
        "0044 20 7946 0958",
        "(415) 555-2671",
        "415-555-2671",
        "010-1234-5678",
        "06 12 34 56 78",
        "030 / 901820",
        "14155552671",
    ],
)
def test_no_number_as_people_write_it_comes_through(number: str, text: str) -> None:
    said = masked_text(text.format(number))
    kept = "".join(c for c in said if c.isdigit())
    assert len(kept) < 5, said


@given(st.integers(16, 96), around)
def test_no_random_token_comes_through(size: int, text: str) -> None:
    for token in (secrets.token_hex(size), secrets.token_urlsafe(max(size, 32)), "as_" + secrets.token_urlsafe(32)):
        said = masked_text(text.format(token))
        assert token not in said
        assert not any(token[start : start + 16] in said for start in range(0, len(token) - 16, 8)), said


@given(st.binary(min_size=32, max_size=64))
def test_no_key_in_base64_comes_through_under_its_name(key: bytes) -> None:
    encoded = base64.b64encode(key).decode()
    for said in (
        masked_text(f"secret={encoded}"),
        masked_text(f"the api_key: '{encoded}'"),
        masked_text(f"Authorization: Basic {encoded}"),
        json.dumps(masked({"app_secret": encoded})),
    ):
        assert encoded[:16] not in said


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Authorization: Bearer abc123DEF456", "abc123DEF456"),
        ("postgres://app:hunter2@db.internal:5432/notifier refused", "hunter2"),
        ("redis://:s3cr3t@cache/0", "s3cr3t"),
        ("password=hunter2 host=db", "hunter2"),
        ('{"client_secret": "hunter2"}', "hunter2"),
        ("token eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJURUFNIn0.c2lnbmF0dXJl expired", "eyJpc3MiOiJURUFNIn0"),
        ("-----BEGIN PRIVATE KEY-----\nMIGHAgEA\n-----END PRIVATE KEY-----", "MIGHAgEA"),
        ("whsec_bm90aWZpZXI= is wrong", "bm90aWZpZXI"),
        ("GET https://api.example.org/x?to=ada&key=1 gave 500", "ada"),
        ("/v1/users?external_id=ada", "ada"),
        ("duplicate key value\nDETAIL:  Key (name)=(Ada Lovelace) already exists.\n", "Lovelace"),
        ("DETAIL:  Failing row contains (1, Ada, null).", "Ada"),
    ],
)
def test_no_secret_comes_through(text: str, secret: str) -> None:
    assert secret not in masked_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "01936d3c-1111-7000-8000-000000000000",
        "12345678-1234-7123-8123-123456789012",
        'File "/srv/notifier/apps/notifications/services/accept.py", line 123, in accept_batch_of_notifications',
        "2026-11-22 23:12:03 shift ended",
        "2026-11-22T23:12:03.123456Z",
        "10.0.0.12:6379 refused",
        "192.168.100.200",
        "took 0.123456789 s",
        "pid 1234567 ended with exit code 9",
        "notifications_delivery_p20261122",
        "push-critical@host-1",
        "/v1/notifications/01936d3c-0000-7000-8000-000000000000/cancel",
        "test_what_was_accepted_arrives_though_a_process_is_killed",
        "worker: Warm shutdown (MainProcess)",
        "OperationalError: server closed the connection unexpectedly",
    ],
)
def test_what_people_search_for_stays_readable(text: str) -> None:
    assert masked_text(text) == text


@pytest.mark.parametrize(
    "key", ["token", "app_secret", "PASSWORD", "email", "recipients", "args", "api-key", "to_phone"]
)
def test_what_is_called_a_secret_is_masked_whatever_it_looks_like(key: str) -> None:
    assert masked_field(key, "plain") == "[masked]"
    assert masked_field(key, ["a", {"b": 1}]) == "[masked]"


@pytest.mark.parametrize("key", ["route", "state", "rows", "account", "token_kind", "email_count"])
def test_what_is_only_about_one_is_not(key: str) -> None:
    assert masked_field(key, "plain") == "plain"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.datetimes() | st.uuids(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner) | st.frozensets(st.text()),
)


@given(values)
def test_every_value_becomes_one_that_json_can_hold(value: object) -> None:
    json.dumps(masked(value))


def test_addresses_are_found_at_every_depth_in_values_and_in_keys() -> None:
    deep: object = "ada@example.com"
    for _ in range(MOST_DEPTH * 2):
        deep = {"ada@example.com": [deep]}
    assert "ada" not in json.dumps(masked(deep))


def test_what_cannot_describe_itself_is_named_by_its_class() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no words")

    assert masked(Broken()) == "<Broken>"


def test_ids_and_times_are_kept_as_they_are() -> None:
    id, at = uuid.uuid4(), datetime(2026, 11, 22, 23, 12, tzinfo=UTC)
    assert masked([id, at, 12345678901]) == [str(id), str(at), 12345678901]
