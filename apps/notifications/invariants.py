"""What must hold if nothing accepted is ever lost: the books balance, and every open delivery has a Pending row.

Looked at twice: the tallies against Pending's count at each scrape of /metrics, cheap and at once; and once a day
the rows themselves, each against each, for the day that is over.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import structlog
from django.db import connection, transaction

from apps.notifications.arrays import texts
from apps.notifications.metrics import ORPHANS
from apps.notifications.models import Waiting
from notifier.ids import floor_id
from notifier.lifecycle import ENDS, OPEN
from notifier.queues import DELIVERY_QUEUES, channel_and_lane, queue_for

log = structlog.get_logger(__name__)

COUNTED_TO = 1000  # Pending rows of a queue; past this its depth is "at least", and its books are not compared
LOOKED_AT = 500  # rows of a queue whose due times are read for the oldest, shared between its clients
LEAST_OF_A_CLIENT = 5
CLOSED_AFTER_H = 2  # nobody writes into an hour that old: a transaction takes seconds
SAMPLES = 10  # ids named in the alert's line

Moves = Counter[tuple[str, str, str, str]]
"""(channel, mode, from, to) -> how many deliveries moved so."""


class Depth(NamedTuple):
    """What a queue holds: rows (at most COUNTED_TO), and for how long the oldest has been due; 0.0 when none is.

    What is paused on purpose, or due later, does not age.
    """

    rows: int
    oldest_s: float


class Books(NamedTuple):
    """All state changes since the beginning, and what is still to be sent, both at one moment."""

    moves: Moves
    queues: Mapping[str, Depth]

    def accepted(self) -> Counter[tuple[str, str]]:
        """Deliveries laid out, by (channel, mode)."""
        return self._sum(lambda old, new: old == "")

    def ended(self) -> Counter[tuple[str, str]]:
        """By (channel, mode); one that is replayed has not ended any more."""
        return self._sum(
            lambda old, new: old not in ENDS and new in ENDS, less=lambda old, new: old in ENDS and new in OPEN
        )

    def in_flight(self) -> Counter[tuple[str, str]]:
        """By (channel, mode): moved into an open state, and not out of it."""
        return self._sum(lambda old, new: new in OPEN, less=lambda old, new: old in OPEN)

    def reached(self) -> Counter[tuple[str, str, str]]:
        """By (channel, mode, state): how many ever moved into it."""
        found: Counter[tuple[str, str, str]] = Counter()
        for (channel, mode, _, new), n in self.moves.items():
            found[channel, mode, new] += n
        return found

    def violations(self) -> dict[str, int]:
        """By channel: accepted, less ended, less Pending rows. Anything but 0 is a fault of ours.

        A channel with a queue too deep to be counted is left out.
        """
        pending: Counter[str] = Counter()
        uncounted = set()
        for queue, depth in self.queues.items():
            channel = channel_and_lane(queue)[0].value
            pending[channel] += depth.rows
            if depth.rows >= COUNTED_TO:
                uncounted.add(channel)
        accepted, ended = (_by_channel(counts) for counts in (self.accepted(), self.ended()))
        return {
            channel: accepted[channel] - ended[channel] - rows
            for channel, rows in pending.items()
            if channel not in uncounted
        }

    def _sum(
        self, more: Callable[[str, str], bool], *, less: Callable[[str, str], bool] = lambda old, new: False
    ) -> Counter[tuple[str, str]]:
        found: Counter[tuple[str, str]] = Counter()
        for (channel, mode, old, new), n in self.moves.items():
            found[channel, mode] += n * more(old, new) - n * less(old, new)
        return found


def _by_channel(counts: Counter[tuple[str, str]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for (channel, _), n in counts.items():
        found[channel] += n
    return found


# One statement, so that tallies and Pending are of one moment: both are written in the transaction that moves a
# state. Pending is only ever walked along its index (queue, client, wake_at), and never further than asked.
_BOOKS = """
WITH RECURSIVE q AS MATERIALIZED (
  SELECT * FROM unnest(%(channels)s::text[], %(lanes)s::text[]) AS v(channel, lane)
), c AS (
  SELECT q.channel, q.lane, (SELECT t.client_id FROM notifications_pending t
                              WHERE t.channel = q.channel AND t.lane = q.lane ORDER BY t.client_id LIMIT 1) AS client_id
    FROM q
  UNION ALL
  SELECT c.channel, c.lane, (SELECT t.client_id FROM notifications_pending t
                              WHERE t.channel = c.channel AND t.lane = c.lane AND t.client_id > c.client_id
                              ORDER BY t.client_id LIMIT 1)
    FROM c WHERE c.client_id IS NOT NULL
), clients AS MATERIALIZED (
  SELECT channel, lane, client_id, count(*) OVER (PARTITION BY channel, lane) AS n FROM c WHERE client_id IS NOT NULL
), moved AS (
  SELECT channel, mode, from_state, to_state, sum(n)::bigint AS n
    FROM notifications_tally WHERE hour >= %(since)s GROUP BY 1, 2, 3, 4
)
SELECT 'moved', channel, mode, from_state, to_state, n, NULL::float8 FROM moved
UNION ALL
SELECT 'queue', q.channel, q.lane, NULL, NULL,
       (SELECT count(*) FROM (
          SELECT 1 FROM clients k CROSS JOIN LATERAL (
            SELECT 1 FROM notifications_pending t
             WHERE t.channel = k.channel AND t.lane = k.lane AND t.client_id = k.client_id
             ORDER BY t.wake_at LIMIT %(counted_to)s) r
           WHERE k.channel = q.channel AND k.lane = q.lane LIMIT %(counted_to)s) counted),
       (SELECT extract(epoch FROM now() - min(r.due_at))::float8
          FROM clients k CROSS JOIN LATERAL (
            SELECT t.due_at, t.waiting FROM notifications_pending t
             WHERE t.channel = k.channel AND t.lane = k.lane AND t.client_id = k.client_id
             ORDER BY t.wake_at LIMIT greatest(%(least)s, %(looked_at)s / k.n)) r
         WHERE k.channel = q.channel AND k.lane = q.lane AND r.due_at <= now()
           AND r.waiting <> ALL (%(paused)s::text[]))
  FROM q
