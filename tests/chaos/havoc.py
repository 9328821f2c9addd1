"""Killing: who there is to kill, and what it held at that moment. A kill that interrupts nothing proves nothing."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from apps.console.supervisor import procfile, queues_of
from notifier.queues import DELIVERY_QUEUES, channel_and_lane
from notifier.stages.settle import LEASE_S
from tests.acceptance.stack import Stack
from tests.chaos.load import Load

WORKERS = {name: queues_of(command) for name, command in procfile().items() if queues_of(command)}
SENDERS = {name: queues for name, queues in WORKERS.items() if set(queues) <= set(DELIVERY_QUEUES)}
IN_FLIGHT = 100  # what the documentation promises for one process

_BOOTED = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Kill:
    role: str
    name: str
    held: int  # rows claimed by the process that died, or requests that broke

    @property
    def counts(self) -> bool:
        return self.held > 0


@contextlib.contextmanager
def frozen(*pids: int):
    """Stopped while the block looks at them: what it sees is what they held when they died."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def started_at(pid: int) -> float:
    """Unix time."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return _BOOTED + int(fields[19]) / _TICKS


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return False


def pool_children(stack: Stack, name: str) -> list[int]:
    return stack.pids(name)[1:]


def web_workers(stack: Stack) -> list[int]:
    """Granian's workers, without the process that cleans up after them."""
    return [
        pid for pid in stack.pids("web")[1:] if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def held_by(stack: Stack, name: str, pid: int) -> int:
    """Rows that this very process claimed: a lease that is longer than it lives is a dead one's."""
    channel, lane = channel_and_lane(SENDERS[name][0])
    lanes = [channel_and_lane(queue)[1] for queue in SENDERS[name]]
    [(count,)] = stack.query(
        "SELECT count(*) FROM notifications_pending WHERE channel = %s AND lane = ANY (%s::text[]) "
        "AND lease_until > now() AND lease_until - %s * interval '1 second' >= to_timestamp(%s)",
        channel.value,
        [str(lane) for lane in lanes],
        LEASE_S[lane] if lane == "critical" else LEASE_S["normal"],
        started_at(pid),
    )
    return int(count)


class Havoc:
    """Kills at random, and starts again what has no supervisor of its own."""

    def __init__(self, stack: Stack, load: Load, seed: int, *, senders: tuple[str, ...] = tuple(SENDERS)) -> None:
        self.stack = stack
        self.load = load
        self.dice = random.Random(seed)
        self.senders = senders
        self.kills: list[Kill] = []
        self.orphans: list[int] = []
        self.gave_up: list[str] = []
        self._roles: dict[str, tuple[Callable[[], Kill | None], int]] = {  # how, and how often beside the others
            "pool child": (self._pool_child, 4),
            "worker main": (self._worker_main, 3),
            "worker, all of it": (self._worker, 3),
            "web worker": (self._web_worker, 2),
            "web, all of it": (self._web, 1),
            "relay": (self._relay, 2),
            "beat": (self._beat, 1),
        }

    @property
    def counted(self) -> int:
        return sum(kill.counts for kill in self.kills)

    @property
    def in_flight(self) -> int:
        """The most that the deaths may have sent twice: what each sender held, and never more than it promises."""
        return sum(min(kill.held, IN_FLIGHT) for kill in self.kills if kill.name in SENDERS)

    def run(self, counted: int, *, pause_s: tuple[float, float], within_s: float) -> None:
        """Kill until so many interrupted something, each role at least once."""
        deadline = time.monotonic() + within_s
        names = list(self._roles)
        weights = [weight for _, weight in self._roles.values()]
        missing = set(names)
        while self.counted < counted or missing:
            assert time.monotonic() < deadline, f"only {self.counted} kills counted in {within_s:.0f} s: {self.kills}"
            [role] = self.dice.choices(names, weights)
            # Until it is this one's turn to hold something: else those who always do would be killed most.
            turn_ends = time.monotonic() + 5
            while (kill := self._roles[role][0]()) is None and time.monotonic() < turn_ends:
                self.revive()
                time.sleep(0.05)
            if kill is not None:
                missing.discard(role)
                self.kills.append(kill)
                time.sleep(self.dice.uniform(*pause_s))
                self.revive()

    # --- the victims ------------------------------------------------------------------------------------------

    def _pool_child(self) -> Kill | None:
        """As the kernel does when memory is short. Celery's main process makes another."""
        name = self.dice.choice(self.senders)
        return self._kill_holder(name, "pool child", lambda child: os.kill(child, signal.SIGKILL))

    def _worker_main(self) -> Kill | None:
        """The child is left without a parent, with its calls open, while a new worker starts beside it."""
        name = self.dice.choice(self.senders)
        main = self.stack.fleet[name].pid

        def kill(child: int) -> None:
            os.kill(main, signal.SIGKILL)
            self.stack.fleet[name].child.wait()
            self.orphans.append(child)

        found = self._kill_holder(name, "worker main", kill)
        self._start_again(name)
        return found

    def _worker(self) -> Kill | None:
        name = self.dice.choice(self.senders)
        found = self._kill_holder(name, "worker, all of it", lambda child: self.stack.kill(name))
        self._start_again(name)
        return found

    def _kill_holder(self, name: str, role: str, kill: Callable[[int], None]) -> Kill | None:
        children = pool_children(self.stack, name)
        if not children:  # being made right now
            return None
        [child] = children
        with frozen(child):
            held = held_by(self.stack, name, child)
            if held:
                kill(child)
        return Kill(role, name, held) if held else None

    def _web_worker(self) -> Kill | None:
        workers = web_workers(self.stack)
        # Just killed, and not made again yet: somebody else's turn.
        return self._kill_web("web worker", [self.dice.choice(workers)]) if workers else None

    def _web(self) -> Kill | None:
        if not self.stack.fleet["web"].is_running:
            return None
        found = self._kill_web("web, all of it", self.stack.pids("web"))
        if found:
            self.stack.fleet["web"].kill()
        self._start_again("web")
        return found

    def _kill_web(self, role: str, pids: list[int]) -> Kill | None:
        broken = self.load.broken
        with frozen(*pids):
            time.sleep(0.15)  # callers run into it
            if not self.load.open_requests:
                return None
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.15)
        return Kill(role, "web", self.load.broken - broken)

    def _relay(self) -> Kill:
        self.stack.kill("relay")
        self._start_again("relay")
        return Kill("relay", "relay", 0)

    def _beat(self) -> Kill:
        self.stack.kill("beat")
        self._start_again("beat")
        return Kill("beat", "beat", 0)

    def revive(self) -> None:
        """Who ended by itself: Granian's main process does when its workers die within seconds of each other."""
        for name, process in self.stack.fleet.processes.items():
            if not process.is_running:
                process.kill()  # what it left behind holds the port
                self.gave_up.append(name)
                self.stack.start(name)

    def _start_again(self, name: str) -> None:
        if not self.stack.fleet[name].is_running:
            time.sleep(self.dice.uniform(0.0, 0.5))
            self.stack.start(name)
