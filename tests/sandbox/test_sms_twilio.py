from __future__ import annotations

from urllib.parse import parse_qsl

import pytest
from twilio.request_validator import RequestValidator

from tests.sandbox.conftest import Hook, Sandbox
from tests.sandbox.wires import TWILIO, TWILIO_BASIC, twilio_send

TOKEN = "sandbox-auth-token"


def form_of(call: dict) -> dict[str, str]:
    return dict(parse_qsl(call["body"].decode(), keep_blank_values=True))


def test_a_message_is_accepted_and_can_be_read_back(sandbox: Sandbox, hook: Hook) -> None:
    callback = f"{hook.url}/hooks/twilio/main?d=d-5"
    reply = twilio_send(sandbox, To="+15005551234", StatusCallback=callback)
    assert reply.status == 201
    assert (reply.json["status"], reply.json["to"], len(reply.json["sid"])) == ("queued", "+15005551234", 34)
    (entry,) = sandbox.inbox("to=%2B15005551234")
    assert (entry["provider"], entry["channel"], entry["delivery_id"]) == ("twilio", "sms", "d-5")
    assert entry["body"]["Body"] == "Your code is 123456"


@pytest.mark.parametrize("authorization", ["", "Basic bm86bm8=", TWILIO_BASIC + "x", "Bearer x"])
def test_wrong_credentials_are_refused(sandbox: Sandbox, authorization: str) -> None:
    reply = twilio_send(sandbox, authorization)
    assert (reply.status, reply.json["code"]) == (401, 20003)
    assert sandbox.inbox() == []


def test_another_account_is_not_found(sandbox: Sandbox) -> None:
    path = TWILIO.replace("AC0", "AC1")
    reply = sandbox.request("POST", path, b"To=%2B15005550006", {"Authorization": TWILIO_BASIC})
    assert (reply.status, reply.json["code"]) == (404, 20404)


@pytest.mark.parametrize(
    ("form", "code"),
    [
        ({"To": ""}, 21604),
        ({"To": "015005550006"}, 21211),
        ({"To": "+0123456"}, 21211),
        ({"To": "+15005550001"}, 21211),
        ({"To": "+15005550002"}, 21612),
        ({"To": "+15005550003"}, 21408),
        ({"To": "+15005550004"}, 21610),
        ({"To": "+15005550009"}, 21614),
        ({"From": ""}, 21603),
        ({"From": "A sender that is too long"}, 21212),
        ({"From": "+15005550001"}, 21212),
        ({"From": "+15005550007"}, 21606),
        ({"From": "+15005550008"}, 21611),
        ({"From": "", "MessagingServiceSid": "MGnothex"}, 21703),
        ({"Body": ""}, 21602),
        ({"Body": "x" * 1601}, 21617),
        ({"ValidityPeriod": "36001"}, 20001),
        ({"StatusCallback": "not a url"}, 21609),
    ],
)
def test_what_the_vendor_documents_as_an_error_has_its_code(sandbox: Sandbox, form: dict, code: int) -> None:
    reply = twilio_send(sandbox, **form)
    assert (reply.status, reply.json["code"], reply.json["status"]) == (400, code, 400)
    assert reply.json["more_info"].endswith(str(code))
    assert sandbox.inbox() == []


@pytest.mark.parametrize("sender", ["+15005550006", "12345", "Shop"])
def test_senders_of_every_form_are_taken(sandbox: Sandbox, sender: str) -> None:
    assert twilio_send(sandbox, From=sender, Body="x" * 1600).status == 201


def test_a_messaging_service_may_stand_for_the_sender(sandbox: Sandbox) -> None:
    reply = twilio_send(sandbox, From="", MessagingServiceSid="MG" + "0" * 32)
    assert (reply.status, reply.json["status"], reply.json["from"]) == (201, "accepted", None)


def test_status_callbacks_come_signed_over_the_whole_url(sandbox: Sandbox, hook: Hook) -> None:
    callback = f"{hook.url}/hooks/twilio/main?d=d-6&c=1"
    sid = twilio_send(sandbox, StatusCallback=callback).json["sid"]
    for status in ("sent", "delivered"):
        call = hook.wait(
            lambda call, status=status: form_of(call).get("MessageStatus") == status and "d-6" in call["path"]
        )
        form = form_of(call)
        assert (call["path"], form["MessageSid"], form["To"]) == ("/hooks/twilio/main?d=d-6&c=1", sid, "+15005550006")
        signature = call["headers"]["x-twilio-signature"]
        assert RequestValidator(TOKEN).validate(callback, form, signature)
        assert not RequestValidator(TOKEN).validate(callback + "0", form, signature)


def test_a_public_callback_is_signed_as_given_and_carried_to_the_hooks_only(sandbox: Sandbox, hook: Hook) -> None:
    callback = "https://notify.example.com/hooks/twilio/main?d=d-8"
    twilio_send(sandbox, StatusCallback=callback)
    call = hook.wait(lambda call: "d-8" in call["path"])
    assert call["headers"]["host"] == "notify.example.com"
    assert RequestValidator(TOKEN).validate(callback, form_of(call), call["headers"]["x-twilio-signature"])


def test_one_number_answers_stop(sandbox: Sandbox, hook: Hook) -> None:
    twilio_send(sandbox, To="+15005550010", StatusCallback=f"{hook.url}/hooks/twilio/main?d=d-7")
    hook.wait(lambda call: "d-7" in call["path"] and form_of(call).get("MessageStatus") == "delivered")
    call = hook.wait(lambda call: form_of(call).get("Body") == "STOP")
    form = form_of(call)
    assert (call["path"], form["From"], form["OptOutType"]) == ("/hooks/twilio/main", "+15005550010", "STOP")
    url = f"{hook.url}/hooks/twilio/main"
    assert RequestValidator(TOKEN).validate(url, form, call["headers"]["x-twilio-signature"])


def test_segments_are_counted_by_coding(sandbox: Sandbox) -> None:
    counted = [twilio_send(sandbox, Body=text).json["num_segments"] for text in ("x" * 160, "x" * 161, "é" * 160)]
    assert counted == ["1", "2", "1"]
    counted = [
        twilio_send(sandbox, Body=text).json["num_segments"] for text in ("안" * 70, "안" * 71, "😀" * 36, "€" * 81)
    ]
    assert counted == ["1", "2", "2", "2"]
