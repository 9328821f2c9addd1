"""Group commit: who writes with whom, and what becomes of a group that the database refuses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from django.db import Error, InterfaceError, InternalError, OperationalError, connection, transaction

from apps.notifications.models import Notification
from apps.notifications.services import accept, keys
from apps.notifications.services.group_commit import MOST, MOST_CHARACTERS, GroupCommit
from apps.rest.problems import problem_of
from tests.apps.notifications.world import World


class _Refused(Exception):
    def __init__(self, pgcode: str | None) -> None:
        super().__init__("refused")
        self.pgcode = pgcode


def refusal(pgcode: str | None, kind: type[Error] = OperationalError) -> Error:
    error = kind("refused")
    error.__cause__ = _Refused(pgcode)
    return error


class Store:
    """Keeps what it is told to; the first statement takes until `release`."""

    def __init__(self) -> None:
        self.written: list[list[str]] = []
        self.refuses: Callable[[Sequence[str]], Exception | None] = lambda documents: None
        self.began, self.release = threading.Event(), threading.Event()
        self.commits = GroupCommit(self.execute)

    def execute(self, documents: Sequence[str]) -> Sequence[str]:
        is_first = not self.began.is_set()
        self.began.set()
        if is_first:
            assert self.release.wait(10)
        if error := self.refuses(documents):
            raise error
        self.written.append(list(documents))
        return [document.upper() for document in documents]


@pytest.fixture
def store() -> Store:
    return Store()


def while_one_is_written(store: Store, *others: tuple[str, str]) -> list[Future[str | None]]:
    """(document, order) pairs that come while "first" is being written; what each came to, "first" before them."""
    with ThreadPoolExecutor(len(others) + 1) as pool:
        said = [pool.submit(store.commits.write, "first")]
        assert store.began.wait(10)
        for number, (document, order) in enumerate(others, 1):
            said.append(pool.submit(store.commits.write, document, order=order))
            until = time.monotonic() + 10
            while len(store.commits._waiting) < number:
                assert time.monotonic() < until
                time.sleep(0.001)
        store.release.set()
    return said


def test_who_comes_alone_is_written_at_once(store: Store) -> None:
    store.release.set()
    assert [store.commits.write(each) for each in ("a", "b")] == ["A", "B"]
    assert store.written == [["a"], ["b"]]


def test_who_comes_while_one_is_written_goes_with_the_others_in_their_order(store: Store) -> None:
    said = while_one_is_written(store, ("c", "3"), ("a", "1"), ("b", "2"))
    assert [each.result() for each in said] == ["FIRST", "C", "A", "B"]
    assert store.written == [["first"], ["a", "b", "c"]]


def test_a_group_has_a_bound(store: Store) -> None:
    said = while_one_is_written(store, *((f"{n:02d}", "") for n in range(MOST + 3)))
    assert [each.result() for each in said[1:]] == [f"{n:02d}" for n in range(MOST + 3)]
    assert [len(group) for group in store.written] == [1, MOST, 3]


def test_in_a_group_that_is_refused_only_the_guilty_fails(store: Store) -> None:
    store.refuses = lambda documents: refusal("55P03") if "bad" in documents else None
    said = while_one_is_written(store, ("a", ""), ("bad", ""), ("b", ""))
    assert [each.exception() is None for each in said] == [True, True, False, True]
    assert (said[1].result(), said[3].result()) == ("A", "B")
    assert sorted(store.written) == [["a"], ["b"], ["first"]]


@pytest.mark.parametrize(
    ("pgcode", "kind"),
    [
        (None, OperationalError),
        ("57P01", OperationalError),
        ("08006", OperationalError),
        ("25006", InternalError),  # read-only
        (None, InterfaceError),  # the connection was closed
    ],
)
def test_after_a_connection_that_broke_nothing_is_written_a_second_time(
    store: Store, pgcode: str | None, kind: type[Error]
) -> None:
    asked: list[Sequence[str]] = []

    def refuses(documents: Sequence[str]) -> Exception | None:
        asked.append(documents)
        return refusal(pgcode, kind) if len(documents) > 1 else None

    store.refuses = refuses
    said = while_one_is_written(store, ("a", ""), ("b", ""))
    errors = [each.exception() for each in said[1:]]
    assert [type(error) for error in errors] == [kind] * 2
    assert errors[0] is not errors[1]
    assert all(problem_of(error).code == "unavailable" for error in errors if isinstance(error, Exception))
    assert list(map(list, asked)) == [["first"], ["a", "b"]]
    assert store.commits.write("later") == "LATER"


def test_a_large_document_waits_for_nobody_and_nobody_for_it(store: Store) -> None:
    large = "x" * (MOST_CHARACTERS + 1)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(store.commits.write, "first")
        assert store.began.wait(10)
        assert store.commits.write(large) == large.upper()
        store.release.set()
        assert first.result() == "FIRST"


@pytest.mark.django_db(transaction=True)
def test_a_key_that_somebody_holds_costs_its_own_request_and_no_other(
    committed_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept, "WAIT_MS", 300)
    monkeypatch.setattr(keys, "WAIT_MS", 300)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with transaction.atomic():
                committed_world.send("ada", event_id="held")
                held.set()
                release.wait(120)
        finally:
            connection.close()

    def send(event_id: str) -> int:
        try:
            return int(committed_world.send("ada", event_id=event_id).status_code)
        finally:
            connection.close()

    with ThreadPoolExecutor(9) as pool:
        holding = pool.submit(hold)
        assert held.wait(10)
        said = {each: pool.submit(send, each) for each in ("held", *(f"free-{n}" for n in range(6)))}
        statuses = {each: future.result() for each, future in said.items()}
        release.set()
        holding.result()
    assert statuses == {"held": 409, **{f"free-{n}": 202 for n in range(6)}}
    assert Notification.objects.count() == 7
