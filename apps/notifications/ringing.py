"""Ringing: telling workers that there is work. Only ever a hint: what is not rung, the relay rings.

A web process rings from a thread of its own. The request does not wait for the broker, whatever state that is
in, and what is accepted while one publish is under way goes out with the next: tasks grow with the load.

A queue that has tasks waiting is not rung again: a task takes what else its lane holds, and one that has not begun
will find what was committed before. So under load there are as many tasks as the workers can begin, and no more.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import structlog
from celery import current_app
from django.db import connection
from kombu.exceptions import OperationalError as BrokerError

from apps.notifications.metrics import RINGS
from apps.notifications.request_ids import joined
from notifier.message import Lane
from notifier.queues import ALL_QUEUES, CORE, RECEIPTS, channel_and_lane, queue_for

log = structlog.get_logger(__name__)

MOST_IDS = 500  # in one task: 20 kB, and a shift's first claim
MOST_WAITING = 10_000  # ids held for the thread; past this the relay has them
CANARY_LIVES_S = 60
MOST_UNREAD = 1000  # tasks on a queue that nobody reads: canaries do not make it grow for ever
RECEIPTS_RING_S = 30  # rung each second while something is due: old rings of a queue that stood still say nothing new
RING_EVERY_S = 0.02  # what is accepted meanwhile goes out together; what comes first, and what is critical, at once
RING_MORE_S = 0.01  # longer for each delivery beyond the first: tasks grow with the load, their number less
RING_AT_LEAST_EVERY_S = 0.06
ENOUGH_TASKS = 1  # waiting on a queue
HEALTH_FRESH_S = 1.5  # how old the relay's word on the broker may be


def publish_deliveries(queue: str, ids: Sequence[UUID], *, alone: bool = False) -> None:
    """Ring a delivery queue. Raises kombu's OperationalError within a second when the broker is away."""
    for start in range(0, len(ids), MOST_IDS):
        part = [str(id) for id in ids[start : start + MOST_IDS]]
        _send("deliver", [queue, part, alone], queue)


def has_tasks(queue: str, enough: int = ENOUGH_TASKS) -> bool:
    """Whether so many tasks wait on the queue that one of them has yet to begin. Raises kombu's OperationalError.

    Should it be wrong (canaries alone, workers that stop), the relay rings within two seconds.
    """
    with current_app.producer_or_acquire() as producer:
        try:
            return bool(producer.channel.client.llen(queue) >= enough)
        except producer.connection.recoverable_connection_errors as error:
            raise BrokerError(str(error)) from error


def publish_expansions(ids: Iterable[UUID]) -> None:
    _send("expand", [[str(id) for id in ids]], CORE)


def publish_canaries() -> None:
    """One small task for each queue: whoever works on it writes a heartbeat."""
    for queue in ALL_QUEUES:
        if has_tasks(queue, MOST_UNREAD):
            continue
        _send("canary", [queue], queue, expires=CANARY_LIVES_S)


def publish_receipts() -> None:
    _send("settle_receipts", [], RECEIPTS, expires=RECEIPTS_RING_S)


def _send(task: str, args: list[object], queue: str, **options: Any) -> None:
    # argsrepr: Celery would put the ids into every message a second time.
    current_app.send_task(
        task, args=args, queue=queue, argsrepr="", kwargsrepr="", ignore_result=True, retry=False, **options
    )


def ring(deliveries: Sequence[tuple[UUID, str]], lane: str, request_id: str = "") -> None:
    """Ring for (id, channel) pairs that were just committed. Returns at once and never raises."""
    rings = [Ring(queue_for(channel, lane), id, request_id) for id, channel in deliveries]
    _ringer.ring(rings, is_urgent=lane == Lane.CRITICAL)


class Ring(NamedTuple):
    """One delivery to ring for, and the request that it came with."""

    queue: str
    id: UUID
    request_id: str


class Ringer:
    """The thread that publishes for this process, started with the first ring (never before a fork)."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._waiting: deque[Ring] = deque(maxlen=MOST_WAITING)
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_down = False
        self._is_urgent = False

    def ring(self, rings: Sequence[Ring], *, is_urgent: bool = False) -> None:
        if os.getpid() != self._pid:
            self._start()
        with self._wake:
            if self._is_down:
                RINGS.labels("skipped").inc(len(rings))
                return
            self._waiting.extend(rings)
            self._is_urgent = self._is_urgent or (is_urgent and bool(rings))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="ringer", daemon=True)
                self._thread.start()
            self._wake.notify()

    def _run(self) -> None:
        rest_s = 0.0
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._is_urgent, rest_s)
                self._wake.wait_for(lambda: self._waiting)
                rings = list(self._waiting)
                self._waiting.clear()
                self._is_urgent = False
            rest_s = min(RING_EVERY_S + RING_MORE_S * (len(rings) - 1), RING_AT_LEAST_EVERY_S)
            try:
                self._publish(rings)
            except Exception as error:  # the thread's border: whatever it is, the relay rings
                RINGS.labels("failed").inc(len(rings))
                log.warning("ring_failed", error=type(error).__name__, rings=len(rings))
                self._wait_for_broker()

    def _publish(self, rings: list[Ring]) -> None:
        by_queue: dict[str, list[Ring]] = {}
        for ring in rings:
            by_queue.setdefault(ring.queue, []).append(ring)
        for queue, those in by_queue.items():
            if channel_and_lane(queue)[1] != Lane.CRITICAL and has_tasks(queue):
                RINGS.labels("spared").inc(len(those))
                continue
            # The log lines of the task that is rung name them: a busy moment's many requests share one task.
            with structlog.contextvars.bound_contextvars(request_id=joined(ring.request_id for ring in those)):
                publish_deliveries(queue, [ring.id for ring in those])
            RINGS.labels("rung").inc(len(those))

    def _wait_for_broker(self) -> None:
        """Ring nothing until the relay, which probes the broker, says that it is back."""
        with self._wake:
            self._is_down = True
            self._is_urgent = False
            self._waiting.clear()
        while True:
            time.sleep(HEALTH_FRESH_S)
            if broker_is_up():
                break
        with self._wake:
            self._is_down = False


def broker_is_up() -> bool:
    """The relay's last word. An unreadable or stale one counts as down: the relay rings meanwhile."""
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT is_up AND checked_at > now() - interval '10 seconds' "
                "FROM notifications_brokerhealth WHERE id = 1"
            )
            row = cursor.fetchone()
        return bool(row and row[0])
    except Exception as error:  # the thread's border
        log.warning("broker_health_unreadable", error=type(error).__name__)
        connection.close()
        return False


_ringer = Ringer()
