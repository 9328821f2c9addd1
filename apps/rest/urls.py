"""Public pages about the API itself."""

from __future__ import annotations

from django.urls import path

from apps.rest.pages import error_page

urlpatterns = [path("docs/errors/<slug:code>", error_page, name="error-page")]
