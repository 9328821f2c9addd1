"""One small page per error code: where the `type` of every error answer leads."""

from __future__ import annotations

import re

from django.http import Http404, HttpRequest, HttpResponse
from django.utils.html import escape, format_html
from django.utils.safestring import SafeString, mark_safe
from django.views.decorators.http import require_safe

from apps.rest.catalogue import CATALOGUE

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>{code}</title><style>
:root{{color-scheme:light dark}}
body{{font:1rem/1.6 system-ui,sans-serif;max-width:40rem;margin:4rem auto;padding:0 1rem}}
code{{font-family:ui-monospace,monospace;background:#8882;padding:.1em .3em;border-radius:.2em}}
dt{{font-weight:600;margin-top:1rem}}dd{{margin:0}}
</style></head><body><main>
<p><code>{status}</code> <code>{code}</code></p><h1>{title}</h1><p>{text}</p>
<dl><dt>Does repeating help?</dt><dd>{retry}</dd>{members}</dl>
</main></body></html>
"""


@require_safe
def error_page(request: HttpRequest, code: str) -> HttpResponse:
    entry = CATALOGUE.get(code)
    if entry is None:
        raise Http404(f"no error code {code}")
    members = mark_safe("")
    if entry.members:
        members = format_html("<dt>Extra members of the answer</dt><dd>{}</dd>", _code(" ".join(
            f"`{member}`" for member in entry.members
        )))  # fmt: skip
    page = format_html(
        _PAGE,
        code=entry.code,
        status=entry.status,
        title=entry.title,
        text=_code(entry.text),
        retry=entry.retry.value,
        members=members,
    )
    # The page has no script; its one style sheet is inside.
    policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"
    return HttpResponse(page, headers={"Content-Security-Policy": policy, "Cache-Control": "public, max-age=3600"})


def _code(text: str) -> SafeString:
    """Markdown's backticks, and nothing else of it."""
    return mark_safe(re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text)))  # noqa: S308 - escaped one step before
