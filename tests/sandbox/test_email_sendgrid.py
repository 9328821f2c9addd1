from __future__ import annotations

import json
import time

import pytest
from sendgrid.helpers.eventwebhook import EventWebhook

from tests.sandbox.conftest import Hook, Sandbox
from tests.sandbox.wires import mail_to, sendgrid_send


def events_of(hook: Hook, address: str, *names: str, timeout_s: float = 10) -> list[dict]:
    """The events for one address, once all the named ones came."""
    found: dict[str, dict] = {}
    ends = time.monotonic() + timeout_s
    while not set(names) <= found.keys():
        call = hook.wait(lambda call: call["path"].startswith("/hooks/sendgrid/"), max(0.01, ends - time.monotonic()))
        found |= {event["event"]: event for event in json.loads(call["body"]) if event["email"] == address}
    return [found[name] for name in names]


def test_each_recipient_is_an_entry_of_its_own(sandbox: Sandbox) -> None:
    reply = sendgrid_send(sandbox, mail_to("a@example.com", "b@example.com"))
    assert (reply.status, reply.body) == (202, b"")
    assert reply.headers["x-message-id"]
    newest, oldest = sandbox.inbox("provider=sendgrid")
    assert (newest["to"], oldest["to"]) == ("b@example.com", "a@example.com")
    assert (oldest["channel"], oldest["delivery_id"]) == ("email", "d-a@example.com")
    assert [one["to"] for one in oldest["body"]["personalizations"]] == [[{"email": "a@example.com"}]]
    assert oldest["body"]["subject"] == "Your order"


@pytest.mark.parametrize("key", ["", "SG.main.wrong", "SG..sandbox", "XX.main.sandbox", "SG.main"])
def test_wrong_keys_are_refused(sandbox: Sandbox, key: str) -> None:
    reply = sendgrid_send(sandbox, mail_to("a@example.com"), key)
    assert (reply.status, reply.json["errors"][0]["field"]) == (401, None)
    assert sandbox.inbox() == []


A_PERSON = {"to": [{"email": "a@example.com"}]}


def two(first: str, second: str) -> list:
    return [{"to": [{"email": first}, {"email": second}]}]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"personalizations": []}, "personalizations"),
        ({"personalizations": [{"to": [{"email": f"{n}@example.com"}]} for n in range(1001)]}, "personalizations"),
        ({"personalizations": [{"to": []}]}, "personalizations.0.to"),
        ({"personalizations": two("a@example.com", "nonsense")}, "personalizations.0.to.1.email"),
        ({"personalizations": two("a@example.com", "A@example.com")}, "personalizations.0"),
        ({"personalizations": [{**A_PERSON, "custom_args": {"n": 1}}]}, "personalizations.0.custom_args"),
        ({"from": None}, "from"),
        ({"from": {"email": "shop"}}, "from.email"),
        ({"subject": ""}, "subject"),
        ({"content": []}, "content"),
        ({"content": [{"type": "text/plain", "value": ""}]}, "content.0.value"),
        ({"content": [{"type": "text/html", "value": "x"}, {"type": "text/plain", "value": "x"}]}, "content"),
        ({"headers": {"Subject": "x"}}, "headers.Subject"),
        ({"headers": {"X-A": "b\r\nBcc: x@y.z"}}, "headers.X-A"),
        ({"custom_args": {"n": "x" * 10_001}}, "custom_args"),
        ({"categories": [str(n) for n in range(11)]}, "categories"),
        ({"send_at": 99_999_999_999}, "send_at"),
        ({"surprise": 1}, "surprise"),
    ],
)  # fmt: skip
def test_what_the_vendor_documents_as_invalid_names_its_field(sandbox: Sandbox, changes: dict, field: str) -> None:
    reply = sendgrid_send(sandbox, mail_to("a@example.com", **changes))
    assert (reply.status, reply.json["errors"][0]["field"]) == (400, field)
    assert sandbox.inbox() == []


def test_bodies_that_are_no_json_object_are_refused(sandbox: Sandbox) -> None:
    for body in (b"", b"[]", b"nonsense", b"[" * 100_000):
        assert sendgrid_send(sandbox, body).status == 400
    headers = {"Authorization": "Bearer SG.main.sandbox", "Content-Type": "text/plain"}
    assert sandbox.request("POST", "/v3/mail/send", b"{}", headers).status == 415


def test_a_mail_beyond_thirty_megabytes_is_too_large(sandbox: Sandbox) -> None:
    reply = sendgrid_send(
        sandbox, mail_to("a@example.com", content=[{"type": "text/plain", "value": "x" * 31_500_000}])
    )
    assert reply.status == 413


def test_the_vendors_own_sandbox_mode_checks_and_sends_nothing(sandbox: Sandbox, hook: Hook) -> None:
    mode = {"sandbox_mode": {"enable": True}}
    assert sendgrid_send(sandbox, mail_to("a@example.com", mail_settings=mode)).status == 200
    assert sandbox.inbox() == []


def test_events_come_signed_in_batches_with_the_custom_arguments_on_top(sandbox: Sandbox, hook: Hook) -> None:
    reply = sendgrid_send(sandbox, mail_to("delivered+1@sandbox.invalid", "ø@example.com"), "SG.team-a.sandbox")
    call = hook.wait(lambda call: call["path"] == "/hooks/sendgrid/team-a")
    events = json.loads(call["body"])
    assert [event["event"] for event in events] == ["processed", "delivered"] * 2
    assert len({event["sg_event_id"] for event in events}) == 4
    assert events[0]["delivery_id"] == "d-delivered+1@sandbox.invalid"
    assert events[0]["sg_message_id"].startswith(reply.headers["x-message-id"])
    public = EventWebhook((sandbox.tls_dir / "sendgrid-public.txt").read_text().strip())
    signature = call["headers"]["x-twilio-email-event-webhook-signature"]
    timestamp = call["headers"]["x-twilio-email-event-webhook-timestamp"]
    assert public.verify_signature(call["body"].decode(), signature, timestamp)
    assert not public.verify_signature(call["body"].decode() + " ", signature, timestamp)


def test_a_bounce_and_a_complaint(sandbox: Sandbox, hook: Hook) -> None:
    sendgrid_send(sandbox, mail_to("bounced+1@sandbox.invalid"))
    (bounce,) = events_of(hook, "bounced+1@sandbox.invalid", "bounce")
    assert (bounce["type"], bounce["status"]) == ("bounce", "5.1.1")
    sendgrid_send(sandbox, mail_to("complaint+1@sandbox.invalid"))
    events_of(hook, "complaint+1@sandbox.invalid", "processed", "delivered", "spamreport")


def test_a_throttled_mailbox_is_refused_twice_and_then_passes(sandbox: Sandbox) -> None:
    replies = [sendgrid_send(sandbox, mail_to("throttled+sg@sandbox.invalid")) for _ in range(3)]
    assert [reply.status for reply in replies] == [429, 429, 202]
    assert replies[0].headers["retry-after"] == "2"
    assert 0 < int(replies[0].headers["x-ratelimit-reset"]) - time.time() <= 4
    assert len(sandbox.inbox("provider=sendgrid")) == 1


def test_a_slow_mailbox_is_accepted_after_five_seconds(sandbox: Sandbox) -> None:
    begun = time.monotonic()
    assert sendgrid_send(sandbox, mail_to("slow+1@sandbox.invalid")).status == 202
    assert 4.9 < time.monotonic() - begun < 7
