"""The service as it runs, on a database of its own, its providers' accounts pointed at the sinks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from redis import Redis

from apps.console.servers import Servers
from apps.console.supervisor import ROOT
from tests.acceptance.stack import DATABASE, Stack, connect, with_database
from tests.bench import load
from tests.bench.cpu import Meter, Usage
from tests.bench.driver import Answers, Caller

PREPARED = "bench_prepared"
GROUPS = {
    "web": "web",
    "relay": "relay",
    "core": "core",
    "push": "push worker",
    "push-critical": "push critical",
    "email": "email worker",
}
DONE_WITHIN_S = 600


@dataclass
class Run:
    """One load, from its first request to the last result recorded."""

    deliveries: int
    elapsed_s: float
    accepted_s: float
    usage: Usage
    answers: Answers
    sessions: int = 0  # new ones of PostgreSQL
    tasks: int = 0  # published meanwhile

    @property
    def per_s(self) -> float:
        return self.deliveries / self.elapsed_s

    @property
    def cpu_us(self) -> float:
        return self.usage.total_s / self.deliveries * 1e6


class BenchStack(Stack):
    """`state`: a directory kept between runs, with the servers' data. `bench_pids`: whose CPU is nobody's."""

    def __init__(self, servers: Servers, state: Path, bench_pids: tuple[int, ...]) -> None:
        super().__init__(servers, state / "logs", leave_out=("sandbox",))
        self.state = state
        self.bench_pids = bench_pids
        self.credentials = state / "client.json"
        self.caller: Caller

    def start_for(self, sink_url: str, smtp_port: int) -> None:
        """Copy the prepared database, point the accounts, start every process, and return when all is ready."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._prepare()
        self._copy()
        key_file = self.state / "service-account.pem"
        if not key_file.exists():
            key_file.write_text(_private_key())
        self.script("tests.bench.prepare", "accounts", sink_url, str(smtp_port), str(key_file))
        self.start(*self.fleet.processes)
        found = json.loads(self.credentials.read_text())
        self.caller = Caller(self.url, (found["key"], found["secret"]))
        self.wait_ready(within_s=180)

    # --- loads ------------------------------------------------------------------------------------------------

    def bulk(self, deliveries: int, template: str = "bench-bulk") -> Run:
        """Batches of 10 items x 100 recipients over 4 connections."""
        return self._run(self.bulk_requests(deliveries, template), deliveries, connections=4)

    def single(self, count: int) -> Run:
        """One request each, 16 connections."""
        return self._run(self.single_requests(count), count, connections=16)

    def accept_bulk(self, recipients: int) -> Run:
        return self._accept(self.bulk_requests(recipients), recipients, connections=4)

    def accept_single(self, count: int) -> Run:
        return self._accept(self.single_requests(count), count, connections=16)

    def bulk_requests(self, deliveries: int, template: str = "bench-bulk") -> list[bytes]:
        return [
            self.caller.post("/v1/notifications/batch", body, Idempotency_Key=uuid4().hex)
            for body in load.batches(deliveries, template)
        ]

    def single_requests(self, count: int, template: str = "bench-normal") -> list[bytes]:
        return [self.caller.post("/v1/notifications", body) for body in load.singles(count, template)]

    def _accept(self, requests: list[bytes], count: int, *, connections: int) -> Run:
        """Accepting alone: whoever works on what was accepted stands still, and does it afterwards."""
        sent = self.sent()
        with self.frozen(*(name for name in self.fleet.processes if name != "web")):
            meter = Meter(self.roots(), self.bench_pids)
            answers = self.caller.send(requests, connections=connections)
            usage = meter.stop()
        answers.must_be_accepted()
        self.wait_sent(sent + count)
        took = answers.ended - answers.began
        return Run(count, elapsed_s=took, accepted_s=took, usage=usage, answers=answers)

    def _run(self, requests: list[bytes], deliveries: int, *, connections: int) -> Run:
        sent, sessions, tasks = self.sent(), self.sessions(), self.published()
        meter = Meter(self.roots(), self.bench_pids)
        answers = self.caller.send(requests, connections=connections)
        answers.must_be_accepted()
        self.wait_sent(sent + deliveries)
        usage = meter.stop()
        [(ended,)] = self.query("SELECT extract(epoch FROM max(ended_at))::float8 FROM notifications_delivery")
        return Run(
            deliveries,
            elapsed_s=ended - answers.began,
            accepted_s=answers.ended - answers.began,
            usage=usage,
            answers=answers,
            sessions=self.sessions() - sessions,
            tasks=self.published() - tasks,
        )

    # --- what is so -------------------------------------------------------------------------------------------

    def sent(self) -> int:
        [(count,)] = self.query("SELECT coalesce(sum(n), 0) FROM notifications_tally WHERE to_state = 'sent'")
        return int(count)

    def wait_sent(self, count: int) -> None:
        self.wait_for(lambda: self.sent() >= count, "the results", within_s=DONE_WITHIN_S, every_s=0.05)

    def published(self) -> int:
        """Tasks that anybody ever published: each is one LPUSH to the broker."""
        assert self.servers.broker
        with Redis(unix_socket_path=str(self.servers.broker.socket)) as client:
            return int(client.info("commandstats").get("cmdstat_lpush", {}).get("calls", 0))

    def sessions(self) -> int:
        [(count,)] = self.query("SELECT sessions FROM pg_stat_database WHERE datname = current_database()")
        return int(count)

    def roots(self) -> dict[str, list[int]]:
        """The processes of each group whose CPU is counted."""
        roots: dict[str, list[int]] = {group: [] for group in GROUPS.values()} | {"other": []}
        for name, process in self.fleet.processes.items():
            roots[GROUPS.get(name, "other")].append(process.pid)
        return roots | server_roots(self.servers)

    @contextlib.contextmanager
    def frozen(self, *names: str) -> Iterator[None]:
        """All processes (or those named) stand still while the block runs."""
        names = names or tuple(self.fleet.processes)
        for name in names:
            self.pause(name)
        try:
            yield
        finally:
            for name in names:
                self.resume(name)

    # --- the database -----------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Make the database that runs are copied from, once for a state of the schema and of what goes in."""
        mark = _mark()
        marked = self.state / "prepared"
        if marked.exists() and marked.read_text() == mark and self.credentials.exists():
            return
        print(f"  preparing {load.PEOPLE:,} people with a device each (once)", flush=True)
        began = time.monotonic()
        self.sql(f"DROP DATABASE IF EXISTS {PREPARED} WITH (FORCE)", f"CREATE DATABASE {PREPARED}")
        url = self.environment["DATABASE_URL"]
        self.environment["DATABASE_URL"] = with_database(url, PREPARED)
        try:
            self.manage("migrate", "--verbosity", "0")
            self.script("tests.bench.prepare", "people", str(self.credentials))
        finally:
            self.environment["DATABASE_URL"] = url
        marked.write_text(mark)
        print(f"  prepared in {time.monotonic() - began:.0f} s", flush=True)

    def _copy(self) -> None:
        self.sql(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)", f"CREATE DATABASE {DATABASE} TEMPLATE {PREPARED}")
        with contextlib.closing(connect(self.environment["DATABASE_URL"])) as connection, connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")
            cursor.execute("CHECKPOINT")
        os.sync()  # or the copy is still on its way to the disk while the first parts wait for their commits

    def sql(self, *statements: str) -> None:
        """Run statements outside any transaction, in the server's own database."""
        server = with_database(os.environ["DATABASE_URL"], "postgres")
        with contextlib.closing(connect(server)) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    def script(self, module: str, *arguments: str) -> str:
        """Run a module in the stack's environment; what it printed."""
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=self.environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout


def server_roots(servers: Servers) -> dict[str, list[int]]:
    """The main processes of PostgreSQL and of Valkey; none for a server that the environment named."""
    postgres = servers.postgres.process if servers.postgres else None
    valkeys = [server.process for server in (servers.broker, servers.cache) if server]
    return {
        "PostgreSQL": [postgres.pid] if postgres else [],
        "Valkey": [process.pid for process in valkeys if process],
    }


def _mark() -> str:
    digest = hashlib.sha256()
    schema = [*ROOT.glob("apps/*/migrations/*.py"), *ROOT.glob("apps/*/sql/*.sql")]
    for path in sorted([*schema, *Path(__file__).parent.glob("*.py")]):
        if path.name in ("prepare.py", "load.py") or path.parent.name in ("migrations", "sql"):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _private_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
