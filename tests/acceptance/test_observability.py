"""What the running processes say and count: one shape for all lines, one page for all counters."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from notifier.queues import ALL_QUEUES
from tests.acceptance.stack import Stack
from tests.acceptance.test_send import device, ended, person, send

TELLING = ("web", "push", "sms", "email", "core")
PHONE, MARK = "+15005550006", uuid.uuid4().hex


@pytest.fixture(scope="module")
def telling(stack: Stack) -> Iterator[Stack]:
    """The stack with a line for each request and task, which the demo's terminal is spared."""
    stack.environment["ACCESS_LOG"] = "1"
    stack.restart(*TELLING)
    stack.wait_ready()
    yield stack
    del stack.environment["ACCESS_LOG"]
    stack.restart(*TELLING)
    stack.wait_ready()


def lines(stack: Stack, *names: str) -> list[dict[str, Any]]:
    """Every line of the processes (default: all of ours), parsed; each must be a JSON object."""
    chosen = names or [name for name in stack.fleet.processes if name != "sandbox"]
    found = []
    for name in chosen:
        for text in stack.log(name).read_text().split("\n") if stack.log(name).exists() else ():
            if text.strip():
                try:
                    found.append(json.loads(text))
                except json.JSONDecodeError:
                    pytest.fail(f"{name} wrote what is no JSON: {text}")
    return found


def scrape(stack: Stack) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    headers = {"Authorization": f"Bearer {stack.environment['METRICS_TOKEN']}"}
    answer = requests.get(f"{stack.url}/metrics", headers=headers, timeout=30)
    assert answer.status_code == 200
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(stack: Stack, metric: str, /, **labels: str) -> float:
    return scrape(stack).get((metric, frozenset(labels.items())), 0.0)


def one_of_each(stack: Stack) -> list[str]:
    user = person(stack, phone=PHONE, email=f"delivered+{MARK}{uuid.uuid4().hex[:6]}@sandbox.invalid")
    device(stack, user, "android", f"sandbox-ok-{MARK}-{uuid.uuid4().hex}")
    sent = [send(stack, user, channel) for channel in ("push", "sms", "email")]
    for notification in sent:
        ended(stack, notification)
    return sent


def test_a_request_is_followed_by_its_id_into_the_worker(telling: Stack) -> None:
    user = person(telling, phone=PHONE)
    request_id = f"r-{uuid.uuid4().hex}"
    body = {
        "template": "order-shipped",
        "to": [{"user_id": user}],
        "data": {"order": {"id": "A-1", "eta": "2026-11-25"}},
        "channels": ["sms"],
    }
    answer = telling.api("POST", "/v1/notifications", json=body, headers={"X-Request-Id": request_id})
    ended(telling, answer.json()["id"])

    def named(*names: str) -> list[dict[str, Any]]:
        return [line for line in lines(telling, *names) if request_id in line.get("request_id", "").split(",")]

    [request] = telling.wait_for(lambda: named("web"), "the request's line")
    assert (request["event"], request["route"], request["status"]) == ("request", "/v1/notifications", 202)
    [task] = telling.wait_for(lambda: named("sms"), "the task's line")
    assert (task["event"], task["task"], task["queue"], task["state"]) == ("task", "deliver", "sms.normal", "SUCCESS")
    assert uuid.UUID(task["task_id"])
    assert task["process"] == "notifier-sms" and request["process"] == "notifier-web"


def test_every_process_writes_one_json_object_a_line_and_nothing_of_a_person(telling: Stack) -> None:
    one_of_each(telling)
    telling.api("GET", f"/v1/users/{MARK}%40example.com?limit={PHONE.strip('+')}")
    telling.restart("push", "core", "relay", "beat")  # their last words too
    telling.wait_ready()
    said = lines(telling)
    for line in said:
        assert {"at", "level", "event", "logger", "process", "pid"} <= set(line), line
    everything = json.dumps(said)
    secret = telling.demo["NOTIFIER_APP_SECRET"]
    for private in (MARK, PHONE.strip("+"), secret, telling.environment["METRICS_TOKEN"], "2026-11-25"):
        assert private not in everything
    assert not re.search(r"superuser|celery\.redirected|args=|kwargs", everything)


