"""One HTTP/1.1 connection: a request at a time, and its answer as llhttp (httptools) reads it (RFC 9112)."""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from multidict import CIMultiDict

from notifier.providers.http import NotSent, Reply, Uncertain

ANSWER_LIMIT_BYTES = 64 * 1024  # no provider's answer to a send comes near; more is not an answer to it
HEAD_LIMIT_BYTES = 32 * 1024

_FRAMING = (b"content-length", b"transfer-encoding")  # without either an answer ends with its connection


class Pool(Protocol):
    """Whom a connection tells how it is."""

    def up(self, connection: Connection) -> None: ...

    def free(self, connection: Connection) -> None:
        """Its answer is read, the next request may go out on it."""

    def gone(self, connection: Connection) -> None: ...


class Connection(asyncio.Protocol):
    """One connection, with one request on it at most."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pool: Pool) -> None:
        self._loop = loop
        self._pool = pool
        self._transport: asyncio.Transport
        self._parser = HttpResponseParser(self)
        self._answer: asyncio.Future[Reply] | None = None
        self._head: list[tuple[bytes, bytes]] = []
        self._body = bytearray()
        self._status = self._received = 0
        self._is_whole = self._may_stay = self._ends_with_connection = False
        self._has_ended = False
        self.is_up = False
        self.idle_since = 0.0

    # --- the pool's side --------------------------------------------------------------------------------------

    async def exchange(self, request: bytes, ends_at: float) -> Reply:
        """Send a request and read its answer. Raises NotSent or Uncertain."""
        if not self.is_up or self._transport.is_closing():
            raise NotSent("the far end closed the connection at once")
        if self._loop.time() >= ends_at:
            self._pool.free(self)
            raise NotSent("its time was over before it was sent")
        answer: asyncio.Future[Reply] = self._loop.create_future()
        self._answer = answer
        watch = self._loop.call_at(ends_at, self._too_late, answer)
        try:
            self._transport.write(request)
            return await answer
        except BaseException:
            if self._answer is answer:
                self.close()  # its answer may come yet, and must not be the next one's
            raise
        finally:
            watch.cancel()

    def close(self) -> None:
        """Close at once, without waiting for what is to be written yet."""
        self.is_up = False
        self._fail("the connection was closed")
        self._transport.abort()

    # --- the transport's side ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.is_up = True
        self._pool.up(self)

    def data_received(self, data: bytes) -> None:
        if self._answer is None:
            return self.close()  # nobody asked
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._may_stay = False
            if not self._is_whole:
                return self._broken(f"{type(error).__name__} after the request was written")
        is_endless = not self._is_whole and self._received > ANSWER_LIMIT_BYTES + HEAD_LIMIT_BYTES
        if is_endless or len(self._body) > ANSWER_LIMIT_BYTES:
            self._broken(f"an answer of more than {ANSWER_LIMIT_BYTES} bytes")
        elif self._is_whole:
            self._finish()

    def eof_received(self) -> None:
        self.is_up = False
        self._has_ended = True

    def connection_lost(self, error: Exception | None) -> None:
        self.is_up = False
        # Without an end that was said (over TLS: by a close_notify) the answer may have been cut: RFC 9112 9.8.
        if self._answer is not None and self._ends_with_connection and self._has_ended and error is None:
            self._finish()
        words = type(error).__name__ if error else "end of the connection"
        self._fail(f"{words} after the request was written")
        self._pool.gone(self)

    # --- the parser's side ------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._is_whole:
            self._may_stay = False  # more than one answer to one request: not to be trusted with the next
        else:
            self._head.clear()
            self._status = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._status < 200:  # a final answer's head is whole: a trailer is no header (RFC 9110 6.5.1)
            self._head.append((name, value))

    def on_headers_complete(self) -> None:
        if not self._is_whole:
            self._status = self._parser.get_status_code()
            is_framed = any(name.lower() in _FRAMING for name, _ in self._head)
            self._ends_with_connection = self._status >= 200 and not is_framed

    def on_body(self, body: bytes) -> None:
        if not self._is_whole:
            self._body += body

    def on_message_complete(self) -> None:
        if not self._is_whole and self._status >= 200:  # below it is "wait", and the answer comes yet
            self._is_whole = True
            self._may_stay = self._parser.should_keep_alive()  # asked later, it speaks of the next answer

    # --- an answer --------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        answer, self._answer = self._answer, None
        may_stay = self._may_stay and self.is_up and not self._transport.is_closing()
        assert answer is not None  # noqa: S101 - asked for above
        head = CIMultiDict([(name.decode("latin-1"), value.decode("latin-1")) for name, value in self._head])
        if not answer.done():
            answer.set_result(Reply(self._status, head, bytes(self._body)))
        self._head, self._body = [], bytearray()
        self._status = self._received = 0
        self._is_whole = self._may_stay = self._ends_with_connection = False
        if may_stay:
            self._pool.free(self)
        else:
            self.close()

    def _too_late(self, answer: asyncio.Future[Reply]) -> None:
        if self._answer is answer:
            self._fail("no whole answer in time")
            self.close()

    def _broken(self, why: str) -> None:
        self._fail(why, garbled=True)
        self.close()

    def _fail(self, why: str, *, garbled: bool = False) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_exception(Uncertain(why, garbled=garbled))
