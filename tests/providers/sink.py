"""Servers that misbehave on command, on raw sockets: what no well-made server can be asked to do."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self


class Fault(StrEnum):
    NONE = "none"
    HANG = "hang"  # takes the message, never answers
    RESET_BEFORE = "reset_before"  # resets before it has read the message
    RESET_AFTER = "reset_after"  # takes the message, then resets
    GARBAGE = "garbage"  # takes it, and answers with success and nonsense
    HUGE = "huge"  # takes it, and answers with success and megabytes
    DRIP = "drip"  # takes it, and answers a byte now and then
    CLOSE_AFTER = "close_after"  # takes it, then closes in good order


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class _Sink:
    """The listening half: connections are tasks, ended with the server."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.fault = Fault.NONE
        self.latency_s = 0.0
        self.connections = 0
        self.port = 0
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            await self._serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]  # keys in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes | str | dict[str, Any] = b""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def wire(self) -> bytes:
        body = json.dumps(self.body) if isinstance(self.body, dict) else self.body
        raw = body.encode() if isinstance(body, str) else body
        return self.head(f"Content-Length: {len(raw)}") + raw

    def head(self, *more: str) -> bytes:
        lines = [f"HTTP/1.1 {self.status} So", *(f"{name}: {value}" for name, value in self.headers.items()), *more]
        return "\r\n".join([*lines, "", ""]).encode()


class HttpSink(_Sink):
    """Answers each POST with `answer(request)`, or with the fault. `requests` are those it read whole.

    Paths in `aside` (an OAuth endpoint) are answered by their own function, without fault and unlisted.
    """

    def __init__(self, answer: Callable[[Request], Answer], tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls)
        self.answer = answer
        self.aside: dict[str, Callable[[Request], Answer]] = {}
        self.requests: list[Request] = []

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://localhost:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, path, _ = head[0].split(" ")
            headers = dict(map(_field, head[1:-2]))
            if self.fault is Fault.RESET_BEFORE and path not in self.aside:
                return reset(writer)
            request = Request(method, path, headers, await reader.readexactly(int(headers.get("content-length", 0))))
            if path in self.aside:
                writer.write(self.aside[path](request).wire)
                continue
            self.requests.append(request)
            await asyncio.sleep(self.latency_s)
            await self._respond(request, writer)
            await writer.drain()
            if writer.transport.is_closing():
                return

    async def _respond(self, request: Request, writer: asyncio.StreamWriter) -> None:
        good = self.answer(request)
        match self.fault:
            case Fault.NONE:
                writer.write(good.wire)
            case Fault.HANG:
                await asyncio.Event().wait()
            case Fault.RESET_AFTER:
                reset(writer)
            case Fault.CLOSE_AFTER:
                writer.close()
            case Fault.GARBAGE:
                writer.write(Answer(200, b"\x00\xff<html>It works!</html>").wire)
            case Fault.HUGE:
                writer.write(good.head("Transfer-Encoding: chunked"))
                for _ in range(64):
                    writer.write(b"10000\r\n" + b" " * 65536 + b"\r\n")
                    await writer.drain()
                writer.write(b"0\r\n\r\n")
            case Fault.DRIP:
                writer.write(good.head("Transfer-Encoding: chunked"))
                while True:
                    writer.write(b"1\r\n \r\n")
                    await asyncio.sleep(0.05)


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.lower(), value.strip()


_USUAL = {"DATA": "354 go on", "QUIT": "221 bye", "AUTH": "235 2.7.0 ok", "STARTTLS": "220 go on"}


@dataclass
class Mail:
    sender: str = ""
    recipient: str = ""
    data: bytes = b""  # as sent: CRLF, dots still doubled, without the final dot


class SmtpSink(_Sink):
    """Speaks enough SMTP. `replies` overrides the reply by command: MAIL, RCPT, DATA, END (after the dot), AUTH ...

    `mails` are those whose final dot it read, whatever it answered; `commands` is all it was told, by connection.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, *, starttls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls)
        self.replies: dict[str, str] = {}
        self.extensions = ["PIPELINING", "SIZE 10000000", "8BITMIME", "SMTPUTF8", "AUTH PLAIN LOGIN"]
        self.mails: list[Mail] = []
        self.commands: list[str] = []
        self.greeting = "220 sink ESMTP"
        self._starttls = starttls

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mail = Mail()
        writer.write(f"{self.greeting}\r\n".encode())
        while line := (await reader.readuntil(b"\r\n")).decode().rstrip("\r\n"):
            verb = line.split(":")[0].split(" ")[0].upper()
            self.commands.append(line)
            if verb == "DATA" and self.fault is Fault.RESET_BEFORE:
                return reset(writer)
            reply = self.replies.get(verb) or self._usual(verb)
            writer.write(f"{reply}\r\n".encode())
            if reply.startswith("421"):
                return
            if verb == "STARTTLS" and self._starttls:
                await writer.drain()
                await writer.start_tls(self._starttls)
            elif verb == "MAIL":
                mail = Mail(sender=_path(line))
            elif verb == "RCPT":
                mail.recipient = _path(line)
            elif verb == "DATA" and reply.startswith("354"):
                mail.data = (await reader.readuntil(b"\r\n.\r\n"))[:-3]
                self.mails.append(mail)
                await asyncio.sleep(self.latency_s)
                await self._end(writer)
            elif verb == "QUIT":
                return
            if writer.transport.is_closing():
                return

    def _usual(self, verb: str) -> str:
        if verb == "EHLO":
            names = ["sink", *self.extensions, *(["STARTTLS"] if self._starttls else [])]
            return "\r\n".join(f"250{'-' if n < len(names) - 1 else ' '}{name}" for n, name in enumerate(names))
        return _USUAL.get(verb, "250 ok")

    async def _end(self, writer: asyncio.StreamWriter) -> None:
        match self.fault:
            case Fault.NONE | Fault.RESET_BEFORE:
                reply = self.replies.get("END", f"250 2.0.0 Ok: queued as Q{len(self.mails)}")
                writer.write(f"{reply}\r\n".encode())
            case Fault.HANG:
                await asyncio.Event().wait()
            case Fault.RESET_AFTER:
                reset(writer)
            case Fault.CLOSE_AFTER:
                writer.close()
            case Fault.GARBAGE:
                writer.write(b"\x00\xff<html>It works!</html>\r\n")
            case Fault.HUGE:
                for _ in range(64):
                    writer.write(b"250-" + b" " * 65536)
                    await writer.drain()
            case Fault.DRIP:
                while True:
                    writer.write(b"250-still thinking\r\n")
                    await asyncio.sleep(0.05)


def _path(line: str) -> str:
    return line.partition("<")[2].partition(">")[0]
