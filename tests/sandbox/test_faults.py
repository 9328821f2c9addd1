"""Each fault, on each wire: what the caller sees, and what the ledger says."""

from __future__ import annotations

import http.client
import smtplib
import socket
import threading
import time
from collections.abc import Callable
from email.message import EmailMessage

import pytest
from h2.events import StreamEnded

from tests.sandbox.conftest import Reply, Sandbox, start
from tests.sandbox.wires import (
    TWILIO,
    TWILIO_BASIC,
    ApnsClient,
    alert,
    fcm_send,
    mail_to,
    sendgrid_send,
    twilio_send,
)

SENDERS: dict[str, Callable[[Sandbox], Reply]] = {
    "fcm": lambda sandbox: fcm_send(sandbox, {"token": "a"}),
    "twilio": twilio_send,
    "sendgrid": lambda sandbox: sendgrid_send(sandbox, mail_to("a@example.com")),
    "apns": lambda sandbox: ApnsClient(sandbox).send(alert()),
}
ALL = pytest.mark.parametrize("provider", SENDERS)
LOST = (ConnectionError, http.client.HTTPException)


def accepted(sandbox: Sandbox) -> int:
    return len(sandbox.ledger())


@ALL
@pytest.mark.parametrize(
    ("mode", "statuses"),
    [
        ("http_500", {"fcm": 500, "twilio": 500, "sendgrid": 500, "apns": 500}),
        ("http_429", {"fcm": 429, "twilio": 429, "sendgrid": 429, "apns": 429}),
        ("http_401", {"fcm": 401, "twilio": 401, "sendgrid": 401, "apns": 403}),
        ("gone", {"fcm": 404, "twilio": 400, "sendgrid": 400, "apns": 410}),
    ],
)
def test_refusals_are_in_the_vendors_words_and_accept_nothing(
    sandbox: Sandbox, provider: str, mode: str, statuses: dict[str, int]
) -> None:
    sandbox.fault(provider=provider, mode=mode, retry_after=7)
    reply = SENDERS[provider](sandbox)
    assert reply.status == statuses[provider]
    assert isinstance(reply.json, dict)
    if mode == "http_429":
        assert reply.headers["retry-after"] == "7"
    assert accepted(sandbox) == 0


@ALL
def test_an_answer_can_be_scripted_to_the_byte(sandbox: Sandbox, provider: str) -> None:
    sandbox.fault(
        provider=provider,
        mode="answer",
        status=503,
        headers={"Retry-After": "9", "content-type": "text/plain"},
        body="no",
    )
    reply = SENDERS[provider](sandbox)
    assert (reply.status, reply.body, reply.headers["retry-after"]) == (503, b"no", "9")
    assert reply.headers["content-type"].startswith("text/plain")
    assert accepted(sandbox) == 0


@ALL
@pytest.mark.parametrize(("mode", "in_ledger"), [("reset_before", 0), ("reset_after", 1)])
def test_a_reset_leaves_in_the_ledger_what_was_read(sandbox: Sandbox, provider: str, mode: str, in_ledger: int) -> None:
    sandbox.fault(provider=provider, mode=mode, count=1)
    with pytest.raises(LOST):
        SENDERS[provider](sandbox)
    assert accepted(sandbox) == in_ledger
    assert SENDERS[provider](sandbox).status in (200, 201, 202)


