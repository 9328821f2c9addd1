"""Handing messages to providers, on the process's event loop: one call per batch, one outcome per message."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import structlog

from notifier.ledger import Account, Claimed, Result
from notifier.loop import Loop
from notifier.message import Message
from notifier.outcome import Kind, Outcome, Scope
from notifier.providers.base import ConfigurationError, Provider, Surroundings
from notifier.providers.registry import provider_class
from notifier.stages.route import Router
from notifier.stages.settle import judge

if TYPE_CHECKING:
    from notifier.providers.carrier import Carrier

log = structlog.get_logger(__name__)

GRACE_S = 2.0  # an adapter ends its own calls within the message's timeout; past this it is broken
RETIRED_AFTER_S = 30.0  # an account's old instance may still have calls open when its settings change


@dataclass(frozen=True, slots=True)
class Job:
    claimed: Claimed
    message: Message
    account: Account


class Dispatcher:
    """The provider instances of this process, and the calls that are open. Its `send` runs on the loop."""

    def __init__(self, loop: Loop, router: Router, exchange_token: Callable[..., Any] | None = None) -> None:
        self._loop = loop
        self._router = router
        self._exchange_token = exchange_token
        self._carrier: Carrier | None = None
        self._providers: dict[int, tuple[str, Provider]] = {}

    def submit(self, calls: Sequence[Sequence[Job]]) -> None:
        """Start one call per group of jobs (each of one account); every job must hold a slot. Any thread."""
        self._loop.call(self._start(calls))

    async def _start(self, calls: Sequence[Sequence[Job]]) -> None:
        self._loop.recorder.opened(sum(len(jobs) for jobs in calls))
        groups: dict[float, _Together] = {}
        for jobs in calls:
            timeout_s = max(job.message.timeout_s for job in jobs) + GRACE_S
            group = groups.get(timeout_s) or groups.setdefault(timeout_s, _Together(timeout_s))
            group.run(self._call(jobs, group))

    async def _call(self, jobs: Sequence[Job], group: _Together) -> None:
        started = time.time()
        account = jobs[0].account
        results: list[Result] = []
        try:
            outcomes = await self._outcomes(account, jobs)
            breaker = self._router.breaker(account)
            for job, outcome in zip(jobs, outcomes, strict=True):
                breaker.saw(outcome)
                results.append(self._result(job, outcome, started))
        except BaseException as error:  # whatever it is, each message has a result and gives its room back
            code = "TimeoutError" if group.is_over else type(error).__name__
            log.error("call_broken_off", account=account.name, error=code)
            broken = Outcome(Kind.UNCERTAIN, code=code, detail="the call was broken off")
            results += [self._result(job, broken, started) for job in jobs[len(results) :]]
            if not (group.is_over or isinstance(error, Exception)):
                raise
        finally:
            self._loop.recorder.add(results, ended_calls=len(jobs))

    def _result(self, job: Job, outcome: Outcome, started: float) -> Result:
        elsewhere = outcome.kind is Kind.MISCONFIGURED and self._router.has_another(job.claimed, job.account)
        return Result(
            job.claimed,
            judge(job.claimed, outcome, elsewhere=elsewhere, is_away=self._router.breaker(job.account).is_open),
            outcome,
            job.account.id,
            started_at=started,
            ended_at=time.time(),
        )

    async def _outcomes(self, account: Account, jobs: Sequence[Job]) -> Sequence[Outcome]:
        messages = [job.message for job in jobs]
        try:
            provider = self._provider(account)
        except ConfigurationError as error:
            wrong = Outcome(Kind.MISCONFIGURED, Scope.ACCOUNT, code="configuration", detail=str(error))
            return [wrong] * len(jobs)
        except Exception as error:  # the border: an adapter that cannot be made has sent nothing
            log.error("provider_not_made", account=account.name, error=type(error).__name__)
            return [Outcome(Kind.UNAVAILABLE, Scope.ACCOUNT, code=type(error).__name__)] * len(jobs)
        try:
            outcomes = await provider.send(messages)
            if len(outcomes) == len(jobs):
                return outcomes
            problem = "wrong_count"
        except Exception as error:  # the border: a fault in an adapter costs its own messages a try, no more
            log.error("provider_raised", account=account.name, error=type(error).__name__)
            problem = type(error).__name__
        return [Outcome(Kind.UNCERTAIN, code=problem, detail="the adapter failed")] * len(jobs)

    async def prepare(self, accounts: Sequence[Account]) -> None:
        """Make the providers of `accounts` ready, so that no first message waits for that."""
        for account in accounts:
            try:
                await self._provider(account).prepare()
            except Exception as error:  # the border: the first message finds the same, and has an outcome for it
                log.info("provider_not_ready", account=account.name, error=type(error).__name__)

    async def aclose(self) -> None:
        """Close every connection; nothing may be sent any more."""
        for _, provider in self._providers.values():
            await provider.aclose()
        self._providers.clear()
        if self._carrier is not None:
            await self._carrier.aclose()

    def _provider(self, account: Account) -> Provider:
        revision, provider = self._providers.get(account.id, ("", None))
        if provider is not None and revision == account.revision:
            return provider
        if provider is not None:
            asyncio.get_running_loop().call_later(RETIRED_AFTER_S, _close, provider)
        if self._carrier is None:
            from notifier.providers.carrier import Carrier  # here, because most processes that import this send nothing

            self._carrier = Carrier()
        made = make_provider(
            account,
            Surroundings(
                carrier=self._carrier,
                hook_url=account.hook_url,
                exchange_token=self._exchange_token,
                account_name=account.name,
            ),
        )
        self._providers[account.id] = (account.revision, made)
        return made


class _Together:
    """Calls that start at the same moment and have the same time: one timer breaks off those that outlast it."""

    def __init__(self, timeout_s: float) -> None:
        self.is_over = False
        self._loop = asyncio.get_running_loop()
        self._running: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references
        self._timer = self._loop.call_later(timeout_s, self._break_off)

    def run(self, call: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(call)
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not self._running:
            self._timer.cancel()

    def _break_off(self) -> None:
        self.is_over = True
        for task in self._running:
            # Not at once: a task that has not begun yet (the machine stood still) would end without its results.
            self._loop.call_soon(task.cancel)


_closing: set[asyncio.Task[None]] = set()


def make_provider(account: Account, surroundings: Surroundings) -> Provider:
    """The provider of an account. Raises ConfigurationError, naming the field, when its settings cannot work."""
    try:
        cls = provider_class(account.kind)
    except KeyError:
        raise ConfigurationError(f"account {account.name}: there is no provider {account.kind!r}") from None
    known = {field.name for field in fields(cls.Settings)}
    unknown = sorted(set(account.settings) - known)
    if unknown:
        raise ConfigurationError(f"account {account.name}: no such setting: {', '.join(unknown)}")
    settings = cls.Settings(**account.settings)
    cls.check(settings)
    return cls(settings, surroundings)


def _close(provider: Provider) -> None:
    task = asyncio.ensure_future(provider.aclose())
    _closing.add(task)
    task.add_done_callback(_closing.discard)
