"""How often a client may call, and how many people a day it may reach; with and without Redis."""

from __future__ import annotations

import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import pytest
import redis
from django.conf import settings

from apps.clients.callers import credentials
from apps.rest.problems import Problem
from notifier.limits import COOL_DOWN_S, Bucket, Store, TokenBuckets, TokenExchange, store
from notifier.message import Mode
from tests.apps.rest.callers import Api, assert_problem, make_api

AWAY = "redis://127.0.0.1:1/0"  # nothing listens there


def bucket(capacity: int, window_s: int, name: str = "default") -> Bucket:
    return Bucket(name, f"test:{uuid4()}", capacity, window_s)


@pytest.fixture(params=["shared", "local"])
def buckets(request: pytest.FixtureRequest) -> TokenBuckets:
    return TokenBuckets(store(settings.LIMITS_URL) if request.param == "shared" else Store(AWAY))


def test_a_bucket_pays_what_it_holds_and_then_refills_evenly(buckets: TokenBuckets) -> None:
    mine = bucket(10, 2)
    assert [buckets.spend([(mine, 1)])[0].left for _ in range(10)] == list(range(9, -1, -1))
    [level] = buckets.spend([(mine, 1)])
    assert not level.could_pay
    assert 0 < level.wait_s <= 0.2
    time.sleep(level.wait_s + 0.05)
    assert buckets.spend([(mine, 1)])[0].could_pay


def test_all_buckets_pay_or_none(buckets: TokenBuckets) -> None:
    rich, poor = bucket(100, 60), bucket(5, 60)
    levels = buckets.spend([(rich, 1), (poor, 6)])
    assert [level.could_pay for level in levels] == [True, False]
    assert buckets.spend([(rich, 0), (poor, 0)])[0].left == 100
    assert [level.left for level in buckets.spend([(rich, 1), (poor, 5)])] == [99, 0]


def test_a_cost_above_the_capacity_never_passes(buckets: TokenBuckets) -> None:
    mine = bucket(5, 60)
    [level] = buckets.spend([(mine, 6)])
    assert not level.could_pay
    assert level.left == 5


