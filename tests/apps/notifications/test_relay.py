"""The relay: what it rings, in which order, and what it does with the rows of dead workers.

Publishing is watched at the door of `ringing`; that rings reach workers is for the acceptance tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
import structlog
from celery import current_app
from kombu.exceptions import OperationalError as BrokerError

from apps.notifications import relay as relays
from apps.notifications import ringing
from apps.notifications.models import Attempt, BrokerHealth, Delivery, Expansion, Hold, Pending
from apps.notifications.relay import Relay
from apps.notifications.services import holds
from apps.notifications.services.expand import expand
from notifier.queues import ALL_QUEUES
from tests.apps.notifications.test_claims import take
from tests.apps.notifications.world import World, deliveries, person, run, states


class Door:
    """Sees what is published; refuses when told that the broker is away."""

    def __init__(self) -> None:
        self.rung: list[tuple[str, list[UUID], bool]] = []
        self.expansions: list[UUID] = []
        self.is_away = False
        self.has_tasks = False

    def deliveries(self, queue: str, ids: Any, *, alone: bool = False) -> None:
        self._refuse()
        self.rung.append((queue, list(ids), alone))

    def expand(self, ids: Any) -> None:
        self._refuse()
        self.expansions += ids

    def other(self) -> None:
        self._refuse()

    def waits(self, queue: str, enough: int = 0) -> bool:
        self._refuse()
        return self.has_tasks

    def _refuse(self) -> None:
        if self.is_away:
            raise BrokerError("away")

    @property
    def ids(self) -> list[UUID]:
        return [id for _, ids, _ in self.rung for id in ids]


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    door = Door()
    monkeypatch.setattr(ringing, "publish_deliveries", door.deliveries)
    monkeypatch.setattr(ringing, "publish_expansions", door.expand)
    monkeypatch.setattr(ringing, "publish_receipts", door.other)
    monkeypatch.setattr(ringing, "publish_canaries", door.other)
    monkeypatch.setattr(ringing, "has_tasks", door.waits)
    # The tests' database was started a moment ago; a real one has been up for longer than its leases.
    monkeypatch.setattr(relays, "RESTART_GRACE_S", 0.0)
    yield door


def wake(*ids: UUID) -> None:
    run("UPDATE notifications_pending SET wake_at = now() - interval '1 second'")


def lose_lease() -> None:
    run("UPDATE notifications_pending SET lease_until = now() - interval '1 s', wake_at = now() - interval '1 s'")


def test_what_its_own_process_just_rang_is_left_alone(world: World, door: Door) -> None:
    world.send("bob", channels=["email"])
    Relay().tick()
    assert door.rung == []


def test_what_was_not_rung_in_time_is_rung_once_and_again_after_ten_seconds(world: World, door: Door) -> None:
    id = world.send("bob", channels=["email"]).json()["id"]
    wake()
    relay = Relay()
    relay.tick()
    relay.tick()
    [row] = deliveries(id)
    assert door.rung == [("email.normal", [row.id], False)]
    wake()
    relay.tick()
    assert door.ids == [row.id, row.id]


def test_a_queue_with_tasks_waiting_is_rung_once_a_second_only(
    world: World, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.send("bob", channels=["email"])
    door.has_tasks = True
    relay = Relay()
    for _ in range(3):
        wake()
        relay.tick()
    assert len(door.rung) == 1
    monkeypatch.setattr(relays, "BUSY_TICK_S", 0.0)
    relay.tick()
    assert len(door.rung) == 2


def test_canaries_do_not_fill_a_queue_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    monkeypatch.setattr(ringing, "_send", lambda task, args, queue, **options: sent.append(queue))
    monkeypatch.setattr(ringing, "has_tasks", lambda queue, enough: queue == "sms.bulk" and enough == 1000)
    ringing.publish_canaries()
    assert set(sent) == set(ALL_QUEUES) - {"sms.bulk"}


def test_what_a_worker_holds_is_not_rung(world: World, door: Door) -> None:
    world.send("bob", channels=["email"])
    wake()
    take()
    Relay().tick()
    assert door.rung == []


def test_a_lease_that_is_over_goes_back_alone_with_its_try_written_as_unknown(world: World, door: Door) -> None:
    id = world.send("bob", channels=["email"]).json()["id"]
    take()
    lose_lease()
    Relay().tick()
    [row] = deliveries(id)
    assert door.rung == [("email.normal", [row.id], True)]
    assert Pending.objects.get().crashes == 1
    attempt = Attempt.objects.get()
    assert (attempt.outcome, attempt.provider_code, attempt.claim_no) == ("uncertain", "worker_lost", 1)
    assert take([row.id], alone=True)[0].claim_no == 2


def test_what_killed_five_workers_is_dead(world: World, door: Door) -> None:
    id = world.send("bob", channels=["email"]).json()["id"]
    [row] = deliveries(id)
    for _ in range(5):
        assert len(take([row.id], alone=True)) == 1
        lose_lease()
        Relay().tick()
    assert [(state, reason) for _, state, reason in states(id)] == [("dead", "attempts_exhausted")]
    assert not Pending.objects.exists()
    assert Attempt.objects.count() == 5
    assert len(door.rung) == 4


def test_a_category_that_parks_ends_a_lost_try_as_unknown(world: World, door: Door) -> None:
    run("UPDATE people_category SET on_uncertain = 'park' WHERE key = 'orders'")
    id = world.send("bob", channels=["email"]).json()["id"]
    take()
    lose_lease()
    Relay().tick()
    assert [(state, reason) for _, state, reason in states(id)] == [("unknown", "worker_lost")]
    assert door.rung == []


def test_a_result_that_comes_after_the_lease_but_before_another_claim_still_counts(world: World, door: Door) -> None:
    from apps.notifications import records
    from tests.apps.notifications.test_claims import result

    world.send("bob", channels=["email"])
    [claimed] = take()
    lose_lease()
    Relay().tick()
    assert records.write([result(claimed, provider_ref="r")]) == {claimed.delivery_id}
    assert Delivery.objects.get().state == "sent"
    assert Attempt.objects.get().outcome == "accepted"


def test_in_the_first_seconds_of_a_restarted_database_leases_stay(
    world: World, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.send("bob", channels=["email"])
    take()
    lose_lease()
    monkeypatch.setattr(relays, "RESTART_GRACE_S", 86_400.0)
    Relay().tick()
    assert door.rung == []
    assert Pending.objects.get().crashes == 0


def test_a_queue_that_holds_enough_is_not_topped_up(world: World, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "WATERMARK", 4)
    monkeypatch.setattr(relays, "PICK", 2)
    for number in range(10):
        person(f"w{number}", email=f"w{number}@example.com")
    world.send(*[f"w{number}" for number in range(10)], channels=["email"])
    wake()
    relay = Relay()
    relay.tick()
    relay.tick()
    assert len(door.ids) == 4
    take(door.ids)
    relay.tick()
    assert len(set(door.ids)) == 8


def test_clients_take_turns(world: World, door: Door) -> None:
    for number in range(12):
        person(f"c{number}", email=f"c{number}@example.com")
    world.send(*[f"c{number}" for number in range(12)], channels=["email"])
    run("UPDATE notifications_pending SET client_id = 1000 WHERE id IN (SELECT id FROM notifications_pending LIMIT 3)")
    wake()
    Relay().tick()
    other = set(Pending.objects.filter(client_id=1000).values_list("id", flat=True))
    assert len(door.ids) == 12
    assert set(door.ids[:6]) >= other


def test_a_paused_row_is_set_aside_and_woken_when_the_pause_ends(world: World, door: Door) -> None:
    world.send("bob", channels=["email"])
    hold = holds.pause("channel", "email", by="test")
    wake()
    relay = Relay()
    relay.tick()
    assert door.rung == []
    assert Pending.objects.get().waiting == "channel_paused"
    holds.lift(hold)
    relay.tick()
    assert len(door.ids) == 1


def test_a_paused_row_that_is_over_is_rung_so_that_it_ends(world: World, door: Door) -> None:
    world.send("bob", channels=["email"])
    holds.pause("channel", "email", by="test")
    run("UPDATE notifications_delivery SET expires_at = now() - interval '1 second'")
    wake()
    Relay().tick()
    assert len(door.ids) == 1
    [claimed] = take()
    assert claimed.stop is not None and claimed.stop.state == "expired"


def test_a_broker_that_is_away_is_said_so_and_the_rows_wake_at_once(
    world: World, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.send("bob", channels=["email"])
    wake()
    relay = Relay()
    relay._canary_at = float("inf")
    door.is_away = True
    relay.tick()
    assert not BrokerHealth.objects.get().is_up
    door.is_away = False
    monkeypatch.setattr(relay, "_probe", lambda: True)
    relay.tick()
    assert len(door.ids) == 1


@pytest.mark.django_db
def test_a_broker_that_is_full_is_not_back_before_there_is_room() -> None:
    """It answers a ping, and takes no task."""
    relay = Relay()
    with current_app.connection_for_write() as broker:
        client = broker.default_channel.client
        before = client.config_get("maxmemory")["maxmemory"]
        client.config_set("maxmemory", "1")
        try:
            assert not relay._probe()
        finally:
            client.config_set("maxmemory", before)
        assert relay._probe()


def test_due_expansions_are_rung_and_laid_out(world: World, door: Door) -> None:
    answer = world.api.post(
        "/v1/notifications/batch",
        {"items": [
            {"event_id": f"e{n}", "template": "shipped", "data": {"order": "A"}, "to": [{"user_id": "ada"}]}
            for n in range(3)
        ]},
        headers={"Idempotency-Key": "b", "X-Request-Id": "r-1"},
    )  # fmt: skip
    ids = [UUID(r["id"]) for r in answer.json()["results"]]
    Relay().tick()
    assert sorted(door.expansions) == sorted(ids)
    with structlog.contextvars.bound_contextvars(request_id=""):
        assert expand(door.expansions) == 3
        assert structlog.contextvars.get_contextvars()["request_id"] == "r-1"
    assert not Expansion.objects.exists()
    assert [len(deliveries(str(id))) for id in ids] == [3, 3, 3]
    assert expand(ids) == 0


def test_laying_out_twice_inserts_nothing_twice(world: World, door: Door) -> None:
    answer = world.api.post(
        "/v1/notifications/batch",
        {"items": [{"event_id": "e", "template": "shipped", "data": {"order": "A"}, "to": [{"user_id": "ada"}]}]},
        headers={"Idempotency-Key": "b"},
    )
    id = answer.json()["results"][0]["id"]
    expand([UUID(id)])
    before = {row.id for row in deliveries(id)}
    run(
        "INSERT INTO notifications_expansion (id, client_id, due_at, wake_at, position) "
        "VALUES (%s, 1, now(), now(), 0)",
        id,
    )
    expand([UUID(id)])
    assert {row.id for row in deliveries(id)} == before
    assert Pending.objects.count() == 3


def test_a_cancelled_notification_is_not_laid_out(world: World, door: Door) -> None:
    answer = world.api.post(
        "/v1/notifications/batch",
        {"items": [{"event_id": "e", "template": "shipped", "data": {"order": "A"}, "to": [{"user_id": "ada"}]}]},
        headers={"Idempotency-Key": "b"},
    )
    id = answer.json()["results"][0]["id"]
    assert world.api.post(f"/v1/notifications/{id}/cancel", {}).status_code == 200
    assert expand([UUID(id)]) == 0
    assert deliveries(id) == []
    assert holds.sweep_cancels() == 1
    assert not Hold.objects.exists()