def test_nothing_is_said_twice(telling: Stack) -> None:
    one_of_each(telling)
    said = [json.dumps({**line, "at": ""}, sort_keys=True) for line in lines(telling) if line["event"] == "task"]
    assert said
    assert len(said) == len(set(said))


def test_one_page_tells_what_all_processes_did(telling: Stack) -> None:
    before = scrape(telling)
    one_of_each(telling)
    after = scrape(telling)

    def growth(metric: str, /, **labels: str) -> float:
        key = metric, frozenset(labels.items())
        return after.get(key, 0.0) - before.get(key, 0.0)

    results = {"channel": "sms", "account": sms_account(telling), "outcome": "accepted"}
    assert growth("notifier_notifications_accepted_total", mode="live", lane="normal") == 3
    assert growth("notifier_http_requests_total", route="/v1/notifications", method="POST", status="202") == 3
    assert growth("notifier_results_recorded_total", **results) == 1
    assert growth("notifier_rings_total", result="rung") == 3
    for channel in ("push", "sms", "email"):
        labels = {"channel": channel, "mode": "live"}
        assert growth("notifier_deliveries_accepted_total", **labels) == 1
        assert growth("notifier_deliveries_ended", **labels) == 1
        assert after["notifier_invariant_violation", frozenset({("channel", channel)})] == 0
    seen = {dict(labels)["name"] for metric, labels in after if metric == "notifier_heartbeat_age_seconds"}
    assert seen == {*ALL_QUEUES, "relay", "beat"}
    assert after["notifier_broker_up", frozenset()] == 1


def test_a_scrape_needs_the_token_where_others_could_ask(telling: Stack) -> None:
    forwarded = {"X-Forwarded-For": "8.8.8.8"}
    assert requests.get(f"{telling.url}/metrics", headers=forwarded, timeout=30).status_code == 401
    wrong = {"Authorization": "Bearer wrong"}
    assert requests.get(f"{telling.url}/metrics", headers=wrong, timeout=30).status_code == 403


def sms_account(stack: Stack) -> str:
    [(name,)] = stack.query(
        "SELECT DISTINCT a.name FROM notifications_attempt t JOIN providers_provideraccount a ON a.id = t.account_id "
        "JOIN notifications_delivery d ON d.id = t.delivery_id WHERE d.channel = 'sms'"
    )
    return str(name)


def in_flight(stack: Stack, name: str) -> set[str]:
    """The pids that tell what is in flight in the processes of that name."""
    return {
        dict(labels)["pid"]
        for metric, labels in scrape(stack)
        if metric == "notifier_in_flight" and dict(labels)["process"] == f"notifier-{name}"
    }


def test_a_total_does_not_fall_when_the_process_that_counted_dies(telling: Stack) -> None:
    one_of_each(telling)
    labels = {"channel": "sms", "account": sms_account(telling), "outcome": "accepted"}
    counted = value(telling, "notifier_results_recorded_total", **labels)
    assert counted > 0
    [victim] = in_flight(telling, "sms")
    assert int(victim) == telling.kill_child("sms")
    telling.wait_for(lambda: victim not in in_flight(telling, "sms"), "the dead to be forgotten")
    assert value(telling, "notifier_results_recorded_total", **labels) == counted
    one_of_each(telling)
    assert value(telling, "notifier_results_recorded_total", **labels) == counted + 1


def test_readiness_names_a_beat_that_does_not_tick(telling: Stack) -> None:
    telling.stop("beat")
    try:
        telling.query(
            "UPDATE notifications_heartbeat SET at = now() - interval '2 minutes' WHERE kind = 'beat' RETURNING 1"
        )
        answer = requests.get(f"{telling.url}/readyz", timeout=10)
        assert answer.status_code == 503
        assert answer.json()["problems"] == ["beat: nothing has ticked for 60 s"]
    finally:
        telling.start("beat")
    telling.wait_ready(within_s=30)
