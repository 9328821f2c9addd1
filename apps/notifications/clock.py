"""The database's time, in a web process: what decides when something is due or over must not hang on its own clock."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from django.db import connection

_ASK_EVERY_S = 30.0  # what a machine's monotonic clock drifts in that time does not matter

_asked: tuple[float, datetime] = (float("-inf"), datetime.min.replace(tzinfo=UTC))


def database_now() -> datetime:
    """The database's clock, to a few milliseconds: asked twice a minute, carried on by the monotonic clock between."""
    global _asked
    at, then = _asked
    if time.monotonic() - at > _ASK_EVERY_S:
        before = time.monotonic()
        with connection.cursor() as cursor:
            cursor.execute("SELECT clock_timestamp()")
            then = cursor.fetchone()[0]
        at = (before + time.monotonic()) / 2
        _asked = (at, then)
    return then + timedelta(seconds=time.monotonic() - at)
