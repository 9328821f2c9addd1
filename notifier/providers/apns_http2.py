"""How one request reaches APNs: aioapns with its stream handling, retry rule and token replaced in this one module.

Kept of aioapns 4.0: its request and result types, its key pool and connect, its protocol's frame, its signer.
Replaced, each for a fault seen in 4.0 (the tests show each one cured):

- bodies beyond the flow-control window left streams that never ended: they now wait for WINDOW_UPDATE;
- answers without a body, RST_STREAM and lost answers were waited for until the connection closed: streams are
  matched by id, and each send has its own timer;
- received DATA was never acknowledged, so that the connection stopped after some 2,400 error bodies;
- a send was repeated up to five times, whether taken or not: only what is known not taken is repeated, once;
- a token was signed per connection: now one per key (`SharedToken`).

To see whether a newer aioapns or h2 makes a part superfluous: remove it and run tests/providers/test_apns.py.

https://developer.apple.com/documentation/usernotifications/sending-notification-requests-to-apns
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import logging
import ssl
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from aioapns.common import NotificationRequest, NotificationResult
from aioapns.connection import (
    APNsBaseClientProtocol,
    APNsKeyConnectionPool,
    APNsTLSClientProtocol,
    AuthorizationHeaderProvider,
    JWTAuthorizationHeaderProvider,
)
from aioapns.exceptions import ConnectionClosed, ConnectionError
from h2.config import H2Configuration
from h2.connection import ConnectionInputs, ConnectionState, H2Connection, H2ConnectionStateMachine
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from h2.exceptions import H2Error, NoAvailableStreamIDError
from hpack import Encoder, HeaderTuple, NeverIndexedHeaderTuple
from jwt.exceptions import PyJWTError

from notifier.providers import http
from notifier.providers.base import ConfigurationError

logger = logging.getLogger(__name__)
# At DEBUG hpack writes every header with its value: device tokens and our provider token.
logging.getLogger("hpack").setLevel(logging.INFO)

MAX_STREAMS = 1000  # what APNs grants; a server that grants more is not asked for more
CONNECT_S = 5.0  # DNS, TCP and TLS together
IDLE_S = 300.0  # an unused connection is not trusted longer: NAT tables forget flows after 350 s and less
LINGER_S = 1.0  # for the TLS goodbye of a closing connection; asyncio would wait 30 s
CROWDED = 64  # sends waiting on one connection before another one is opened
MAX_ANSWER_BYTES = 65_536  # of an answer's body; real ones have under 100
EXPIRED_TOKEN = "ExpiredProviderToken"


class NotSent(http.NotSent, ConnectionError):
    """Known not handed over: no server had the whole request, or one said that it did not take it."""


class Uncertain(http.Uncertain, ConnectionClosed):
    """The whole request was written and no usable answer came."""


class Request(NotificationRequest):
    """A request with its body already encoded, and an expiry that is a time and not a duration."""

    __slots__ = ("body", "expiration")

    def __init__(self, device_token: str, body: bytes, *, expiration: int = 0, **fields: Any) -> None:
        super().__init__(device_token, {}, **fields)
        self.body = body
        self.expiration = expiration  # Unix seconds; 0: one try, nothing stored


class Result(NotificationResult):
    """An answer. `unreadable`: it had a body that is not the JSON object APNs sends."""

    __slots__ = ("retry_after", "unreadable")

    def __init__(self, notification_id: str, status: str, retry_after: str, body: bytes) -> None:
        reason, timestamp, self.unreadable = _read(body)
        super().__init__(notification_id, status, reason, timestamp)
        self.retry_after = retry_after


def _read(body: bytes) -> tuple[str | None, int | None, bool]:
    if not body:
        return None, None, False
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return None, None, True
    if not isinstance(said, dict):
        return None, None, True
    reason, timestamp = said.get("reason"), said.get("timestamp")
    return (
        reason if isinstance(reason, str) else None,
        timestamp if isinstance(timestamp, int) and not isinstance(timestamp, bool) else None,
        False,
    )


class _Send:
    """One request on its way. `body` is what is not yet written: empty means handed over."""

    __slots__ = ("answer", "answers_before", "body", "headers", "id", "received", "retry_after", "status", "stream_id")

    def __init__(
        self, id: str, headers: list[HeaderTuple], body: bytes, answer: asyncio.Future[Result], answers_before: int
    ) -> None:
        self.id = id
        self.headers = headers
        self.body = body
        self.answer = answer
        self.answers_before = answers_before
        self.stream_id = 0
        self.status = ""
        self.retry_after = ""
        self.received = b""

    def fail(self, why: str, *, taken: bool = True) -> None:
        if not self.answer.done():
            self.answer.set_exception(NotSent(why) if self.body or not taken else Uncertain(why))

    def finish(self) -> None:
        if not self.answer.done():
            self.answer.set_result(Result(self.id, self.status, self.retry_after, self.received))


class _Draining(H2ConnectionStateMachine):
    """After GOAWAY, streams up to last-stream-id may finish (RFC 9113 6.8); h2 4.4 refuses every frame."""

    _transitions = H2ConnectionStateMachine._transitions | {
        (ConnectionState.CLIENT_OPEN, ConnectionInputs.RECV_GOAWAY): (None, ConnectionState.CLIENT_OPEN)
    }


class _Encoder(Encoder):
    """Without Huffman coding: it saves 30 bytes and costs a tenth of the send's CPU time."""

    def add(self, to_add: tuple[bytes, bytes], sensitive: bool, huffman: bool = False) -> bytes:
        return super().add(to_add, sensitive, huffman=False)


