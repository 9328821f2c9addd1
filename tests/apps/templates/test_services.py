from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection

from apps.rest.problems import Problem
from apps.rest.validation import Errors
from apps.templates import services, versions
from apps.templates.models import Template, TemplateVersion
from apps.templates.schemas import data_faults, schema_faults


def draft(text: str = "hello", **changes: Any) -> services.Draft:
    return services.Draft("orders", {"sms": {"en": {"text": text}}}, **changes)


def published(text: str = "hello", key: str = "t", **changes: Any) -> services.VersionInfo:
    _, version, _ = services.save_draft(key, draft(text, **changes))
    services.publish(key, version.number)
    return services.version_by_id(version.pk)


def together(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What `count` threads got, each with a connection of its own, started at the same moment."""
    barrier, results = threading.Barrier(count), [None] * count

    def run(index: int) -> None:
        barrier.wait()
        try:
            results[index] = work(index)
        except Problem as problem:
            results[index] = problem.code
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


# --- The cache of published versions ----------------------------------------------------------------------------


@pytest.mark.django_db
def test_what_is_published_is_read_once_in_a_while(django_assert_num_queries: Any) -> None:
    made = published()
    versions.forget_all()
    with django_assert_num_queries(2):
        assert services.published("t") == made
    with django_assert_num_queries(0):
        for _ in range(100):
            assert services.published("t") == made


@pytest.mark.django_db
def test_an_unknown_key_costs_no_query_each_time_and_no_endless_memory(django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(1):
        for _ in range(100):
            assert services.published("nothing") is None
    kept: versions.Kept[str, None] = versions.Kept(10, 60)
    for number in range(1000):
        kept.get(str(number), lambda: None)
    assert len(kept._values) == 10


@pytest.mark.django_db
def test_a_draft_is_not_published() -> None:
    services.save_draft("t", draft())
    assert services.published("t") is None
    found = services.version("t", 1)
    assert found is not None and found.label == "t v1"
    assert services.version("t", 2) is None


@pytest.mark.django_db(transaction=True)
def test_another_processs_publication_is_seen_within_two_seconds() -> None:
    published("one")
    assert services.published("t").number == 1  # type: ignore[union-attr]
    services.save_draft("t", draft("two"))
    # As another process does it: nothing tells this one's cache.
    second = TemplateVersion.objects.get(number=2)
    Template.objects.update(published=second)
    began = time.monotonic()
    while services.published("t").number != 2:  # type: ignore[union-attr]
        assert time.monotonic() - began < 2
        time.sleep(0.02)
    assert time.monotonic() - began > 0.5  # it was indeed the cache that answered before


@pytest.mark.django_db(transaction=True)
def test_the_publishing_process_sees_it_at_once() -> None:
    published("one")
    assert services.published("t").number == 1  # type: ignore[union-attr]
    published("two")
    assert services.published("t").number == 2  # type: ignore[union-attr]


@pytest.mark.django_db
def test_a_version_found_by_id_is_kept_for_ever(django_assert_num_queries: Any) -> None:
    made = published()
    versions.forget_all()
    with django_assert_num_queries(1):
        for _ in range(10):
            assert services.version_by_id(made.id) == made
    with pytest.raises(LookupError):
        services.version_by_id(-1)


@pytest.mark.django_db
def test_a_versions_repr_holds_none_of_its_texts() -> None:
    assert "hello" not in repr(published("hello"))


# --- Racing authors ---------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_racing_drafts_are_numbered_without_gaps() -> None:
    together(8, lambda index: services.save_draft("t", draft(f"text {index}")))
    assert sorted(TemplateVersion.objects.values_list("number", flat=True)) == list(range(1, 9))


@pytest.mark.django_db(transaction=True)
def test_racing_equal_drafts_make_one_version() -> None:
    results = together(8, lambda index: services.save_draft("t", draft())[2])
    assert sorted(results) == [False] * 7 + [True]


@pytest.mark.django_db(transaction=True)
def test_of_racing_publishers_one_wins() -> None:
    published("one")
    for number in range(2, 8):
        services.save_draft("t", draft(f"text {number}"))
    results = together(6, lambda index: services.publish("t", index + 2, expected=1, checks_expected=True)[1].number)
    assert results.count("version-conflict") == 5
    [winner] = [result for result in results if result != "version-conflict"]
    assert services.published("t").number == winner  # type: ignore[union-attr]


@pytest.mark.django_db(transaction=True)
def test_racing_rollbacks_make_one_version() -> None:
    published("one")
    published("two")
    results = together(6, lambda index: services.rollback("t", 1)[1].number)
    assert results == [3] * 6


# --- Data against a template ------------------------------------------------------------------------------------

ORDER = {
    "type": "object",
    "required": ["order"],
    "properties": {
        "order": {
            "type": "object",
            "required": ["id"],
            "properties": {
                "id": {"type": "string", "maxLength": 5},
                "eta": {"type": ["string", "null"]},
                "items": {"type": "array", "maxItems": 2, "items": {"$ref": "#/$defs/item"}},
                "state": {"enum": ["new", "old"]},
                "total": {"type": "number", "minimum": 0},
            },
            "additionalProperties": False,
        }
    },
    "$defs": {"item": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}},
}


def problems(asked: services.VersionInfo, data: dict[str, Any]) -> list[tuple[str, str]]:
    errors = Errors()
    services.check_data(asked, ["sms"], data, (None, "data"), errors)
    return sorted((error.pointer, error.code) for error in errors.items)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"order": {"id": "A-1", "eta": None, "items": [{"name": "x"}]}}, []),
        ({}, [("/data/order", "missing_variable")]),
        ({"order": {}}, [("/data/order/id", "missing_variable"), ("/data/order/eta", "missing_variable")]),
        ({"order": {"id": 7, "eta": "x"}}, [("/data/order/id", "wrong_type")]),
        ({"order": {"id": "A-1"}}, [("/data/order/eta", "missing_variable")]),
        ({"order": {"id": "A-1001", "eta": "x"}}, [("/data/order/id", "too_long")]),
        ({"order": {"id": "A", "eta": "x", "state": "?"}}, [("/data/order/state", "not_allowed")]),
        ({"order": {"id": "A", "eta": "x", "total": -1}}, [("/data/order/total", "out_of_range")]),
        ({"order": {"id": "A", "eta": "x", "more": 1}}, [("/data/order/more", "unknown_field")]),
        ({"order": {"id": "A", "eta": "x", "items": [{}, {}, {}]}},
         [("/data/order/items", "too_many"), ("/data/order/items/0/name", "missing_variable"),
          ("/data/order/items/1/name", "missing_variable"), ("/data/order/items/2/name", "missing_variable")]),
        ({"order": "A-1"}, [("/data/order", "wrong_type")]),
    ],
)  # fmt: skip
def test_data_is_held_to_schema_and_text(data: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert problems(published("{{ order.id }} {{ order.eta }}", data_schema=ORDER), data) == sorted(expected)


@pytest.mark.django_db
def test_a_missing_variable_is_told_with_type_and_example() -> None:
    schema = {"properties": {"order": {"properties": {"eta": {"type": "string"}}}}}
    asked = published("{{ order.eta }}", data_schema=schema, sample_data={"order": {"eta": "2026-11-25"}})
    errors = Errors()
    services.check_data(asked, ["sms"], {}, ((None, "items"), 3), errors)
    [error] = errors.items
    assert error.pointer == "/items/3/order/eta"
    assert error.detail == 'template t v1 needs order.eta (string), e.g. "2026-11-25"'


@pytest.mark.django_db
def test_a_problem_quotes_no_value_of_the_data() -> None:
    errors = Errors()
    asked = published("{{ order.id }}", data_schema=ORDER)
    data = {"order": {"id": "ada@example.com", "state": "ada@example.com", "total": "ada@example.com"}}
    services.check_data(asked, ["sms"], data, None, errors)
    assert len(errors.items) == 3
    assert "ada" not in str(errors.items)


def test_a_check_has_a_budget() -> None:
    everything = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"allOf": [{"type": "integer"}] * 100}}},
    }
    blown_up = {
        "$defs": {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 10} for n in range(12)}
        | {"d12": {"type": "object"}},
        "properties": {"a": {"$ref": "#/$defs/d0"}},
    }
    endless = {"$defs": {"x": {"$ref": "#/$defs/x"}}, "properties": {"a": {"$ref": "#/$defs/x"}}}
    for name, schema in {"everything": everything, "blown up": blown_up, "endless": endless}.items():
        assert schema_faults(schema) == []
        began = time.thread_time()
        [(path, code, detail)] = data_faults(schema, {"a": [1] * 50_000}, f"test {name}")
        assert (path, code) == ((), "not_allowed")
        assert "too large" in detail
        assert time.thread_time() - began < 3


def test_usual_data_passes_within_the_budget() -> None:
    data = {"order": {"id": "A-1", "items": [{"name": "x"}] * 2}}
    assert data_faults(ORDER, data, "test usual") == []
    many = {"properties": {"l": {"type": "array", "items": ORDER["$defs"]["item"]}}}  # type: ignore[index]
    assert data_faults(many, {"l": [{"name": "x"}] * 2000}, "test many") == []


@pytest.mark.parametrize(
    "schema",
    [
        {"patternProperties": {"a+": {}}},
        {"properties": {"a": {"uniqueItems": True}}},
        {"allOf": [{"not": {"pattern": "x"}}]},
        {"properties": {"a": {"items": {"$ref": "file:///etc/passwd"}}}},
        {"$ref": "#"},
        {"$dynamicRef": "#a"},
        {"$id": "https://example.com"},
        {"properties": {"a": {"$defs": {}}}},
        {"unevaluatedProperties": False},
        {"type": "text"},
        {"properties": []},
        {"properties": {"a": 3}},
        {"type": "string"},
        {"enum": "x"},
        {"description": "x" * 40_000},
        [],
        "x",
    ],
)
def test_a_schema_we_cannot_bound_is_refused(schema: Any) -> None:
    assert schema_faults(schema)


def test_property_names_are_no_keywords() -> None:
    assert schema_faults({"properties": {"pattern": {"type": "string"}, "$ref": {}, "uniqueItems": True}}) == []
