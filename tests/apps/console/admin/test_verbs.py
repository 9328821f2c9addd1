"""What staff can do: in a dialog, through the services, noted with a name."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.urls import reverse

from apps.clients.models import AppKey, AppSecret, Client
from apps.notifications.models import Content, Delivery, Hold, Notification
from apps.people import services as people
from apps.people.models import Address, Category, Change, Device, Preference, Suppression, User
from apps.providers.models import ProviderAccount
from apps.templates.models import Template, TemplateVersion
from notifier.message import Mode
from notifier.providers.registry import PROVIDERS, provider_class
from tests.apps.console.admin.site import Site, at
from tests.apps.notifications.world import World, deliveries, publish, states
from tests.apps.rest.callers import Api, forget_callers

SECRET = re.compile(r"as_[\w-]{43}")


def shown(text: str) -> dict[str, str]:
    return dict(re.findall(r"<dt>(\w+)</dt>\s*<dd><code>([^<]+)</code>", text))


# --- Clients and keys -------------------------------------------------------------------------------------------


def test_a_key_made_here_works_and_its_secret_is_shown_once(site: Site, world: World):
    client = world.api.client
    answer = site.ask(Client, client.pk, "make_key", mode="live")
    values = shown(answer.content.decode())
    assert "no-store" in answer["Cache-Control"]
    api = Api(client, values["appKey"], values["appSecret"])
    assert api.get("/v1/templates").status_code == 200
    for path in (
        at(Client, "change", client.pk),
        at(AppKey, "change", values["appKey"]),
        at(Client, "history", client.pk),
    ):
        assert values["appSecret"] not in site.read(path)
    assert values["appSecret"] not in "".join(LogEntry.objects.values_list("change_message", flat=True))
    assert f"…{values['appSecret'][-4:]}" in site.page(AppKey, values["appKey"])


def test_a_second_secret_works_beside_the_first_and_a_third_is_refused(site: Site, world: World):
    api = world.api
    values = shown(site.ask(AppKey, api.app_key, "add_secret").content.decode())
    assert Api(api.client, api.app_key, values["appSecret"]).get("/v1/templates").status_code == 200
    assert api.get("/v1/templates").status_code == 200
    refused = site.ask(AppKey, api.app_key, "add_secret")
    assert "HX-Redirect" in refused.headers
    assert site.told() == ["the key has 2 live secrets; revoke the one that is no longer used first"]
    assert AppSecret.objects.filter(key=api.app_key).count() == 2


def test_a_revoked_secret_opens_nothing_and_the_other_goes_on(site: Site, world: World):
    api = world.api
    values = shown(site.ask(AppKey, api.app_key, "add_secret").content.decode())
    first = AppSecret.objects.filter(key=api.app_key).earliest("pk")
    site.ask(AppSecret, first.pk, "revoke")
    forget_callers()
    assert api.get("/v1/templates").status_code == 401
    assert Api(api.client, api.app_key, values["appSecret"]).get("/v1/templates").status_code == 200


def test_following_the_link_of_a_verb_does_nothing(site: Site, world: World):
    path = at(AppKey, "revoke", world.api.app_key)
    assert site.browser.get(path).status_code == 200
    assert site.browser.post(path).status_code == 200  # without what the dialog sends
    assert AppKey.objects.get(pk=world.api.app_key).is_active
    site.ask(AppKey, world.api.app_key, "revoke")
    forget_callers()
    assert world.api.get("/v1/templates").status_code == 401


def test_a_verb_is_refused_to_who_may_only_look(world: World):
    looking = Site.of("looking", "clients.view_appkey", "clients.view_client")
    assert "Revoke this key" not in looking.page(AppKey, world.api.app_key)
    path = at(AppKey, "revoke", world.api.app_key)
    assert looking.browser.get(path).status_code == 403
    assert looking.browser.post(path, {"_form_submitted": "on"}).status_code == 403
    assert AppKey.objects.get(pk=world.api.app_key).is_active


def client_form(**values: Any) -> dict[str, Any]:
    return {
        "name": "warehouse",
        "is_active": "on",
        "scopes": ["send", "read"],
        "channels": ["email"],
        "lanes": ["normal"],
        "requests_per_minute": "60",
        "recipients_per_day": "100",
        "time_zone": "Asia/Seoul",
        "keys-TOTAL_FORMS": "0",
        "keys-INITIAL_FORMS": "0",
        **values,
    }


def test_a_client_made_here_is_what_the_form_says(site: Site):
    answer = site.browser.post(
        at(Client, "add"), client_form(senders="Shop <a@b.example>\n+4479\n", ip_ranges="10.0.0.0/8")
    )
    assert answer.status_code == 302, answer.content.decode()
    made = Client.objects.get(name="warehouse")
    assert (made.scopes, made.channels, made.lanes) == (["send", "read"], ["email"], ["normal"])
    assert made.categories is None, "no line means all categories, not none"
    assert made.senders == ["Shop <a@b.example>", "+4479"]
    assert made.ip_ranges == ["10.0.0.0/8"]


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("ip_ranges", "10.0.0.0/8\nhome", "home is no address or range"),
        ("time_zone", "Mars/Olympus", "not one of the available choices"),
        ("senders", "x" * 400, "is longer than 320 characters"),
        ("scopes", ["everything"], "not one of the available choices"),
        ("requests_per_minute", "0", "greater than or equal to 1"),
    ],
)
def test_a_client_that_could_not_work_is_refused(site: Site, field: str, value: Any, says: str):
    answer = site.browser.post(at(Client, "add"), client_form(**{field: value}))
    assert answer.status_code == 200
    assert says in answer.content.decode()
    assert not Client.objects.exists()


# --- Provider accounts ------------------------------------------------------------------------------------------

MAIL = {
    "name": "mail-new",
    "weight": "100",
    "setting_host": "mail.example.com",
    "setting_port": "587",
    "setting_security": "starttls",
    "setting_username": "us",
    "setting_sender": "a@b.example",
    "setting_helo_name": "localhost",
    "setting_connections": "10",
}


def add_mail(site: Site, **values: str) -> Any:
    return site.browser.post(
        at(ProviderAccount, "add") + "?kind=smtp", {**MAIL, "setting_password": "hunter2!", **values}
    )


def test_every_kind_of_account_has_a_form_with_all_of_its_settings(site: Site):
    chosen = site.read(at(ProviderAccount, "add"))
    for kind in PROVIDERS:
        assert f"?kind={kind}" in chosen
        form = site.read(f"{at(ProviderAccount, 'add')}?kind={kind}")
        for name in provider_class(kind).Settings.__dataclass_fields__:
            assert f'name="setting_{name}"' in form


def test_an_account_is_stored_with_its_secret_encrypted_and_never_shown(site: Site):
    assert add_mail(site).status_code == 302
    account = ProviderAccount.objects.get(name="mail-new")
    assert (account.kind, account.secrets) == ("smtp", {"password": "hunter2!"})
    assert account.settings == {"host": "mail.example.com", "username": "us", "sender": "a@b.example"}
    for path in (at(ProviderAccount, "change", account.pk), at(ProviderAccount, "history", account.pk)):
        assert "hunter2!" not in site.read(path)
    assert "hunter2!" not in "".join(LogEntry.objects.values_list("change_message", flat=True))


def test_a_secret_stays_when_its_field_is_left_empty_and_goes_when_asked(site: Site):
    add_mail(site)
    account = ProviderAccount.objects.get(name="mail-new")
    page = at(ProviderAccount, "change", account.pk)
    assert site.browser.post(page, {**MAIL, "setting_host": "other.example.com"}).status_code == 302
    account.refresh_from_db()
    assert (account.settings["host"], account.secrets) == ("other.example.com", {"password": "hunter2!"})
    assert site.browser.post(page, {**MAIL, "setting_password": "env:MAIL_PASSWORD"}).status_code == 302
    account.refresh_from_db()
    assert account.secrets == {"password": "env:MAIL_PASSWORD"}
    assert site.browser.post(page, {**MAIL, "setting_username": "", "forget_password": "on"}).status_code == 302
    account.refresh_from_db()
    assert account.secrets == {}


def test_an_account_that_could_not_work_is_refused_at_the_field_and_its_secret_is_not_echoed(site: Site):
    answer = add_mail(site, setting_port="70000")
    text = answer.content.decode()
    assert answer.status_code == 200
    assert answer.context["adminform"].form.errors == {"setting_port": ["is no port; 587 for starttls, 465 for tls"]}
    assert "hunter2!" not in text
    assert not ProviderAccount.objects.exists()


def test_pausing_an_account_keeps_the_reason_and_activating_forgets_it(site: Site):
    add_mail(site)
    account = ProviderAccount.objects.get(name="mail-new")
    before = account.updated_at
    site.ask(ProviderAccount, account.pk, "pause", reason="their incident 42")
    account.refresh_from_db()
    assert (account.status, account.reason) == ("paused", "their incident 42")
    assert account.updated_at > before, "workers take a new copy by this"
    assert "their incident 42" in site.list(ProviderAccount)
    site.ask(ProviderAccount, account.pk, "activate")
    account.refresh_from_db()
    assert (account.status, account.reason) == ("active", "")


def test_an_account_of_a_kind_that_is_not_installed_can_be_seen(site: Site):
    account = ProviderAccount.objects.create(name="later", kind="pigeon", settings={"loft": "north"})
    assert "pigeon" in site.page(ProviderAccount, account.pk)
    assert "later" in site.list(ProviderAccount)
    assert "later" in site.read(reverse("admin:index"))


# --- Holding and cancelling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["channel", "account", "client", "category"])
def test_anything_with_a_name_can_be_paused_with_a_reason_and_let_go_on(site: Site, world: World, scope: str):
    subjects: dict[str, tuple[Any, str]] = {
        "channel": ("sms", "sms"),
        "account": (ProviderAccount.objects.get(name="mail-main").pk, "mail-main"),
        "client": (world.api.client.pk, "shop"),
        "category": (Category.objects.get(key="orders").pk, "orders"),
    }
    key, name = subjects[scope]
    answer = site.browser.post(at(Hold, "add"), {"what": f"{scope}:{key}", "note": "a storm of complaints"})
    assert answer.status_code == 302, answer.content.decode()
    hold = Hold.objects.get()
    assert (hold.scope, hold.subject, hold.action) == (scope, str(key), "pause")
    assert (hold.note, hold.created_by) == ("a storm of complaints", "admin:root")
    assert f">{name}</a>" in site.list(Hold)
    site.ask(Hold, hold.pk, "lift")
    assert not Hold.objects.exists()


def test_a_hold_needs_one_subject_and_a_reason_and_is_not_made_twice(site: Site, world: World):
    def says(**values: str) -> str:
        answer = site.browser.post(at(Hold, "add"), values)
        assert answer.status_code == 200
        return str(answer.context["adminform"].form.errors.as_json())

    unknown = "01936d3c-0000-7000-8000-000000000000"
    assert "Give one thing" in says(note="why")
    assert "Give one thing" in says(what="channel:sms", notification=unknown, note="why")
    assert "no such notification" in says(notification=unknown, note="why")
    assert "required" in says(what="channel:sms")
    assert site.browser.post(at(Hold, "add"), {"what": "channel:sms", "note": "why"}).status_code == 302
    assert "already" in says(what="channel:sms", note="why")


def test_a_notification_is_paused_let_go_on_and_cancelled_from_its_page(site: Site, world: World):
    sent = str(world.send("ada").json()["id"])
    site.ask(Notification, sent, "pause", reason="wrong price")
    assert Hold.objects.get().subject == sent
    assert "wrong price" in site.page(Notification, sent)
    site.ask(Notification, sent, "resume")
    assert not Hold.objects.exists()
    site.ask(Notification, sent, "cancel", reason="wrong price")
    assert {(state, reason) for _, state, reason in states(sent)} == {("cancelled", "by_operator")}
    assert [entry.get_change_message() for entry in LogEntry.objects.order_by("pk")] == [
        "Paused: wrong price",
        "Let go on.",
        "Cancelled: wrong price",
    ]


# --- People -----------------------------------------------------------------------------------------------------


def preferences(**chosen: str) -> dict[str, str]:
    """The dialog's values: everything by default, but for `<category>__<channel>`."""
    values = {"everything": "on"}
    for name, choice in chosen.items():
        key, channel = name.split("__")
        values[f"choice_{Category.objects.get(key=key).pk}_{channel}"] = choice
    return values


