"""The whole service as its own processes: the Procfile on free ports, with a database and a broker of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg2
import requests

from apps.console.servers import Servers
from apps.console.supervisor import ROOT, Fleet, common_to_children, free_port, ports_of, procfile, read_environment

DATABASE = "notifier_stack"
READY_WITHIN_S = 60


class Stack:
    """Started with `start`, ready when it returns. Processes go by their Procfile names.

    Nothing is restarted by itself here: a test that kills a process says when it comes back (`start(name)`).
    """

    def __init__(
        self,
        servers: Servers,
        directory: Path,
        *,
        leave_out: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`environment` goes over the tests' own: the URLs of other servers, a setting of one process."""
        around = {**os.environ, **(environment or {})}
        self.servers = servers
        self.directory = directory
        ports = {variable: str(free_port()) for variable in ports_of(procfile())}
        self.url = f"http://127.0.0.1:{ports['PORT']}"
        self.sandbox_url = f"http://127.0.0.1:{ports['SANDBOX_PORT']}"
        self.environment = {
            **around,
            **ports,
            "DATABASE_URL": with_database(around["DATABASE_URL"], DATABASE),
            "BROKER_URL": with_broker_database(around["BROKER_URL"], 1),
            "CACHE_URL": with_broker_database(around["CACHE_URL"], 1),
            "DEMO": "1",
            "PUBLIC_URL": self.url,
            "SANDBOX_URL": self.sandbox_url,
            "SANDBOX_HOOKS_URL": self.url,
            "SANDBOX_TLS_DIR": str(directory / "sandbox"),
            "ADMIN_USER": "admin",
            "ADMIN_PASSWORD": "admin-of-the-tests",
            **common_to_children(os.environ),
        }
        commands = {name: command for name, command in procfile().items() if name not in leave_out}
        self.fleet = Fleet.of(commands, self.environment)
        self.demo: dict[str, str] = {}
        self._connection: Any = None

    # --- the life of all --------------------------------------------------------------------------------------

    def start_all(self) -> None:
        """Make the database, migrate, seed, start every process, and return when /readyz answers 200."""
        make_database(self.environment["DATABASE_URL"])
        self.directory.mkdir(parents=True, exist_ok=True)
        self.start("sandbox")  # the seed stores the keys that it makes
        self.manage("migrate", "--verbosity", "0")
        self.wait_for(lambda: self._answers(f"{self.sandbox_url}/healthz"), "the sandbox", within_s=30)
        demo = self.directory / "demo.env"
        self.manage("seed", "--demo-env", str(demo))
        self.demo = read_environment(demo)
        self.start(*self.fleet.processes)
        self.wait_ready()

    def stop_all(self) -> None:
        for name in self.fleet.processes:
            self.resume(name)
        self.fleet.stop()
        if self._connection is not None:
            self._connection.close()

    def manage(self, *arguments: str) -> str:
        """Run a management command in the stack's environment; its output. Raises AssertionError when it fails."""
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments], cwd=ROOT, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"manage.py {arguments[0]} failed:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def wait_ready(self, within_s: float = READY_WITHIN_S) -> None:
        self.wait_for(lambda: self._answers(f"{self.url}/readyz"), "/readyz", within_s=within_s)

    def wait_for(self, condition: Callable[[], Any], what: str, *, within_s: float = 30, every_s: float = 0.1) -> Any:
        """What `condition` returns once it is true. Raises AssertionError, with the processes' last words, if late."""
        deadline = time.monotonic() + within_s
        while True:
            found = condition()
            if found:
                return found
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {within_s:.0f} s for {what}\n{self.last_words()}")
            time.sleep(every_s)

    # --- single processes -------------------------------------------------------------------------------------

    def start(self, *names: str) -> None:
        for name in names:
            process = self.fleet[name]
            if not process.is_running:
                with self.log(name).open("ab") as output:
                    process.output = output
                    process.start()

    def pids(self, name: str) -> list[int]:
        """The main process first, then its descendants (a worker's children, the web server's workers)."""
        main = self.fleet[name].pid
        return [main, *descendants(main)]

    def kill(self, name: str, signum: int = signal.SIGKILL) -> None:
        """The process and its children, at once, as a machine's failure would take them."""
        for pid in self.pids(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)
        self.fleet[name].kill()

    def kill_child(self, name: str) -> int:
        """One child of the process, as the kernel does when memory is short. Returns its pid."""
        victim = self.pids(name)[-1]
        os.kill(victim, signal.SIGKILL)
        return victim

    def stop(self, *names: str) -> None:
        self.fleet.stop(*names)

    def restart(self, *names: str) -> None:
        self.stop(*names)
        self.start(*names)

    def pause(self, name: str) -> None:
        """Freeze (SIGSTOP): alive to the system, silent to everybody."""
        self._signal_all(name, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        if self.fleet[name].is_running:
            self._signal_all(name, signal.SIGCONT)

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def last_words(self, lines: int = 15) -> str:
        texts = {
            name: self.log(name).read_text(errors="replace") for name in self.fleet.processes if self.log(name).exists()
        }
        ends = ((name, text.strip().splitlines()[-lines:]) for name, text in texts.items())
        return "\n".join(f"--- {name}\n" + "\n".join(end) for name, end in ends if end)

    # --- talking to it ----------------------------------------------------------------------------------------

    def api(self, method: str, path: str, **options: Any) -> requests.Response:
        """A request with the demo client's key: `stack.api("POST", "/v1/notifications", json={...})`."""
        credentials = (self.demo["NOTIFIER_APP_KEY"], self.demo["NOTIFIER_APP_SECRET"])
        return requests.request(method, self.url + path, **{"auth": credentials, "timeout": 30} | options)

    def inbox(self, **filters: str | int) -> list[dict[str, Any]]:
        """What the sandbox took, newest first: `channel`, `provider`, `to`, `limit`."""
        answer = requests.get(f"{self.sandbox_url}/_inbox", params=filters, timeout=30)
        answer.raise_for_status()
        entries: list[dict[str, Any]] = answer.json()
        return entries

    @contextlib.contextmanager
    def fault(self, **fault: Any) -> Iterator[None]:
        """A scripted fault of a provider while the block runs: `provider=..., mode="http_500"`."""
        requests.post(f"{self.sandbox_url}/_faults", json=fault, timeout=10).raise_for_status()
        try:
            yield
        finally:
            requests.delete(f"{self.sandbox_url}/_faults", timeout=10).raise_for_status()

    def query(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Rows of the stack's own database, over one kept connection; over a new one when the server was restarted."""
        if self._connection is not None and not self._connection.closed:
            try:
                return self._rows(sql, parameters)
            except psycopg2.OperationalError:
                self._connection.close()
        self._connection = connect(self.environment["DATABASE_URL"])
        return self._rows(sql, parameters)

    # --- inside -----------------------------------------------------------------------------------------------

    def _rows(self, sql: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
            return rows

    def _signal_all(self, name: str, signum: int) -> None:
        for pid in self.pids(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    def _answers(self, url: str) -> bool:
        with contextlib.suppress(requests.RequestException):
            return requests.get(url, timeout=5).status_code == 200
        return False


def connect(url: str) -> Any:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    return connection


def make_database(url: str) -> None:
    """The database that `url` names, empty: one that an earlier run left there goes."""
    name = urlsplit(url).path.removeprefix("/")
    with contextlib.closing(connect(with_database(url, "postgres"))) as connection, connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        cursor.execute(f"CREATE DATABASE {name}")


def descendants(pid: int) -> list[int]:
    """The children of `pid`, their children, and so on; oldest first."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listing.splitlines()]
    found, seek = [], [pid]
    while seek:
        parent = seek.pop(0)
        children = [child for child, of in pairs if of == parent]
        found += children
        seek += children
    return found


def with_database(url: str, name: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"/{name}"))


def with_broker_database(url: str, number: int) -> str:
    """The same Redis, another of its numbered databases: so that the stack and the tests' own process stay apart."""
    parts = urlsplit(url)
    if parts.scheme in ("unix", "redis+socket"):
        return re.sub(r"(db|virtual_host)=\d+", rf"\g<1>={number}", url)
    return urlunsplit(parts._replace(path=f"/{number}"))
