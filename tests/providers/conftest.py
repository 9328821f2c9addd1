"""What the providers' tests share: an authority of our own, so that TLS is real, and the sandbox as a process."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from notifier.outcome import Callback
from tests.providers.apns_server import signing
from tests.providers.sink import free_port


@dataclass(frozen=True)
class Authority:
    """A self-signed certificate for localhost: `ca_file` to trust it, `server` to serve with it."""

    ca_file: str
    server: ssl.SSLContext


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder: Path = tmp_path_factory.mktemp("authority")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(signing(is_authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "ca.pem", folder / "key.pem")
    return Authority(str(folder / "ca.pem"), server)


class _Catcher(ThreadingHTTPServer):
    """The hooks of the service under test, as far as the sandbox can tell: keeps what was posted, answers 204."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Hook)
        self.caught: list[Callback] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Hook(BaseHTTPRequestHandler):
    server: _Catcher

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.caught.append(Callback("POST", self.server.url + self.path, headers, body))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


class Sandbox:
    """The sandbox process, as providers reach it: `url`, `smtp_port`, `keys` (a folder); `caught` are its receipts."""

    def __init__(self, keys: Path) -> None:
        self.keys = keys
        self.http_port, self.apns_port, self.smtp_port = (free_port() for _ in range(3))
        self.url = f"http://127.0.0.1:{self.http_port}"
        self.hooks = _Catcher()
        ports = {"--port": self.http_port, "--apns-port": self.apns_port, "--smtp-port": self.smtp_port}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "notifier.sandbox", "--tls-dir", str(keys), "--hooks-url", self.hooks.url]
            + [word for flag, port in ports.items() for word in (flag, str(port))],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip() == "sandbox ready":
                return
        raise RuntimeError(f"the sandbox did not start, and ended with {self._process.wait()}")

    def fault(self, provider: str, mode: str, **how: Any) -> None:
        self._call("POST", "/_faults", {"provider": provider, "mode": mode, **how})

    def calm(self) -> None:
        self._call("DELETE", "/_faults")

    def inbox(self, provider: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._call("GET", f"/_inbox?provider={provider}&limit=500")
        return found

    def caught(self, kind: str, about: UUID, enough: Callable[[list[Callback]], bool]) -> list[Callback]:
        """The callbacks to `/hooks/<kind>/` that name the delivery, as soon as they are `enough`; fails after 20 s."""
        until = time.monotonic() + 20
        while time.monotonic() < until:
            word = str(about)
            found = [
                callback
                for callback in tuple(self.hooks.caught)
                if f"/hooks/{kind}/" in callback.url and (word in callback.url or word.encode() in callback.body)
            ]
            if enough(found):
                return found
            time.sleep(0.05)
        raise AssertionError(f"no receipts from {kind} that are enough")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)
        self.hooks.shutdown()
        self.hooks.server_close()

    def _call(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text else None


@pytest.fixture(scope="session")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    started = Sandbox(tmp_path_factory.mktemp("sandbox"))
    yield started
    started.close()
