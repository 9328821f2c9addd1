"""Each request as it ends: counted, timed, and told in one log line. By route, never by path or query."""

from __future__ import annotations

import time
from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponseBase
from prometheus_client import Counter, Histogram

from apps.console.logs import route_of, tell_request

API_PREFIX = "/v1/"
POLLED = ("/healthz", "/readyz", "/metrics")  # asked every few seconds by machines: counted, not told
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})  # any other word is a caller's own

REQUESTS = Counter("notifier_http_requests", "Requests answered.", ["route", "method", "status"])
SECONDS = Histogram(
    "notifier_http_request_seconds",
    "Time from a request's arrival at the application to its answer; the API's routes only.",
    ["route", "method"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)


class WatchMiddleware:
    """Stands second: above what may refuse a request, below what gives it its id."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        began = time.perf_counter()
        response = self.get_response(request)
        seconds = time.perf_counter() - began
        route = route_of(request)
        method = request.method if request.method in METHODS else "other"
        REQUESTS.labels(route, method, str(response.status_code)).inc()
        if route.startswith(API_PREFIX):
            SECONDS.labels(route, method).observe(seconds)
        if settings.ACCESS_LOG and route not in POLLED:
            caller = getattr(request, "auth", None)
            tell_request(
                settings.PROCESS_NAME,
                getattr(request, "request_id", ""),
                method=method,
                route=route,
                status=response.status_code,
                ms=round(seconds * 1000, 1),
                client_id=getattr(caller, "client_id", None),
            )
        return response
