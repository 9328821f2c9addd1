from __future__ import annotations

from django.apps import AppConfig


class NaiveConfig(AppConfig):
    name = "tests.bench.naive"
    label = "naive"
