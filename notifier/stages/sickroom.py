"""Which provider accounts are sick, as all processes see it.

An account that one process found sick is left alone by all, and one process at a time probes it. A thread tells and
asks twice a second, so that no send waits for Redis; while Redis is away each process goes by what it finds itself.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Protocol

import structlog

from notifier.ledger import Account
from notifier.limits import Away, Store
from notifier.stages.breaker import PROBE_S, Breaker, Sickness

log = structlog.get_logger(__name__)

EVERY_S = 0.5
KEPT_S = 3600  # a sick account that nobody sends through is forgotten then; it would be probed first

# KEYS: the accounts. ARGV, four for each: what to do ("", "sick", "well"), and in ms: until, the next opening, since
# when. The longer `until` counts, so that late news of an old failure does not shorten a new one.
# Returns for each: nothing, or (until, next opening, since) in ms from the server's now.
_TELL = """
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
local answer = {}
for i, key in ipairs(KEYS) do
  local what = ARGV[i*4-3]
  if what == 'well' then
    redis.call('DEL', key, key .. ':probe')
  elseif what == 'sick' then
    local kept = redis.call('HMGET', key, 'until', 'since')
    local till = math.max(tonumber(kept[1]) or 0, now + tonumber(ARGV[i*4-2]))
    local since = math.min(tonumber(kept[2]) or now, now - tonumber(ARGV[i*4]))
    redis.call('HSET', key, 'until', string.format('%d', till), 'next', ARGV[i*4-1],
               'since', string.format('%d', since))
    redis.call('EXPIRE', key, tonumber(ARGV[#ARGV]))
    redis.call('DEL', key .. ':probe')
  end
  local kept = redis.call('HMGET', key, 'until', 'next', 'since')
  if kept[1] then
    answer[i] = {math.max(0, math.floor(kept[1] - now)), tonumber(kept[2]), math.max(0, math.floor(now - kept[3]))}
  else
    answer[i] = {}
  end
end
return answer
"""


class Shared(Protocol):
    """What one process needs of the others. See `Sickroom` for the real one."""

    def may_probe(self, name: str) -> bool: ...

    def watch(self, name: str, breaker: Breaker) -> None: ...

    def close(self) -> None: ...


class Sickroom:
    """The breakers of one process, and what the other processes know."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._breakers: dict[str, Breaker] = {}
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    def watch(self, name: str, breaker: Breaker) -> None:
        """Share this breaker from now on, under the name of `sickness_name`."""
        self._breakers[name] = breaker
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="sickroom", daemon=True)
            self._thread.start()

    def may_probe(self, name: str) -> bool:
        """Whether this process makes the next probe. With Redis away each process probes for itself."""
        try:
            return self._store.add_once(f"{_key(name)}:probe", int(PROBE_S))
        except Away:
            return True

    def exchange(self) -> None:
        """Tell what others do not know yet, and hear what they know. Raises Away."""
        breakers = dict(self._breakers)
        changes = {name: breaker.news() for name, breaker in breakers.items()}
        heard = tell(self._store, {name: (bool(changes[name]), each.sickness()) for name, each in breakers.items()})
        for name, breaker in breakers.items():
            if changes[name]:
                breaker.told(changes[name])
            breaker.heard(heard[name])

    def close(self) -> None:
        """Neither tell nor hear any more."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(EVERY_S):
            try:
                self.exchange()
            except Away:
                continue  # the store has said so
            except Exception as error:  # the thread's border: without it this process would hear of nobody any more
                log.error("sickroom_failed", error=type(error).__name__)


def known(store: Store, accounts: Sequence[Account]) -> dict[int, Sickness | None]:
    """What all processes know of these accounts, by id; None: it is well. Raises Away."""
    found = tell(store, {sickness_name(account): (False, None) for account in accounts})
    return {account.id: found[sickness_name(account)] for account in accounts}


def sickness_name(account: Account) -> str:
    """Names its revision too: an account whose settings were mended, or that was activated again, begins well."""
    return f"{account.id}:{account.revision}"


def tell(store: Store, news: Mapping[str, tuple[bool, Sickness | None]]) -> dict[str, Sickness | None]:
    """What is known of the accounts, by name, after those that are news were told. Raises Away."""
    if not news:
        return {}
    args: list[str | int] = []
    for is_news, sickness in news.values():
        if not is_news:
            args += ("", 0, 0, 0)
        elif sickness is None:
            args += ("well", 0, 0, 0)
        else:
            args += ("sick", *(int(seconds * 1000) for seconds in sickness))
    answers = store.script(_TELL, [_key(name) for name in news], *args, KEPT_S)
    return {
        name: Sickness(*(ms / 1000 for ms in answer)) if answer else None
        for name, answer in zip(news, answers, strict=True)
    }


def _key(name: str) -> str:
    return f"sick:{name}"
