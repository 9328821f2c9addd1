"""An APNs that misbehaves on demand: HTTP/2 over TLS on loopback, on the test's own event loop.

Written from RFC 9113 and Apple's pages, not from the adapter. What a stream is answered with is a function, so
that a test says in one line what the server does to it.
"""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, RequestReceived, StreamEnded, StreamReset, WindowUpdated
from h2.exceptions import StreamClosedError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame


@dataclass
class Received:
    """One request as far as it came. `is_whole`: its last byte arrived."""

    connection: ServerConnection
    stream_id: int
    headers: dict[str, str]
    body: bytes = b""
    is_whole: bool = False

    @property
    def id(self) -> str:
        return self.headers["apns-id"]

    def answer(self, status: int = 200, body: object = None, **headers: str) -> None:
        """`body`: bytes as they are, anything else as JSON. The apns-id is echoed."""
        self.connection.answer(self, status, body, headers)

    def error(self, status: int, reason: str, **more: object) -> None:
        self.answer(status, {"reason": reason, **more})

    def reset(self, code: ErrorCodes) -> None:
        if self.stream_id in self.connection.open:
            self.connection.h2.reset_stream(self.stream_id, code)
            self.connection.open.pop(self.stream_id)
            self.connection.flush()


def accept(request: Received) -> None:
    request.answer()


def never(request: Received) -> None:
    """No answer at all."""


@dataclass
class ApnsServer:
    """`respond` is called for each whole request, `begun` for each one whose headers arrived."""

    tls: ssl.SSLContext
    respond: Callable[[Received], None] = accept
    begun: Callable[[Received], None] = never
    max_streams: int = 1000
    window: int = 65_535
    acknowledges: bool = True  # whether bodies are acknowledged, so that the client may go on writing
    sends_settings: bool = True
    keeps: bool = True  # whether `seen` is kept
    connections: list[ServerConnection] = field(default_factory=list)
    seen: list[Received] = field(default_factory=list)  # whole ones
    client_resets: int = 0
    stuck: int = 0  # answers that found no room in the window the client grants
    port: int = 0
    _server: asyncio.Server | None = None

    async def __aenter__(self) -> ApnsServer:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: ServerConnection(self), "127.0.0.1", self.port, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for connection in self.connections:
            connection.transport.abort()
        await asyncio.sleep(0)

    @property
    def ids(self) -> list[str]:
        return [request.id for request in self.seen]

    @property
    def tokens(self) -> set[str]:
        return {request.headers["authorization"] for request in self.seen}

    @property
    def open_streams(self) -> int:
        return sum(len(connection.open) for connection in self.connections)


class ServerConnection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, server: ApnsServer) -> None:
        self.server = server
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.h2.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: server.max_streams,
                SettingCodes.INITIAL_WINDOW_SIZE: server.window,
            },
        )
        self.open: dict[int, Received] = {}
        self.is_lost = False
        self.last_stream_id = 2**31 - 1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.alpn = transport.get_extra_info("ssl_object").selected_alpn_protocol()
        self.server.connections.append(self)
        self.h2.initiate_connection()
        if self.server.sends_settings:
            self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self.open.clear()

    def flush(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(self.h2.data_to_send())

    def data_received(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            if self.transport.is_closing():
                return
            if isinstance(event, RequestReceived):
                request = Received(self, event.stream_id, dict(event.headers))
                self.open[event.stream_id] = request
                self.server.begun(request)
            elif isinstance(event, DataReceived):
                if request := self.open.get(event.stream_id):
                    request.body += event.data
                if self.server.acknowledges:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, StreamEnded):
                if request := self.open.get(event.stream_id):
                    if request.stream_id > self.last_stream_id:
                        continue  # left out by a GOAWAY
                    request.is_whole = True
                    if self.server.keeps:
                        self.server.seen.append(request)
                    self.server.respond(request)
            elif isinstance(event, StreamReset):
                if self.open.pop(event.stream_id, None):
                    self.server.client_resets += 1
            elif isinstance(event, WindowUpdated):
                continue
        if self.server.sends_settings:
            self.flush()

    def answer(self, request: Received, status: int, body: object, headers: dict[str, str]) -> None:
        if request.stream_id not in self.open or self.transport.is_closing():
            return
        raw = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
        named = [(":status", str(status)), ("apns-id", request.id)]
        named += [(name.replace("_", "-"), value) for name, value in headers.items()]
        if raw and self.h2.local_flow_control_window(request.stream_id) < len(raw):
            self.server.stuck += 1
            return
        try:
            self.h2.send_headers(request.stream_id, named, end_stream=not raw)
            for at in range(0, len(raw), 16_384):
                self.h2.send_data(request.stream_id, raw[at : at + 16_384], end_stream=at + 16_384 >= len(raw))
        except StreamClosedError:  # the client's RST_STREAM came in the same read
            return
        self.open.pop(request.stream_id)
        self.flush()

    def goaway(self, last_stream_id: int, code: ErrorCodes = ErrorCodes.NO_ERROR) -> None:
        """Written past h2, which would refuse every further answer."""
        self.last_stream_id = last_stream_id
        self.flush()
        self.transport.write(GoAwayFrame(0, last_stream_id, int(code)).serialize())

    def reset_tcp(self) -> None:
        """RST instead of FIN."""
        sock: Any = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


def signing(is_authority: bool) -> x509.KeyUsage:
    """What a certificate's key may sign: certificates, or only what a server says."""
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def make_authority(directory: Path) -> tuple[ssl.SSLContext, Path]:
    """A TLS server context for 127.0.0.1 and localhost, and the file of the authority that vouches for it."""
    now = datetime.datetime.now(datetime.UTC)
    authority_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def certificate(name: str, key: ec.EllipticCurvePrivateKey, is_authority: bool) -> x509.Certificate:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(signing(is_authority), critical=True)  # Python 3.13 verifies as RFC 5280 has it
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
            .add_extension(
                x509.SubjectAlternativeName(
                    [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
                ),
                critical=False,
            )
            .sign(authority_key, hashes.SHA256())
        )

    ca_file, cert_file = directory / "ca.pem", directory / "server.pem"
    ca_file.write_bytes(certificate("test authority", authority_key, True).public_bytes(serialization.Encoding.PEM))
    cert_file.write_bytes(
        server_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + certificate("localhost", server_key, False).public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert_file)
    context.set_alpn_protocols(["h2"])
    return context, ca_file
