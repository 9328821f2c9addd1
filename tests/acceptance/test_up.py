"""`manage.py up` as a newcomer meets it: a process of its own, from nothing."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from apps.console.binaries import Owner, ServerError
from apps.console.servers import URLS, Servers
from apps.console.supervisor import ROOT, free_port, ports_of, procfile, read_environment
from tests.acceptance.terminal import Terminal, alive, command_of, gone

OURS = (*URLS, "SECRET_KEY", "FIELD_ENCRYPTION_KEYS", "METRICS_TOKEN", "DJANGO_SETTINGS_MODULE", "PROCESS_NAME")


class Up(Terminal):
    """One run of `manage.py up` with its state in `state`."""

    def __init__(self, state: Path, **variables: str) -> None:
        self.state = state
        self.ports = {variable: str(free_port()) for variable in ports_of(procfile())}
        inherited = {key: value for key, value in os.environ.items() if key not in OURS}
        environment = {**inherited, **self.ports, "RUN_DIR": str(state), **variables}
        super().__init__([sys.executable, "manage.py", "up"], ROOT, environment, state.with_suffix(".out"))

    def demo(self) -> dict[str, str]:
        return read_environment(self.state / "demo.env")


@pytest.fixture
def home() -> Iterator[Path]:
    """A short path that every account may walk through: pytest's own is neither."""
    directory = Path(tempfile.mkdtemp(prefix="nup-"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def test_one_command_gives_a_service_that_survives_and_ends_cleanly(home: Path) -> None:
    up = Up(home / "run").start()
    try:
        up.wait_for(r"Ready after")
        demo = up.demo()
        assert set(demo) >= {
            "NOTIFIER_URL",
            "NOTIFIER_APP_KEY",
            "NOTIFIER_APP_SECRET",
            "SANDBOX_URL",
            "ADMIN_USER",
            "ADMIN_PASSWORD",
            "METRICS_TOKEN",
        }
        for private in ("demo.env", "secrets.env", "env"):
            assert (up.state / private).stat().st_mode & 0o077 == 0, f"{private} can be read by others"

        # A child that dies comes back, by itself.
        web = next(pid for pid in up.children() if "granian" in command_of(pid))
        os.kill(web, signal.SIGKILL)
        up.wait_for(r"web +\| ended with -9; starting it again")
        assert _answers(f"{demo['NOTIFIER_URL']}/readyz", within_s=60)

        # So does a server, first of all.
        postmaster = int((up.state / "postgres" / "postmaster.pid").read_text().split()[0])
        os.kill(postmaster, signal.SIGKILL)
        up.wait_for(r"postgres +\| ended with -9; starting it again")
        assert _answers(f"{demo['NOTIFIER_URL']}/readyz", within_s=60)

        # Nobody else may write in its directory meanwhile.
        second = Up(up.state)
        second.output = home / "second.out"
        assert second.start().finish(0) == 1
        assert "already running here" in second.said

        children = up.children()
        assert up.finish() == 0
        assert gone(children, within_s=1), f"left behind: {[command_of(pid) for pid in alive(children)]}"

        # The second start keeps the first one's data, is quick, and is ready when its own workers are: here not
        # before the one that is paused goes on, though the same queue was worked on a few seconds ago.
        again = Up(up.state, **up.ports).start()
        paused = _wait_for_child(again, "-Q callbacks")
        os.kill(paused, signal.SIGSTOP)
        assert _wait_for_problems(demo["NOTIFIER_URL"], "nobody works on callbacks")
        assert "Ready after" not in again.said
        os.kill(paused, signal.SIGCONT)
        again.wait_for(r"Ready after")
        took = re.search(r"Ready after ([\d.]+) s", again.said)
        assert took and float(took[1]) < 60, again.said[
            -4000:
        ]  # 7 s on two idle cores; a crash loop takes longer than this
        assert again.demo()["NOTIFIER_APP_SECRET"] == demo["NOTIFIER_APP_SECRET"]

        # Killed without a word, it takes its children along, and the next one starts.
        children = again.children()
        assert again.finish(signal.SIGKILL) == -signal.SIGKILL
        if sys.platform == "linux":
            assert gone(children, within_s=60), f"left behind: {[command_of(pid) for pid in alive(children)]}"
        fresh = Up(up.state, FRESH="1", **up.ports).start()
        up = fresh
        fresh.wait_for(r"Ready after")
        assert fresh.demo()["NOTIFIER_APP_SECRET"] != demo["NOTIFIER_APP_SECRET"]
        assert fresh.finish(signal.SIGTERM) == 0
    finally:
        up.finish(signal.SIGKILL)


def _answers(url: str, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if requests.get(url, timeout=5).status_code == 200:
                return True
        except requests.RequestException:
            pass
        time.sleep(0.2)
    return False


def _wait_for_child(up: Up, words: str) -> int:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for pid in up.children():
            if words in command_of(pid):
                return pid
        time.sleep(0.05)
    raise AssertionError(f"up started no {words!r}")


def _wait_for_problems(url: str, words: str) -> list[str]:
    """What /readyz names as soon as that is nothing but `words`; empty when it never does."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            problems: list[str] = requests.get(f"{url}/readyz", timeout=5).json()["problems"]
            if len(problems) == 1 and problems[0].endswith(words):
                return problems
        except requests.RequestException:
            pass
        time.sleep(0.2)
    return []


def test_a_taken_port_is_named_with_the_variable_that_moves_it(home: Path) -> None:
    import socket

    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        port = squatter.getsockname()[1]
        up = Up(home / "run", PORT=str(port)).start()
        assert up.finish(0) == 1
    assert f"Port {port} is taken" in up.said
    assert f"PORT={port + 1}" in up.said


def test_without_any_server_the_advice_needs_nothing_that_is_not_there() -> None:
    code = "from apps.console.binaries import valkey_binary; valkey_binary()"
    environment = {"PATH": "/nowhere"}
    command = [sys.executable, "-S", "-c", code]  # -S: nor the wheel
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "No Valkey or Redis found and BROKER_URL and CACHE_URL not set" in done.stderr
    assert "docker run" in done.stderr
    assert "compose" not in done.stderr, "there is no compose file"
    assert "BROKER_URL=redis://127.0.0.1:6379/0 CACHE_URL=redis://127.0.0.1:6379/1" in done.stderr


def test_embedded_servers_are_refused_outside_the_demo(home: Path) -> None:
    up = Up(home / "run", DEMO="0").start()
    assert up.finish(0) == 1
    assert "DATABASE_URL, BROKER_URL, CACHE_URL not set" in up.said


def test_a_database_of_ones_own_is_not_wiped(home: Path) -> None:
    up = Up(home / "run", DATABASE_URL="postgres://nobody@127.0.0.1:1/none", FRESH="1").start()
    assert up.finish(0) == 1
    assert "wipe that one yourself" in up.said


def test_a_missing_setting_is_named_with_its_mend() -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("SECRET_KEY", "SECRET_KEY_FILE")}
    command = [sys.executable, "-c", "import django; django.setup()"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "SECRET_KEY is not set. Make one: openssl rand" in done.stderr


def test_a_secret_may_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-the-file\n")
    environment = {key: value for key, value in os.environ.items() if key != "SECRET_KEY"}
    environment["SECRET_KEY_FILE"] = str(tmp_path / "key")
    command = [sys.executable, "-c", "from django.conf import settings; print(settings.SECRET_KEY)"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "from-the-file", done.stderr


# --- The servers by themselves --------------------------------------------------------------------------------


def test_data_of_another_major_version_is_left_alone_with_a_clear_word(home: Path) -> None:
    servers = Servers(home / "run", durable=False, configured={})
    servers.start()
    servers.stop()
    assert servers.postgres is not None
    (servers.postgres.data / "PG_VERSION").write_text("12\n")
    with pytest.raises(ServerError, match=r"was made by PostgreSQL 12.*FRESH=1"):
        Servers(home / "run", durable=False, configured={}).start()


def test_rows_survive_a_killed_server(home: Path) -> None:
    servers = Servers(home / "run", configured={})
    servers.start()
    try:
        assert servers.postgres is not None and servers.postgres.process is not None
        with servers.postgres.connect("notifier") as connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
        connection.close()
        servers.postgres.process.kill()
        servers.postgres.process.wait()
        servers.postgres.start()
        with servers.postgres.connect("notifier") as connection, connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM kept")
            assert cursor.fetchone() == (1000,)
        connection.close()
    finally:
        servers.stop()


def test_only_the_servers_that_are_not_configured_are_started(home: Path) -> None:
    servers = Servers(
        home / "run", configured={"DATABASE_URL": "postgres://h/d", "CACHE_URL_FILE": "/run/secrets/cache"}
    )
    assert [server.name for server in servers] == ["broker"]
    assert set(servers.environment()) == {"BROKER_URL"}


def test_servers_start_from_a_clone_that_only_its_owner_may_enter(home: Path) -> None:
    closed = home / "closed"
    closed.mkdir(mode=0o700)
    servers = Servers(closed / "run", durable=False, configured={})
    try:
        if os.geteuid() == 0:  # PostgreSQL runs as somebody else then, who cannot reach the clone
            assert servers.base.parent == Path("/var/tmp")
            assert servers.base.stat().st_uid == Owner.choose().uid
            assert servers.base.stat().st_mode & 0o077 == 0
        else:
            assert servers.base == closed / "run"
        servers.start()
        assert all(server.answers() for server in servers)
    finally:
        servers.stop()
        shutil.rmtree(servers.base, ignore_errors=True)


def test_a_deep_clone_gets_a_short_directory_for_its_sockets(home: Path) -> None:
    servers = Servers(home / ("deep" * 30) / "run", durable=False, configured={})
    servers.start()
    try:
        assert servers.broker is not None
        assert len(str(servers.broker.socket)) < 100
    finally:
        servers.stop()
        assert servers.broker is not None
        shutil.rmtree(servers.broker.socket.parent, ignore_errors=True)
