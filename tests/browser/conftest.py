"""The running service and a real browser in front of it: Debian's Chromium, never a downloaded one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from apps.console.servers import Servers
from tests.acceptance.stack import Stack
from tests.browser.admin import Admin


def pytest_collection_finish(session: pytest.Session) -> None:
    """Before the first test of any folder, not when the first of this one is reached."""
    here = Path(__file__).parent
    if not installed_chromium() and any(item.path.is_relative_to(here) for item in session.items):
        raise pytest.UsageError("The browser's tests need Chromium: apt-get install -y chromium")


def installed_chromium() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="package")
def stack(embedded_servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    running = Stack(embedded_servers, tmp_path_factory.mktemp("browser-stack"))
    try:
        running.start_all()
        yield running
    finally:
        running.stop_all()


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Its sandbox refuses to run as root, as containers do.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=installed_chromium(), args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def admin(stack: Stack, chromium: Browser) -> Iterator[Admin]:
    """Logged in, with an eye on the browser's console: a test that saw an error there fails at its end."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(30_000)
    found = Admin(stack, context.new_page())
    found.log_in()
    yield found
    context.close()
    assert found.errors == []
