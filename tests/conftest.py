"""Real servers for the tests: an embedded PostgreSQL and two Valkeys, unless the environment names others."""

from __future__ import annotations

import base64
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from apps.console.servers import Servers  # noqa: E402

_state = Path(tempfile.mkdtemp(prefix="notifier-test-"))
_state.chmod(0o711)  # the servers' account walks through; nobody lists
servers = Servers(_state, durable=False)

# The settings are read while pytest starts, so the addresses must be known by now; the servers start later,
# and only when a selected test needs one.
os.environ.update(servers.environment())
os.environ.setdefault("SECRET_KEY", "test-secret-key-of-no-value-" + "x" * 32)
os.environ.setdefault("FIELD_ENCRYPTION_KEYS", base64.urlsafe_b64encode(bytes(range(32))).decode())
os.environ.setdefault("ADDRESS_HASH_KEY", "test-address-hash-key-of-no-value")
os.environ.setdefault("METRICS_TOKEN", "test-metrics-token")
os.environ.setdefault("PROCESS_NAME", "tests")
os.environ.setdefault("METRICS_DIR", str(_state / "metrics"))
os.environ["DJANGO_SETTINGS_MODULE"] = "config.settings"

WITHOUT_SERVERS = (ROOT / "tests" / "unit", ROOT / "tests" / "providers", ROOT / "tests" / "sandbox")


def pytest_configure(config: pytest.Config) -> None:
    from django.conf import settings

    assert settings.DATABASES  # reads the settings now, so that a wrong one is reported once and plainly


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.option.collectonly:
        return
    if not all(any(item.path.is_relative_to(folder) for folder in WITHOUT_SERVERS) for item in session.items):
        servers.start()


def pytest_unconfigure(config: pytest.Config) -> None:
    servers.stop()
    shutil.rmtree(_state, ignore_errors=True)


@pytest.fixture(scope="session")
def embedded_servers() -> Iterator[Servers]:
    """The servers under test; `postgres`, `broker` and `cache` are None where the environment named another."""
    yield servers
