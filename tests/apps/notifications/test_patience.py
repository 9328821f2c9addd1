"""A process that falls silent in the middle of a transaction must not keep its rows from the others."""

from __future__ import annotations

import threading
import time
from typing import Any
from uuid import UUID

import pytest
from django.db import OperationalError, connection

from apps.notifications import relay as relays
from apps.notifications import ringing
from apps.notifications.relay import Relay
from tests.apps.notifications.world import World, deliveries, run


def test_rows_of_a_relay_that_was_frozen_before_its_commit_are_rung_by_another(
    committed_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = committed_world.send("bob", channels=["email"]).json()["id"]
    run("UPDATE notifications_pending SET wake_at = now()")
    rung: list[UUID] = []

    def publish(queue: str, ids: list[UUID], **options: Any) -> None:
        if threading.current_thread().name != "ringer":  # that of the request: it may be late
            rung.extend(ids)

    monkeypatch.setattr(ringing, "publish_deliveries", publish)
    monkeypatch.setattr(relays, "_RING", relays._RING.replace("'15s'", "'300ms'"))
    frozen, errors = threading.Event(), []
    give_up_on = relays.give_up_on

    def freeze(lost: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            frozen.set()
            time.sleep(1.5)
        return give_up_on(lost)

    def ring() -> None:
        try:
            Relay()._top_up("email.normal")
        except OperationalError as error:
            errors.append(error)
        finally:
            connection.close()

    monkeypatch.setattr(relays, "give_up_on", freeze)
    other = threading.Thread(target=ring)
    other.start()
    frozen.wait(10)
    assert Relay()._top_up("email.normal") == 0, "the queue is locked"
    time.sleep(0.8)
    assert Relay()._top_up("email.normal") == 1
    other.join()
    assert rung == [row.id for row in deliveries(id)]
    assert len(errors) == 1
