"""The partitions of the large tables: made ahead, dropped whole when old.

A UUIDv7 starts with its Unix milliseconds, so a range of ids is a range of time. Partitions are attached, not
created in place: `CREATE TABLE ... PARTITION OF` takes an AccessExclusive lock on the parent and stops every
writer behind one open reader, `ATTACH` does not (PostgreSQL documentation, ALTER TABLE).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from django.conf import settings
from django.db import connection, migrations, transaction

from notifier.ids import floor_id, time_of

log = structlog.get_logger(__name__)

PARTITIONED = (
    "notifications_notification",
    "notifications_content",
    "notifications_delivery",
    "notifications_attempt",
    "notifications_event",
)
AHEAD = timedelta(days=14)
LOCK_TIMEOUT = "500ms"  # an upkeep step gives up rather than queue writers behind itself; the next run repeats it
_UPPER = re.compile(r"TO \('([0-9a-f-]{36})'\)")
_LOWER = re.compile(r"FROM \('([0-9a-f-]{36})'\)")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class CreatePartitionedModel(migrations.CreateModel):
    """CreateModel for a table that is partitioned by its id; Django sees an ordinary table."""

    partition_by = "RANGE (id)"

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        plain = schema_editor.sql_create_table
        schema_editor.sql_create_table = f"{plain} PARTITION BY {self.partition_by}"
        try:
            super().database_forwards(app_label, schema_editor, from_state, to_state)
        finally:
            schema_editor.sql_create_table = plain


class CreateHashPartitionedModel(CreatePartitionedModel):
    """The same by hash of the id, for keys that carry no time. Its partitions are made by the migration."""

    partition_by = "HASH (id)"


def hash_partitions(table: str, count: int = 8) -> migrations.RunSQL:
    return migrations.RunSQL(
        [
            f"CREATE TABLE {table}_h{n} PARTITION OF {table} FOR VALUES WITH (MODULUS {count}, REMAINDER {n})"
            for n in range(count)
        ],
        migrations.RunSQL.noop,  # the parent's removal takes them along
    )


def bounds_of(table: str) -> list[tuple[str, UUID, UUID]]:
    """(partition, lower, upper) of each attached range partition, oldest first."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits i "
            "JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = %s::regclass",
            [table],
        )
        rows = cursor.fetchall()
    found = []
    for name, expression in rows:
        lower, upper = _LOWER.search(expression), _UPPER.search(expression)
        if lower and upper:
            found.append((name, UUID(lower[1]), UUID(upper[1])))
    return sorted(found, key=lambda row: row[1].int)


def left_over(table: str) -> list[str]:
    """Partitions that were detached and not dropped: a run died in between."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT c.relname FROM pg_class c WHERE c.relkind = 'r' AND c.relname ~ %s AND pg_table_is_visible(c.oid) "
            "AND NOT EXISTS (SELECT 1 FROM pg_inherits i WHERE i.inhrelid = c.oid)",
            [f"^{table}_p[0-9]{{8}}$"],
        )
        return [row[0] for row in cursor.fetchall()]


def covered_until(table: str) -> datetime | None:
    found = bounds_of(table)
    return time_of(found[-1][2]) if found else None


def days_ahead() -> float:
    """For how many days rows of every table have a place to go."""
    ends = [covered_until(table) for table in PARTITIONED]
    if not all(ends):
        return 0.0
    return (min(end for end in ends if end) - datetime.now(UTC)) / timedelta(days=1)


def _periods(since: datetime, until: datetime) -> Iterator[tuple[datetime, datetime]]:
    length = timedelta(days=settings.PARTITION_DAYS)
    start = since
    while start < until:
        end = _EPOCH + ((start - _EPOCH) // length + 1) * length  # aligned, so that a changed setting leaves no gap
        yield start, end
        start = end


def ensure_partitions(ahead: timedelta = AHEAD) -> int:
    """Make what is missing up to `ahead` from now; returns how many. Safe to run twice or side by side."""
    now = datetime.now(UTC)
    made = 0
    for table in PARTITIONED:
        length = timedelta(days=settings.PARTITION_DAYS)
        first = _EPOCH + ((now - timedelta(days=1) - _EPOCH) // length) * length
        for start, end in _periods(covered_until(table) or first, now + ahead):
            made += _attach(table, start, end)
    return made


def _attach(table: str, start: datetime, end: datetime) -> int:
    name = f"{table}_p{start:%Y%m%d}"
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [f"partition {name}"])
        cursor.execute("SELECT to_regclass(%s)", [name])
        if cursor.fetchone()[0] is not None:
            return 0
        cursor.execute(
            f"CREATE TABLE {name} (LIKE {table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS) WITH (fillfactor = 90)"
        )
        cursor.execute(
            f"ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ('{floor_id(start)}') TO ('{floor_id(end)}')"
        )
    return 1


def retire_partitions(keep: dict[str, timedelta]) -> list[str]:
    """Drop each partition wholly older than `keep[table]`, unless a row in it is still to be sent.

    Returns what was dropped. One with open rows is left and logged as an error: it needs a look.
    """
    dropped = []
    for table, age in keep.items():
        for name in left_over(table):
            _drop(table, name)
            dropped.append(name)
        limit = datetime.now(UTC) - age
        for name, lower, upper in bounds_of(table):
            if time_of(upper) > limit:
                continue
            if _has_open_rows(lower, upper):
                log.error("partition_has_open_rows", partition=name)
                continue
            _drop(table, name)
            dropped.append(name)
    return dropped


def _has_open_rows(lower: UUID, upper: UUID) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT EXISTS (SELECT 1 FROM notifications_pending WHERE id >= %(lo)s AND id < %(hi)s) "
            "OR EXISTS (SELECT 1 FROM notifications_expansion WHERE id >= %(lo)s AND id < %(hi)s)",
            {"lo": str(lower), "hi": str(upper)},
        )
        return bool(cursor.fetchone()[0])


def _drop(table: str, name: str) -> None:
    """Detach without stopping writers, then drop. Runs in autocommit: DETACH CONCURRENTLY refuses a transaction."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT inhdetachpending FROM pg_inherits WHERE inhrelid = %s::regclass",
            [name],
        )
        row = cursor.fetchone()
        if row is not None:  # else an earlier run detached it and died before the drop
            cursor.execute(f"ALTER TABLE {table} DETACH PARTITION {name} {'FINALIZE' if row[0] else 'CONCURRENTLY'}")
        cursor.execute(f"DROP TABLE {name}")
