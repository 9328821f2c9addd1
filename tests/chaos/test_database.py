"""T3, T4: without the database nothing is accepted, and nothing that was accepted is gone when it is back.

A worker keeps a result until it is written, trying every two seconds, and takes no row of a dead worker before that.
The relay leaves a PostgreSQL that has just started ten seconds before it gives expired leases to others. So an outage
that ends with a start sends nothing twice, however long it was. After one without a start (read-only, say) another
worker may be there before the result: what was open when its lease ran out may then be sent twice, and nothing else.
Whoever dies meanwhile adds what it had in flight.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apps.console.servers import Postgres, ServerError, Servers
from notifier.message import Lane
from notifier.queues import channel_and_lane
from notifier.stages.settle import LEASE_S
from tests.acceptance.stack import Stack
from tests.chaos.form import SEED, sized
from tests.chaos.havoc import IN_FLIGHT, SENDERS, pool_children
from tests.chaos.load import Load, Mix, People
from tests.chaos.oracle import assert_books_balance, judge, late_results, wait_ended
from tests.chaos.report import Report

# Longer than the critical lane's leases (15 s) in the full form, well within them in the short one.
STOPPED_S = sized(30.0, 4.0)
REFUSED_S = sized(25.0, 4.0)
NOTIFICATIONS = sized(10_000, 300)
REFUSED_NOTIFICATIONS = sized(1_000, 150)
RATE = sized(60.0, 40.0)
SLOW_MS = 800  # so that there is always something in the air
WRITTEN_WITHIN_S = 5.0  # from the end of a trouble to the results that waited for it
SENT = {"sent", "delivered", "opened", "clicked"}


def senders(stack: Stack) -> set[int]:
    return {pid for name in SENDERS for pid in pool_children(stack, name)}


def in_the_air(stack: Stack) -> int:
    """How many rows the workers hold, once they hold some: a blow that interrupts nothing proves nothing."""
    held = "SELECT count(*) FROM notifications_pending WHERE lease_until > now()"
    return int(stack.wait_for(lambda: stack.query(held)[0][0], "calls in the air", every_s=0.02))


def overtaken(trouble_s: float) -> list[str]:
    """The workers whose leases may run out while nothing can be written; all but the critical lane's last a minute."""
    if trouble_s + WRITTEN_WITHIN_S < LEASE_S[Lane.CRITICAL]:
        return []
    assert trouble_s + WRITTEN_WITHIN_S < LEASE_S[Lane.NORMAL]
    return [name for name, queues in SENDERS.items() if channel_and_lane(queues[0])[1] == Lane.CRITICAL]


def stop_and_start(postgres: Postgres) -> None:
    postgres.stop()
    time.sleep(STOPPED_S)
    postgres.start()


def restart_fast(postgres: Postgres) -> None:
    postgres.stop()
    postgres.start()


def kill_all_of_it(postgres: Postgres) -> None:
    """As a power cut takes it: every process of the server at once."""
    assert postgres.process is not None
    os.killpg(postgres.process.pid, signal.SIGKILL)
    postgres.process.wait()
    for _ in range(20):  # until the kernel has let go of its shared memory
        with contextlib.suppress(ServerError):
            postgres.start()
            return
        time.sleep(0.5)
    raise AssertionError("PostgreSQL does not start again")


