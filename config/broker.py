"""The broker's client, mended in one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kombu.transport import redis


class QoS(redis.QoS):
    """Gives a message's place in the prefetch window back even when the broker could not be told that it is done.

    Kombu 5.7 keeps the place when the acknowledgement fails, logs "Couldn't ack" and goes on. With a window of one
    (`CELERY_WORKER_PREFETCH_MULTIPLIER`, one process) the worker then never reads again: alive, deaf, and without
    a read that could tell it that its connection is gone. The task that was not acknowledged is handed out again
    past the visibility timeout and finds its rows taken. `tests/acceptance/test_deaf_worker.py` shows the fault.
    """

    _quick_ack: Callable[[str], None]  # set in the base's constructor, unknown to the stubs

    def ack(self, delivery_tag: str) -> None:
        try:
            super().ack(delivery_tag)
        finally:
            self._quick_ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        try:
            super().reject(delivery_tag, requeue=requeue)
        finally:
            self._quick_ack(delivery_tag)


def mend() -> None:
    """For every connection that this process makes from now on."""
    channel: Any = redis.Channel
    channel.QoS = QoS
