"""Through whom: which provider account takes a message."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence

from notifier.ledger import Account, Claimed, Stop
from notifier.message import Channel, Lane, Mode
from notifier.outcome import Kind, Outcome, Scope
from notifier.providers.registry import PROVIDERS, provider_class

FAILURES_TO_OPEN = 10  # in a row; or so many calls, and then no answer to any for SILENT_S
SILENT_S = 5.0  # half of a call's time: a hung provider would else be handed all that comes in the whole of it
OPEN_S = 5.0  # first; doubles
MOST_OPEN_S = 10.0  # with a probe that hangs and what waits (below): all goes on within a minute of its return
PROBE_S = 15.0  # above the longest call: a probe without an answer by then was never made
ANSWERED_IN_S = 2.0  # by an account that is well again, nearly always
SICK_S = 30.0  # an account whose credentials were refused is left alone for so long
WAIT_S = 5.0  # a message that nobody can take now is looked at again then
# Each look is a claim and a record, and the longer an account is away the more messages wait for it: at five seconds
# each, a few minutes' backlog kept PostgreSQL busier than sending it would.
MOST_WAIT_S = 20.0


class Breaker:
    """Whether an account is worth a call, by what its last calls came to; this process's view.

    Opens after failures in a row, or when nobody answers; lets one probe through when its time is over; closes on the
    first answer.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._unanswered = 0  # calls since anything came back, and when there were too many of them
        self._silent_since = 0.0
        self._open_s = OPEN_S
        self._until = 0.0
        self._opened_at = 0.0
        self._probing_since: float | None = None

    def allows(self) -> bool:
        """Whether a call may be made. While open: one probe, and another when that one never came back."""
        if self._until == 0.0:
            return True
        now = self._clock()
        if now < self._until or (self._probing_since is not None and now < self._probing_since + PROBE_S):
            return False
        self._probing_since = now
        return True

    def asked(self) -> None:
        """A call is about to be made."""
        self._unanswered += 1
        if self._unanswered == FAILURES_TO_OPEN:
            self._silent_since = self._clock()

    def listen(self) -> None:
        """Open when many calls were made and nothing comes back."""
        if self._unanswered < FAILURES_TO_OPEN or self.is_open:
            return
        if self._clock() - self._silent_since >= SILENT_S:
            self._open_for_longer()

    @property
    def is_open(self) -> bool:
        return self._until != 0.0

    @property
    def away_s(self) -> float:
        """How long ago the account fell sick; 0 for one that is well, or may turn out to be at any moment."""
        now = self._clock()
        if not self.is_open or (self._probing_since is not None and now < self._probing_since + ANSWERED_IN_S):
            return 0.0
        return now - self._opened_at

    def saw(self, outcome: Outcome) -> None:
        self._unanswered = 0
        if outcome.kind is Kind.MISCONFIGURED and outcome.scope is Scope.ACCOUNT:
            self._open_for(SICK_S)
        elif outcome.kind in (Kind.UNAVAILABLE, Kind.UNCERTAIN):
            self._failures += 1
            if self._probing_since is not None or (self._failures >= FAILURES_TO_OPEN and not self.is_open):
                self._open_for_longer()
        elif outcome.kind is Kind.THROTTLED and outcome.scope is Scope.ACCOUNT:
            self._open_for(outcome.retry_after_s or 1.0)
        else:
            self._failures, self._open_s, self._until, self._probing_since = 0, OPEN_S, 0.0, None

    def _open_for_longer(self) -> None:
        self._open_for(self._open_s)
        self._open_s = min(self._open_s * 2, MOST_OPEN_S)

    def _open_for(self, seconds: float) -> None:
        now = self._clock()
        if not self.is_open:
            self._opened_at = now
        self._until = now + seconds
        self._probing_since = None


class Router:
    """Picks accounts for one process; kept from shift to shift, so that it remembers who is sick."""

    def __init__(self, chance: random.Random | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._accounts: Sequence[Account] = ()
        self._by_target: dict[tuple[str, str, str, bool], list[Account]] = {}
        self._breakers: dict[int, Breaker] = {}
        self._chance = chance or random.Random()  # noqa: S311 - spreads load, guards nothing
        self._clock = clock

    def use(self, accounts: Sequence[Account]) -> None:
        if accounts is not self._accounts:
            self._accounts = accounts
            self._by_target.clear()

    def breaker(self, account: Account) -> Breaker:
        return self._breakers.setdefault(account.id, Breaker(self._clock))

    def pick(self, claimed: Claimed) -> Account | Stop:
        """The account for this message; a Stop (wait, no try counted) when none can take it now."""
        fitting = self._fitting(claimed)
        if not fitting:
            return _wait(claimed, "provider_paused", "no active account serves it")
        for account in fitting:
            self.breaker(account).listen()
        healthy = [account for account in fitting if not self.breaker(account).is_open]
        # A try that failed goes elsewhere next time, where there is an elsewhere.
        others = [account for account in healthy if account.id != claimed.last_account_id]
        for account in self._by_weight(others if claimed.state == "retrying" and others else healthy):
            self.breaker(account).asked()
            return account
        for account in fitting:
            if self.breaker(account).allows():
                self.breaker(account).asked()
                return account
        away_s = min(self.breaker(account).away_s for account in fitting)
        return _wait(claimed, "provider_unavailable", ", ".join(account.name for account in fitting), away_s)

    def has_another(self, claimed: Claimed, account: Account) -> bool:
        """Whether a healthy account other than this one could take the message."""
        return any(other.id != account.id and not self.breaker(other).is_open for other in self._fitting(claimed))

    def _by_weight(self, accounts: list[Account]) -> Iterable[Account]:
        if len(accounts) <= 1:
            return accounts
        return self._chance.choices(accounts, [max(account.weight, 0) or 0.001 for account in accounts])

    def _fitting(self, claimed: Claimed) -> list[Account]:
        address = claimed.address
        platform = address.platform if address and address.platform else ""
        sandboxed = claimed.mode is Mode.TEST or bool(address and address.is_sandbox)
        key = (claimed.channel, platform, claimed.device_provider, sandboxed)
        if key not in self._by_target:
            self._by_target[key] = [account for account in self._accounts if _fits(account, *key)]
        return self._by_target[key]


def _fits(account: Account, channel: str, platform: str, provider: str, sandboxed: bool) -> bool:
    if not account.is_active or account.is_sandbox != sandboxed:
        return False
    if channel not in PROVIDERS[account.kind].channels:
        return False
    if channel != Channel.PUSH:
        return True
    # A device token belongs to the provider that issued it.
    return (
        account.kind == provider
        and f"push:{platform}" in provider_class(account.kind).serves
        and (not account.platforms or platform in account.platforms)
    )


def _wait(claimed: Claimed, word: str, seen: str, away_s: float = 0.0) -> Stop:
    """Half as long again as nobody was there; what is urgent looks as often as ever."""
    wait_s = WAIT_S if claimed.lane is Lane.CRITICAL else min(max(WAIT_S, away_s / 2), MOST_WAIT_S)
    jitter = random.uniform(0.75, 1.25)  # noqa: S311 - spreads load, guards nothing
    return Stop("provider", claimed.state, detail=seen, seen=seen, retry_in_s=wait_s * jitter, waiting=word)
