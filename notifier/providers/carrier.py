"""The HTTP/1.1 client of a worker process: one pool per origin, one POST per call, nothing repeated.

A call ends in exactly one of three ways: a `Reply`, `NotSent` (the provider cannot have it) or `Uncertain` (it may
have it). The line between the last two is one fact: was the request handed to a socket that was up. No redirect is
followed, no cookie kept, no answer inflated, no proxy asked. aiohappyeyeballs connects (RFC 8305). Why no whole client
carries is in docs/decisions/0014.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections import deque
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote, urlsplit

import aiohappyeyeballs

from notifier.providers.http import NotSent, Reply, readable
from notifier.providers.http1 import Connection

KEEPALIVE_S = 15.0  # below the 60 s and more after which vendors close, so that we never write into a closing socket
ADDRESSES_FOR_S = 60.0  # of a host; its name is asked for again after that
NEXT_ADDRESS_AFTER_S = 0.25  # "Connection Attempt Delay", RFC 8305 5

_FORBIDDEN = re.compile(r"[\x00-\x20\x7f]")


class _Target(NamedTuple):
    """Where a URL leads."""

    host: str
    port: int
    is_tls: bool
    start: str  # of the request's head, to which its own headers are added


@lru_cache(512)
def _target(url: str) -> _Target:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("no http(s) URL")
    host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
    is_tls = parts.scheme == "https"
    port = parts.port or (443 if is_tls else 80)
    shown = f"[{host}]" if ":" in host else host
    named = shown if parts.port is None else f"{shown}:{port}"
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~") + (f"?{parts.query}" if parts.query else "")
    if _FORBIDDEN.search(named + path):
        raise ValueError("no http(s) URL")
    start = f"POST {path} HTTP/1.1\r\nHost: {named}\r\nAccept-Encoding: identity\r\n"
    return _Target(host, port, is_tls, start)


class Carrier:
    """The pooled HTTP client of one worker process. Make it on the process's event loop, after the fork.

    `limit_per_host`: connections to one origin; who finds none free waits. `keepalive_s`: how long one stays open idle.
    """

    def __init__(self, *, limit_per_host: int = 100, keepalive_s: float = KEEPALIVE_S) -> None:
        self._loop = asyncio.get_running_loop()
        self._limit = limit_per_host
        self._keepalive_s = keepalive_s
        self._pools: dict[tuple[str, int, ssl.SSLContext | None], _Pool] = {}
        self._default_tls: ssl.SSLContext | None = None

    async def post(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        data: bytes,
        timeout_s: float,
        ssl_context: ssl.SSLContext | None = None,
    ) -> Reply:
        """POST once. `timeout_s` covers the wait for a connection, the request and the whole answer.

        Raises NotSent or Uncertain and nothing else (but what cancels the caller).
        """
        ends_at = self._loop.time() + timeout_s
        try:
            target = _target(url)
            request = _request(target, headers, data)
            pool = self._pool(target, ssl_context)
            connection = pool.idle() or await pool.connection(ends_at)
        except TimeoutError as error:
            raise NotSent(f"no connection within {timeout_s:g} s") from error
        except (OSError, RuntimeError, ValueError) as error:  # uvloop connects with RuntimeErrors, too
            words = f": {error}" if isinstance(error, OSError) else ""  # ssl.SSLError is one; others quote the request
            raise NotSent(readable(f"{type(error).__name__}{words}")) from error
        return await connection.exchange(request, ends_at)

    async def aclose(self) -> None:
        """Close every connection; calls that are open end as `Uncertain`."""
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _pool(self, target: _Target, tls: ssl.SSLContext | None) -> _Pool:
        if not target.is_tls:
            tls = None
        elif tls is None:
            tls = self._default_tls = self._default_tls or _default_tls()
        key = (target.host, target.port, tls)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = _Pool(self._loop, *key, limit=self._limit, keepalive_s=self._keepalive_s)
        return pool


def _default_tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _request(target: _Target, headers: Mapping[str, str], data: bytes) -> bytes:
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\r") != len(headers) or lines.count("\n") != len(headers) or "\0" in lines:
        raise ValueError("a header holds a line break")
    named = "" if "User-Agent" in headers else "User-Agent: Notifier\r\n"
    return f"{target.start}{named}{lines}Content-Length: {len(data)}\r\n\r\n".encode() + data


class _Pool:
    """The connections to one origin. The one that was used last is used first."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
        *,
        limit: int,
        keepalive_s: float,
    ) -> None:
        self._loop = loop
        self._host, self._port, self._tls = host, port, tls
        self._limit = limit
        self._keepalive_s = keepalive_s
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._opening = 0
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        self._sweeping: asyncio.TimerHandle | None = None
        self._addresses: asyncio.Task[Sequence[aiohappyeyeballs.AddrInfoType]] | None = None
        self._asked_at = 0.0
        self._known: Sequence[aiohappyeyeballs.AddrInfoType] | None = None  # by the last lookup that went well
        self._is_closed = False

    def idle(self) -> Connection | None:
        """A connection that is up and free, now the caller's; None: there is none."""
        oldest = self._loop.time() - self._keepalive_s
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since > oldest and connection.is_up:
                return connection
            connection.close()
        return None

    async def connection(self, ends_at: float) -> Connection:
        """A free connection, or a new one. Raises TimeoutError, or OSError when the far end cannot be reached."""
        async with asyncio.timeout_at(ends_at):
            while len(self._all) + self._opening >= self._limit:
                found = await self._turn()
                if found is not None and found.is_up:
                    return found
            if self._is_closed:
                raise ConnectionError("the client is closed")
            self._opening += 1
            try:
                return await self._open()
            except BaseException:
                self._wake(None)
                raise
            finally:
                self._opening -= 1

    async def _turn(self) -> Connection | None:
        """A connection that has become free, ours; None: there may be room for a new one."""
        waiter: asyncio.Future[Connection | None] = self._loop.create_future()
        self._waiting.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():  # it was our turn: the next one's now
                found = waiter.result()
                if found is not None:
                    self.free(found)
                else:
                    self._wake(None)
            raise

    async def _open(self) -> Connection:
        found = await self._found()
        sock = await aiohappyeyeballs.start_connection(
            found, happy_eyeballs_delay=NEXT_ADDRESS_AFTER_S, interleave=1, loop=self._loop
        )
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        made = Connection(self._loop, self)
        try:
            await self._loop.create_connection(
                lambda: made, sock=sock, ssl=self._tls, server_hostname=self._host if self._tls else None
            )
        except BaseException:  # cancelled between the two: uvloop closes it without a word to the protocol
            if made.is_up:
                made.close()
            self.gone(made)
            raise
        return made

    async def _found(self) -> Sequence[aiohappyeyeballs.AddrInfoType]:
        """The origin's addresses, asked for once for all who wait and kept for a minute."""
        if self._addresses is None or self._loop.time() - self._asked_at > ADDRESSES_FOR_S:
            self._asked_at = self._loop.time()
            self._addresses = self._loop.create_task(self._ask())
            self._addresses.add_done_callback(_seen)
        asking = self._addresses
        try:
            self._known = await asyncio.shield(asking)
        except (OSError, UnicodeError):  # a name that no resolver knows, or that is none
            if self._addresses is asking:
                self._addresses = None
            if self._known is None:
                raise
        return self._known

    async def _ask(self) -> Sequence[aiohappyeyeballs.AddrInfoType]:
        return await self._loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)

    def up(self, connection: Connection) -> None:
        self._all.add(connection)
        if self._is_closed:
            connection.close()

    def free(self, connection: Connection) -> None:
        """Its answer is read, the next request may go out on it."""
        connection.idle_since = self._loop.time()
        if self._wake(connection):
            return
        self._idle.append(connection)
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(self._keepalive_s, self._sweep)

    def gone(self, connection: Connection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._wake(None)

    def _wake(self, connection: Connection | None) -> bool:
        """Give the first who waits a connection, or room for one. Whether anybody waits."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return True
        return False

    def _sweep(self) -> None:
        """Close what was idle for too long; look again while there is any."""
        self._sweeping = None
        oldest = self._loop.time() - self._keepalive_s
        old = [connection for connection in self._idle if connection.idle_since <= oldest]
        self._idle = [connection for connection in self._idle if connection.idle_since > oldest]
        for connection in old:
            connection.close()
        if self._idle:
            next_at = self._idle[0].idle_since + self._keepalive_s
            self._sweeping = self._loop.call_at(max(next_at, self._loop.time() + 1.0), self._sweep)

    def close(self) -> None:
        self._is_closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connection in list(self._all):
            connection.close()
        while self._wake(None):
            pass


def _seen(task: asyncio.Task[Any]) -> None:
    """A failure that nobody waits for any more is no error of the program."""
    if not task.cancelled():
        task.exception()
