"""THE PATH of a delivery through a worker: claim, render, route, dispatch; settled and recorded as calls end."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import islice
from uuid import UUID

from notifier import queues
from notifier.ledger import Claimed, Ledger, Result, Stop, Verdict
from notifier.lifecycle import State
from notifier.loop import IN_FLIGHT, Loop
from notifier.message import Channel, Lane, Message
from notifier.providers.registry import PROVIDERS, provider_class
from notifier.stages.dispatch import GRACE_S, Dispatcher, Job
from notifier.stages.render import Compiled, Renderer, RenderError, compile_inline
from notifier.stages.route import Router
from notifier.stages.settle import CALL_TIMEOUT_S, LEASE_S
from notifier.stages.sickroom import Shared

CLAIM_FOR_S = 20.0  # a shift takes no more after that; with a call's timeout it ends well inside the hard limit
FIRST_TAKE = 200  # above what is kept while the next are taken
MOST_CLAIMED = 1000  # keeps the statements per delivery few; what waits longer than FRESH_S is checked again
FRESH_S = 2.0
SLOT_WAIT_S = 1.0
# Celery ends a task for good at 45 s (critical: 30 s) and takes what is in flight with it. A shift is over well before.
SHIFT_S = 32.0
CRITICAL_CLAIM_FOR_S = 12.0
CRITICAL_SHIFT_S = 20.0
MARGIN_S = GRACE_S + 1.0  # from the end of a call's time to its result in the database, inside the lease


@dataclass
class Worker:
    """What a worker process keeps from shift to shift."""

    ledger: Ledger
    loop: Loop
    router: Router
    dispatcher: Dispatcher
    clock: Callable[[], float]  # the machine's, as in Claimed.lease_ends
    must_stop: Callable[[], bool] = lambda: False

    @classmethod
    def start(
        cls,
        ledger: Ledger,
        clock: Callable[[], float],
        *,
        exchange_token: Callable[..., object] | None = None,
        must_stop: Callable[[], bool] = lambda: False,
        watch_slots: Callable[[int], None] | None = None,
        shared: Shared | None = None,
    ) -> Worker:
        loop = Loop(ledger.record, watch_slots=watch_slots)
        router = Router(shared=shared)
        return cls(ledger, loop, router, Dispatcher(loop, router, exchange_token), clock, must_stop)

    def prepare(self, channels: Collection[str]) -> None:
        """Make ready what the first messages of these channels would else wait for."""
        accounts = [
            account
            for account in self.ledger.accounts()
            if account.is_active and not PROVIDERS[account.kind].channels.isdisjoint(channels)
        ]
        self.loop.call(self.dispatcher.prepare(accounts))

    def close(self, timeout_s: float) -> None:
        """Let what is open end and be recorded, close the providers' connections, stop the loop."""
        if self.loop.wait_recorded(timeout_s):
            self.loop.call(self.dispatcher.aclose()).result(timeout_s)
        self.router.close()
        self.loop.stop(timeout_s)


def deliver(worker: Worker, queue: str, ids: Sequence[UUID], *, alone: bool = False) -> int:
    """One shift: send what was rung for, then what else its lane holds. Returns how many deliveries it took.

    Raises what the ledger raises (the task tries again); every claimed row is by then with the recorder, or its
    lease ends and the relay gives it back.
    """
    return Shift(worker, queue).run(ids, alone=alone)


