"""/metrics: who may ask, what the processes counted, what the rows say; and what it costs."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from apps.console import gauges, metrics
from apps.console.environment import markdown
from apps.console.supervisor import ROOT
from apps.notifications import invariants, upkeep
from apps.notifications.heartbeats import beat
from apps.notifications.invariants import COUNTED_TO, Bookkeeper, check_invariants
from apps.notifications.ledger import PostgresLedger
from apps.notifications.models import Delivery, Hold, Notification, Pending, Tally
from apps.notifications.services import holds, receipts
from notifier.ledger import Result, Verdict
from notifier.lifecycle import State
from notifier.message import Channel
from notifier.outcome import Kind, Outcome, Receipt, ReceiptKind
from tests.apps.console.conftest import Lines
from tests.apps.notifications.world import World, deliveries, run

TOKEN = {"HTTP_AUTHORIZATION": "Bearer test-metrics-token"}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape() -> Samples:
    answer = Client().get("/metrics", **TOKEN)  # type: ignore[arg-type]
    assert answer.status_code == 200
    return parsed(answer.content.decode())


def value(samples: Samples, metric: str, /, **labels: str) -> float | None:
    return samples.get((metric, frozenset(labels.items())))


@pytest.fixture(autouse=True)
def _new_books(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another test's database held is none of this one's."""
    monkeypatch.setattr(invariants, "_keeper", Bookkeeper())


# --- who may ask ----------------------------------------------------------------------------------------------

PUBLIC, PRIVATE, LOOPBACK = "https://notify.example.com", "http://10.1.2.3:8000", "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("public_url", "token", "request_", "status"),
    [
        (PUBLIC, "t0ken", {"HTTP_AUTHORIZATION": "Bearer t0ken"}, 200),
        (PUBLIC, "t0ken", {"HTTP_AUTHORIZATION": "bearer t0ken"}, 200),
        (PUBLIC, "t0ken", {}, 401),
        (PUBLIC, "t0ken", {"HTTP_AUTHORIZATION": "Basic t0ken"}, 401),
        (PUBLIC, "t0ken", {"HTTP_AUTHORIZATION": "Bearer wrong"}, 403),
        (PUBLIC, "t0ken", {"HTTP_AUTHORIZATION": "Bearer"}, 403),
        (PUBLIC, "t0ken", {"HTTP_AUTHORIZATION": "Bearer t\u00f8ken"}, 403),
        (PUBLIC, "", {"HTTP_AUTHORIZATION": "Bearer "}, 403),
        (PUBLIC, "", {}, 403),
        (LOOPBACK, "", {}, 200),
        (LOOPBACK, "t0ken", {}, 200),
        (LOOPBACK, "t0ken", {"HTTP_AUTHORIZATION": "Bearer wrong"}, 403),
        (LOOPBACK, "", {"REMOTE_ADDR": "8.8.8.8"}, 403),
        (LOOPBACK, "", {"REMOTE_ADDR": ""}, 403),
        (LOOPBACK, "", {"HTTP_X_FORWARDED_FOR": "127.0.0.1"}, 403),
        (LOOPBACK, "", {"HTTP_FORWARDED": "for=127.0.0.1"}, 403),
        (PRIVATE, "", {"REMOTE_ADDR": "10.9.9.9"}, 200),
        (PRIVATE, "", {"REMOTE_ADDR": "8.8.8.8"}, 403),
        ("http://notify.internal", "", {}, 403),
        ("http://[::1]:8000", "", {"REMOTE_ADDR": "::1"}, 200),
    ],
)
def test_it_answers_with_the_token_or_where_nobody_from_outside_can_ask(
    db: None, settings: Any, public_url: str, token: str, request_: dict[str, str], status: int
) -> None:
    settings.PUBLIC_URL, settings.METRICS_TOKEN = public_url, token
    answer = Client().get("/metrics", **request_)  # type: ignore[arg-type]
    assert answer.status_code == status
    assert answer["Cache-Control"] == "no-store"
    assert ("WWW-Authenticate" in answer) == (status == 401)
    if status != 200:
        assert b"notifier_" not in answer.content


def test_it_can_only_be_read(db: None) -> None:
    assert Client().post("/metrics", **TOKEN).status_code == 405  # type: ignore[arg-type]


