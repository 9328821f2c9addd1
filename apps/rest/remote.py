"""Where a request comes from, behind as many proxies as there are."""

from __future__ import annotations

from django.conf import settings
from django.http import HttpRequest


def client_ip(request: HttpRequest) -> str:
    """The address of the caller; "" when it came by a Unix socket.

    With TRUSTED_PROXIES = n, each of our n proxies has appended whom it saw to X-Forwarded-For, so the n-th from
    the right is the caller; what stands further left is the caller's own claim.
    """
    hops = settings.TRUSTED_PROXIES
    if hops:
        seen = [hop.strip() for hop in request.META.get("HTTP_X_FORWARDED_FOR", "").split(",") if hop.strip()]
        if len(seen) >= hops:
            return str(seen[-hops])
    return str(request.META.get("REMOTE_ADDR") or "")
