"""Whatever is sent to the people's endpoints: an answer that is meant, never a 5xx."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.people.models import Category
from apps.rest.parsing import parse_json
from apps.rest.problems import Problem
from tests.apps.rest.callers import Api

ODD = [
    None, True, 0, -1, 2**53, 1.5, "", " ", "a" * 5000, "é\U0001f600\u202e", "\u2028", "'; DROP TABLE people_user; --",
    "{{7*7}}", "%s%d", "../..", "null", "2026-11-22T20:30:00Z", "+4915112345678", "ada@example.com", "push", "email",
    "sms", "ios", "web", "android", "x" * 320 + "@example.com", [], {}, [[]], {"": ""}, {"a": {"b": [None]}}, "\x7f",
]  # fmt: skip
FIELDS = (
    "id email phone locale time_zone country attributes users platform token provider token_kind app_id "
    "apns_environment app_version channel value primary verified all categories quiet_hours from to address reason "
    "category note expires_at endpoint keys p256dh auth offers"
)
ENDPOINTS = [
    ("PUT", "/v1/users/ada"),
    ("POST", "/v1/users/bulk"),
    ("POST", "/v1/users/ada/devices"),
    ("POST", "/v1/users/ada/addresses"),
    ("PUT", "/v1/users/ada/preferences"),
    ("POST", "/v1/suppressions"),
    ("GET", "/v1/users"),
    ("GET", "/v1/suppressions"),
]


def body(chance: random.Random, depth: int = 0) -> Any:
    if depth == 3 or chance.random() < 0.3:
        return chance.choice(ODD)
    if chance.random() < 0.2:
        return [body(chance, depth + 1) for _ in range(chance.randrange(4))]
    return {chance.choice(FIELDS.split()): body(chance, depth + 1) for _ in range(chance.randrange(6))}


@pytest.mark.parametrize("seed", range(8))
def test_no_body_and_no_query_makes_a_server_error(api: Api, seed: int) -> None:
    Category.objects.create(key="offers", name="Offers")
    api.put("/v1/users/ada", {})
    chance = random.Random(seed)
    for number in range(150):
        method, path = chance.choice(ENDPOINTS)
        sent = body(chance)
        if path == "/v1/users/bulk":
            sent = {"users": [body(chance, 1) for _ in range(chance.randrange(1, 5))]}
        if method == "GET":
            name = chance.choice("limit cursor email phone token_hash channel address reason x".split())  # noqa: SIM905
            value = json.dumps(sent) if not isinstance(sent, str) else sent
            answer = api(method, path, QUERY_STRING=f"{name}={value}"[:4000].encode().decode("latin-1"))
        else:
            answer = api(method, path, sent)
        told = (seed, number, method, path, sent, answer.content[:300])
        assert answer.status_code < 500, told
        if answer.status_code >= 400:
            assert answer.headers["Content-Type"] == "application/problem+json", told


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(JSON, st.booleans())
def test_strict_json_comes_back_as_it_was(value: Any, ensure_ascii: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ensure_ascii).encode()) == value


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200) | st.text(alphabet='{}[]",:\\u0d8e19NaInfity-+.eE ', max_size=60).map(str.encode))
def test_any_bytes_are_a_value_or_a_problem(raw: bytes) -> None:
    try:
        value = parse_json(raw)
    except Problem as problem:
        assert problem.status == 400
    else:
        assert json.loads(raw) == value
