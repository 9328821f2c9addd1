"""Signed requests: the caller proves that it has the secret, and never sends it."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

# RFC 3986 3.3: what a path segment may hold as it is; some callers leave it so, some encode all of it.
_SEGMENT = "/:@!$&'()*+,;=~"
_FORM_SAFE = "/~!*'()"  # JavaScript's encodeURIComponent
_STRICT = "/~"  # everything but unreserved characters


def signature(secret: str, *, method: str, target: str, timestamp: str, nonce: str, body: bytes) -> str:
    """Lower-case hex. `target` is the path, and `?query` when there is one, byte for byte as sent."""
    text = "\n".join((method.upper(), target, timestamp, nonce, hashlib.sha256(body).hexdigest()))
    return hmac.new(secret.encode(), text.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()


def targets(meta: dict[str, Any]) -> list[str]:
    """The target as sent, or what it can have been.

    Servers that hand over the request line (`RAW_URI`, `REQUEST_URI`) give one answer. Granian hands over the
    decoded path only (2.8), so the usual ways to encode that path are offered: one, for a path of letters and
    digits. All of them name the same path, the one that is acted on.
    """
    for name in ("RAW_URI", "REQUEST_URI"):
        raw = meta.get(name, "")
        if raw.startswith("/"):
            return [raw]
    path = meta.get("PATH_INFO", "/")  # Django has decoded it to text
    query = meta.get("QUERY_STRING", "")
    suffix = f"?{query}" if query else ""
    return list(dict.fromkeys(quote(path, safe=safe) + suffix for safe in (_SEGMENT, _FORM_SAFE, _STRICT)))


def is_signed_by(secrets: Iterable[str], given: str, *, targets: list[str], **signed: Any) -> bool:
    """Whether `given` is the signature under any of the secrets. Tries all of them, whatever it finds."""
    found = False
    for secret in secrets:
        for target in targets:
            found |= hmac.compare_digest(signature(secret, target=target, **signed), given)
    return found
