"""The page for people, in a real browser."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.sandbox.conftest import Sandbox
from tests.sandbox.wires import ApnsClient, alert, fcm_send, mail_to, sendgrid_send, twilio_send


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("chromium-browser"), args=["--no-sandbox"]
        )
        yield found
        found.close()


@pytest.fixture
def page(browser, sandbox: Sandbox) -> Iterator[Page]:
    """The page, open on an empty inbox; it must end without a single complaint in its console."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints: list[str] = []
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(sandbox.url)
    expect(page.get_by_role("heading", name="Nothing has arrived yet")).to_be_visible()
    yield page
    page.close()
    assert complaints == []


def push(sandbox: Sandbox, title: str, **headers: str) -> None:
    client = ApnsClient(sandbox)
    client.send({"aps": {"alert": {"title": title, "body": "Order A-1001"}}}, **headers)
    client.close()


def test_messages_appear_by_themselves_where_they_belong(sandbox: Sandbox, page: Page) -> None:
    push(sandbox, "On its way")
    push(sandbox, "Build finished", device="cd" * 32, apns_topic="com.example.mac.ci")
    fcm_send(sandbox, {"token": "sandbox-ok-1", "notification": {"title": "Weekly offers"}})
    twilio_send(sandbox, Body="Your code is 482913")
    sendgrid_send(sandbox, mail_to("ada@example.com"))
    expect(page.locator(".phone .push", has_text="On its way")).to_be_visible()
    expect(page.locator(".phone.android .push", has_text="Weekly offers")).to_be_visible()
    expect(page.locator(".desktop .push", has_text="Build finished")).to_be_visible()
    expect(page.locator(".thread .bubble", has_text="482913")).to_be_visible()
    expect(page.locator(".letter", has_text="Your order")).to_be_visible()
    expect(page.locator("#total")).to_have_text("5")
    expect(page.locator("#nothing")).to_be_hidden()


def test_a_push_with_the_same_collapse_id_replaces_the_first(sandbox: Sandbox, page: Page) -> None:
    push(sandbox, "First", apns_collapse_id="order")
    push(sandbox, "Second", apns_collapse_id="order")
    expect(page.locator(".push", has_text="Second")).to_contain_text("replaced 1 earlier")
    expect(page.locator(".push", has_text="First")).to_have_count(0)


def test_a_mail_is_rendered_and_its_scripts_are_not(sandbox: Sandbox, browser) -> None:
    html = "<h1>Hello <b>Ada</b></h1><script>document.body.textContent = 'owned'</script>"
    sendgrid_send(sandbox, mail_to("ada@example.com", content=[{"type": "text/html", "value": html}]))
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(sandbox.url)
    expect(page.frame_locator("#reader-frame").get_by_role("heading", name="Hello Ada")).to_be_visible()
    assert "owned" not in page.frame_locator("#reader-frame").locator("body").inner_text()
    page.close()


def test_markup_in_a_message_is_shown_as_text(sandbox: Sandbox, page: Page) -> None:
    twilio_send(sandbox, Body="<img src=x onerror=alert(1)>")
    push(sandbox, "<b>bold</b>")
    expect(page.locator(".bubble p")).to_have_text("<img src=x onerror=alert(1)>")
    expect(page.locator(".push b")).to_have_text("<b>bold</b>")


def test_tabs_and_search_narrow_what_is_shown(sandbox: Sandbox, page: Page) -> None:
    twilio_send(sandbox, To="+15005551111", Body="alpha")
    twilio_send(sandbox, To="+15005552222", Body="beta")
    sendgrid_send(sandbox, mail_to("ada@example.com"))
    expect(page.locator(".thread")).to_have_count(2)
    page.get_by_role("tab", name="Mail").click()
    expect(page.locator(".thread").first).to_be_hidden()
    page.get_by_role("tab", name="SMS").click()
    page.get_by_role("searchbox").fill("beta")
    expect(page.locator(".thread")).to_have_count(1)
    page.get_by_role("searchbox").fill("nobody")
    expect(page.get_by_text("Nothing here matches.")).to_be_visible()


def test_faults_are_set_and_removed_from_the_page(sandbox: Sandbox, page: Page) -> None:
    page.get_by_role("button", name="Faults").click()
    page.get_by_label("Provider").select_option("twilio")
    page.get_by_label("What happens").select_option("http_429")
    page.get_by_label("Retry-After, s").fill("3")
    page.get_by_role("button", name="Start this fault").click()
    expect(page.locator("#fault-list li")).to_contain_text("Too many requests")
    assert twilio_send(sandbox).status == 429
    page.get_by_role("button", name="Remove all faults").click()
    expect(page.locator("#fault-list li")).to_have_count(0)
    assert twilio_send(sandbox).status == 201


def test_emptying_brings_back_the_first_screen(sandbox: Sandbox, page: Page) -> None:
    twilio_send(sandbox)
    expect(page.locator(".thread")).to_have_count(1)
    page.get_by_role("button", name="Empty").click()
    expect(page.get_by_role("heading", name="Nothing has arrived yet")).to_be_visible()
    assert sandbox.inbox() == []


def test_it_fits_a_narrow_phone_in_light_and_dark(sandbox: Sandbox, browser) -> None:
    push(sandbox, "On its way")
    twilio_send(sandbox, Body="x" * 300)
    sendgrid_send(sandbox, mail_to("ada-with-a-very-long-address-that-does-not-fit@example.com"))
    for scheme in ("light", "dark"):
        page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
        page.goto(sandbox.url)
        expect(page.locator(".push")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.get_by_role("tab", name="Mail").click()
        page.locator(".letter").click()
        expect(page.frame_locator("#reader-frame").get_by_text("On its way")).to_be_visible()
        page.get_by_role("button", name="Back").click()
        expect(page.locator(".letter")).to_be_visible()
        page.close()


def test_it_keeps_up_with_a_flood(sandbox: Sandbox, page: Page) -> None:
    for batch in range(5):
        sendgrid_send(sandbox, mail_to(*(f"u{batch}-{n}@example.com" for n in range(1000))))
    begun = time.monotonic()
    expect(page.locator("#total")).to_have_text("5,000")
    expect(page.locator(".letter").first).to_be_visible()
    assert time.monotonic() - begun < 5


def test_alert_without_delivery_id_is_fine(sandbox: Sandbox, page: Page) -> None:
    payload = alert()
    del payload["_n"]
    client = ApnsClient(sandbox)
    assert client.send(payload).status == 200
    client.close()
    expect(page.locator(".push")).to_be_visible()
