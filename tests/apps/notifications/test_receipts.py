"""What providers report later: early, late, repeated, out of order, unmatched."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from apps.notifications import records
from apps.notifications.models import Delivery, Event, Pending, ReceiptInbox, Tally
from apps.notifications.services import receipts
from apps.people.models import Suppression
from apps.providers.models import ProviderAccount
from notifier.ledger import Claimed
from notifier.outcome import Kind, Receipt, ReceiptKind
from notifier.providers.registry import PROVIDERS, provider_class
from tests.apps.notifications.test_claims import result, take
from tests.apps.notifications.world import World, run


@pytest.fixture
def sent(world: World) -> Claimed:
    world.send("bob", channels=["email"])
    [claimed] = take()
    records.write([result(claimed, provider_ref="ref-1")])
    return claimed


def report(kind: ReceiptKind, event: str = "", **values: Any) -> None:
    account = ProviderAccount.objects.get(name="mail-main")
    receipts.keep(account.pk, [Receipt(event or f"{kind}-{values}", kind, at=datetime.now(UTC), **values)])
    run("UPDATE notifications_receiptinbox SET wake_at = now() WHERE wake_at IS NOT NULL")
    receipts.settle_due()


def of(claimed: Claimed) -> dict[str, Any]:
    return {"delivery_id": claimed.delivery_id, "claim_no": claimed.claim_no}


def state() -> tuple[str, str]:
    row = Delivery.objects.get()
    return row.state, row.reason


def test_a_delivery_receipt_moves_the_state_and_leaves_an_event(sent: Claimed) -> None:
    report(ReceiptKind.DELIVERED, **of(sent))
    assert state() == ("delivered", "")
    assert Delivery.objects.get().delivered_at is not None
    assert Event.objects.get().kind == "delivered"
    assert ReceiptInbox.objects.get().outcome == "settled"


def test_the_same_receipt_twice_counts_once(sent: Claimed) -> None:
    for _ in range(2):
        report(ReceiptKind.DELIVERED, "event-1", **of(sent))
    assert ReceiptInbox.objects.count() == Event.objects.count() == 1
    assert sum(Tally.objects.filter(to_state="delivered").values_list("n", flat=True)) == 1


def test_no_receipt_moves_a_state_backwards(sent: Claimed) -> None:
    report(ReceiptKind.CLICKED, **of(sent))
    report(ReceiptKind.DELIVERED, **of(sent))
    report(ReceiptKind.UNDELIVERED, **of(sent))
    assert state()[0] == "clicked"
    assert Event.objects.count() == 3


def test_a_bounce_that_overtakes_the_report_of_its_sending_stays_a_bounce(sent: Claimed) -> None:
    report(ReceiptKind.UNDELIVERED, reason="hard_bounce", **of(sent))
    report(ReceiptKind.SENT, **of(sent))
    assert state() == ("undelivered", "hard_bounce")


def test_a_receipt_without_our_ids_is_matched_by_the_providers_reference(sent: Claimed) -> None:
    run("UPDATE notifications_attempt SET account_id = (SELECT id FROM providers_provideraccount)")
    report(ReceiptKind.DELIVERED, provider_ref="ref-1")
    assert state()[0] == "delivered"


def test_an_unmatched_receipt_is_kept_and_matched_when_its_send_is_recorded(world: World) -> None:
    world.send("bob", channels=["email"])
    [claimed] = take()
    report(ReceiptKind.DELIVERED, provider_ref="ref-9")
    assert ReceiptInbox.objects.get().outcome == "unmatched"
    records.write([result(claimed, provider_ref="ref-9")])
    run("UPDATE notifications_attempt SET account_id = (SELECT id FROM providers_provideraccount)")
    run("UPDATE notifications_receiptinbox SET wake_at = now()")
    receipts.settle_due()
    assert state()[0] == "delivered"


def test_a_receipt_that_overtakes_our_record_waits_for_it(world: World) -> None:
    world.send("bob", channels=["email"])
    [claimed] = take()
    report(ReceiptKind.DELIVERED, **of(claimed))
    assert state()[0] == "queued"
    assert ReceiptInbox.objects.get().outcome == "early"
    records.write([result(claimed)])
    run("UPDATE notifications_receiptinbox SET wake_at = now()")
    receipts.settle_due()
    assert state()[0] == "delivered"


def test_a_success_of_an_uncertain_try_ends_the_retries(world: World) -> None:
    world.send("bob", channels=["email"])
    [claimed] = take()
    records.write([result(claimed, Kind.UNCERTAIN)])
    assert state()[0] == "retrying"
    report(ReceiptKind.DELIVERED, **of(claimed))
    assert state()[0] == "delivered"
    assert not Pending.objects.exists()


def test_a_failure_of_an_earlier_try_says_nothing_of_the_later_one(world: World) -> None:
    world.send("bob", channels=["email"])
    [first] = take()
    records.write([result(first, Kind.UNCERTAIN)])
    run("UPDATE notifications_pending SET due_at = now(), wake_at = now()")
    [second] = take()
    records.write([result(second)])
    report(ReceiptKind.UNDELIVERED, reason="hard_bounce", **of(first))
    assert state()[0] == "sent"
    report(ReceiptKind.UNDELIVERED, reason="soft_bounce", **of(second))
    assert state() == ("undelivered", "soft_bounce")


@pytest.mark.parametrize(
    ("kind", "reason", "suppression"),
    [
        (ReceiptKind.UNDELIVERED, "hard_bounce", "bounce"),
        (ReceiptKind.UNDELIVERED, "soft_bounce", None),
        (ReceiptKind.COMPLAINED, "", "complaint"),
        (ReceiptKind.UNSUBSCRIBED, "", "unsubscribe"),
    ],
)
def test_a_bounce_or_complaint_suppresses_the_address(
    sent: Claimed, kind: ReceiptKind, reason: str, suppression: str | None
) -> None:
    report(kind, reason=reason, **of(sent))
    assert [row.reason for row in Suppression.objects.all()] == ([suppression] if suppression else [])


@pytest.mark.parametrize(
    ("kind", "suppression"),
    [
        (ReceiptKind.UNSUBSCRIBED, "unsubscribe"),
        (ReceiptKind.COMPLAINED, "complaint"),
        (ReceiptKind.STOPPED, "stop"),
    ],
)
def test_a_no_is_heard_while_a_retry_waits_or_a_worker_sends(world: World, kind: ReceiptKind, suppression: str) -> None:
    world.send("bob", channels=["email"])
    [claimed] = take()
    report(kind, "while-leased", **of(claimed))
    assert [row.reason for row in Suppression.objects.all()] == [suppression]
    Suppression.objects.all().delete()
    records.write([result(claimed, Kind.UNCERTAIN)])
    report(kind, "while-retrying", **of(claimed))
    assert [row.reason for row in Suppression.objects.all()] == [suppression]
    run("UPDATE notifications_pending SET due_at = now(), wake_at = now()")
    assert all(c.stop is not None and c.stop.state == "suppressed" for c in take())


@pytest.mark.parametrize("kind", [ReceiptKind.UNSUBSCRIBED, ReceiptKind.COMPLAINED])
def test_a_no_without_a_delivery_is_the_addresss(world: World, kind: ReceiptKind) -> None:
    report(kind, address="bob@example.com")
    world.send("bob", channels=["email"])
    assert state()[0] == "suppressed"


def test_a_bounce_is_heard_when_what_was_asked_is_no_longer_kept(world: World) -> None:
    world.send({"email": "raw@example.com"}, channels=["email"])
    [claimed] = take()
    records.write([result(claimed)])
    run("DELETE FROM notifications_content")
    report(ReceiptKind.UNDELIVERED, reason="hard_bounce", **of(claimed))
    again = world.send({"email": "raw@example.com"}, channels=["email"]).json()["id"]
    assert Delivery.objects.get(notification_id=again).reason == "suppressed_bounce"


def test_an_event_that_holds_what_no_database_can_keeps_none_of_its_batch_out(world: World) -> None:
    account = ProviderAccount.objects.get(name="mail-main")
    odd = Receipt("odd\0", ReceiptKind.UNKNOWN, detail="a\0b \ud800")
    good = Receipt("good", ReceiptKind.UNSUBSCRIBED, address="bob@example.com")
    assert receipts.keep(account.pk, [odd, good]) == 2
    receipts.settle_due()
    assert Suppression.objects.count() == 1


def test_stop_and_start_from_a_phone_close_and_open_its_number(world: World) -> None:
    texting = next(kind for kind in PROVIDERS if "sms" in provider_class(kind).serves)
    ProviderAccount.objects.filter(name="mail-main").update(kind=texting)
    report(ReceiptKind.STOPPED, "m1", address="+15005550006")
    id = world.send("ada", channels=["sms"]).json()["id"]
    assert Delivery.objects.get(notification_id=id).reason == "suppressed_stop"
    report(ReceiptKind.STARTED, "m2", address="+15005550006")
    assert not Suppression.objects.exists()


def test_a_machines_open_is_kept_and_moves_nothing(sent: Claimed) -> None:
    report(ReceiptKind.OPENED, is_machine=True, **of(sent))
    assert state()[0] == "sent"
    assert Event.objects.get().is_machine


def test_a_forged_callback_is_refused_and_an_unknown_account_is_not_found(world: World) -> None:
    assert world.api("POST", "/hooks/smtp/mail-main", b"nothing of ours").status_code == 403
    assert world.api("POST", "/hooks/smtp/other", b"x").status_code == 404
    assert world.api("POST", "/hooks/nothing/mail-main", b"x").status_code == 404
    assert not ReceiptInbox.objects.exists()
