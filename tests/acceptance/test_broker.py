"""What the broker may do to us, and what it may not: with a broker of this test's own."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from django.conf import settings
from kombu.exceptions import OperationalError
from redis import Redis

from apps.console.servers import Servers
from config.celery import LaneOrder, wait_longer_than_a_publisher
from config.celery import app as real_app


@pytest.fixture
def broker() -> Iterator[Servers]:
    state = Path(tempfile.mkdtemp(prefix="nbr-"))
    state.chmod(0o711)
    servers = Servers(state, durable=False, configured={"DATABASE_URL": "postgres://h/d", "CACHE_URL": "redis://h"})
    servers.start()
    yield servers
    servers.stop()
    shutil.rmtree(state, ignore_errors=True)


@pytest.fixture
def publisher(broker: Servers) -> Iterator[Celery]:
    """The service's own broker settings, at this test's broker."""
    app = Celery("publisher", set_as_current=False)
    app.config_from_object("django.conf:settings", namespace="CELERY")
    app.conf.broker_url = broker.environment()["BROKER_URL"]
    app.conf.task_queues = real_app.conf.task_queues
    yield app
    app.close()


def process_of(broker: Servers) -> subprocess.Popen[bytes]:
    assert broker.broker is not None and broker.broker.process is not None
    return broker.broker.process


def seconds_until_refused(app: Celery) -> float:
    started = time.monotonic()
    with pytest.raises(OperationalError):
        app.send_task("deliver", args=["push.normal", []], queue="push.normal")
    return time.monotonic() - started


def test_a_frozen_broker_holds_a_publisher_for_a_second_at_most(broker: Servers, publisher: Celery) -> None:
    publisher.send_task("deliver", args=["push.normal", []], queue="push.normal")  # connected, as a web process is
    process_of(broker).send_signal(signal.SIGSTOP)
    try:
        assert seconds_until_refused(publisher) < 1.5
        assert seconds_until_refused(publisher) < 1.5  # and when the connection is new, too
    finally:
        process_of(broker).send_signal(signal.SIGCONT)
    publisher.send_task("deliver", args=["push.normal", []], queue="push.normal")


def test_a_broker_that_is_gone_is_noticed_at_once_and_its_return_too(broker: Servers, publisher: Celery) -> None:
    publisher.send_task("deliver", args=["push.normal", []], queue="push.normal")
    assert broker.broker is not None
    process_of(broker).kill()
    process_of(broker).wait()
    assert seconds_until_refused(publisher) < 0.5
    broker.broker.start()
    publisher.send_task("deliver", args=["push.normal", []], queue="push.normal")


def test_a_full_broker_refuses_a_publisher_until_there_is_room(broker: Servers, publisher: Celery) -> None:
    publisher.send_task("deliver", args=["push.normal", []], queue="push.normal")
    assert broker.broker is not None
    with Redis(unix_socket_path=str(broker.broker.socket)) as client:
        client.config_set("maxmemory", "1")
        assert seconds_until_refused(publisher) < 0.5
        client.config_set("maxmemory", "0")
    publisher.send_task("deliver", args=["push.normal", []], queue="push.normal")


def test_a_worker_outlives_the_errors_of_a_full_broker() -> None:
    assert real_app.conf.broker_channel_error_retry  # Celery ends it by default; tests/chaos/test_broker.py shows it


def test_workers_wait_longer_for_the_broker_than_publishers_do() -> None:
    app = Celery("worker", set_as_current=False)
    app.config_from_object("django.conf:settings", namespace="CELERY")
    wait_longer_than_a_publisher(conf=app.conf)
    options = app.conf.broker_transport_options
    assert options["socket_timeout"] == 5
    assert not {"max_retries", "connect_retries_timeout"} & set(options)
    assert options["visibility_timeout"] == settings.CELERY_BROKER_TRANSPORT_OPTIONS["visibility_timeout"]


def test_tasks_reuse_their_database_session() -> None:
    assert real_app.conf.get("CELERY_DB_REUSE_MAX") >= 1000  # as Celery's Django fixup asks for it


def test_normal_is_read_first_and_bulk_and_retry_take_turns() -> None:
    order = LaneOrder()
    order.update(["push.normal", "push.bulk", "push.retry"])
    assert order.consume(3) == ["push.normal", "push.bulk", "push.retry"]
    order.rotate("push.bulk")
    assert order.consume(3) == ["push.normal", "push.retry", "push.bulk"]
    order.rotate("push.normal")
    assert order.consume(3)[0] == "push.normal"


def test_an_unknown_queue_is_an_error_and_not_a_new_queue(publisher: Celery) -> None:
    publisher.conf.task_create_missing_queues = real_app.conf.task_create_missing_queues
    with pytest.raises(Exception, match=r"push\.nromal"):
        publisher.send_task("deliver", args=["push.nromal", []], queue="push.nromal")


def test_the_broker_refuses_to_forget_and_the_cache_may(embedded_servers: Servers) -> None:
    for server, policy in ((embedded_servers.broker, "noeviction"), (embedded_servers.cache, "allkeys-lru")):
        if server is not None:  # else the environment named its own
            command = server.command()
            assert command[command.index("--maxmemory-policy") + 1] == policy


def test_the_servers_listen_on_no_network(embedded_servers: Servers) -> None:
    for server in embedded_servers:
        command = " ".join(server.command())
        assert "--port 0" in command or "--listen_addresses= " in command
