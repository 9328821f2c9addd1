from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.http import HttpResponse
from django.test import Client as Browser

Call = Callable[..., HttpResponse]

DRAFT: dict[str, Any] = {
    "name": "Order shipped",
    "category": "orders",
    "channels": {
        "sms": {"en": {"text": "Order {{ order.id }} arrives {{ order.eta }}."}},
        "push": {"en": {"title": "On its way", "body": "Order {{ order.id }}"}},
        "email": {
            "en": {"subject": "Order {{ order.id }}", "html": "<p>Arrives <b>{{ order.eta }}</b></p>"},
            "de": {"subject": "Bestellung {{ order.id }}", "html": "<p>Kommt <b>{{ order.eta }}</b></p>"},
        },
    },
    "data_schema": {
        "type": "object",
        "properties": {"order": {"type": "object", "properties": {"eta": {"type": "string"}}}},
    },
    "sample_data": {"order": {"id": "A-1001", "eta": "2026-11-25"}},
}


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    from apps.templates import versions

    versions.forget_all()
    yield
    versions.forget_all()


def caller(scopes: list[str]) -> Call:
    # Imported here: pytest may read this file before Django is set up.
    from apps.clients import services as clients
    from apps.clients.models import Client
    from notifier.message import Mode

    client = Client.objects.create(name="-".join(["team", *scopes]), scopes=scopes, requests_per_minute=100_000)
    app_key, secret = clients.issue_key(client, Mode.LIVE)
    credentials = base64.b64encode(f"{app_key}:{secret}".encode()).decode()

    def call(method: str, path: str, body: object = None) -> HttpResponse:
        extra: dict[str, Any] = {"HTTP_AUTHORIZATION": f"Basic {credentials}"}
        if body is not None:
            extra |= {"data": json.dumps(body), "content_type": "application/json"}
        return Browser().generic(method, f"/v1{path}", **extra)  # type: ignore[return-value]

    return call


@pytest.fixture
def call(db: None) -> Call:
    """Calls the API as a client that may read and write templates."""
    return caller(["read", "templates"])


@pytest.fixture
def reader(db: None) -> Call:
    return caller(["read"])
