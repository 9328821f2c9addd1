"""The running service, once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from apps.console.servers import Servers
from tests.acceptance.stack import Stack


@pytest.fixture(scope="package")
def stack(embedded_servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Every process of the Procfile, seeded and ready. Stopped with the folder: it would disturb other tests' time."""
    running = Stack(embedded_servers, tmp_path_factory.mktemp("stack"))
    try:
        running.start_all()
        yield running
    finally:
        running.stop_all()