def test_an_opt_out_noted_here_stops_the_next_message_and_says_so(site: Site, world: World):
    ada = User.objects.get(external_id="ada")
    site.ask(User, ada.pk, "change_preferences", **preferences(orders__sms="off"))
    assert site.told() == ["The preferences are changed."]
    chosen = Preference.objects.get(user=ada)
    assert (chosen.channel, chosen.is_on, chosen.source) == ("sms", False, "admin:root")
    sent = str(world.send("ada", channels=["sms"]).json()["id"])
    assert states(sent) == [("sms", "suppressed", "category_opt_out")]
    assert "category_opt_out" in site.page(User, ada.pk)
    why = site.page(Delivery, deliveries(sent)[0].pk)
    verdicts = dict(re.findall(r'data-gate="(\w+)" data-verdict="([\w ]+)"', why))
    assert verdicts["hold"] == "pass"
    assert verdicts["preference"] == "stop"
    assert verdicts["suppression"] == verdicts["address"] == "not asked"


def test_everything_off_and_quiet_hours_are_noted_and_taken_back(site: Site, world: World):
    ada = User.objects.get(external_id="ada")
    site.ask(User, ada.pk, "change_preferences", quiet_from="22:00", quiet_to="07:30")
    ada.refresh_from_db()
    assert ada.is_opted_out
    assert (str(ada.quiet_from), str(ada.quiet_to)) == ("22:00:00", "07:30:00")
    assert "Everything is off" in site.page(User, ada.pk)
    site.ask(User, ada.pk, "change_preferences", everything="on")
    ada.refresh_from_db()
    assert not ada.is_opted_out
    assert ada.quiet_from is None
    assert Change.objects.filter(user=ada, kind="user.preferences_changed", source="admin:root").count() == 2


