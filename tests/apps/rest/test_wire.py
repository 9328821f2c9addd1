"""What only a real server shows: chunks, raw bytes, odd paths, and a connection that goes on after an error."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from django.db import connection

from tests.apps.rest.callers import Api, make_api

ROOT = Path(__file__).resolve().parents[3]
START_WITHIN_S = 30


class Server:
    def __init__(self, port: int) -> None:
        self.port = port

    def exchange(self, *requests: bytes, wait_s: float = 5) -> list[tuple[int, dict[str, str], bytes]]:
        """The answers to requests sent on one connection, one after the other."""
        answers = []
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait_s) as wire:
            reader = wire.makefile("rb")
            for request in requests:
                wire.sendall(request)
                status = int(reader.readline().split()[1])
                headers = {}
                while line := reader.readline().strip():
                    name, _, value = line.decode("latin-1").partition(":")
                    headers[name.lower()] = value.strip()
                answers.append((status, headers, reader.read(int(headers.get("content-length", 0)))))
        return answers


@pytest.fixture(scope="module")
def server(django_db_setup: None) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    database = connection.settings_dict
    where = f"host={quote(database['HOST'] or os.environ['DATABASE_URL'].partition('host=')[2], safe='')}"
    user = database["USER"] or "postgres"
    secret = f":{quote(database['PASSWORD'], safe='')}" if database["PASSWORD"] else ""
    url = f"postgres://{user}{secret}@/{database['NAME']}?{where}"
    if database["PORT"]:
        url += f"&port={database['PORT']}"
    process = subprocess.Popen(
        [sys.executable, "-m", "granian", "--interface", "wsgi", "--host", "127.0.0.1", "--port", str(port),
         "--blocking-threads", "2", "--no-ws", "--log-level", "warning", "config.wsgi:application"],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": url},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + START_WITHIN_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, "the server ended at once"
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.1)
        yield Server(port)
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def api(transactional_db: None) -> Api:
    return make_api(f"wire-{time.time_ns()}")


def request(api: Api, method: str, target: str, body: bytes = b"", *headers: bytes) -> bytes:
    lines = [
        f"{method} {target} HTTP/1.1".encode("latin-1"),
        b"Host: 127.0.0.1",
        b"Authorization: " + api.basic.encode(),
        *headers,
    ]
    if not any(header.lower().startswith((b"transfer-encoding", b"content-length")) for header in headers):
        lines.append(b"Content-Length: %d" % len(body))
    if body and not any(header.lower().startswith(b"content-type") for header in headers):
        lines.append(b"Content-Type: application/json")
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def problem(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    status, headers, body = answer
    assert headers["content-type"] == "application/problem+json", (status, headers, body[:200])
    return status, json.loads(body)["code"]


def chunked(body: bytes) -> bytes:
    half = len(body) // 2
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:half], body[half:])) + b"0\r\n\r\n"


def test_a_chunked_body_is_read_like_any_other(server: Server, api: Api) -> None:
    sent = request(api, "PUT", "/v1/users/u_1", chunked(b'{"locale": "de"}'), b"Transfer-Encoding: chunked")
    [(status, _, body)] = server.exchange(sent)
    assert (status, json.loads(body)["locale"]) == (201, "de")


def test_a_chunked_body_is_held_to_the_limit_too(server: Server, api: Api) -> None:
    sent = request(api, "PUT", "/v1/users/u_1", chunked(b" " * (2**20 + 1)), b"Transfer-Encoding: chunked")
    assert problem(server.exchange(sent)[0]) == (413, "body-too-large")


def test_a_connection_goes_on_after_a_refusal(server: Server, api: Api) -> None:
    answers = server.exchange(
        request(api, "PUT", "/v1/users/u_1", b"{"),
        request(api, "GET", "/v1/nope"),
        request(api, "PUT", "/v1/users/u_1", b" " * (2**20 + 1)),
        request(api, "PUT", "/v1/users/u_1", b" " * (20 * 2**20)),
        request(api, "PUT", "/v1/users/u_1", b"{}"),
    )
    assert [status for status, _, _ in answers] == [400, 404, 413, 413, 201]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/v1/users/%00", (400, "invalid-text")),
        ("/v1/users/%FF", (400, "invalid-text")),
        ("/v1/users/%ED%A0%80", (400, "invalid-text")),
        ("/v1/users?email=%FF", (400, "invalid-text")),
        ("/v1/users?%00=x", (400, "invalid-text")),
        ("/v1/users/a%2Fb%2Fc", (404, "not-found")),
        ("/v1/users/%2e%2e", (404, "not-found")),
        ("/v1/" + "x" * 8000, (404, "not-found")),
    ],
)
def test_odd_targets_are_answered_in_the_error_format(
    server: Server, api: Api, target: str, expected: tuple[int, str]
) -> None:
    assert problem(server.exchange(request(api, "GET", target))[0]) == expected


def test_raw_bytes_in_a_header_are_no_crash(server: Server, api: Api) -> None:
    answers = server.exchange(
        request(api, "GET", "/v1/users", b"", b"X-Request-Id: \xff\xfe", b"User-Agent: caf\xe9"),
        request(api, "GET", "/v1/users", b"", b"X-Request-Id: abc_1"),
    )
    assert [status for status, _, _ in answers] == [200, 200]
    assert len(answers[0][1]["x-request-id"]) == 16
    assert answers[1][1]["x-request-id"] == "abc_1"


def test_a_signed_request_is_checked_over_the_bytes_as_sent(server: Server, api: Api) -> None:
    from tests.apps.clients.test_authentication import signed

    def call(target: str, body: bytes, **changes: str) -> Any:
        headers = signed(api, "PUT", target, body, **changes)
        lines = [f"{name}: {value}".encode() for name, value in headers.items() if value is not None]
        raw = request(api, "PUT", target, body, *lines)
        return server.exchange(raw.replace(b"Authorization: " + api.basic.encode() + b"\r\n", b""))[0][0]

    assert call("/v1/users/u@example.com", b'{"locale": "de"}') == 201
    assert call("/v1/users/u%40example.com?", b"{}") in (200, 401)  # a bare ? is lost on the way
    assert call("/v1/users/" + quote("名前 1"), b"{}") == 201
    assert call("/v1/users/u_1", b"{}", X_Nonce="n" * 16) == 401


def test_the_last_use_of_a_key_is_written_by_a_real_server(server: Server, api: Api) -> None:
    from apps.clients.models import AppKey

    server.exchange(request(api, "GET", "/v1/users"))
    deadline = time.monotonic() + 5
    while AppKey.objects.get(pk=api.app_key).last_used_at is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_opening_of_a_hundred_thousand_brackets_leaves_the_worker_alive(server: Server, api: Api) -> None:
    start = time.monotonic()
    answers = server.exchange(
        request(api, "PUT", "/v1/users/u_1", b"[" * 100_000), request(api, "PUT", "/v1/users/u_1", b"{}")
    )
    assert problem(answers[0]) == (400, "too-deep")
    assert answers[1][0] == 201
    assert time.monotonic() - start < 1
