"""What every request meets first: its id, a look at its text, and problem+json for whatever went wrong below."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from urllib.parse import unquote_to_bytes

import structlog
from django.http import HttpRequest, HttpResponseBase

from apps.rest.problems import CONTENT_TYPE, FieldError, Problem, problem_for_status

GetResponse = Callable[[HttpRequest], HttpResponseBase]

API_PREFIX = "/v1/"
_BROKEN_UTF8 = re.compile(r"%[89A-F][0-9A-F]")  # django.utils.encoding.repercent_broken_unicode
REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


class RequestIdMiddleware:
    """Gives the request an id, echoes it, binds it to every log line of the request. Stands first.

    The caller's `X-Request-Id` counts when it is 1 to 64 of `A-Za-z0-9_-`; else it is replaced.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        asked = request.META.get("HTTP_X_REQUEST_ID", "")
        request_id = asked if REQUEST_ID.fullmatch(asked) else secrets.token_hex(8)
        request.request_id = request_id  # type: ignore[attr-defined]
        structlog.contextvars.clear_contextvars()  # the thread served another request before
        structlog.contextvars.bind_contextvars(request_id=request_id)
        response = self.get_response(request)
        response["X-Request-Id"] = request_id
        return response


class ProblemMiddleware:
    """Under /v1, every error is problem+json: also the router's, the host check's and a crash's. Stands third.

    Django turns an exception into a response at each layer below, so a status is all that is left to go by.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if not request.path_info.startswith(API_PREFIX):
            return self.get_response(request)
        try:
            refuse_unreadable(request)
        except Problem as problem:
            return problem.response(request)
        response = self.get_response(request)
        if response.status_code < 400 or response.get("Content-Type") == CONTENT_TYPE:
            return response
        answer = problem_for_status(response.status_code).response(request)
        for name in ("Allow", "Retry-After"):
            if name in response:
                answer[name] = response[name]
        return answer


def refuse_unreadable(request: HttpRequest) -> None:
    """Raise Problem for a path, query or header that no database could store as text.

    In a query Django would put U+FFFD in their place, so its bytes are looked at as sent. In a path it has put
    escapes of single bytes in their place already, before any middleware.
    """
    if "\0" in request.path_info:
        raise Problem("invalid-text", "the path holds U+0000")
    if _BROKEN_UTF8.search(request.path_info):
        raise Problem("invalid-text", "the path is not UTF-8")
    query = request.META.get("QUERY_STRING", "")
    if query:
        for part in query.split("&"):
            name, _, value = part.partition("=")
            raw = unquote_to_bytes(name)
            _check(raw, "a query parameter's name", "?" + raw.decode(errors="replace").replace("\0", "\ufffd"))
            _check(unquote_to_bytes(value), "a query parameter", "?" + raw.decode())
    for name, value in request.META.items():
        if name.startswith("HTTP_") and "\0" in value:
            raise Problem("invalid-text", f"the header {name[5:].replace('_', '-').title()} holds U+0000")


def _check(raw: bytes, what: str, pointer: str) -> None:
    problem = ""
    if b"\0" in raw:
        problem = f"{what} holds U+0000"
    else:
        try:
            raw.decode()
        except UnicodeDecodeError:
            problem = f"{what} is not UTF-8"
    if problem:
        raise Problem("invalid-text", problem, errors=[FieldError(pointer, "invalid_text", problem)] if pointer else ())
