"""What worker processes tell each other of sick provider accounts, over a real Redis."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from uuid import uuid4

import pytest
from django.conf import settings
from django.contrib.auth.models import User as Staff
from django.test import Client as Browser
from django.urls import reverse

from apps.providers.models import AccountStatus, ProviderAccount
from apps.providers.services import as_engine, set_status
from notifier.limits import Store
from notifier.outcome import Kind, Outcome, Scope
from notifier.stages.breaker import FAILURES_TO_OPEN, LEAST_CALLS, Breaker
from notifier.stages.sickroom import Sickroom, sickness_name, tell

AWAY = "redis://127.0.0.1:1/0"  # nothing listens there


class Process:
    """One worker process's view of an account; exchanges when told to."""

    def __init__(self, name: str, url: str = "") -> None:
        self.now = time.monotonic()
        self.room = Sickroom(Store(url or settings.LIMITS_URL))
        self.breaker = Breaker(lambda: self.now, lambda: self.room.may_probe(name))
        self.room.watch(name, self.breaker)

    def fails(self, times: int = FAILURES_TO_OPEN) -> None:
        for _ in range(times):
            self.breaker.saw(Outcome(Kind.UNAVAILABLE))

    def answers(self) -> None:
        self.breaker.saw(Outcome(Kind.ACCEPTED))


Starter = Callable[..., Process]


@pytest.fixture
def start() -> Iterator[Starter]:
    """Makes processes, and ends them after the test."""
    with ExitStack() as running:

        def begin(name: str, url: str = "") -> Process:
            process = Process(name, url)
            running.callback(process.room.close)
            return process

        yield begin


@pytest.fixture
def name() -> str:
    return f"test-{uuid4()}"


def test_what_one_process_found_sick_all_leave_alone_until_it_answers_one_of_them(name: str, start: Starter) -> None:
    first, second = start(name), start(name)
    first.fails()
    first.room.exchange()
    second.room.exchange()
    assert second.breaker.is_open and not second.breaker.allows()
    second.now += 5.1
    assert second.breaker.allows()
    second.answers()
    second.room.exchange()
    first.room.exchange()
    assert not first.breaker.is_open and first.breaker.allows()


def test_one_process_probes_and_the_others_wait_for_what_it_finds(name: str, start: Starter) -> None:
    processes = [start(name) for _ in range(3)]
    processes[0].fails()
    for process in processes:
        process.room.exchange()
        process.now += 5.1
    assert [process.breaker.allows() for process in processes] == [True, False, False]
    processes[0].fails(1)
    for process in processes:
        process.room.exchange()
        process.now += 5.1
    assert [process.breaker.allows() for process in processes] == [False] * 3, "ten seconds, the second time"
    for process in processes:
        process.now += 5.1
    assert [process.breaker.allows() for process in reversed(processes)] == [True, False, False]


def test_a_process_that_starts_while_an_account_is_sick_knows_it(name: str, start: Starter) -> None:
    first = start(name)
    first.breaker.saw(Outcome(Kind.MISCONFIGURED, Scope.ACCOUNT))
    first.room.exchange()
    late = start(name)
    late.room.exchange()
    assert not late.breaker.allows()
    late.now += 10
    assert 9 < late.breaker.away_s < 12


def test_news_of_an_old_failure_does_not_shorten_a_new_one(name: str, start: Starter) -> None:
    first, second = start(name), start(name)
    first.breaker.saw(Outcome(Kind.MISCONFIGURED, Scope.ACCOUNT))
    first.room.exchange()
    second.fails()
    second.room.exchange()
    [known] = tell(Store(settings.LIMITS_URL), {name: (False, None)}).values()
    assert known is not None and 25 < known.until_s <= 30


def test_while_redis_is_away_each_process_goes_by_what_it_finds(name: str, start: Starter) -> None:
    alone = start(name, AWAY)
    alone.fails()
    assert not alone.breaker.allows()
    alone.now += 5.1
    assert alone.breaker.allows()
    alone.answers()
    assert alone.breaker.allows() and alone.breaker.news(), "told when Redis is back"


def test_the_thread_tells_and_hears_by_itself(name: str, start: Starter) -> None:
    first, second = start(name), start(name)
    first.fails()
    until = time.monotonic() + 10
    while not second.breaker.is_open and time.monotonic() < until:
        time.sleep(0.05)
    assert second.breaker.is_open


def test_an_account_that_fails_every_second_call_is_left_alone_too(name: str, start: Starter) -> None:
    half, rarely = start(name), start(name)
    for _ in range(LEAST_CALLS // 2):
        half.answers()
        half.fails(1)
    assert half.breaker.is_open
    for _ in range(LEAST_CALLS):
        rarely.fails(1)
        rarely.answers()
        rarely.answers()
    assert not rarely.breaker.is_open


@pytest.mark.django_db
def test_staff_see_which_accounts_the_workers_leave_alone(client: Browser, start: Starter) -> None:
    ProviderAccount.objects.create(name="well", kind="smtp", settings={"host": "mail.example.com"})
    sick = ProviderAccount.objects.create(name="sick", kind="smtp", settings={"host": "mail.example.com"})
    process = start(sickness_name(as_engine(sick)))
    process.fails()
    process.room.exchange()
    client.force_login(Staff.objects.create_superuser("root", "root@example.com", "pass"))
    listed = reverse("admin:providers_provideraccount_changelist")
    page = " ".join(re.sub(r"<[^>]+>", " ", client.get(listed).content.decode()).split())
    assert re.search(r"sick smtp.{0,40}no, for \d s; probed in [45] s", page)
    assert re.search(r"well smtp.{0,40}yes", page)
    set_status(sick, AccountStatus.ACTIVE)
    assert "no, for" not in client.get(listed).content.decode(), "activated again, it begins well"
