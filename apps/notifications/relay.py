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
from itertools import chain, zip_longest
from typing import Any, NamedTuple
from uuid import UUID

import structlog
from celery import current_app
from django.db import Error as DatabaseError
from django.db import connection, transaction
from kombu.exceptions import OperationalError as BrokerError

from apps.notifications import ringing
from apps.notifications.arrays import plain, texts
from apps.notifications.claims import held, read_holds
from apps.notifications.heartbeats import beat
from apps.notifications.metrics import LEASES_EXPIRED
from apps.notifications.partitions import ensure_partitions
from apps.notifications.patience import LET_GO
from apps.notifications.services.lost import give_up_on
from apps.rest.problems import is_database_down
from notifier.queues import DELIVERY_QUEUES, channel_and_lane, queue_for

log = structlog.get_logger(__name__)

TICK_S = 0.2
IDLE_TICK_S = 0.5
WATERMARK = 2000  # rung and not claimed, per queue: a few seconds of work
PICK = 1000  # rows written by one statement: about 10 us each
RUNG_FOR_S = 10  # a row rung and not claimed by then is rung again
HELD_FOR_S = 30
ALONE_AT_ONCE = 20  # rows whose process died, out in a queue at a time: a task takes them one by one
RECEIPTS_EVERY_S = 1.0
EXPANSIONS = 500
EXPANSION_FOR_S = 30
UPKEEP_EVERY_S = 3600.0
BEAT_EVERY_S = 5.0
CANARY_EVERY_S = 15.0
BROKER_DOWN_PAUSE_S = 1.0

_LANES_WITH_ROWS = """
SELECT v.channel, v.lane FROM unnest(%(channels)s::text[], %(lanes)s::text[]) AS v(channel, lane)
 WHERE EXISTS (SELECT 1 FROM notifications_pending p WHERE p.channel = v.channel AND p.lane = v.lane)
"""

_CLIENTS = """
WITH RECURSIVE c AS (
  (SELECT client_id FROM notifications_pending WHERE channel = %(channel)s AND lane = %(lane)s
    ORDER BY client_id LIMIT 1)
  UNION ALL
  SELECT (SELECT t.client_id FROM notifications_pending t
           WHERE t.channel = %(channel)s AND t.lane = %(lane)s AND t.client_id > c.client_id
           ORDER BY t.client_id LIMIT 1) FROM c WHERE c.client_id IS NOT NULL
)
"""

# A try-lock for the queue, and how many rows are rung and still unclaimed, counted no further than the watermark.
_ROOM = (
    LET_GO
    + _CLIENTS
    + """
SELECT CASE WHEN pg_try_advisory_xact_lock(hashtext(%(queue)s)) THEN (
  SELECT count(*) FROM (
    SELECT 1 FROM c CROSS JOIN LATERAL (
      SELECT 1 FROM notifications_pending t
       WHERE t.channel = %(channel)s AND t.lane = %(lane)s AND t.client_id = c.client_id
         AND t.wake_at > now() AND t.wake_at <= now() + %(rung)s * interval '1 second'
         AND t.lease_until IS NULL AND t.due_at <= now() AND t.crashes = 0 LIMIT %(watermark)s) r
     WHERE c.client_id IS NOT NULL LIMIT %(watermark)s) rung) END
"""
)

# One client's share is the whole divided by how many have work. A lease that is over is given back here, but not
# in the first ten seconds of a restarted database: the workers' results are still on their way.
_PICK = (
    _CLIENTS
    + """
, pick AS MATERIALIZED (
  SELECT r.id, r.was_leased FROM (SELECT client_id FROM c WHERE client_id IS NOT NULL ORDER BY random()) c
   CROSS JOIN LATERAL (
     SELECT t.id, t.lease_until IS NOT NULL AS was_leased FROM notifications_pending t
      WHERE t.channel = %(channel)s AND t.lane = %(lane)s AND t.client_id = c.client_id AND t.wake_at <= now()
        AND (t.lease_until IS NULL
             OR (t.lease_until <= now() AND pg_postmaster_start_time() < now() - interval '10 seconds'))
      ORDER BY t.wake_at
      LIMIT greatest(1, %(limit)s / (SELECT count(*) FROM c WHERE client_id IS NOT NULL))
      FOR UPDATE SKIP LOCKED) r
   LIMIT %(limit)s)
UPDATE notifications_pending p
   SET wake_at = now() + %(rung)s * interval '1 second',
       crashes = p.crashes + (p.lease_until IS NOT NULL)::int, lease_until = NULL
 WHERE p.id = ANY (ARRAY(SELECT id FROM pick))
RETURNING p.id, p.client_id, p.claim_no, p.crashes,
          p.id = ANY (ARRAY(SELECT id FROM pick WHERE was_leased)) AS was_leased
"""
)

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

# As with deliveries: a few seconds of work at a time, shared between the clients.
_DUE_EXPANSIONS = """
WITH RECURSIVE c AS (
  (SELECT client_id FROM notifications_expansion ORDER BY client_id LIMIT 1)
  UNION ALL
  SELECT (SELECT t.client_id FROM notifications_expansion t WHERE t.client_id > c.client_id
           ORDER BY t.client_id LIMIT 1) FROM c WHERE c.client_id IS NOT NULL
), rung AS MATERIALIZED (
  SELECT count(*) AS n FROM (
    SELECT 1 FROM c CROSS JOIN LATERAL (
      SELECT 1 FROM notifications_expansion t
       WHERE t.client_id = c.client_id AND t.wake_at > now() AND t.wake_at <= now() + %(again)s * interval '1 second'
         AND t.due_at <= now() LIMIT %(limit)s) r
     WHERE c.client_id IS NOT NULL LIMIT %(limit)s) r
), pick AS MATERIALIZED (
  SELECT r.id FROM (SELECT client_id FROM c WHERE client_id IS NOT NULL ORDER BY random()) c
   CROSS JOIN LATERAL (
     SELECT t.id FROM notifications_expansion t WHERE t.client_id = c.client_id AND t.wake_at <= now()
      ORDER BY t.wake_at LIMIT greatest(1, %(limit)s / (SELECT count(*) FROM c WHERE client_id IS NOT NULL))
      FOR UPDATE SKIP LOCKED) r
   LIMIT (SELECT %(limit)s - n FROM rung))
UPDATE notifications_expansion SET wake_at = now() + %(again)s * interval '1 second'
 WHERE id = ANY (ARRAY(SELECT id FROM pick))
RETURNING id, client_id
"""

