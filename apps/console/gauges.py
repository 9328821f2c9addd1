"""What /metrics reads from PostgreSQL and the broker when it is asked: the state of the whole service.

The same figures whichever process answers, and a fixed, small number of statements whatever the backlog.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from itertools import product

import redis
import structlog
from django.conf import settings
from django.db import Error as DatabaseError
from django.db import connection, transaction
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.backoff import NoBackoff
from redis.retry import Retry

from apps.notifications.invariants import ALONG_THE_INDEX, COUNTED_TO, Books, read_books
from apps.notifications.partitions import days_ahead
from notifier.lifecycle import State
from notifier.message import Channel, Mode
from notifier.queues import ALL_QUEUES

log = structlog.get_logger(__name__)

BROKER_TIMEOUT_S = 0.25


class DatabaseGauges(Collector):
    """All of it, or `notifier_database_up 0` and nothing else: a figure that could not be read is absent, not 0."""

    def describe(self) -> Iterable[Metric]:
        return ()  # asked at registration: nothing is read for that

    def collect(self) -> Iterator[Metric]:
        is_up = True
        try:
            found = [
                *_of_books(read_books()),
                *_of_heartbeats(),
                *_of_waiting(),
                _gauge("notifier_partition_days_ahead", "Days for which every table has a partition.", days_ahead()),
            ]
        except DatabaseError as error:
            log.warning("metrics_without_database", error=type(error).__name__)
            connection.close()
            is_up, found = False, []
        yield _gauge("notifier_database_up", "Whether PostgreSQL answered.", float(is_up))
        yield from found
        yield from _of_broker()


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _of_books(books: Books) -> Iterator[Metric]:
    depth = GaugeMetricFamily(
        "notifier_queue_depth", f"Deliveries still to be sent, due or not, counted to {COUNTED_TO:,}.", labels=["queue"]
    )
    oldest = GaugeMetricFamily(
        "notifier_queue_oldest_seconds",
        "For how long the oldest delivery has been due; what is paused or due later does not age.",
        labels=["queue"],
    )
    for queue, found in books.queues.items():
        depth.add_metric([queue], found.rows)
        oldest.add_metric([queue], max(0.0, found.oldest_s))
    yield depth
    yield oldest

    by_mode = ["channel", "mode"]
    accepted = CounterMetricFamily("notifier_deliveries_accepted", "Deliveries laid out.", labels=by_mode)
    for key, n in books.accepted().items():
        accepted.add_metric(key, n)
    yield accepted
    reached = CounterMetricFamily(
        "notifier_deliveries_reached", "Deliveries that moved into a state.", labels=[*by_mode, "state"]
    )
    # All of them, also at 0: a series that appears with its first event shows Prometheus no increase.
    counts = books.reached()
    for channel, mode, state in product(Channel, Mode, State):
        reached.add_metric([channel.value, mode.value, state.value], counts[channel.value, mode.value, state.value])
    yield reached
    # Gauges, both: a replay takes a delivery out of its end again.
    ended = GaugeMetricFamily("notifier_deliveries_ended", "Deliveries in an end state.", labels=by_mode)
    for key, n in books.ended().items():
        ended.add_metric(key, n)
    yield ended
    flying = GaugeMetricFamily("notifier_deliveries_in_flight", "Deliveries accepted and not ended.", labels=by_mode)
    for key, n in books.in_flight().items():
        flying.add_metric(key, n)
    yield flying

    violation = GaugeMetricFamily(
        "notifier_invariant_violation",
        "Accepted, less ended, less still to be sent: not 0 is a fault. Absent while a queue is too deep to count.",
        labels=["channel"],
    )
    for wrong, n in books.violations().items():
        violation.add_metric([wrong], n)
    yield violation


def _of_heartbeats() -> Iterator[Metric]:
    """By what it shows: each queue's consumers, any relay, beat. Who left no heartbeat yet is absent."""
    family = GaugeMetricFamily(
        "notifier_heartbeat_age_seconds", "Since somebody last did this work.", labels=["kind", "name"]
    )
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT kind, CASE WHEN kind = 'queue' THEN name ELSE kind END, "
            "extract(epoch FROM now() - max(at))::float8 FROM notifications_heartbeat GROUP BY 1, 2"
        )
        for kind, name, age in cursor.fetchall():
            family.add_metric([kind, name], age)
    yield family


