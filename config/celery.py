"""The Celery app: which queues there are, in which order a worker empties them, what beat ticks."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterable
from typing import Any

import structlog
from celery import Celery
from celery.signals import (
    beat_init,
    before_task_publish,
    celeryd_init,
    setup_logging,
    task_postrun,
    task_prerun,
    task_retry,
    worker_process_init,
)
from django.conf import settings
from django.utils.log import configure_logging
from kombu import Queue

from notifier.message import Lane
from notifier.queues import ALL_QUEUES, CORE

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

log = structlog.get_logger("notifier.tasks")

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
        "complete_old_notifications": 3600.0,
        "compact_tallies": 60.0,
        "sweep_cancels": 60.0,
        "forget_old_keys": 3600.0,
        "keep_partitions": 86_400.0,
        "check_invariants": 86_400.0,
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


@beat_init.connect
def say_beat_is_here(**_: object) -> None:
    """Its first tick comes seconds later; until then nothing else would tell a starting beat from a missing one."""
    from apps.notifications.heartbeats import beat  # Django is set up by now

    beat("beat", "beat")


@worker_process_init.connect
def tidy_counters(**_: object) -> None:
    from apps.console.metrics import tidy  # Django is set up by now

    tidy()


# --- Log lines ------------------------------------------------------------------------------------------------

TICKS = frozenset({"canary", "upkeep"})  # every few seconds, whether there is work or not: no line for each

# Celery warns of pickle under root; we accept JSON only.
warnings.filterwarnings("ignore", message=r"\s*You're running the worker with superuser", category=RuntimeWarning)


@setup_logging.connect
def log_as_everywhere(**_: object) -> None:
    """That this is connected keeps Celery from setting up its own, and from logging what is printed."""
    configure_logging(settings.LOGGING_CONFIG, settings.LOGGING)


@celeryd_init.connect
def log_last_words(**_: object) -> None:
    """Celery prints "worker: Warm shutdown" past all logging (5.7, `celery.apps.worker.safe_say`): not as JSON."""
    from celery.apps import worker

    def safe_say(message: str, *_: object) -> None:
        log.info("worker_stopping", said=message.strip())

    worker.safe_say = safe_say  # type: ignore[attr-defined]


@before_task_publish.connect
def send_request_id(headers: dict[str, Any], **_: object) -> None:
    """The request that a task was rung for travels in its headers."""
    if request_id := structlog.contextvars.get_contextvars().get("request_id"):
        headers.setdefault("request_id", request_id)


@task_prerun.connect
def name_task(task: Any, task_id: str, **_: object) -> None:
    """Every line that is written while the task runs names it, its queue and its request. Never its arguments."""
    request = task.request
    names = {"task": task.name, "task_id": task_id, "queue": (request.delivery_info or {}).get("routing_key")}
    if request_id := request.get("request_id"):
        names["request_id"] = request_id
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(**names)
    request.began = time.perf_counter()


@task_postrun.connect
def tell_task(task: Any, state: str | None = None, **_: object) -> None:
    if settings.ACCESS_LOG and task.name not in TICKS:
        began = getattr(task.request, "began", time.perf_counter())
        log.info("task", state=state, ms=round((time.perf_counter() - began) * 1000, 1))
    structlog.contextvars.clear_contextvars()


@task_retry.connect
def tell_retry(reason: Any, **_: object) -> None:
    """The database or the broker is away; the task comes again. By the error's class: its text may hold a row."""
    log.warning("task_retried", error=type(getattr(reason, "exc", reason)).__name__)
