"""The relay: rings what is due and not rung, and gives back what a dead worker held. It is the only owner of both.

The backlog waits in PostgreSQL; each queue holds a few seconds of work. So losing the broker costs seconds, a
cancel is immediate, and one client's million cannot starve another's one.
"""

from __future__ import annotations

import os
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import chain, zip_longest
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import structlog
from celery import current_app
from django.db import Error as DatabaseError
from django.db import connection, transaction
from kombu.exceptions import OperationalError as BrokerError

from apps.notifications import ringing
from apps.notifications.arrays import plain, texts
from apps.notifications.claims import Holds, by_subject, held
from apps.notifications.heartbeats import beat
from apps.notifications.metrics import LEASES_EXPIRED
from apps.notifications.partitions import ensure_partitions
from apps.notifications.patience import LET_GO
from apps.notifications.services.lost import give_up_on
from apps.rest.problems import is_database_down
from notifier.queues import DELIVERY_QUEUES, channel_and_lane, queue_for

log = structlog.get_logger(__name__)

TICK_S = 0.2
BUSY_TICK_S = 1.0  # for a queue that has tasks waiting
IDLE_TICK_S = 0.5
WATERMARK = 2000  # rung and not claimed, per queue: a few seconds of work
PICK = 1000  # rows written by one statement: about 10 us each
RUNG_FOR_S = 10.0  # a row rung and not claimed by then is rung again
RESTART_GRACE_S = 10.0  # after a restart of the database, in which the workers' results are still on their way
HELD_FOR_S = 30
ALONE_AT_ONCE = 20  # rows whose process died, out in a queue at a time: a task takes them one by one
RECEIPTS_EVERY_S = 1.0
EXPANSIONS = 500
EXPANSION_FOR_S = 30.0
UPKEEP_EVERY_S = 3600.0
BEAT_EVERY_S = 5.0
CANARY_EVERY_S = 15.0
BROKER_DOWN_PAUSE_S = 1.0
PROBE_LIVES_MS = 1000

_RING = f"{LET_GO} SELECT notifications_ring_1(%s, %s, %s, %s, %s, %s)::text"

_HELD_BY = """
SELECT d.id, d.channel, d.client_id, d.category_id, d.campaign_id, d.notification_id, d.expires_at,
       d.expires_at <= now() AS is_expired
  FROM notifications_delivery d WHERE d.id = ANY (%(ids)s::uuid[]) AND d.id BETWEEN %(lo)s AND %(hi)s
"""

_SET_ASIDE = """
UPDATE notifications_pending p
   SET wake_at = least(now() + %(held)s * interval '1 second', v.expires),
       due_at = least(now() + %(held)s * interval '1 second', v.expires), -- not due: so it does not count as rung
       waiting = v.waiting
  FROM unnest(%(ids)s::uuid[], %(waiting)s::text[], %(expires)s::timestamptz[]) AS v(id, waiting, expires)
 WHERE p.id = v.id AND p.id = ANY (%(ids)s::uuid[]) AND p.lease_until IS NULL
"""

_EXPANSIONS_PER_TASK = 10  # with a hundred recipients each, one page


class Picked(NamedTuple):
    id: UUID
    client_id: int
    claim_no: int
    crashes: int
    was_leased: bool


class Rung(msgspec.Struct, frozen=True):
    """The answer of sql/ring_1.sql."""

    picked: list[Picked]
    holds: list[tuple[str, str, str, str]] | None = None


class Due(msgspec.Struct, frozen=True):
    """The answer of sql/due_2.sql."""

    lanes: list[tuple[str, str]]
    expansions: list[tuple[UUID, int]]
    receipts: bool


_rung = msgspec.json.Decoder(Rung)
_due = msgspec.json.Decoder(Due)


class _Held(NamedTuple):
    """The columns of _HELD_BY."""

    id: UUID
    channel: str
    client_id: int
    category_id: int
    campaign_id: UUID | None
    notification_id: UUID
    expires_at: datetime
    is_expired: bool


