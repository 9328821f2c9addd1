"""The URL map: the admin site, and each app's own `urls.py`."""

from __future__ import annotations

from importlib.util import find_spec

from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path

ROOMS = ("rest", "clients", "people", "templates", "providers", "notifications", "console")

urlpatterns: list[URLPattern | URLResolver] = [
    path("admin/", admin.site.urls),
    *(path("", include(f"apps.{room}.urls")) for room in ROOMS if find_spec(f"apps.{room}.urls")),
]
