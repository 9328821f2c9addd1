"""The admin site in front of the running service."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import requests
from django.contrib.admin import site
from django.urls import reverse
from playwright.sync_api import expect

from notifier.lifecycle import OPEN
from tests.acceptance.stack import Stack
from tests.browser.admin import DESK, PHONE, Admin

OFFERS = {"offers": [{"name": "Tea", "price": "3"}]}


def send(stack: Stack, *users: str, **fields: Any) -> str:
    body = {
        "template": "order-shipped",
        "to": [{"user_id": user} for user in users],
        "data": {"order": {"id": "A-1", "eta": "2026-11-25"}},
        **fields,
    }
    answer = stack.api("POST", "/v1/notifications", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def ended(stack: Stack, notification: str) -> list[tuple[str, str]]:
    """(delivery, state) of the notification, once none is still to be sent."""
    rows = stack.query("SELECT id::text, state FROM notifications_delivery WHERE notification_id = %s", notification)
    return [] if any(state in OPEN for _, state in rows) else rows


def send_and_wait(stack: Stack, *users: str, **fields: Any) -> tuple[str, list[tuple[str, str]]]:
    notification = send(stack, *users, **fields)
    return notification, stack.wait_for(partial(ended, stack, notification), "the notification's end", within_s=60)


def test_the_dashboard_shows_what_was_sent(admin: Admin) -> None:
    before = {kind: admin.figure(kind) for kind in ("accepted", "sent", "suppressed")}
    send_and_wait(admin.stack, "ada", "nobody", channels=["email", "push"])
    admin.open("/admin/")
    assert admin.figure("accepted") >= before["accepted"] + 4
    assert admin.figure("sent") >= before["sent"] + 3
    assert admin.figure("suppressed") == before["suppressed"] + 1
    expect(admin.page.get_by_text("Everything works")).to_be_visible()
    # The chart is drawn, not merely there: its canvas holds something.
    assert admin.page.evaluate(
        "() => { const c = document.querySelector('canvas.chart');"
        " return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(value => value !== 0); }"
    )


def test_the_dashboard_fits_a_phone(admin: Admin) -> None:
    assert admin.width_at(PHONE) <= PHONE["width"]
    cards = admin.page.locator("[data-figure]")
    assert all(cards.nth(n).is_visible() for n in range(cards.count()))
    assert cards.count() == 4


def every_page(stack: Stack) -> Iterator[str]:
    """The list of every registered model, and the page of its newest row where there is one."""
    yield reverse("admin:index")
    for model in sorted(site._registry, key=lambda model: model._meta.label):
        name, table, key = f"{model._meta.app_label}_{model._meta.model_name}", model._meta.db_table, model._meta.pk
        yield reverse(f"admin:{name}_changelist")
        rows = stack.query(f"SELECT {key.column}::text FROM {table} ORDER BY {key.column} DESC LIMIT 1")
        yield from (reverse(f"admin:{name}_change", args=row) for row in rows)


def test_every_page_opens_without_an_error_and_fits_desk_and_phone(admin: Admin) -> None:
    send_and_wait(admin.stack, "ada", "minji")
    seen = 0
    for path in every_page(admin.stack):
        admin.open(path)
        assert admin.width_at(PHONE) <= PHONE["width"], path
        assert admin.width_at(DESK) <= DESK["width"], path
        assert admin.errors == [], path
        seen += 1
    assert seen > 50, "the walk itself is broken"


@pytest.mark.parametrize(("scheme", "is_light"), [("light", True), ("dark", False)])
def test_pages_follow_the_systems_choice_of_light_or_dark(admin: Admin, scheme: Any, is_light: bool) -> None:
    admin.page.emulate_media(color_scheme=scheme)
    admin.open("/admin/notifications/delivery/")
    lightness = admin.page.evaluate(
        """() => { const context = document.createElement('canvas').getContext('2d');
        context.fillStyle = getComputedStyle(document.querySelector('#main')).backgroundColor;
        context.fillRect(0, 0, 1, 1);
        return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).reduce((a, b) => a + b) / 3; }"""
    )
    assert (lightness > 200) is is_light
    assert (lightness < 60) is not is_light


def test_a_delivery_answers_why(admin: Admin) -> None:
    offers = {"template": "weekly-offers", "data": OFFERS, "channels": ["email"]}
    [(suppressed, state)] = send_and_wait(admin.stack, "grace", **offers)[1]
    assert state == "suppressed"
    admin.open(f"/admin/notifications/delivery/{suppressed}/change/")
    gate = admin.page.locator("[data-gate=preference]")
    expect(gate).to_contain_text("not_opted_in")
    expect(gate).to_have_attribute("data-verdict", "stop")
    expect(admin.page.locator("[data-gate=address]")).to_have_attribute("data-verdict", "not asked")

    [(sent, _)] = send_and_wait(admin.stack, "ada", channels=["email"])[1]
    admin.open(f"/admin/notifications/delivery/{sent}/change/")
    verdicts = admin.page.locator("[data-gate]")
    assert {verdicts.nth(n).get_attribute("data-verdict") for n in range(verdicts.count())} == {"pass"}
    expect(admin.page.locator("[data-table=attempts]")).to_contain_text("accepted", ignore_case=True)


def test_a_key_made_in_the_dialog_opens_the_api_and_is_not_shown_again(admin: Admin) -> None:
    [(client,)] = admin.stack.query("SELECT id FROM clients_client ORDER BY id LIMIT 1")
    admin.open(f"/admin/clients/client/{client}/change/")
    dialog = admin.ask("Make a key")
    dialog.get_by_role("button", name="Make a key").click()
    app_key, secret = (dialog.locator("dd").nth(n).inner_text() for n in range(2))
    credentials = base64.b64encode(f"{app_key}:{secret}".encode()).decode()
    answer = requests.get(
        f"{admin.stack.url}/v1/templates", headers={"Authorization": f"Basic {credentials}"}, timeout=30
    )
    assert answer.status_code == 200
    dialog.get_by_role("link", name="I have copied it").click()
    expect(admin.page.get_by_role("link", name=app_key)).to_be_visible()
    assert secret not in admin.page.content()


def test_an_opt_out_noted_in_the_dialog_stops_the_next_message(admin: Admin) -> None:
    [(minji,)] = admin.stack.query("SELECT id FROM people_user WHERE external_id = 'minji'")
    [(orders,)] = admin.stack.query("SELECT id FROM people_category WHERE key = 'orders'")
    admin.open(f"/admin/people/user/{minji}/change/")
    dialog = admin.ask("Change preferences")
    dialog.locator(f"[name=choice_{orders}_sms]").select_option("off")
    dialog.get_by_role("button", name="Change preferences").click()
    expect(admin.page.get_by_text("The preferences are changed.")).to_be_visible()
    assert [state for _, state in send_and_wait(admin.stack, "minji", channels=["sms"])[1]] == ["suppressed"]
    admin.page.reload()
    expect(admin.page.locator("[data-table=timeline] tbody tr").first).to_contain_text("category_opt_out")


def test_a_channel_paused_here_waits_until_it_is_let_go_on(admin: Admin) -> None:
    admin.open("/admin/notifications/hold/add/")
    admin.page.select_option("[name=what]", "channel:email")
    admin.page.fill("[name=note]", "the sender's domain is being moved")
    admin.page.get_by_role("button", name="Save", exact=True).click()
    expect(admin.page.get_by_role("link", name="email", exact=True)).to_be_visible()
    notification = send(admin.stack, "ada", channels=["email"])
    waits = "SELECT count(*) FROM notifications_pending WHERE waiting = 'channel_paused'"
    admin.stack.wait_for(lambda: admin.stack.query(waits)[0][0] == 1, "the message to wait", within_s=30)
    admin.page.get_by_role("link", name="email", exact=True).click()
    admin.ask("Let go on").get_by_role("button", name="Let go on").click()
    expect(admin.page.get_by_text("The channel goes on.")).to_be_visible()
    rows = admin.stack.wait_for(partial(ended, admin.stack, notification), "the message to be sent", within_s=60)
    assert all(state in ("sent", "delivered") for _, state in rows)


def test_a_filter_and_a_search_lead_to_the_same_row(admin: Admin) -> None:
    [(delivery, _)] = send_and_wait(admin.stack, "ada", channels=["push"], reference="found-again")[1][:1]
    admin.open("/admin/notifications/delivery/?channel__exact=push")
    expect(admin.page.locator(f"a[href*='{delivery}']").first).to_be_visible()
    admin.open("/admin/notifications/delivery/")
    admin.page.fill("#searchbar", "found-again")
    admin.page.keyboard.press("Enter")
    expect(admin.page).to_have_url(f"{admin.stack.url}/admin/notifications/delivery/?q=found-again")
    expect(admin.page.locator(f"a[href*='{delivery}']").first).to_be_visible()
