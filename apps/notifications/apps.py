from typing import Any

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class NotificationsConfig(AppConfig):
    name = "apps.notifications"
    label = "notifications"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        post_migrate.connect(_make_partitions, sender=self)


def _make_partitions(**_: Any) -> None:
    """The large tables must have somewhere to put the first row; test databases come this way too."""
    from django.db import connection

    from apps.notifications.partitions import (
        PARTITIONED,
        ensure_partitions,
    )  # apps are not loaded at import time

    if PARTITIONED[0] in connection.introspection.table_names():  # not so when migrated back to zero
        ensure_partitions()
