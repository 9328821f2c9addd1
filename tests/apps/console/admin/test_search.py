"""Finding one row among millions: by any id that somebody may have in hand."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from django.utils import timezone

from apps.notifications.admin import lists
from apps.notifications.models import Attempt, Delivery, Event, Notification, Pending
from apps.people import services as people
from apps.people.models import Address, Device, Preference, Suppression, User
from notifier.ids import derived_id
from tests.apps.console.admin.site import Site, at
from tests.apps.notifications.world import World, deliveries


@pytest.fixture
def sent(world: World) -> str:
    """The id of a notification to ada and bob, among others."""
    for reference in ("before", "after"):
        assert world.send("ada", event_id=f"event-{reference}", reference=reference).status_code == 202
    answer = world.send("ada", "bob", event_id="event-42", reference="order 42/7")
    assert answer.status_code == 202
    return str(answer.json()["id"])


def ids(rows: list[Any]) -> set[str]:
    return {str(row.pk) for row in rows}


def test_a_notification_is_found_by_its_id_its_deliveries_its_event_and_its_reference(site: Site, sent: str):
    some = deliveries(sent)[0]
    for term in (sent, sent.upper(), f" {sent} ", str(some.pk), "event-42", "order 42/7"):
        assert ids(site.found(Notification, term)) == {sent}, term


def test_deliveries_are_found_by_every_id_that_leads_to_them(site: Site, sent: str):
    all_of_it = ids(deliveries(sent))
    some = deliveries(sent)[0]
    assert ids(site.found(Delivery, str(some.pk))) == {str(some.pk)}
    for term in (sent, "event-42", "order 42/7"):
        assert ids(site.found(Delivery, term)) == all_of_it, term


def test_deliveries_are_found_by_person_address_and_device(site: Site, sent: str):
    ada = User.objects.get(external_id="ada")
    mail = Address.objects.get(user=ada, channel="email")
    phone = Device.objects.get(user=ada)
    hers = set(map(str, Delivery.objects.filter(user=ada).values_list("pk", flat=True)))
    by_mail = set(map(str, Delivery.objects.filter(address_id=mail.pk).values_list("pk", flat=True)))
    by_push = set(map(str, Delivery.objects.filter(device_id=phone.pk).values_list("pk", flat=True)))
    assert len(hers) > len(by_mail) > 0
    assert ids(site.found(Delivery, "ada")) == hers
    assert ids(site.found(Delivery, "Delivered+ADA@sandbox.invalid")) == by_mail
    assert ids(site.found(Delivery, "+1 500 555 0006")) == set(
        map(str, Delivery.objects.filter(user=ada, channel="sms").values_list("pk", flat=True))
    )
    assert ids(site.found(Delivery, str(mail.pk))) == by_mail
    assert ids(site.found(Delivery, str(phone.pk))) == by_push


def test_the_providers_own_reference_leads_to_the_delivery_and_its_attempt(site: Site, sent: str):
    delivery = deliveries(sent)[0]
    attempt = Attempt.objects.create(
        id=derived_id(delivery.pk, "attempt", "1"),
        delivery=delivery,
        claim_no=1,
        outcome="accepted",
        provider_ref="SM123",
    )
    event = Event.objects.create(
        id=derived_id(delivery.pk, "event"), delivery=delivery, kind="delivered", source="test", at=timezone.now()
    )
    assert ids(site.found(Delivery, "SM123")) == {str(delivery.pk)}
    assert ids(site.found(Attempt, "SM123")) == ids(site.found(Attempt, sent)) == {str(attempt.pk)}
    assert ids(site.found(Event, "SM123")) == ids(site.found(Event, str(delivery.pk))) == {str(event.pk)}


def test_people_are_found_by_external_id_address_and_device(site: Site, world: World):
    ada = User.objects.get(external_id="ada")
    mail, phone = Address.objects.get(user=ada, channel="email"), Device.objects.get(user=ada)
    for term in ("ada", "delivered+ada@sandbox.invalid", "+15005550006", str(mail.pk), str(phone.pk)):
        assert site.found(User, term) == [ada], term
    assert site.found(User, "ad") == []
    people.set_preferences("ada", choices={"offers": {"email": True}}, source="test")
    assert [row.user for row in site.found(Preference, "ada")] == [ada]
    assert site.found(Device, "ada") == [phone]
    assert site.found(Address, "DELIVERED+ada@sandbox.invalid") == [mail]


def test_a_suppression_is_found_by_the_address_in_any_spelling(site: Site, world: World):
    entry, _ = people.suppress("sms", "+447700900123", "stop", source="test")
    assert site.found(Suppression, "+44 7700 900123") == site.found(Suppression, str(entry.pk)) == [entry]
    assert site.found(Suppression, "+447700900124") == []


@pytest.mark.parametrize(
    "term", ["'", "%", "\\", "x" * 5000, "00000000-0000-0000-0000-000000000000", "☃", "+", "@", "a@", "0"]
)
def test_a_search_for_nonsense_finds_nothing_and_breaks_nothing(site: Site, sent: str, term: str):
    for model in (Notification, Delivery, Attempt, Event, Pending, User, Address, Device, Suppression, Preference):
        assert site.found(model, term) == [], model.__name__


def test_no_search_casts_or_compares_text_without_an_index(site: Site, sent: str):
    for model in (Notification, Delivery, Attempt, User, Address, Suppression):
        site.list(model, q="anything")
        assert not [sql for sql in site.statements if "LIKE" in sql.upper() or "::text" in sql]


def test_a_filter_looks_at_the_newest_rows_only(site: Site, world: World, monkeypatch: Any):
    oldest = str(world.send("ada", channels=["sms"]).json()["id"])
    newer = [str(world.send("ada", channels=["sms"]).json()["id"]) for _ in range(2)]
    monkeypatch.setattr(lists, "MOST_FILTERED", 2)
    assert at(Delivery, "change", deliveries(oldest)[0].pk) in site.list(Delivery)
    filtered = site.list(Delivery, channel__exact="sms")
    assert at(Delivery, "change", deliveries(oldest)[0].pk) not in filtered
    assert all(at(Delivery, "change", deliveries(one)[0].pk) in filtered for one in newer)


def test_a_large_list_is_sorted_by_its_id_alone_whatever_the_address_says(site: Site, sent: str):
    for order in ("1", "-1", "2.3", "99", "x"):
        site.list(Delivery, o=order)
        [rows] = [sql for sql in site.statements if 'FROM "notifications_delivery"' in sql]
        assert rows.split("ORDER BY")[1].split("LIMIT")[0].strip() == '"notifications_delivery"."id" DESC'
    site.list(Delivery, o="0")
    assert any('ORDER BY "notifications_delivery"."id" ASC' in sql for sql in site.statements)


def test_a_day_is_a_range_of_ids(site: Site, sent: str):
    today = f"{timezone.now():%Y-%m-%d}"
    some = at(Delivery, "change", deliveries(sent)[0].pk)
    assert some in site.list(Delivery, when=today)
    assert some in site.list(Delivery, when="hour")
    assert some not in site.list(Delivery, when="2020-01-01")
    assert any('"id" >=' in sql and '"id" <' in sql for sql in site.statements)
    assert some in site.list(Delivery, when="nonsense")


def test_rows_of_the_same_millisecond_are_told_apart(site: Site, sent: str):
    """Another notification may share the first 8 bytes, and so the range of ids."""
    other = Notification.objects.get(pk=sent)
    other.pk = UUID(int=other.pk.int ^ 1)
    other.event_id, other.reference = "", ""
    other.save(force_insert=True)
    assert ids(site.found(Delivery, str(other.pk))) == set()
    assert ids(site.found(Delivery, sent)) == ids(deliveries(sent))
