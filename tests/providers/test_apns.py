"""APNs: the connection under every fault that was seen or can be thought of, then the adapter's words for answers.

All of it over real TLS sockets. The server is tests/providers/apns_server.py; times are short, so that a fault
costs a test a second or two and not the ten of production.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import random
import socket
import ssl
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import jwt
import pytest
import uvloop
from aioapns.common import PushType
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from hyperframe.frame import GoAwayFrame

from apps.console.servers import Servers
from notifier.limits import Store, TokenExchange
from notifier.message import Address, Channel, Lane, Message, Mode, Platform, PushContent, PushOptions
from notifier.outcome import Kind, Outcome, Scope
from notifier.providers import apns_http2
from notifier.providers.apns import REASONS, Apns
from notifier.providers.apns_http2 import Connection, NotSent, Pool, Request, Result, SharedToken, Uncertain
from notifier.providers.base import ConfigurationError, Surroundings
from notifier.providers.carrier import Carrier
from tests.providers.apns_server import ApnsServer, Received, accept, make_authority, never
from tests.providers.conftest import Sandbox
from tests.providers.contract import ProviderContract, SandboxContract, World
from tests.providers.sink import Fault, free_port

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]

SLACK_S = 8.0  # what a busy machine may add to what takes a second at most

TOKEN = "5a0db0c50200aaaabbbbccccddddeeeeffff00001111222233334444555566ab"


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


PRIVATE = ec.generate_private_key(ec.SECP256R1())
KEY = _pem(PRIVATE)


@pytest.fixture(scope="module")
def tls_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    return make_authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def server(tls_pair: tuple[ssl.SSLContext, Path]) -> ApnsServer:
    return ApnsServer(tls_pair[0])


@pytest.fixture
def ca(tls_pair: tuple[ssl.SSLContext, Path]) -> str:
    return str(tls_pair[1])


@pytest.fixture(params=[uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run[Any]:
    """Runs a coroutine, for a minute at most, and fails on anything the loop complains of."""
    return _runner(request.param)


@pytest.fixture
def run_fast() -> Run[Any]:
    """As `run`, on the loop of production alone: for what takes seconds."""
    return _runner(uvloop.new_event_loop)


def _runner(factory: Callable[[], asyncio.AbstractEventLoop]) -> Run[Any]:
    def run(main: Coroutine[Any, Any, T]) -> T:
        complaints: list[dict[str, Any]] = []
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.get_loop().set_exception_handler(lambda _, context: complaints.append(context))
            result = runner.run(asyncio.wait_for(main, 60))
        assert complaints == []
        return result

    return run


@asynccontextmanager
async def pool_to(
    server: ApnsServer, ca: str, *, host: str = "127.0.0.1", token: SharedToken | None = None, connections: int = 1
) -> AsyncIterator[Pool]:
    pool = Pool(
        token or SharedToken(KEY, "KEYID", "TEAMID"),
        "com.example.shop",
        host,
        server.port,
        ssl_context=ssl.create_default_context(cafile=ca),
        max_connections=connections,
    )
    try:
        yield pool
    finally:
        await pool.aclose()


def request_of(size: int = 100) -> Request:
    return Request(
        TOKEN,
        json.dumps({"x": "a" * (size - 9)}).encode(),
        expiration=int(time.time()) + 600,
        notification_id=str(uuid.uuid4()),
        priority=10,
        push_type=PushType.ALERT,
    )


async def ends(sends: list[Awaitable[Result]]) -> list[Result | NotSent | Uncertain]:
    """How each send ended; anything but an answer, NotSent and Uncertain is a bug and raised."""
    found = await asyncio.gather(*sends, return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException) and not isinstance(one, NotSent | Uncertain):
            raise one
    return found  # type: ignore[return-value]


def tally(found: list[Result | NotSent | Uncertain]) -> Counter[str]:
    return Counter(one.status if isinstance(one, Result) else type(one).__name__ for one in found)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for happens in the server's own callbacks
        await asyncio.sleep(0.005)


def connections_of(pool: Pool) -> list[Connection]:
    return pool._all()


def open_in_h2(connection: Connection) -> int:
    return H2Connection.open_outbound_streams.__get__(connection.conn)


# --- Streams and windows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rounds", "window", "max_streams"),
    [(20, 65_535, 1000), (1, 1_000, 1000), (1, 65_535, 7), (1, 65_535, 1)],
    ids=["as APNs", "stream window of 1,000 bytes", "7 streams", "1 stream"],
)
def test_bodies_beyond_the_window_wait_and_no_stream_leaks(
    run_fast: Run[None], server: ApnsServer, ca: str, rounds: int, window: int, max_streams: int
) -> None:
    server.window, server.max_streams = window, max_streams

    async def main() -> None:
        async with server, pool_to(server, ca) as pool:
            for _ in range(rounds):
                requests = [request_of(3_900) for _ in range(500)]
                found = await ends([pool.send_notification(one) for one in requests])
                assert tally(found) == {"200": 500}
                assert [one.notification_id for one in found] == [one.notification_id for one in requests]
            [connection] = connections_of(pool)
            assert (connection.load, connection.partial, server.open_streams) == (0, {}, 0)
            assert len(connection.conn.streams) <= 500 + 128  # what h2 remembers of closed ones is bounded
            assert open_in_h2(connection) == 0
        assert len(server.connections) == 1
        assert len(set(server.ids)) == len(server.ids) == rounds * 500
        assert all(len(request.body) == 3_900 for request in server.seen)

    run_fast(main())


def test_nothing_is_sent_before_the_servers_settings(run: Run[None], server: ApnsServer, ca: str) -> None:
    server.sends_settings = False

    async def main() -> None:
        async with server, pool_to(server, ca) as pool:
            found = await ends([pool.send_notification(request_of(), 0.5) for _ in range(3)])
            assert tally(found) == {"NotSent": 3}
            assert server.connections[0].open == {}

    run(main())


def test_a_crowded_connection_gets_company(run_fast: Run[None], server: ApnsServer, ca: str) -> None:
    waiting: list[Received] = []
    server.max_streams, server.respond = 10, waiting.append

    async def main() -> None:
        async with server, pool_to(server, ca, connections=2) as pool:
            first = asyncio.ensure_future(pool.send_notification(request_of()))
            await until(lambda: bool(waiting))
            sends = [asyncio.ensure_future(pool.send_notification(request_of())) for _ in range(100)]
            await until(lambda: len(server.connections) >= 2)
            server.respond = accept
            for request in waiting:
                request.answer()
            assert tally(await ends([first, *sends])) == {"200": 101}
            assert tally(await ends([pool.send_notification(request_of()) for _ in range(100)])) == {"200": 100}
        assert len(server.connections) == 2
        assert server.connections[1].h2.highest_inbound_stream_id > 0

    run_fast(main())


def test_used_up_stream_ids_mean_a_new_connection(run: Run[None], server: ApnsServer, ca: str) -> None:
    async def main() -> None:
        async with server, pool_to(server, ca) as pool:
            await pool.send_notification(request_of())
            connections_of(pool)[0].conn.highest_outbound_stream_id = 2**31 - 3
            found = await ends([pool.send_notification(request_of()) for _ in range(5)])
            assert tally(found) == {"200": 5}
        assert len(server.connections) == 2
        assert len(set(server.ids)) == len(server.ids) == 6

    run(main())


def test_an_idle_connection_is_kept_for_minutes_and_not_for_longer(run: Run[None], server: ApnsServer, ca: str) -> None:
    async def main() -> None:
        async with server, pool_to(server, ca) as pool:
            await pool.send_notification(request_of())
            [connection] = connections_of(pool)
            connection.used_at -= 290
            await pool.send_notification(request_of())
            assert connections_of(pool) == [connection]
            connection.used_at -= 301
            await pool.send_notification(request_of())
            assert len(server.connections) == 2

    run(main())


# --- Silence ----------------------------------------------------------------------------------------------------


def test_a_stream_that_is_never_answered_costs_only_itself(run: Run[None], server: ApnsServer, ca: str) -> None:
    hung = request_of()
    server.respond = lambda request: never(request) if request.id == hung.notification_id else request.answer()

    async def main() -> None:
        async with server, pool_to(server, ca) as pool:
            started = time.monotonic()
            lost = asyncio.ensure_future(ends([pool.send_notification(hung, 2)]))
            found = []
            for _ in range(4):
                found += await ends([pool.send_notification(request_of()) for _ in range(170)])
                await asyncio.sleep(0.1)
            assert tally(found) == {"200": 680}
            assert tally(await lost) == {"Uncertain": 1}
            assert time.monotonic() - started > 0.9
            assert tally(await ends([pool.send_notification(request_of())])) == {"200": 1}
            assert server.client_resets == 1
            assert server.ids.count(hung.notification_id) == 1
            assert len(server.connections) == 1

    run(main())


def test_a_connection_that_answers_nothing_is_left(run_fast: Run[None], server: ApnsServer, ca: str) -> None:
    server.respond = never

    async def main() -> None:
        async with server, pool_to(server, ca) as pool:
            requests = [request_of() for _ in range(1_500)]
            found = await ends([pool.send_notification(one, 2) for one in requests])
            uncertain = {
                one.notification_id for one, end in zip(requests, found, strict=True) if type(end) is Uncertain
            }
            assert set(server.ids) <= uncertain  # and of none that is "not sent" did the server read all
            assert len(set(server.ids)) == len(server.ids)
            assert set(tally(found)) == {"Uncertain", "NotSent"}
            before = len(server.connections)
            server.respond = accept
            assert tally(await ends([pool.send_notification(request_of()) for _ in range(500)])) == {"200": 500}
            assert len(server.connections) == before + 1

    run_fast(main())


def test_a_body_that_no_window_lets_through_in_time_is_known_not_sent(
    run_fast: Run[None], server: ApnsServer, ca: str
) -> None:
    server.acknowledges = False

    async def main() -> None:
        async with server, pool_to(server, ca) as pool:
            found = await ends([pool.send_notification(request_of(4_000), 2) for _ in range(30)])
            assert tally(found) == {"200": 16, "NotSent": 14}  # 16 bodies fit into 65,535 bytes
            assert len(server.seen) == 16
            assert server.connections[0].h2.highest_inbound_stream_id == 2 * 17 - 1  # no stream without room for a byte

    run_fast(main())


def test_a_cancelled_caller_gives_its_stream_back(run: Run[None], server: ApnsServer, ca: str) -> None:
    server.max_streams, server.respond = 2, never

    async def main() -> None:
        async with server, pool_to(server, ca) as pool:
            tasks = [asyncio.ensure_future(pool.send_notification(request_of())) for _ in range(5)]
            await until(lambda: len(server.seen) >= 2)
            server.respond = accept
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert all(task.cancelled() for task in tasks)
            [connection] = connections_of(pool)
            assert connection.load == 0
            assert tally(await ends([pool.send_notification(request_of()) for _ in range(20)])) == {"200": 20}
            assert (server.client_resets, server.open_streams, len(server.connections)) == (2, 0, 1)
            assert len(server.seen) == 22

    run(main())


# --- Broken connections -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["reset", "close"])
def test_a_lost_connection_ends_each_send_once_and_repeats_none(
    run: Run[None], server: ApnsServer, ca: str, how: str
) -> None:
    server.respond = never

    async def main() -> None:
        async with server, pool_to(server, ca) as pool:
            sends = asyncio.ensure_future(ends([pool.send_notification(request_of()) for _ in range(300)]))
            await until(lambda: len(server.seen) >= 300)
            [connection] = server.connections
            connection.reset_tcp() if how == "reset" else connection.transport.close()
            assert tally(await sends) == {"Uncertain": 300}
            assert len(set(server.ids)) == len(server.ids) == 300
            server.respond = accept
            assert tally(await ends([pool.send_notification(request_of())])) == {"200": 1}

    run(main())


def test_only_what_was_not_written_is_repeated_after_a_reset(run: Run[None], server: ApnsServer, ca: str) -> None:
    server.acknowledges = False  # 16 bodies fit into the window, the others wait

    def respond(request: Received) -> None:
        if len(server.seen) == 10:
            server.acknowledges, server.respond = True, accept
            request.connection.reset_tcp()

    server.respond = respond

    async def main() -> None:
        async with server, pool_to(server, ca) as pool:
            requests = [request_of(4_000) for _ in range(200)]
            found = await ends([pool.send_notification(one) for one in requests])
            assert tally(found) == {"Uncertain": 16, "200": 184}
            assert len(set(server.ids)) == len(server.ids)
            assert len(server.connections) == 2
            lost = {one.notification_id for one, end in zip(requests, found, strict=True) if isinstance(end, Uncertain)}
            answered = {end.notification_id for end in found if isinstance(end, Result)}
            assert lost.isdisjoint(answered)

    run(main())


def test_a_refused_connect_is_known_not_sent_for_all_at_once(run: Run[None], server: ApnsServer, ca: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        server.port = taken.getsockname()[1]

        async def main() -> None:
            async with pool_to(server, ca) as pool:
                started = time.monotonic()
                found = await ends([pool.send_notification(request_of()) for _ in range(500)])
                assert tally(found) == {"NotSent": 500}
                assert time.monotonic() - started < SLACK_S
                assert all(isinstance(one.__cause__, ConnectionRefusedError) for one in found)  # type: ignore[union-attr]
                assert len({id(one) for one in found}) == 500  # a shared one would collect 500 tracebacks

        run(main())


def test_a_host_without_address_is_known_not_sent(run: Run[None], server: ApnsServer, ca: str) -> None:
    async def main() -> None:
        async with server:
            for host in ("apns.invalid", "x" * 70 + ".invalid"):
                async with pool_to(server, ca, host=host) as pool:
                    assert tally(await ends([pool.send_notification(request_of())])) == {"NotSent": 1}

    run(main())


def test_a_handshake_that_is_never_answered_is_given_up(
    run: Run[None], server: ApnsServer, ca: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apns_http2, "CONNECT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server.port = silent.getsockname()[1]

        async def main() -> None:
            async with pool_to(server, ca) as pool:
                started = time.monotonic()
                found = await ends([pool.send_notification(request_of()) for _ in range(20)])
                assert tally(found) == {"NotSent": 20}
                assert 0.4 < time.monotonic() - started < SLACK_S
                # A caller with less time than the connect takes does not wait for it.
                monkeypatch.setattr(apns_http2, "CONNECT_S", 20.0)
                started = time.monotonic()
                assert tally(await ends([pool.send_notification(request_of(), 0.1)])) == {"NotSent": 1}
                assert time.monotonic() - started < SLACK_S

        run(main())


@pytest.mark.parametrize("words", [b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes.fromhex("000008060000000001") + b"x" * 8])
def test_a_peer_that_speaks_no_http2_is_not_waited_for_twice(
    run: Run[None], server: ApnsServer, tls_pair: tuple[ssl.SSLContext, Path], ca: str, words: bytes
) -> None:
    async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(words)

    async def main() -> None:
        peer = await asyncio.start_server(speak, "127.0.0.1", 0, ssl=tls_pair[0])
        server.port = peer.sockets[0].getsockname()[1]
        async with pool_to(server, ca) as pool:
            found = await ends([pool.send_notification(request_of(), 0.5) for _ in range(3)])
            assert tally(found) == {"NotSent": 3}  # no SETTINGS came, so nothing was written
            assert all(connection.retired for connection in connections_of(pool))
        peer.close()

    run(main())


def test_garbage_frames_end_what_was_written_as_uncertain(run: Run[None], server: ApnsServer, ca: str) -> None:
    server.respond = lambda request: request.connection.transport.write(b"\x00\x00\x01\x01\x05\x00\x00\x00\x01\xff" * 3)

    async def main() -> None:
        async with server, pool_to(server, ca) as pool:
            assert tally(await ends([pool.send_notification(request_of(), 5)])) == {"Uncertain": 1}
            server.respond = accept
            assert tally(await ends([pool.send_notification(request_of())])) == {"200": 1}
        assert len(server.connections) == 2

    run(main())


@pytest.mark.parametrize("offered", [["h2"], []], ids=["ALPN", "prior knowledge"])
def test_alpn_is_offered_and_not_required(run: Run[None], tmp_path: Path, offered: list[str]) -> None:
    tls, ca = make_authority(tmp_path)
    if not offered:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(tmp_path / "server.pem")
    server = ApnsServer(tls)

    async def main() -> None:
        async with server, pool_to(server, str(ca)) as pool:
            assert (await pool.send_notification(request_of())).status == "200"
            assert server.connections[0].alpn == ("h2" if offered else None)

    run(main())


def test_closing_the_pool_ends_what_is_in_flight(run: Run[None], server: ApnsServer, ca: str) -> None:
    server.respond = never

    async def main() -> None:
        async with server, pool_to(server, ca) as pool:
            sends = asyncio.ensure_future(ends([pool.send_notification(request_of()) for _ in range(5)]))
            await until(lambda: len(server.seen) >= 5)
            started = time.monotonic()
            await pool.aclose()
            assert tally(await sends) == {"Uncertain": 5}
            assert time.monotonic() - started < SLACK_S
            assert connections_of(pool) == []

    run(main())


class Wire:
    """A TCP forwarder before the server that can go dead: nothing arrives any more, nobody is told."""

    def __init__(self, port: int) -> None:
        self.to, self.is_dead = port, False
        self.tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Wire:
        self.listening = await asyncio.start_server(self._forward, "127.0.0.1", 0)
        self.port = self.listening.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.listening.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.to)
        self.tasks += [
            asyncio.ensure_future(self._copy(reader, far_writer)),
            asyncio.ensure_future(self._copy(far_reader, writer)),
        ]

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if not self.is_dead:
                writer.write(data)
        writer.close()


def test_a_network_that_went_dead_is_left_and_holds_nothing_back(run: Run[None], server: ApnsServer, ca: str) -> None:
    async def main() -> None:
        async with server, Wire(server.port) as wire:
            server.port = wire.port
            async with pool_to(server, ca) as pool:
                await pool.send_notification(request_of())
                [connection] = connections_of(pool)
                wire.is_dead = True  # in the same turn of the loop as the last answer
                started = time.monotonic()
                assert tally(await ends([pool.send_notification(request_of(), 0.5) for _ in range(5)])) == {
                    "Uncertain": 5
                }
                wire.is_dead = False
                assert tally(await ends([pool.send_notification(request_of())])) == {"200": 1}
                # Its TLS goodbye is not answered either.
                await asyncio.wait_for(connection.lost.wait(), SLACK_S)
                assert time.monotonic() - started < SLACK_S
                wire.is_dead = True
                [connection] = connections_of(pool)
                await pool.aclose()
                assert connection.lost.is_set()

    run(main())


# --- GOAWAY and RST_STREAM --------------------------------------------------------------------------------------


@pytest.mark.parametrize("later", [False, True], ids=["answers in the same segment", "answers later"])
@pytest.mark.parametrize(("last", "taken"), [(99, 50), (2**31 - 1, 100), (0, 0)])
def test_goaway_lets_the_streams_finish_that_the_server_took(
    run: Run[None], server: ApnsServer, ca: str, last: int, taken: int, later: bool
) -> None:
    async def main() -> None:
        async with server, pool_to(server, ca) as pool:
            await pool.send_notification(request_of())
            connection = connections_of(pool)[0]
            _expect_goaway(server, first=3, count=100, last=last and min(last + 2, 2**31 - 1), later=later)
            authorization = await pool.token.current()
            found = await ends([connection.send_notification(request_of(), 5, authorization) for _ in range(100)])
            assert tally(found) == Counter({"200": taken, "NotSent": 100 - taken}) - Counter()
            await asyncio.wait_for(connection.lost.wait(), 2)

    run(main())


@pytest.mark.parametrize("later", [False, True], ids=["answers in the same segment", "answers later"])
@pytest.mark.parametrize("last", [99, 2**31 - 1, 0])
def test_what_a_goaway_left_out_is_sent_on_another_connection(
    run: Run[None], server: ApnsServer, ca: str, last: int, later: bool
) -> None:
    _expect_goaway(server, first=1, count=100, last=last, later=later)

    async def main() -> None:
        async with server, pool_to(server, ca) as pool:
            found = await ends([pool.send_notification(request_of()) for _ in range(100)])
            assert tally(found) == {"200": 100}
            taken = 100 if last > 200 else (last + 1) // 2
            assert len(server.connections) == (1 if taken == 100 else 2)

    run(main())


def _expect_goaway(server: ApnsServer, *, first: int, count: int, last: int, later: bool) -> None:
    """The server collects `count` requests, says GOAWAY, answers those up to `last`, then takes whatever comes."""
    held: list[Received] = []

    def answer() -> None:
        for request in held:
            if first <= request.stream_id <= last:
                request.answer()

    def respond(request: Received) -> None:
        held.append(request)
        if len(held) == count:
            server.respond = accept
            request.connection.goaway(last)
            if later:
                asyncio.get_running_loop().call_later(0.1, answer)
            else:
                answer()

    server.respond = respond


def test_a_body_half_written_at_goaway_is_finished(run: Run[None], server: ApnsServer, ca: str) -> None:
    server.window = 1_000
    server.begun = lambda request: request.connection.goaway(request.stream_id)

    async def main() -> None:
        async with server, pool_to(server, ca) as pool:
            assert tally(await ends([pool.send_notification(request_of(3_900), 3)])) == {"200": 1}
            assert [len(request.body) for request in server.seen] == [3_900]

    run(main())


def test_what_was_written_in_the_same_turn_as_a_goaway_is_not_dropped(
    run: Run[None], server: ApnsServer, ca: str
) -> None:
    async def main() -> None:
        async with server, pool_to(server, ca) as pool:
            await pool.send_notification(request_of())
            [connection] = connections_of(pool)
            authorization = await pool.token.current()
            sends = [
                asyncio.ensure_future(connection.send_notification(request_of(), 3, authorization)) for _ in range(5)
            ]
            # Runs after the five have written and before the loop hands their bytes to the transport.
            asyncio.get_running_loop().call_soon(connection.data_received, GoAwayFrame(0, 2**31 - 1).serialize())
            assert tally(await ends(sends)) == {"200": 5}

    run(main())


def test_goaway_before_the_first_stream_costs_nothing(run: Run[None], server: ApnsServer, ca: str) -> None:
    async def main() -> None:
        async with server, pool_to(server, ca) as pool:
            connection = await pool.acquire()
            await asyncio.sleep(0.05)
            server.connections[0].goaway(0)
            await asyncio.wait_for(connection.lost.wait(), 2)
            assert tally(await ends([pool.send_notification(request_of())])) == {"200": 1}

    run(main())


def test_a_reset_stream_is_uncertain_and_not_repeated(run: Run[None], server: ApnsServer, ca: str) -> None:
    server.respond = lambda request: request.reset(ErrorCodes.INTERNAL_ERROR)

    async def main() -> None:
        async with server, pool_to(server, ca) as pool:
            assert tally(await ends([pool.send_notification(request_of())])) == {"Uncertain": 1}
            assert (len(server.seen), len(server.connections)) == (1, 1)

    run(main())


def test_a_refused_stream_is_tried_once_more(run: Run[None], server: ApnsServer, ca: str) -> None:
    server.respond = lambda request: request.reset(ErrorCodes.REFUSED_STREAM)

    async def main() -> None:
        async with server, pool_to(server, ca) as pool:
            assert tally(await ends([pool.send_notification(request_of())])) == {"NotSent": 1}
            assert len(server.seen) == 2

            def respond(request: Received) -> None:
                server.respond = accept
                request.reset(ErrorCodes.REFUSED_STREAM)

            server.respond = respond
            assert tally(await ends([pool.send_notification(request_of())])) == {"200": 1}
            assert len(server.seen) == 4

    run(main())


# --- Answers ----------------------------------------------------------------------------------------------------


def test_five_thousand_error_bodies_pass_one_connection(run_fast: Run[None], server: ApnsServer, ca: str) -> None:
    server.respond = lambda request: request.error(400, "BadDeviceToken")

    async def main() -> None:
        async with server, pool_to(server, ca) as pool:
            for _ in range(20):
                found = await ends([pool.send_notification(request_of(), 5) for _ in range(250)])
                assert tally(found) == {"400": 250}
                assert {one.description for one in found if isinstance(one, Result)} == {"BadDeviceToken"}
        assert (len(server.connections), server.stuck) == (1, 0)

    run_fast(main())


@pytest.mark.parametrize(
    ("status", "body", "reason", "unreadable"),
    [
        (500, None, None, False),
        (503, None, None, False),
        (400, b"not JSON", None, True),
        (400, b"\xff\xfe", None, True),
        (400, [1], None, True),
        (400, b"null", None, True),
        (400, b"[" * 12_000, None, True),
        (400, {"reason": 5, "timestamp": "x"}, None, False),
        (400, b'{"reason":"' + b"a" * 100_000, None, True),
        (200, b"<html>", None, True),
        (410, {"reason": "Unregistered", "timestamp": 1_700_000_000_123}, "Unregistered", False),
    ],
)
def test_every_answer_ends_its_send_at_once(
    run: Run[None], server: ApnsServer, ca: str, status: int, body: object, reason: str | None, unreadable: bool
) -> None:
    def respond(request: Received) -> None:
        if isinstance(body, bytes) and len(body) > 60_000:
            _pour(request, status, body)
        else:
            request.answer(status, body)

    server.respond = respond

    async def main() -> None:
        async with server, pool_to(server, ca) as pool:
            await pool.acquire()
            started = time.monotonic()
            result = await pool.send_notification(request_of(), 20)
            assert time.monotonic() - started < SLACK_S
            assert (result.status, result.description, result.unreadable) == (str(status), reason, unreadable)
            server.respond = accept
            assert (await pool.send_notification(request_of())).status == "200"
        assert len(server.connections) == 1

    run(main())


def _pour(request: Received, status: int, body: bytes) -> None:
    """An answer larger than the window, written as the client acknowledges."""
    h2, stream_id = request.connection.h2, request.stream_id
    h2.send_headers(stream_id, [(":status", str(status))])
    rest = body

    def more() -> None:
        nonlocal rest
        if stream_id not in request.connection.open:
            return
        while rest and (room := min(h2.local_flow_control_window(stream_id), 16_384)):
            h2.send_data(stream_id, rest[:room], end_stream=len(rest) <= room)
            rest = rest[room:]
        request.connection.flush()
        if rest:
            asyncio.get_running_loop().call_later(0.01, more)
        else:
            request.connection.open.pop(stream_id)

    more()


def test_of_an_endless_answer_little_is_kept(run: Run[None], server: ApnsServer, ca: str) -> None:
    server.respond = lambda request: _pour(request, 400, b"x" * 500_000)

    async def main() -> None:
        async with server, pool_to(server, ca) as pool:
            sending = asyncio.ensure_future(pool.send_notification(request_of(), 20))
            kept = 0
            while not sending.done():
                await asyncio.sleep(0)
                for connection in connections_of(pool):
                    kept = max(kept, *(len(send.received) for send in connection.streams.values()), 0)
            assert (await sending).status == "400"
            assert 65_536 <= kept < 65_536 + 16_384  # one frame more at most

    run(main())


def test_an_answer_may_come_before_the_body_is_read(run: Run[None], server: ApnsServer, ca: str) -> None:
    server.window, server.acknowledges = 1_000, False
    server.begun = lambda request: request.error(413, "PayloadTooLarge")

    async def main() -> None:
        async with server, pool_to(server, ca) as pool:
            found = await ends([pool.send_notification(request_of(3_900), 3) for _ in range(3)])
            assert tally(found) == {"413": 3}
            [connection] = connections_of(pool)
            assert (connection.load, connection.partial) == (0, {})
            assert open_in_h2(connection) == 0

    run(main())


# --- The token --------------------------------------------------------------------------------------------------


class Clock:
    """Moves time.time() for signer and token alike; the loop's own clock goes on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead_s = 0.0
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + self.ahead_s)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Shared:
    """What all processes share: the token that counts, replaced only by whoever saw the last one."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[float, str]] = {}
        self.calls = 0

    def exchange(self, name: str, stale: str, issued_at: float, header: str) -> tuple[float, str]:
        self.calls += 1
        if name not in self.kept or self.kept[name][1] == stale:
            self.kept[name] = issued_at, header
        return self.kept[name]

    async def exchange_later(self, name: str, stale: str, issued_at: float, header: str) -> tuple[float, str]:
        await asyncio.sleep(0.01)
        return self.exchange(name, stale, issued_at, header)


def test_one_token_serves_all_connections_and_is_what_apple_asks_for(
    run: Run[None], server: ApnsServer, ca: str
) -> None:
    token = SharedToken(KEY, "KEYID", "TEAMID")

    async def main() -> None:
        async with server:
            for _ in range(4):
                async with pool_to(server, ca, token=token) as pool:
                    await pool.send_notification(request_of())
        assert len(server.connections) == 4
        [header] = server.tokens
        encoded = header.removeprefix("bearer ")
        assert jwt.get_unverified_header(encoded) == {"alg": "ES256", "kid": "KEYID", "typ": "JWT"}
        claims = jwt.decode(encoded, PRIVATE.public_key(), algorithms=["ES256"])
        assert claims["iss"] == "TEAMID"
        assert abs(claims["iat"] - time.time()) < 5

    run(main())


@pytest.mark.parametrize("exchange", ["exchange", "exchange_later"])
def test_one_token_serves_all_processes_that_share_a_store(
    run: Run[None], server: ApnsServer, ca: str, exchange: str
) -> None:
    store = Shared()

    async def main() -> None:
        async with server:
            for _ in range(4):  # each with a signer of its own, as in a process of its own
                token = SharedToken(KEY, "KEYID", "TEAMID", getattr(store, exchange))
                async with pool_to(server, ca, token=token) as pool:
                    assert tally(await ends([pool.send_notification(request_of()) for _ in range(10)])) == {"200": 10}
        assert len(server.tokens) == 1
        assert store.calls == 4

    run(main())


@pytest.fixture(scope="module")
def valkey() -> Iterator[str]:
    """The URL of one that is ours alone; no other server is needed here."""
    with tempfile.TemporaryDirectory(prefix="notifier-test-") as name:
        state = Path(name)
        state.chmod(0o711)  # the server's account walks through; nobody lists
        servers = Servers(state, durable=False, configured={"DATABASE_URL": "none", "CACHE_URL": "none"})
        assert servers.broker is not None
        servers.start()
        yield f"unix://{servers.broker.socket}?db=0"
        servers.stop()


def test_a_real_store_shares_the_token_and_its_absence_costs_nobody_a_send(
    run: Run[None], server: ApnsServer, ca: str, valkey: str
) -> None:
    name = f"KEY{uuid.uuid4().hex}"  # the store outlives the test

    async def headers_through(url: str) -> set[str]:
        async with server:
            for _ in range(4):
                token = SharedToken(KEY, name, "TEAMID", TokenExchange(Store(url)).exchange_token)
                async with pool_to(server, ca, token=token) as pool:
                    assert tally(await ends([pool.send_notification(request_of()) for _ in range(10)])) == {"200": 10}
        found = server.tokens
        server.seen.clear()
        server.port = 0
        return found

    async def main() -> None:
        assert len(await headers_through(valkey)) == 1
        assert len(await headers_through(f"redis://127.0.0.1:{free_port()}/0")) >= 1

    run(main())


def test_a_key_that_was_mended_does_not_get_the_token_of_the_one_it_replaces(run: Run[None]) -> None:
    """Apple's names for a key say nothing of its content: a wrong .p8 may have been pasted under the right ones."""
    store = Shared()

    async def main() -> None:
        wrong = SharedToken(_pem(ec.generate_private_key(ec.SECP256R1())), "KEYID", "TEAMID", store.exchange)
        await wrong.current()
        mended = await SharedToken(KEY, "KEYID", "TEAMID", store.exchange).current()
        jwt.decode(mended.removeprefix("bearer "), PRIVATE.public_key(), algorithms=["ES256"])

    run(main())