# Each looks at the head of an index, that of the expansions client by client. A receipt and an expansion that are due
# have been so since `wake_at` at most; a session that holds an old snapshot keeps what is deleted from being cleaned
# up, and the pick slows down.
_WAITING = """
WITH RECURSIVE c AS (
  (SELECT client_id FROM notifications_expansion ORDER BY client_id LIMIT 1)
  UNION ALL
  SELECT (SELECT e.client_id FROM notifications_expansion e WHERE e.client_id > c.client_id
           ORDER BY e.client_id LIMIT 1) FROM c WHERE c.client_id IS NOT NULL
)
SELECT coalesce((SELECT extract(epoch FROM now() - min(wake_at)) FROM notifications_receiptinbox
                  WHERE wake_at <= now()), 0)::float8,
       coalesce((SELECT extract(epoch FROM now() - min(x.due_at)) FROM c CROSS JOIN LATERAL
                  (SELECT e.due_at FROM notifications_expansion e WHERE e.client_id = c.client_id
                    ORDER BY e.wake_at LIMIT 50) x
                  WHERE x.due_at <= now()), 0)::float8,
       coalesce((SELECT extract(epoch FROM now() - min(xact_start)) FROM pg_stat_activity
                  WHERE backend_xmin IS NOT NULL AND datname = current_database()
                    AND pid <> pg_backend_pid()), 0)::float8,
       (SELECT count(*) FROM notifications_hold),
       (SELECT (is_up AND checked_at > now() - interval '30 seconds')::int FROM notifications_brokerhealth WHERE id = 1)
"""


def _of_waiting() -> Iterator[Metric]:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(ALONG_THE_INDEX)
        cursor.execute(_WAITING)
        receipts, expansions, snapshot, holds, broker = cursor.fetchone()
    yield _gauge("notifier_receipts_oldest_seconds", "For how long the oldest receipt waits to be settled.", receipts)
    yield _gauge(
        "notifier_expansions_oldest_seconds", "For how long the oldest request waits to be laid out.", expansions
    )
    yield _gauge("notifier_oldest_snapshot_seconds", "Age of the oldest transaction that holds a snapshot.", snapshot)
    yield _gauge("notifier_holds", "Pauses and cancels in force.", holds)
    yield _gauge("notifier_broker_up", "Whether the broker answers, as the relay last saw it.", float(broker or 0))


def _of_broker() -> Iterator[Metric]:
    """Tasks in the broker, by queue. Absent while it is away, or is no Redis."""
    if not settings.BROKER_REDIS_URL:
        return
    prefix = settings.CELERY_BROKER_TRANSPORT_OPTIONS.get("global_keyprefix", "")
    try:
        with _broker().pipeline(transaction=False) as pipeline:
            for queue in ALL_QUEUES:
                pipeline.llen(prefix + queue)
            lengths = pipeline.execute()
    except redis.RedisError as error:
        log.warning("metrics_without_broker", error=type(error).__name__)
        return
    family = GaugeMetricFamily("notifier_broker_queue_length", "Tasks waiting in the broker.", labels=["queue"])
    for queue, length in zip(ALL_QUEUES, lengths, strict=True):
        family.add_metric([queue], length)
    yield family


@cache
def _broker() -> redis.Redis:
    return redis.Redis.from_url(
        settings.BROKER_REDIS_URL,
        socket_timeout=BROKER_TIMEOUT_S,
        socket_connect_timeout=BROKER_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )
