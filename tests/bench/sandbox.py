"""The sandbox as a process of the bench: a provider that can be made to hang, as the bare sink cannot."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import requests

from apps.console.binaries import die_with_parent
from apps.console.supervisor import ROOT

TIMEOUT_S = 30


class Sandbox:
    """`keys`: the directory where it keeps what it makes; receipts go to `hooks_url`."""

    def __init__(self, keys: Path, *, hooks_url: str) -> None:
        self._keys = keys
        self._hooks_url = hooks_url

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "notifier.sandbox", "--port", "0", "--apns-port", "0", "--smtp-port", "0"]
            + ["--tls-dir", str(self._keys), "--hooks-url", self._hooks_url],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=die_with_parent(signal.SIGTERM),
        )
        assert self.process.stdout
        said: dict[str, str] = {}
        while "ready" not in said:
            line = self.process.stdout.readline()
            if not line:
                raise RuntimeError(f"the sandbox did not start, and ended with {self.process.wait()}")
            _, name, *value = line.split(maxsplit=2)
            said[name] = value[0].strip() if value else ""
        self.url = said["http"]
        ports = [str(urlsplit(said[name]).port) for name in ("apns", "smtp")]
        self.arguments = (self.url, str(self._keys), *ports)
        return self

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.wait()

    @contextlib.contextmanager
    def hanging(self, provider: str) -> Iterator[None]:
        """The provider takes connections and requests, and answers nothing, while the block runs."""
        fault = {"provider": provider, "mode": "hang"}
        requests.post(f"{self.url}/_faults", json=fault, timeout=TIMEOUT_S).raise_for_status()
        try:
            yield
        finally:
            requests.delete(f"{self.url}/_faults", timeout=TIMEOUT_S).raise_for_status()

    def hung_calls(self) -> int:
        """How many requests met the hang so far."""
        return sum(fault["fired"] for fault in requests.get(f"{self.url}/_faults", timeout=TIMEOUT_S).json())

    def arrivals(self) -> tuple[dict[str, float], Counter[str]]:
        """By delivery id: Unix seconds of the first time that a provider accepted it, and how many times one did."""
        answer = requests.get(f"{self.url}/_ledger", timeout=TIMEOUT_S)
        answer.raise_for_status()
        first: dict[str, float] = {}
        times: Counter[str] = Counter()
        for delivery, at in map(json.loads, answer.iter_lines()):
            first.setdefault(delivery, at)
            times[delivery] += 1
        return first, times
