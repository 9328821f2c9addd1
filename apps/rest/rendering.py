"""How an answer is written: compact JSON, times in UTC with microseconds and `Z`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request


def stamp(at: datetime) -> str:
    """RFC 3339 in UTC: 2026-11-22T20:30:10.120000Z."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return stamp(value)
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no JSON form here")


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_plain, check_circular=False).encode


def to_json(data: Any) -> bytes:
    """Takes plain JSON types, datetimes, dates, UUIDs and sets. Raises TypeError for anything else."""
    return _encode(data).encode()


class JSONRenderer(BaseRenderer):
    media_type = "application/json"
    format = "json"
    charset = None  # JSON is UTF-8 (RFC 8259); the media type has no such parameter

    def render(
        self, data: Any, accepted_media_type: str | None = None, renderer_context: Mapping[str, Any] | None = None
    ) -> bytes:
        return b"" if data is None else to_json(data)


class Negotiation(DefaultContentNegotiation):
    """DRF's, without its search where the caller takes what there is: all of them say so."""

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        asked = request._request.META.get("HTTP_ACCEPT", "*/*")
        for renderer in renderers if format_suffix is None else ():
            if asked in ("*/*", renderer.media_type):
                return renderer, str(renderer.media_type)
        found: tuple[BaseRenderer, str] = super().select_renderer(request, renderers, format_suffix)
        return found
