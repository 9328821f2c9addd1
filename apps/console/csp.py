"""What the admin's pages may load and run. The public pages have a stricter policy of their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from django.http import HttpRequest, HttpResponse
from django.urls import reverse

# The theme's Alpine builds functions from attributes, hence 'unsafe-eval' (without it: 34 errors and a modal over
# the login button, measured); its inline styles are attributes. Scripts are files: no 'unsafe-inline' for them.
POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)


class AdminPolicyMiddleware:
    """Sends `POLICY` with everything under /admin/."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self.get_response(request)
        if request.path_info.startswith(_admin_path()):
            response.headers.setdefault("Content-Security-Policy", POLICY)
        return response


@cache
def _admin_path() -> str:
    return reverse("admin:index")
