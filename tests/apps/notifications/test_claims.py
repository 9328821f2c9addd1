"""Taking work and writing results: the lease, the fence, the gates at the last moment."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from apps.notifications import claims, records
from apps.notifications.ledger import PostgresLedger
from apps.notifications.models import Attempt, Delivery, Hold, Notification, Pending, Tally
from apps.notifications.services import holds
from apps.people import services as people
from apps.people.models import Address, Device
from notifier.ids import uuid7
from notifier.ledger import Claimed, Result, Verdict
from notifier.lifecycle import State
from notifier.outcome import Kind, Outcome
from notifier.stages.settle import judge
from tests.apps.notifications.world import World, deliveries, device, pending, person, run
from tests.apps.rest.callers import forget_callers


def take(ids: Sequence[UUID] | None = None, *, lease_s: float = 60, alone: bool = False) -> list[Claimed]:
    wanted = list(Pending.objects.values_list("id", flat=True)) if ids is None else list(ids)
    return claims.claim(wanted, lease_s=lease_s, alone=alone)


def result(claimed: Claimed, kind: Kind = Kind.ACCEPTED, **outcome: Any) -> Result:
    said = Outcome(kind, **outcome)
    now = time.time()
    return Result(claimed, judge(claimed, said), said, None, started_at=now - 0.1, ended_at=now)


@pytest.fixture
def email(world: World) -> Iterator[Claimed]:
    world.send("bob", channels=["email"])
    [claimed] = take()
    yield claimed


def test_a_claim_brings_all_that_sending_needs(world: World) -> None:
    device("bob", "sandbox-ok-bob")
    id = world.send({"user_id": "bob", "data": {"order": "B-2"}, "locale": "de"}, channels=["push"]).json()["id"]
    [claimed] = take()
    assert claimed.stop is None
    assert claimed.address is not None
    assert (claimed.address.value, claimed.address.platform, claimed.address.is_sandbox) == (
        "sandbox-ok-bob", "android", True,
    )  # fmt: skip
    assert claimed.data == {"order": "B-2"}
    assert (claimed.locale, claimed.claim_no, str(claimed.notification_id)) == ("de", 1, id)
    assert claimed.device_provider


def test_a_claimed_delivery_cannot_be_claimed_again(email: Claimed) -> None:
    assert take() == []
    [row] = Pending.objects.all()
    assert row.lease_until is not None
    assert row.wake_at == row.lease_until


def test_a_lease_that_is_over_is_not_taken_by_a_claim_because_the_relay_owns_it(email: Claimed) -> None:
    run("UPDATE notifications_pending SET lease_until = now() - interval '1 minute'")
    assert take() == []


def test_what_is_not_due_is_not_claimed(world: World) -> None:
    world.send("bob", channels=["email"], send_at=(timezone.now() + timedelta(seconds=30)).isoformat())
    assert take() == []


def test_an_accepted_result_ends_the_delivery_with_its_try(email: Claimed) -> None:
    assert records.write([result(email, provider_ref="ref-1", http_status=202)]) == {email.delivery_id}
    row = Delivery.objects.get(pk=email.delivery_id)
    assert (row.state, row.claim_no) == ("sent", 1)
    assert row.sent_at is not None and row.ended_at is not None
    assert not Pending.objects.exists()
    attempt = Attempt.objects.get()
    assert (attempt.delivery_id, attempt.outcome, attempt.provider_ref, attempt.is_late) == (
        email.delivery_id, "accepted", "ref-1", False,
    )  # fmt: skip


def test_a_result_written_twice_counts_once(email: Claimed) -> None:
    records.write([result(email)])
    assert records.write([result(email)]) == set()
    assert Attempt.objects.count() == 1
    assert sum(Tally.objects.filter(to_state="sent").values_list("n", flat=True)) == 1


def test_a_late_result_is_kept_as_a_try_and_moves_nothing(email: Claimed) -> None:
    run("UPDATE notifications_pending SET lease_until = NULL")
    [second] = take()
    assert second.claim_no == 2
    assert records.write([result(email, Kind.REJECTED)]) == set()
    assert Delivery.objects.get().state == "queued"
    assert Attempt.objects.get().is_late
    records.write([result(second)])
    assert Delivery.objects.get().state == "sent"


def test_a_failed_try_waits_on_the_retry_queue_and_counts(email: Claimed) -> None:
    records.write([result(email, Kind.UNAVAILABLE)])
    [row] = Pending.objects.all()
    assert (row.lane, row.tries, row.waiting, row.lease_until, row.claim_no) == ("retry", 1, "retry_backoff", None, 1)
    assert timedelta(seconds=2) < row.due_at - timezone.now() <= timedelta(seconds=5)
    assert Delivery.objects.get().state == "retrying"


def test_throttling_and_our_own_faults_burn_no_try(email: Claimed) -> None:
    records.write([result(email, Kind.THROTTLED, retry_after_s=7)])
    [row] = Pending.objects.all()
    assert (row.lane, row.tries, row.waiting) == ("normal", 0, "provider_throttled")
    assert Delivery.objects.get().state == "queued"


def test_a_retry_is_never_due_after_the_delivery_expires(world: World) -> None:
    soon = timezone.now() + timedelta(seconds=3)
    world.send("bob", channels=["email"], expires_at=soon.isoformat())
    [claimed] = take()
    records.write([result(claimed, Kind.THROTTLED, retry_after_s=3600)])
    assert Pending.objects.get().due_at == soon


def test_the_last_try_ends_dead(email: Claimed) -> None:
    records.write([result(replace(email, tries=11), Kind.UNAVAILABLE)])
    row = Delivery.objects.get()
    assert (row.state, row.reason) == ("dead", "attempts_exhausted")


def test_accepted_is_ended_plus_in_flight_by_the_tallies(world: World) -> None:
    world.send("ada", "bob", "nobody")
    claimed = [c for c in take() if c.stop is None]
    records.write([result(claimed[0]), result(claimed[1], Kind.UNAVAILABLE), result(claimed[2], Kind.REJECTED)])
    counts: dict[str, int] = {}
    for row in Tally.objects.all():
        counts[row.to_state] = counts.get(row.to_state, 0) + row.n
        counts[row.from_state] = counts.get(row.from_state, 0) - row.n
    accepted = -counts.pop("")
    stored: dict[str, int] = {}
    for state in Delivery.objects.values_list("state", flat=True):
        stored[state] = stored.get(state, 0) + 1
    assert {state: n for state, n in counts.items() if n} == stored
    assert accepted == Delivery.objects.count()
    assert stored["queued"] + stored["retrying"] == Pending.objects.count()


# --- the gates at the claim -------------------------------------------------------------------------------------


def opt_out() -> None:
    people.set_preferences("bob", choices={"orders": {"email": False}})


def opt_out_of_all() -> None:
    people.set_preferences("bob", everything=False)


def suppress() -> None:
    people.suppress("email", "bob@example.com", "complaint", source="test")


def retire() -> None:
    people.retire_address(Address.objects.get(user__external_id="bob").pk, "hard_bounce")


def change_address() -> None:
    people.put_user("bob", {"email": "new@example.com"})


def give_it_to_another() -> None:
    person("carl")
    run(
        "UPDATE people_address "
        "SET user_id = (SELECT id FROM people_user WHERE external_id = 'carl'), is_primary = false "
        "WHERE value = 'bob@example.com'"
    )


def erase() -> None:
    run("UPDATE people_user SET erased_at = now() WHERE external_id = 'bob'")


def expire() -> None:
    run("UPDATE notifications_delivery SET expires_at = now() - interval '1 second'")


def switch_client_off() -> None:
    run("UPDATE clients_client SET is_active = false")


@pytest.mark.parametrize(
    ("happens", "state", "reason"),
    [
        (opt_out, "suppressed", "category_opt_out"),
        (opt_out_of_all, "suppressed", "global_opt_out"),
        (suppress, "suppressed", "suppressed_complaint"),
        (retire, "suppressed", "address_retired"),
        (change_address, "suppressed", "address_retired"),
        (give_it_to_another, "suppressed", "address_retired"),
        (erase, "suppressed", "user_erased"),
        (expire, "expired", "expired_waiting"),
        (switch_client_off, "cancelled", "client_disabled"),
    ],
)
def test_what_happened_since_the_layout_stops_the_claim(world: World, happens: Any, state: str, reason: str) -> None:
    world.send("bob", channels=["email"])
    happens()
    [claimed] = take()
    assert claimed.stop is not None
    assert (claimed.stop.state, claimed.stop.reason) == (state, reason)


def test_an_opt_out_is_seen_when_rows_that_waited_are_read_again(world: World, email: Claimed) -> None:
    opt_out()
    [again] = claims.read_again([email])
    assert again.stop is not None and again.stop.reason == "category_opt_out"
    assert again.claim_no == email.claim_no


def test_an_expired_delivery_that_was_tried_is_dead_and_not_expired(email: Claimed) -> None:
    records.write([result(email, Kind.UNAVAILABLE)])
    run("UPDATE notifications_pending SET due_at = now(), wake_at = now()")
    expire()
    [again] = take()
    assert again.stop is not None
    assert (again.stop.state, again.stop.reason) == ("dead", "attempts_exhausted")


@pytest.mark.parametrize("scope", ["channel", "client", "category", "notification"])
def test_a_pause_keeps_everything_of_its_subject_waiting(world: World, scope: str) -> None:
    id = world.send("bob", channels=["email"]).json()["id"]
    [row] = deliveries(id)
    subject = {
        "channel": "email", "client": row.client_id, "category": row.category_id, "notification": id,
    }[scope]  # fmt: skip
    hold = holds.pause(scope, str(subject), by="test")
    [claimed] = take()
    assert claimed.stop is not None
    assert (claimed.stop.waiting, claimed.stop.retry_in_s) == (f"{scope}_paused", 30)
    verdict = Verdict(claimed.state, retry_in_s=30, waiting=claimed.stop.waiting, queue_lane=claimed.queue_lane)
    records.write([Result(claimed, verdict)])
    assert Pending.objects.get().waiting == f"{scope}_paused"
    holds.lift(hold)
    [again] = take()
    assert again.stop is None


def test_a_cancelled_notification_ends_what_waits_and_what_comes_back(world: World) -> None:
    id = world.send("ada").json()["id"]
    [leased] = take([pending(id)[0].id])
    assert world.api.post(f"/v1/notifications/{id}/cancel", {}).status_code == 200
    assert sorted(d.state for d in deliveries(id)) == ["cancelled", "cancelled", "queued"]
    records.write([result(leased, Kind.UNAVAILABLE)])
    run("UPDATE notifications_pending SET due_at = now(), wake_at = now()")
    [again] = take()
    assert again.stop is not None and (again.stop.state, again.stop.reason) == (State.CANCELLED, "by_caller")


def test_a_sent_cancel_is_forgotten_when_nothing_is_left_to_hold(world: World) -> None:
    id = world.send("ada").json()["id"]
    world.api.post(f"/v1/notifications/{id}/cancel", {})
    assert Hold.objects.count() == 1
    assert holds.sweep_cancels() == 1
    assert Notification.objects.get(pk=id).status == "cancelled"


# --- what a lane holds ------------------------------------------------------------------------------------------


def fill(world: World, count: int) -> None:
    for number in range(count):
        person(f"t{number}", email=f"t{number}@example.com")
    world.send(*[f"t{number}" for number in range(count)], channels=["email"])


def from_lane(limit: int) -> list[Claimed]:
    return claims.take([], "email", ["normal"], limit, lease_s=60)[0]


def test_a_lane_gives_what_is_due_rung_or_not(world: World) -> None:
    fill(world, 5)
    run("UPDATE notifications_pending SET wake_at = now() + interval '9 seconds'")
    assert len(from_lane(3)) == 3
    assert len(from_lane(10)) == 2
    assert from_lane(10) == []


def test_a_lane_keeps_what_waits_and_what_killed_its_worker(world: World) -> None:
    fill(world, 3)
    ids = [row.id for row in Pending.objects.order_by("id")]
    run("UPDATE notifications_pending SET due_at = now() + interval '5 seconds' WHERE id = %s", str(ids[0]))
    run("UPDATE notifications_pending SET crashes = 1 WHERE id = %s", str(ids[1]))
    assert [c.delivery_id for c in from_lane(10)] == [ids[2]]
    assert take([ids[1]]) == []
    assert [c.delivery_id for c in take([ids[1]], alone=True)] == [ids[1]]


def test_a_lane_is_shared_between_clients(world: World) -> None:
    fill(world, 30)
    run("UPDATE notifications_pending SET client_id = 1000 WHERE id IN (SELECT id FROM notifications_pending LIMIT 5)")
    ids = {c.delivery_id for c in from_lane(10)}
    small = {row.id for row in Pending.objects.filter(client_id=1000)}
    assert len(ids) == 10
    assert len(ids & small) == 5


def test_taking_fills_what_small_clients_leave_and_says_whether_that_was_all(world: World) -> None:
    fill(world, 30)
    run("UPDATE notifications_pending SET client_id = 1000 WHERE id IN (SELECT id FROM notifications_pending LIMIT 2)")
    found, is_all = claims.take([], "email", ["normal"], 20, lease_s=60)
    assert (len(found), is_all) == (20, False)
    found, is_all = claims.take([], "email", ["normal"], 20, lease_s=60)
    assert (len(found), is_all) == (10, True)


def test_what_was_rung_is_taken_before_what_else_the_lanes_hold_in_their_order(world: World) -> None:
    fill(world, 6)
    ids = [row.id for row in Pending.objects.order_by("wake_at", "id")]
    run("UPDATE notifications_pending SET lane = 'bulk' WHERE id = ANY (%s::uuid[])", ids[:4])
    found, is_all = claims.take([ids[3]], "email", ["normal", "bulk"], 4, lease_s=60)
    assert {c.delivery_id for c in found} >= {ids[3], ids[4], ids[5]}
    assert (len(found), is_all) == (4, False)
    assert {c.claim_no for c in found} == {1}


def test_five_hundred_deliveries_cost_eight_statements_at_most(world: World) -> None:
    people.put_users([(f"s{number}", {"email": f"s{number}@example.com"}) for number in range(1000)])
    for start in range(0, 1000, 100):
        world.send(*[f"s{number}" for number in range(start, start + 100)], channels=["email"])
    with CaptureQueriesContext(connection) as captured:
        claimed = from_lane(1000)  # what a busy shift takes at once
        for start in range(0, 500, records.BATCH):
            records.write([result(c) for c in claimed[start : start + records.BATCH]])
    statements = [q["sql"] for q in captured if not q["sql"].startswith(("BEGIN", "SAVEPOINT", "RELEASE", "COMMIT"))]
    assert len(claimed) == 1000
    assert len(statements) / 2 <= 7  # the relay's share comes to it: one for a thousand


def test_a_claim_and_a_record_touch_only_the_partitions_of_their_ids(world: World) -> None:
    for _ in range(3):
        world.send("bob", channels=["email"])
    before = scanned()
    for _ in range(8):  # through the plans of the first calls and those that are kept
        records.write([result(claimed, Kind.UNAVAILABLE) for claimed in take()])
        run("UPDATE notifications_pending SET due_at = now()")
    touched = [name for name, scans in scanned().items() if scans != before[name]]
    tables = {name.rpartition("_p")[0] for name in touched}
    assert tables >= {f"notifications_{name}" for name in ("notification", "content", "delivery")}
    assert len(touched) == len(tables), touched


def scanned() -> dict[str, int]:
    """How often each partition was looked into, in this transaction."""
    return dict(
        run(
            "SELECT relname::text, coalesce(seq_scan, 0) + coalesce(idx_scan, 0) FROM pg_stat_xact_user_tables "
            "WHERE relname ~ '^notifications_[a-z]+_p[0-9]+$'"
        )
    )


@pytest.mark.parametrize(
    ("mode", "is_sandbox", "status"), [("live", False, "retired"), ("test", False, "active"), ("test", True, "retired")]
)
def test_a_dead_token_retires_the_device_but_a_test_leaves_real_ones_alone(
    world: World, mode: str, is_sandbox: bool, status: str
) -> None:
    device("bob", "sandbox-unregistered-1" if is_sandbox else "a-real-token")
    run("UPDATE clients_appkey SET mode = %s", mode)
    forget_callers()
    world.send("bob", channels=["push"])
    [claimed] = take()
    PostgresLedger().record([result(claimed, Kind.GONE)])
    assert Device.objects.get(user__external_id="bob").status == status
    assert Delivery.objects.get(channel="push").reason == "device_unregistered"


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b", "x" * 5000])
def test_what_a_provider_says_is_written_whatever_it_is(email: Claimed, text: str) -> None:
    records.write([result(email, Kind.REJECTED, detail=text, code=text, provider_ref=text)])
    assert Delivery.objects.get().state == "failed"


def test_a_result_that_cannot_be_written_keeps_no_other_from_it(
    committed_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed_world.send("ada")
    good, bad, other = take()
    monkeypatch.setattr(records, "storable", lambda text, limit: text)
    PostgresLedger().record([result(good), result(bad, Kind.REJECTED, detail="a\0b"), result(other)])
    assert sorted(Delivery.objects.values_list("state", flat=True)) == ["failed", "sent", "sent"]
    assert Delivery.objects.get(pk=bad.delivery_id).detail == ""


def test_a_paused_account_is_gone_round(world: World) -> None:
    ledger = PostgresLedger()
    [account] = ledger.accounts()
    hold = holds.pause("account", str(account.id), by="test")
    [paused] = PostgresLedger().accounts()
    assert not paused.is_active
    world.send("bob", channels=["email"])
    [claimed] = take()
    assert claimed.stop is None  # another account could take it; route decides
    holds.lift(hold)
    [again] = PostgresLedger().accounts()
    assert again.is_active


def test_many_holds_cost_a_claim_little(world: World) -> None:
    fill(world, 50)
    Hold.objects.bulk_create(Hold(scope="notification", subject=str(uuid7()), action="cancel") for _ in range(2000))
    with CaptureQueriesContext(connection) as captured:
        assert len([c for c in from_lane(50) if c.stop is None]) == 50
    assert len(captured) == 1


def test_what_a_dead_worker_may_have_sent_ends_dead_and_not_expired(world: World) -> None:
    world.send("bob", channels=["email"])
    run("UPDATE notifications_pending SET crashes = 1")
    expire()
    [claimed] = take(alone=True)
    assert claimed.stop is not None and claimed.stop.state == "dead"


def test_of_several_owners_one_who_never_opted_in_is_the_strictest(world: World) -> None:
    person("rob", email="bob@example.com")
    people.set_preferences("bob", choices={"offers": {"email": True}})
    id = world.send({"email": "bob@example.com"}, template="weekly", channels=["email"]).json()["id"]
    assert [d.reason for d in deliveries(id)] == ["category_opt_out"]


def test_a_raw_device_that_became_a_persons_takes_their_choice(world: World) -> None:
    world.send({"device": {"platform": "android", "token": "sandbox-ok-raw"}}, channels=["push"])
    device("bob", "sandbox-ok-raw")
    people.set_preferences("bob", everything=False)
    [claimed] = take()
    assert claimed.stop is not None and claimed.stop.reason == "global_opt_out"
