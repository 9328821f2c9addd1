"""A program in a terminal of its own: what it has said so far, who belongs to it, and Ctrl+C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests.acceptance.stack import descendants


class Terminal:
    """One run of `command` in `directory`; what it says goes to the file `output`."""

    def __init__(
        self, command: list[str], directory: Path, environment: Mapping[str, str], output: Path, **identity: Any
    ) -> None:
        """`identity`: the account that runs it, as `subprocess.Popen` names one."""
        self.command = command
        self.directory = directory
        self.environment = dict(environment)
        self.output = output
        self.identity = identity
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **self.identity,
            )
        return self

    @property
    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def wait_for(self, words: str, within_s: float = 120) -> None:
        """Return when the regular expression `words` was said. Raises AssertionError when that is late, or never."""
        deadline = time.monotonic() + within_s
        while not re.search(words, self.said):
            assert self.process is not None
            assert self.process.poll() is None, f"it ended before it said {words!r}:\n{self.said}"
            assert time.monotonic() < deadline, f"it never said {words!r}:\n{self.said}"
            time.sleep(0.1)

    def children(self) -> list[int]:
        assert self.process is not None
        return descendants(self.process.pid)

    def finish(self, signum: int = signal.SIGINT, within_s: float = 90) -> int:
        """Signal all that runs in the foreground, as a terminal does; 0 only waits. Returns the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            os.killpg(self.process.pid, signum)
        return self.process.wait(within_s)


def alive(pids: list[int]) -> list[int]:
    """Those of `pids` that still run; one that ended and waits to be reaped does not."""
    listed = subprocess.run(["ps", "-o", "pid=,stat=", "-p", ",".join(map(str, pids))], capture_output=True, text=True)
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if not line.split()[1].startswith("Z")]


def gone(pids: list[int], within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while alive(pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not alive(pids)


def command_of(pid: int) -> str:
    return subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
