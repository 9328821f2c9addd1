"""A ledger in memory and a provider that says what it is told, for tests of the engine alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar
from uuid import UUID

from notifier.ledger import Account, Claimed, Result
from notifier.message import Address, Channel, Message
from notifier.outcome import Kind, Outcome
from notifier.providers.base import Provider, setting
from notifier.stages.render import Compiled
from tests.unit.test_settle import claimed as _claimed

TEXTS = {"email": {"en": {"subject": "Hello {{ name }}", "text": "Hi"}}}
ACCOUNT = Account(id=1, name="fake-main", kind="fake", settings={}, revision="1")


def claimed(number: int = 0, **values: Any) -> Claimed:
    address = Address(Channel.EMAIL, f"p{number}@example.com")
    defaults = {"address": address, "lease_ends": 1e12, "claimed_at": 1e12, "data": {"name": "Ada"}}
    return _claimed(**{**defaults, **values})


@dataclass
class MemoryLedger:
    """Holds rows until they are recorded. `fail_writes` makes that many writes raise."""

    waiting: list[Claimed] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    writes: list[int] = field(default_factory=list)
    fail_writes: int = 0
    rechecked: list[UUID] = field(default_factory=list)
    on_recheck: Callable[[Claimed], Claimed] = lambda c: c
    known_accounts: Sequence[Account] = (ACCOUNT,)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def claim(self, ids: Sequence[UUID], *, lease_s: float, alone: bool = False) -> list[Claimed]:
        with self.lock:
            mine = [c for c in self.waiting if c.delivery_id in set(ids) and (alone or not c.crashes)]
            self.waiting = [c for c in self.waiting if c not in mine]
            return mine

    def take(
        self, ids: Sequence[UUID], channel: Channel, lanes: Sequence[str], most: int, *, lease_s: float
    ) -> tuple[list[Claimed], bool]:
        found = self.claim(ids, lease_s=lease_s)
        with self.lock:
            more = [c for lane in lanes for c in self.waiting if c.queue_lane == lane and not c.crashes]
            mine = more[: max(0, most - len(found))]
            self.waiting = [c for c in self.waiting if c not in mine]
            return found + mine, mine == more

    def recheck(self, claimed: Sequence[Claimed]) -> list[Claimed]:
        self.rechecked += [c.delivery_id for c in claimed]
        return [replace(self.on_recheck(c), claimed_at=1e12) for c in claimed]

    def record(self, results: Sequence[Result]) -> None:
        if self.fail_writes:
            self.fail_writes -= 1
            raise ConnectionError("the database is away")
        self.writes.append(len(results))
        self.results += results

    def accounts(self) -> Sequence[Account]:
        return self.known_accounts

    def template(self, version_id: int) -> Compiled:
        if version_id != 1:
            raise LookupError(version_id)
        return Compiled(version_id, TEXTS, "en")


@dataclass(frozen=True)
class FakeSettings:
    key: str = setting("", secret=True)


class FakeProvider(Provider):
    """Answers with `script(message)`; counts what is open at the same time."""

    kind = "fake"
    serves: ClassVar[frozenset[str]] = frozenset({"email", "sms"})
    Settings = FakeSettings
    script: ClassVar[Callable[[Message], Outcome]] = lambda message: Outcome(Kind.ACCEPTED)
    latency_s: ClassVar[float] = 0.0
    hangs: ClassVar[Callable[[Message], bool]] = lambda message: False
    open_now: ClassVar[int] = 0
    most_open: ClassVar[int] = 0
    sent: ClassVar[list[Message]] = []
    prepared: ClassVar[list[str]] = []

    async def prepare(self) -> None:
        type(self).prepared.append(self.surroundings.account_name)
        if self.settings.key == "wrong":
            raise OSError

    @classmethod
    def reset(cls) -> None:
        cls.prepared = []
        cls.script = lambda message: Outcome(Kind.ACCEPTED)
        cls.hangs = lambda message: False
        cls.latency_s, cls.open_now, cls.most_open, cls.sent, cls.batch_size = 0.0, 0, 0, [], 1

    async def send(self, batch: Sequence[Message]) -> list[Outcome]:
        cls = type(self)
        cls.open_now += len(batch)
        cls.most_open = max(cls.most_open, cls.open_now)
        try:
            if cls.latency_s:
                await asyncio.sleep(cls.latency_s)
            if any(cls.hangs(message) for message in batch):
                await asyncio.Event().wait()
            cls.sent += batch
            return [cls.script(message) for message in batch]
        finally:
            cls.open_now -= len(batch)


def many(count: int, **values: Any) -> Iterator[Claimed]:
    for number in range(count):
        yield claimed(number, **values)