class _H2(H2Connection):
    """h2 without what costs or loses something here."""

    def __init__(self) -> None:
        # Headers are made and encoded by `Connection` alone: no need to look at each one twice more.
        super().__init__(H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False))
        self.state_machine = _Draining()
        self.encoder = _Encoder()
        self._opened = 0

    @property
    def open_outbound_streams(self) -> int:
        """h2 looks at every stream each time one is opened; `Connection` counts them itself.

        Asked now and then all the same, because h2 forgets the closed ones here.
        """
        self._opened += 1
        return super().open_outbound_streams if self._opened % 128 == 0 else 0

    def clear_outbound_data_buffer(self) -> None:
        """Called by h2 on GOAWAY: it would drop the rest of bodies that the server still wants."""


class Connection(APNsTLSClientProtocol):
    """One HTTP/2 connection: any number of sends, each with its own stream, timer and end."""

    conn: _H2

    def __init__(
        self,
        apns_topic: str,
        loop: asyncio.AbstractEventLoop | None = None,
        on_connection_lost: Callable[[APNsBaseClientProtocol], None] | None = None,
        auth_provider: AuthorizationHeaderProvider | None = None,
    ) -> None:
        super().__init__(apns_topic, loop, None, auth_provider)
        self.lost = asyncio.Event()
        self._on_lost = on_connection_lost
        self.conn = _H2()
        self.waiting: deque[_Send] = deque()  # no stream yet
        self.streams: dict[int, _Send] = {}
        self.partial: dict[int, _Send] = {}  # streams whose body waits for the window
        self.ready = False  # the server's first SETTINGS came: its stream limit is known
        self.retired = False
        self.used_at = self.loop.time()
        self.answers = 0  # finished so far; a count, because the loop's clock stands still within a turn
        self._flush_due = False
        port = "" if self.APNS_PORT == 443 else f":{self.APNS_PORT}"
        self._constant = [
            HeaderTuple(b":method", b"POST"),
            HeaderTuple(b":scheme", b"https"),
            HeaderTuple(b":authority", f"{self.APNS_SERVER}{port}".encode()),
        ]

    @property
    def load(self) -> int:
        return len(self.streams) + len(self.waiting)

    async def send_notification(
        self, request: NotificationRequest, timeout_s: float = 10.0, authorization: str = ""
    ) -> Result:
        """The answer to `request`, within `timeout_s`. Raises NotSent or Uncertain; repeats nothing."""
        if self.retired:
            raise NotSent("connection retired")
        assert isinstance(request, Request)  # noqa: S101 - the pool's callers make no other
        self.used_at = self.loop.time()
        headers = self._headers(request, authorization)
        send = _Send(request.notification_id, headers, request.body, self.loop.create_future(), self.answers)
        timer = self.loop.call_later(timeout_s, self.expire, send)
        self.waiting.append(send)
        self.pump()
        try:
            return await send.answer
        finally:
            timer.cancel()
            self.leave(send)

    def _headers(self, request: Request, authorization: str) -> list[HeaderTuple]:
        # Encoded here, so that what cannot be encoded fails alone. What differs from send to send stays out of
        # the compression table (Apple asks for that): it would push out what is the same in all of them.
        headers = [
            *self._constant,
            NeverIndexedHeaderTuple(b":path", b"/3/device/" + request.device_token.encode("ascii")),
            HeaderTuple(b"authorization", authorization.encode("ascii")),
            HeaderTuple(b"apns-topic", (request.apns_topic or self.apns_topic).encode("ascii")),
            NeverIndexedHeaderTuple(b"apns-id", request.notification_id.encode("ascii")),
            NeverIndexedHeaderTuple(b"apns-expiration", b"%d" % request.expiration),
        ]
        if request.priority is not None:
            headers.append(HeaderTuple(b"apns-priority", b"%d" % request.priority))
        if request.push_type is not None:
            headers.append(HeaderTuple(b"apns-push-type", request.push_type.value.encode("ascii")))
        if request.collapse_key:
            headers.append(NeverIndexedHeaderTuple(b"apns-collapse-id", request.collapse_key.encode("ascii")))
        return headers

    def pump(self) -> None:
        """Write what streams and windows allow: bodies begun first, then new streams."""
        conn = self.conn
        try:
            if self.partial:
                for send in list(self.partial.values()):
                    if conn.outbound_flow_control_window <= 0:
                        break
                    self._write(send)
            limit = min(MAX_STREAMS, conn.remote_settings.max_concurrent_streams) if self.ready else 0
            while self.waiting and len(self.streams) < limit and conn.outbound_flow_control_window > 0:
                stream_id = conn.get_next_available_stream_id()
                send = self.waiting.popleft()
                if send.answer.done():  # cancelled, and its caller has not run yet
                    continue
                send.stream_id = stream_id
                self.streams[stream_id] = send
                conn.send_headers(stream_id, send.headers)
                self._write(send)
        except NoAvailableStreamIDError:
            self.retire("stream ids used up")
        except H2Error as error:
            self._abort(f"HTTP/2: {type(error).__name__}")
        self.flush()

    def _write(self, send: _Send) -> None:
        conn, stream_id = self.conn, send.stream_id
        while send.body:
            room = min(conn.local_flow_control_window(stream_id), conn.max_outbound_frame_size)
            if room <= 0:
                self.partial[stream_id] = send
                return
            chunk, rest = send.body[:room], send.body[room:]
            conn.send_data(stream_id, chunk, end_stream=not rest)
            send.body = rest
        self.partial.pop(stream_id, None)

    def leave(self, send: _Send) -> None:
        """Give back the slot of a send that has ended in whatever way; the server is told when it still holds it."""
        if not send.stream_id:
            if send in self.waiting:
                self.waiting.remove(send)
        elif self.streams.pop(send.stream_id, None):
            self.partial.pop(send.stream_id, None)
            try:
                self.conn.reset_stream(send.stream_id, ErrorCodes.CANCEL)
            except H2Error as error:
                self._abort(f"HTTP/2: {type(error).__name__}")
            self.pump()
            self._close_when_empty()

    def expire(self, send: _Send) -> None:
        if send.answer.done():
            return
        send.fail("no answer in time")
        # Bytes are no sign of life: a server that answers nothing may still grant windows.
        if self.answers == send.answers_before:
            self.retire("silent")
        self.leave(send)

    def retire(self, why: str) -> None:
        """Take no new send; those on a stream may finish, those that wait are known not sent."""
        if not self.retired:
            logger.info("connection to %s retired: %s", self.APNS_SERVER, why)
        self.retired = True
        while self.waiting:
            self.waiting.popleft().fail(why)
        self._close_when_empty()

    def _close_when_empty(self) -> None:
        if self.retired and not self.streams:
            self.close()

    def close(self) -> None:
        self.retired = True
        if self.transport is not None and not self.transport.is_closing():
            self.transport.close()
            self.loop.call_later(LINGER_S, self.transport.abort)

    def _abort(self, why: str) -> None:
        self.retire(why)
        if self.transport is not None:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            for event in self.conn.receive_data(data):
                self._handle(event)
        except H2Error as error:
            self._abort(f"HTTP/2: {type(error).__name__}")
            return
        self.pump()

    def _handle(self, event: Event) -> None:
        if isinstance(event, ResponseReceived):
            if send := self.streams.get(event.stream_id):
                for name, value in event.headers:
                    if name == b":status":
                        send.status = value.decode("latin-1")
                    elif name == b"retry-after":
                        send.retry_after = value.decode("latin-1")
        elif isinstance(event, StreamEnded):
            if send := self._drop(event.stream_id):
                self.answers += 1
                send.finish()
                if send.body:  # answered before it was read to its end, such as 413
                    self.conn.reset_stream(event.stream_id, ErrorCodes.CANCEL)
        elif isinstance(event, DataReceived):
            self.conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            send = self.streams.get(event.stream_id)
            if send and len(send.received) < MAX_ANSWER_BYTES:
                send.received += event.data
        elif isinstance(event, StreamReset):
            if send := self._drop(event.stream_id):
                send.fail(f"RST_STREAM {event.error_code}", taken=event.error_code != ErrorCodes.REFUSED_STREAM)
        elif isinstance(event, RemoteSettingsChanged):
            self.ready = True
        elif isinstance(event, ConnectionTerminated):
            last = event.last_stream_id or 0
            for stream_id in [id for id in self.streams if id > last]:
                if send := self._drop(stream_id):
                    send.fail(f"GOAWAY {event.error_code}", taken=False)
            self.retire(f"GOAWAY {event.error_code}")

    def _drop(self, stream_id: int) -> _Send | None:
        self.partial.pop(stream_id, None)
        send = self.streams.pop(stream_id, None)
        self._close_when_empty()
        return send

    def connection_lost(self, exc: Exception | None) -> None:
        self.retired = True
        self.lost.set()
        if self._on_lost:
            self._on_lost(self)
        why = f"connection lost: {type(exc).__name__}" if exc else "connection closed"
        for send in [*self.streams.values(), *self.waiting]:
            send.fail(why)
        self.streams.clear()
        self.partial.clear()
        self.waiting.clear()

    def flush(self) -> None:
        """Once per turn of the loop: each write is a TLS record and a system call."""
        if not self._flush_due:
            self._flush_due = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self.transport is not None and not self.transport.is_closing():
            data = self.conn.data_to_send()
            if data:
                self.transport.write(data)

    def refresh_inactivity_timer(self) -> None:
        """Apple asks to keep connections open; aioapns closes them after 10 s. The pool looks at `used_at`."""


