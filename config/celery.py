"""The Celery app: which queues there are, in which order a worker empties them, what beat ticks."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from celery import Celery
from celery.signals import celeryd_init
from kombu import Queue

from notifier.message import Lane
from notifier.queues import ALL_QUEUES, CORE

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

app = Celery("notifier")
app.config_from_object("django.conf:settings", namespace="CELERY")
# Read by Celery's Django fixup under this very name, outside the namespace. Without it each task opens a
# database session of its own.
app.conf["CELERY_DB_REUSE_MAX"] = 10_000

app.conf.task_queues = [Queue(name, routing_key=name) for name in ALL_QUEUES]
app.conf.task_default_queue = CORE
app.conf.task_create_missing_queues = False  # a misspelt queue is an error here, not a queue that nobody reads

# Ticks only: each of these tasks may run twice, or late, without harm. Names are those of apps/*/tasks.py.
app.conf.beat_schedule = {
    name: {"task": "upkeep", "args": [name], "schedule": every_s, "options": {"queue": CORE, "expires": every_s}}
    for name, every_s in {
        "complete_notifications": 5.0,
        "compact_tallies": 60.0,
        "sweep_cancels": 60.0,
        "forget_old_keys": 3600.0,
        "keep_partitions": 86_400.0,
    }.items()
}

app.autodiscover_tasks()


class LaneOrder:
    """Normal before all else, the rest in turn: what a campaign queues never delays an order's confirmation.

    Kombu asks it for the order of the next read (its `queue_order_strategy`). Kombu's own "priority" would
    never reach retries while a campaign of a million lasts, "round_robin" would let bulk halve normal's share.
    """

    def __init__(self) -> None:
        self._queues: list[str] = []

    def update(self, queues: Iterable[str]) -> None:
        self._queues = list(queues)

    def consume(self, n: int) -> list[str]:
        return sorted(self._queues[:n], key=lambda queue: not queue.endswith(f".{Lane.NORMAL}"))

    def rotate(self, last_used: str) -> str:
        if last_used in self._queues:
            self._queues.remove(last_used)
            self._queues.append(last_used)
        return last_used


@celeryd_init.connect
def wait_longer_than_a_publisher(conf: Any, **_: object) -> None:
    """Workers block on reads and may wait for the broker to come back; web and relay must answer within a second."""
    options = dict(conf.broker_transport_options)
    for publishers_only in ("max_retries", "interval_start", "interval_step", "connect_retries_timeout"):
        options.pop(publishers_only, None)
    conf.broker_transport_options = options | {"socket_timeout": 5, "socket_connect_timeout": 2}
    conf.broker_connection_timeout = 4
