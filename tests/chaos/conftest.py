"""The running service on servers of its own, which may be stopped, frozen, emptied and killed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from apps.console.servers import Servers
from tests.acceptance.stack import Stack
from tests.chaos.form import SEED, SHORT, sized
from tests.chaos.load import Load, People
from tests.chaos.report import Report

_report = Report()


def pytest_report_header() -> str:
    return f"chaos: SEED={SEED}, {'short' if SHORT else 'full'} form"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section(f"chaos, SEED={SEED}")
    for scenario, measured in _report.lines:
        terminalreporter.write_line(f"{scenario}: {measured}")


@pytest.fixture
def report() -> Report:
    return _report


@pytest.fixture(scope="package")
def own_servers() -> Iterator[Servers]:
    """PostgreSQL with fsync, a broker and a cache, whatever the environment names: these are to be mistreated."""
    state = Path(tempfile.mkdtemp(prefix="nch-"))
    state.chmod(0o711)
    servers = Servers(state, durable=True, configured={})
    servers.start()
    yield servers
    servers.stop()
    shutil.rmtree(state, ignore_errors=True)


@pytest.fixture(scope="package")
def running(own_servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    environment = {**own_servers.environment(), "SANDBOX_LATENCY_MS": "50", "LIMITS_URL": "", "ACCESS_LOG": "0"}
    stack = Stack(own_servers, tmp_path_factory.mktemp("stack"), environment=environment)
    try:
        stack.start_all()
        yield stack
    finally:
        stack.stop_all()


@pytest.fixture(scope="package")
def people(running: Stack) -> People:
    return People.make(running, sized(400, 100))


@pytest.fixture
def stack(running: Stack, own_servers: Servers) -> Iterator[Stack]:
    """The stack, whole again afterwards, whatever the scenario did to it."""
    yield running
    Load.end_all()
    gone = [name for name, process in running.fleet.processes.items() if not process.is_running]
    for server in own_servers:
        if server.process is None or server.process.poll() is not None:
            server.start()
    for name in running.fleet.processes:
        running.resume(name)
    requests.delete(f"{running.sandbox_url}/_faults", timeout=10)
    running.start(*running.fleet.processes)
    running.wait_ready()
    assert gone == [], "died, and nobody had killed them"
