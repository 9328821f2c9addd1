"""The URL map, and a view that crashes."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.urls import path

from config.urls import urlpatterns as ours


def crash(request: HttpRequest, who: str) -> HttpResponse:
    raise ValueError(f"no such person: {who}")


urlpatterns = [*ours, path("people/<str:who>/crash", crash)]
