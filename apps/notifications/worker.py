"""This process as a worker: made after the fork, kept until it ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from ctypes import c_bool
from multiprocessing.sharedctypes import RawValue
from typing import Any

import structlog
from celery import current_app
from celery.signals import worker_process_init, worker_process_shutdown, worker_shutting_down
from django.conf import settings
from django.db import connection

from apps.notifications.claims import machine_time
from apps.notifications.ledger import PostgresLedger
from apps.notifications.metrics import say_in_flight
from notifier.limits import TokenExchange, store
from notifier.pipeline import Worker
from notifier.queues import DELIVERY_QUEUES, channel_and_lane
from notifier.stages.sickroom import Sickroom

log = structlog.get_logger(__name__)

_LAST_WRITES_S = 13.0  # a call's timeout, and the time to write what it came to
# Shared with the children, which are forked from the process that gets the signal. Without a lock: a child killed while
# it held one would leave it taken for all others.
_stopping = RawValue(c_bool, False)
_workers: dict[int, Worker] = {}
_making = threading.Lock()


def this_worker() -> Worker:
    """The one of this process. A forked child never finds its parent's: it is kept under the process id."""
    pid = os.getpid()
    with _making:
        if pid not in _workers:
            _workers.clear()
            _workers[pid] = Worker.start(
                PostgresLedger(),
                machine_time,
                exchange_token=TokenExchange(store(settings.LIMITS_URL)).exchange_token,
                must_stop=_must_stop,
                watch_slots=say_in_flight,
                shared=Sickroom(store(settings.LIMITS_URL)),
            )
        return _workers[pid]


def _must_stop() -> bool:
    return bool(_stopping.value)


@worker_process_init.connect
def _prepare(**_: Any) -> None:
    """A worker that has just started must not let its first message wait for modules, connections and tokens."""
    queues = set(current_app.amqp.queues.consume_from) & set(DELIVERY_QUEUES)
    if queues:
        channels = {channel_and_lane(queue)[0].value for queue in queues}
        threading.Thread(target=_prepare_for, args=(channels,), name="prepare", daemon=True).start()


def _prepare_for(channels: Collection[str]) -> None:
    try:
        this_worker().prepare(channels)
    except Exception as error:  # the thread's border: the first task meets the same, and is tried again
        log.info("worker_not_ready", error=type(error).__name__)
    finally:
        connection.close()


@worker_shutting_down.connect
def _stop_claiming(**_: Any) -> None:
    _stopping.value = True


@worker_process_shutdown.connect
def _write_what_is_left(**_: Any) -> None:
    worker = _workers.get(os.getpid())
    if worker is not None:
        worker.close(_LAST_WRITES_S)
