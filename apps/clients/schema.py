"""How the two ways to authenticate are described in the OpenAPI file."""

from __future__ import annotations

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension

SIGNED = {"app_key": "X-App-Key", "timestamp": "X-Timestamp", "nonce": "X-Nonce", "signature": "X-Signature"}


class AppKeyScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]  # registers itself
    """One class authenticates both ways, so it names all their schemes."""

    target_class = "apps.clients.auth.AppKeyAuthentication"
    name = ["basic", *SIGNED]

    def get_security_definition(self, auto_schema: Any) -> list[dict[str, str]]:
        basic = {"type": "http", "scheme": "basic", "description": "app_key and app_secret; TLS only"}
        return [basic, *({"type": "apiKey", "in": "header", "name": header} for header in SIGNED.values())]

    def get_security_requirement(self, auto_schema: Any) -> list[dict[str, list[str]]]:
        return [{"basic": []}, {scheme: [] for scheme in SIGNED}]
