"""A process's worker: its own loop and connections, never those of the process that it was forked from."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from apps.notifications import worker


@pytest.fixture
def no_worker_yet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    made: dict[int, Any] = {}
    monkeypatch.setattr(worker, "_workers", made)
    yield
    for each in made.values():
        each.close(5)


def said_by_a_child(say: Callable[[], object], within_s: float = 20) -> Any:
    """What `say` returns in a forked child, as JSON; its error's name when it raises. Fails when it hangs."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            told = say()
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        with contextlib.suppress(BaseException):
            os.write(writes, json.dumps(told).encode())
        os._exit(0)
    os.close(writes)
    try:
        assert select.select([reads], [], [], within_s)[0], "the child hangs"
        return json.loads(os.read(reads, 65536))
    finally:
        os.close(reads)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


async def _thread() -> str:
    return threading.current_thread().name


def test_a_forked_process_makes_a_worker_of_its_own(no_worker_yet: None) -> None:
    parents = worker.this_worker()
    assert worker.this_worker() is parents

    def of_the_child() -> dict[str, object]:
        mine = worker.this_worker()
        shared = {
            "worker": mine is parents,
            "loop": mine.loop is parents.loop or mine.loop._loop is parents.loop._loop,
            "slots": mine.loop.slots is parents.loop.slots,
            "recorder": mine.loop.recorder is parents.loop.recorder,
            "connections": mine.dispatcher is parents.dispatcher,
            "ledger": mine.ledger is parents.ledger,
        }
        return {
            "shared": [name for name, is_shared in shared.items() if is_shared],
            "kept": worker.this_worker() is mine,
            "runs": mine is not parents and mine.loop.call(_thread()).result(5),
        }

    assert said_by_a_child(of_the_child) == {"shared": [], "kept": True, "runs": "loop"}
    assert parents.loop.call(_thread()).result(5) == "loop"
