"""The raw bytes of a request, read once and never beyond a limit."""

from __future__ import annotations

from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest

from apps.rest.problems import Problem

MIB = 2**20
BODY_LIMIT = MIB
BULK_BODY_LIMIT = 10 * MIB
DISCARD_LIMIT = 32 * MIB


def raw_body(request: HttpRequest, limit_bytes: int = BODY_LIMIT) -> bytes:
    """The body as sent. Raises Problem body-too-large without keeping what is too much.

    A chunked body has no Content-Length and Django would take it for empty; a server that ends the input itself
    (`wsgi.input_terminated`) lets it be read.
    """
    if hasattr(request, "_body"):
        return _within(request.body, limit_bytes)
    declared = request.META.get("CONTENT_LENGTH") or ""
    try:
        if declared.isdecimal() and int(declared) > limit_bytes:
            _discard(request, int(declared))
            raise too_large(limit_bytes)
        if not declared and request.META.get("wsgi.input_terminated"):
            body = request.META["wsgi.input"].read(limit_bytes + 1)
            if len(body) > limit_bytes:
                _discard(request, DISCARD_LIMIT)
            request._body = _within(body, limit_bytes)
            request.META["CONTENT_LENGTH"] = str(len(body))
        return _within(request.body, limit_bytes)
    except RequestDataTooBig:
        raise too_large(limit_bytes) from None
    except OSError:  # UnreadablePostError is one; a chunked body has the server's own
        raise Problem("invalid-request", "the connection ended before the body did") from None


def _discard(request: HttpRequest, size: int) -> None:
    """Read what is left of a body that is refused: many callers read no answer before they have sent all of it."""
    chunk = b"x"
    source = request if request.META.get("CONTENT_LENGTH") else request.META["wsgi.input"]
    left = size if size <= DISCARD_LIMIT else 0
    while left > 0 and chunk:
        chunk = source.read(min(left, 2**16))
        left -= len(chunk)


def _within(body: bytes, limit_bytes: int) -> bytes:
    if len(body) > limit_bytes:
        raise too_large(limit_bytes)
    return body


def too_large(limit_bytes: int) -> Problem:
    return Problem("body-too-large", f"the largest body here has {limit_bytes} bytes", limit=limit_bytes)