class SharedToken(AuthorizationHeaderProvider):
    """The provider token of one key, for all its connections, and through `exchange` for all processes.

    APNs refuses tokens older than 60 minutes, and answers 429 TooManyProviderTokenUpdates when a key's token
    changes more often than every 20 minutes.
    https://developer.apple.com/documentation/usernotifications/establishing-a-token-based-connection-to-apns

    `exchange(name, stale, issued_at, header)` publishes what was signed here if the shared one is still `stale`
    ("" when none was known), and returns (issued_at, header) of the one that counts. It may be a coroutine
    function; it must not raise, and hands back what it was given when its store is away.
    """

    RENEW_S = 45 * 60
    REPLACEABLE_S = 20 * 60
    EXCHANGE_S = 1.0  # a store that hangs costs this much once per signature

    def __init__(self, key: str, key_id: str, team_id: str, exchange: Callable[..., Any] | None = None) -> None:
        self._sign = partial(JWTAuthorizationHeaderProvider, key, key_id, team_id)
        # With the key itself: one that was pasted wrongly, and mended, must not go on with the token of the wrong one.
        self._name = f"apns:{team_id}:{key_id}:{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        self._exchange = exchange
        self._issued_at = 0.0
        self._header = ""
        self._renewing = asyncio.Lock()

    def get_header(self, rejected: str = "") -> str:
        """The header in use, or "" when a new one is due: because of its age, or because it was `rejected`.

        A rejected one younger than 20 minutes stays: another would be refused too, and count as an update.
        """
        age = time.time() - self._issued_at
        due = age >= self.RENEW_S or (rejected == self._header and age >= self.REPLACEABLE_S)
        return "" if due else self._header

    async def current(self, rejected: str = "") -> str:
        """The header to send with, signed anew when due. Raises ConfigurationError for a key that cannot sign."""
        header = self.get_header(rejected)
        if not header:
            async with self._renewing:
                header = self.get_header(rejected) or await self._renew(rejected)
        return header

    async def _renew(self, rejected: str) -> str:
        signer: Any = self._sign()  # untyped in aioapns
        try:
            own = int(time.time()), signer.get_header()
        except (ValueError, TypeError, PyJWTError):
            # The signer's own words may quote the key.
            raise ConfigurationError("key: cannot sign; paste the whole .p8 file as Apple gave it") from None
        for _ in range(2):  # what another process published may be due as well
            self._issued_at, self._header = await self._publish(*own)
            if self.get_header(rejected):
                break
        return self._header

    async def _publish(self, issued_at: float, header: str) -> tuple[float, str]:
        if self._exchange is None:
            return issued_at, header
        try:
            async with asyncio.timeout(self.EXCHANGE_S):
                answer = self._exchange(self._name, self._header, issued_at, header)
                if inspect.isawaitable(answer):
                    answer = await answer
        except TimeoutError:
            return issued_at, header
        return cast("tuple[float, str]", answer)


