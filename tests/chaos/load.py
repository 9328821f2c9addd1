"""Callers: threads that send over HTTP, repeat with the same key until they are answered, and keep every answer."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import requests

from tests.acceptance.stack import Stack

ANSWERED_WITHIN_S = 15.0
ITEMS_IN_BATCH = 20
CALLERS = 8


@dataclass(frozen=True, slots=True)
class Answer:
    """One try of one request. `status` 0: the connection broke."""

    began: float  # monotonic
    took_s: float
    status: int
    retry_after: str = ""


@dataclass(frozen=True, slots=True)
class People:
    """Made beforehand, each with a phone, a mailbox and one device: each request below comes to one delivery."""

    ids: Sequence[str]

    @classmethod
    def make(cls, stack: Stack, count: int) -> People:
        mark = uuid.uuid4().hex[:8]
        ids = [f"p-{mark}-{number}" for number in range(count)]
        users = [
            {"id": id, "email": f"p{number}-{mark}@sandbox.invalid", "phone": f"+1500555{1000 + number}"}
            for number, id in enumerate(ids)
        ]
        answer = stack.api("POST", "/v1/users/bulk", json={"users": users})
        assert answer.status_code == 200 and answer.json()["created"] == count, answer.text[:500]
        for number, id in enumerate(ids):
            if number % 2:
                token = f"5a0db0c50200{mark}{number:08x}".ljust(64, "0")
                device = {"platform": "ios", "token": token, "app_id": "com.example.juniper"}
                device["apns_environment"] = "production"
            else:
                device = {"platform": "android", "token": f"sandbox-ok-{mark}-{number}"}
            answer = stack.api("POST", f"/v1/users/{id}/devices", json=device)
            assert answer.status_code == 201, answer.text
        return cls(ids)


@dataclass(frozen=True, slots=True)
class Mix:
    """What is asked for. `batches`: the share of requests that are one of 20 items (laid out by the workers).

    `by_key`: the share of single requests that name no event. Their Idempotency-Key alone keeps a repeat from being a
    second notification; their `reference`, which the service keeps and never compares, says what was meant as one.
    """

    channels: tuple[str, ...] = ("push", "sms", "email")
    lanes: tuple[str, ...] = ("critical", "normal", "bulk")
    batches: float = 0.03
    by_key: float = 0.3

    def item(self, people: People, dice: random.Random) -> dict[str, Any]:
        lane = dice.choice(self.lanes)
        body: dict[str, Any] = {
            "event_id": uuid.uuid4().hex,  # not by the seed: two scenarios on one database never share an event
            "to": [{"user_id": dice.choice(people.ids)}],
            "channels": [dice.choice(self.channels)],
            "lane": lane,
        }
        if lane == "critical":
            return body | {"template": "login-code", "data": {"code": f"{dice.randrange(10**6):06}"}}
        order = {"id": f"A-{dice.randrange(10**4)}", "eta": "2026-11-25"}
        return body | {"template": "order-shipped", "data": {"order": order}}


@dataclass
class Load:
    """Sends at `rate` notifications a second until `count` were accepted, and no longer than until `stop()`.

    A request that broke, or met 5xx or 409, is repeated with its key until it is answered for good, so `accepted`
    (event id or reference -> notification id) is complete once `finish()` returns.
    """

    stack: Stack
    people: People
    seed: int
    mix: Mix = field(default_factory=Mix)
    rate: float = 100.0
    count: int = 10**9
    started: ClassVar[list[Load]] = []  # so that the callers of a scenario that failed do not disturb the next one

    def __post_init__(self) -> None:
        self.accepted: dict[str, str] = {}
        self.answers: list[Answer] = []
        self.wrong: list[str] = []
        self.repeated = 0
        self._asked = 0
        self._open: dict[int, float] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._giving_up = threading.Event()
        self._began = time.monotonic()
        self._threads = [
            threading.Thread(target=self._call, args=(random.Random(f"{self.seed}-{number}"),), daemon=True)
            for number in range(CALLERS)
        ]

    def start(self) -> Load:
        self._began = time.monotonic()
        self.started.append(self)
        for thread in self._threads:
            thread.start()
        return self

    @classmethod
    def end_all(cls) -> None:
        """Whatever is still open: now."""
        for load in cls.started:
            load.stop()
            load._giving_up.set()
        for load in cls.started:
            for thread in load._threads:
                thread.join()
        cls.started.clear()

    def stop(self) -> None:
        """Ask for nothing new. Requests that are open are repeated until they are answered."""
        self._stopping.set()

    def finish(self, within_s: float = 120) -> Load:
        """Returns when the count is reached, or after `stop()`, and every request was answered for good."""
        deadline = time.monotonic() + within_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        late = [thread for thread in self._threads if thread.is_alive()]
        self._giving_up.set()
        assert not late, f"{len(late)} callers are still without an answer after {within_s:.0f} s: {self.statuses}"
        assert self.wrong == [], self.wrong[:5]
        return self

    @property
    def is_done(self) -> bool:
        return not any(thread.is_alive() for thread in self._threads)

    @property
    def open_requests(self) -> int:
        return len(self._open)

    @property
    def statuses(self) -> Counter[int]:
        return Counter(answer.status for answer in list(self.answers))

    @property
    def broken(self) -> int:
        return self.statuses[0]

    def since(self, moment: float) -> list[Answer]:
        """The answers to what was asked after `moment` (monotonic)."""
        return [answer for answer in list(self.answers) if answer.began >= moment]

    # --- one caller -------------------------------------------------------------------------------------------

    def _call(self, dice: random.Random) -> None:
        session = requests.Session()
        session.auth = (self.stack.demo["NOTIFIER_APP_KEY"], self.stack.demo["NOTIFIER_APP_SECRET"])
        while not self._stopping.is_set():
            is_batch = dice.random() < self.mix.batches
            items = [self.mix.item(self.people, dice) for _ in range(ITEMS_IN_BATCH if is_batch else 1)]
            if not is_batch and dice.random() < self.mix.by_key:
                items[0]["reference"] = items[0].pop("event_id")
            if not self._may_ask(len(items)):
                return
            path, body = ("/v1/notifications/batch", {"items": items}) if is_batch else ("/v1/notifications", items[0])
            self._until_answered(session, path, body, items, uuid.uuid4().hex)

    def _may_ask(self, items: int) -> bool:
        """Waits for its turn at the rate; False when enough was asked for."""
        with self._lock:
            if self._asked >= self.count:
                return False
            turn = self._began + self._asked / self.rate
            self._asked += items
        self._stopping.wait(max(0.0, turn - time.monotonic()))
        return True

    def _until_answered(
        self, session: requests.Session, path: str, body: dict[str, Any], items: list[dict[str, Any]], key: str
    ) -> None:
        while not self._giving_up.is_set():
            response = self._once(session, path, body, key)
            if response is not None and response.status_code in (200, 202):
                self._keep(response, items)
                return
            if response is not None and response.status_code not in (409, 502, 503):
                self.wrong.append(f"{response.status_code} {response.text[:300]}")
                return
            self.repeated += 1
            wait_s = float(response.headers.get("Retry-After", 1)) if response is not None else 0.3
            self._giving_up.wait(min(wait_s, 2.0))

    def _once(self, session: requests.Session, path: str, body: dict[str, Any], key: str) -> requests.Response | None:
        began = time.monotonic()
        self._open[threading.get_ident()] = began
        response = None
        try:
            response = session.post(
                self.stack.url + path, json=body, headers={"Idempotency-Key": key}, timeout=ANSWERED_WITHIN_S
            )
        except requests.RequestException:
            session.close()
        finally:
            del self._open[threading.get_ident()]
        status, retry_after = (
            (response.status_code, response.headers.get("Retry-After", "")) if response is not None else (0, "")
        )
        self.answers.append(Answer(began, time.monotonic() - began, status, retry_after))
        return response

    def _keep(self, response: requests.Response, items: list[dict[str, Any]]) -> None:
        found = response.json()
        results = found.get("results", [found])
        for item, result in zip(items, results, strict=True):
            if result.get("result") == "rejected":
                self.wrong.append(f"rejected {result}"[:300])
            else:
                self.accepted[item.get("event_id") or item["reference"]] = result["id"]
