"""That no statement of the path reads more than the rows in hand, whatever the planner knew.

The functions keep their plans with the session, and a session may have begun while there was nothing to be read: so
here each is called while its tables are empty, then they are filled, and it is called again for a full batch. Plain
statements are planned each time, by what the last ANALYZE saw. Counted are entries of tables and indexes, and pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import pytest
from django.db import connection, transaction
from pytest_django import DjangoDbBlocker

from apps.console.gauges import _of_waiting
from apps.notifications import claims, invariants, records, relay, upkeep
from apps.notifications.arrays import plain
from apps.notifications.models import Hold
from apps.notifications.services import expand, holds, layout, receipts
from apps.people.models import Category
from apps.providers.models import ProviderAccount
from apps.templates.versions import forget_all
from notifier.ids import uuid7
from notifier.message import Mode
from notifier.outcome import Kind, Receipt, ReceiptKind
from notifier.queues import DELIVERY_QUEUES, QUEUE_LANES
from tests.apps.notifications import crowd
from tests.apps.notifications.crowd import Read
from tests.apps.notifications.test_claims import result
from tests.apps.notifications.world import World, run
from tests.apps.rest.callers import forget_callers

BATCH = 500
LEASE_S = 60.0
MOST = Read(entries=10, pages=40)  # of one table, for each row in hand
UNKNOWN, EMPTY, DRAINED, FULL = "never analyzed", "analyzed while empty", "analyzed when drained", "analyzed when full"
BESIDE = 500  # whatever is in hand: twenty clients' heads of each queue, small tables read whole

# Reads Pending as `record_1` once did: by a join, which is looked up in the index only while the planner knows better.
_NAIVE = """
CREATE FUNCTION naive(ids uuid[]) RETURNS bigint LANGUAGE plpgsql
  SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
  SET enable_mergejoin = off SET jit = off
AS $$
DECLARE n bigint;
BEGIN
  WITH v AS MATERIALIZED (SELECT * FROM unnest(ids) AS v(id)), ended AS (
    DELETE FROM notifications_pending p USING v WHERE p.id = v.id RETURNING p.id)
  SELECT count(*) INTO n FROM ended;
  RETURN n;