def test_a_reset_comes_before_the_body_is_read(sandbox: Sandbox) -> None:
    sandbox.fault(provider="sendgrid", mode="reset_before")
    host, _, port = sandbox.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=5) as raw:
        raw.sendall(b"POST /v3/mail/send HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            raw.recv(100)


def test_a_stream_reset_leaves_the_other_streams_alone(sandbox: Sandbox) -> None:
    client = ApnsClient(sandbox)
    assert client.send(alert()).status == 200
    sandbox.fault(provider="apns", mode="reset_after", count=1)
    first, second = client.open(alert("d-1")), client.open(alert("d-2"))
    with pytest.raises(ConnectionError):
        client.answer(first)
    assert client.answer(second).status == 200
    assert accepted(sandbox) == 3


@ALL
def test_garbage_is_a_success_that_nobody_can_read(sandbox: Sandbox, provider: str) -> None:
    sandbox.fault(provider=provider, mode="garbage")
    reply = SENDERS[provider](sandbox)
    assert (reply.status, reply.body[:6]) == (200, b"<html>")
    assert accepted(sandbox) == 1


@ALL
def test_a_huge_answer_is_huge_and_the_message_accepted(sandbox: Sandbox, provider: str) -> None:
    sandbox.fault(provider=provider, mode="huge")
    assert len(SENDERS[provider](sandbox).body) == 16 * 1024 * 1024
    assert accepted(sandbox) == 1


@ALL
def test_a_hanging_message_is_let_go_when_the_faults_are_deleted(sandbox: Sandbox, provider: str) -> None:
    sandbox.fault(provider=provider, mode="hang")
    seen: list[object] = []

    def send() -> None:
        try:
            seen.append(SENDERS[provider](sandbox))
        except LOST as error:
            seen.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    thread.join(1)
    assert thread.is_alive()
    sandbox.request("DELETE", "/_faults")
    thread.join(5)
    assert isinstance(seen[0], LOST)
    assert accepted(sandbox) == 0


def test_a_slow_answer_drips_after_its_headers(sandbox: Sandbox) -> None:
    sandbox.fault(provider="twilio", mode="slow")
    host, _, port = sandbox.url.removeprefix("http://").partition(":")
    form = b"To=%2B15005550006&From=%2B15005550006&Body=hello"
    head = f"POST {TWILIO} HTTP/1.1\r\nHost: x\r\nAuthorization: {TWILIO_BASIC}\r\nContent-Length: {len(form)}\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=5) as raw:
        raw.sendall(head.encode() + form)
        received, ends = b"", time.monotonic() + 1.2
        while time.monotonic() < ends:
            received += raw.recv(1000)
    head_received, _, body = received.partition(b"\r\n\r\n")
    assert b" 201 " in head_received
    assert 2 <= len(body) <= 6
    assert accepted(sandbox) == 1


def test_a_slow_answer_over_http2_keeps_only_its_own_stream_waiting(sandbox: Sandbox) -> None:
    sandbox.fault(provider="apns", mode="slow", count=1)
    client = ApnsClient(sandbox)
    slow, quick = client.open(alert("d-1")), client.open(alert("d-2"))
    assert client.answer(quick).status == 200
    assert not any(isinstance(event, StreamEnded) and event.stream_id == slow for event in client.events)
    assert accepted(sandbox) == 2
    client.close()
    assert SENDERS["apns"](sandbox).status == 200


def test_goaway_ends_the_connection_after_what_is_in_flight(sandbox: Sandbox) -> None:
    client = ApnsClient(sandbox)
    sandbox.fault(provider="apns", mode="latency", latency_ms=400, count=1)
    sandbox.fault(provider="apns", mode="goaway", count=1)
    answered = client.open(alert("d-1"))
    said = client.goaway()
    assert (said.error_code, said.last_stream_id, said.additional_data) == (0, answered, b'{"reason":"Shutdown"}')
    assert sandbox.inbox()[0]["delivery_id"] == "d-1"


def test_what_is_in_flight_at_a_goaway_is_still_answered(sandbox: Sandbox) -> None:
    sandbox.fault(provider="apns", mode="goaway", latency_ms=200, count=1)
    client = ApnsClient(sandbox)
    client.open(alert("d-1"))
    late = client.open(alert("d-2"))
    assert client.answer(late).status == 200
    assert client.goaway().last_stream_id == late


@ALL
def test_latency_delays_and_refuses_nothing(sandbox: Sandbox, provider: str) -> None:
    SENDERS[provider](sandbox)
    sandbox.fault(provider=provider, mode="latency", latency_ms=600)
    begun = time.monotonic()
    assert SENDERS[provider](sandbox).status in (200, 201, 202)
    assert 0.6 <= time.monotonic() - begun < 3


def test_a_fault_of_one_provider_leaves_the_others_alone(sandbox: Sandbox) -> None:
    sandbox.fault(provider="fcm", mode="http_500")
    assert SENDERS["fcm"](sandbox).status == 500
    assert SENDERS["twilio"](sandbox).status == 201
    sandbox.fault(mode="http_429")
    assert SENDERS["twilio"](sandbox).status == 429


def test_a_count_is_used_up(sandbox: Sandbox) -> None:
    sandbox.fault(provider="twilio", mode="http_500", count=2)
    assert [twilio_send(sandbox).status for _ in range(4)] == [500, 500, 201, 201]
    assert sandbox.request("GET", "/_faults").json == []


def test_a_rate_is_thrown_with_dice_that_can_be_thrown_again(sandbox: Sandbox) -> None:
    def run(seed: int) -> list[int]:
        sandbox.request("DELETE", "/_faults")
        sandbox.fault(provider="twilio", mode="http_500", rate=0.4, seed=seed)
        return [twilio_send(sandbox).status for _ in range(60)]

    first = run(7)
    assert 8 <= first.count(500) <= 40
    assert run(7) == first
    assert run(8) != first


def test_faults_are_listed_with_how_often_they_struck_and_deleted_by_provider(sandbox: Sandbox) -> None:
    sandbox.fault(provider="fcm", mode="http_500")
    sandbox.fault(provider="twilio", mode="http_429", retry_after=3, rate=1)
    twilio_send(sandbox)
    listed = sandbox.request("GET", "/_faults").json
    assert [(one["provider"], one["mode"], one["fired"]) for one in listed] == [
        ("fcm", "http_500", 0),
        ("twilio", "http_429", 1),
    ]
    sandbox.request("DELETE", "/_faults?provider=fcm")
    assert [one["provider"] for one in sandbox.request("GET", "/_faults").json] == ["twilio"]


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"provider": "nobody", "mode": "hang"}, "provider"),
        ({"provider": "fcm", "mode": "nonsense"}, "mode"),
        ({"mode": "hang", "rate": 2}, "rate"),
        ({"mode": "hang", "count": 0}, "count"),
        ({"mode": "hang", "latency_ms": "1"}, "latency_ms"),
        ({"mode": "hang", "surprise": 1}, "surprise"),
        ([], "object"),
    ],
)
def test_a_fault_that_cannot_be_is_refused_with_its_field(sandbox: Sandbox, asked: object, named: str) -> None:
    reply = sandbox.request("POST", "/_faults", asked)
    assert reply.status == 422
    assert named in reply.json["error"]


