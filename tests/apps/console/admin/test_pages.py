"""Every page of the admin site: it answers, in the same number of statements however much there is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import Group
from django.contrib.auth.models import User as Staff
from django.test import Client as Browser
from django.urls import reverse
from django.utils import timezone
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask, SolarSchedule
from unfold.admin import ModelAdmin

from apps.clients import services as clients
from apps.clients.models import Client
from apps.console.csp import POLICY
from apps.notifications.admin.deliveries import DeliveryAdmin
from apps.notifications.models import (
    Attempt,
    Content,
    Delivery,
    Event,
    Expansion,
    Hold,
    IdempotencyKey,
    Notification,
    Pending,
    ReceiptInbox,
    Tally,
)
from apps.notifications.services import layout
from apps.people import services as people
from apps.people.models import Address, Category, Device, Suppression, User
from apps.providers.models import ProviderAccount
from apps.rest.admin import UncountedPaginator
from apps.templates.models import Template
from notifier.ids import derived_id
from notifier.message import Mode
from tests.apps.console.admin.site import Site, at
from tests.apps.notifications.world import World, device, person, publish

MOST_STATEMENTS = 30
MORE = 55  # rows of each kind; more than a page


@pytest.fixture
def full(world: World) -> Callable[[int], None]:
    """Makes `n` more rows of everything that the admin site shows."""
    made = iter(range(10_000))

    def make(n: int) -> None:
        account = ProviderAccount.objects.get(name="mail-main")
        offers = Category.objects.get(key="offers")
        ids = []
        for i in (next(made) for _ in range(n)):
            person(f"p{i}", email=f"p{i}@example.com", phone=f"+1500555{1000 + i}")
            device(f"p{i}", f"sandbox-ok-p{i}")
            ids.append(f"p{i}")
            people.set_preferences(f"p{i}", choices={"offers": {"email": True}}, source="test")
            people.suppress("email", f"gone{i}@example.com", "bounce", source="test")
            people.suppress("email", f"tired{i}@example.com", "unsubscribe", offers, source="test")
            client = Client.objects.create(name=f"client {i}")
            clients.add_secret(clients.issue_key(client, Mode.TEST)[0])
            ProviderAccount.objects.create(name=f"account-{i}", kind="smtp", settings={"host": "h", "sender": "a@b.c"})
            Category.objects.create(key=f"category-{i}", name=f"category {i}")
            number = publish(f"template-{i}", "orders")
            assert number == 1
            Hold.objects.create(scope="client", subject=str(client.pk), note="a test", created_by="admin:root")
            Group.objects.create(name=f"group {i}")
            Staff.objects.create_user(f"staff{i}")
            ReceiptInbox.objects.create(account=account, provider_event_id=f"e{i}", receipt={"kind": "sent"})
            every = IntervalSchedule.objects.create(every=i + 1, period="days")
            PeriodicTask.objects.create(name=f"task {i}", task="a.task", interval=every)
            CrontabSchedule.objects.create(minute=str(i % 60), hour=str(i // 60))
            ClockedSchedule.objects.create(clocked_time=timezone.now() + timedelta(minutes=i))
            SolarSchedule.objects.create(event="sunrise", latitude=i % 80, longitude=i % 170)
            sent = world.send(f"p{i}", event_id=f"event-{i}", reference="a reference")
            assert sent.status_code == 202, sent.content
        layout.categories(fresh=True)
        sent = world.send(*ids, "nobody", {"email": "stranger@example.com"}, reference="many")
        assert sent.status_code == 202, sent.content
        for delivery in Delivery.objects.exclude(pk__in=Attempt.objects.values("delivery_id")):
            id = derived_id(delivery.pk, "attempt", "1")
            now = timezone.now()
            Attempt.objects.create(
                id=id, delivery=delivery, claim_no=1, account=account, outcome="accepted", started_at=now, ended_at=now
            )
            Event.objects.create(id=id, delivery=delivery, kind="delivered", source="test", at=now)

    return make


def registered() -> list[type[Any]]:
    """Every model with a screen; the URL map registers them when it is first read."""
    reverse("admin:index")
    found = sorted(admin.site._registry, key=lambda model: model._meta.label)
    assert len(found) > 30
    return found


def test_every_model_of_ours_has_a_screen():
    ours = {
        model
        for config in apps.get_app_configs()
        if config.name.startswith("apps.")
        for model in config.models.values()
    }
    assert {model._meta.label for model in ours if model not in registered()} == set()


def test_every_screen_is_the_themes_own():
    assert [
        model._meta.label for model, screen in admin.site._registry.items() if not isinstance(screen, ModelAdmin)
    ] == []


def pages_of(model: type[Any], *kinds: str) -> Iterator[tuple[str, str]]:
    """(kind, path) of its list, and of these pages of its newest row."""
    yield "changelist", at(model, "changelist")
    newest = model._default_manager.order_by("-pk").first()
    if newest is not None:
        yield from ((kind, at(model, kind, newest.pk)) for kind in kinds)


def cost(site: Site, path: str, *, is_warm: bool = False) -> int:
    """How many statements the page takes, once content types and the like are remembered."""
    if not is_warm:
        site.read(path)
    site.read(path)
    return len(site.statements)


def test_every_page_answers_in_as_many_statements_for_many_rows_as_for_few(site: Site, full: Any):
    full(3)
    counts: dict[tuple[str, str], int] = {}
    for model in registered():
        for kind, path in pages_of(model, "change", "history"):
            counts[model._meta.label, kind] = cost(site, path)
    index = cost(site, reverse("admin:index"))
    full(MORE)
    grown = {}
    for model in registered():
        for kind, path in pages_of(model, "change"):
            key = model._meta.label, kind
            n = cost(site, path, is_warm=True)
            assert n <= MOST_STATEMENTS, f"{path} took {n} statements"
            if n > counts.get(key, n):
                grown[key] = counts[key], n
    assert grown == {}, "statements that grow with the rows: (few, many)"
    assert cost(site, reverse("admin:index")) <= index


def test_an_empty_form_is_told_what_is_missing(site: Site, world: World):
    forms = 0
    for model in registered():
        path = at(model, "add") + ("?kind=smtp" if model is ProviderAccount else "")
        shown = site.browser.get(path)
        assert shown.status_code in (200, 403), path
        if shown.status_code == 200:
            answer = site.browser.post(path, {})
            assert answer.status_code == 200, path
            assert "errornote" in answer.content.decode(), path
            forms += 1
    assert forms > 8


def test_a_page_with_many_rows_inside_takes_no_more_statements_than_one_with_few(site: Site, world: World):
    client = world.api.client
    template = Template.objects.get(key="shipped")
    ada = User.objects.get(external_id="ada")
    every = IntervalSchedule.objects.create(every=1, period="days")
    pages = [at(Client, "change", client.pk), at(Template, "change", template.pk)]
    pages += [at(User, "change", ada.pk), at(IntervalSchedule, "change", every.pk)]

    def grow(n: int, start: int) -> None:
        for i in range(start, start + n):
            clients.issue_key(client, Mode.TEST)
            publish("shipped", "orders", sms={"en": {"text": f"wording {i} of {{{{ order }}}}"}})
            device("ada", f"sandbox-ok-ada-{i}")
            PeriodicTask.objects.create(name=f"task {i}", task="a.task", interval=every)
            assert world.send("ada").status_code == 202

    grow(2, 0)
    few = [cost(site, path) for path in pages]
    grow(25, 2)
    assert [cost(site, path) for path in pages] == few


def test_no_list_of_a_large_table_counts_its_rows(site: Site, world: World):
    assert world.send("ada", "bob").status_code == 202
    for model in (Notification, Delivery, Attempt, Event, Pending, User, Address, Device, Suppression, Tally):
        for query in ({}, {"q": "ada"}):
            site.list(model, **query)
            counted = [sql for sql in site.statements if "COUNT(" in sql.upper()]
            assert counted == [], f"{model.__name__} {query}"


def test_the_last_page_offers_no_next_one_and_a_page_beyond_it_leads_back(site: Site, world: World, monkeypatch: Any):
    monkeypatch.setattr(UncountedPaginator, "count", 2 * 2)
    monkeypatch.setattr(DeliveryAdmin, "list_per_page", 2)
    for _ in range(3):
        assert world.send("ada").status_code == 202
    first, last = site.list(Delivery), site.list(Delivery, p="2")
    assert 'href="?p=2"' in first
    assert 'href="?p=3"' not in last
    assert "The list ends here" in last
    beyond = site.browser.get(at(Delivery, "changelist"), {"p": "3"})
    assert beyond.status_code == 302
    assert beyond["Location"].endswith("?e=1")


def test_the_sidebars_search_finds_screens(site: Site):
    assert at(Delivery, "changelist") in site.read(reverse("admin:search") + "?s=deliver")


def test_the_policy_covers_the_admin_site_alone(site: Site):
    assert site.browser.get(reverse("admin:index"))["Content-Security-Policy"] == POLICY
    assert "'unsafe-inline'" not in POLICY.split("script-src")[1].split(";")[0]
    assert site.browser.get("/v1/openapi.json").get("Content-Security-Policy") != POLICY


def test_logging_in_leads_to_the_dashboard(db: None):
    Site.of("root")
    answer = Browser().post(reverse("admin:login"), {"username": "root", "password": "of-the-tests"})
    assert answer.status_code == 302
    assert answer["Location"] == reverse("admin:index")


def test_who_may_see_nothing_sees_no_figures_and_no_screens(world: World):
    assert world.send("ada").status_code == 202
    nobody = Site.of("nobody", "templates.view_template")
    text = nobody.read(reverse("admin:index"))
    assert "data-figure" not in text
    assert at(Template, "changelist") in text
    assert at(Delivery, "changelist") not in text
    assert nobody.browser.get(at(Delivery, "changelist")).status_code == 403


def test_the_dashboard_counts_what_was_accepted_and_what_was_not_sent(site: Site, world: World):
    def figure(kind: str) -> int:
        found = re.search(rf'data-figure="{kind}">([\d,]+)<', site.read(reverse("admin:index")))
        assert found, f"no figure of {kind}"
        return int(found[1].replace(",", ""))

    assert figure("accepted") == 0
    assert world.send("ada", "nobody", channels=["sms"]).status_code == 202
    assert figure("accepted") == 2
    assert figure("suppressed") == 1
    assert figure("sent") == 0
    assert "sms.normal" in site.read(reverse("admin:index"))


def test_rows_of_the_engine_can_be_neither_added_nor_changed_nor_deleted(site: Site, world: World):
    assert world.send("ada").status_code == 202
    for model in (
        Notification,
        Delivery,
        Attempt,
        Event,
        Pending,
        Expansion,
        Tally,
        ReceiptInbox,
        IdempotencyKey,
        Content,
    ):
        assert site.browser.get(at(model, "add")).status_code == 403, model
        newest = model._default_manager.order_by("-pk").first()
        if newest is not None:
            assert site.browser.post(at(model, "change", newest.pk), {"state": "sent"}).status_code == 403, model
            assert site.browser.post(at(model, "delete", newest.pk), {"post": "yes"}).status_code == 403, model
