"""Units of work for the workers. They carry ids only: nothing of a person is in the broker.

`autoretry_for` guards against the database or the broker going away; a message's own retries are a due time on
its row, never a countdown, which Redis delivers again past its visibility timeout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from celery import shared_task
from django.db import InterfaceError, OperationalError, connection
from kombu.exceptions import OperationalError as BrokerError

from apps.notifications import upkeep
from apps.notifications.heartbeats import beat
from apps.notifications.services import expand as expansion
from apps.notifications.services import receipts
from apps.notifications.worker import this_worker
from notifier import pipeline

AWAY = (OperationalError, InterfaceError, BrokerError)
# 1 + 2 + 4 + 8 + 16 s at most: under the visibility timeout, past which the broker would hand out a second copy.
RETRYING: dict[str, Any] = {
    "autoretry_for": AWAY,
    "retry_backoff": True,
    "retry_backoff_max": 16,
    "retry_jitter": True,
    "max_retries": 5,
    "ignore_result": True,
}


class _Reconnecting:
    """Drops a dead database connection before the task is tried again."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (OperationalError, InterfaceError)):
            connection.close()


@shared_task(name="deliver", **RETRYING)
def deliver(queue: str, ids: Sequence[str], alone: bool = False) -> None:
    """One shift on a delivery queue, rung for `ids`."""
    with _Reconnecting():
        pipeline.deliver(this_worker(), queue, [UUID(id) for id in ids], alone=alone)


@shared_task(name="expand", **RETRYING)
def expand(ids: Sequence[str]) -> None:
    """Lay out pages of notifications that were too large, or too early, to lay out when they were accepted."""
    with _Reconnecting():
        expansion.expand([UUID(id) for id in ids])


@shared_task(name="settle_receipts", **RETRYING)
def settle_receipts() -> None:
    """Match what providers reported with what was sent."""
    with _Reconnecting():
        receipts.settle_due()


@shared_task(name="upkeep", **RETRYING)
def keep_up(name: str) -> None:
    """A beat tick: one of the jobs in `apps.notifications.upkeep`, each harmless when run twice or late."""
    with _Reconnecting():
        upkeep.JOBS[name]()
        beat("beat", "beat")  # the whole way of a tick works: beat, the broker, a worker


@shared_task(name="canary", ignore_result=True)
def canary(queue: str) -> None:
    """Shows that somebody works on this queue; a worker can be alive and consume nothing."""
    with _Reconnecting():
        beat(queue, "queue", queue)
