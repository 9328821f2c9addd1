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
from functools import partial
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
HUNGRY_ROWS = 32  # enough to record when senders wait for room, once no further call ends for a moment:
CALM_S = 0.005  # what was handed over together mostly ends together
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
        self.when_wanted: Callable[[], object] = lambda: None

    @property
    def used(self) -> int:
        return self._used

    def take(self, most: int, timeout_s: float) -> int:
        """Between 1 and `most` slots, waiting for the first; 0 when there was none in time."""
        with self._changed:
            if self._used >= self.limit:
                self.is_wanted = True
                self.when_wanted()
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
        self._since = 0.0  # when the first of them came, and the last
        self._last = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="recorder")
        self._timer: asyncio.TimerHandle | None = None
        self._open = 0
        self._is_writing = False
        self._drains = 0
        slots.when_wanted = lambda: loop.call_soon_threadsafe(self._look)

    def opened(self, count: int) -> None:
        self._open += count

    def add(self, results: Sequence[Result], *, ended_calls: int = 0) -> None:
        """Keep results for the next write. `ended_calls`: how many of them were calls that held a slot."""
        self._open -= ended_calls
        self._last = self._loop.time()
        if not self._kept:
            self._since = self._last
        self._kept.extend(results)
        if self._timer is None or len(self._kept) >= RECORD_ROWS or self._open == 0:
            self._look()

    async def drained(self) -> None:
        """Returns when nothing is open and everything handed over is committed."""
        self._drains += 1
        try:
            while self._kept or self._open or self._is_writing:
                self._look()
                await asyncio.sleep(0.005)
        finally:
            self._drains -= 1

    def _due_at(self) -> float:
        """When what is kept is to be written; a loop time, maybe past."""
        kept, is_wanted = len(self._kept), self._slots.is_wanted
        if kept >= RECORD_ROWS or (self._open == 0 and (is_wanted or self._drains)):
            return self._since
        if is_wanted and kept >= HUNGRY_ROWS:
            return min(self._last + CALM_S, self._since + RECORD_AFTER_S)
        return self._since + (RECORD_AFTER_S if self._open else LINGER_S)

    def _look(self) -> None:
        """Write what is due, or look again when it will be."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._is_writing or not self._kept:
            return
        due_at = self._due_at()
        if due_at > self._loop.time():
            self._timer = self._loop.call_at(due_at, self._look)
            return
        batch = self._kept[:RECORD_ROWS]
        del self._kept[:RECORD_ROWS]
        self._since = self._loop.time()
        self._is_writing = True
        written = self._loop.run_in_executor(self._thread, self._write_through, batch)
        written.add_done_callback(partial(self._written, batch))

    def _written(self, batch: list[Result], written: asyncio.Future[None]) -> None:
        self._is_writing = False
        self._slots.give(sum(result.outcome is not None for result in batch))
        written.result()
        self._look()

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