END $$;
"""


class Work(NamedTuple):
    rows: int  # in hand
    do: Callable[[], object]


Case = Callable[[World, int], Work]


# --- the functions --------------------------------------------------------------------------------------------


def people_2(world: World, n: int) -> Work:
    outlines, entries = [_outline()], _entries(n)
    return Work(n, lambda: layout.People.read(outlines, entries))


def lay_out_1(world: World, n: int) -> Work:
    outlines, entries = [_outline()], _entries(n)
    rows = layout.plan(outlines, entries)
    queued = [row for row in rows if row.stop is None]
    return Work(len(rows), lambda: _all(layout.insert(outlines, rows, wake_in_s=0.0), queued))


def accept_1(world: World, n: int) -> Work:
    people = _people(min(n, 100))
    key = str(uuid7())
    body = {"template": "letter", "data": {"order": "A-1"}, "to": [{"user_id": id} for id in people], "event_id": key}

    def do() -> None:
        answer = world.api.post("/v1/notifications", body, headers={"Idempotency-Key": key})
        assert answer.status_code == 202

    return Work(2 * len(people), do)


def gates_2(world: World, n: int) -> Work:
    claimed = claims.claim(_waiting(n), lease_s=LEASE_S, alone=False)
    return Work(len(claimed), lambda: _all(claims.read_again(claimed), claimed))


def claim_2(world: World, n: int) -> Work:
    ids = _waiting(n)
    return Work(len(ids), lambda: _all(claims.claim(ids, lease_s=LEASE_S, alone=False), ids))


def take_2(world: World, n: int) -> Work:
    rung = _waiting(n // 5)

    def do() -> None:
        taken, _ = claims.take(rung, "email", QUEUE_LANES, n, lease_s=LEASE_S)
        assert taken
        assert n < BATCH or len(taken) == n

    return Work(n, do)


def record_1(world: World, n: int) -> Work:
    claimed = claims.claim(_waiting(min(n, records.BATCH)), lease_s=LEASE_S, alone=False)
    kinds = (Kind.ACCEPTED, Kind.UNAVAILABLE)
    results = [result(each, kinds[i % 2], provider_ref=f"recorded-{i}") for i, each in enumerate(claimed)]
    return Work(len(results), lambda: _all(records.write(results), results))


def ring_1(world: World, n: int) -> Work:
    run("UPDATE notifications_pending SET wake_at = now() WHERE wake_at > now()")

    def do() -> None:
        picked, _ = relay.Relay()._pick("email.bulk")
        assert picked

    return Work(min(2 * n, relay.PICK), do)


def due_2(world: World, n: int) -> Work:
    def do() -> None:
        due = relay.Relay()._due()
        assert due.lanes
        assert due.expansions

    return Work(n, do)


FUNCTIONS: Sequence[Case] = (people_2, lay_out_1, accept_1, gates_2, claim_2, take_2, record_1, ring_1, due_2)


# --- plain statements -----------------------------------------------------------------------------------------


def a_page_of_expansions(world: World, n: int) -> Work:
    ids = _expansions(min(n, expand.MOST_AT_ONCE))
    return Work(len(ids), lambda: _same(expand.expand(ids), len(ids)))


def a_page_of_receipts(world: World, n: int) -> Work:
    ids = _waiting(min(n, receipts.PAGE - 1), _OF_LATE)
    run("UPDATE notifications_delivery SET state = 'sent' WHERE id = ANY (%s::uuid[])", plain(ids))
    refs = dict(
        run(
            "SELECT delivery_id, provider_ref FROM notifications_attempt WHERE delivery_id = ANY (%s::uuid[])",
            plain(ids),
        )
    )
    ids = sorted(refs)  # not those that a case before has just laid out
    account = ProviderAccount.objects.get(name="mail-main").pk
    receipts.keep(account, [_receipt(number, id, refs) for number, id in enumerate(ids)])
    return Work(len(ids), lambda: _same(receipts.settle_due(), len(ids)))


def rows_of_dead_workers(world: World, n: int) -> Work:
    ids = _waiting(min(n, 30), _OF_LATE)
    run(
        "UPDATE notifications_pending SET channel = 'sms', lane = 'retry', lease_until = now() - interval '1 minute', "
        "wake_at = now() - interval '1 minute', claim_no = 1, crashes = 4 WHERE id = ANY (%s::uuid[])",
        plain(ids),
    )

    def do() -> None:
        relay.Relay()._pick("sms.retry")
        assert run("SELECT count(*) FROM notifications_pending WHERE channel = 'sms' AND lane = 'retry'") == [(0,)]

    return Work(len(ids), do)


def rows_on_hold(world: World, n: int) -> Work:
    holds.pause("channel", "email", by="test")
    return Work(relay.PICK, lambda: _same(relay.Relay()._pick("email.bulk")[0], []))


def the_end_of_a_pause(world: World, n: int) -> Work:
    hold = holds.pause("channel", "email", by="test")
    relay.Relay()._pick("email.bulk")
    [(waiting,)] = run("SELECT count(*) FROM notifications_pending")  # walked through once, in the order of its key
    return Work(waiting, lambda: holds.lift(hold))


def a_cancel(world: World, n: int) -> Work:
    [(id, client)] = run("SELECT notification_id, client_id FROM notifications_delivery ORDER BY id DESC LIMIT 1")
    return Work(10, lambda: holds.cancel_notification(id, client_id=client, mode="live", by="test"))


def the_sweep_of_cancels(world: World, n: int) -> Work:
    found = run("SELECT DISTINCT notification_id FROM notifications_delivery ORDER BY 1 DESC LIMIT 20")
    Hold.objects.bulk_create(Hold(scope="notification", subject=str(id), action="cancel") for (id,) in found)
    return Work(10 * len(found), lambda: _same(holds.sweep_cancels(), len(found)))


def the_completing_of_notifications(world: World, n: int) -> Work:
    return Work(crowd.NOTIFICATIONS, upkeep.complete_old_notifications)


def the_books(world: World, n: int) -> Work:
    keeper = invariants.Bookkeeper()
    return Work(len(DELIVERY_QUEUES) * invariants.COUNTED_TO // 10, keeper.read)


def the_gauges_of_what_waits(world: World, n: int) -> Work:
    return Work(5 * crowd.CLIENTS, lambda: list(_of_waiting()))  # it looks at 50 rows of each


PLAIN: Sequence[Case] = (
    a_page_of_expansions,
    a_page_of_receipts,
    rows_of_dead_workers,
    rows_on_hold,
    the_end_of_a_pause,
    a_cancel,
    the_sweep_of_cancels,
    the_completing_of_notifications,
    the_books,
    the_gauges_of_what_waits,
)


# --- the tests ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def migrated(django_db_blocker: DjangoDbBlocker) -> Iterator[str]:
    with django_db_blocker.unblock(), crowd.database_of_its_own("plans_migrated"):
        crowd.migrate()
        yield "plans_migrated"


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest, migrated: str) -> Iterator[World]:
    """One session, whose plans were made while there were a handful of rows. Now there are tens of thousands.

    Its parameter is what the planner was told of the tables.
    """
    with crowd.database_of_its_own("plans", like=migrated):
        _forget()
        world = World.make(Mode.LIVE)
        if request.param == EMPTY:
            run("VACUUM ANALYZE")
        if request.param == DRAINED:
            crowd.fill(0.1)
            crowd.drain()
        world.send("ada", "bob", template="letter")
        world.send("eve", template="letter", send_at=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
        run("UPDATE notifications_expansion SET wake_at = now(), due_at = now()")
        run(_NAIVE)
        for case in FUNCTIONS:
            measure(case, world, 3)
        run("SELECT naive('{}')")
        crowd.fill()
        if request.param == FULL:
            run("VACUUM ANALYZE")
        session = connection.connection
        yield world
        assert connection.connection is session, "it was another session's plans that were measured"
    _forget()


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has just started, and the relay would leave over leases alone."""
    monkeypatch.setattr(relay, "RESTART_GRACE_S", 0.0)


