"""The HTTP client that carries, on sockets whose far end behaves as no well-made server does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import pytest

from notifier.providers.carrier import Carrier
from notifier.providers.http import NotSent, Reply, Uncertain, trusting
from notifier.providers.http1 import Connection
from tests.providers.conftest import Authority
from tests.providers.contract import run
from tests.providers.sink import Answer, Fault, HttpSink, Request, free_port

T = TypeVar("T")
LENGTH = b"Content-Length: 2\r\n\r\n"


@dataclass(frozen=True)
class Raw(Answer):
    """These bytes and no others."""

    @property
    def wire(self) -> bytes:
        assert isinstance(self.body, bytes)
        return self.body


def ok(request: Request) -> Answer:
    return Answer(200, request.body)


def with_sink(
    case: Callable[[Carrier, HttpSink], Awaitable[T]],
    answer: Callable[[Request], Answer] = ok,
    *,
    limit: int = 100,
    keepalive_s: float = 15.0,
) -> T:
    async def within() -> T:
        async with HttpSink(answer) as sink, Carrier(limit_per_host=limit, keepalive_s=keepalive_s) as carrier:
            return await case(carrier, sink)

    return run(within())


async def post(carrier: Carrier, sink: HttpSink, body: bytes = b"hi", timeout_s: float = 2.0) -> Reply:
    return await carrier.post(f"{sink.url}/send?a=b", headers={"X-One": "1"}, data=body, timeout_s=timeout_s)


def answered(raw: bytes) -> tuple[Reply, int]:
    """The reply to a first request that is answered with `raw`, and the connections that two requests took."""
    answers = [Raw(body=raw), Answer(200, b"second")]

    async def case(carrier: Carrier, sink: HttpSink) -> tuple[Reply, int]:
        first = await post(carrier, sink)
        assert (await post(carrier, sink)).body == b"second"
        return first, sink.connections

    return with_sink(case, lambda request: answers.pop(0))


def test_a_request_says_what_it_must_and_a_connection_is_kept() -> None:
    async def case(carrier: Carrier, sink: HttpSink) -> tuple[list[Request], int]:
        for body in (b"", b"a", b"b" * 300_000):
            assert (await post(carrier, sink, body)).body == body[: 64 * 1024]
        return sink.requests, sink.connections

    requests, connections = with_sink(case, lambda request: Answer(200, request.body[: 64 * 1024]))
    assert connections == 1
    assert [len(request.body) for request in requests] == [0, 1, 300_000]
    assert {(request.method, request.path) for request in requests} == {("POST", "/send?a=b")}
    assert set(requests[0].headers) == {"host", "user-agent", "accept-encoding", "x-one", "content-length"}
    assert requests[0].headers["accept-encoding"] == "identity"


def test_headers_of_an_answer_are_found_in_any_case() -> None:
    reply, _ = answered(b"HTTP/1.1 429 Slow\r\nretry-after: 7\r\n" + LENGTH + b"no")
    assert (reply.status, reply.headers.get("Retry-After"), reply.body) == (429, "7", b"no")


def test_an_answer_in_pieces_and_chunks_is_one() -> None:
    async def case(carrier: Carrier, sink: HttpSink) -> Reply:
        return await post(carrier, sink)

    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    assert with_sink(case, lambda request: Raw(body=chunked)).body == b"abcde"


@pytest.mark.parametrize("version, header, connections", [("1.1", "close", 2), ("1.1", "x", 1), ("1.0", "x", 2)])
def test_a_connection_that_the_far_end_will_close_is_used_no_more(version: str, header: str, connections: int) -> None:
    raw = f"HTTP/{version} 200 OK\r\nConnection: {header}\r\n".encode() + LENGTH + b"ok"
    assert answered(raw)[1] == connections


def test_what_comes_before_an_answer_is_not_the_answer() -> None:
    reply, connections = answered(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        b"HTTP/1.1 202 Accepted\r\nX-Id: 7\r\n" + LENGTH + b"ok"
    )
    assert (reply.status, reply.headers.get("x-id"), reply.headers.get("link"), connections) == (202, "7", None, 1)


def test_a_second_answer_is_never_the_next_requests() -> None:
    raw = b"HTTP/1.1 200 OK\r\n" + LENGTH + b"ok" + b"HTTP/1.1 200 OK\r\n" + LENGTH + b"no"
    reply, connections = answered(raw)
    assert (reply.body, connections) == (b"ok", 2)


def test_an_answer_that_nobody_asked_for_ends_the_connection() -> None:
    class Talkative(HttpSink):
        async def _respond(self, request: Request, writer: asyncio.StreamWriter) -> None:
            await super()._respond(request, writer)
            await asyncio.sleep(0.05)
            writer.write(Answer(200, b"stray").wire)

    async def case() -> tuple[bytes, int]:
        async with Talkative(ok) as sink, Carrier() as carrier:
            await post(carrier, sink, b"first")
            await asyncio.sleep(0.2)
            return (await post(carrier, sink, b"second")).body, sink.connections

    assert run(case()) == (b"second", 2)


def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    class Closing(HttpSink):
        async def _respond(self, request: Request, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nX-Id: 7\r\n\r\nall of it")
            writer.close()

    async def case() -> Reply:
        async with Closing(ok) as sink, Carrier() as carrier:
            return await post(carrier, sink)

    reply = run(case())
    assert (reply.status, reply.body, reply.headers.get("X-Id")) == (200, b"all of it", "7")


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok ",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 120_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000,
    ],
    ids=["no-http", "two-lengths", "negative", "bad-chunk", "upgrade", "endless-head", "too-long"],
)
def test_an_answer_that_is_none_is_garbled_at_once(raw: bytes) -> None:
    async def case(carrier: Carrier, sink: HttpSink) -> Uncertain:
        with pytest.raises(Uncertain) as raised:
            await post(carrier, sink, timeout_s=30)
        return raised.value

    assert with_sink(case, lambda request: Raw(body=raw)).garbled


@pytest.mark.parametrize("value", ["1\r\nX-Two: 2", "1\n2", "1\r2", "1\x002"])
def test_no_header_value_can_make_another_header(value: str) -> None:
    async def case(carrier: Carrier, sink: HttpSink) -> list[Request]:
        with pytest.raises(NotSent):
            await carrier.post(sink.url, headers={"X-One": value}, data=b"", timeout_s=2)
        return sink.requests

    assert with_sink(case) == []


@pytest.mark.parametrize("url", ["ftp://localhost/", "http:///x", "http://[::1", "http://local host/"])
def test_a_url_that_is_none_is_known_not_sent(url: str) -> None:
    async def case(carrier: Carrier, sink: HttpSink) -> None:
        with pytest.raises(NotSent):
            await carrier.post(url, headers={}, data=b"", timeout_s=2)

    with_sink(case)


def test_a_name_that_no_resolver_knows_is_known_not_sent_each_time() -> None:
    async def case(carrier: Carrier, sink: HttpSink) -> None:
        for _ in range(2):
            with pytest.raises(NotSent):
                await carrier.post("http://no-such-host.invalid/", headers={}, data=b"", timeout_s=5)

    with_sink(case)


def test_who_finds_every_connection_taken_waits_for_one() -> None:
    async def case(carrier: Carrier, sink: HttpSink) -> tuple[int, int]:
        sink.latency_s = 0.02
        replies = await asyncio.gather(*(post(carrier, sink, b"%d" % n) for n in range(20)))
        return len({reply.body for reply in replies}), sink.connections

    assert with_sink(case, limit=3) == (20, 3)


def test_who_gets_no_connection_in_time_has_not_sent() -> None:
    async def case(carrier: Carrier, sink: HttpSink) -> int:
        sink.fault = Fault.HANG
        hung = asyncio.create_task(post(carrier, sink, timeout_s=1.0))
        await asyncio.sleep(0.1)
        with pytest.raises(NotSent, match=r"no connection within 0\.2 s"):
            await post(carrier, sink, timeout_s=0.2)
        with pytest.raises(Uncertain):
            await hung
        sink.fault = Fault.NONE
        assert (await post(carrier, sink, b"again")).body == b"again"
        return len(sink.requests)

    assert with_sink(case, limit=1) == 2


def test_a_turn_that_comes_to_a_cancelled_caller_is_the_next_ones() -> None:
    async def case(carrier: Carrier, sink: HttpSink) -> bytes:
        sink.latency_s = 0.1
        first = asyncio.create_task(post(carrier, sink))
        await asyncio.sleep(0.02)
        second, third = (asyncio.create_task(post(carrier, sink, body)) for body in (b"second", b"third"))
        await asyncio.sleep(0.02)
        await first
        second.cancel()
        return (await third).body

    assert with_sink(case, limit=1) == b"third"


def test_a_cancelled_call_does_not_leave_its_answer_to_the_next() -> None:
    async def case(carrier: Carrier, sink: HttpSink) -> tuple[bytes, int]:
        sink.latency_s = 0.1
        call = asyncio.create_task(post(carrier, sink, b"first"))
        await asyncio.sleep(0.05)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        return (await post(carrier, sink, b"second")).body, sink.connections

    assert with_sink(case) == (b"second", 2)


def test_a_connection_that_was_idle_too_long_is_closed_and_not_used() -> None:
    async def case(carrier: Carrier, sink: HttpSink) -> tuple[int, int]:
        await asyncio.gather(*(post(carrier, sink) for _ in range(3)))
        open_before = len(sink._tasks)
        async with asyncio.timeout(10):  # a sweep comes at most once a second
            await asyncio.wait(set(sink._tasks))
        await post(carrier, sink)
        return open_before, sink.connections

    assert with_sink(case, keepalive_s=0.2) == (3, 4)


def test_a_connection_that_the_far_end_closed_meanwhile_is_not_used() -> None:
    class Leaving(HttpSink):
        async def _respond(self, request: Request, writer: asyncio.StreamWriter) -> None:
            await super()._respond(request, writer)
            await writer.drain()
            writer.close()

    async def case() -> tuple[bytes, int]:
        async with Leaving(ok) as sink, Carrier() as carrier:
            await post(carrier, sink, b"first")
            await asyncio.sleep(0.1)
            return (await post(carrier, sink, b"second")).body, sink.connections

    assert run(case()) == (b"second", 2)


def test_closing_ends_open_calls_as_uncertain() -> None:
    async def case(carrier: Carrier, sink: HttpSink) -> None:
        sink.fault = Fault.HANG
        call = asyncio.create_task(post(carrier, sink, timeout_s=30))
        await asyncio.sleep(0.1)
        await carrier.aclose()
        with pytest.raises(Uncertain):
            await call

    with_sink(case)


def test_nobody_listening_is_known_not_sent_within_the_time() -> None:
    async def case(carrier: Carrier, sink: HttpSink) -> None:
        with pytest.raises(NotSent):
            await carrier.post(f"http://127.0.0.1:{free_port()}/", headers={}, data=b"", timeout_s=2)

    with_sink(case)


def test_what_has_no_time_left_is_not_sent_and_leaves_its_connection_whole() -> None:
    async def case(carrier: Carrier, sink: HttpSink) -> tuple[int, int]:
        await post(carrier, sink)
        for timeout_s in (0.0, -1.0):
            with pytest.raises(NotSent):
                await post(carrier, sink, timeout_s=timeout_s)
        await post(carrier, sink)
        return len(sink.requests), sink.connections

    assert with_sink(case) == (2, 1)


def test_a_call_that_is_cancelled_as_its_connection_comes_up_takes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Connection.connection_made

    async def case(carrier: Carrier, sink: HttpSink) -> bytes:
        for _ in range(3):
            call = asyncio.create_task(post(carrier, sink))

            def cancelled(self: Connection, transport: asyncio.BaseTransport, call: asyncio.Task[Reply] = call) -> None:
                made(self, transport)
                call.cancel()

            monkeypatch.setattr(Connection, "connection_made", cancelled)
            with pytest.raises(asyncio.CancelledError):
                await call
        monkeypatch.setattr(Connection, "connection_made", made)
        return (await post(carrier, sink, b"after")).body

    assert with_sink(case, limit=2) == b"after"


def test_who_waits_longest_for_a_connection_gets_it_first() -> None:
    async def case(carrier: Carrier, sink: HttpSink) -> list[bytes]:
        sink.latency_s = 0.05
        order: list[bytes] = []

        async def one(body: bytes, calls: int = 1) -> None:
            for _ in range(calls):
                order.append((await post(carrier, sink, body, timeout_s=5)).body)

        busy = asyncio.create_task(one(b"busy", 4))
        await asyncio.sleep(0.02)
        await asyncio.gather(busy, one(b"second"), one(b"third"))
        return order

    assert with_sink(case, limit=1) == [b"busy", b"second", b"third", b"busy", b"busy", b"busy"]


def test_who_waits_when_the_client_is_closed_has_not_sent() -> None:
    async def case(carrier: Carrier, sink: HttpSink) -> int:
        sink.fault = Fault.HANG
        first, second = (asyncio.create_task(post(carrier, sink, timeout_s=30)) for _ in range(2))
        await asyncio.sleep(0.1)
        await carrier.aclose()
        with pytest.raises(Uncertain):
            await first
        with pytest.raises(NotSent):
            await second
        await asyncio.sleep(0.1)
        return len(sink.requests)

    assert with_sink(case, limit=1) == 1


def test_a_trailer_is_no_header() -> None:
    raw = b"HTTP/1.1 429 No\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nRetry-After: 900\r\n\r\n"
    reply, _ = answered(raw)
    assert (reply.status, reply.body, reply.headers.get("Retry-After")) == (429, b"a", None)


def test_a_whole_answer_stands_whatever_follows_it() -> None:
    reply, connections = answered(b"HTTP/1.1 200 OK\r\n" + LENGTH + b"ok" + b"x" * 200_000)
    assert (reply.status, reply.body, connections) == (200, b"ok", 2)


def test_over_tls_an_answer_without_a_length_that_is_cut_is_no_answer(authority: Authority) -> None:
    class Cut(HttpSink):
        async def _respond(self, request: Request, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 No\r\n\r\nhalf of")
            await writer.drain()
            await asyncio.sleep(0.05)
            sock = writer.get_extra_info("socket")
            os.dup2(os.open(os.devnull, os.O_RDWR), sock.fileno())  # a FIN, and no close_notify before it

    async def case() -> None:
        async with Cut(ok, authority.server) as sink, Carrier() as carrier:
            tls = trusting(authority.ca_file)
            with pytest.raises(Uncertain):
                await carrier.post(f"{sink.url}/", headers={}, data=b"", timeout_s=3, ssl_context=tls)

    run(case())


def test_a_connection_over_tls_is_kept_and_its_certificate_looked_at(authority: Authority) -> None:
    async def case() -> int:
        async with HttpSink(ok, authority.server) as sink, Carrier() as carrier:
            for _ in range(3):
                tls = trusting(authority.ca_file)
                await carrier.post(f"{sink.url}/", headers={}, data=b"", timeout_s=3, ssl_context=tls)
            with pytest.raises(NotSent):
                await carrier.post(f"{sink.url}/", headers={}, data=b"", timeout_s=3)
            return sink.connections

    assert run(case()) == 1
