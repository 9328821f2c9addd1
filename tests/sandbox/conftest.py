"""A sandbox in its own process on free ports, and a small web server that stands for the hooks."""

from __future__ import annotations

import http.server
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Sandbox:
    process: subprocess.Popen[str]
    url: str
    apns_port: int
    smtp_port: int
    tls_dir: Path
    lines: list[str]

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout_s: float = 15
    ) -> Reply:
        """Any status is an answer. `body`: bytes, or something for JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                return Reply(answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read())
        except urllib.error.HTTPError as error:
            return Reply(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())
        except urllib.error.URLError as error:  # a reset while the request is written comes wrapped
            raise error.reason if isinstance(error.reason, OSError) else error from None

    def inbox(self, query: str = "") -> list[dict[str, Any]]:
        return self.request("GET", f"/_inbox?{query}").json

    def ledger(self) -> list[Any]:
        return [json.loads(line) for line in self.request("GET", "/_ledger").body.splitlines()]

    def fault(self, **asked: Any) -> dict[str, Any]:
        reply = self.request("POST", "/_faults", asked)
        assert reply.status == 201, reply.body
        return reply.json

    def stop(self) -> float:
        """Seconds it took."""
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)
        return time.monotonic() - begun


def start(tls_dir: Path, *arguments: str, environment: dict[str, str] | None = None) -> Sandbox:
    command = [sys.executable, "-m", "notifier.sandbox", "--port", "0", "--apns-port", "0", "--smtp-port", "0"]
    process = subprocess.Popen(
        [*command, "--tls-dir", str(tls_dir), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.strip())
        if line.strip() == "sandbox ready":
            break
    assert "sandbox ready" in lines, f"the sandbox did not start: {lines}"
    said = {line.split()[1]: line.split()[2] for line in lines if line.count(" ") == 2}
    ports = {name: int(said[name].rpartition(":")[2]) for name in ("apns", "smtp")}
    return Sandbox(process, said["http"], ports["apns"], ports["smtp"], tls_dir, lines)


@dataclass
class Hook:
    """Every request that came, in order. `refuse` answers: taken from the front, then 200s."""

    url: str
    calls: queue.Queue[dict[str, Any]] = field(default_factory=queue.Queue)
    refuse: list[int] = field(default_factory=list)

    def wait(self, matches: Callable[[dict[str, Any]], Any], timeout_s: float = 10) -> dict[str, Any]:
        """The first call that matches; the others are put aside."""
        ends = time.monotonic() + timeout_s
        while (left := ends - time.monotonic()) > 0:
            try:
                call = self.calls.get(timeout=left)
            except queue.Empty:
                break
            if matches(call):
                return call
        raise AssertionError("no such call came")


@pytest.fixture(scope="session")
def hook_server() -> Iterator[Hook]:
    hook = Hook("")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status = hook.refuse.pop(0) if hook.refuse else 200
            hook.calls.put({"path": self.path, "headers": headers, "body": body, "answered": status})
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hook.url = f"http://127.0.0.1:{server.server_port}"
    yield hook
    server.shutdown()
    thread.join()


@pytest.fixture
def hook(hook_server: Hook) -> Hook:
    while not hook_server.calls.empty():
        hook_server.calls.get_nowait()
    hook_server.refuse.clear()
    return hook_server


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory, hook_server: Hook) -> Iterator[Sandbox]:
    sandbox = start(tmp_path_factory.mktemp("keys"), "--hooks-url", hook_server.url)
    yield sandbox
    sandbox.stop()


@pytest.fixture
def sandbox(running: Sandbox, hook: Hook) -> Sandbox:
    """The running sandbox with an empty inbox and no faults."""
    running.request("DELETE", "/_faults")
    running.request("DELETE", "/_inbox")
    return running