@dataclass
class Shift:
    worker: Worker
    queue: str
    ready: deque[Claimed] = field(default_factory=deque)
    at_hand: Claimed | None = None  # of `ready`, the one that is being rendered
    inline: dict[UUID, Compiled] = field(default_factory=dict)
    taken: int = 0
    ends: float = 0.0  # monotonic
    nobody_takes: bool = False  # the last messages found no provider: what else waits will not either

    def run(self, ids: Sequence[UUID], *, alone: bool) -> int:
        try:
            return self._run(ids, alone=alone)
        except SystemExit:
            # The time limit's: what was at hand hangs. It counts as a dead process's, and is dead in the end when it
            # hangs every time. Given back, it would hang here for ever.
            if time.monotonic() >= self.ends:
                self.ready = deque(c for c in self.ready if c is not self.at_hand)
            raise
        finally:  # stopped, or the database went away: what is in memory goes back at once, not when its lease ends
            self.worker.loop.record([given_back(c) for c in self.ready])

    def _run(self, ids: Sequence[UUID], *, alone: bool) -> int:
        worker, ledger = self.worker, self.worker.ledger
        channel, queue_lane = queues.channel_and_lane(self.queue)
        is_critical = queue_lane == Lane.CRITICAL
        lease_s = LEASE_S[Lane.CRITICAL if is_critical else Lane.NORMAL]
        renderer = Renderer()
        worker.router.use(ledger.accounts())
        until = time.monotonic() + (CRITICAL_CLAIM_FOR_S if is_critical else CLAIM_FOR_S)
        self.ends = time.monotonic() + (CRITICAL_SHIFT_S if is_critical else SHIFT_S)
        if alone:
            return self._one_by_one(renderer, ids, lease_s, until)

        # First tries go before bulk and retries, also in a shift that was rung for those.
        lanes = [queue_lane] if queue_lane not in (Lane.BULK, queues.RETRY) else [Lane.NORMAL, queue_lane]
        rung, more, is_all = ids, max(FIRST_TAKE, len(ids)), False
        while not (is_all or self.nobody_takes or worker.must_stop() or time.monotonic() >= until):
            began = time.monotonic()
            worker.router.use(ledger.accounts())
            room = more - len(self.ready)
            found, is_all = ledger.take(rung, Channel(channel), lanes, room, lease_s=lease_s)
            rung = ()
            self._add(found)
            self._send_all(renderer, keep=0 if is_all else IN_FLIGHT)
            # As much as goes out in a second or so: few statements when it runs, little in memory when it does not.
            more = min(MOST_CLAIMED, more * 2) if time.monotonic() - began < FRESH_S / 2 else max(FIRST_TAKE, more // 2)
        self._send_all(renderer)
        return self.taken

    def _one_by_one(self, renderer: Renderer, ids: Sequence[UUID], lease_s: float, until: float) -> int:
        """Rows whose process died: each with nothing else in flight, so that one that kills takes nobody with it."""
        for id in ids:
            if self.worker.must_stop() or not self.worker.loop.wait_recorded(max(0.0, until - time.monotonic())):
                break  # the rest is rung again later
            self._add(self.worker.ledger.claim([id], lease_s=lease_s, alone=True))
            self._send_all(renderer)
        self.worker.loop.wait_recorded(max(0.0, self.ends - time.monotonic()))
        return self.taken

    def _add(self, claimed: Sequence[Claimed]) -> None:
        """Keep what may be sent; what a gate stopped goes straight to the record."""
        self.taken += len(claimed)
        self.worker.loop.record([stopped(c, c.stop) for c in claimed if c.stop is not None])
        self.ready.extend(c for c in claimed if c.stop is None)

    def _send_all(self, renderer: Renderer, keep: int = 0) -> None:
        """Send what is ready down to `keep` rows, which wait for the next claim to come in beside them.

        When the shift's time is over the rest stays: the database or a provider held us up, and `run` gives it back.
        """
        while len(self.ready) > keep and not self.worker.must_stop() and time.monotonic() < self.ends:
            room = self.worker.loop.slots.take(min(IN_FLIGHT, len(self.ready) - keep), SLOT_WAIT_S)
            if room:
                self._send(self._prepared(renderer, room), room)

    def _prepared(self, renderer: Renderer, room: int) -> list[Job | Result]:
        """The next rows, ready to hand over or to record. They stay ours until all of them are: reading may fail."""
        try:
            rows = list(islice(self.ready, room))
            made: list[Job | Result] = []
            for row, fresh in zip(rows, self._fresh(rows), strict=True):
                self.at_hand = row
                made.append(fresh if isinstance(fresh, Result) else self._prepare(renderer, fresh))
            self.at_hand = None
        except BaseException:
            self.worker.loop.slots.give(room)
            raise
        for _ in range(room):
            self.ready.popleft()
        return made

    def _send(self, prepared: list[Job | Result], room: int) -> None:
        jobs = [each for each in prepared if isinstance(each, Job)]
        done = [each for each in prepared if isinstance(each, Result)]
        self.worker.loop.record(done)
        self.nobody_takes = not jobs and any(result.verdict.waiting.startswith("provider") for result in done)
        if len(jobs) < room:
            self.worker.loop.slots.give(room - len(jobs))
        if jobs:
            self.worker.dispatcher.submit(grouped(jobs))

    def _fresh(self, claimed: list[Claimed]) -> list[Claimed | Result]:
        """The rows whose gates were read within the last two seconds; older ones are read again now."""
        now = self.worker.clock()
        old = [c for c in claimed if now - c.claimed_at > FRESH_S]
        if not old:
            return list(claimed)
        again = {c.delivery_id: c for c in self.worker.ledger.recheck(old)}
        current = [again.get(c.delivery_id, c) for c in claimed]
        return [stopped(c, c.stop) if c.stop is not None else c for c in current]

    def _prepare(self, renderer: Renderer, claimed: Claimed) -> Job | Result:
        timeout_s = CALL_TIMEOUT_S[claimed.lane]
        if self.worker.clock() + timeout_s + MARGIN_S > claimed.lease_ends:
            return given_back(claimed)
        try:
            content = renderer.render(
                self._compiled(claimed), claimed.channel, claimed.locale, claimed.data, claimed.options
            )
        except RenderError as error:
            return Result(claimed, Verdict(State.FAILED, error.code, error.detail))
        except LookupError:
            return Result(claimed, Verdict(State.FAILED, "render_error", "its template's version is gone"))
        account = self.worker.router.pick(claimed)  # last: a probe of a sick account is spent by picking it
        if isinstance(account, Stop):
            return stopped(claimed, account)
        assert claimed.address is not None  # noqa: S101 - the address gate has seen it
        message = Message(
            delivery_id=claimed.delivery_id,
            claim_no=claimed.claim_no,
            channel=claimed.channel,
            lane=claimed.lane,
            mode=claimed.mode,
            address=claimed.address,
            content=content,
            expires_at=claimed.expires_at,
            collapse_id=claimed.collapse_key or claimed.delivery_id.hex,
            timeout_s=timeout_s,
            locale=claimed.locale,
        )
        return Job(claimed, message, account)

    def _compiled(self, claimed: Claimed) -> Compiled:
        if claimed.template_version_id is not None:
            return self.worker.ledger.template(claimed.template_version_id)  # type: ignore[no-any-return]
        if claimed.notification_id not in self.inline:
            self.inline[claimed.notification_id] = compile_inline(claimed.inline or {})
        return self.inline[claimed.notification_id]


def stopped(claimed: Claimed, stop: Stop) -> Result:
    """The result of a gate that said no, or not now."""
    state = claimed.state if stop.retry_in_s is not None else stop.state
    return Result(
        claimed,
        Verdict(
            state,
            stop.reason,
            stop.detail,
            retry_in_s=stop.retry_in_s,
            waiting=stop.waiting,
            queue_lane=claimed.queue_lane,
        ),
    )


def given_back(claimed: Claimed) -> Result:
    """Too little of the lease is left for a call: due again at once, no try counted."""
    return Result(claimed, Verdict(claimed.state, retry_in_s=0.0, queue_lane=claimed.queue_lane))


def grouped(jobs: Sequence[Job]) -> list[list[Job]]:
    """Calls: the jobs of one account together, as many as its provider takes at once."""
    by_account: dict[int, list[Job]] = {}
    for job in jobs:
        by_account.setdefault(job.account.id, []).append(job)
    calls: list[list[Job]] = []
    for same in by_account.values():
        size = min(provider_class(same[0].account.kind).batch_size, IN_FLIGHT)
        calls.extend(same[start : start + size] for start in range(0, len(same), size))
    return calls
