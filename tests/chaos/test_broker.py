"""T2: the broker may forget everything, die, be full, or fall silent. It only ever carried hints."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Iterable

from redis import Redis

from apps.console.servers import Servers, Valkey
from tests.acceptance.stack import Stack
from tests.chaos.form import SEED, SHORT, sized
from tests.chaos.load import Answer, Load, People
from tests.chaos.oracle import assert_books_balance, judge, wait_ended
from tests.chaos.report import Report

FLUSHES = sized(3, 2)
RESTARTS = sized(9, 3)
FULL_S = sized(10.0, 4.0)
FROZEN_S = sized(30.0, 8.0)
NOTIFICATIONS = sized(10_000, 500)
RATE = sized(80.0, 40.0)
QUIET_S = 4.0
BROKER_COSTS_S = 1.1  # what the broker may cost a request: a second, once
# More than in quiet by so much is no waiting for the broker: the machine's disk stalls by itself. (The limits, on the
# same Redis here, cost one request of each process 0.2 s a second.)
NOISE_S = {0.5: sized(0.1, 0.5), 0.9: 0.1}
ITEMS_PER_REQUEST = 1.6  # of the usual mix


def test_a_broker_that_forgets_dies_is_full_or_falls_silent_costs_nothing_but_time(
    stack: Stack, own_servers: Servers, people: People, report: Report
) -> None:
    broker = own_servers.broker
    assert broker is not None
    dice = random.Random(SEED)
    load = Load(stack, people, SEED, rate=RATE).start()
    time.sleep(QUIET_S)
    first_blow = time.monotonic()
    blows = ["flush"] * FLUSHES + ["restart"] * RESTARTS + ["full"]
    dice.shuffle(blows)
    refused = 0
    for number, blow in enumerate(blows):
        if blow == "flush":
            with Redis(unix_socket_path=str(broker.socket)) as client:
                client.flushall()
        elif blow == "full":
            refused = fill(broker)
        else:
            kill_and_start(broker, forgets=number % 2 == 0)
        time.sleep(dice.uniform(1.0, sized(5.0, 2.0)))
    frozen_at = time.monotonic()
    assert broker.process is not None
    broker.process.send_signal(signal.SIGSTOP)
    time.sleep(FROZEN_S)
    thawed_at = time.monotonic()
    broker.process.send_signal(signal.SIGCONT)
    deadline = time.monotonic() + 300
    while len(load.accepted) < NOTIFICATIONS:
        assert time.monotonic() < deadline, f"only {len(load.accepted)} accepted"
        time.sleep(0.2)
    load.stop()
    load.finish()
    ended_after_s = wait_ended(stack, 120)

    verdict = judge(stack, load.accepted)
    quiet = times(answer for answer in load.answers if answer.began + answer.took_s < first_blow)
    in_the_freeze = [answer for answer in load.since(frozen_at) if answer.began < thawed_at]
    frozen = times(in_the_freeze)
    # Once each web process has met the silence, and knows it.
    known = times(answer for answer in in_the_freeze if answer.began > frozen_at + BROKER_COSTS_S)
    report.add(
        "T2 broker",
        accepted=verdict.accepted,
        flushed=FLUSHES,
        killed=RESTARTS,
        full_s=FULL_S,
        writes_refused=refused,
        frozen_s=FROZEN_S,
        lost=len(verdict.lost),
        sent_twice=verdict.duplicates,
        answers=load.statuses,
        p50_quiet_s=share(quiet, 0.5),
        p90_quiet_s=share(quiet, 0.9),
        slowest_quiet_s=quiet[-1],
        p50_frozen_s=share(known, 0.5),
        p90_frozen_s=share(known, 0.9),
        p99_frozen_s=share(frozen, 0.99),
        slowest_frozen_s=frozen[-1],
        slowest_s=times(load.answers)[-1],
        ended_after_s=ended_after_s,
    )
    assert (verdict.lost, verdict.duplicates, verdict.made_twice) == ([], 0, 0)
    assert set(verdict.states) <= {"sent", "delivered", "opened", "clicked"}
    assert set(load.statuses) == {202}, "the broker's trouble became the callers'"
    assert refused, "it was never too full for anybody"
    assert len(in_the_freeze) > FROZEN_S * RATE / ITEMS_PER_REQUEST / 4
    assert frozen[-1] < FROZEN_S / 2, "a request waited for the broker to speak"
    assert share(known, 0.5) < share(quiet, 0.5) + NOISE_S[0.5], "more than the first request waited"
    if not SHORT:  # figures want a quiet machine, which a check of every change has no right to expect
        assert share(frozen, 0.99) < BROKER_COSTS_S
        assert share(known, 0.9) < share(quiet, 0.9) + NOISE_S[0.9]
        # What the same machine takes when nothing is wrong is not the broker's.
        assert times(load.answers)[-1] < BROKER_COSTS_S + quiet[-1]
    assert_books_balance(stack)


def times(answers: Iterable[Answer]) -> list[float]:
    return sorted(answer.took_s for answer in answers)


def share(ordered: list[float], part: float) -> float:
    return ordered[int(part * len(ordered))]


def fill(broker: Valkey) -> int:
    """It takes no writes for a while, and still hands out what it has. Returns how often it said so."""
    with Redis(unix_socket_path=str(broker.socket)) as client:
        client.config_resetstat()
        client.config_set("maxmemory", "1")
        time.sleep(FULL_S)
        client.config_set("maxmemory", "0")
        return int(client.info("errorstats").get("errorstat_OOM", {}).get("count", 0))


def kill_and_start(broker: Valkey, *, forgets: bool) -> None:
    assert broker.process is not None
    broker.process.kill()
    broker.process.wait()
    if forgets:
        shutil.rmtree(broker.data)
    broker.start()
