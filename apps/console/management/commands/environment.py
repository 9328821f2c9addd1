"""`manage.py environment`: the variables that the processes read, as a Markdown table."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from apps.console.environment import markdown


class Command(BaseCommand):
    help = "Print the environment variables with defaults and meanings; docs/operations.md holds this table."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write(markdown(), ending="")