def test_a_page_of_another_site_cannot_set_faults_or_empty_the_inbox(sandbox: Sandbox) -> None:
    headers = {"Origin": "https://evil.example"}
    assert sandbox.request("POST", "/_faults", {"mode": "hang"}, headers).status == 403
    assert sandbox.request("DELETE", "/_inbox", headers=headers).status == 403
    assert sandbox.request("POST", "/_faults", {"mode": "latency"}, {"Origin": sandbox.url}).status == 201


def test_no_faults_without_permission(tmp_path) -> None:
    sandbox = start(tmp_path, "--no-faults")
    try:
        assert sandbox.request("POST", "/_faults", {"mode": "hang"}).status == 403
        assert twilio_send(sandbox).status == 201
    finally:
        sandbox.stop()


def test_base_latency_holds_for_every_wire(tmp_path) -> None:
    sandbox = start(tmp_path, "--latency-ms", "300")
    try:
        for send in (*SENDERS.values(), smtp_send):
            begun = time.monotonic()
            send(sandbox)
            assert time.monotonic() - begun >= 0.3
    finally:
        sandbox.stop()


# SMTP: the nearest that its replies can say


def smtp_send(sandbox: Sandbox, user: str = "") -> None:
    message = EmailMessage()
    message["Subject"], message["X-Delivery-Id"] = "x", "d-1"
    message.set_content("hello")
    with smtplib.SMTP("127.0.0.1", sandbox.smtp_port, timeout=3) as client:
        if user:
            client.login(user, "sandbox")
        client.send_message(message, "a@example.com", ["b@example.com"])


@pytest.mark.parametrize(
    ("fault", "error", "code"),
    [
        ({"mode": "http_500"}, smtplib.SMTPSenderRefused, 451),
        ({"mode": "http_429"}, smtplib.SMTPSenderRefused, 450),
        ({"mode": "http_401"}, smtplib.SMTPSenderRefused, 530),
        ({"mode": "gone"}, smtplib.SMTPRecipientsRefused, 550),
        ({"mode": "answer", "status": 552, "body": "5.2.2 Mailbox full"}, smtplib.SMTPRecipientsRefused, 552),
        ({"mode": "answer", "status": 554, "body": "5.7.1 Spam", "stage": "data"}, smtplib.SMTPDataError, 554),
        ({"mode": "answer", "status": 421, "body": "4.3.2 Bye", "stage": "mail"}, smtplib.SMTPSenderRefused, 421),
    ],
)
def test_smtp_refusals(sandbox: Sandbox, fault: dict, error: type[Exception], code: int) -> None:
    sandbox.fault(provider="smtp", **fault)
    with pytest.raises(error) as refused:
        smtp_send(sandbox)
    said = refused.value
    found = said.recipients["b@example.com"][0] if isinstance(said, smtplib.SMTPRecipientsRefused) else said.smtp_code
    assert found == code
    assert accepted(sandbox) == 0


def test_smtp_refuses_the_password_while_the_fault_lasts(sandbox: Sandbox) -> None:
    sandbox.fault(provider="smtp", mode="http_401", count=2)  # smtplib tries PLAIN, then LOGIN
    with pytest.raises(smtplib.SMTPAuthenticationError):
        smtp_send(sandbox, "team-a")
    smtp_send(sandbox, "team-a")


@pytest.mark.parametrize(("mode", "in_ledger"), [("reset_before", 0), ("reset_after", 1), ("garbage", 1), ("slow", 1)])
def test_smtp_connections_that_break(sandbox: Sandbox, mode: str, in_ledger: int) -> None:
    sandbox.fault(provider="smtp", mode=mode, count=1)
    begun = time.monotonic()
    try:
        smtp_send(sandbox)
    except (smtplib.SMTPException, ConnectionError, ValueError):
        assert mode != "slow"
    else:
        assert mode == "slow"
        assert time.monotonic() - begun > 2
    assert accepted(sandbox) == in_ledger
    smtp_send(sandbox)


def test_smtp_hangs_after_the_mail_and_accepts_nothing(sandbox: Sandbox) -> None:
    sandbox.fault(provider="smtp", mode="hang", count=1)
    with pytest.raises((TimeoutError, smtplib.SMTPException)):
        smtp_send(sandbox)
    assert accepted(sandbox) == 0
    sandbox.request("DELETE", "/_faults")
    smtp_send(sandbox)
