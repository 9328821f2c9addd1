"""Every line is one JSON object, names what people look for, and holds nothing of a person."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from typing import Any

import pytest
import structlog
from django.test import Client

from apps.console.supervisor import ROOT
from tests.apps.console.conftest import Lines
from tests.apps.notifications.world import World

FIRST = ["at", "level", "event", "logger", "process", "pid"]


@pytest.fixture(autouse=True)
def _no_context() -> None:
    structlog.contextvars.clear_contextvars()


def test_our_own_line_says_when_who_and_what_first(lines: Lines) -> None:
    structlog.get_logger("a.b").warning("ring_failed", rings=3)
    [line] = lines()
    assert list(line) == [*FIRST, "rings"]
    assert (line["level"], line["event"], line["logger"], line["process"]) == ("warning", "ring_failed", "a.b", "tests")
    assert line["at"].endswith("Z")


def test_a_librarys_line_has_the_same_shape(lines: Lines) -> None:
    logging.getLogger("some.library").error("lost %s of %d", "host-1", 7)
    [line] = lines()
    assert list(line) == FIRST
    assert line["event"] == "lost host-1 of 7"


def test_a_process_of_its_own_says_everything_on_stderr_warnings_too() -> None:
    program = (
        "import django, logging, structlog, warnings; django.setup(); structlog.get_logger('a').info('ours', n=1); "
        "logging.getLogger('b').info('theirs'); warnings.warn('do not do that')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["event"] for line in lines[:2]] == ["ours", "theirs"]
    assert (lines[2]["level"], lines[2]["logger"]) == ("warning", "py.warnings")
    assert "do not do that" in lines[2]["event"]
    assert len(lines) == 3


@pytest.mark.parametrize("log", [structlog.get_logger("a.b"), logging.getLogger("a.b")], ids=["ours", "a library's"])
def test_a_traceback_is_one_field_of_one_line_and_masked(lines: Lines, log: Any) -> None:
    try:
        raise ValueError("no route to ada@example.com")
    except ValueError:
        log.exception("crashed")
    [line] = lines()
    assert line["exception"].startswith("Traceback") and "ValueError: no route to [email]" in line["exception"]


def test_what_is_bound_stands_in_every_line(lines: Lines) -> None:
    with structlog.contextvars.bound_contextvars(request_id="r-1", queue="push.normal"):
        structlog.get_logger("a").info("ours")
        logging.getLogger("b").info("theirs")
    assert [(line["request_id"], line["queue"]) for line in lines()] == [("r-1", "push.normal")] * 2


def test_every_value_is_masked_but_the_ids_that_we_gave(lines: Lines) -> None:
    request_id = "5a0db0c50200a1b2c3d4e5f60718293a"
    with structlog.contextvars.bound_contextvars(request_id=request_id):
        structlog.get_logger("a").info(
            "sent to +14155552671", to="ada@example.com", more={"x": ["+4930901820"]}, token=1
        )
    [line] = lines()
    assert line["event"] == "sent to [phone]"
    assert (line["to"], line["more"], line["token"]) == ("[email]", {"x": ["[phone]"]}, "[masked]")
    assert line["request_id"] == request_id


@pytest.mark.parametrize("value", ["\ud800", b"\xff\x00", float("nan"), {1: object()}, "\u2028\n\r", {"a"}])
def test_no_value_breaks_a_line(lines: Lines, value: object) -> None:
    structlog.get_logger("a").info("odd", value=value)
    [line] = lines()
    assert "value" in line


def test_the_least_level_holds_for_ours_and_for_libraries(lines: Lines) -> None:
    structlog.get_logger("a").debug("ours")
    logging.getLogger("b").debug("theirs")
    logging.getLogger("celery.worker.strategy").info("Task deliver received")
    assert lines() == []


# --- requests -------------------------------------------------------------------------------------------------


def requests_in(lines: Lines) -> list[dict[str, Any]]:
    return [line for line in lines() if line["event"] == "request"]


def test_a_request_is_told_by_route_and_client_never_by_path_or_query(
    world: World, lines: Lines, settings: Any
) -> None:
    settings.ACCESS_LOG = True
    answer = world.api.get("/v1/users/ada%40example.com?phone=%2B14155552671", headers={"X-Request-Id": "r-42"})
    [line] = requests_in(lines)
    assert line["route"] == "/v1/users/<str:user_id>"
    assert (line["method"], line["status"], line["request_id"]) == ("GET", answer.status_code, "r-42")
    assert line["client_id"] == world.api.client.pk
    assert line["ms"] > 0
    assert "ada" not in json.dumps(lines()) and "4155552671" not in json.dumps(lines())


def test_a_stranger_has_no_client_and_an_unknown_path_no_route(db: None, lines: Lines, settings: Any) -> None:
    settings.ACCESS_LOG = True
    Client().get("/v1/users/ada")
    Client().get("/wp-login.php")
    assert [(line["route"], line["status"], line["client_id"]) for line in requests_in(lines)] == [
        ("/v1/users/<str:user_id>", 401, None),
        ("unmatched", 404, None),
    ]


def test_the_line_of_a_request_can_be_switched_off(world: World, lines: Lines, settings: Any) -> None:
    settings.ACCESS_LOG = False
    world.api.get("/v1/users/ada")
    assert requests_in(lines) == []


def test_polls_are_not_told(db: None, lines: Lines, settings: Any) -> None:
    settings.ACCESS_LOG = True
    for path in ("/healthz", "/readyz", "/metrics"):
        Client().get(path)
    assert requests_in(lines) == []


def test_a_crash_is_told_with_its_route_and_no_path(lines: Lines, settings: Any) -> None:
    settings.ROOT_URLCONF = "tests.apps.console.crashing"
    answer = Client(raise_request_exception=False).get("/people/ada@example.com/crash?phone=%2B14155552671")
    assert answer.status_code == 500
    [line] = [line for line in lines() if line["logger"] == "django.request"]
    assert line["event"] == "request_failed"
    assert (line["route"], line["method"], line["status"]) == ("/people/<str:who>/crash", "GET", 500)
    assert line["request_id"] == answer["X-Request-Id"]
    assert "crashing.py" in line["exception"]
    assert "ada@" not in json.dumps(lines()) and "4155552671" not in json.dumps(lines())


def test_a_callers_mistake_is_an_answer_and_no_error(world: World, lines: Lines) -> None:
    world.api.post("/v1/notifications", {"to": "nobody"})
    world.api.get("/v1/nothing-here")
    assert [line for line in lines() if line["logger"].startswith(("django", "apps.rest"))] == []
