"""The URL map: the admin site, the contract, and each app's own `urls.py`."""

from __future__ import annotations

import json
from functools import cache
from importlib.util import find_spec
from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, URLResolver, include, path
from django.views.decorators.http import require_safe
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.views import SpectacularSwaggerSplitView

import apps.clients.schema  # noqa: F401 - registers itself with the generator, which workers do without

ROOMS = ("notifications", "people", "clients", "templates", "providers", "rest", "console")  # the busiest first

# Everything comes from here. The page has no script of its own; Swagger UI sets styles on its elements.
DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@cache
def contract() -> bytes:
    """The OpenAPI file. Made once: it takes a second, and anybody may ask for it."""
    made = SchemaGenerator().get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
    return json.dumps(made).encode()


@require_safe
def openapi(request: HttpRequest) -> HttpResponse:
    headers = {"Cache-Control": "public, max-age=300"}
    return HttpResponse(contract(), content_type="application/json", headers=headers)


class Docs(SpectacularSwaggerSplitView):
    """The contract for people, from our own files."""

    def finalize_response(self, request: Any, response: Any, *args: Any, **kwargs: Any) -> Any:
        final = super().finalize_response(request, response, *args, **kwargs)
        final["Content-Security-Policy"] = DOCS_POLICY
        return final


admin.autodiscover()

urlpatterns: list[URLPattern | URLResolver] = [
    *(path("", include(f"apps.{room}.urls")) for room in ROOMS if find_spec(f"apps.{room}.urls")),
    path("admin/", admin.site.urls),
    path("v1/openapi.json", openapi, name="openapi"),
    # The contract is no secret.
    path("docs", Docs.as_view(url_name="openapi", url_self="/docs", authentication_classes=[], permission_classes=[])),
]
