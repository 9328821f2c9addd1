"""The naive design as it would run: granian with 2 processes, a prefork worker with 2, on the same servers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import psycopg2
import requests

from apps.console.servers import Servers, die_with_parent
from apps.console.supervisor import ROOT, common_to_children, free_port
from tests.acceptance.stack import descendants, with_broker_database, with_database
from tests.bench import load
from tests.bench.cpu import Meter
from tests.bench.driver import Caller
from tests.bench.ours import Run, server_roots
from tests.bench.sink import Sink

DATABASE = "bench_naive"
SETTINGS = "tests.bench.naive.settings"
DONE_WITHIN_S = 300
_GRANIAN = "--interface wsgi --host 127.0.0.1 --workers 2 --blocking-threads 8 --backlog 2048 --no-ws --log-level error"
_WORKER = "-c 2 --loglevel WARNING --without-gossip --without-mingle"


class Naive:
    """`with Naive(...) as naive:` runs it; `reuse`: with CELERY_DB_REUSE_MAX."""

    def __init__(self, servers: Servers, state: Path, sink: Sink, *, reuse: bool) -> None:
        self.servers = servers
        self.state = state
        self.bench_pids = (sink.process.pid,)
        self.reuse = reuse
        self.port = free_port()
        self.environment = {
            **os.environ,
            **common_to_children(os.environ),
            "DJANGO_SETTINGS_MODULE": SETTINGS,
            "NAIVE_DATABASE_URL": with_database(os.environ["DATABASE_URL"], DATABASE),
            "BROKER_URL": with_broker_database(os.environ["BROKER_URL"], 3),  # by this name Celery's command reads it
            "NAIVE_PROVIDER_URL": sink.url,
            **({"NAIVE_REUSE": "10000"} if reuse else {}),
        }
        self.caller = Caller(f"http://127.0.0.1:{self.port}")
        self.children: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self._connection = self._make_database()
        self._start("web", f"granian {_GRANIAN} --port {self.port} tests.bench.naive.wsgi:application")
        self._start("worker", f"celery -q -A tests.bench.naive.celery worker {_WORKER}")
        self._wait_until_it_works()
        return self

    def __exit__(self, *error: object) -> None:
        for child in self.children.values():
            child.terminate()
        for child in self.children.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(10)
            child.kill()
        self._connection.close()

    # --- loads ------------------------------------------------------------------------------------------------

    def bulk(self, count: int) -> Run:
        """Lists of 1,000, as large as our batches, over 4 connections."""
        return self._run(self.bulk_requests(count), count, connections=4)

    def single(self, count: int) -> Run:
        return self._run(self.single_requests(count), count, connections=16)

    def accept_bulk(self, count: int) -> Run:
        return self._accept(self.bulk_requests(count), count, connections=4)

    def accept_single(self, count: int) -> Run:
        return self._accept(self.single_requests(count), count, connections=16)

    def bulk_requests(self, count: int) -> list[bytes]:
        size = min(count, load.ITEMS * load.RECIPIENTS)
        bodies = [[_body(n) for n in range(start, start + size)] for start in range(0, count, size)]
        return [self.caller.post("/notifications", body) for body in bodies]

    def single_requests(self, count: int) -> list[bytes]:
        return [self.caller.post("/notifications", _body(n)) for n in range(count)]

    def _accept(self, requests_: list[bytes], count: int, *, connections: int) -> Run:
        """Accepting alone: the worker stands still, and does it afterwards."""
        self._query("TRUNCATE naive_notification")
        self._signal_worker(signal.SIGSTOP)
        meter = Meter(self.roots(), self.bench_pids)
        answers = self.caller.send(requests_, connections=connections)
        usage = meter.stop()
        self._signal_worker(signal.SIGCONT)
        answers.must_be_accepted()
        self._wait_sent(count)
        took = answers.ended - answers.began
        return Run(count, elapsed_s=took, accepted_s=took, usage=usage, answers=answers)

    def _run(self, requests_: list[bytes], count: int, *, connections: int) -> Run:
        self._query("TRUNCATE naive_notification")
        sessions = self._sessions()
        meter = Meter(self.roots(), self.bench_pids)
        answers = self.caller.send(requests_, connections=connections)
        answers.must_be_accepted()
        self._wait_sent(count)
        usage = meter.stop()
        ended = self._query("SELECT extract(epoch FROM max(sent_at))::float8 FROM naive_notification")
        return Run(
            count,
            elapsed_s=ended - answers.began,
            accepted_s=answers.ended - answers.began,
            usage=usage,
            answers=answers,
            sessions=self._sessions() - sessions,
            tasks=count,
        )

    def roots(self) -> dict[str, list[int]]:
        return {name: [child.pid] for name, child in self.children.items()} | server_roots(self.servers)

    # --- inside -----------------------------------------------------------------------------------------------

    def _start(self, name: str, command: str) -> None:
        with (self.state / f"naive-{name}.log").open("ab") as log:
            self.children[name] = subprocess.Popen(
                [sys.executable, "-m", *command.split()],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent(15),
            )

    def _signal_worker(self, signum: int) -> None:
        main = self.children["worker"].pid
        for pid in (main, *descendants(main)):
            os.kill(pid, signum)

    def _wait_until_it_works(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(requests.ConnectionError):
                url = f"http://127.0.0.1:{self.port}/notifications"
                requests.post(url, json=_body(0), timeout=5).raise_for_status()
                break
            if time.monotonic() > deadline:
                raise RuntimeError(f"the naive web server does not answer; see {self.state}/naive-web.log")
            time.sleep(0.1)
        self._wait_sent(1, within_s=30)

    def _wait_sent(self, count: int, within_s: float = DONE_WITHIN_S) -> None:
        deadline = time.monotonic() + within_s
        while self._query("SELECT count(*) FROM naive_notification WHERE status = 'sent'") < count:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the naive worker is late; see {self.state}/naive-worker.log")
            time.sleep(0.05)

    def _sessions(self) -> int:
        return int(self._query("SELECT sessions FROM pg_stat_database WHERE datname = current_database()"))

    def _query(self, sql: str) -> Any:
        with self._connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchone()[0] if cursor.description else None

    def _make_database(self) -> Any:
        with contextlib.closing(psycopg2.connect(with_database(os.environ["DATABASE_URL"], "postgres"))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
                cursor.execute(f"CREATE DATABASE {DATABASE}")
        subprocess.run(
            [sys.executable, "-m", "django", "migrate", "--run-syncdb", "--verbosity", "0"],
            cwd=ROOT,
            env=self.environment,
            check=True,
        )
        connection = psycopg2.connect(self.environment["NAIVE_DATABASE_URL"])
        connection.autocommit = True
        return connection


def _body(number: int) -> dict[str, str]:
    return {
        "user": load.person(number),
        "token": f"bench-{number:06d}-" + "d" * 150,
        "title": f"Hello Person {number}, order A-1001 is on its way",
        "body": "It arrives on Wednesday, 25 November.",
    }
