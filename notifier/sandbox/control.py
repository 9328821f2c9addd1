"""What people and tests ask the sandbox itself: the inbox, the ledger, the faults, health."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from aiohttp import web

from notifier.sandbox.faults import BadFault
from notifier.sandbox.ledger import Entry, Filter
from notifier.sandbox.page import Page
from notifier.sandbox.vendor import Parts, Vendor

_LIMIT, _LIMIT_MOST = 100, 200_000
_AT_A_TIME = 25  # entries written between two turns of the loop, so that a long read holds nobody up
_NDJSON = "application/x-ndjson"


class BadQuery(ValueError):
    """The text names the parameter."""


class Control:
    def __init__(self, parts: Parts, vendors: Iterable[Vendor]) -> None:
        self._parts = parts
        self._vendors = {vendor.provider: vendor for vendor in vendors}
        self._page = Page(parts, self._vendors)

    async def answer(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        methods = {
            "/healthz": {"GET": self._health, "HEAD": self._health},
            "/_inbox": {"GET": self._inbox, "DELETE": self._empty},
            "/_inbox/count": {"GET": self._count},
            "/_ledger": {"GET": self._ledger},
            "/_receipts": {"GET": self._receipts},
            "/_faults": {"GET": self._list_faults, "POST": self._add_fault, "DELETE": self._clear_faults},
        }.get(path)
        if methods is None:
            return self._page.answer(request, path)
        handler = methods.get(request.method)
        if handler is None:
            return web.json_response({"error": "method not allowed"}, status=405, headers={"Allow": ", ".join(methods)})
        if request.method in ("POST", "DELETE") and _is_from_elsewhere(request):
            return web.json_response({"error": "another site's page may not do this"}, status=403)
        try:
            return await handler(request)
        except (BadFault, BadQuery) as bad:
            return web.json_response({"error": str(bad)}, status=422)

    async def _health(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.json_response({"status": "ok"})

    async def _inbox(self, request: web.BaseRequest) -> web.StreamResponse:
        """A JSON array, newest first; see `Ledger.newest` for what `after` does."""
        asked, limit = _read(request)
        entries = self._parts.ledger.newest(asked, limit)
        return await _streamed(request, self._as_array(entries), "application/json")

    async def _as_array(self, entries: list[Entry]) -> AsyncIterator[bytes]:
        for start in range(0, len(entries), _AT_A_TIME):
            shown = [
                json.dumps(self._shown(entry), ensure_ascii=False) for entry in entries[start : start + _AT_A_TIME]
            ]
            yield ("[" if start == 0 else ",").encode() + ",\n".join(shown).encode("utf-8", "replace")
            await asyncio.sleep(0)
        yield b"]" if entries else b"[]"

    def _shown(self, entry: Entry) -> dict[str, Any]:
        vendor, raw = self._vendors[entry.provider], entry.body
        return {
            "id": entry.id,
            "at": entry.at,
            "provider": entry.provider,
            "channel": entry.channel,
            "to": entry.to,
            "delivery_id": entry.delivery_id,
            "headers": {} if raw is None else vendor.headers(entry, raw),
            "body": None if raw is None else vendor.body(entry, raw),
        }

    async def _count(self, request: web.BaseRequest) -> web.StreamResponse:
        asked, _ = _read(request)
        return web.json_response({"count": self._parts.ledger.count(asked), "last_id": self._parts.ledger.last_id})

    async def _ledger(self, request: web.BaseRequest) -> web.StreamResponse:
        async def chunks() -> AsyncIterator[bytes]:
            for chunk in self._parts.ledger.lines():
                yield chunk

        return await _streamed(request, chunks(), _NDJSON)

    async def _empty(self, request: web.BaseRequest) -> web.StreamResponse:
        self._parts.ledger.clear()
        return web.Response(status=204)

    async def _receipts(self, request: web.BaseRequest) -> web.StreamResponse:
        courier = self._parts.courier
        names = ("waiting", "sent", "refused", "dropped")
        return web.json_response({name: getattr(courier, name) for name in names})

    async def _list_faults(self, request: web.BaseRequest) -> web.StreamResponse:
        return web.json_response(self._parts.faults.shown())

    async def _add_fault(self, request: web.BaseRequest) -> web.StreamResponse:
        if not self._parts.faults.allowed:
            return web.json_response({"error": "faults are switched off here (--no-faults)"}, status=403)
        try:
            asked = json.loads(await request.read())
        except ValueError:
            raise BadFault("the body must be JSON") from None
        return web.json_response(self._parts.faults.add(asked).shown(), status=201)

    async def _clear_faults(self, request: web.BaseRequest) -> web.StreamResponse:
        provider = dict(parse_qsl(request.raw_path.partition("?")[2])).get("provider", "")
        self._parts.faults.clear(provider)
        return web.Response(status=204)


def _read(request: web.BaseRequest) -> tuple[Filter, int]:
    given = dict(parse_qsl(request.raw_path.partition("?")[2]))
    numbers = {}
    for name, most in (("limit", _LIMIT_MOST), ("after", 2**62)):
        text = given.pop(name, "")
        if text and not (text.isascii() and text.isdigit() and int(text) <= most):
            raise BadQuery(f"{name} must be a whole number up to {most}")
        numbers[name] = int(text) if text else None
    if unknown := given.keys() - {"channel", "provider", "to", "delivery_id"}:
        raise BadQuery(f"unknown parameter {min(unknown)}")
    if given.get("to", "").startswith(" "):  # a + that was not escaped: no address begins with a blank
        given["to"] = "+" + given["to"][1:]
    asked = Filter(**given, after=numbers["after"] or 0)
    return asked, _LIMIT if numbers["limit"] is None else numbers["limit"]


def _is_from_elsewhere(request: web.BaseRequest) -> bool:
    """A browser names the page that asks; other callers do not."""
    origin = request.headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != request.headers.get("host")


async def _streamed(request: web.BaseRequest, chunks: AsyncIterator[bytes], kind: str) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": f"{kind}; charset=utf-8", "Cache-Control": "no-store"})
    await response.prepare(request)
    async for chunk in chunks:
        await response.write(chunk)
    await response.write_eof()
    return response
