"""`manage.py up`: everything on one machine, from nothing, until Ctrl+C."""

from __future__ import annotations

import io
import json
import os
import selectors
import signal
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import FrameType
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.db import OperationalError, connections

from apps.console.binaries import ServerError
from apps.console.servers import Servers
from apps.console.supervisor import (
    Fleet,
    claim_port,
    ports_of,
    prepared_servers,
    procfile,
    read_environment,
    state_directory,
)
from apps.notifications.heartbeats import forget_all

READY_WITHIN_S = 90
_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94, 31, 37)


class Command(BaseCommand):
    help = "Start the whole service: servers when none is configured, migrations, demo data, all processes."
    requires_system_checks: list[str] = []  # `_check` runs them, when the database is there

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            Up(prepared_servers(), state_directory()).run()
        except ServerError as error:
            raise CommandError(str(error)) from error


class Up:
    """One run of the service: start in order, watch, stop in order."""

    def __init__(self, servers: Servers, state: Path) -> None:
        self.servers = servers
        self.state = state
        self.commands = procfile()
        self.fleet = Fleet.of(self.commands, os.environ)
        self.selector = selectors.DefaultSelector()
        self.stopping = False
        self.width = max(map(len, (*self.commands, "postgres")))
        self.started = time.monotonic()

    def run(self) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, self._on_signal)
        try:
            self._start()
            while not self.stopping:
                self._pump(0.2)
                self._revive()
        finally:
            self._stop()

    # --- starting -------------------------------------------------------------------------------------------

    def _start(self) -> None:
        for variable in ports_of(self.commands):
            claim_port(variable, os.environ)
        self._spawn("sandbox")  # first: it makes the keys that the demo's provider accounts are seeded with
        if self.servers.missing:
            self._say("up", "starting " + ", ".join(server.name for server in self.servers))
        self.servers.start()
        self._spawn("web")  # takes longest to start, and says itself what it misses until the rest is there
        for step in (self._migrate, self._spawn_all, self._check, self._seed, self._open):
            if self.stopping:
                return
            step()

    def _migrate(self) -> None:
        self._say("up", "migrating the database")
        try:
            call_command("migrate", interactive=False, verbosity=0)
        except OperationalError as error:
            raise CommandError(f"The database of DATABASE_URL does not work: {error}") from error
        if "DATABASE_URL" in self.servers.missing:  # ours alone: no other machine's workers are in it
            forget_all()

    def _spawn_all(self) -> None:
        connections.close_all()
        for name in self.commands:
            if not self.fleet[name].is_running:
                self._spawn(name)

    def _check(self) -> None:
        call_command("check", stdout=io.StringIO())  # raises for an error, prints warnings to stderr

    def _seed(self) -> None:
        if self._await("the sandbox", f"{os.environ['SANDBOX_URL']}/healthz"):
            self._say("up", "seeding the demo's data")
            call_command("seed", demo_env=str(self.state / "demo.env"), stdout=io.StringIO())
            connections.close_all()

    def _open(self) -> None:
        if self._await("the service", f"http://127.0.0.1:{os.environ['PORT']}/readyz"):
            self._welcome()

    def _spawn(self, name: str) -> None:
        process = self.fleet[name]
        process.start()
        assert process.child is not None and process.child.stdout is not None  # noqa: S101 - output is a pipe here
        os.set_blocking(process.child.stdout.fileno(), False)
        self.selector.register(process.child.stdout, selectors.EVENT_READ, (process, bytearray()))

    def _await(self, what: str, url: str) -> bool:
        """Pump output until `url` answers 200. False when stopped meanwhile or, with a line that says why, too late."""
        deadline = time.monotonic() + READY_WITHIN_S
        answer = ""
        while not self.stopping:
            answer = _answer_of(url)
            if not answer:
                while self._pump(0):  # what they said until now comes before what we say next
                    pass
                return True
            if time.monotonic() > deadline:
                self._say("up", f"{what} is not ready after {READY_WITHIN_S} s; {url} says: {answer}")
                return False
            pause_until = time.monotonic() + 0.2
            while time.monotonic() < pause_until:
                self._pump(0.05)
            self._revive()
        return False

    # --- watching -------------------------------------------------------------------------------------------

    def _pump(self, timeout_s: float) -> bool:
        """Print what the children wrote, line by line. Waits `timeout_s` for some; whether there was any."""
        ready = self.selector.select(timeout_s)
        for key, _ in ready:
            process, buffer = key.data
            chunk = os.read(key.fd, 65536)
            if not chunk:
                self.selector.unregister(key.fileobj)
                key.fileobj.close()  # type: ignore[union-attr]
            buffer += chunk if chunk else b"\n" if buffer else b""
            *lines, rest = bytes(buffer).split(b"\n")
            buffer[:] = rest
            for line in filter(None, lines):
                self._say(process.name, line.decode(errors="replace"))
        return bool(ready)

    def _revive(self) -> None:
        """Restart whatever died: a server first and at once, a process after its back-off."""
        for server in self.servers:
            if server.process is not None and server.process.poll() is not None:
                self._say(server.name, f"ended with {server.process.returncode}; starting it again")
                server.start()
        now = time.monotonic()
        for process in self.fleet.processes.values():
            if process.child is None or process.is_running:
                continue
            if not process.start_after:
                code = process.child.returncode
                process.kill()  # what it left behind: a web server's workers hold the port
                pause = process.backoff_s()
                process.start_after = now + pause
                self._say(process.name, f"ended with {code}; starting it again in {pause:.1f} s")
            elif now >= process.start_after:
                process.start_after = 0.0
                self._spawn(process.name)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.stopping:  # the second Ctrl+C: now
            self.fleet.kill()
        self.stopping = True

    # --- stopping -------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        if any(process.is_running for process in self.fleet.processes.values()):
            self._say("up", "stopping; once more Ctrl+C ends it at once")
        self.stopping = True
        self.fleet.stop(pump=self._pump)
        self.servers.stop()
        self._say("up", "stopped")

    # --- saying ---------------------------------------------------------------------------------------------

    def _say(self, name: str, line: str) -> None:
        label = f"{name:<{self.width}} | "
        if sys.stdout.isatty():
            position = list(self.commands).index(name) if name in self.commands else -1
            label = f"\033[{_COLOURS[position % len(_COLOURS)]}m{label}\033[0m"
        print(label + line, flush=True)

    def _welcome(self) -> None:
        demo = self.state / "demo.env"
        values = read_environment(demo)
        url = os.environ["PUBLIC_URL"]
        lines = [
            "",
            f"Ready after {time.monotonic() - self.started:.1f} s.",
            "",
            f"  API      {url}/docs",
            f"  Admin    {url}/admin/   {os.environ.get('ADMIN_USER')} / {os.environ.get('ADMIN_PASSWORD')}",
            f"  Sandbox  {os.environ['SANDBOX_URL']}/   the phones and mailboxes that messages arrive in",
        ]
        if "NOTIFIER_APP_KEY" in values:
            body = {
                "template": "order-shipped",
                "to": [{"user_id": "ada"}],
                "data": {"order": {"id": "A-1001", "eta": "2026-11-25"}},
            }
            credentials = f"{values['NOTIFIER_APP_KEY']}:{values['NOTIFIER_APP_SECRET']}"
            lines += [
                f"  Key      {credentials}   (also in {demo})",
                "",
                "Send one:",
                "",
                f"  curl -sS -u '{credentials}' -H 'Content-Type: application/json' \\",
                f"    {url}/v1/notifications -d '{json.dumps(body)}'",
            ]
        print("\n".join([*lines, "", "Ctrl+C stops everything.", ""]), flush=True)


def _answer_of(url: str) -> str:
    """What stands in the way of a 200 from `url`; "" when nothing does."""
    try:
        with urllib.request.urlopen(url, timeout=3) as answer:  # noqa: S310 - our own loopback address
            return "" if answer.status == 200 else str(answer.status)
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read(500).decode(errors='replace')}"
    except OSError as error:
        return str(error)