@pytest.mark.parametrize("world", [UNKNOWN, EMPTY, DRAINED], indirect=True, scope="module")
@pytest.mark.parametrize("case", FUNCTIONS, ids=lambda case: case.__name__)
def test_a_function_reads_the_rows_in_hand_though_it_was_planned_for_empty_tables(world: World, case: Case) -> None:
    assert too_much(case, world) == {}


@pytest.mark.parametrize("world", [FULL], indirect=True, scope="module")
@pytest.mark.parametrize("case", PLAIN, ids=lambda case: case.__name__)
def test_a_plain_statement_reads_what_it_is_about(world: World, case: Case) -> None:
    assert too_much(case, world) == {}


@pytest.mark.parametrize("world", [DRAINED], indirect=True, scope="module")
def test_a_join_that_was_planned_for_an_empty_table_is_seen_to_read_all_of_it(world: World) -> None:
    assert "notifications_pending" in too_much(_a_naive_join, world)


def _a_naive_join(world: World, n: int) -> Work:
    ids = _waiting(100 * n // BATCH)
    return Work(len(ids), lambda: run("SELECT naive(%s::uuid[])", plain(ids)))


def too_much(case: Case, world: World) -> dict[str, Read]:
    """The tables of which a full batch read more than its rows account for."""
    rows, read = measure(case, world, BATCH)
    most = Read(*(each * rows + BESIDE for each in MOST))
    return {table: each for table, each in read.items() if each.entries > most.entries or each.pages > most.pages}


def measure(case: Case, world: World, n: int) -> tuple[int, dict[str, Read]]:
    """How many rows were in hand, and what was read of each table. All of it is undone."""
    with transaction.atomic():
        work = case(world, n)
        before = crowd.counters()
        work.do()
        read = crowd.read_since(before)
        transaction.set_rollback(True)
    return work.rows, read


# --- what a case takes in hand --------------------------------------------------------------------------------


_SOME = """
SELECT id FROM (SELECT id FROM {table} ORDER BY id DESC LIMIT %s) newest ORDER BY md5(id::text) LIMIT %s
"""
# Half of all is of the last weeks. Of old weeks the planner rather reads the few rows there than look up ids.
_OF_LATE = crowd.PEOPLE // 3


def _waiting(n: int, of: int = crowd.PEOPLE) -> list[UUID]:
    return sorted(row[0] for row in run(_SOME.format(table="notifications_pending"), of, n))


def _expansions(n: int) -> list[UUID]:
    return sorted(row[0] for row in run(_SOME.format(table="notifications_expansion"), _OF_LATE // 6, n))


def _people(n: int) -> list[str]:
    return [row[0] for row in run("SELECT external_id FROM people_user ORDER BY md5(external_id) LIMIT %s", n)]


def _entries(n: int) -> list[layout.Entry]:
    """People by their ids, and a quarter as many by their addresses."""
    hashes = run("SELECT value_hash FROM people_address WHERE channel = 'email' ORDER BY value_hash LIMIT %s", n // 4)
    named = [{"user_id": id} for id in _people(n)]
    reached = [{"email": "someone@example.com", "hash": str(hash)} for (hash,) in hashes]
    return [layout.Entry(0, number, value) for number, value in enumerate([*named, *reached])]


def _outline() -> layout.Outline:
    [(client,)] = run("SELECT min(id) FROM clients_client")
    return layout.Outline(
        id=uuid7(),
        client_id=client,
        is_client_active=True,
        is_client_verified=True,
        mode="live",
        category=Category.objects.get(key="orders"),
        campaign_id=None,
        template_version_id=None,
        written_channels=frozenset({"push", "email"}),
        channels=("push", "email"),
        lane="normal",
        due_at=None,
        expires_at=datetime.now(UTC) + timedelta(days=1),
    )


def _receipt(number: int, id: UUID, refs: dict[UUID, str]) -> Receipt:
    names = {"provider_ref": refs[id]} if number % 2 else {"delivery_id": id, "claim_no": 1}
    kind = ReceiptKind.DELIVERED if number % 3 else ReceiptKind.COMPLAINED
    return Receipt(f"event-{number}", kind, at=datetime.now(UTC), **names)


def _all(done: Sized, wanted: Sized) -> None:
    assert len(done) == len(wanted)


def _same(found: object, wanted: object) -> None:
    assert found == wanted


def _forget() -> None:
    """What this process remembers of another database."""
    forget_callers()
    forget_all()
    layout._categories = (float("-inf"), {})