def test_the_page_is_what_prometheus_parses(db: None) -> None:
    answer = Client().get("/metrics", **TOKEN)  # type: ignore[arg-type]
    assert answer["Content-Type"].startswith("text/plain; version=0.0.4")
    names = [family.name for family in text_string_to_metric_families(answer.content.decode())]
    assert len(names) == len(set(names))


# --- what the processes counted -------------------------------------------------------------------------------

COUNTING = """
import sys, time
from prometheus_client import Counter, Gauge, Histogram
Counter("notifier_test", "T.", ["of"]).labels("a").inc(float(sys.argv[1]))
Gauge("notifier_test_now", "T.", ["of"], multiprocess_mode="liveall").labels("a").set(7)
Histogram("notifier_test_seconds", "T.", buckets=(1, 2)).observe(1.5)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def directory(settings: Any, tmp_path: Path) -> Path:
    settings.METRICS_DIR = str(tmp_path)
    return tmp_path


def counting(directory: Path, number: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", COUNTING, str(number)],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(directory)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_what_several_processes_counted_is_added_up(directory: Path) -> None:
    one, two = counting(directory, 2), counting(directory, 3)
    try:
        samples = parsed(metrics.counted().decode())
    finally:
        for process in (one, two):
            process.kill()
            process.communicate()
    assert value(samples, "notifier_test_total", of="a") == 5
    assert value(samples, "notifier_test_seconds_count") == 2
    assert value(samples, "notifier_test_now", of="a", pid=str(one.pid)) == 7
    assert value(samples, "notifier_test_now", of="a", pid=str(two.pid)) == 7


def test_a_total_never_falls_though_processes_die_and_their_files_go(directory: Path) -> None:
    for expected in (2, 4, 6):
        process = counting(directory, 2)
        process.kill()
        process.communicate()
        for _ in range(2):
            samples = parsed(metrics.counted().decode())
            assert value(samples, "notifier_test_total", of="a") == expected
            assert value(samples, "notifier_test_seconds_sum") == 1.5 * expected / 2
            assert value(samples, "notifier_test_seconds_bucket", le="1.0") == 0
            assert value(samples, "notifier_test_seconds_bucket", le="2.0") == expected / 2
        assert not any(name == "notifier_test_now" for name, _ in samples)
    assert sorted(path.name for path in directory.iterdir()) == ["counter_folded.db", "histogram_folded.db", "lock"]


def test_what_the_dead_left_is_folded_where_nobody_scrapes(directory: Path) -> None:
    process = counting(directory, 2)
    process.kill()
    process.communicate()
    metrics.tidy()
    assert not list(directory.glob(f"*_{process.pid}.db"))
    assert value(parsed(metrics.counted().decode()), "notifier_test_total", of="a") == 2


@pytest.mark.parametrize("look", [metrics.tidy, metrics.counted])
def test_a_directory_that_was_cleared_away_is_made_again(directory: Path, look: Callable[[], object]) -> None:
    directory.rmdir()
    assert not look()
    assert directory.is_dir()


@pytest.mark.parametrize("content", [b"", b"\x00" * 8, b"\xff" * 4096, b"\x40\0\0\0\0\0\0\0\xff\xff\xff\x7f"])
def test_what_a_process_left_half_made_stops_no_scrape(directory: Path, content: bytes) -> None:
    process = counting(directory, 2)
    process.kill()
    process.communicate()
    (directory / "counter_4194304.db").write_bytes(content)  # above every pid
    for _ in range(2):
        assert value(parsed(metrics.counted().decode()), "notifier_test_total", of="a") == 2
    assert not (directory / "counter_4194304.db").exists()


def growth(before: Samples, after: Samples, metric: str, /, **labels: str) -> float:
    return (value(after, metric, **labels) or 0) - (value(before, metric, **labels) or 0)


def test_requests_are_counted_and_timed_by_route(world: World) -> None:
    route = {"route": "/v1/users/<str:user_id>", "method": "GET"}
    before = scrape()
    for user in ("ada", "bob", "nobody"):
        world.api.get(f"/v1/users/{user}")
    after = scrape()
    assert growth(before, after, "notifier_http_requests_total", **route, status="200") == 2
    assert growth(before, after, "notifier_http_requests_total", **route, status="404") == 1
    assert growth(before, after, "notifier_http_request_seconds_count", **route) == 3
    assert not any("bob" in str(labels) for _, labels in after)


def test_a_made_up_method_or_path_makes_no_series_of_its_own(db: None) -> None:
    before = scrape()
    Client().generic("BREW", "/coffee/7")
    Client().get("/coffee/8")
    after = scrape()
    assert growth(before, after, "notifier_http_requests_total", route="unmatched", method="other", status="404") == 1
    assert growth(before, after, "notifier_http_requests_total", route="unmatched", method="GET", status="404") == 1
    assert not any("coffee" in str(labels) or "BREW" in str(labels) for _, labels in after)


def test_what_is_accepted_is_counted_once_and_its_repeats_as_duplicates(world: World) -> None:
    before = scrape()
    key = {"Idempotency-Key": "k-1"}
    body = {"template": "shipped", "data": {"order": "A-1"}, "to": [{"user_id": "ada"}], "event_id": "e-1"}
    assert world.api.post("/v1/notifications", body, headers=key).status_code == 202
    assert world.api.post("/v1/notifications", body, headers=key).status_code == 202
    assert world.api.post("/v1/notifications", body).status_code == 200
    assert world.api.post("/v1/notifications", body | {"template": "nope"}).status_code >= 400
    after = scrape()
    assert growth(before, after, "notifier_notifications_accepted_total", mode="live", lane="normal") == 1
    assert growth(before, after, "notifier_notifications_duplicate_total", by="idempotency_key") == 1
    assert growth(before, after, "notifier_notifications_duplicate_total", by="event_id") == 1


def test_a_batch_counts_its_items(world: World) -> None:
    before = scrape()
    item = {"template": "shipped", "data": {"order": "A-1"}, "to": [{"user_id": "ada"}]}
    items = [item | {"event_id": "e-1"}, item | {"event_id": "e-2"}, item | {"event_id": "e-1"}, item]
    for key in ("b-1", "b-2", "b-2"):
        answer = world.api.post("/v1/notifications/batch", {"items": items}, headers={"Idempotency-Key": key})
        assert answer.status_code == 202, answer.content
    after = scrape()
    assert growth(before, after, "notifier_notifications_accepted_total", mode="live", lane="normal") == 2
    assert growth(before, after, "notifier_notifications_duplicate_total", by="event_id") == 1 + 3
    assert growth(before, after, "notifier_notifications_duplicate_total", by="idempotency_key") == 1


def claimed_of(notification: str, ledger: PostgresLedger) -> list[Any]:
    return ledger.claim([d.id for d in deliveries(notification)], lease_s=60)


def test_results_are_counted_by_account_and_outcome_and_the_late_ones_apart(world: World) -> None:
    account = "mail-main"
    ledger = PostgresLedger()
    [found] = [a for a in ledger.accounts() if a.name == account]
    claims = claimed_of(world.send("ada", "bob", channels=["email"]).json()["id"], ledger)
    sent = [
        Result(c, Verdict(State.SENT), Outcome(Kind.ACCEPTED), found.id, started_at=1000.0, ended_at=1000.2)
        for c in claims
    ]
    before = scrape()
    ledger.record(sent)
    ledger.record(sent[:1])  # its row is gone: nothing of it counts again
    after = scrape()
    name = "notifier_results_recorded_total"
    assert growth(before, after, name, channel="email", account=account, outcome="accepted") == 2
    assert value(after, name, channel="email", account=account, outcome="misconfigured") is not None  # from the start
    assert growth(before, after, "notifier_results_late_total", channel="email") == 1
    assert growth(before, after, "notifier_provider_seconds_count", account=account) == 2
    assert growth(before, after, "notifier_provider_seconds_bucket", account=account, le="0.1") == 0
    assert growth(before, after, "notifier_provider_seconds_bucket", account=account, le="0.25") == 2


def test_what_a_gate_stopped_counts_as_not_sent(world: World) -> None:
    ledger = PostgresLedger()
    [claim] = claimed_of(world.send("bob", channels=["email"]).json()["id"], ledger)
    before = scrape()
    ledger.record([Result(claim, Verdict(State.SUPPRESSED, "opted_out"))])
    after = scrape()
    name = "notifier_results_recorded_total"
    assert growth(before, after, name, channel="email", account="", outcome="not_sent") == 1


# --- what the rows say ----------------------------------------------------------------------------------------


def queue(samples: Samples, name: str) -> tuple[float | None, float | None]:
    return (
        value(samples, "notifier_queue_depth", queue=name),
        value(samples, "notifier_queue_oldest_seconds", queue=name),
    )


def test_depth_and_age_are_those_of_the_queue(world: World) -> None:
    assert queue(scrape(), "email.normal") == (0, 0)
    world.send("ada", "bob", channels=["email"])
    run("UPDATE notifications_pending SET due_at = now() - interval '70 seconds' WHERE channel = 'email'")
    world.send("ada", channels=["email"])
    depth, age = queue(scrape(), "email.normal")
    assert depth == 3
    assert age is not None and 70 <= age < 130
    assert queue(scrape(), "email.bulk") == (0, 0)


def test_a_row_that_was_rung_again_keeps_its_age(world: World) -> None:
    world.send("bob", channels=["email"])
    run("UPDATE notifications_pending SET due_at = now() - interval '70 s', wake_at = now() + interval '10 s'")
    _, age = queue(scrape(), "email.normal")
    assert age is not None and 70 <= age < 130


@pytest.mark.parametrize(
    "change",
    [
        "due_at = now() + interval '1 hour'",
        "due_at = now() - interval '1 hour', waiting = 'channel_paused'",
        "due_at = now() - interval '1 hour', waiting = 'provider_paused'",
    ],
)
def test_what_is_due_later_or_paused_does_not_age(world: World, change: str) -> None:
    world.send("bob", channels=["email"])
    run(f"UPDATE notifications_pending SET {change}")
    assert queue(scrape(), "email.normal") == (1, 0)


def test_the_age_of_a_small_client_is_seen_behind_a_large_one(world: World) -> None:
    backlog(3000, client=1)
    backlog(1, client=2, due="now() - interval '5 minutes'", wake="now() + interval '5 seconds'")
    _, age = queue(scrape(), "push.bulk")
    assert age is not None and 300 <= age < 360


def test_the_books_follow_a_delivery_to_its_end(world: World) -> None:
    labels = {"channel": "email", "mode": "live"}
    ledger = PostgresLedger()
    id = world.send("ada", "bob", channels=["email"]).json()["id"]

    def books() -> tuple[float | None, ...]:
        samples = scrape()
        return (
            value(samples, "notifier_deliveries_accepted_total", **labels),
            value(samples, "notifier_deliveries_in_flight", **labels),
            value(samples, "notifier_deliveries_ended", **labels),
            value(samples, "notifier_deliveries_reached_total", **labels, state="sent"),
            value(samples, "notifier_invariant_violation", channel="email"),
        )

    assert books() == (2, 2, 0, 0, 0)
    first, second = claimed_of(id, ledger)
    ledger.record([Result(first, Verdict(State.RETRYING, retry_in_s=60.0, is_counted=True), Outcome(Kind.UNAVAILABLE))])
    assert books() == (2, 2, 0, 0, 0)
    ledger.record([Result(second, Verdict(State.SENT), Outcome(Kind.ACCEPTED))])
    assert books() == (2, 1, 1, 1, 0)
    holds.cancel_notification(UUID(id), client_id=world.api.client.pk, mode="live", by="test")
    assert books() == (2, 0, 2, 1, 0)


def test_one_who_is_skipped_is_accepted_and_ended_at_once(world: World) -> None:
    world.send("eve", channels=["email"])  # has no address
    samples = scrape()
    labels = {"channel": "email", "mode": "live"}
    assert value(samples, "notifier_deliveries_accepted_total", **labels) == 1
    assert value(samples, "notifier_deliveries_ended", **labels) == 1
    assert value(samples, "notifier_invariant_violation", channel="email") == 0


@pytest.mark.parametrize(
    ("fault", "violation"),
    [
        ("DELETE FROM notifications_pending", 2),
        ("INSERT INTO notifications_pending SELECT gen_random_uuid(), channel, lane, client_id, wake_at, due_at, "
         "lease_until, waiting, claim_no, tries, crashes FROM notifications_pending LIMIT 1", -1),
        ("DELETE FROM notifications_tally", -2),
    ],
)  # fmt: skip
def test_books_that_do_not_balance_show(world: World, fault: str, violation: int) -> None:
    world.send("ada", "bob", channels=["email"])
    run(fault)
    assert value(scrape(), "notifier_invariant_violation", channel="email") == violation


def test_a_queue_too_deep_to_count_says_so_and_its_books_are_not_compared(world: World) -> None:
    backlog(COUNTED_TO + 500)
    samples = scrape()
    assert queue(samples, "push.bulk")[0] == COUNTED_TO
    assert value(samples, "notifier_invariant_violation", channel="push") is None
    assert value(samples, "notifier_invariant_violation", channel="sms") == 0


def test_each_state_has_a_series_before_its_first_delivery(db: None) -> None:
    samples = scrape()
    for state in State:
        assert value(samples, "notifier_deliveries_reached_total", channel="sms", mode="live", state=state) == 0
    for channel in Channel:
        assert value(samples, "notifier_leases_expired_total", channel=channel) is not None


def test_closed_hours_are_summed_once_and_stay_in_the_sum(world: World) -> None:
    keeper = Bookkeeper()
    for hours, n in ((30, 5), (3, 7), (1, 11), (0, 13)):
        tally(hours, n)
    assert keeper.read().accepted()["push", "live"] == 36
    tally(0, 1)
    with CaptureQueriesContext(
        connection,
    ) as asked:
        assert keeper.read().accepted()["push", "live"] == 37
    assert not any("hour <" in query["sql"] for query in asked.captured_queries)
    keeper._closed_until = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=20)
    keeper._closed = type(keeper._closed)({("push", "live", "", "queued"): 5})  # as it was twenty hours ago
    assert keeper.read().accepted()["push", "live"] == 37


def test_folding_tallies_keeps_every_sum(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "PAGE", 40)
    for number in range(200):
        tally(0, 1, client=number % 3)
    tally(upkeep.FOLDED_H + 1, 4)
    before = Bookkeeper().read().moves
    upkeep.compact_tallies()
    assert Bookkeeper().read().moves == before
    assert Tally.objects.count() <= 3 * 6 + 1  # at most each client once in each of the six pages
    upkeep.compact_tallies()
    assert Tally.objects.count() == 3 + 1


def test_heartbeats_are_told_by_what_they_show(db: None) -> None:
    for name, kind, age_s in (
        ("push.bulk", "queue", 5),
        ("relay@a:1", "relay", 3600),
        ("relay@b:2", "relay", 3),
        ("beat", "beat", 9),
    ):
        beat(name, kind)
        run("UPDATE notifications_heartbeat SET at = now() - %s * interval '1 second' WHERE name = %s", age_s, name)
    samples = scrape()
    for kind, name, age in (("queue", "push.bulk", 5), ("relay", "relay", 3), ("beat", "beat", 9)):
        found = value(samples, "notifier_heartbeat_age_seconds", kind=kind, name=name)
        assert found is not None and age <= found < age + 60
    assert not any("relay@" in str(labels) for _, labels in samples)


def test_what_waits_elsewhere_is_told(world: World) -> None:
    account = run("SELECT id FROM providers_provideraccount LIMIT 1")[0][0]
    receipts.keep(account, [Receipt("e-1", ReceiptKind.DELIVERED)])
    run("UPDATE notifications_receiptinbox SET wake_at = now() - interval '40 seconds'")
    run("INSERT INTO notifications_expansion (id, client_id, due_at, wake_at, position) VALUES "
        "(gen_random_uuid(), 1, now() - interval '50 seconds', now() + interval '20 seconds', 0), "
        "(gen_random_uuid(), 1, now() + interval '1 hour', now() + interval '1 hour', 0)")  # fmt: skip
    Hold.objects.create(scope="channel", subject="sms", action="pause")
    samples = scrape()
    assert 40 <= (value(samples, "notifier_receipts_oldest_seconds") or 0) < 100
    assert 50 <= (value(samples, "notifier_expansions_oldest_seconds") or 0) < 110
    assert value(samples, "notifier_holds") == 1
    assert (value(samples, "notifier_partition_days_ahead") or 0) > 7


@pytest.mark.parametrize(
    ("change", "is_up"),
    [
        ("is_up = true, checked_at = now()", 1),
        ("is_up = false, checked_at = now()", 0),
        ("is_up = true, checked_at = now() - interval '1 minute'", 0),
    ],
)
def test_the_broker_is_up_while_the_relay_says_so(db: None, change: str, is_up: int) -> None:
    run(f"UPDATE notifications_brokerhealth SET {change}")
    assert value(scrape(), "notifier_broker_up") == is_up


@pytest.fixture
def broker(settings: Any) -> Iterator[Any]:
    gauges._broker.cache_clear()
    yield settings
    gauges._broker.cache_clear()


def test_the_brokers_queues_are_counted(db: None, broker: Any) -> None:
    gauges._broker().delete("callbacks")
    gauges._broker().lpush("callbacks", "a", "b")
    try:
        assert value(scrape(), "notifier_broker_queue_length", queue="callbacks") == 2
    finally:
        gauges._broker().delete("callbacks")


@pytest.mark.parametrize("is_listening", [False, True], ids=["refused", "frozen"])
def test_a_broker_that_is_away_costs_a_moment_and_its_own_figures_only(
    db: None, broker: Any, is_listening: bool
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if is_listening:
            silent.listen()
        broker.BROKER_REDIS_URL = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        began = time.monotonic()
        samples = scrape()
        assert time.monotonic() - began < 3
    assert not any(name == "notifier_broker_queue_length" for name, _ in samples)
    assert value(samples, "notifier_database_up") == 1


@pytest.mark.django_db(transaction=True)
def test_without_the_database_it_says_so_and_the_counters_are_there() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    other = connection.copy("other")
    with other.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", [pid])
    other.close()
    samples = scrape()
    assert value(samples, "notifier_database_up") == 0
    assert not any(name.startswith("notifier_deliveries") for name, _ in samples)
    assert any(name == "notifier_http_requests_total" for name, _ in samples)
    assert value(scrape(), "notifier_database_up") == 1


# --- what it costs --------------------------------------------------------------------------------------------


def backlog(
    rows: int, *, channel: str = "push", lane: str = "bulk", client: int = 1, due: str = "now()", wake: str = "now()"
) -> None:
    run(
        "INSERT INTO notifications_pending "
        "(id, channel, lane, client_id, wake_at, due_at, waiting, claim_no, tries, crashes) "
        f"SELECT gen_random_uuid(), %s, %s, %s, {wake} - g * interval '1 us', {due}, '', 0, 0, 0 "
        "FROM generate_series(1, %s) g",
        channel, lane, client, rows,
    )  # fmt: skip


def tally(hours_ago: int, n: int, *, client: int = 1) -> None:
    run(
        "INSERT INTO notifications_tally (hour, client_id, mode, channel, lane, category_id, from_state, to_state, n) "
        "VALUES (date_trunc('hour', now()) - %s * interval '1 hour', %s, 'live', 'push', 'bulk', 1, '', 'queued', %s)",
        hours_ago, client, n,
    )  # fmt: skip


def buffers() -> tuple[int, str]:
    """Pages that reading the books touches, and the plan."""
    keeper = Bookkeeper()
    keeper.read()
    with connection.cursor() as cursor:
        cursor.execute(invariants.ALONG_THE_INDEX)
        cursor.execute("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + invariants._BOOKS, keeper._values())
        [[plan]] = cursor.fetchall()
    plan = json.loads(plan) if isinstance(plan, str) else plan
    top = plan[0]["Plan"]
    return top["Shared Hit Blocks"] + top["Shared Read Blocks"], json.dumps(plan)


def test_reading_the_books_costs_the_same_beside_a_small_and_a_large_backlog(world: World) -> None:
    for client in range(1, 11):
        backlog(500, client=client)
    backlog(3000, client=11)
    run("ANALYZE notifications_pending")
    small, _ = buffers()
    backlog(60_000, client=11)
    run("ANALYZE notifications_pending")
    large, plan = buffers()
    assert large <= small * 1.5
    scans = re.findall(
        r'"Node Type": "(\w+ Scan|Index Only Scan|Bitmap Heap Scan)", [^{}]*?"Relation Name": "(\w+)"', plan
    )
    assert not [
        kind for kind, table in scans if table == "notifications_pending" and kind in ("Seq Scan", "Bitmap Heap Scan")
    ]


def test_a_scrape_asks_the_database_the_same_few_questions_whatever_waits(world: World) -> None:
    scrape()
    with CaptureQueriesContext(connection) as small:
        scrape()
    backlog(5000)
    world.send("ada", "bob")
    with CaptureQueriesContext(connection) as large:
        scrape()
    assert len(large) == len(small) <= 15


# --- the daily check ------------------------------------------------------------------------------------------


def test_the_daily_check_finds_nothing_where_all_is_well(world: World, lines: Lines) -> None:
    ledger = PostgresLedger()
    for claim in claimed_of(world.send("ada", "bob").json()["id"], ledger)[:1]:
        ledger.record([Result(claim, Verdict(State.SENT), Outcome(Kind.ACCEPTED))])
    world.send("eve")
    assert check_invariants(datetime.now(UTC)) == {"open_without_pending": 0, "pending_without_open": 0}
    assert not [line for line in lines() if line["level"] == "error"]


def test_the_daily_check_names_an_open_delivery_that_nobody_would_send(world: World, lines: Lines) -> None:
    id = world.send("ada", "bob", channels=["email"]).json()["id"]
    lost = deliveries(id)[0].id
    Pending.objects.filter(id=lost).delete()
    before = scrape()
    assert check_invariants(datetime.now(UTC))["open_without_pending"] == 1
    [line] = [line for line in lines() if line["event"] == "invariant_violated"]
    assert (line["level"], line["kind"], line["rows"], line["ids"]) == ("error", "open_without_pending", 1, [str(lost)])
    assert growth(before, scrape(), "notifier_orphans_found_total", kind="open_without_pending") == 1


def test_the_daily_check_names_what_would_be_sent_though_it_has_ended(world: World, lines: Lines) -> None:
    id = world.send("ada", "bob", channels=["email"]).json()["id"]
    ended = deliveries(id)[1].id
    Delivery.objects.filter(id=ended).update(state="sent")
    assert check_invariants(datetime.now(UTC)) == {"open_without_pending": 0, "pending_without_open": 1}
    [line] = [line for line in lines() if line["event"] == "invariant_violated"]
    assert line["ids"] == [str(ended)]


def test_the_daily_check_looks_at_the_day_that_is_over(world: World) -> None:
    world.send("ada", "bob", channels=["email"])
    run("DELETE FROM notifications_pending")
    assert Notification.objects.count() == 1
    assert not any(check_invariants().values())  # what was accepted today is tomorrow's
    assert upkeep.JOBS["check_invariants"] is upkeep.check_invariants


# --- what is written about it ---------------------------------------------------------------------------------

ALERTS = yaml.safe_load((ROOT / "deploy" / "prometheus-alerts.yml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
DOCUMENTED = set(re.findall(r"^\| `(notifier_\w+)` \|", OPERATIONS, re.MULTILINE))


def exported() -> set[str]:
    """Every metric's name as Prometheus stores it: those of the database, and those of the processes."""
    page = Client().get("/metrics", **TOKEN).content.decode()  # type: ignore[arg-type]
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", page, re.MULTILINE))
    for collector in REGISTRY._collector_to_names:
        for family in collector.describe() if hasattr(collector, "describe") else ():
            kinds[family.name + ("_total" if family.type == "counter" else "")] = family.type
    return {name for name in kinds if name.startswith("notifier_") and not name.startswith("notifier_test")}


def test_every_metric_is_documented_and_nothing_else(world: World) -> None:
    world.send("bob")
    assert exported() == DOCUMENTED


def test_every_alert_is_about_metrics_that_are_there_and_says_what_is_wrong() -> None:
    for rule in RULES:
        named = set(re.findall(r"notifier_\w+", rule["expr"]))
        assert {re.sub(r"_bucket$", "", name) for name in named} <= DOCUMENTED, rule["alert"]
        assert named or rule["alert"] == "NotifierDown"
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]


def test_every_alert_is_documented_with_what_to_do() -> None:
    names = {rule["alert"] for rule in RULES}
    assert set(re.findall(r"Notifier[A-Z]\w+", OPERATIONS.partition("## What to do")[0])) == names
    assert set(re.findall(r"Notifier[A-Z]\w+", OPERATIONS.partition("## What to do")[2])) == names


def test_the_table_of_variables_is_the_codes() -> None:
    assert OPERATIONS.endswith("\n\n" + markdown()), "paste the output of `manage.py environment`"
