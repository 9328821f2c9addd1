"""Every page of the admin site: it answers, in the same number of statements however much there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import Group
from django.contrib.auth.models import User as Staff
from django.db import connection
from django.test import Client as Browser
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask, SolarSchedule
from unfold.admin import ModelAdmin

from apps.clients import services as clients
from apps.clients.models import Client
from apps.notifications.models import (
    Attempt,
    Delivery,
    Event,
    Hold,
    ReceiptInbox,
)
from apps.notifications.services import layout
from apps.people import services as people
from apps.people.models import Category
from apps.providers.models import ProviderAccount
from apps.templates.versions import forget_all
from notifier.ids import derived_id
from notifier.message import Mode
from tests.apps.notifications.world import World, device, person, publish
from tests.apps.rest.callers import forget_callers

MOST_STATEMENTS = 30
MORE = 60  # rows; more than a page


@pytest.fixture
def staff(db: None) -> Staff:
    return Staff.objects.create_superuser("root", password="of-the-tests")


@pytest.fixture
def browser(staff: Staff) -> Browser:
    found = Browser()
    found.force_login(staff)
    return found


def page(model: type[Any], kind: str, *args: Any) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{kind}", args=args)


def read(browser: Browser, path: str) -> tuple[str, int]:
    """The page, and how many statements it took."""
    with CaptureQueriesContext(connection) as statements:
        answer = browser.get(path)
    assert answer.status_code == 200, f"{path} answered {answer.status_code} {answer.get('Location', '')}"
    return answer.content.decode(), len(statements)


def dialog(browser: Browser, model: type[Any], key: Any, verb: str, **values: Any) -> Any:
    """Ask for a verb as its dialog does."""
    url = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{verb}", args=[key])
    assert browser.get(url).status_code == 200
    return browser.post(url, {"_form_submitted": "on", **values}, headers={"HX-Request": "true"})


@pytest.fixture
def world(db: None) -> World:
    forget_callers()
    forget_all()
    return World.make(Mode.LIVE)


# --- Every page -------------------------------------------------------------------------------------------------


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


def pages_of(model: type[Any]) -> Iterator[str]:
    yield page(model, "changelist")
    newest = model._default_manager.order_by("-pk").first()
    if newest is not None:
        yield page(model, "change", newest.pk)
        yield page(model, "history", newest.pk)


def test_every_page_answers_in_as_many_statements_for_many_rows_as_for_few(browser: Browser, full: Any):
    full(3)
    counts: dict[tuple[str, str], int] = {}
    for model in registered():
        for path in pages_of(model):
            read(browser, path)  # content types and the like are remembered from the first time
            counts[model._meta.label, path.rstrip("/").rsplit("/", 1)[-1]] = read(browser, path)[1]
    index = read(browser, reverse("admin:index"))[1]
    full(MORE)
    grown = {}
    for model in registered():
        for path in pages_of(model):
            key = model._meta.label, path.rstrip("/").rsplit("/", 1)[-1]
            n = read(browser, path)[1]
            assert n <= MOST_STATEMENTS, f"{path} took {n} statements"
            if n > counts.get(key, n):
                grown[key] = counts[key], n
    assert grown == {}, "statements that grow with the rows: (few, many)"
    assert read(browser, reverse("admin:index"))[1] <= index
