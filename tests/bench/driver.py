"""The load: prepared requests over a few kept connections, as cheaply as Python can."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import uvloop


@dataclass
class Answers:
    """What came back. `began` and `ended` are Unix seconds of the first request and the last answer."""

    began: float = 0.0
    ended: float = 0.0
    waits_s: list[float] = field(default_factory=list)
    sent_at: list[float] = field(default_factory=list)  # in the order of the answers, like `bodies`
    bodies: list[bytes] = field(default_factory=list)
    refused: list[tuple[int, bytes]] = field(default_factory=list)

    def must_be_accepted(self) -> None:
        if self.refused:
            status, body = self.refused[0]
            raise RuntimeError(f"{len(self.refused)} requests were refused; the first with {status}: {body[:500]!r}")


class Caller:
    """Writes requests for one server; `basic` is (user, password) or None."""

    def __init__(self, url: str, basic: tuple[str, str] | None = None) -> None:
        parts = urlsplit(url)
        self.host, self.port = str(parts.hostname), int(parts.port or 80)
        self._head = f"Host: {parts.netloc}\r\nContent-Type: application/json\r\n"
        if basic:
            self._head += f"Authorization: Basic {base64.b64encode(':'.join(basic).encode()).decode()}\r\n"

    def post(self, path: str, document: Any, **headers: str) -> bytes:
        """The bytes of one request. Header names are given with `_` for `-`."""
        body = json.dumps(document, separators=(",", ":")).encode()
        more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        return f"POST {path} HTTP/1.1\r\n{self._head}{more}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def send(self, requests: Sequence[bytes], *, connections: int) -> Answers:
        """As fast as the server answers, `connections` at a time."""
        return uvloop.run(self._closed(requests, connections))

    def pace(self, requests: Sequence[bytes], *, per_s: float, connections: int = 16) -> Answers:
        """One every 1/`per_s`, whatever the server does; a wait counts from when its request was due."""
        return uvloop.run(self._open(requests, per_s, connections))

    async def _closed(self, requests: Sequence[bytes], connections: int) -> Answers:
        answers = Answers(began=time.time())
        queue = iter(requests)
        await asyncio.gather(*(self._work(queue, answers) for _ in range(min(connections, len(requests)))))
        answers.ended = time.time()
        return answers

    async def _work(self, queue: Iterator[bytes], answers: Answers) -> None:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        for request in queue:
            await _exchange(reader, writer, request, answers, time.time())
        writer.close()

    async def _open(self, requests: Sequence[bytes], per_s: float, connections: int) -> Answers:
        free: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        for _ in range(connections):
            free.put_nowait(await asyncio.open_connection(self.host, self.port))
        answers = Answers(began=time.time())
        tasks = []
        for number, request in enumerate(requests):
            due = answers.began + number / per_s
            await asyncio.sleep(max(0.0, due - time.time()))
            tasks.append(asyncio.create_task(self._one(free, request, answers, due)))
        await asyncio.gather(*tasks)
        answers.ended = time.time()
        while not free.empty():
            free.get_nowait()[1].close()
        return answers

    async def _one(self, free: asyncio.Queue[Any], request: bytes, answers: Answers, due: float) -> None:
        reader, writer = await free.get()
        await _exchange(reader, writer, request, answers, due)
        free.put_nowait((reader, writer))


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, answers: Answers, since: float
) -> None:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    lower = head.lower()
    at = lower.index(b"content-length:")
    body = await reader.readexactly(int(lower[at + 15 : lower.index(b"\r\n", at)]))
    status = int(head[9:12])
    if status >= 300:
        answers.refused.append((status, body))
        return
    answers.waits_s.append(time.time() - since)
    answers.sent_at.append(since)
    answers.bodies.append(body)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; `share` in 0..1."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
