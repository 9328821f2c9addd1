"""The servers of a run: PostgreSQL and Valkey as `make up` starts them, durable, in a directory kept between runs."""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from apps.console.servers import Servers


@contextlib.contextmanager
def servers_in(state: Path, *, worker_processes: int = 2) -> Iterator[Servers]:
    """Start them, and name them and everything else that the service reads in `os.environ`."""
    state.mkdir(parents=True, exist_ok=True)
    servers = Servers(state)
    os.environ.update(servers.environment())
    os.environ.update(
        SECRET_KEY="bench-secret-key-of-no-value-" + "x" * 32,
        FIELD_ENCRYPTION_KEYS=base64.urlsafe_b64encode(bytes(range(32))).decode(),
        ADDRESS_HASH_KEY="bench-address-hash-key-of-no-value",
        METRICS_TOKEN="bench",
        DJANGO_SETTINGS_MODULE="config.settings",
        PUSH_PROCESSES=str(worker_processes),
        EMAIL_PROCESSES=str(worker_processes),
        WEB_WORKERS="2",
    )
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    servers.start()
    try:
        yield servers
    finally:
        servers.stop()
