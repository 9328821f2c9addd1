"""How much, how often: counters that all processes share through Redis, and what counts while Redis is away."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

logger = logging.getLogger(__name__)

TIMEOUT_S = 0.2  # more than a healthy server ever takes, little enough to be paid by one request
COOL_DOWN_S = 1.0  # after a failure one request asks the server each time that this has passed, the others nothing
ALERT_EVERY_S = 60.0

# Each bucket refills evenly; all pay or none. Time is the server's, so that processes' clocks do not matter.
# KEYS: the buckets. ARGV: capacity, window in ms and cost of each. A bucket is its tokens and when they were so many.
# Returns, per bucket: 1 when it could pay, the whole tokens left, the milliseconds until it can pay.
_SPEND = """
local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
local tokens, answer, all = {}, {}, true
for i, key in ipairs(KEYS) do
  local capacity, window, cost = tonumber(ARGV[i*3-2]), tonumber(ARGV[i*3-1]), tonumber(ARGV[i*3])
  local kept = redis.call('HMGET', key, 't', 'at')
  local had, at = tonumber(kept[1]) or capacity, tonumber(kept[2]) or now
  tokens[i] = math.min(capacity, had + math.max(0, now - at) * capacity / window)
  if tokens[i] < cost then all = false end
end
for i, key in ipairs(KEYS) do
  local capacity, window, cost = tonumber(ARGV[i*3-2]), tonumber(ARGV[i*3-1]), tonumber(ARGV[i*3])
  local could = tokens[i] >= cost
  local wait = could and 0 or math.ceil((math.min(cost, capacity) - tokens[i]) * window / capacity)
  if all and cost > 0 then
    tokens[i] = tokens[i] - cost
    redis.call('HSET', key, 't', string.format('%.6f', tokens[i]), 'at', string.format('%d', now))
    redis.call('PEXPIRE', key, window)
  end
  answer[i] = {could and 1 or 0, math.floor(tokens[i]), wait}
end
return answer
"""

# Whoever still knows the current token as stale may replace it; all others are handed the current one.
_EXCHANGE = """
local kept = redis.call('HMGET', KEYS[1], 'header', 'issued_at')
if kept[1] and kept[1] ~= ARGV[1] then return kept end
redis.call('HSET', KEYS[1], 'header', ARGV[2], 'issued_at', ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[4])
return {ARGV[2], ARGV[3]}
"""
TOKEN_LIFE_S = 3600


class Away(Exception):
    """Redis did not answer in time, or was found away within the last second."""


class Store:
    """One Redis, as all limits see it: short timeouts, and after a failure one try a second.

    The client is made at first use; redis-py gives each process connections of its own, also after a fork.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: redis.Redis | None = None
        self._scripts: dict[str, Any] = {}
        self._making = threading.Lock()
        self._retrying = threading.Lock()
        self._away_until = 0.0  # 0: it answers
        self._alert_at = 0.0

    def script(self, source: str, keys: Sequence[str], *args: Any) -> Any:
        """What the Lua `source` returns; its text travels once, then its hash. Raises Away."""
        return self._ask(lambda client: self._script(client, source)(keys=list(keys), args=args))

    def add_once(self, key: str, life_s: int) -> bool:
        """Whether `key` was new; it is remembered for `life_s`. Raises Away."""
        return bool(self._ask(lambda client: client.set(key, b"1", nx=True, ex=life_s)))

    def _script(self, client: redis.Redis, source: str) -> Any:
        if source not in self._scripts:
            self._scripts[source] = client.register_script(source)
        return self._scripts[source]

    def _ask(self, command: Callable[[redis.Redis], Any]) -> Any:
        if not self._may_ask():
            raise Away
        try:
            answer = command(self._connected())
        except redis.RedisError as error:
            self._note(error)
            raise Away from error
        self._away_until = 0.0
        return answer

    def _may_ask(self) -> bool:
        if not self._away_until:
            return True
        with self._retrying:  # who comes while one asks does not wait with it
            now = time.monotonic()
            if now < self._away_until:
                return False
            self._away_until = now + COOL_DOWN_S
            return True

    def _connected(self) -> redis.Redis:
        if self._client is None:
            with self._making:
                self._client = self._client or redis.Redis.from_url(
                    self._url,
                    socket_timeout=TIMEOUT_S,
                    socket_connect_timeout=TIMEOUT_S,
                    retry=Retry(NoBackoff(), 0),
                )
        return self._client

    def _note(self, error: redis.RedisError) -> None:
        now = time.monotonic()
        self._away_until = now + COOL_DOWN_S
        if now >= self._alert_at:
            self._alert_at = now + ALERT_EVERY_S
            logger.error("the limits' Redis is away, limits count per process until it is back: %s", error)


@lru_cache
def store(url: str) -> Store:
    """The process's one Store for `url`."""
    return Store(url)


@dataclass(frozen=True, slots=True)
class Bucket:
    """`capacity` per `window_s`, refilled evenly; `name` is what callers are told, `key` whose bucket it is."""

    name: str
    key: str
    capacity: int
    window_s: int


@dataclass(frozen=True, slots=True)
class Level:
    """A bucket after a spend. `could_pay` is False for the one that stopped it; then nothing was taken from any."""

    bucket: Bucket
    could_pay: bool
    left: int
    wait_s: float

    @property
    def full_in_s(self) -> int:
        missing = self.bucket.capacity - self.left
        return max(1, math.ceil(missing * self.bucket.window_s / self.bucket.capacity))


AHEAD_S = 0.25  # how much a busy process takes ahead: what it spends in so long...
AHEAD_SHARE = 100  # ... but no more than this part of a bucket
AHEAD_GOOD_FOR_S = 1.0  # what is not spent by then is forfeited


