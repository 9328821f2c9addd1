"""Bodies that no reference describes: refused in the vendor's words, and what was taken can always be shown."""

from __future__ import annotations

import random
import smtplib
from typing import Any

import pytest

from tests.sandbox.conftest import Sandbox
from tests.sandbox.wires import FCM, ApnsClient, fcm_bearer, mail_to, sendgrid_send

ODD = [None, True, -1, 10**20, 1e300, "", "x", "\ud800", "a@b.c", "é", "\0", "x" * 5000, [], [1], {}, {"x": [None]}]
MESSAGE = {
    "token": "abc",
    "notification": {"title": "t", "body": "b", "image": "i"},
    "android": {
        "priority": "high",
        "ttl": "60s",
        "collapse_key": "x",
        "data": {"a": "b"},
        "notification": {"tag": "y"},
    },
    "apns": {"headers": {"a": "b"}, "payload": {"aps": {"alert": "x"}}},
    "webpush": {"headers": {"TTL": "1"}, "data": {"c": "d"}, "notification": {"title": "q"}},
    "data": {"n_id": "x"},
}
PAYLOAD = {"aps": {"alert": {"title": "a", "body": "b"}, "badge": 1, "thread-id": "x"}, "_n": {"d": "x"}, "image": "y"}


def mail() -> dict[str, Any]:
    whole = mail_to("a@b.c", "b@c.d", categories=["x"], headers={"X-A": "b"}, custom_args={"x": "y"}, send_at=1)
    whole["personalizations"][0] |= {"cc": [{"email": "q@q.q"}], "substitutions": {"-a-": "b"}, "headers": {"a": "b"}}
    extra = {"reply_to": {"email": "r@s.t"}, "attachments": [{"content": "eA==", "filename": "f"}]}
    return {**whole, **extra, "mail_settings": {"sandbox_mode": {"enable": False}}}


def bent(value: Any, dice: random.Random) -> Any:
    """The value with a few of its parts exchanged for something odd, or left out."""
    if isinstance(value, dict):
        kept = {name: inner for name, inner in value.items() if dice.random() > 0.02}
        return {name: dice.choice(ODD) if dice.random() < 0.06 else bent(inner, dice) for name, inner in kept.items()}
    if isinstance(value, list):
        return [dice.choice(ODD) if dice.random() < 0.06 else bent(inner, dice) for inner in value]
    return value


@pytest.fixture
def dice() -> random.Random:
    seed = random.randrange(10**6)
    print(f"seed {seed}")  # noqa: T201 - shown when a test fails
    return random.Random(seed)


def everything_can_be_shown(sandbox: Sandbox) -> None:
    entries = sandbox.inbox("limit=200000")
    assert entries
    for entry in entries:
        assert sandbox.request("GET", f"/_feed?after={entry['id'] - 1}").status == 200
        assert sandbox.request("GET", f"/_mail/{entry['id']}").status == 200


def test_fcm(sandbox: Sandbox, dice: random.Random) -> None:
    headers = {"Authorization": f"Bearer {fcm_bearer(sandbox)}"}
    for _ in range(300):
        reply = sandbox.request("POST", FCM, {"message": bent(MESSAGE, dice)}, headers)
        assert reply.status in (200, 400)
        assert reply.json
    everything_can_be_shown(sandbox)


def test_sendgrid(sandbox: Sandbox, dice: random.Random) -> None:
    for _ in range(300):
        reply = sendgrid_send(sandbox, bent(mail(), dice))
        assert reply.status in (200, 202) or (reply.status == 400 and reply.json["errors"][0]["message"])
    everything_can_be_shown(sandbox)


def test_apns(sandbox: Sandbox, dice: random.Random) -> None:
    client = ApnsClient(sandbox)
    for _ in range(300):
        assert client.send(bent(PAYLOAD, dice)).status in (200, 400, 413)
    client.close()
    everything_can_be_shown(sandbox)


LINES = [
    b"Content-Type: multipart/mixed; boundary=x", b"Content-Type: text/html; charset=nonsense", b"Content-Type: ;;;=",
    b"Content-Type: text/plain; charset=utf-16", b"Content-Transfer-Encoding: base64", b"Subject: =?utf-8?b?!!!?=",
    b"Content-Transfer-Encoding: quoted-printable", b"Subject: =?nope?q?x?=", b"From: <<<>", b"Subject: \xff\xfe",
    b"Content-Type: message/rfc822", b"Content-Type: multipart/alternative", b": x", b"X", b"Content-Type: text/html",
    b"Content-Disposition: attachment; filename*=x''%zz", b'Content-Type: multipart/related; boundary="x', b"",
    b"X-Delivery-Id: " + b"y" * 300, b"--x", b"--x--", b"hello", b"\xff\xfe\0", b"=ZZ", b"aGVsbG8", b"<b>",
]  # fmt: skip


def test_smtp(sandbox: Sandbox, dice: random.Random) -> None:
    with smtplib.SMTP("127.0.0.1", sandbox.smtp_port, timeout=15) as client:
        for _ in range(300):
            client.sendmail("a@b.c", ["x@y.z"], b"\r\n".join(dice.choices(LINES, k=dice.randrange(16))))
    everything_can_be_shown(sandbox)
