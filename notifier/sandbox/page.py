"""The page for people: phones, desktops, SMS threads and mailboxes, filling as messages arrive."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web

from notifier.sandbox.ledger import Entry, Filter
from notifier.sandbox.vendor import Parts, Vendor

_STATIC = Path(__file__).parent / "static"
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/static/page.css": ("page.css", "text/css; charset=utf-8"),
    "/static/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/favicon.ico": ("icon.svg", "image/svg+xml"),
    "/static/icon.svg": ("icon.svg", "image/svg+xml"),
}
_FEED_MOST = 150
_TEXT_MOST = 2000
_SAFE = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: https: http:; connect-src 'self'; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# A mail runs no script, whatever it holds; links open outside; pictures only when the reader asks for them, as
# they tell the sender that the mail was opened.
_MAIL_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:{images}; font-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'; sandbox allow-popups allow-popups-to-escape-sandbox"
)
_MAIL_STYLE = "body{font:15px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}img{max-width:100%}"


class Page:
    def __init__(self, parts: Parts, vendors: Mapping[str, Vendor]) -> None:
        self._parts = parts
        self._vendors = vendors

    def answer(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD"):
            return web.json_response({"error": "not found"}, status=404)
        query = dict(parse_qsl(request.raw_path.partition("?")[2]))
        if path in _FILES:
            name, kind = _FILES[path]
            headers = {**_SAFE, "Content-Type": kind, "Content-Security-Policy": _PAGE_POLICY}
            return web.Response(body=(_STATIC / name).read_bytes(), headers=headers)
        if path == "/_feed":
            return self._feed(query.get("after", ""))
        if path.startswith("/_mail/"):
            return self._mail(path.removeprefix("/_mail/"), with_images=query.get("images") == "1")
        return web.json_response({"error": "not found"}, status=404)

    def _feed(self, after: str) -> web.StreamResponse:
        """The newest messages that follow `after`, newest first; under load the ones between are left out."""
        ledger = self._parts.ledger
        known = int(after) if after.isascii() and after.isdigit() else 0
        fresh = min(_FEED_MOST, max(0, ledger.last_id - known))
        entries = ledger.newest(Filter(), fresh)
        return web.json_response(
            {
                "last_id": ledger.last_id,
                "total": ledger.count(Filter()),
                "messages": [self._shown(entry) for entry in entries],
                "faults": self._parts.faults.shown(),
                "faults_allowed": self._parts.faults.allowed,
                "providers": sorted(self._vendors),
                "receipts": {"waiting": self._parts.courier.waiting, "enabled": self._parts.options.receipts},
            },
            headers=_SAFE,
        )

    def _shown(self, entry: Entry) -> dict[str, Any]:
        shown: dict[str, Any] = {"id": entry.id, "at": entry.at, "provider": entry.provider, "to": entry.to}
        shown["delivery_id"] = entry.delivery_id
        if entry.body is None:
            return {**shown, "look": "gone", "title": "", "text": "No longer held"}
        preview = self._vendors[entry.provider].preview(entry, entry.body)
        return {
            **shown,
            "look": preview.look,
            "sender": preview.sender,
            "title": preview.title[:300],
            "text": preview.text[:_TEXT_MOST],
            "html": preview.html,
            "image": preview.image,
            "replaces": preview.replaces,
            "note": preview.note[:300],
        }

    def _mail(self, id: str, *, with_images: bool) -> web.StreamResponse:
        entry = self._parts.ledger.entry(int(id)) if id.isascii() and id.isdigit() else None
        if entry is None or entry.body is None:
            return web.Response(status=404, text="This mail is no longer held.")
        vendor = self._vendors[entry.provider]
        page = vendor.html(entry, entry.body)
        if not page:
            text = html.escape(vendor.preview(entry, entry.body).text)
            page = f'<pre style="font:inherit;white-space:pre-wrap;margin:14px">{text}</pre>'
        page = f'<!doctype html><meta charset="utf-8"><base target="_blank"><style>{_MAIL_STYLE}</style>{page}'
        policy = _MAIL_POLICY.format(images=" https: http:" if with_images else "")
        headers = {**_SAFE, "Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": policy}
        return web.Response(body=page.encode("utf-8", "replace"), headers=headers)