@pytest.mark.parametrize("blow", [stop_and_start, restart_fast, kill_all_of_it])
def test_what_was_accepted_outlives_the_database_server(
    stack: Stack, own_servers: Servers, people: People, report: Report, blow: Callable[[Postgres], None]
) -> None:
    assert own_servers.postgres is not None
    with stack.fault(mode="latency", latency_ms=SLOW_MS):
        load = Load(stack, people, SEED, rate=RATE, count=NOTIFICATIONS // 3).start()
        time.sleep(sized(10.0, 1.5))
        alive = senders(stack)
        held = in_the_air(stack)
        began = time.monotonic()
        blow(own_servers.postgres)
        away_s = time.monotonic() - began
        load.finish(600)
    ended_after_s = wait_ended(stack, 150)
    died = alive - senders(stack)
    verdict = judge(stack, load.accepted)
    refused = [answer for answer in load.answers if answer.status not in (200, 202)]
    report.add(
        f"T3 {blow.__name__}",
        accepted=verdict.accepted,
        away_s=away_s,
        held=held,
        workers_that_died=len(died),
        lost=len(verdict.lost),
        made_twice=verdict.made_twice,
        repeated=load.repeated,
        sent_twice=verdict.duplicates,
        answers=load.statuses,
        slowest_answer=max(answer.took_s for answer in load.answers),
        ended_after_s=ended_after_s,
    )
    assert verdict.lost == []
    assert verdict.deliveries == verdict.accepted == len(load.accepted)
    assert verdict.made_twice == 0
    assert {answer.status for answer in refused} <= {503, 409}
    if blow is stop_and_start:  # the others may be over before anybody asks
        assert [answer for answer in refused if answer.status == 503], "nobody noticed"
        assert load.repeated
    assert all(answer.retry_after.isdigit() for answer in refused)
    assert set(verdict.states) <= SENT
    assert verdict.duplicates <= IN_FLIGHT * len(died)
    assert_books_balance(stack)


@contextlib.contextmanager
def full_disk(stack: Stack, postgres: Postgres, directory: Path) -> Iterator[None]:
    """The rows of new notifications on a disk of their own, with nothing left on it."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=0755", "none", str(directory)], check=True)
    try:
        place = postgres.owner.own_directory(directory / "space")
        with contextlib.closing(postgres.connect("notifier_stack")) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(f"CREATE TABLESPACE small LOCATION '{place}'")
                cursor.execute(
                    "SELECT inhrelid::regclass::text FROM pg_inherits "
                    "WHERE inhparent = 'notifications_content'::regclass ORDER BY 1"
                )
                tables = [row[0] for row in cursor.fetchall()]
                for table in tables:
                    cursor.execute(f"ALTER TABLE {table} SET TABLESPACE small")
        filler = directory / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 4096)
        try:
            yield
        finally:
            filler.unlink()
        with contextlib.closing(postgres.connect("notifier_stack")) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                for table in tables:
                    cursor.execute(f"ALTER TABLE {table} SET TABLESPACE pg_default")
                cursor.execute("DROP TABLESPACE small")
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@contextlib.contextmanager
def read_only(stack: Stack, postgres: Postgres, directory: Path) -> Iterator[None]:
    """An operator's switch, or a standby that was not promoted: it answers, and takes no writes."""
    with contextlib.closing(postgres.connect("notifier_stack")) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            cursor.execute("SELECT pg_reload_conf()")
            try:
                yield
            finally:
                cursor.execute("SET default_transaction_read_only = off")
                cursor.execute("ALTER SYSTEM RESET default_transaction_read_only")
                cursor.execute("SELECT pg_reload_conf()")


# Mounting a small disk is root's alone; who is not shows it by the switch.
TROUBLES = [read_only, full_disk] if os.geteuid() == 0 else [read_only]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_database_that_takes_no_writes_refuses_and_recovers_unaided(
    stack: Stack,
    own_servers: Servers,
    people: People,
    report: Report,
    tmp_path: Path,
    trouble: Callable[[Stack, Postgres, Path], contextlib.AbstractContextManager[None]],
) -> None:
    assert own_servers.postgres is not None
    with stack.fault(mode="latency", latency_ms=SLOW_MS):
        load = Load(stack, people, SEED, Mix(), rate=RATE).start()
        time.sleep(2)
        alive = senders(stack)
        held = in_the_air(stack)
        with trouble(stack, own_servers.postgres, own_servers.base / "disk"):
            began = time.monotonic()
            time.sleep(REFUSED_S)
            during = load.since(began + 0.5)
    back_at = time.monotonic()
    while not any(answer.status == 202 for answer in load.since(back_at)):
        assert time.monotonic() - back_at < 30, "it does not recover"
        time.sleep(0.05)
    recovered_after_s = time.monotonic() - back_at
    stack.wait_for(lambda: len(load.accepted) >= REFUSED_NOTIFICATIONS, "notifications accepted", within_s=120)
    load.stop()
    load.finish()
    wait_ended(stack, 150)
    died = alive - senders(stack)
    verdict = judge(stack, load.accepted)
    late = late_results(stack, load.accepted)
    report.add(
        f"T4 {trouble.__name__}",
        accepted=verdict.accepted,
        refused_s=REFUSED_S,
        held=held,
        workers_that_died=len(died),
        late_results=late,
        lost=len(verdict.lost),
        sent_twice=verdict.duplicates,
        refused=len([answer for answer in load.answers if answer.status == 503]),
        answers=load.statuses,
        recovered_after_s=recovered_after_s,
    )
    assert any(answer.status == 503 for answer in during)
    assert {answer.status for answer in load.answers} <= {200, 202, 503, 409}
    assert all(answer.retry_after.isdigit() for answer in load.answers if answer.status == 503)
    assert (verdict.lost, verdict.made_twice) == ([], 0)
    assert verdict.deliveries == verdict.accepted == len(load.accepted)
    assert set(verdict.states) <= SENT
    assert late <= IN_FLIGHT * len(overtaken(REFUSED_S))
    assert verdict.duplicates <= late + IN_FLIGHT * len(died)
    assert_books_balance(stack)