def test_many_processes_share_one_bucket() -> None:
    mine = bucket(50, 3600)
    passed: list[bool] = []

    def spend() -> None:
        own = TokenBuckets(Store(settings.LIMITS_URL))
        passed.extend(own.spend([(mine, 1)])[0].could_pay for _ in range(25))

    threads = [threading.Thread(target=spend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(passed) == 50


class Watched(Store):
    asked = 0

    def script(self, *args: Any, **options: Any) -> Any:
        self.asked += 1
        return super().script(*args, **options)


def test_a_busy_process_asks_seldom_and_tells_what_is_left_all_the_same() -> None:
    mine, other = bucket(100_000, 3600), bucket(200_000, 3600)
    watched = Watched(settings.LIMITS_URL)
    buckets = TokenBuckets(watched)
    left = [[level.left for level in buckets.spend([(mine, 1), (other, 3)])] for _ in range(500)]
    assert watched.asked < 100
    assert left[-1][0] == pytest.approx(99_500, abs=2)  # it refills meanwhile
    assert left[-1][1] == pytest.approx(198_500, abs=5)


def test_what_several_processes_take_ahead_never_makes_more_of_a_bucket() -> None:
    mine = bucket(1000, 36_000)
    processes = [TokenBuckets(Store(settings.LIMITS_URL)) for _ in range(4)]
    passed = sum(processes[n % 4].spend([(mine, 1)])[0].could_pay for n in range(1200))
    assert 1000 - 4 * 10 <= passed <= 1001


def test_what_was_taken_ahead_is_good_for_a_second() -> None:
    mine = bucket(100_000, 36_000)
    watched = Watched(settings.LIMITS_URL)
    buckets = TokenBuckets(watched)
    for _ in range(200):
        buckets.spend([(mine, 1)])
    time.sleep(1.1)
    before = watched.asked
    buckets.spend([(mine, 1)])
    assert watched.asked == before + 1


def test_a_redis_that_is_away_is_asked_once_a_second() -> None:
    asked = Store(AWAY)
    buckets = TokenBuckets(asked)
    with patch.object(asked, "_connected", wraps=asked._connected) as connected:
        start = time.monotonic()
        for _ in range(200):
            buckets.spend([(bucket(10, 60), 1)])
        assert time.monotonic() - start < 0.9
    assert connected.call_count == 1


def test_while_one_asks_a_redis_that_was_away_nobody_waits_with_it() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=16) as silent:
        asked = Store(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        buckets = TokenBuckets(asked)
        buckets.spend([(bucket(10, 60), 1)])
        time.sleep(COOL_DOWN_S)
        with patch.object(asked, "_connected", wraps=asked._connected) as connected, ThreadPoolExecutor(8) as pool:
            for each in [pool.submit(buckets.spend, [(bucket(10, 60), 1)]) for _ in range(8)]:
                each.result()
    assert connected.call_count == 1


def test_a_redis_that_is_back_is_asked_by_all() -> None:
    asked = Store(settings.LIMITS_URL)
    asked._note(redis.ConnectionError("away"))
    time.sleep(COOL_DOWN_S)
    with patch.object(asked, "_connected", wraps=asked._connected) as connected:
        for _ in range(3):
            TokenBuckets(asked).spend([(bucket(10, 60), 1)])
    assert connected.call_count == 3


# --- Over HTTP --------------------------------------------------------------------------------------------------


def test_every_answer_tells_what_is_left(api: Api) -> None:
    api = make_api("small", requests_per_minute=3000, recipients_per_day=1_000_000)
    for path, status in (("/v1/users", 200), ("/v1/users/nobody", 404), ("/v1/users?x=1", 422)):
        answer = api.get(path)
        assert answer.status_code == status
        assert answer.headers["RateLimit-Policy"] == '"default";q=3000;w=60, "recipients";q=1000000;w=86400'
        assert re.fullmatch(r'"default";r=299\d;t=\d+', answer.headers["RateLimit"])
    assert "RateLimit" in make_api("narrow", scopes=[]).get("/v1/users").headers


def test_beyond_the_rate_a_client_waits(api: Api) -> None:
    api = make_api("small", requests_per_minute=3)
    assert [api.get("/v1/users").status_code for _ in range(3)] == [200] * 3
    answer = api.get("/v1/users")
    assert assert_problem(answer, 429, "rate-limited")["policy"] == "default"
    assert 1 <= int(answer.headers["Retry-After"]) <= 21
    assert answer.headers["RateLimit"].startswith('"default";r=0;')


def test_each_mode_has_its_own_limits(api: Api) -> None:
    live = make_api("small", requests_per_minute=1)
    test = make_api("small", Mode.TEST, requests_per_minute=1)
    assert live.get("/v1/users").status_code == 200
    assert test.get("/v1/users").status_code == 200
    assert_problem(live.get("/v1/users"), 429, "rate-limited")


def test_the_daily_quota_counts_recipients(api: Api) -> None:
    api = make_api("small", recipients_per_day=100)
    credential = credentials.get(api.app_key)
    assert credential is not None
    allowance = credential.caller.spend(requests=1, recipients=60)
    assert '"recipients";r=40;' in allowance.headers["RateLimit"]
    with pytest.raises(Problem) as caught:
        credential.caller.spend(requests=1, recipients=60)
    assert (caught.value.code, caught.value.members) == ("quota-exceeded", {"policy": "recipients"})
    # 20 more are needed, and 100 flow back in a day.
    assert 86400 / 5 - 10 < int(caught.value.headers["Retry-After"]) < 86400 / 5 + 10


def test_without_redis_each_process_counts_for_itself(api: Api) -> None:
    api = make_api("small", requests_per_minute=2)
    local = TokenBuckets(Store(AWAY))
    with patch("apps.clients.services.token_buckets", lambda: local):
        assert [api.get("/v1/users").status_code for _ in range(3)] == [200, 200, 429]


def test_an_address_that_guesses_is_slowed_down_without_locking_the_owner_out(api: Api) -> None:
    guesser = Api(api.client, api.app_key, "as_wrong")
    answers = [guesser.get("/v1/users", REMOTE_ADDR="203.0.113.9") for _ in range(25)]
    assert [answer.status_code for answer in answers[:20]] == [401] * 20
    assert assert_problem(answers[-1], 429, "rate-limited")["policy"] == "failures"
    assert int(answers[-1].headers["Retry-After"]) >= 1
    assert guesser.get("/v1/users", REMOTE_ADDR="203.0.113.10").status_code == 401
    assert api.get("/v1/users", REMOTE_ADDR="203.0.113.9").status_code == 200


# --- A token that all processes share ---------------------------------------------------------------------------


def test_the_first_token_published_is_the_one_that_all_use() -> None:
    name, now = str(uuid4()), time.time()
    first, second = (TokenExchange(Store(settings.LIMITS_URL)) for _ in range(2))
    assert first.exchange_token(name, "", now, "bearer a") == (now, "bearer a")
    assert second.exchange_token(name, "", now + 5, "bearer b") == (now, "bearer a")
    assert second.exchange_token(name, "bearer a", now + 5, "bearer b") == (now + 5, "bearer b")
    assert first.exchange_token(name, "bearer a", now + 9, "bearer c") == (now + 5, "bearer b")


def test_a_token_is_shared_for_an_hour_at_most() -> None:
    name, now = str(uuid4()), time.time()
    exchange = TokenExchange(Store(settings.LIMITS_URL))
    assert exchange.exchange_token(name, "", now - 3598.5, "bearer old") == (now - 3598.5, "bearer old")
    time.sleep(2.1)
    assert exchange.exchange_token(name, "", now, "bearer new") == (now, "bearer new")
    assert exchange.exchange_token(name, "bearer new", now - 4000, "bearer dead") == (now - 4000, "bearer dead")
    assert exchange.exchange_token(name, "", now, "bearer x") == (now, "bearer new")


def test_without_redis_a_process_keeps_its_own_token() -> None:
    assert TokenExchange(Store(AWAY)).exchange_token("n", "", 1.5 + time.time(), "bearer a")[1] == "bearer a"
