"""The common HTTP port: finds the vendor a request is for, lets faults strike, answers."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from notifier.sandbox.faults import GARBAGE_BODY, HUGE_BODY_BYTES, REFUSALS, Fault, Mode
from notifier.sandbox.vendor import Answer, Call, HttpVendor, Parts

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time: closing sends RST
_DRIP_S = 0.25
_BODY_LIMIT_BYTES = 31 * 1024 * 1024
_HTML = "text/html; charset=utf-8"

Control = Callable[[web.BaseRequest, str], Awaitable[web.StreamResponse]]


class Site:
    """`control(request, path)` answers what is no vendor's: the page, the inbox, the faults."""

    def __init__(self, parts: Parts, vendors: list[HttpVendor], control: Control) -> None:
        self._parts = parts
        self._vendors = vendors
        self._control = control
        self._latency_s = parts.options.latency_ms / 1000

    def server(self) -> web.Server:
        return web.Server(self._handle, request_factory=_request, access_log=None, keepalive_timeout=300)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path, _, query = request.raw_path.partition("?")
        for vendor in self._vendors:
            if vendor.messages.match(path):
                return await self._message(request, vendor, path, query)
        for vendor in self._vendors:
            if path.startswith("/_"):
                break
            call = await _call(request, path, query)
            if (answer := vendor.other(call)) is not None:
                return _response(answer)
        return await self._control(request, path)

    async def _message(self, request: web.BaseRequest, vendor: HttpVendor, path: str, query: str) -> web.StreamResponse:
        fault = self._parts.faults.draw(vendor.provider)
        if fault is None:
            if self._latency_s:
                await asyncio.sleep(self._latency_s)
            answer = vendor.receive(await _call(request, path, query))
            if answer.delay_s:
                await asyncio.sleep(answer.delay_s)
            return _response(answer)
        await asyncio.sleep(self._latency_s + fault.latency_ms / 1000)
        if fault.mode is Mode.RESET_BEFORE:
            return _reset(request)
        call = await _call(request, path, query)
        if fault.mode is Mode.HANG:
            await self._parts.faults.lifted.wait()
            return _reset(request)
        if fault.mode in REFUSALS:
            return _response(refuse(vendor, fault, call))
        answer = vendor.receive(call)
        if answer.delay_s:
            await asyncio.sleep(answer.delay_s)
        if not answer.accepted:
            return _response(answer)
        return await _spoil(request, fault, answer)


def refuse(vendor: HttpVendor, fault: Fault, call: Call) -> Answer:
    if fault.mode is Mode.ANSWER:
        headers = {name: value for name, value in fault.headers.items() if name.lower() != "content-type"}
        kind = next((value for name, value in fault.headers.items() if name.lower() == "content-type"), None)
        return Answer(fault.status, fault.body.encode(), kind or "application/json", headers)
    return vendor.refusal(fault.mode, fault.retry_after, call)


async def _spoil(request: web.BaseRequest, fault: Fault, answer: Answer) -> web.StreamResponse:
    if fault.mode is Mode.RESET_AFTER:
        return _reset(request)
    if fault.mode is Mode.GARBAGE:
        return _response(Answer(200, GARBAGE_BODY, _HTML))
    if fault.mode is Mode.HUGE:
        return _response(Answer(200, b"\0" * HUGE_BODY_BYTES, _HTML))
    if fault.mode is Mode.SLOW:
        return await _drip(request, answer)
    return _response(answer)


async def _drip(request: web.BaseRequest, answer: Answer) -> web.StreamResponse:
    """Headers at once, then the body byte by byte; a body that would be empty drips blanks for ten seconds."""
    body = answer.body or b" " * 40
    response = web.StreamResponse(status=answer.status, headers={**answer.headers, "Content-Type": answer.content_type})
    response.content_length = len(body)
    await response.prepare(request)
    for position in range(len(body)):
        await asyncio.sleep(_DRIP_S)
        try:
            await response.write(body[position : position + 1])
        except ConnectionError:
            break
    return response


def _reset(request: web.BaseRequest) -> web.StreamResponse:
    """The caller sees a connection reset. What is returned goes nowhere."""
    transport = request.transport
    if transport is not None:
        reset(transport)
    return web.Response()


def reset(transport: asyncio.Transport) -> None:
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()


async def _call(request: web.BaseRequest, path: str, query: str) -> Call:
    body = await request.read()
    url = f"{request.scheme}://{request.headers.get('host', '')}"
    return Call(request.method, path, query, request.headers, body, url)


def _response(answer: Answer) -> web.Response:
    headers = {"Content-Type": answer.content_type, **answer.headers} if answer.body else dict(answer.headers)
    return web.Response(status=answer.status, body=answer.body, headers=headers)


def _request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> web.BaseRequest:
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=_BODY_LIMIT_BYTES)