def test_one_end_of_quiet_hours_alone_is_refused(site: Site, world: World):
    ada = User.objects.get(external_id="ada")
    answer = site.ask(User, ada.pk, "change_preferences", everything="on", quiet_from="22:00")
    assert "Give both times" in answer.content.decode()
    assert User.objects.get(pk=ada.pk).quiet_from is None


def test_a_retired_address_and_device_get_nothing_more(site: Site, world: World):
    ada = User.objects.get(external_id="ada")
    site.ask(Address, Address.objects.get(user=ada, channel="sms").pk, "retire")
    site.ask(Device, Device.objects.get(user=ada).pk, "retire")
    sent = str(world.send("ada").json()["id"])
    assert {(channel, reason) for channel, _, reason in states(sent)} >= {
        ("sms", "address_retired"),
        ("push", "device_retired"),
    }
    assert "by_operator" in site.page(User, ada.pk)


def test_a_suppression_made_here_stops_an_address_and_lifting_it_lets_it_go(site: Site, world: World):
    form = {"channel": "sms", "address": "+1 500 555-0006", "category": "", "note": "asked by phone"}
    assert site.browser.post(at(Suppression, "add"), form).status_code == 302
    entry = Suppression.objects.get()
    assert (entry.address, entry.reason, entry.source) == ("+15005550006", "manual", "admin:root")
    sent = str(world.send("ada", channels=["sms"]).json()["id"])
    assert states(sent) == [("sms", "suppressed", "suppressed_manual")]
    site.ask(Suppression, entry.pk, "lift", reason="asked again")
    assert not Suppression.objects.exists()
    sent = str(world.send("ada", channels=["sms"]).json()["id"])
    assert states(sent) == [("sms", "queued", "")]
    assert LogEntry.objects.latest("pk").change_message == "Lifted: asked again"


