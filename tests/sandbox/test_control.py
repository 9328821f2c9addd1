"""The inbox, the ledger, receipts, the page and the process itself."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.sandbox.conftest import ROOT, Hook, Sandbox, start
from tests.sandbox.wires import ApnsClient, alert, fcm_send, mail_to, sendgrid_send, twilio_send


def test_it_says_where_it_listens_and_that_it_is_ready(running: Sandbox) -> None:
    assert [line.split()[:2] for line in running.lines] == [
        ["sandbox", "http"],
        ["sandbox", "apns"],
        ["sandbox", "smtp"],
        ["sandbox", "keys"],
        ["sandbox", "ready"],
    ]
    assert running.request("GET", "/healthz").status == 200


def test_the_inbox_filters_limits_and_is_newest_first(sandbox: Sandbox) -> None:
    for n in range(3):
        twilio_send(sandbox, To=f"+1500555100{n}")
    sendgrid_send(sandbox, mail_to("a@example.com"))
    assert [entry["to"] for entry in sandbox.inbox("channel=sms")] == ["+15005551002", "+15005551001", "+15005551000"]
    assert [entry["to"] for entry in sandbox.inbox("limit=2")] == ["a@example.com", "+15005551002"]
    assert len(sandbox.inbox("to=%2B15005551001")) == 1
    assert len(sandbox.inbox("to=+15005551001")) == 1
    assert len(sandbox.inbox("delivery_id=d-a@example.com")) == 1
    assert sandbox.inbox("provider=fcm") == []
    ids = [entry["id"] for entry in sandbox.inbox()]
    assert ids == sorted(ids, reverse=True)


def test_a_reader_who_goes_on_from_the_newest_id_misses_nothing(sandbox: Sandbox) -> None:
    twilio_send(sandbox)
    cursor = sandbox.inbox("limit=1")[0]["id"]
    for n in range(7):
        twilio_send(sandbox, To=f"+1500555100{n}")
    seen: list[str] = []
    while page := sandbox.inbox(f"after={cursor}&limit=3"):
        seen += [entry["to"] for entry in reversed(page)]
        cursor = page[0]["id"]
    assert seen == [f"+1500555100{n}" for n in range(7)]


def test_counts(sandbox: Sandbox) -> None:
    for _ in range(3):
        twilio_send(sandbox)
    sendgrid_send(sandbox, mail_to("a@example.com", "b@example.com"))
    counts = {
        query: sandbox.request("GET", f"/_inbox/count?{query}").json["count"]
        for query in ("", "channel=sms", "provider=sendgrid", "to=a@example.com", "channel=push")
    }
    assert counts == {"": 5, "channel=sms": 3, "provider=sendgrid": 2, "to=a@example.com": 1, "channel=push": 0}


@pytest.mark.parametrize("query", ["limit=-1", "limit=x", "limit=200001", "after=x", "what=1"])
def test_a_query_that_cannot_be_is_refused(sandbox: Sandbox, query: str) -> None:
    assert sandbox.request("GET", f"/_inbox?{query}").status == 422


def test_emptying_forgets_everything_but_never_reuses_an_id(sandbox: Sandbox) -> None:
    twilio_send(sandbox)
    before = sandbox.inbox()[0]["id"]
    assert sandbox.request("DELETE", "/_inbox").status == 204
    assert (sandbox.inbox(), sandbox.ledger()) == ([], [])
    assert sandbox.request("GET", "/_inbox/count").json["count"] == 0
    twilio_send(sandbox)
    assert sandbox.inbox()[0]["id"] > before


def test_the_ledger_lists_every_acceptance_with_its_time(sandbox: Sandbox) -> None:
    begun = time.time()
    fcm_send(sandbox, {"token": "a", "data": {"n_id": "d-fcm"}})
    client = ApnsClient(sandbox)
    client.send(alert("d-apns"))
    client.close()
    twilio_send(sandbox, StatusCallback="http://127.0.0.1:1/hooks/twilio/x?d=d-twilio&c=1")
    sendgrid_send(sandbox, mail_to("a@example.com"))
    twilio_send(sandbox)
    ids, times = zip(*sandbox.ledger(), strict=True)
    assert ids == ("d-fcm", "d-apns", "d-twilio", "d-a@example.com", None)
    assert list(times) == sorted(times)
    assert begun - 0.01 <= times[0] <= times[-1] <= time.time() + 0.01


def test_the_inbox_is_bounded_by_number_and_the_bodies_by_weight(tmp_path) -> None:
    sandbox = start(tmp_path, "--hold", "20", "--hold-mb", "1", "--bare")
    try:
        mail = mail_to("a@example.com", content=[{"type": "text/plain", "value": "x" * 200_000}])
        for _ in range(30):
            assert sendgrid_send(sandbox, mail).status == 202
        entries = sandbox.inbox("limit=1000")
        assert len(entries) == 20
        held = [entry["body"] is not None for entry in entries]
        assert held == [True] * 5 + [False] * 15
        assert len(sandbox.ledger()) == 30
        assert sandbox.request("GET", "/_inbox/count?channel=email").json["count"] == 30
        assert sandbox.request("GET", "/_feed").status == 200
        for _ in range(30):
            twilio_send(sandbox)
        assert all(entry["body"] for entry in sandbox.inbox("limit=1000"))
    finally:
        sandbox.stop()


def test_a_long_inbox_is_read_while_messages_go_on(sandbox: Sandbox) -> None:
    mail = mail_to(*(f"{n}@example.com" for n in range(1000)))
    for _ in range(3):
        sendgrid_send(sandbox, mail)
    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(sandbox.inbox, "limit=200000")
        sent = [twilio_send(sandbox).status for _ in range(20)]
        assert len(reading.result()) >= 3000
    assert set(sent) == {201}


# Receipts


def test_receipts_are_tried_again_until_the_hook_takes_them(sandbox: Sandbox, hook: Hook) -> None:
    hook.refuse[:] = [503, 500]
    sendgrid_send(sandbox, mail_to("again@example.com"), "SG.again.sandbox")
    calls = [hook.wait(lambda call: call["path"] == "/hooks/sendgrid/again") for _ in range(3)]
    assert [call["answered"] for call in calls] == [503, 500, 200]
    assert len({call["body"] for call in calls}) == 1


def test_receipts_wait_for_a_hook_that_is_not_there(tmp_path) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    sandbox = start(tmp_path, "--hooks-url", f"http://127.0.0.1:{port}")
    try:
        sendgrid_send(sandbox, mail_to("a@example.com"))
        time.sleep(1)
        assert sandbox.request("GET", "/_receipts").json == {"waiting": 1, "sent": 0, "refused": 0, "dropped": 0}
        with socket.create_server(("127.0.0.1", port)) as late:
            late.settimeout(10)
            connection, _ = late.accept()
            assert connection.recv(100).startswith(b"POST /hooks/sendgrid/main ")
            connection.close()
    finally:
        sandbox.stop()


def test_bare_sends_no_receipts(tmp_path, hook: Hook) -> None:
    sandbox = start(tmp_path, "--bare", "--hooks-url", hook.url)
    try:
        sendgrid_send(sandbox, mail_to("bare@example.com"), "SG.bare.sandbox")
        twilio_send(sandbox, StatusCallback=f"{hook.url}/hooks/twilio/bare")
        with pytest.raises(AssertionError, match="no such call"):
            hook.wait(lambda call: "bare" in call["path"], timeout_s=1.5)
    finally:
        sandbox.stop()


# The page


def test_the_page_is_whole_and_asks_nobody_else(sandbox: Sandbox) -> None:
    page = sandbox.request("GET", "/")
    assert page.status == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    text = page.body.decode()
    assert "<script>" not in text
    assert "style=" not in text
    wanted = re.findall(r'(?:src|href)="([^"#]+)"', text)
    assert wanted
    for path in wanted:
        assert path.startswith("/")
        assert sandbox.request("GET", path).status == 200


def test_the_feed_shows_every_vendors_message_alike(sandbox: Sandbox) -> None:
    fcm_send(sandbox, {"token": "a", "notification": {"title": "T1", "body": "B1"}})
    fcm_send(sandbox, {"token": "a", "data": {"k": "v"}})
    client = ApnsClient(sandbox)
    client.send({"aps": {"alert": "B2"}})
    client.close()
    twilio_send(sandbox, Body="B3")
    sendgrid_send(sandbox, mail_to("a@example.com"))
    feed = sandbox.request("GET", "/_feed").json
    shown = [(one["look"], one["title"], one["text"]) for one in reversed(feed["messages"])]
    assert shown == [
        ("phone", "T1", "B1"),
        ("phone", "", "Silent: data only"),
        ("phone", "", "B2"),
        ("sms", "", "B3"),
        ("mail", "Your order", "It is on its way"),
    ]
    newest = feed["messages"][0]
    assert newest["sender"] == "Shop <shop@example.com>"
    assert sandbox.request("GET", f"/_feed?after={newest['id']}").json["messages"] == []


def test_a_mail_is_shown_in_a_cage(sandbox: Sandbox) -> None:
    evil = "<script>alert(1)</script><img src='https://example.com/x.png'><p>Hello</p>"
    sendgrid_send(sandbox, mail_to("a@example.com", content=[{"type": "text/html", "value": evil}]))
    id = sandbox.inbox()[0]["id"]
    shown = sandbox.request("GET", f"/_mail/{id}")
    policy = shown.headers["content-security-policy"]
    assert b"<p>Hello</p>" in shown.body
    assert "default-src 'none'" in policy
    assert "sandbox allow-popups" in policy
    assert "allow-scripts" not in policy
    assert "https:" not in policy
    assert "https:" in sandbox.request("GET", f"/_mail/{id}?images=1").headers["content-security-policy"]


def test_a_mail_without_html_is_shown_as_text(sandbox: Sandbox) -> None:
    sendgrid_send(sandbox, mail_to("a@example.com", content=[{"type": "text/plain", "value": "1 < 2"}]))
    assert b"1 &lt; 2" in sandbox.request("GET", f"/_mail/{sandbox.inbox()[0]['id']}").body


@pytest.mark.parametrize(
    "path", ["/nonsense", "/_mail/0", "/_mail/x", "/static/../keys.py", "/static/page.py", "/_nonsense"]
)
def test_what_is_not_there_is_not_found(sandbox: Sandbox, path: str) -> None:
    assert sandbox.request("GET", path).status == 404


# The process


def test_sigterm_stops_it_in_less_than_a_second_whatever_is_open(tmp_path) -> None:
    sandbox = start(tmp_path)
    sandbox.fault(mode="hang")
    client = ApnsClient(sandbox)
    client.open(alert())
    smtp = socket.create_connection(("127.0.0.1", sandbox.smtp_port))
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(twilio_send, sandbox)
        time.sleep(0.5)
        took = sandbox.stop()
        assert hanging.exception() is not None
    smtp.close()
    assert sandbox.process.returncode == 0
    assert took < 1


def test_keys_are_made_once_and_readable_by_their_owner_only(tmp_path) -> None:
    def keys() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "fcm-service-account.json"}

    start(tmp_path).stop()
    first = keys()
    start(tmp_path).stop()
    assert keys() == first
    assert {"ca.pem", "apns.p8", "sendgrid-public.txt"} <= first.keys()
    for path in tmp_path.iterdir():
        is_public = path.name in ("ca.pem", "sendgrid-public.txt")
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == (0o044 if is_public else 0)


def test_a_taken_port_is_named_with_the_flag_to_change(tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "notifier.sandbox", "--port", str(port), "--tls-dir", str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_environment_is_read_where_no_argument_is_given(tmp_path) -> None:
    environment = {"SANDBOX_NO_FAULTS": "1", "SANDBOX_PUBLIC_URL": "http://sandbox.example:8100/"}
    sandbox = start(tmp_path, environment=environment)
    try:
        account = json.loads((tmp_path / "fcm-service-account.json").read_text())
        assert account["token_uri"] == "http://sandbox.example:8100/token"
    finally:
        sandbox.process.terminate()
        sandbox.process.wait(5)


def test_it_imports_nothing_of_the_rest_of_the_house() -> None:
    code = (
        "import sys, notifier.sandbox.__main__\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('apps', 'config', 'django', 'celery', 'redis')"
        " or m.startswith('notifier.') and not m.startswith('notifier.sandbox')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.strip() == "[]", done.stderr
