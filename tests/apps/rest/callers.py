"""A caller of the API as the tests need one: a client with a key, over Django's test client."""

from __future__ import annotations

import base64
import json
from typing import Any

from django.test import Client as HttpClient

from apps.clients import services
from apps.clients.callers import credentials
from apps.clients.models import Client
from apps.clients.services import token_buckets
from notifier.message import Mode


class Api:
    """Calls as one client. `headers` names are as on the wire."""

    def __init__(self, client: Client, app_key: str, secret: str) -> None:
        self.client, self.app_key, self.secret = client, app_key, secret
        self._http = HttpClient(raise_request_exception=False)

    @property
    def basic(self) -> str:
        return "Basic " + base64.b64encode(f"{self.app_key}:{self.secret}".encode()).decode()

    def __call__(
        self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None, **extra: Any
    ) -> Any:
        """`body`: bytes as they are, anything else as JSON. An `Authorization` of None sends no credentials."""
        sent = {"Authorization": self.basic, **(headers or {})}
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        content_type = extra.pop("content_type", "application/json")
        return self._http.generic(
            method,
            path,
            data,
            content_type=content_type,
            headers={name: value for name, value in sent.items() if value is not None},
            **extra,
        )

    def get(self, path: str, **extra: Any) -> Any:
        return self("GET", path, **extra)

    def post(self, path: str, body: Any, **extra: Any) -> Any:
        return self("POST", path, body, **extra)

    def put(self, path: str, body: Any, **extra: Any) -> Any:
        return self("PUT", path, body, **extra)

    def delete(self, path: str, **extra: Any) -> Any:
        return self("DELETE", path, **extra)


def make_api(name: str = "shop", mode: Mode = Mode.LIVE, **policy: Any) -> Api:
    """A client of that name (made when there is none) with a key of its own."""
    client, _ = Client.objects.update_or_create(name=name, defaults={"requests_per_minute": 1_000_000, **policy})
    return Api(client, *services.issue_key(client, mode))


def forget_callers() -> None:
    """What a process remembers for a moment; tests roll the rows back underneath."""
    credentials.forget()
    token_buckets.cache_clear()
    services._noted.clear()


def assert_problem(response: Any, status: int, code: str) -> dict[str, Any]:
    """That the answer is an error of this kind in the one error format; returns its body."""
    assert response.headers["Content-Type"] == "application/problem+json", response.content[:300]
    body: dict[str, Any] = json.loads(response.content)
    assert (response.status_code, body["status"], body["code"]) == (status, status, code), body
    assert body["type"].endswith(f"/docs/errors/{code}")
    assert body["title"]
    assert body["request_id"] == response.headers["X-Request-Id"]
    return body


def pointers(body: dict[str, Any]) -> list[tuple[str, str]]:
    return [(error["pointer"], error["code"]) for error in body.get("errors", [])]
