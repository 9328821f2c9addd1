"""Through whom: which provider account takes a message."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from notifier.ledger import Account, Claimed, Stop
from notifier.message import Channel, Lane, Mode
from notifier.providers.registry import PROVIDERS, provider_class
from notifier.stages.breaker import Breaker
from notifier.stages.sickroom import Shared, sickness_name

WAIT_S = 5.0  # a message that nobody can take now is looked at again then
# Each look is a claim and a record, and the longer an account is away the more messages wait for it: at five seconds
# each, a few minutes' backlog kept PostgreSQL busier than sending it would.
MOST_WAIT_S = 20.0


class Router:
    """Picks accounts for one process; kept from shift to shift, so that it remembers who is sick.

    `shared`: what it tells other processes of them, and hears.
    """

    def __init__(
        self,
        chance: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
        shared: Shared | None = None,
    ) -> None:
        self._accounts: Sequence[Account] = ()
        self._is_by_country = False
        self._by_target: dict[tuple[str, str, str, bool, str], list[Account]] = {}
        self._breakers: dict[str, Breaker] = {}
        self._chance = chance or random.Random()  # noqa: S311 - spreads load, guards nothing
        self._clock = clock
        self._shared = shared

    def use(self, accounts: Sequence[Account]) -> None:
        if accounts is not self._accounts:
            self._accounts = accounts
            self._is_by_country = any(account.countries for account in accounts)
            self._by_target.clear()

    def breaker(self, account: Account) -> Breaker:
        name = sickness_name(account)
        found = self._breakers.get(name)
        if found is not None:
            return found
        if self._shared is None:
            return self._breakers.setdefault(name, Breaker(self._clock))  # another thread's may be there by now
        made = Breaker(self._clock, partial(self._shared.may_probe, name))
        found = self._breakers.setdefault(name, made)
        self._shared.watch(name, found)
        return found

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

    def close(self) -> None:
        """Nothing is told to other processes any more."""
        if self._shared is not None:
            self._shared.close()

    def _by_weight(self, accounts: list[Account]) -> Iterable[Account]:
        if len(accounts) <= 1:
            return accounts
        return self._chance.choices(accounts, [max(account.weight, 0) or 0.001 for account in accounts])

    def _fitting(self, claimed: Claimed) -> list[Account]:
        address = claimed.address
        platform = address.platform if address and address.platform else ""
        sandboxed = claimed.mode is Mode.TEST or bool(address and address.is_sandbox)
        country = (
            country_of(address.value) if self._is_by_country and address and claimed.channel == Channel.SMS else ""
        )
        key = (claimed.channel, platform, claimed.device_provider, sandboxed, country)
        if key not in self._by_target:
            self._by_target[key] = [account for account in self._accounts if _fits(account, *key)]
        return self._by_target[key]


def country_of(number: str) -> str:
    """The two-letter code of the country that an E.164 number belongs to; empty for one that belongs to none."""
    import phonenumbers  # here: 4 MB that only processes with country rules need

    try:
        return phonenumbers.region_code_for_number(phonenumbers.parse(number)) or ""
    except phonenumbers.NumberParseException:
        return ""


def _fits(account: Account, channel: str, platform: str, provider: str, sandboxed: bool, country: str) -> bool:
    if not account.is_active or account.is_sandbox != sandboxed:
        return False
    if channel not in PROVIDERS[account.kind].channels:
        return False
    if channel == Channel.SMS and account.countries:
        return country in account.countries
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
