"""The statements of THE PATH, kept in the database as PL/pgSQL functions, which plan them once for each session.

psycopg2 sends text and prepares nothing, and PgBouncer may hand each transaction another session: so each of these
statements would be planned anew, which costs several times what running it costs. A function's plans stay with the
server's session, whoever uses it.

All plans are generic ones, and made to go by index from the few rows in hand to the large tables: a plan made while
a table was still empty must be right when it holds millions. So hash and merge joins, sequential scans (where there
is a table to scan) and the compiler are off inside them. That alone is not enough: of a table that was empty then, the
planner reads the whole index, or one index as gladly as another. So each large table is reached by `= ANY (the ids in
hand)`, or by its key under a LIMIT; no UNION or EXISTS over it, which become sorts and joins; and what two indexes
could find is fenced by OFFSET 0, so that only the right one can. tests/apps/notifications/test_plans.py counts what
each function reads once its tables have filled: with PostgreSQL 18. In 15, where `= ANY` is dearer, Delivery and the
hashes of people are read through another index until the first ANALYZE of what was empty.

A function that has been released is never changed. It is named with a number; a change is a new file with the next
number and a migration, so that the code of two releases runs side by side during a rollout.
"""

from __future__ import annotations

from pathlib import Path

from django.db import migrations

_SOURCES = Path(__file__).parent / "sql"


def function(name: str) -> migrations.RunSQL:
    """The migration step that makes `notifications_{name}` from sql/{name}.sql."""
    source = (_SOURCES / f"{name}.sql").read_text()
    return migrations.RunSQL([source], [f"DROP FUNCTION notifications_{name}"])