def test_the_token_is_replaced_after_45_minutes_by_one_process_for_all(run: Run[None], clock: Clock) -> None:
    store = Shared()

    async def main() -> None:
        tokens = [SharedToken(KEY, "KEYID", "TEAMID", store.exchange_later) for _ in range(6)]
        seen: dict[int, set[str]] = {}
        for minute in range(0, 140, 1):
            clock.ahead_s = minute * 60 + 0.5
            seen[minute] = set(await asyncio.gather(*(token.current() for token in tokens for _ in range(3))))
        assert all(len(headers) == 1 for headers in seen.values())
        changes = [minute for minute in range(1, 140) if seen[minute] != seen[minute - 1]]
        assert changes == [45, 90, 135]

    run(main())


def test_a_token_that_a_store_kept_too_long_is_not_used(run: Run[None], clock: Clock) -> None:
    store = Shared()

    async def main() -> None:
        old = await SharedToken(KEY, "KEYID", "TEAMID", store.exchange).current()
        clock.ahead_s = 50 * 60
        first, second = (SharedToken(KEY, "KEYID", "TEAMID", store.exchange) for _ in range(2))
        assert await first.current() == await second.current() != old

    run(main())


def test_a_store_that_hangs_delays_a_signature_by_a_second_at_most(
    run: Run[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*_: object) -> tuple[float, str]:
        await asyncio.sleep(60)
        raise AssertionError

    monkeypatch.setattr(SharedToken, "EXCHANGE_S", 0.2)

    async def main() -> None:
        token = SharedToken(KEY, "KEYID", "TEAMID", hang)
        started = time.monotonic()
        headers = await asyncio.gather(*(token.current() for _ in range(20)))
        assert len(set(headers)) == 1
        assert 0.1 < time.monotonic() - started < SLACK_S

    run(main())


def _refuse_first_token(server: ApnsServer) -> None:
    refused: set[str] = set()

    def respond(request: Received) -> None:
        if not refused:
            refused.add(request.headers["authorization"])
        if request.headers["authorization"] in refused:
            request.error(403, "ExpiredProviderToken")
        else:
            request.answer()

    server.respond = respond


def test_many_refusals_of_an_older_token_make_one_new_one(
    run: Run[None], server: ApnsServer, ca: str, clock: Clock
) -> None:
    _refuse_first_token(server)
    store = Shared()

    async def main() -> None:
        token = SharedToken(KEY, "KEYID", "TEAMID", store.exchange_later)
        await token.current()
        clock.ahead_s = 30 * 60
        async with server, pool_to(server, ca, token=token) as pool:
            found = await ends([pool.send_notification(request_of()) for _ in range(500)])
            assert tally(found) == {"200": 500}
        assert len(server.tokens) == 2
        assert len(server.seen) == 1_000

    run(main())


def test_a_refused_fresh_token_is_handed_on_and_kept(run: Run[None], server: ApnsServer, ca: str) -> None:
    _refuse_first_token(server)

    async def main() -> None:
        async with server, pool_to(server, ca) as pool:
            found = await ends([pool.send_notification(request_of()) for _ in range(20)])
            assert tally(found) == {"403": 20}
        assert (len(server.tokens), len(server.seen)) == (1, 20)

    run(main())


# --- Everything at once -----------------------------------------------------------------------------------------


def test_under_random_faults_every_send_ends_once_and_none_is_taken_twice(
    run_fast: Run[None], server: ApnsServer, ca: str
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown by pytest when the test fails
    dice = random.Random(seed)
    taken: Counter[str] = Counter()

    def respond(request: Received) -> None:
        # What the server has read whole counts as taken, but what it says it has not taken.
        fate = dice.random()
        if fate < 0.003:
            request.reset(ErrorCodes.REFUSED_STREAM)
            return
        if fate < 0.006:
            request.connection.goaway(max(request.stream_id - 2, 0))
            return
        if fate < 0.008:
            request.connection.goaway(request.stream_id)
        taken[request.id] += 1
        if fate < 0.011:
            request.connection.reset_tcp()
        elif fate < 0.013:
            request.connection.transport.close()
        elif fate < 0.016:
            request.reset(ErrorCodes.INTERNAL_ERROR)
        elif fate < 0.018:
            request.connection.transport.write(dice.randbytes(40))
        elif fate > 0.995:
            pass  # silence
        else:
            request.answer(*dice.choice([(200, None), (200, None), (400, {"reason": "BadDeviceToken"}), (500, None)]))

    server.respond = respond

    async def main() -> None:
        async with server, pool_to(server, ca, connections=2) as pool:
            for _ in range(6):
                requests = [request_of(dice.choice([100, 3_900])) for _ in range(500)]
                tasks = [asyncio.ensure_future(pool.send_notification(one, 1)) for one in requests]
                cancelled = set(dice.sample(range(500), 8))
                await asyncio.sleep(0.01)
                for index in cancelled:
                    tasks[index].cancel()
                await asyncio.wait(tasks, timeout=20)
                for index, (request, task) in enumerate(zip(requests, tasks, strict=True)):
                    assert task.done()
                    if task.cancelled():
                        assert index in cancelled
                    elif isinstance(task.exception(), NotSent):
                        assert taken[request.notification_id] == 0
                    else:
                        assert task.exception() is None or isinstance(task.exception(), Uncertain)
            assert max(taken.values()) == 1
            await asyncio.sleep(0.05)
            assert all(connection.load == 0 for connection in connections_of(pool))

    run_fast(main())


# --- The adapter ------------------------------------------------------------------------------------------------

FAULTS: dict[Fault, Callable[[Received], None]] = {
    Fault.NONE: accept,
    Fault.HANG: never,
    Fault.RESET_AFTER: lambda request: request.connection.reset_tcp(),
    Fault.CLOSE_AFTER: lambda request: request.connection.transport.close(),
    Fault.GARBAGE: lambda request: request.answer(200, b"<html>It works!</html>"),
    Fault.HUGE: lambda request: _pour(request, 200, b"x" * 3_000_000),
    Fault.DRIP: lambda request: _drip(request),
}


def _drip(request: Received) -> None:
    """A byte of the body now and then."""
    h2, stream_id = request.connection.h2, request.stream_id
    h2.send_headers(stream_id, [(":status", "200")])

    def more() -> None:
        if stream_id in request.connection.open:
            h2.send_data(stream_id, b" ")
            request.connection.flush()
            asyncio.get_running_loop().call_later(0.1, more)

    more()


class TestApns(ProviderContract, SandboxContract):
    secrets = (KEY.splitlines()[1],)
    sandbox_faults = {
        "http_500": Kind.UNAVAILABLE,
        "http_429": Kind.THROTTLED,
        "http_401": Kind.MISCONFIGURED,
        "hang": Kind.UNCERTAIN,
        "reset_before": Kind.UNAVAILABLE,
        "reset_after": Kind.UNCERTAIN,
        "garbage": Kind.UNCERTAIN,
        "gone": Kind.GONE,
    }
    kept: tuple[ssl.SSLContext, Path]

    @pytest.fixture(autouse=True)
    def _keep(self, tls_pair: tuple[ssl.SSLContext, Path]) -> None:
        self.kept = tls_pair

    @classmethod
    def provider_class(cls) -> type[Apns]:
        return Apns

    @asynccontextmanager
    async def far_end(self, respond: Callable[[Received], None]) -> AsyncIterator[World]:
        tls, ca = self.kept
        latency_s = 0.0

        def set_latency(seconds: float) -> None:
            nonlocal latency_s
            latency_s = seconds

        def later(request: Received) -> None:
            asyncio.get_running_loop().call_later(latency_s, server.fate, request)

        def set_fault(fault: Fault) -> None:
            if fault is Fault.RESET_BEFORE:
                server.begun = lambda request: request.connection.reset_tcp()
            else:
                server.begun, server.fate = never, FAULTS[fault] if fault is not Fault.NONE else respond

        server = _Fated(tls, respond=later)
        server.fate = respond
        async with server, apns_to(server, str(ca)) as provider:
            # Connected before the clock runs: the cases' half a second is for a call, not for reading authorities.
            await provider._open("production").acquire()
            yield World(provider, set_fault, lambda: [_body_of(request) for request in server.seen], set_latency)

    def world(self) -> AbstractAsyncContextManager[World]:
        return self.far_end(accept)

    def strangers(self) -> AbstractAsyncContextManager[World]:
        return self.far_end(lambda request: request.error(403, "InvalidProviderToken"))

    @asynccontextmanager
    async def nowhere(self) -> AsyncIterator[Apns]:
        async with apns_to(ApnsServer(self.kept[0], port=free_port()), str(self.kept[1])) as provider:
            yield provider

    def address(self, n: int) -> Address:
        return Address(Channel.PUSH, f"{TOKEN[:-2]}{n:02x}", Platform.IOS)

    def content(self, text: str) -> PushContent:
        return PushContent(text, text)

    def oversized(self) -> PushContent:
        return PushContent("title", "여" * 1400)

    def settings(self) -> Any:
        return settings_of(ApnsServer(self.kept[0], port=2197), str(self.kept[1]))

    def broken_settings(self) -> dict[str, Any]:
        return {"key": replace(self.settings(), key="no key"), "base_url": replace(self.settings(), base_url="ftp://x")}

    def sandbox_provider(self, sandbox: Sandbox, carrier: Carrier) -> Apns:
        return sandbox_apns(sandbox)

    def sandbox_recipients(self) -> list[tuple[Address, Kind, str]]:
        words = {
            "0200": (Kind.ACCEPTED, ""),
            "0410": (Kind.GONE, "device_unregistered"),
            "0429": (Kind.THROTTLED, ""),
            "0400": (Kind.GONE, "bad_token"),
        }
        return [
            (replace(self.address(0), value=f"5a0db0c5{word}{uuid.uuid4().hex}{'0' * 20}"), *ended)
            for word, ended in words.items()
        ]


@dataclass
class _Fated(ApnsServer):
    fate: Callable[[Received], None] = accept


def _body_of(request: Received) -> str:
    return json.loads(request.body)["aps"]["alert"]["body"]


def settings_of(server: ApnsServer, ca: str, **fields: str) -> Any:
    return Apns.Settings(
        **{
            "key": KEY,
            "key_id": "KEYID",
            "team_id": "TEAMID",
            "topic": "com.example.shop",
            "base_url": f"https://127.0.0.1:{server.port}",
            "ca_file": ca,
        }
        | fields
    )


@asynccontextmanager
async def apns_to(
    server: ApnsServer, ca: str, exchange: Callable[..., Any] | None = None, **fields: str
) -> AsyncIterator[Apns]:
    provider = Apns(settings_of(server, ca, **fields), Surroundings(carrier=None, exchange_token=exchange))
    try:
        yield provider
    finally:
        await provider.aclose()


def message_of(
    *,
    content: Any = None,
    options: PushOptions | None = None,
    claim_no: int = 1,
    timeout_s: float = 5.0,
    **address: Any,
) -> Message:
    return Message(
        delivery_id=uuid.UUID("01a204f4-77a0-7b02-a3c1-9e8d7c6b5a41"),
        claim_no=claim_no,
        channel=Channel.PUSH,
        lane=Lane.NORMAL,
        mode=Mode.LIVE,
        address=Address(Channel.PUSH, **{"value": TOKEN, "platform": Platform.IOS} | address),
        content=content or PushContent("Title", "Body", options or PushOptions()),
        expires_at=float(int(time.time()) + 600),
        collapse_id="order-1",
        timeout_s=timeout_s,
    )


async def outcome_of(server: ApnsServer, ca: str, message: Message, **fields: str) -> Outcome:
    async with apns_to(server, ca, **fields) as provider:
        [outcome] = await provider.send([message])
    return outcome


def test_an_alert_carries_what_the_message_says(run: Run[None], server: ApnsServer, ca: str) -> None:
    options = PushOptions(
        badge=3,
        sound="ping.caf",
        image="https://example.com/a.png",
        deep_link="shop://orders/1",
        thread_id="orders",
        interruption_level="time_sensitive",
        data={"order": "1"},
    )
    message = message_of(options=options, claim_no=7, content=PushContent("Tïtle 🎁", "Body\n2", options))

    async def main() -> None:
        async with server:
            outcome = await outcome_of(server, ca, message)
        [request] = server.seen
        assert outcome == Outcome(Kind.ACCEPTED, provider_ref=request.id, http_status=200)
        assert json.loads(request.body) == {
            "aps": {
                "alert": {"title": "Tïtle 🎁", "body": "Body\n2"},
                "badge": 3,
                "sound": "ping.caf",
                "thread-id": "orders",
                "interruption-level": "time-sensitive",
                "mutable-content": 1,
            },
            "_n": {"d": "01a204f4-77a0-7b02-a3c1-9e8d7c6b5a41", "n": 7},
            "deep_link": "shop://orders/1",
            "image": "https://example.com/a.png",
            "data": {"order": "1"},
        }
        headers = dict(request.headers)
        assert uuid.UUID(headers.pop("apns-id"))
        assert headers.pop("authorization").startswith("bearer ey")
        assert headers == {
            ":method": "POST",
            ":scheme": "https",
            ":path": f"/3/device/{TOKEN}",
            ":authority": f"127.0.0.1:{server.port}",
            "apns-topic": "com.example.shop",
            "apns-expiration": str(int(message.expires_at)),
            "apns-priority": "10",
            "apns-push-type": "alert",
            "apns-collapse-id": "order-1",
        }

    run(main())


def test_a_silent_push_holds_nothing_but_data(run: Run[None], server: ApnsServer, ca: str) -> None:
    options = PushOptions(silent=True, badge=1, sound="x", image="https://example.com/a.png", data={"a": "b"})

    async def main() -> None:
        async with server:
            assert (await outcome_of(server, ca, message_of(options=options))).kind is Kind.ACCEPTED
        [request] = server.seen
        assert json.loads(request.body)["aps"] == {"content-available": 1}
        assert json.loads(request.body)["data"] == {"a": "b"}
        assert request.headers["apns-push-type"] == "background"
        assert request.headers["apns-priority"] == "5"

    run(main())


def test_the_id_is_one_per_try_and_the_same_whenever_it_is_made(run: Run[None], server: ApnsServer, ca: str) -> None:
    async def main() -> None:
        async with server, apns_to(server, ca) as provider:
            for claim_no in (1, 1, 2):
                await provider.send([message_of(claim_no=claim_no)])
        first, again, second = server.ids
        assert first == again != second

    run(main())


@pytest.mark.parametrize(("ttl_s", "seconds"), [(None, 600), (0, None), (60, 60), (6_000, 600)])
def test_the_expiry_is_the_earlier_of_message_and_ttl(
    run: Run[None], server: ApnsServer, ca: str, ttl_s: int | None, seconds: int | None
) -> None:
    async def main() -> None:
        async with server:
            await outcome_of(server, ca, message_of(options=PushOptions(ttl_s=ttl_s)))
        found = int(server.seen[0].headers["apns-expiration"])
        if seconds is None:
            assert found == 0
        else:
            assert abs(found - time.time() - seconds) < 3

    run(main())


def test_normal_priority_and_the_devices_own_app_and_environment_are_used(
    run: Run[None], server: ApnsServer, ca: str
) -> None:
    async def main() -> None:
        async with server, apns_to(server, ca) as provider:
            own = {"app_id": "com.example.other", "platform": Platform.MACOS}
            messages = [
                message_of(options=PushOptions(priority="normal"), apns_environment="sandbox", **own),
                message_of(options=PushOptions(priority="normal"), **own),
                message_of(apns_environment="sandbox"),
            ]
            outcomes = await provider.send(messages)
            assert [outcome.kind for outcome in outcomes] == [Kind.ACCEPTED] * 3
        sent = sorted(
            server.seen, key=lambda request: (request.headers["apns-topic"], request.headers["apns-priority"])
        )
        assert [request.headers["apns-topic"] for request in sent] == ["com.example.other"] * 2 + ["com.example.shop"]
        assert [request.headers["apns-priority"] for request in sent] == ["5", "5", "10"]
        assert len(server.connections) == 2  # one per environment
        assert len(server.tokens) == 1

    run(main())


@pytest.mark.parametrize(
    ("changes", "kind", "scope", "reason"),
    [
        ({"content": PushContent("t", "x" * 4_100)}, Kind.REJECTED, Scope.MESSAGE, "payload_too_large"),
        ({"content": PushContent("t", "é" * 2_050)}, Kind.REJECTED, Scope.MESSAGE, "payload_too_large"),
        ({"content": PushContent("t", "\ud800")}, Kind.REJECTED, Scope.MESSAGE, "rejected_content"),
        ({"value": "../../3/device/aa"}, Kind.GONE, Scope.ADDRESS, "bad_token"),
        ({"value": "aa\r\nx: y"}, Kind.GONE, Scope.ADDRESS, "bad_token"),
        ({"app_id": "com.example\r\nx: y"}, Kind.MISCONFIGURED, Scope.SENDER, ""),
        ({"apns_environment": "staging"}, Kind.REJECTED, Scope.MESSAGE, "rejected"),
    ],
)
def test_what_apns_would_refuse_never_leaves(
    run: Run[None], server: ApnsServer, ca: str, changes: dict[str, Any], kind: Kind, scope: Scope, reason: str
) -> None:
    async def main() -> None:
        async with server:
            outcome = await outcome_of(server, ca, message_of(**changes))
        assert (outcome.kind, outcome.scope, outcome.reason) == (kind, scope, reason)
        assert outcome.code
        assert server.connections == []

    run(main())


def test_a_payload_of_exactly_4096_bytes_is_sent(run: Run[None], server: ApnsServer, ca: str) -> None:
    async def main() -> None:
        async with server, apns_to(server, ca) as provider:
            await provider.send([message_of(content=PushContent("t", "x"))])
            room = 4_096 - len(server.seen[0].body)
            for more, kind in ((room, Kind.ACCEPTED), (room + 1, Kind.REJECTED)):
                [outcome] = await provider.send([message_of(content=PushContent("t", "x" * (more + 1)))])
                assert outcome.kind is kind
        assert [len(request.body) for request in server.seen][1:] == [4_096]

    run(main())


@pytest.mark.parametrize(
    ("key", "sent"),
    [
        ("a" * 64, "a" * 64),
        ("a" * 65, None),
        ("Bestellung 1", "Bestellung 1"),
        ("注文1", "digest"),
        ("a\r\nb", "digest"),
    ],
)
def test_a_collapse_key_fits_its_header_or_is_replaced_by_a_digest(
    run: Run[None], server: ApnsServer, ca: str, key: str, sent: str | None
) -> None:
    async def main() -> None:
        async with server, apns_to(server, ca) as provider:
            outcomes = [(await provider.send([replace(message_of(), collapse_id=key)]))[0] for _ in range(2)]
        if sent is None:
            assert {outcome.code for outcome in outcomes} == {"BadCollapseId"}
            return
        [found] = {request.headers["apns-collapse-id"] for request in server.seen}
        assert len(found) == 32 if sent == "digest" else found == sent

    run(main())


UNREGISTERED_AT = 1_700_000_000_123
DOCUMENTED = [
    (400, "BadCollapseId", Kind.REJECTED, Scope.MESSAGE, "rejected"),
    (400, "BadDeviceToken", Kind.GONE, Scope.ADDRESS, "bad_token"),
    (400, "BadExpirationDate", Kind.REJECTED, Scope.MESSAGE, "rejected"),
    (400, "BadMessageId", Kind.REJECTED, Scope.MESSAGE, "rejected"),
    (400, "BadPriority", Kind.REJECTED, Scope.MESSAGE, "rejected"),
    (400, "BadTopic", Kind.MISCONFIGURED, Scope.SENDER, ""),
    (400, "DeviceTokenNotForTopic", Kind.GONE, Scope.ADDRESS, "bad_token"),
    (400, "DuplicateHeaders", Kind.REJECTED, Scope.MESSAGE, "rejected"),
    (400, "IdleTimeout", Kind.UNAVAILABLE, Scope.ACCOUNT, ""),
    (400, "InvalidPushType", Kind.REJECTED, Scope.MESSAGE, "rejected"),
    (400, "MissingDeviceToken", Kind.REJECTED, Scope.MESSAGE, "rejected"),
    (400, "MissingTopic", Kind.MISCONFIGURED, Scope.SENDER, ""),
    (400, "PayloadEmpty", Kind.REJECTED, Scope.MESSAGE, "rejected_content"),
    (400, "TopicDisallowed", Kind.MISCONFIGURED, Scope.SENDER, ""),
    (403, "BadCertificate", Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
    (403, "BadCertificateEnvironment", Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
    (403, "BadEnvironmentKeyIdInToken", Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
    (403, "BadEnvironmentKeyInToken", Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
    (403, "ExpiredProviderToken", Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
    (403, "Forbidden", Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
    (403, "InvalidProviderToken", Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
    (403, "MissingProviderToken", Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
    (403, "UnrelatedKeyIdInToken", Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
    (404, "BadPath", Kind.REJECTED, Scope.MESSAGE, "rejected"),
    (405, "MethodNotAllowed", Kind.REJECTED, Scope.MESSAGE, "rejected"),
    (410, "ExpiredToken", Kind.GONE, Scope.ADDRESS, "device_unregistered"),
    (410, "Unregistered", Kind.GONE, Scope.ADDRESS, "device_unregistered"),
    (413, "PayloadTooLarge", Kind.REJECTED, Scope.MESSAGE, "payload_too_large"),
    (429, "TooManyProviderTokenUpdates", Kind.THROTTLED, Scope.ACCOUNT, ""),
    (429, "TooManyRequests", Kind.THROTTLED, Scope.ADDRESS, ""),
    (500, "InternalServerError", Kind.UNAVAILABLE, Scope.ACCOUNT, ""),
    (503, "ServiceUnavailable", Kind.UNAVAILABLE, Scope.ACCOUNT, ""),
    (503, "Shutdown", Kind.UNAVAILABLE, Scope.ACCOUNT, ""),
]


def test_every_documented_reason_has_its_outcome(run_fast: Run[None], server: ApnsServer, ca: str) -> None:
    rows = itertools.cycle(DOCUMENTED)

    def respond(request: Received) -> None:
        status, reason, *_ = next(rows)
        request.error(status, reason, **({"timestamp": UNREGISTERED_AT} if status == 410 else {}))

    server.respond = respond

    async def main() -> None:
        async with server, apns_to(server, ca) as provider:
            for status, reason, kind, scope, code in DOCUMENTED:
                [outcome] = await provider.send([message_of()])
                found = (outcome.http_status, outcome.code, outcome.kind, outcome.scope, outcome.reason)
                assert found == (status, reason, kind, scope, code)
                since = datetime.fromtimestamp(UNREGISTERED_AT / 1000, UTC) if status == 410 else None
                assert outcome.gone_since == since
        assert {reason for _, reason, *_ in DOCUMENTED} == set(REASONS)

    run_fast(main())


@pytest.mark.parametrize(
    ("status", "body", "kind", "scope", "reason"),
    [
        (200, b"<html>", Kind.UNCERTAIN, Scope.ACCOUNT, "answer_garbled"),
        (204, None, Kind.UNCERTAIN, Scope.ACCOUNT, "answer_garbled"),
        (400, {"reason": "SomethingNew"}, Kind.REJECTED, Scope.MESSAGE, "rejected"),
        (403, None, Kind.MISCONFIGURED, Scope.ACCOUNT, ""),
        (410, None, Kind.REJECTED, Scope.MESSAGE, "rejected"),  # without Apple's word no device is retired
        (429, None, Kind.THROTTLED, Scope.ACCOUNT, ""),
        (500, None, Kind.UNCERTAIN, Scope.ACCOUNT, "answer_lost"),
        (503, b"busy", Kind.UNAVAILABLE, Scope.ACCOUNT, ""),
        (999, None, Kind.UNCERTAIN, Scope.ACCOUNT, "answer_lost"),
    ],
)
def test_an_answer_without_a_known_reason_is_judged_by_its_status(
    run: Run[None], server: ApnsServer, ca: str, status: int, body: object, kind: Kind, scope: Scope, reason: str
) -> None:
    server.respond = lambda request: request.answer(status, body)

    async def main() -> None:
        async with server:
            outcome = await outcome_of(server, ca, message_of())
        assert (outcome.kind, outcome.scope, outcome.reason) == (kind, scope, reason)
        assert outcome.http_status == status

    run(main())


def test_retry_after_is_obeyed_where_waiting_helps(run: Run[None], server: ApnsServer, ca: str) -> None:
    answers = iter(
        [
            (429, {"reason": "TooManyRequests"}, {"retry_after": "7"}),
            (503, {"reason": "ServiceUnavailable"}, {"retry_after": "9"}),
            (429, {"reason": "TooManyProviderTokenUpdates"}, {}),
            (400, {"reason": "BadPriority"}, {"retry_after": "7"}),
        ]
    )

    def respond(request: Received) -> None:
        status, body, headers = next(answers)
        request.answer(status, body, **headers)

    server.respond = respond

    async def main() -> None:
        async with server, apns_to(server, ca) as provider:
            found = [(await provider.send([message_of()]))[0].retry_after_s for _ in range(4)]
        assert found == [7.0, 9.0, 300.0, None]

    run(main())


@pytest.mark.parametrize("timestamp", [-1, 10**30, "x", True, None])
def test_a_senseless_timestamp_is_left_out(run: Run[None], server: ApnsServer, ca: str, timestamp: object) -> None:
    server.respond = lambda request: request.error(410, "Unregistered", timestamp=timestamp)

    async def main() -> None:
        async with server:
            outcome = await outcome_of(server, ca, message_of())
        assert outcome.kind is Kind.GONE
        assert outcome.gone_since is None or outcome.gone_since.year == 1969

    run(main())


def test_faults_of_the_connection_become_outcomes_in_the_order_of_the_batch(
    run: Run[None], server: ApnsServer, ca: str
) -> None:
    def respond(request: Received) -> None:
        if json.loads(request.body)["aps"]["alert"]["title"] == "hang":
            never(request)
        elif json.loads(request.body)["aps"]["alert"]["title"] == "gone":
            request.error(410, "Unregistered")
        else:
            request.answer()

    server.respond = respond
    titles = ["ok", "hang", "gone", "ok"]

    async def main() -> None:
        async with server, apns_to(server, ca) as provider:
            started = time.monotonic()
            outcomes = await provider.send(
                [message_of(content=PushContent(t, "b"), timeout_s=1.0 if t == "hang" else 20.0) for t in titles]
            )
            assert 0.9 < time.monotonic() - started < SLACK_S
            kinds = [outcome.kind for outcome in outcomes]
            assert kinds == [Kind.ACCEPTED, Kind.UNCERTAIN, Kind.GONE, Kind.ACCEPTED]
            assert outcomes[1].reason == "answer_lost"
            port = server.port
        async with apns_to(server, ca, base_url=f"https://127.0.0.1:{port}") as provider:
            [refused] = await provider.send([message_of()])
            assert (refused.kind, refused.code) == (Kind.UNAVAILABLE, "not_sent")

    run(main())


def test_an_untrusted_certificate_is_our_fault_and_nobody_elses(run: Run[None], server: ApnsServer, ca: str) -> None:
    async def main() -> None:
        async with server:
            outcome = await outcome_of(server, ca, message_of(), ca_file="")
        assert (outcome.kind, outcome.scope, outcome.code) == (
            Kind.MISCONFIGURED,
            Scope.ACCOUNT,
            "UntrustedCertificate",
        )
        assert server.seen == []

    run(main())


RSA_KEY = _pem(rsa.generate_private_key(65_537, 2048))


@pytest.mark.parametrize(
    ("fields", "code"),
    [({"key": "no key"}, "BadKey"), ({"key": RSA_KEY}, "BadKey"), ({"ca_file": "/nonexistent.pem"}, "BadCaFile")],
)
def test_settings_that_cannot_work_are_misconfigured_and_not_raised(
    run: Run[None], server: ApnsServer, ca: str, fields: dict[str, str], code: str
) -> None:
    async def main() -> None:
        async with server:
            outcome = await outcome_of(server, ca, message_of(), **fields)
        assert (outcome.kind, outcome.scope, outcome.code) == (Kind.MISCONFIGURED, Scope.ACCOUNT, code)
        assert fields.get("key", "x")[:40] not in outcome.detail

    run(main())


def test_the_surroundings_share_the_token_between_processes(run: Run[None], server: ApnsServer, ca: str) -> None:
    store = Shared()

    async def main() -> None:
        async with server:
            for _ in range(3):
                async with apns_to(server, ca, store.exchange_later) as provider:
                    await provider.send([message_of()])
        assert len(server.tokens) == 1
        [name] = store.kept
        assert name.startswith("apns:TEAMID:KEYID:")

    run(main())


def test_no_credential_and_no_device_token_is_shown_or_logged(
    run: Run[None], server: ApnsServer, ca: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.respond = lambda request: request.error(400, "BadDeviceToken")

    async def main() -> None:
        async with server, apns_to(server, ca) as provider:
            outcomes = await provider.send([message_of()])
            server.respond = lambda request: request.connection.reset_tcp()
            outcomes += await provider.send([message_of()])
            shown = caplog.text + repr(outcomes) + repr(provider.settings) + repr(provider.surroundings)
        [header] = server.tokens
        for secret in (TOKEN, KEY.splitlines()[1], header.split()[1]):
            assert secret not in shown

    run(main())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("key", ""),
        ("key", "no key"),
        ("key", RSA_KEY),
        ("key", _pem(ec.generate_private_key(ec.SECP384R1()))),
        ("key_id", ""),
        ("team_id", "TEAM ID"),
        ("topic", ""),
        ("topic", "com.example shop"),
        ("environment", "staging"),
        ("base_url", "http://127.0.0.1:2197"),
        ("base_url", "https://127.0.0.1:port"),
        ("ca_file", "/nonexistent.pem"),
    ],
)
def test_a_setting_that_cannot_work_is_named_and_its_secret_is_not(
    server: ApnsServer, ca: str, field: str, value: str
) -> None:
    with pytest.raises(ConfigurationError) as error:
        Apns.check(settings_of(server, ca, **{field: value}))
    assert str(error.value).startswith(f"{field}:")
    if field == "key" and value:
        assert value[-60:-40] not in str(error.value) or value == "no key"


@pytest.mark.parametrize("base_url", ["", "https://localhost:2197", "localhost:2197", "https://localhost"])
def test_settings_that_can_work_pass(server: ApnsServer, ca: str, base_url: str) -> None:
    Apns.check(settings_of(server, ca, base_url=base_url))


# --- The sandbox, which was written by others from Apple's pages -------------------------------------------------


def sandbox_apns(sandbox: Sandbox) -> Apns:
    settings = Apns.Settings(
        key=(sandbox.keys / "apns.p8").read_text(),
        key_id="SANDBOXKEY",
        team_id="SANDBOXTEAM",
        topic="com.example.shop",
        base_url=f"https://127.0.0.1:{sandbox.apns_port}",
        ca_file=str(sandbox.keys / "ca.pem"),
    )
    Apns.check(settings)
    return Apns(settings, Surroundings(carrier=None))


@pytest.mark.parametrize(
    "options",
    [
        PushOptions(
            badge=0, sound="default", image="https://x/i.png", deep_link="shop://1", thread_id="t", data={"a": "b"}
        ),
        PushOptions(silent=True, data={"a": "b"}),
        PushOptions(ttl_s=0, priority="normal", interruption_level="passive"),
    ],
    ids=["rich", "silent", "once"],
)
def test_the_sandbox_accepts_every_shape_of_push(run_fast: Run[None], sandbox: Sandbox, options: PushOptions) -> None:
    async def main() -> None:
        provider = sandbox_apns(sandbox)
        [outcome] = await provider.send([message_of(options=options)])
        assert (outcome.kind, outcome.code) == (Kind.ACCEPTED, "")
        await provider.aclose()

    run_fast(main())


def test_the_sandbox_accepts_thousands_at_once(run_fast: Run[None], sandbox: Sandbox) -> None:
    messages = [replace(message_of(), delivery_id=uuid.uuid4(), timeout_s=30.0) for _ in range(2_000)]

    async def main() -> None:
        provider = sandbox_apns(sandbox)
        outcomes = await provider.send(messages)
        await provider.aclose()
        assert {outcome.kind for outcome in outcomes} == {Kind.ACCEPTED}
        assert len({outcome.provider_ref for outcome in outcomes}) == 2_000

    run_fast(main())
    newest = {entry["delivery_id"] for entry in sandbox.inbox("apns")}
    assert newest <= {str(message.delivery_id) for message in messages}