_EXPANSIONS_PER_TASK = 10  # with a hundred recipients each, one page


class Picked(NamedTuple):
    id: UUID
    client_id: int
    claim_no: int
    crashes: int
    was_leased: bool


class Relay:
    """One relay process. Any number may run: a queue is topped up by whoever has its lock."""

    def __init__(self, *, must_stop: Callable[[], bool] = lambda: False) -> None:
        self._must_stop = must_stop
        self._is_broker_up = True
        self._upkeep_at = 0.0
        self._beat_at = 0.0
        self._canary_at = 0.0
        self._receipts_at = 0.0
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
        return sum(self._top_up(queue) for queue in _queues_with_rows()) + self._expansions() + self._receipts()

    # --- one queue ---------------------------------------------------------------------------------------------

    def _top_up(self, queue: str) -> int:
        rung = 0
        for _ in range(WATERMARK // PICK):
            picked, room = self._pick(queue)
            self._ring(queue, picked)
            rung += len(picked)
            if len(picked) < min(PICK, room):
                break
        return rung

    def _pick(self, queue: str) -> tuple[list[Picked], int]:
        channel, lane = channel_and_lane(queue)
        values = {"queue": queue, "channel": channel.value, "lane": str(lane), "rung": RUNG_FOR_S}
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(_ROOM, values | {"watermark": WATERMARK})
            waiting = cursor.fetchone()[0]
            if waiting is None or waiting >= WATERMARK:  # another relay has it, or the queue is simply busy
                return [], 0
            room = min(PICK, WATERMARK - waiting)
            cursor.execute(_PICK, values | {"limit": room})
            picked = [Picked(*row) for row in cursor.fetchall()]
            lost = [(row.id, row.claim_no, row.crashes) for row in picked if row.was_leased]
            if lost:
                LEASES_EXPIRED.labels(channel.value).inc(len(lost))
                log.warning("leases_expired", queue=queue, rows=len(lost))
            ended = give_up_on(lost)
            aside = self._set_aside(cursor, [row.id for row in picked if row.id not in ended])
            return [row for row in picked if row.id not in ended and row.id not in aside], room

    def _set_aside(self, cursor: Any, ids: Sequence[UUID]) -> set[UUID]:
        """Rows on hold are not rung; they are looked at again later, or when the hold is lifted."""
        holds = read_holds()
        if not holds or not ids:
            return set()
        ids = sorted(ids)
        cursor.execute(_HELD_BY, {"ids": plain(ids), "lo": ids[0], "hi": ids[-1]})
        names = [column.name for column in cursor.description]
        aside: dict[UUID, tuple[str, str]] = {}
        for values in cursor.fetchall():
            row = dict(zip(names, values, strict=True))
            scope, action, _ = held(holds, row)
            if action == "pause" and not row["is_expired"]:  # what is over or cancelled is rung, to be ended
                aside[row["id"]] = (f"{scope}_paused", row["expires_at"].isoformat())
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

    def _expansions(self) -> int:
        with connection.cursor() as cursor:
            cursor.execute(_DUE_EXPANSIONS, {"again": EXPANSION_FOR_S, "limit": EXPANSIONS})
            ids = _in_turns(cursor.fetchall())
        try:
            for start in range(0, len(ids), _EXPANSIONS_PER_TASK):
                ringing.publish_expansions(ids[start : start + _EXPANSIONS_PER_TASK])
        except BrokerError:
            self._lost_broker()  # they wake again by themselves
        return len(ids)

    def _receipts(self) -> int:
        if time.monotonic() < self._receipts_at:
            return 0
        with connection.cursor() as cursor:
            cursor.execute("SELECT EXISTS (SELECT 1 FROM notifications_receiptinbox WHERE wake_at <= now())")
            if not cursor.fetchone()[0]:
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
        """One cheap word with the broker: the only thing that closes everybody's breaker again."""
        try:
            with current_app.connection_for_write() as broker:
                broker.ensure_connection(max_retries=0, timeout=1)
                broker.default_channel.client.ping() if hasattr(broker.default_channel, "client") else None
        except Exception as error:  # kombu passes on whatever its transport raises
            log.info("broker_still_away", error=type(error).__name__)
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


def _queues_with_rows() -> list[str]:
    pairs = [channel_and_lane(queue) for queue in DELIVERY_QUEUES]
    with connection.cursor() as cursor:
        cursor.execute(
            _LANES_WITH_ROWS, {"channels": texts(c for c, _ in pairs), "lanes": texts(str(lane) for _, lane in pairs)}
        )
        found = {queue_for(*row) for row in cursor.fetchall()}
    return [queue for queue in DELIVERY_QUEUES if queue in found]  # critical first, by their order


def _wake(ids: Sequence[UUID]) -> None:
    """What could not be rung is due for ringing now, not in ten seconds."""
    if ids:
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE notifications_pending SET wake_at = now() WHERE id = ANY (%s::uuid[]) AND lease_until IS NULL",
                [plain(ids)],
            )
