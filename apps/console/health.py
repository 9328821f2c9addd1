"""Whether this process lives, and whether everything works."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator

from django.db import Error as DatabaseError
from django.db import OperationalError, connection, transaction
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponse, JsonResponse
from psycopg2.errors import DiskFull

from apps.notifications.partitions import days_ahead
from notifier.queues import ALL_QUEUES

QUEUE_SILENT_S = 90  # a shift takes 20 s and its calls 10 more; a canary is sent each 15 s
RELAY_SILENT_S = 20
BEAT_SILENT_S = 60  # it ticks each 5 s; the core workers may be busy laying out a campaign
LEAST_DAYS_AHEAD = 2
WRITE_EVERY_S = 5.0  # a few milliseconds, and one flush of the log

Check = Callable[[], Iterator[str]]


def healthz(request: HttpRequest) -> HttpResponse:
    """This process answers. Touches nothing else."""
    return HttpResponse("ok\n", content_type="text/plain")


def readyz(request: HttpRequest) -> HttpResponse:
    """200: everything works. 503: what does not. `?only=web` asks for what accepting needs, without the workers."""
    checks = WEB if request.GET.get("only") == "web" else WEB + WORKERS
    try:
        problems = _problems(checks)
    except DatabaseError:
        connection.close()  # this thread's connection may be from before a restart, which is nobody's problem any more
        try:
            problems = _problems(checks)
        except DatabaseError as error:
            connection.close()
            problems = [f"database: {type(error).__name__}"]
    return JsonResponse(
        {"ready": not problems, "problems": problems},
        status=503 if problems else 200,
        headers={"Cache-Control": "no-store"},
    )


def _problems(checks: Iterable[Check]) -> list[str]:
    return [problem for check in checks for problem in check()]


_migrated = False


def _migrations() -> Iterator[str]:
    """Looked at until they are all there: they do not go away while a process lives."""
    global _migrated
    if not _migrated:
        executor = MigrationExecutor(connection)
        missing = executor.migration_plan(executor.loader.graph.leaf_nodes())
        if missing:
            yield f"migrations: {len(missing)} not applied; run manage.py migrate"
        _migrated = not missing


def _database() -> Iterator[str]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on', "
            "current_setting('synchronous_commit')"
        )
        in_recovery, read_only, synchronous = cursor.fetchone()
    if in_recovery:
        yield "database: a standby, which takes no writes"
    elif read_only:
        yield "database: read-only, which takes no writes"
    else:
        yield from _writing()
    if synchronous == "off":
        yield "database: synchronous_commit is off; what is accepted could be lost"


_TRY_TO_WRITE = """
SET LOCAL work_mem = '64kB';
SELECT count(*) FROM generate_series(1, 10000);
SELECT pg_logical_emit_message(true, 'notifier', 'readyz')
"""
"""What needs room on the disk, and a commit that must reach it, leaving nothing behind in a table.

A row that is written over and over finds its room in the page where it was, on a full disk as well. So there is a
temporary file of 200 kB (the series is kept, and work_mem is small), and a message in the log that nobody reads.
"""

_wrote_at = _began_at = float("-inf")
_trying = threading.Lock()  # where the disk stands still, a probe waits: it must not take every thread with it


def _writing() -> Iterator[str]:
    """Tried once in a while, by one thread at a time; as long as it fails, each time."""
    global _wrote_at, _began_at
    now = time.monotonic()
    if now - _wrote_at < WRITE_EVERY_S:
        return
    if not _trying.acquire(blocking=False):
        if now - _began_at > WRITE_EVERY_S:
            yield "database: a commit does not come to its end"
        return
    is_full = False
    try:
        _began_at = now
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(_TRY_TO_WRITE)
        _wrote_at = time.monotonic()
    except OperationalError as error:
        is_full = isinstance(error.__cause__, DiskFull)
        if not is_full:
            raise
    finally:
        _trying.release()
    if is_full:
        yield "database: its disk is full"


def _partitions() -> Iterator[str]:
    if (days := days_ahead()) < LEAST_DAYS_AHEAD:
        yield f"partitions: made for {days:.1f} days ahead; the relay makes them"


def _relay() -> Iterator[str]:
    if not _seen("relay", RELAY_SILENT_S):
        yield f"relay: silent for {RELAY_SILENT_S} s"


def _beat() -> Iterator[str]:
    if not _seen("beat", BEAT_SILENT_S):
        yield f"beat: nothing has ticked for {BEAT_SILENT_S} s"


def _queues() -> Iterator[str]:
    silent = sorted(set(ALL_QUEUES) - _seen("queue", QUEUE_SILENT_S))
    if silent:
        yield f"workers: nobody works on {', '.join(silent)}"


def _broker() -> Iterator[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT is_up FROM notifications_brokerhealth WHERE id = 1")
        row = cursor.fetchone()
    if row is None or not row[0]:
        yield "broker: away, as the relay last saw it"


def _seen(kind: str, within_s: float) -> set[str]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT name FROM notifications_heartbeat WHERE kind = %s AND at > now() - %s * interval '1 second'",
            [kind, within_s],
        )
        return {row[0] for row in cursor.fetchall()}


WEB: tuple[Check, ...] = (_database, _migrations, _partitions)
WORKERS: tuple[Check, ...] = (_broker, _relay, _beat, _queues)
