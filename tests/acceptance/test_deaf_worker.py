"""A worker whose broker died between two words with it must hear it again."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu import Connection, Queue
from kombu.message import Message
from kombu.transport import redis

from apps.console.servers import Servers

QUEUE = Queue("one")


@pytest.fixture
def broker() -> Iterator[Servers]:
    state = Path(tempfile.mkdtemp(prefix="nbr-"))
    state.chmod(0o711)
    servers = Servers(state, durable=False, configured={"DATABASE_URL": "postgres://h/d", "CACHE_URL": "redis://h"})
    servers.start()
    yield servers
    servers.stop()
    shutil.rmtree(state, ignore_errors=True)


def window_after_a_failed_ack(broker: Servers) -> tuple[bool, bool]:
    """Whether a consumer with a prefetch window of one would read: (with a message in hand, after acknowledging it
    to a broker that is gone)."""
    assert broker.broker is not None and broker.broker.process is not None
    received: list[Message] = []
    with Connection(broker.environment()["BROKER_URL"]) as connection:
        consumer = connection.Consumer([QUEUE], on_message=received.append)
        consumer.qos(prefetch_count=1)
        connection.Producer().publish({}, routing_key="one", declare=[QUEUE])
        with consumer:
            connection.drain_events(timeout=5)
            window = consumer.channel.qos
            before = window.can_consume()
            broker.broker.process.kill()
            broker.broker.process.wait()
            received[0].ack_log_error(logging.getLogger("acks"), connection.connection_errors)
            return before, window.can_consume()


def test_a_task_that_could_not_be_acknowledged_leaves_the_worker_listening(broker: Servers) -> None:
    assert window_after_a_failed_ack(broker) == (False, True)


def test_the_library_alone_would_stop_listening(broker: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """When this fails, kombu was mended, and `config/broker.py` can go."""
    monkeypatch.setattr(redis.Channel, "QoS", redis.QoS)
    assert window_after_a_failed_ack(broker) == (False, False)
