"""A process that falls silent in the middle of a transaction must not keep its rows from the others."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from django.db import OperationalError, connection

from apps.notifications import claims
from tests.apps.notifications.test_claims import take
from tests.apps.notifications.world import World


def test_rows_of_a_claim_that_was_frozen_before_its_commit_are_free_again(
    committed_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed_world.send("bob", channels=["email"])
    monkeypatch.setattr(claims, "_CLAIM", claims._CLAIM.replace("'15s'", "'300ms'"))
    frozen, errors = threading.Event(), []
    read = claims._read

    def freeze(taken: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            frozen.set()
            time.sleep(1.5)
        return read(taken)

    def claim() -> None:
        try:
            take()
        except OperationalError as error:
            errors.append(error)
        finally:
            connection.close()

    monkeypatch.setattr(claims, "_read", freeze)
    other = threading.Thread(target=claim)
    other.start()
    frozen.wait(10)
    assert take() == [], "they are locked"
    time.sleep(0.8)
    [claimed] = take()
    assert claimed.claim_no == 1, "the claim that was never committed left a trace"
    other.join()
    assert len(errors) == 1
