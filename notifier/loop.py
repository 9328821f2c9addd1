"""What a worker process has one of: an event loop with its clients, a bound on what is in flight, a recorder.

All of it is made after the fork, on first use: no client survives a fork, and an async client belongs to the
loop it was made on. Celery's task runs on the process's main thread and hands work over; the loop and the
recorder outlive the task.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import structlog

from notifier.ledger import Result

try:
    import uvloop

    _new_loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
except ImportError:  # no uvloop for the platform: the standard loop, at two thirds of the speed
    _new_loop = asyncio.new_event_loop

T = TypeVar("T")
log = structlog.get_logger(__name__)

IN_FLIGHT = 100  # calls open + results not yet committed: what a death of this process can send twice
RECORD_ROWS = 100
RECORD_AFTER_S = 0.1
LINGER_S = 0.02  # nothing is open: the next calls may end, and be recorded, together with these
HUNGRY_ROWS = 64  # enough to record when senders wait for room
_OUTAGE_PAUSES_S = (0.1, 0.3, 1.0, 2.0)


class Slots:
    """Room for what is in flight. Taken by the shift, given back when a result is committed.

    `watch` is told how many are used at each change, under the lock: it must be quick and never raise.
    """

    def __init__(self, limit: int = IN_FLIGHT, watch: Callable[[int], None] | None = None) -> None:
        self.limit = limit
        self._watch = watch or (lambda used: None)
        self._used = 0
        self._changed = threading.Condition()
        self.is_wanted = False  # somebody waits for room: the recorder then writes sooner

    @property
    def used(self) -> int:
        return self._used

    def take(self, most: int, timeout_s: float) -> int:
        """Between 1 and `most` slots, waiting for the first; 0 when there was none in time."""
        with self._changed:
            if self._used >= self.limit:
                self.is_wanted = True
                self._changed.wait_for(lambda: self._used < self.limit, timeout_s)
                self.is_wanted = False
            taken = min(most, self.limit - self._used)
            self._used += taken
            self._watch(self._used)
            return taken

    def give(self, count: int) -> None:
        with self._changed:
            self._used -= count
            self._watch(self._used)
            self._changed.notify_all()


class Recorder:
    """Writes results in batches, on a thread and database connection of its own, through any outage.

    A result that cannot be written yet is kept and tried again until it is: the fence says then whether it
    still counts.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, write: Callable[[Sequence[Result]], None], slots: Slots
    ) -> None:
        self._loop = loop
        self._write = write
        self._slots = slots
        self._kept: list[Result] = []
        self._since = 0.0
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="recorder")
        self._open = 0
        self._is_writing = False
        self._drains = 0
        self._task = loop.create_task(self._run())

    def opened(self, count: int) -> None:
        self._open += count

    def add(self, results: Sequence[Result], *, ended_calls: int = 0) -> None:
        """Keep results for the next write. `ended_calls`: how many of them were calls that held a slot."""
        self._open -= ended_calls
        if not self._kept:
            self._since = self._loop.time()
        self._kept.extend(results)
        self._wake.set()

    async def drained(self) -> None:
        """Returns when nothing is open and everything handed over is committed."""
        self._drains += 1
        try:
            while self._kept or self._open or self._is_writing:
                self._wake.set()
                await asyncio.sleep(0.005)
        finally:
            self._drains -= 1

    def _due_at(self) -> float:
        """When what is kept is to be written; a loop time, maybe past."""
        kept, is_wanted = len(self._kept), self._slots.is_wanted
        if (
            kept >= RECORD_ROWS
            or (kept >= HUNGRY_ROWS and is_wanted)
            or (self._open == 0 and (is_wanted or self._drains))
        ):
            return self._since
        return self._since + (RECORD_AFTER_S if self._open else LINGER_S)

    async def _run(self) -> None:
        while True:
            if not self._kept:
                self._wake.clear()
                await self._wake.wait()
            while (due_at := self._due_at()) > self._loop.time():
                self._wake.clear()
                try:
                    async with asyncio.timeout_at(due_at):
                        await self._wake.wait()
                except TimeoutError:
                    break
            batch = self._kept[:RECORD_ROWS]
            del self._kept[:RECORD_ROWS]
            self._since = self._loop.time()
            self._is_writing = True
            await self._loop.run_in_executor(self._thread, self._write_through, batch)
            self._is_writing = False
            self._slots.give(sum(result.outcome is not None for result in batch))

    def _write_through(self, batch: list[Result]) -> None:
        failures = 0
        while True:
            try:
                return self._write(batch)
            except Exception as error:  # the recorder's border: nothing recorded may be dropped
                pause = _OUTAGE_PAUSES_S[min(failures, len(_OUTAGE_PAUSES_S) - 1)]
                failures += 1
                log.warning("record_failed", error=type(error).__name__, rows=len(batch), failures=failures)
                time.sleep(pause)


class Loop:
    """The event loop of this process, on a thread of its own."""

    def __init__(
        self, write: Callable[[Sequence[Result]], None], *, watch_slots: Callable[[int], None] | None = None
    ) -> None:
        self.slots = Slots(watch=watch_slots)
        self._loop = _new_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="loop", daemon=True)
        self._thread.start()
        self.recorder: Recorder = self.call(self._make_recorder(write)).result(10)

    async def _make_recorder(self, write: Callable[[Sequence[Result]], None]) -> Recorder:
        return Recorder(asyncio.get_running_loop(), write, self.slots)

    def call(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the loop; from any thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def record(self, results: Sequence[Result]) -> None:
        """Hand over results that were no calls (a gate said no); from any thread."""
        if results:
            self._loop.call_soon_threadsafe(self.recorder.add, results)

    def wait_recorded(self, timeout_s: float) -> bool:
        """Whether everything handed over was committed within `timeout_s`."""
        drained = self.call(self.recorder.drained())
        try:
            drained.result(timeout_s)
        except TimeoutError:
            drained.cancel()
            return False
        return True

    def stop(self, timeout_s: float) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout_s)
