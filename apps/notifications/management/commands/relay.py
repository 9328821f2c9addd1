"""`manage.py relay`: rings what is due. Any number may run."""

from __future__ import annotations

import signal
import threading
from typing import Any

from django.core.management.base import BaseCommand

from apps.notifications.relay import Relay


class Command(BaseCommand):
    help = "Ring the workers for what is due, and give back what dead workers held. Any number may run."
    requires_system_checks: list[str] = []  # they import all screens; `migrate` runs them, once for each deployment

    def handle(self, *args: Any, **options: Any) -> None:
        stopping = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopping.set())
        Relay(must_stop=stopping.is_set).run()
