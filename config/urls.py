"""The URL map: the admin site, the contract, and each app's own `urls.py`."""

from __future__ import annotations

from importlib.util import find_spec

from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path
from drf_spectacular.views import SpectacularJSONAPIView, SpectacularSwaggerView

ROOMS = ("rest", "clients", "people", "templates", "providers", "notifications", "console")

OPEN: dict[str, list[type]] = {"authentication_classes": [], "permission_classes": []}  # the contract is no secret

admin.autodiscover()

urlpatterns: list[URLPattern | URLResolver] = [
    path("admin/", admin.site.urls),
    path("v1/openapi.json", SpectacularJSONAPIView.as_view(**OPEN), name="openapi"),
    path("docs", SpectacularSwaggerView.as_view(url_name="openapi", **OPEN), name="docs"),
    *(path("", include(f"apps.{room}.urls")) for room in ROOMS if find_spec(f"apps.{room}.urls")),
]
