"""Cancelling: at any moment, from any number of callers, beside whoever is at work on the same rows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from apps.notifications import claims, records
from apps.notifications.models import Delivery, Expansion, Hold, HoldScope, Notification, Pending, Tally
from apps.notifications.services import holds
from apps.notifications.services.expand import expand
from apps.notifications.upkeep import complete_notifications
from notifier.ledger import Claimed, Result, Verdict
from notifier.lifecycle import State
from notifier.message import Mode
from notifier.outcome import Kind, Outcome
from tests.apps.notifications.world import World, person, run, states
from tests.apps.rest.callers import assert_problem, make_api


def cancel(world: World, id: str, **extra: Any) -> Any:
    return world.api("POST", f"/v1/notifications/{id}/cancel", **extra)


def look(world: World, id: str) -> tuple[str, dict[str, int]]:
    answer = world.api.get(f"/v1/notifications/{id}").json()
    return answer["status"], answer["counts"]


def take() -> list[Claimed]:
    ids = list(Pending.objects.values_list("id", flat=True))
    return claims.claim(ids, lease_s=60, alone=False)


def record(claimed: Claimed, verdict: Verdict) -> None:
    records.write([Result(claimed, verdict, Outcome(Kind.ACCEPTED), None)])


def three_mails(world: World, **fields: Any) -> str:
    for name in ("cat", "dan"):
        person(name, email=f"{name}@example.com")
    id: str = world.send("bob", "cat", "dan", channels=["email"], **fields).json()["id"]
    return id


def in_parallel(*jobs: Callable[[], Any]) -> list[Any]:
    """Each job on a connection of its own, all let go at once; what they returned, or raised."""
    ready = threading.Barrier(len(jobs))
    said: list[Any] = [None] * len(jobs)

    def work(number: int, job: Callable[[], Any]) -> None:
        try:
            ready.wait(10)
            said[number] = job()
        except Exception as error:
            said[number] = error
        finally:
            connection.close()

    threads = [threading.Thread(target=work, args=(number, job)) for number, job in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads), "something waits for ever"
    return said


def test_what_waits_ends_cancelled_and_says_by_whom(world: World) -> None:
    id = three_mails(world)
    answer = cancel(world, id)
    assert answer.status_code == 200
    assert answer.json() == {"id": id, "status": "cancelled"}
    assert states(id) == [("email", "cancelled", "by_caller")] * 3
    assert look(world, id) == ("cancelled", {"cancelled": 3})
    assert not Pending.objects.exists()
    assert sum(Tally.objects.filter(from_state="queued", to_state="cancelled").values_list("n", flat=True)) == 3


def test_a_second_cancel_changes_nothing_and_is_no_error(world: World) -> None:
    id = three_mails(world)
    assert [cancel(world, id).status_code for _ in range(2)] == [200, 200]
    complete_notifications()
    assert cancel(world, id).status_code == 200
    assert look(world, id)[0] == "cancelled"


@pytest.mark.parametrize("is_swept", [False, True], ids=["before the sweep", "after the sweep"])
def test_when_all_has_ended_there_is_nothing_to_cancel(world: World, is_swept: bool) -> None:
    id = three_mails(world)
    for claimed in take():
        record(claimed, Verdict(State.SENT))
    if is_swept:
        complete_notifications()
    body = assert_problem(cancel(world, id), 409, "invalid-state")
    assert body["state"] == "completed"
    assert look(world, id) == ("completed", {"sent": 3})
    assert not Hold.objects.exists()


def test_what_is_suppressed_from_the_start_cannot_be_cancelled(world: World) -> None:
    id = world.send("eve", channels=["email"]).json()["id"]
    assert_problem(cancel(world, id), 409, "invalid-state")


def test_what_is_being_sent_is_not_recalled_and_says_what_became_of_it(world: World) -> None:
    id = three_mails(world)
    first, second, third = take()
    record(third, Verdict(State.QUEUED, retry_in_s=0.0))
    assert cancel(world, id).status_code == 200
    assert look(world, id) == ("cancelled", {"sending": 2, "cancelled": 1})
    record(first, Verdict(State.SENT))
    record(second, Verdict(State.RETRYING, retry_in_s=0.0, waiting="retry_backoff", is_counted=True))
    [again] = take()
    assert again.stop is not None
    assert (again.delivery_id, again.stop.state, again.stop.reason) == (second.delivery_id, "cancelled", "by_caller")
    record(again, Verdict(again.stop.state, again.stop.reason))
    assert look(world, id) == ("cancelled", {"sent": 1, "cancelled": 2})
    assert holds.sweep_cancels() == 1


def test_a_scheduled_notification_is_never_laid_out(world: World) -> None:
    id = three_mails(world, send_at=(timezone.now() + timedelta(hours=1)).isoformat())
    assert look(world, id) == ("scheduled", {})
    assert cancel(world, id).status_code == 200
    run("UPDATE notifications_notification SET due_at = now()")
    assert expand([UUID(id)]) == 0
    assert look(world, id) == ("cancelled", {})
    assert not Expansion.objects.exists()


def test_a_pause_gives_way_to_the_cancel(world: World) -> None:
    id = three_mails(world)
    leased = take()[0]
    run("UPDATE notifications_pending SET lease_until = NULL WHERE id <> %s", str(leased.delivery_id))
    holds.pause(HoldScope.NOTIFICATION, id, by="test")
    assert cancel(world, id).status_code == 200
    record(leased, Verdict(State.QUEUED, retry_in_s=0.0))
    [again] = take()
    assert again.stop is not None and again.stop.state is State.CANCELLED


def test_another_client_another_mode_and_another_scope_cannot_cancel(world: World) -> None:
    id = three_mails(world)
    assert_problem(World(make_api("shop", Mode.TEST, scopes=["send"])).api.post(
        f"/v1/notifications/{id}/cancel", {}), 404, "not-found")  # fmt: skip
    assert_problem(make_api("rival", scopes=["send"]).post(f"/v1/notifications/{id}/cancel", {}), 404, "not-found")
    body = assert_problem(make_api("reader", scopes=["read"]).post(f"/v1/notifications/{id}/cancel", {}), 403,
                          "scope-missing")  # fmt: skip
    assert body["scope"] == "send"
    assert look(World(make_api("shop", scopes=["read"])), id)[0] == "in_progress"


def test_many_cancels_at_once_end_each_delivery_once(committed_world: World) -> None:
    world = committed_world
    id = three_mails(world)
    answers = in_parallel(*[lambda: cancel(world, id)] * 8)
    assert [answer.status_code for answer in answers] == [200] * 8
    assert states(id) == [("email", "cancelled", "by_caller")] * 3
    assert Hold.objects.count() == 1
    assert sum(Tally.objects.filter(to_state="cancelled").values_list("n", flat=True)) == 3


def test_beside_the_laying_out_nothing_is_left_to_be_sent(committed_world: World) -> None:
    world = committed_world
    for number in range(12):
        items = [{"event_id": f"e{number}", "template": "shipped", "data": {"order": "A"},
                  "to": [{"email": f"p{entry}@example.com"} for entry in range(50)]}]  # fmt: skip
        batch = world.api.post("/v1/notifications/batch", {"items": items}, headers={"Idempotency-Key": f"k{number}"})
        id = batch.json()["results"][0]["id"]
        laid_out, answer = in_parallel(lambda id=id: expand([UUID(id)]), lambda id=id: cancel(world, id))
        assert isinstance(laid_out, int), laid_out
        assert answer.status_code == 200
        assert expand([UUID(id)]) == 0, "a page was laid out after the cancel"
        assert not Pending.objects.exists()
        assert not Expansion.objects.exists()
        status, counts = look(world, id)
        assert (status, counts) in (("cancelled", {}), ("cancelled", {"cancelled": 50}))


def test_beside_a_claim_each_delivery_is_either_sent_or_cancelled(committed_world: World) -> None:
    world = committed_world
    for _ in range(12):
        id = three_mails(world)
        taken, answer = in_parallel(take, lambda id=id: cancel(world, id))
        assert not isinstance(taken, Exception), taken
        assert answer.status_code == 200
        for claimed in taken:
            state = State.SENT if claimed.stop is None else claimed.stop.state
            record(claimed, Verdict(state, "" if state is State.SENT else "by_caller"))
        status, counts = look(world, id)
        assert status == "cancelled"
        assert set(counts) <= {"sent", "cancelled"}
        assert sum(counts.values()) == 3
        assert not Pending.objects.exists()


@pytest.mark.parametrize("table", ["delivery", "pending"])
def test_a_row_that_somebody_holds_is_not_waited_for_and_is_ended_later(committed_world: World, table: str) -> None:
    """A receipt locks the delivery first, then the Pending row: waiting for either would be a deadlock."""
    id = three_mails(committed_world)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"SELECT id FROM notifications_{table} ORDER BY id LIMIT 1 FOR UPDATE")
            held.set()
            release.wait(20)

    def cancel_beside() -> Any:
        assert held.wait(10)
        try:
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = '2s'")  # waiting fails the test at once
            return cancel(committed_world, id).status_code
        finally:
            release.set()

    assert in_parallel(hold, cancel_beside) == [None, 200]
    assert look(committed_world, id) == ("cancelled", {"cancelled": 2, "queued": 1})
    assert holds.sweep_cancels() == 1
    assert look(committed_world, id) == ("cancelled", {"cancelled": 3})


def test_what_a_dead_process_left_of_a_cancel_is_ended_by_the_sweep(world: World) -> None:
    id = three_mails(world)
    run("UPDATE notifications_notification SET status = 'cancelled'")  # the first commit of a cancel, and no more
    Hold.objects.create(scope="notification", subject=id, action="cancel", reason="by_caller")
    assert holds.sweep_cancels() == 1
    assert states(id) == [("email", "cancelled", "by_caller")] * 3
    assert Notification.objects.get(pk=id).status == "cancelled"
    assert Delivery.objects.filter(ended_at=None).count() == 0


@pytest.mark.parametrize("scope", ["channel", "client", "category", "campaign", "account"])
def test_only_notifications_are_cancelled_for_others_would_never_be_ended_in_pages(world: World, scope: str) -> None:
    with pytest.raises(IntegrityError, match="hold_cancels_a_notification"):
        Hold.objects.create(scope=scope, subject="1", action="cancel")
