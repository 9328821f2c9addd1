"""HTTP/2 over TLS, one connection at a time: streams in, answers out, flow control both ways.

RFC 9113. One request is small and answered at once; only faults and latency keep a stream open longer.
"""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hpack import HeaderTuple, NeverIndexedHeaderTuple

from notifier.sandbox.faults import GARBAGE_BODY, HUGE_BODY_BYTES, REFUSALS, Fault, Mode
from notifier.sandbox.push_apns import VOIP_PAYLOAD_LIMIT_BYTES, Apns
from notifier.sandbox.server import refuse, reset
from notifier.sandbox.vendor import Answer, Call

_DRIP_S = 0.25
_HEADERS_LIMIT_BYTES = 16 * 1024
_GOAWAY_GRACE_S = 5.0
_SHUTDOWN = b'{"reason":"Shutdown"}'
_STATUS = {code: HeaderTuple(b":status", str(code).encode()) for code in range(100, 600)}


@dataclass(slots=True)
class Stream:
    headers: dict[str, str]
    body: bytearray = field(default_factory=bytearray)
    oversized: bool = False
    fault: Fault | None = None
    ended: bool = False


class Connection(asyncio.Protocol):
    def __init__(self, apns: Apns, connections: set[Connection]) -> None:
        self._apns = apns
        self._faults = apns.parts.faults
        self._connections = connections
        self._watch = apns.watch()
        self._latency_s = apns.parts.options.latency_ms / 1000
        self._transport: asyncio.Transport | None = None
        self._streams: dict[int, Stream] = {}
        self._unsent: dict[int, bytes] = {}  # answer bodies that wait for the window
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_stream = 0
        self._refuse_above: int | None = None  # set by GOAWAY
        self._h2 = H2Connection(
            H2Configuration(
                client_side=False,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() not in (None, "h2"):
            transport.close()
            return
        self._connections.add(self)
        limits = {
            SettingCodes.MAX_CONCURRENT_STREAMS: self._apns.parts.options.apns_max_streams,
            SettingCodes.MAX_HEADER_LIST_SIZE: _HEADERS_LIMIT_BYTES,
        }
        self._h2.local_settings = Settings(client=False, initial_values=limits)
        self._h2.initiate_connection()
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.discard(self)
        self._transport = None
        for task in self._tasks:
            task.cancel()

    def abort(self) -> None:
        if self._transport is not None:
            reset(self._transport)

    def data_received(self, data: bytes) -> None:
        try:
            for event in self._h2.receive_data(data):
                self._handle(event)
        except ProtocolError:
            self._flush()
            if self._transport is not None:
                self._transport.close()
            return
        self._flush()

    def _flush(self) -> None:
        if self._transport is not None and (data := self._h2.data_to_send()):
            self._transport.write(data)

    def _handle(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self._opened(event)
        elif isinstance(event, DataReceived):
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            stream = self._streams.get(event.stream_id)
            if stream is None or stream.oversized:
                return
            stream.body += event.data
            if len(stream.body) > VOIP_PAYLOAD_LIMIT_BYTES:
                stream.oversized = True
                stream.body.clear()
        elif isinstance(event, StreamEnded):
            stream = self._streams.get(event.stream_id)
            if stream is not None:
                self._ended(event.stream_id, stream)
        elif isinstance(event, StreamReset):
            self._streams.pop(event.stream_id, None)
            self._unsent.pop(event.stream_id, None)
        elif isinstance(event, WindowUpdated):
            for stream_id in list(self._unsent):
                self._send_body(stream_id)
        elif isinstance(event, ConnectionTerminated) and self._transport is not None:
            self._flush()
            self._transport.close()

    def _opened(self, event: RequestReceived) -> None:
        stream_id = event.stream_id
        if self._refuse_above is not None and stream_id > self._refuse_above:
            self._h2.reset_stream(stream_id, ErrorCodes.REFUSED_STREAM)
            return
        self._last_stream = stream_id
        headers: dict[str, str] = {}
        for name, value in event.headers:
            key = name.decode("latin-1")
            if key in headers and key.startswith("apns-"):
                headers["\0duplicate"] = key
            headers[key] = value.decode("utf-8", "replace")
        stream = Stream(headers, fault=self._faults.draw(self._apns.provider))
        if stream.fault is not None and stream.fault.mode is Mode.RESET_BEFORE:
            # Nothing of the body was looked at: the word that promises it (RFC 9113 8.7).
            self._h2.reset_stream(stream_id, ErrorCodes.REFUSED_STREAM)
            return
        self._streams[stream_id] = stream

    def _ended(self, stream_id: int, stream: Stream) -> None:
        if stream.fault is None and not self._latency_s:
            del self._streams[stream_id]
            self._send(stream_id, self._answer(stream))
            return
        task = asyncio.get_running_loop().create_task(self._strike(stream_id, stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _call(self, stream: Stream) -> Call:
        headers = stream.headers
        path = headers.get(":path", "").partition("?")[0]
        return Call(headers.get(":method", ""), path, "", headers, bytes(stream.body), "")

    def _answer(self, stream: Stream) -> Answer:
        return self._apns.answer(self._call(stream), self._watch, oversized=stream.oversized)

    # Answers

    def _send(self, stream_id: int, answer: Answer) -> None:
        headers: list[HeaderTuple] = [_STATUS[answer.status]]
        for name, value in answer.headers.items():
            headers.append(NeverIndexedHeaderTuple(name.lower().encode(), value.encode()))
        if answer.body:
            headers.append(HeaderTuple(b"content-type", answer.content_type.encode()))
        self._h2.send_headers(stream_id, headers, end_stream=not answer.body)
        if answer.body:
            self._unsent[stream_id] = answer.body
            self._send_body(stream_id)

    def _send_body(self, stream_id: int) -> None:
        """As much as the windows allow; the rest on WINDOW_UPDATE."""
        body = self._unsent[stream_id]
        while body:
            room = min(self._h2.local_flow_control_window(stream_id), self._h2.max_outbound_frame_size)
            if room <= 0:
                self._unsent[stream_id] = body
                return
            chunk, body = body[:room], body[room:]
            self._h2.send_data(stream_id, chunk, end_stream=not body)
        del self._unsent[stream_id]

    async def _strike(self, stream_id: int, stream: Stream) -> None:
        fault = stream.fault
        await asyncio.sleep(self._latency_s + (fault.latency_ms / 1000 if fault else 0.0))
        if fault is not None and fault.mode is Mode.HANG:
            await self._faults.lifted.wait()
            return self.abort()
        if self._streams.pop(stream_id, None) is None or self._transport is None:
            return  # the caller gave up: nothing was accepted
        if fault is not None and fault.mode in REFUSALS:
            self._send(stream_id, refuse(self._apns, fault, self._call(stream)))
        else:
            answer = self._answer(stream)
            await self._spoil(stream_id, fault, answer)
        self._flush()

    async def _spoil(self, stream_id: int, fault: Fault | None, answer: Answer) -> None:
        mode = fault.mode if fault is not None and answer.accepted else None
        if mode is Mode.RESET_AFTER:
            self._h2.reset_stream(stream_id, ErrorCodes.INTERNAL_ERROR)
        elif mode is Mode.GARBAGE:
            self._send(stream_id, Answer(200, GARBAGE_BODY, "text/html", answer.headers))
        elif mode is Mode.HUGE:
            self._send(stream_id, Answer(200, b"\0" * HUGE_BODY_BYTES, "text/html", answer.headers))
        elif mode is Mode.SLOW:
            await self._drip(stream_id, answer)
        else:
            self._send(stream_id, answer)
            if mode is Mode.GOAWAY:
                self.go_away()

    async def _drip(self, stream_id: int, answer: Answer) -> None:
        """Headers at once, the end of the stream after ten seconds of blanks."""
        self._h2.send_headers(stream_id, [_STATUS[answer.status]], end_stream=False)
        for left in range(40, 0, -1):
            self._flush()
            await asyncio.sleep(_DRIP_S)
            try:
                self._h2.send_data(stream_id, b" ", end_stream=left == 1)
            except ProtocolError:  # the caller gave up
                return

    def go_away(self) -> None:
        """Announce the end as the vendor does: what is in flight is still answered, nothing newer is.

        The frame is written by hand, since h2 takes nothing more on a connection that it has closed.
        """
        if self._refuse_above is not None or self._transport is None:
            return
        self._refuse_above = self._last_stream
        self._flush()
        payload = struct.pack(">II", self._last_stream, ErrorCodes.NO_ERROR) + _SHUTDOWN
        self._transport.write(struct.pack(">I", len(payload))[1:] + b"\x07\x00" + b"\0\0\0\0" + payload)
        asyncio.get_running_loop().call_later(_GOAWAY_GRACE_S, self._close)

    def _close(self) -> None:
        if self._transport is not None:
            self._flush()
            self._transport.close()
