"""/healthz touches nothing; /readyz names what does not work, and nothing that does."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from apps.console import health
from apps.console.servers import Servers
from apps.notifications.heartbeats import beat
from apps.notifications.partitions import bounds_of
from notifier.ids import time_of
from notifier.queues import ALL_QUEUES


def run(sql: str, *values: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)


def readyz(query: str = "") -> tuple[int, list[str]]:
    answer = Client().get(f"/readyz{query}")
    assert answer["Cache-Control"] == "no-store"
    assert answer.json()["ready"] == (answer.status_code == 200)
    return answer.status_code, answer.json()["problems"]


@pytest.fixture
def all_well(db: None) -> None:
    """Everybody has just done something."""
    for queue in ALL_QUEUES:
        beat(queue, "queue", queue)
    beat("relay@here:1", "relay")
    beat("beat", "beat")
    run("UPDATE notifications_brokerhealth SET is_up = true, checked_at = now()")


def test_healthz_asks_nobody() -> None:
    answer = Client().get("/healthz")  # without access to the database: pytest-django would raise
    assert (answer.status_code, answer.content) == (200, b"ok\n")


def test_all_is_well(all_well: None) -> None:
    assert readyz() == (200, [])
    assert readyz("?only=web") == (200, [])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            "UPDATE notifications_heartbeat SET at = now() - interval '91 seconds' WHERE name = 'sms.normal'",
            "sms.normal",
        ),
        ("DELETE FROM notifications_heartbeat WHERE name IN ('core', 'push.bulk')", "core, push.bulk"),
        ("UPDATE notifications_heartbeat SET at = now() - interval '21 seconds' WHERE kind = 'relay'", "relay: silent"),
        ("UPDATE notifications_heartbeat SET at = now() - interval '61 seconds' WHERE kind = 'beat'", "beat: nothing"),
        ("UPDATE notifications_brokerhealth SET is_up = false", "broker: away"),
        ("DELETE FROM notifications_brokerhealth", "broker: away"),
    ],
)
def test_it_names_the_worker_that_does_nothing_and_goes_on_accepting(all_well: None, change: str, problem: str) -> None:
    run(change)
    status, problems = readyz()
    assert status == 503
    assert len(problems) == 1 and problem in problems[0]
    assert readyz("?only=web") == (200, [])


def test_another_relay_is_as_good(all_well: None) -> None:
    beat("relay@there:2", "relay")
    run("UPDATE notifications_heartbeat SET at = now() - interval '1 hour' WHERE name = 'relay@here:1'")
    assert readyz() == (200, [])


@pytest.fixture
def unknown_migrations(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(health, "_migrated", False)
    yield


@pytest.mark.parametrize("query", ["", "?only=web"])
def test_it_names_a_migration_that_is_missing(all_well: None, unknown_migrations: None, query: str) -> None:
    run(
        "DELETE FROM django_migrations WHERE app = 'people' "
        "AND name = (SELECT max(name) FROM django_migrations WHERE app = 'people')"
    )
    status, problems = readyz(query)
    assert status == 503
    assert problems == ["migrations: 1 not applied; run manage.py migrate"]


@pytest.mark.parametrize("query", ["", "?only=web"])
def test_it_names_partitions_that_run_out(all_well: None, query: str) -> None:
    for name, _, upper in bounds_of("notifications_event"):
        if time_of(upper) > datetime.now(UTC) + timedelta(days=health.LEAST_DAYS_AHEAD):
            run(f"DROP TABLE {name}")
    status, problems = readyz(query)
    assert status == 503
    assert len(problems) == 1 and problems[0].startswith("partitions: ")


def test_it_names_a_database_that_forgets(all_well: None) -> None:
    run("SET LOCAL synchronous_commit = off")
    status, problems = readyz("?only=web")
    assert status == 503
    assert problems == ["database: synchronous_commit is off; what is accepted could be lost"]


@pytest.fixture
def never_tried_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_wrote_at", float("-inf"))


@pytest.fixture
def read_only(transactional_db: None) -> Iterator[None]:
    run("SET default_transaction_read_only = on")
    yield
    run("SET default_transaction_read_only = off")


def test_a_probe_that_never_ends_costs_one_thread_and_is_told(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_wrote_at", float("-inf"))
    with health._trying:  # another thread's, and the disk stands still
        monkeypatch.setattr(health, "_began_at", time.monotonic() - 1)
        assert list(health._writing()) == []
        monkeypatch.setattr(health, "_began_at", time.monotonic() - 60)
        assert list(health._writing()) == ["database: a commit does not come to its end"]
    assert list(health._writing()) == []
    assert time.monotonic() - health._wrote_at < 60


def test_it_names_a_database_that_is_read_only(read_only: None) -> None:
    status, problems = readyz("?only=web")
    assert status == 503
    assert problems == ["database: read-only, which takes no writes"]


@pytest.fixture
def full_disk(transactional_db: None, embedded_servers: Servers) -> Iterator[None]:
    """Where the backend of this connection would put its next temporary files, there is no space left."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    assert embedded_servers.postgres is not None
    base = embedded_servers.postgres.data / "base"
    directory = base / "pgsql_tmp"
    directory.mkdir(exist_ok=True)
    os.chown(directory, base.stat().st_uid, base.stat().st_gid)
    links = [directory / f"pgsql_tmp{pid}.{number}" for number in range(500)]
    for link in links:
        link.symlink_to("/dev/full")
    yield
    for link in links:
        link.unlink(missing_ok=True)


def test_it_names_a_disk_that_is_full(full_disk: None, never_tried_to_write: None) -> None:
    for _ in range(2):  # what was wrong is looked at each time
        status, problems = readyz("?only=web")
        assert status == 503
        assert problems == ["database: its disk is full"]


def test_it_tries_to_write_every_few_seconds_however_often_it_is_asked(db: None, never_tried_to_write: None) -> None:
    with CaptureQueriesContext(connection) as asked:
        assert [readyz("?only=web") for _ in range(20)] == [(200, [])] * 20
    assert sum("pg_logical_emit_message" in query["sql"] for query in asked) == 1


@pytest.mark.django_db(transaction=True)
def test_a_connection_from_before_a_restart_is_nobodys_problem() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    other = connection.copy("other")
    with other.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", [pid])
    other.close()
    assert readyz("?only=web") == (200, [])
