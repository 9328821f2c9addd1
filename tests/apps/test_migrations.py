"""Every migration can be taken back, and applied again."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.loader import MigrationLoader
from pytest_django.plugin import DjangoDbBlocker

from apps.notifications import partitions
from tests.apps.notifications.crowd import database_of_its_own

OURS = sorted(
    config.label for config in apps.get_app_configs() if config.name.startswith("apps.") and config.models_module
)
_OF_A_DAY = re.compile(r"_p\d{8}")  # a partition's name says when it begins, and so when it was made

# Everything that a migration makes, as PostgreSQL itself writes it down.
MADE = {
    "relations": "SELECT relname, relkind, pg_get_partkeydef(oid), reloptions::text FROM pg_class "
    "WHERE relnamespace = 'public'::regnamespace",
    "columns": "SELECT table_name, column_name, udt_name, character_maximum_length, is_nullable, column_default, "
    "is_identity FROM information_schema.columns WHERE table_schema = 'public'",
    "indexes": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "constraints": "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint "
    "WHERE connamespace = 'public'::regnamespace AND contype <> 'n'",  # NOT NULL, a column's fact before release 18
    "functions": "SELECT proname, pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
    "types": "SELECT typname FROM pg_type WHERE typnamespace = 'public'::regnamespace",
    "triggers": "SELECT tgrelid::regclass::text, tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal",
    "permissions": "SELECT app_label, model, codename FROM auth_permission p "
    "JOIN django_content_type t ON t.id = p.content_type_id",
}
ROWS = "SELECT id, is_up FROM notifications_brokerhealth"  # the one that a migration writes


def made(kind: str) -> set[tuple[str, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(MADE[kind])
        return {tuple(_OF_A_DAY.sub("_p<day>", str(value)) for value in row) for row in cursor.fetchall()}


def rows() -> list[tuple[object, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(ROWS)
        return cursor.fetchall()


def names_of_ours() -> set[str]:
    """What is called after one of our apps: relations, functions and types."""
    names = {row[0] for kind in ("relations", "functions", "types") for row in made(kind)}
    return {name for name in names if name.lstrip("_").startswith(tuple(f"{label}_" for label in OURS))}


def schema() -> dict[str, set[tuple[str, ...]]]:
    return {kind: made(kind) for kind in MADE}


def steps() -> list[tuple[str, str, str]]:
    """Every migration of ours as (app, the one before it, itself), in an order in which they can be applied."""
    executor = MigrationExecutor(connection)
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes(), clean_start=True)
    last = dict.fromkeys(OURS, "zero")
    found = []
    for migration, _ in plan:
        if migration.app_label in last:
            found.append((migration.app_label, last[migration.app_label], migration.name))
            last[migration.app_label] = migration.name
    return found


@pytest.fixture
def empty_database(django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    with django_db_blocker.unblock(), database_of_its_own("migrated_back"):
        yield


def test_every_migration_can_be_taken_back_and_applied_again(empty_database: None) -> None:
    call_command("migrate", verbosity=0)
    whole = schema()
    assert all(found for kind, found in whole.items() if kind != "triggers")  # there are none, and one would be seen
    assert names_of_ours()
    assert rows() == [(1, True)]

    back = []
    for app, earlier, _ in reversed(steps()):
        call_command("migrate", app, earlier, verbosity=0)
        back.append(schema())
    assert names_of_ours() == set()
    assert not {app for app, _ in MigrationLoader(connection).applied_migrations} & set(OURS)

    for app, _, name in steps():
        assert schema() == back.pop(), f"before {app} {name}"
        call_command("migrate", app, name, verbosity=0)
    assert schema() == whole
    assert rows() == [(1, True)]
    assert partitions.days_ahead() >= 14