"""

# A client's rows are few by the statistics and may be a million in truth: fetched and sorted, 100 ms each.
ALONG_THE_INDEX = "SET LOCAL enable_bitmapscan = off; SET LOCAL enable_seqscan = off"

_CLOSED = """
SELECT channel, mode, from_state, to_state, sum(n)::bigint
  FROM notifications_tally WHERE hour < %(until)s AND (%(since)s::timestamptz IS NULL OR hour >= %(since)s)
 GROUP BY 1, 2, 3, 4
"""


class Bookkeeper:
    """Reads the books; remembers the sum of the hours in which nothing can change any more.

    The first reading of a process sums all tallies, the next ones the last two or three hours.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed: Moves = Counter()
        self._closed_until: datetime | None = None

    def read(self) -> Books:
        with self._lock:
            self._close_hours()
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(ALONG_THE_INDEX)
                cursor.execute(_BOOKS, self._values())
                rows = cursor.fetchall()
            moves = Counter(self._closed)
        queues = {}
        for what, channel, mode_or_lane, old, new, n, oldest_s in rows:
            if what == "moved":
                moves[channel, mode_or_lane, old, new] += n
            else:
                queues[queue_for(channel, mode_or_lane)] = Depth(n, oldest_s or 0.0)
        return Books(moves, queues)

    def forget(self) -> None:
        with self._lock:
            self._closed, self._closed_until = Counter(), None

    def _close_hours(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT date_trunc('hour', now()) - %s * interval '1 hour'", [CLOSED_AFTER_H])
            (until,) = cursor.fetchone()
            if self._closed_until is not None and until <= self._closed_until:
                return
            cursor.execute(_CLOSED, {"since": self._closed_until, "until": until})
            for *key, n in cursor.fetchall():
                self._closed[tuple(key)] += n
            self._closed_until = until

    def _values(self) -> dict[str, Any]:
        pairs = [channel_and_lane(queue) for queue in DELIVERY_QUEUES]
        return {
            "channels": texts(channel.value for channel, _ in pairs),
            "lanes": texts(str(lane) for _, lane in pairs),
            "since": self._closed_until,
            "counted_to": COUNTED_TO,
            "looked_at": LOOKED_AT,
            "least": LEAST_OF_A_CLIENT,
            "paused": texts(word.value for word in Waiting if word.value.endswith("_paused")),
        }


_keeper = Bookkeeper()


def read_books() -> Books:
    """The books as they stand. A fixed number of statements, whatever the backlog. Raises OperationalError."""
    return _keeper.read()


# --- the rows -------------------------------------------------------------------------------------------------

_OPEN_WITHOUT_PENDING = """
SELECT count(*) OVER (), d.id FROM notifications_delivery d
 WHERE d.id >= %(lo)s AND d.id < %(hi)s AND d.state = ANY (%(open)s::text[])
   AND NOT EXISTS (SELECT 1 FROM notifications_pending p WHERE p.id = d.id)
 ORDER BY d.id LIMIT %(samples)s
"""
_PENDING_WITHOUT_OPEN = """
SELECT count(*) OVER (), p.id FROM notifications_pending p
 WHERE p.id >= %(lo)s AND p.id < %(hi)s
   AND NOT EXISTS (SELECT 1 FROM notifications_delivery d
                    WHERE d.id = p.id AND d.id >= %(lo)s AND d.id < %(hi)s AND d.state = ANY (%(open)s::text[]))
 ORDER BY p.id LIMIT %(samples)s
"""
KINDS = {"open_without_pending": _OPEN_WITHOUT_PENDING, "pending_without_open": _PENDING_WITHOUT_OPEN}


def check_invariants(day: datetime | None = None) -> dict[str, int]:
    """Hold each delivery accepted on `day` (UTC; default: yesterday) against Pending, and the other way round.

    Returns how many were found by kind; any is logged as an error and counted. A day of 16 M takes a second or two.
    """
    start = (day or datetime.now(UTC) - timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    found = {}
    for kind, statement in KINDS.items():
        count, ids = _orphans(statement, floor_id(start), floor_id(start + timedelta(days=1)))
        found[kind] = count
        if count:
            ORPHANS.labels(kind).inc(count)
            log.error("invariant_violated", kind=kind, day=start.date(), rows=count, ids=ids)
    return found


def _orphans(statement: str, lo: UUID, hi: UUID) -> tuple[int, list[UUID]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, {"lo": str(lo), "hi": str(hi), "open": texts(sorted(OPEN)), "samples": SAMPLES})
        rows = cursor.fetchall()
    return (rows[0][0] if rows else 0), [row[1] for row in rows]
