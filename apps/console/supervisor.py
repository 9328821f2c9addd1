"""The processes of the Procfile as children of ours: started, watched, restarted, stopped in order.

No Django here: `prepare_environment` runs before the settings are read.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from apps.console.binaries import ServerError, die_with_parent
from apps.console.servers import URLS, Servers

ROOT = Path(__file__).resolve().parent.parent.parent
WORKER_GRACE_S = 45  # a shift stops claiming after 20 s and its calls end within 10 s
GRACE_S = 10
LONGEST_BACKOFF_S = 10.0
STOP_ORDER = (("beat",), ("relay",), ("*",), ("web",), ("sandbox",))
"""Nothing new is rung while the workers finish; "*" is every process that is not named."""


def procfile(path: Path = ROOT / "Procfile") -> dict[str, str]:
    """The command of each process by its name, in the file's order."""
    lines = (line.partition(":") for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return {name.strip(): command.strip() for name, _, command in lines}


def ports_of(commands: Mapping[str, str]) -> dict[str, str]:
    """Every variable whose name ends in PORT, with its default as the Procfile writes it: `${PORT:-8000}`."""
    return dict(re.findall(r"\$\{(\w*PORT):-(\d+)\}", " ".join(commands.values())))


def queues_of(command: str) -> list[str]:
    """The queues that a Procfile command consumes: the value of its `-Q`."""
    found = re.search(r"\s-Q\s+(\S+)", command)
    return found[1].split(",") if found else []


@dataclass
class Process:
    """One line of the Procfile, running or not."""

    name: str
    command: str
    environment: Mapping[str, str] = field(repr=False)
    output: IO[bytes] | int = subprocess.PIPE
    child: subprocess.Popen[bytes] | None = None
    deaths: int = 0
    started_at: float = 0.0
    start_after: float = 0.0

    @property
    def pid(self) -> int:
        """Of the running main process. Raises RuntimeError when there is none."""
        if self.child is None or self.child.poll() is not None:
            raise RuntimeError(f"{self.name} is not running")
        return self.child.pid

    @property
    def is_running(self) -> bool:
        return self.child is not None and self.child.poll() is None

    def start(self) -> None:
        # A session of its own: the terminal's Ctrl+C is for the supervisor, which stops in order.
        self.child = subprocess.Popen(  # noqa: S603 - the Procfile's own lines
            ["/bin/sh", "-c", f"exec {self.command}"],
            cwd=ROOT,
            env={**self.environment, "PROCESS_NAME": f"notifier-{self.name}"},
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGTERM),
        )
        self.started_at = time.monotonic()

    def signal(self, signum: int) -> None:
        """To the main process alone: it ends its children itself."""
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(signum)

    def kill(self) -> None:
        """SIGKILL for the process and all its children, and reap it."""
        if self.child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()

    def backoff_s(self) -> float:
        """How long to wait after this death: 0.1 s, doubling up to 10 s, forgotten after half a minute of life."""
        if time.monotonic() - self.started_at > 30:
            self.deaths = 0
        self.deaths += 1
        return min(LONGEST_BACKOFF_S, 0.1 * 2.0 ** (self.deaths - 1))


class Fleet:
    """The processes of one installation, by name."""

    def __init__(self, processes: Iterable[Process]) -> None:
        self.processes = {process.name: process for process in processes}

    @classmethod
    def of(cls, commands: Mapping[str, str], environment: Mapping[str, str]) -> Fleet:
        return cls(Process(name, command, environment) for name, command in commands.items())

    def __getitem__(self, name: str) -> Process:
        return self.processes[name]

    def start(self, *names: str) -> None:
        for name in names or self.processes:
            if not self[name].is_running:
                self[name].start()

    def stop(self, *names: str, pump: Callable[[float], object] = time.sleep) -> None:
        """Stop in `STOP_ORDER`; each group gets its signal at once, then its grace. Nothing survives this.

        `pump` passes the time, in seconds: a child whose pipe nobody reads would block in its last words.
        """
        chosen = set(names or self.processes)
        named = {name for group in STOP_ORDER for name in group}
        for group in STOP_ORDER:
            members = [name for name in chosen if name in group or (group == ("*",) and name not in named)]
            for name in members:
                self[name].signal(signal.SIGCONT)  # one that is paused could not hear the next
                self[name].signal(signal.SIGTERM)
            deadline = time.monotonic() + (WORKER_GRACE_S if group == ("*",) else GRACE_S)
            while any(self[name].is_running for name in members) and time.monotonic() < deadline:
                pump(0.05)
            for name in members:
                self[name].kill()  # and what it left behind in its session

    def kill(self) -> None:
        for process in self.processes.values():
            process.kill()


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def claim_port(variable: str, environment: Mapping[str, str], patience_s: float = 5) -> None:
    """Raise ServerError naming `variable` when its port is taken.

    Waits a little first: the web server of a supervisor that was killed may still be closing.
    """
    port = int(environment[variable])
    deadline = time.monotonic() + patience_s
    while True:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((environment.get("HOST", "127.0.0.1"), port))
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"Port {port} is taken ({error.strerror}). Choose another: make up {variable}={port + 1}"
                    ) from error
        time.sleep(0.2)


