"""A bare provider: answers every push at once (or after a set latency) and takes every mail, and counts.

Not the sandbox, which checks what it is sent: here nothing is to be measured but the senders. A process of its own
(`python -m tests.bench.sink`); its CPU is on nobody's account.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from typing import Any, Self

import uvloop

TOKEN = json.dumps({"access_token": "bench", "expires_in": 3599, "token_type": "Bearer"}).encode()


class State:
    def __init__(self) -> None:
        self.taken = 0
        self.mails = 0
        self.latency_s = 0.0
        self.arrivals: dict[str, float] = {}  # delivery id -> Unix seconds, of the first time


class Http(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, as little of it as two well-behaved clients need."""

    def __init__(self, state: State, loop: asyncio.AbstractEventLoop) -> None:
        self._state = state
        self._loop = loop
        self._kept = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        data = self._kept + data
        while True:
            head_ends = data.find(b"\r\n\r\n")
            if head_ends < 0:
                break
            at = data[:head_ends].lower().find(b"content-length:")
            length = int(data[at + 15 : data.find(b"\r\n", at)]) if at >= 0 else 0
            ends = head_ends + 4 + length
            if len(data) < ends:
                break
            self._take(data[: data.find(b"\r\n")], data[head_ends + 4 : ends])
            data = data[ends:]
        self._kept = data

    def _take(self, line: bytes, body: bytes) -> None:
        state = self._state
        if line.startswith(b"POST /v1/projects/"):
            state.taken += 1
            at = body.find(b'"n_id"')
            if at >= 0:
                begins = body.find(b'"', at + 6) + 1
                state.arrivals.setdefault(body[begins : begins + 36].decode(), time.time())
            answer = b'{"name": "projects/bench/messages/%012d"}' % state.taken
            if state.latency_s:
                self._loop.call_later(state.latency_s, self._answer, answer)
                return
        elif line.startswith(b"POST /token"):
            answer = TOKEN
        elif line.startswith(b"GET /_count"):
            answer = json.dumps({"taken": state.taken, "mails": state.mails}).encode()
        elif line.startswith(b"GET /_arrivals"):
            answer = json.dumps(state.arrivals).encode()
        elif line.startswith(b"POST /_reset"):
            state.taken, state.mails, state.arrivals = 0, 0, {}
            state.latency_s = json.loads(body)["latency_ms"] / 1000
            answer = b"{}"
        else:
            answer = b"{}"
        self._answer(answer)

    def _answer(self, body: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )


class Smtp(asyncio.Protocol):
    """SMTP (RFC 5321) that says yes to everything; `taken` counts mails whose end came."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._kept = b""
        self._is_data = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        transport.write(b"220 bench ESMTP\r\n")  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._kept += data
        while True:
            mark = b"\r\n.\r\n" if self._is_data else b"\r\n"
            found, _, rest = self._kept.partition(mark)
            if len(found) == len(self._kept):
                return
            self._kept = rest
            if self._is_data:
                self._is_data = False
                self._state.mails += 1
                _, named, after = found.partition(b"\r\nX-Delivery-Id: ")
                if named:
                    self._state.arrivals.setdefault(after[:36].decode(), time.time())
                self._transport.write(b"250 2.0.0 queued\r\n")
            else:
                self._command(found[:4].upper())

    def _command(self, verb: bytes) -> None:
        if verb == b"EHLO":
            answer = b"250-bench\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"
        elif verb == b"DATA":
            self._is_data = True
            answer = b"354 go on\r\n"
        elif verb == b"QUIT":
            answer = b"221 bye\r\n"
        else:
            answer = b"250 2.0.0 ok\r\n"
        self._transport.write(answer)
        if verb == b"QUIT":
            self._transport.close()


async def serve() -> None:
    loop = asyncio.get_running_loop()
    state = State()
    web = await loop.create_server(lambda: Http(state, loop), "127.0.0.1", 0, backlog=2048)
    mail = await loop.create_server(lambda: Smtp(state), "127.0.0.1", 0, backlog=2048)
    print(*(server.sockets[0].getsockname()[1] for server in (web, mail)), flush=True)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()  # ends with whoever started it


class Sink:
    """The sink's process, from the side of the bench."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.bench.sink"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ))
        assert self.process.stdout
        port, self.smtp_port = map(int, self.process.stdout.readline().split())
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *error: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.process.kill()

    def reset(self, latency_ms: float = 0.0) -> None:
        self._ask("/_reset", json.dumps({"latency_ms": latency_ms}).encode())

    @property
    def taken(self) -> int:
        return int(self._ask("/_count")["taken"])

    @property
    def mails(self) -> int:
        return int(self._ask("/_count")["mails"])

    def arrivals(self) -> dict[str, float]:
        """Delivery id -> Unix seconds of its arrival."""
        return dict(self._ask("/_arrivals"))

    def _ask(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        with urllib.request.urlopen(self.url + path, data=body, timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
            return found


if __name__ == "__main__":
    uvloop.run(serve())
