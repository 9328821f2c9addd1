"""Which processes do work, and when they last did: a process can be alive and consume nothing."""

from __future__ import annotations

from django.db import connection


def beat(name: str, kind: str, queues: str = "") -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO notifications_heartbeat (name, kind, queues, at) VALUES (%s, %s, %s, now()) "
            "ON CONFLICT (name) DO UPDATE SET kind = excluded.kind, queues = excluded.queues, at = excluded.at",
            [name, kind, queues],
        )


def forget_all() -> None:
    """For who knows that nothing of the installation runs: what did is no proof of what is being started."""
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM notifications_heartbeat")