# --- The demo's environment -----------------------------------------------------------------------------------

FOR_MANAGE_PY = (
    *URLS,
    "SECRET_KEY",
    "FIELD_ENCRYPTION_KEYS",
    "ADDRESS_HASH_KEY",
    "METRICS_TOKEN",
    "METRICS_DIR",
    "PUBLIC_URL",
    "SANDBOX_URL",
    "SANDBOX_TLS_DIR",
    "DEMO",
)
"""What .run/env holds, so that other commands meet the same servers: `set -a; . .run/env; manage.py shell`."""

_prepared: Servers | None = None


def state_directory() -> Path:
    return Path(os.environ.get("RUN_DIR") or ROOT / ".run").resolve()


def prepared_servers() -> Servers:
    """The servers that `prepare_environment` laid out. Raises ServerError when `up` was not started by manage.py."""
    if _prepared is None:
        raise ServerError("Start it with: python manage.py up")
    return _prepared


def prepare_environment() -> None:
    """Everything `up` needs in `os.environ`: server addresses, secrets made once, ports. Ends the program when it
    cannot be done, with a line that says why.
    """
    global _prepared
    try:
        _prepared = _prepare()
    except ServerError as error:
        sys.exit(f"up: {error}")


def _prepare() -> Servers:
    environment = os.environ
    environment.setdefault("DEMO", "1")
    for variable, default in ports_of(procfile()).items():
        environment.setdefault(variable, default)
    state = state_directory()
    servers = Servers(state)
    if servers.missing and environment["DEMO"].lower() in ("0", "false", "no", "off"):
        raise ServerError(f"{', '.join(servers.missing)} not set, and embedded servers are for the demo (DEMO=1) only")
    servers.lock()
    if environment.get("FRESH", "") not in ("", "0"):
        if "DATABASE_URL" not in servers.missing:
            raise ServerError(
                "FRESH=1 wipes the embedded servers only, and DATABASE_URL is set: wipe that one yourself"
            )
        servers.wipe()
    environment.update(servers.environment())
    for key, value in _secrets(state / "secrets.env").items():
        environment.setdefault(key, value)
    environment.setdefault("PUBLIC_URL", f"http://127.0.0.1:{environment['PORT']}")
    environment.setdefault("SANDBOX_URL", f"http://127.0.0.1:{environment['SANDBOX_PORT']}")
    environment.setdefault("SANDBOX_HOOKS_URL", environment["PUBLIC_URL"])
    environment.setdefault("SANDBOX_TLS_DIR", str(state / "sandbox"))
    environment.setdefault("METRICS_DIR", str(state / "metrics"))
    environment.update(common_to_children(environment))
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # a dozen processes import the same modules at each start
    _write_private(state / "env", {key: environment[key] for key in FOR_MANAGE_PY if key in environment})
    return servers


def common_to_children(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that every process of the Procfile gets: our own programs first, and quiet."""
    variables = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")]),
        "PYTHONUNBUFFERED": "1",
    }
    if os.geteuid() == 0:
        # Celery warns of pickle under root; we accept JSON only.
        variables["PYTHONWARNINGS"] = "ignore:You're running the worker with superuser privileges"
    return variables


def _secrets(path: Path) -> dict[str, str]:
    """The demo's secrets, made at the first start. What the database holds is encrypted with one of them."""
    if not path.exists():
        made = {
            "SECRET_KEY": secrets.token_urlsafe(48),
            "FIELD_ENCRYPTION_KEYS": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "ADDRESS_HASH_KEY": secrets.token_urlsafe(32),
            "METRICS_TOKEN": secrets.token_urlsafe(24),
            "ADMIN_USER": "admin",
            "ADMIN_PASSWORD": secrets.token_urlsafe(12),
        }
        _write_private(path, made)
    return read_environment(path)


def read_environment(path: Path) -> dict[str, str]:
    """The variables of a file that a shell can source: `KEY='value'`, one a line. None of a missing file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {key: "".join(shlex.split(value)) for key, _, value in (line.partition("=") for line in lines) if key}


def _write_private(path: Path, values: Mapping[str, str]) -> None:
    """A file that a shell can source, readable by its owner alone, complete or not there at all."""
    unfinished = path.with_name(f"{path.name}.new")
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.writelines(f"{key}={shlex.quote(value)}\n" for key, value in values.items())
    unfinished.replace(path)