class Pool(APNsKeyConnectionPool):
    """The connections of one key to one APNs environment: 1 or 2 suffice, each carries up to 1,000 sends at once.

    Made and used on one running event loop; closed with `aclose`.
    """

    def __init__(
        self,
        token: SharedToken,
        topic: str,
        host: str,
        port: int = 443,
        *,
        ssl_context: ssl.SSLContext | None = None,
        max_connections: int = 2,
    ) -> None:
        context = ssl_context or ssl.create_default_context()
        context.set_alpn_protocols(["h2"])
        # The key stays with `token`, the one signer for all connections.
        super().__init__("", "", "", topic, max_connections=max_connections, ssl_context=context)
        self.protocol_class = type("Connection", (Connection,), {"APNS_SERVER": host, "APNS_PORT": port})
        self.token = token
        self.topic = topic
        self._connecting: asyncio.Task[Connection] | None = None

    async def send_notification(self, request: NotificationRequest, timeout_s: float = 10.0) -> Result:
        """The answer to `request`, within `timeout_s`. Raises NotSent or Uncertain.

        What is known not taken (GOAWAY, REFUSED_STREAM, a lost connection before the last byte) is tried once
        more, on another connection where there is one; so is what a token that has become too old was refused for.
        Nothing else is repeated. A failed connect is NotSent at once.
        """
        deadline = self.loop.time() + timeout_s
        authorization = await self.token.current()
        connection = await self.acquire(deadline)
        try:
            result = await connection.send_notification(request, deadline - self.loop.time(), authorization)
        except NotSent:
            # With little time left, a second try would turn "known not sent" into "uncertain".
            if self.loop.time() > deadline - timeout_s / 2:
                raise
        else:
            if result.description != EXPIRED_TOKEN:
                return result
            renewed = await self.token.current(rejected=authorization)
            if renewed == authorization:
                return result
            authorization = renewed
        connection = await self.acquire(deadline, avoid=connection)
        return await connection.send_notification(request, deadline - self.loop.time(), authorization)

    async def acquire(self, deadline: float = float("inf"), avoid: Connection | None = None) -> Connection:
        """The least loaded connection. All who find none wait for the same connect. Raises NotSent."""
        usable = self._usable()
        if usable:
            best = min(usable, key=lambda connection: (connection is avoid, connection.load))
            if len(best.waiting) >= CROWDED and best.ready and len(usable) < self.max_connections:
                self._connect()
            return best
        task = self._connect()
        await asyncio.wait([task], timeout=max(0.0, deadline - self.loop.time()))
        if not task.done() or task.cancelled():
            raise NotSent("no connection in time")
        if error := task.exception():
            # One error for each who waited: a shared one would collect all their tracebacks.
            raise NotSent(str(error)) from error.__cause__
        return task.result()

    def _all(self) -> list[Connection]:
        return cast("list[Connection]", self.connections)

    def _usable(self) -> list[Connection]:
        usable = []
        for connection in self._all():
            if not connection.load and self.loop.time() - connection.used_at > IDLE_S:
                connection.retire("idle")
            if not connection.retired:
                usable.append(connection)
        return usable

    def _connect(self) -> asyncio.Task[Connection]:
        if self._connecting is None:
            self._connecting = self.loop.create_task(self._connect_once())
            self._connecting.add_done_callback(self._connected)
        return self._connecting

    def _connected(self, task: asyncio.Task[Connection]) -> None:
        self._connecting = None
        if not task.cancelled() and (error := task.exception()):
            logger.warning("no connection to %s: %s", self.protocol_class.APNS_SERVER, error)

    async def _connect_once(self) -> Connection:
        try:
            async with asyncio.timeout(CONNECT_S):
                connection = await self.create_connection()
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name that IDNA refuses
            raise NotSent(f"connect: {type(error).__name__}") from error
        self.connections.append(connection)
        return connection

    async def create_connection(self) -> Connection:
        kind = cast("type[Connection]", self.protocol_class)
        factory = partial(kind, self.topic, self.loop, self.discard_connection, self.token)
        return cast("Connection", await self._create_connection(factory))

    def discard_connection(self, connection: APNsBaseClientProtocol) -> None:
        if connection in self.connections:
            self.connections.remove(connection)

    async def aclose(self) -> None:
        """Close every connection; what is still in flight ends Uncertain or NotSent."""
        if self._connecting:
            self._connecting.cancel()
        self.close()
        closing = [asyncio.ensure_future(connection.lost.wait()) for connection in self._all()]
        if closing:
            await asyncio.wait(closing, timeout=2 * LINGER_S)