def test_a_suppression_of_what_is_no_address_is_refused(site: Site, world: World):
    answer = site.browser.post(at(Suppression, "add"), {"channel": "email", "address": "ada at home", "note": ""})
    assert answer.status_code == 200
    assert "Give an email address" in answer.content.decode()


def test_a_complaint_is_lifted_only_by_who_may_and_with_a_reason(site: Site, world: World):
    entry, _ = people.suppress("email", "bob@example.com", "complaint", source="test")
    looking = Site.of("support", "people.view_suppression", "people.change_suppression")
    assert looking.browser.get(at(Suppression, "lift", entry.pk)).status_code == 403
    site.ask(Suppression, entry.pk, "lift")
    assert Suppression.objects.filter(pk=entry.pk).exists(), "no reason was given"
    site.ask(Suppression, entry.pk, "lift", reason="they called")
    assert not Suppression.objects.filter(pk=entry.pk).exists()


def test_addresses_are_masked_for_who_may_not_see_them(site: Site, world: World):
    sent = str(world.send("ada", {"email": "stranger@example.com"}, channels=["email"]).json()["id"])
    ada = User.objects.get(external_id="ada")
    mail = Address.objects.get(user=ada, channel="email")
    people.suppress("email", "bob@example.com", "manual", source="test")
    support = Site.of(
        "support",
        *(f"people.view_{name}" for name in ("user", "address", "device", "suppression", "preference")),
        *(f"notifications.view_{name}" for name in ("delivery", "notification", "content", "attempt", "event")),
    )
    paths = [at(User, "change", ada.pk), at(Address, "change", mail.pk), at(Notification, "change", sent)]
    paths += [at(Delivery, "change", delivery.pk) for delivery in deliveries(sent)]
    paths += [at(model, "changelist") for model in (User, Address, Device, Suppression, Delivery, Notification)]
    paths += [at(Suppression, "change", Suppression.objects.get().pk)]
    for path in paths:
        text = support.read(path)
        assert not re.search(r"ada@sandbox|stranger@|bob@|5005550006|sandbox-ok-ada", text), path
    assert "…alid" in support.page(Address, mail.pk)
    assert support.browser.get(at(Content, "change", sent)).status_code == 403
    assert "delivered+ada@sandbox.invalid" in site.page(Address, mail.pk)
    assert "stranger@example.com" in site.page(Content, sent)
    for path in paths:
        assert "sandbox-ok-ada" not in site.read(path), "a token is nobody's to see"