@dataclass(slots=True)
class _Ahead:
    """Tokens of one bucket that this process has taken and not spent yet."""

    taken_at: float = 0.0
    tokens: int = 0
    spent: int = 0  # since then
    left: int = 0  # in the bucket and taken ahead, then

    def has(self, cost: int, now: float) -> bool:
        return self.tokens >= cost and now - self.taken_at < AHEAD_GOOD_FOR_S


class TokenBuckets:
    """Rates of callers, shared by all processes; while Redis is away each process counts for itself (fails open).

    A process that serves a busy caller takes tokens ahead, so that not every request waits for Redis. It spends them
    itself or forfeits them within a second; a bucket that runs low is asked for what is needed alone.
    """

    MOST = 10_000  # buckets remembered

    def __init__(self, store: Store) -> None:
        self._store = store
        self._local = LocalBuckets()
        self._ahead: dict[str, _Ahead] = {}
        self._lock = threading.Lock()

    def spend(self, costs: Sequence[tuple[Bucket, int]]) -> list[Level]:
        """Take `cost` from each bucket, or nothing from any when one cannot pay. At most two round trips, mostly none
        for a busy caller; never raises."""
        now = time.monotonic()
        with self._lock:
            held = [self._ahead.get(bucket.key) for bucket, _ in costs]
            if all(each is not None and each.has(cost, now) for each, (_, cost) in zip(held, costs, strict=True)):
                return [_pay(each, bucket, cost) for each, (bucket, cost) in zip(held, costs, strict=True) if each]
            extra = [_worth(each, bucket, cost, now) for each, (bucket, cost) in zip(held, costs, strict=True)]
        try:
            levels = self._ask(costs, extra)
            if any(extra) and not all(level.could_pay for level in levels):
                extra = [0] * len(costs)
                levels = self._ask(costs, extra)
        except Away:
            return self._local.spend(costs)
        if all(level.could_pay for level in levels):
            self._keep(costs, extra, levels, now)
        return levels

    def _ask(self, costs: Sequence[tuple[Bucket, int]], extra: Sequence[int]) -> list[Level]:
        args: list[int] = []
        for (bucket, cost), more in zip(costs, extra, strict=True):
            args += (bucket.capacity, bucket.window_s * 1000, cost + more)
        rows = self._store.script(_SPEND, [f"bucket:{bucket.key}" for bucket, _ in costs], *args)
        is_paid = all(could for could, _, _ in rows)
        return [
            Level(bucket, bool(could), int(left) + (more if is_paid else 0), wait_ms / 1000)
            for (bucket, _), more, (could, left, wait_ms) in zip(costs, extra, rows, strict=True)
        ]

    def _keep(
        self, costs: Sequence[tuple[Bucket, int]], extra: Sequence[int], levels: Sequence[Level], now: float
    ) -> None:
        with self._lock:
            if len(self._ahead) > self.MOST:
                self._ahead.clear()
            for (bucket, _), more, level in zip(costs, extra, levels, strict=True):
                held = self._ahead.get(bucket.key)
                if held is not None and held.has(1, now):  # another thread's, taken meanwhile
                    more += held.tokens
                self._ahead[bucket.key] = _Ahead(now, more, left=level.left)


def _pay(held: _Ahead, bucket: Bucket, cost: int) -> Level:
    held.tokens -= cost
    held.spent += cost
    return Level(bucket, True, max(0, held.left - held.spent), 0.0)


def _worth(held: _Ahead | None, bucket: Bucket, cost: int, now: float) -> int:
    """How many tokens to take ahead: by what was spent since the last time."""
    if held is None or now - held.taken_at >= AHEAD_GOOD_FOR_S:
        return 0
    per_s = (held.spent + cost) / max(now - held.taken_at, 0.01)
    return min(int(per_s * AHEAD_S), bucket.capacity // AHEAD_SHARE)


class LocalBuckets:
    """The same arithmetic within one process."""

    MOST = 10_000  # keys; callers are few, so this is only ever reached by an attack on the failure buckets

    def __init__(self) -> None:
        self._levels: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def spend(self, costs: Sequence[tuple[Bucket, int]]) -> list[Level]:
        now = time.monotonic()
        with self._lock:
            if len(self._levels) > self.MOST:
                self._levels.clear()
            tokens = []
            for bucket, _ in costs:
                had, at = self._levels.get(bucket.key, (float(bucket.capacity), now))
                tokens.append(min(bucket.capacity, had + (now - at) * bucket.capacity / bucket.window_s))
            all_pay = all(have >= cost for have, (_, cost) in zip(tokens, costs, strict=True))
            levels = []
            for have, (bucket, cost) in zip(tokens, costs, strict=True):
                could = have >= cost
                wait_s = 0.0 if could else (min(cost, bucket.capacity) - have) * bucket.window_s / bucket.capacity
                if all_pay:
                    have -= cost
                    self._levels[bucket.key] = have, now
                levels.append(Level(bucket, could, int(have), wait_s))
            return levels


class TokenExchange:
    """Lets all processes use one short-lived token, where a provider counts how often it changes."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def exchange_token(self, name: str, stale: str, issued_at: float, header: str) -> tuple[float, str]:
        """Publish (issued_at, header) if what is shared is still `stale` or nothing; returns what counts now.

        `issued_at` in Unix seconds; a token is shared for 60 minutes from then at most. Never raises: while
        Redis is away it returns what it was given.
        """
        life_s = int(min(TOKEN_LIFE_S, issued_at + TOKEN_LIFE_S - time.time()))
        if life_s <= 0:
            return issued_at, header
        try:
            shared, at = self._store.script(_EXCHANGE, [f"token:{name}"], stale, header, issued_at, life_s)
        except Away:
            return issued_at, header
        return float(at), shared.decode()