class Relay:
    """One relay process. Any number may run: a queue is topped up by whoever has its lock."""

    def __init__(self, *, must_stop: Callable[[], bool] = lambda: False) -> None:
        self._must_stop = must_stop
        self._is_broker_up = True
        self._upkeep_at = 0.0
        self._beat_at = 0.0
        self._canary_at = 0.0
        self._receipts_at = 0.0
        self._topped_up: dict[str, float] = {}  # when, by queue
        self._alone: dict[str, set[UUID]] = {}  # rung to be sent alone, by queue

    def run(self) -> None:
        """Tick until told to stop. A database or broker that is away is waited for."""
        while not self._must_stop():
            began = time.monotonic()
            try:
                did = self.tick()
                pause = TICK_S if did else IDLE_TICK_S
            except DatabaseError as error:
                if not is_database_down(error):
                    raise
                log.warning("relay_without_database", error=type(error).__name__)
                connection.close()
                pause = 1.0
            time.sleep(max(0.0, pause - (time.monotonic() - began)))

    def tick(self) -> int:
        """One round over all queues; returns how many rows and expansions were rung."""
        self._keep_up()
        if not self._is_broker_up and not self._probe():
            return 0
        self._send_canaries()
        due = self._due()
        queues = {queue_for(*pair) for pair in due.lanes}
        rung = sum(self._top_up(queue) for queue in DELIVERY_QUEUES if queue in queues)
        return rung + self._expand(due.expansions) + self._settle(due)

    # --- one queue ---------------------------------------------------------------------------------------------

    def _top_up(self, queue: str) -> int:
        if self._has_enough(queue):
            return 0
        self._topped_up[queue] = time.monotonic()
        rung = 0
        for _ in range(WATERMARK // PICK):
            picked, is_all = self._pick(queue)
            self._ring(queue, picked)
            rung += len(picked)
            if is_all:
                break
        return rung

    def _has_enough(self, queue: str) -> bool:
        """Whether tasks wait that will find what there is: they top up from their lane. Once a second it is rung all
        the same, for what has to be looked at: leases that are over, holds."""
        if time.monotonic() - self._topped_up.get(queue, float("-inf")) >= BUSY_TICK_S:
            return False
        try:
            return ringing.has_tasks(queue)
        except BrokerError:
            self._lost_broker()
            return True

    def _pick(self, queue: str) -> tuple[list[Picked], bool]:
        """The rows to ring for now, and whether that was all there is to do."""
        channel, lane = channel_and_lane(queue)
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(_RING, [channel.value, str(lane), RUNG_FOR_S, WATERMARK, PICK, RESTART_GRACE_S])
            answer = cursor.fetchone()[0]
            if answer is None:  # another relay has it
                return [], True
            rung = _rung.decode(answer)
            lost = [(row.id, row.claim_no, row.crashes) for row in rung.picked if row.was_leased]
            if lost:
                LEASES_EXPIRED.labels(channel.value).inc(len(lost))
                log.warning("leases_expired", queue=queue, rows=len(lost))
            ended = give_up_on(lost)
            aside = self._set_aside(cursor, by_subject(rung.holds), [r.id for r in rung.picked if r.id not in ended])
            return [row for row in rung.picked if row.id not in ended and row.id not in aside], len(rung.picked) < PICK

    def _set_aside(self, cursor: Any, holds: Holds, ids: Sequence[UUID]) -> set[UUID]:
        """Rows on hold are not rung; they are looked at again later, or when the hold is lifted."""
        if not holds or not ids:
            return set()
        ids = sorted(ids)
        cursor.execute(_HELD_BY, {"ids": plain(ids), "lo": ids[0], "hi": ids[-1]})
        aside: dict[UUID, tuple[str, str]] = {}
        for row in map(_Held._make, cursor.fetchall()):
            scope, action, _ = held(holds, row)
            if action == "pause" and not row.is_expired:  # what is over or cancelled is rung, to be ended
                aside[row.id] = (f"{scope}_paused", row.expires_at.isoformat())
        if aside:
            cursor.execute(
                _SET_ASIDE,
                {
                    "held": HELD_FOR_S,
                    "ids": plain(aside),
                    "waiting": texts(word for word, _ in aside.values()),
                    "expires": texts(expires for _, expires in aside.values()),
                },
            )
        return set(aside)

    def _ring(self, queue: str, picked: Sequence[Picked]) -> None:
        """Round robin over clients; a row whose process died goes alone, so that it takes nobody with it."""
        well = [row for row in picked if row.crashes == 0]
        alone = self._rationed(queue, [row.id for row in picked if row.crashes])
        ids = _in_turns([(row.id, row.client_id) for row in well])
        try:
            if ids:
                ringing.publish_deliveries(queue, ids)
            if alone:
                ringing.publish_deliveries(queue, alone, alone=True)
        except BrokerError:
            self._lost_broker()
            _wake([*ids, *alone])

    def _rationed(self, queue: str, crashed: Sequence[UUID]) -> list[UUID]:
        """The rows to be sent alone now. They are slow, so few are out at a time; the rest wakes again in a second."""
        if not crashed:
            return []
        out = self._alone.get(queue, set()) - set(crashed)
        with connection.cursor() as cursor:
            if out:
                cursor.execute(
                    "SELECT id FROM notifications_pending "
                    "WHERE id = ANY (%s::uuid[]) AND crashes > 0 AND lease_until IS NULL",
                    [plain(out)],
                )
                out = {row[0] for row in cursor.fetchall()}
            now = list(crashed[: max(0, ALONE_AT_ONCE - len(out))])
            later = crashed[len(now) :]
            if later:
                cursor.execute(
                    "UPDATE notifications_pending SET wake_at = now() + interval '1 second' "
                    "WHERE id = ANY (%s::uuid[]) AND lease_until IS NULL",
                    [plain(later)],
                )
        self._alone[queue] = out | set(now)
        return now

    # --- the rest ----------------------------------------------------------------------------------------------

    def _due(self) -> Due:
        pairs = [channel_and_lane(queue) for queue in DELIVERY_QUEUES]
        channels, lanes = texts(c for c, _ in pairs), texts(str(lane) for _, lane in pairs)
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT notifications_due_2(%s, %s, %s, %s)::text", [channels, lanes, EXPANSION_FOR_S, EXPANSIONS]
            )
            return _due.decode(cursor.fetchone()[0])

    def _expand(self, rung: Sequence[tuple[UUID, int]]) -> int:
        ids = _in_turns(rung)
        try:
            for start in range(0, len(ids), _EXPANSIONS_PER_TASK):
                ringing.publish_expansions(ids[start : start + _EXPANSIONS_PER_TASK])
        except BrokerError:
            self._lost_broker()  # they wake again by themselves
        return len(ids)

    def _settle(self, due: Due) -> int:
        if not due.receipts or time.monotonic() < self._receipts_at:
            return 0
        self._receipts_at = time.monotonic() + RECEIPTS_EVERY_S
        try:
            ringing.publish_receipts()
        except BrokerError:
            self._lost_broker()
        return 1

    def _keep_up(self) -> None:
        now = time.monotonic()
        if now >= self._beat_at:
            self._beat_at = now + BEAT_EVERY_S
            beat(f"relay@{socket.gethostname()}:{os.getpid()}", "relay")
            self._say_broker(self._is_broker_up)
        if now >= self._upkeep_at:
            self._upkeep_at = now + UPKEEP_EVERY_S
            ensure_partitions()

    def _send_canaries(self) -> None:
        now = time.monotonic()
        if now >= self._canary_at:
            self._canary_at = now + CANARY_EVERY_S
            try:
                ringing.publish_canaries()
            except BrokerError:
                self._lost_broker()

    def _lost_broker(self) -> None:
        if self._is_broker_up:
            log.warning("broker_lost")
        self._say_broker(False)

    def _probe(self) -> bool:
        """One cheap write to the broker: the only thing that closes everybody's breaker again.

        Not a read, nor a ping: one that is full, or a replica, answers those and takes no task.
        """
        try:
            with current_app.connection_for_write() as broker:
                broker.ensure_connection(max_retries=0, timeout=1)
                if hasattr(broker.default_channel, "client"):
                    broker.default_channel.client.set("notifier.probe", "", px=PROBE_LIVES_MS)
        except Exception as error:  # kombu passes on whatever its transport raises
            log.warning("broker_still_away", error=type(error).__name__)
            time.sleep(BROKER_DOWN_PAUSE_S)
            self._say_broker(False)
            return False
        log.info("broker_back")
        self._say_broker(True)
        return True

    def _say_broker(self, is_up: bool) -> None:
        self._is_broker_up = is_up
        with connection.cursor() as cursor:
            cursor.execute("UPDATE notifications_brokerhealth SET is_up = %s, checked_at = now() WHERE id = 1", [is_up])


def _in_turns(rows: Sequence[tuple[UUID, int]]) -> list[UUID]:
    """The ids of (id, client) pairs, one of each client after the other."""
    by_client: dict[int, list[UUID]] = defaultdict(list)
    for id, client_id in rows:
        by_client[client_id].append(id)
    return [id for id in chain.from_iterable(zip_longest(*by_client.values())) if id is not None]


def _wake(ids: Sequence[UUID]) -> None:
    """What could not be rung is due for ringing now, not in ten seconds."""
    if ids:
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE notifications_pending SET wake_at = now() WHERE id = ANY (%s::uuid[]) AND lease_until IS NULL",
                [plain(ids)],
            )
