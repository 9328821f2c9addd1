"""Array literals: what goes in comes out of PostgreSQL unchanged."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apps.notifications import arrays
from notifier.ids import uuid7
from tests.apps.notifications.world import run

storable = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@pytest.mark.django_db
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.none() | storable))
def test_any_text_survives(values: list[str | None]) -> None:
    assert run("SELECT %s::text[]", arrays.texts(values)) == [(values,)]


@pytest.mark.django_db
@pytest.mark.parametrize(
    "value", ["", "NULL", "null", '"', "\\", '\\"', "{a,b}", " a ", "a\nb", "é😀\u202e", "%s %(a)s"]
)
def test_text_that_means_something_to_the_literal_is_only_text(value: str) -> None:
    assert run("SELECT %s::text[]", arrays.texts([value])) == [([value],)]


@pytest.mark.django_db
def test_numbers_ids_booleans_and_json_survive() -> None:
    ids = [uuid7(), uuid7()]
    values: list[Any] = [{"a": ['"', "\\", None, 1.5, "é"]}, None, [], "text"]
    assert run("SELECT %s::uuid[]", arrays.plain([*ids, None])) == [([*ids, None],)]
    assert run("SELECT %s::int[], %s::bool[]", arrays.plain([1, None, -3]), arrays.plain([True, None, False])) == [
        ([1, None, -3], [True, None, False])
    ]
    rows = run("SELECT v->'a'->>4, v IS NULL FROM unnest(%s::jsonb[]) AS v", arrays.jsons(values))
    assert rows == [("é", False), (None, True), (None, False), (None, False)]