# --- Templates --------------------------------------------------------------------------------------------------


def test_a_version_is_published_and_rolled_back_from_its_page(site: Site, world: World):
    template = Template.objects.get(key="shipped")
    publish("shipped", "orders", sms={"en": {"text": "Second: {{ order }}"}})
    first = TemplateVersion.objects.get(template=template, number=1)
    site.ask(TemplateVersion, first.pk, "publish")
    assert "comes back by rollback" in site.told()[0]
    site.ask(TemplateVersion, first.pk, "roll_back")
    template.refresh_from_db()
    assert template.published is not None
    assert (template.published.number, template.published.channels) == (3, first.channels)
    assert template.published.created_by == "admin:root"


def test_a_version_is_shown_as_its_recipient_would_see_it_and_can_run_nothing(site: Site, world: World):
    html = "<p>Hello</p><script>alert(1)</script>"
    number = publish("page", "orders", email={"en": {"subject": "Hi", "html": html}}, sms={"en": {"text": "Hi"}})
    version = TemplateVersion.objects.get(template__key="page", number=number)
    text = site.page(TemplateVersion, version.pk)
    assert 'sandbox=""' in text
    assert "<script>alert" not in text


def test_keys_of_the_test_mode_are_told_apart(site: Site, world: World):
    site.ask(Client, world.api.client.pk, "make_key", mode="test")
    assert AppKey.objects.filter(mode=Mode.TEST.value).count() == 1
