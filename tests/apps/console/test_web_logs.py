"""The web server's own lines, of the process that loads no settings, have the shape of all others."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apps.console.supervisor import Process, common_to_children, free_port, procfile
from tests.acceptance.stack import descendants

FIRST = ["at", "level", "event", "logger", "process", "pid"]


@pytest.fixture
def web(embedded_servers: object, tmp_path: Path) -> Iterator[Process]:
    output = (tmp_path / "web.log").open("wb")
    environment = {**os.environ, **common_to_children(os.environ), "PORT": str(free_port()), "WEB_WORKERS": "1"}
    process = Process("web", procfile()["web"], environment, output=output)
    process.start()
    yield process
    process.kill()
    output.close()


def wait_for(found: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not found():
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.1)


def test_the_death_of_a_web_worker_is_told_as_one_json_line(web: Process, tmp_path: Path) -> None:
    def lines() -> list[str]:
        return (tmp_path / "web.log").read_text().splitlines()

    wait_for(lambda: descendants(web.pid), "a worker")
    os.kill(descendants(web.pid)[0], signal.SIGKILL)
    wait_for(lines, "a line")
    told = json.loads(lines()[0])
    assert list(told) == FIRST
    assert (told["level"], told["process"], told["pid"]) == ("error", "notifier-web", web.pid)
    assert told["event"] == "Unexpected exit from worker-1"
    assert [json.loads(line)["process"] for line in lines()]
