"""Starts the sandbox: three listening ports, one loop, until SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Sequence

import uvloop
from aiohttp import web

from notifier.sandbox.control import Control
from notifier.sandbox.email_sendgrid import SendGrid
from notifier.sandbox.email_smtp import Smtp
from notifier.sandbox.faults import Faults
from notifier.sandbox.h2_wire import Connection
from notifier.sandbox.keys import load_keys, write_service_account
from notifier.sandbox.ledger import Ledger
from notifier.sandbox.magic import Throttle
from notifier.sandbox.options import Options, read_options
from notifier.sandbox.push_apns import Apns
from notifier.sandbox.push_fcm import Fcm
from notifier.sandbox.push_jpush import JPush
from notifier.sandbox.push_pushy import Pushy
from notifier.sandbox.receipts import Courier
from notifier.sandbox.server import Site
from notifier.sandbox.sms_twilio import Twilio
from notifier.sandbox.smtp_wire import Session
from notifier.sandbox.vendor import HttpVendor, Parts

_BACKLOG = 1024
_STOP_S = 0.5


def main(arguments: Sequence[str]) -> int:
    options = read_options(arguments)
    try:
        uvloop.run(_serve(options))
    except OSError as error:
        sys.stderr.write(f"sandbox: {error}\n")
        return 1
    return 0


async def _serve(options: Options) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    sockets = {
        "port": _bound(options.host, options.port, "--port"),
        "apns": _bound(options.host, options.apns_port, "--apns-port"),
        "smtp": _bound(options.host, options.smtp_port, "--smtp-port"),
    }
    ports = {name: one.getsockname()[1] for name, one in sockets.items()}
    parts = _parts(options, ports["port"])
    write_service_account(options.tls_dir, parts.keys, token_uri=f"{parts.public_url}/token")

    apns, smtp = Apns(parts), Smtp(parts)
    http: list[HttpVendor] = [Fcm(parts), JPush(parts), Pushy(parts), Twilio(parts), SendGrid(parts)]
    control = Control(parts, [apns, smtp, *http])
    connections: set[Connection] = set()
    sessions: set[Session] = set()
    runner = web.ServerRunner(
        Site(parts, http, control.answer).server(), handle_signals=False, shutdown_timeout=_STOP_S
    )
    await runner.setup()
    await web.SockSite(runner, sockets["port"], backlog=_BACKLOG).start()
    servers = [
        await loop.create_server(
            lambda: Connection(apns, connections), sock=sockets["apns"], ssl=parts.keys.tls, backlog=_BACKLOG
        ),
        await loop.create_server(lambda: Session(smtp, sessions), sock=sockets["smtp"], backlog=_BACKLOG),
    ]
    parts.courier.start()
    _announce(options, parts, ports)
    await stop.wait()
    for server in servers:
        server.close()
    for connection in list(connections):
        connection.abort()
    for session in list(sessions):
        session.abort()
    parts.faults.clear()  # lets go of what hangs
    await parts.courier.stop()
    await runner.cleanup()


def _parts(options: Options, port: int) -> Parts:
    reached = "127.0.0.1" if options.host in ("0.0.0.0", "::") else options.host  # noqa: S104 - compared, not bound
    return Parts(
        options=options,
        keys=load_keys(options.tls_dir, host=options.host),
        ledger=Ledger(hold=options.hold, hold_bytes=options.hold_bytes),
        faults=Faults(allowed=options.faults),
        courier=Courier(hooks_url=options.hooks_url, enabled=options.receipts),
        throttle=Throttle(),
        public_url=options.public_url or f"http://{reached}:{port}",
    )


def _bound(host: str, port: int, flag: str) -> socket.socket:
    """Raises OSError naming the flag to change."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port} ({error.strerror}); choose another with {flag}") from error


def _announce(options: Options, parts: Parts, ports: dict[str, int]) -> None:
    lines = [
        f"sandbox http {parts.public_url}",
        f"sandbox apns https://{options.host}:{ports['apns']}",
        f"sandbox smtp smtp://{options.host}:{ports['smtp']}",
        f"sandbox keys {options.tls_dir}",
        "sandbox ready",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
