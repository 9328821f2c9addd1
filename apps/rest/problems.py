"""How an error is answered: application/problem+json (RFC 9457), whatever raised it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from django.conf import settings
from django.core.exceptions import BadRequest, PermissionDenied, RequestDataTooBig, SuspiciousOperation
from django.db import Error as DatabaseError
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse
from rest_framework import exceptions

from apps.rest.catalogue import CATALOGUE

logger = logging.getLogger(__name__)

CONTENT_TYPE = "application/problem+json"
MAX_ERRORS = 100
MAX_ITEM_ERRORS = 10  # of each of a thousand items: with a hundred the answer could be twice the request
# A database that is starting, failing over or full is worth another try soon; a caller in a hurry may be sooner.
UNAVAILABLE_RETRY_S = 2
CHALLENGE = 'Basic realm="notifier", charset="UTF-8"'
# Reads work, writes do not: a standby that has not been promoted yet, or an operator's switch.
READ_ONLY_DATABASE = "25006"


@dataclass(frozen=True, slots=True)
class FieldError:
    """One wrong place: `pointer` is a JSON Pointer, or `?name` for a query parameter."""

    pointer: str
    code: str
    detail: str


class Problem(Exception):
    """An error answer. `code` must be in the catalogue, which gives status and title; `members` are extra ones."""

    def __init__(
        self,
        code: str,
        detail: str = "",
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        retry_after_s: int | None = None,
        **members: Any,
    ) -> None:
        super().__init__(code, detail)
        entry = CATALOGUE[code]
        self.code, self.status, self.title = code, entry.status, entry.title
        self.detail = detail or entry.text
        self.errors = tuple(errors[:MAX_ERRORS])
        self.members = members
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(max(1, retry_after_s))
        if self.status == 401:
            self.headers.setdefault("WWW-Authenticate", CHALLENGE)

    def body(self, request_id: str) -> dict[str, Any]:
        body: dict[str, Any] = {
            "type": f"{settings.PUBLIC_URL}/docs/errors/{self.code}",
            "code": self.code,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "request_id": request_id,
        }
        body.update(self.members)
        if self.errors:
            body["errors"] = [{"pointer": e.pointer, "code": e.code, "detail": e.detail} for e in self.errors]
        return body

    def response(self, request: HttpRequest | None) -> HttpResponse:
        content = msgspec.json.encode(self.body(getattr(request, "request_id", "")))
        response = HttpResponse(content, status=self.status, content_type=CONTENT_TYPE, headers=self.headers)
        response["Cache-Control"] = "no-store"
        response["Content-Length"] = str(len(content))  # what would set it may lie further in than the fault
        # Django would log each refusal with its path, and a path may name a person. What is our fault is logged
        # where it is caught.
        response._has_been_logged = True  # type: ignore[attr-defined]
        return response


def invalid(errors: Sequence[FieldError], detail: str = "") -> Problem:
    """422 validation-failed."""
    problems = "1 problem" if len(errors) == 1 else f"{len(errors)} problems"
    return Problem("validation-failed", detail or f"{problems}; nothing was changed", errors=errors)


def exception_handler(exc: Exception, context: Mapping[str, Any]) -> HttpResponse:
    """DRF's EXCEPTION_HANDLER: never None, so that nothing falls through to an HTML page."""
    request = context.get("request")
    plain: HttpRequest | None = getattr(request, "_request", request)
    problem = problem_of(exc)
    if problem.status >= 500:
        logger.error("%s answered %s", type(exc).__name__, problem.code, exc_info=exc)
    return problem.response(plain)


def problem_of(exc: Exception) -> Problem:
    """The answer to any exception that reaches the border of the API."""
    match exc:
        case Problem():
            return exc
        case exceptions.APIException():
            return _of_rest_framework(exc)
        case Http404():
            return Problem("not-found")
        case RequestDataTooBig():
            return Problem("body-too-large", limit=settings.DATA_UPLOAD_MAX_MEMORY_SIZE)
        case PermissionDenied():
            return Problem("scope-missing")
        case SuspiciousOperation() | BadRequest():
            return Problem("invalid-request")
        case DatabaseError() if is_database_down(exc):
            return Problem("unavailable", retry_after_s=UNAVAILABLE_RETRY_S)
    return Problem("internal-error")


def is_database_down(exc: BaseException) -> bool:
    """Whether the database refused to work, as against a statement that was wrong."""
    if isinstance(exc, OperationalError | InterfaceError):
        return True
    return getattr(exc.__cause__, "pgcode", None) == READ_ONLY_DATABASE


def _of_rest_framework(exc: exceptions.APIException) -> Problem:
    match exc:
        case exceptions.NotAuthenticated() | exceptions.AuthenticationFailed():
            return Problem("unauthenticated")
        case exceptions.PermissionDenied():
            return Problem("scope-missing")
        case exceptions.NotFound():
            return Problem("not-found")
        case exceptions.MethodNotAllowed():
            return Problem("method-not-allowed")
        case exceptions.NotAcceptable():
            return Problem("not-acceptable")
        case exceptions.UnsupportedMediaType():
            return Problem("unsupported-media-type")
        case exceptions.ParseError():
            return Problem("invalid-json")
        case exceptions.Throttled():
            return Problem("rate-limited", retry_after_s=int(getattr(exc, "wait", 0) or 1))
    return Problem("internal-error")


_BY_STATUS = {
    400: "invalid-request",
    401: "unauthenticated",
    403: "scope-missing",
    404: "not-found",
    405: "method-not-allowed",
    406: "not-acceptable",
    413: "body-too-large",
    415: "unsupported-media-type",
    503: "unavailable",
}


def problem_for_status(status: int) -> Problem:
    """The answer where only a status is known: the router, Django's own pages."""
    code = _BY_STATUS.get(status, "invalid-request" if status < 500 else "internal-error")
    if code == "body-too-large":
        return Problem(code, limit=settings.DATA_UPLOAD_MAX_MEMORY_SIZE)
    return Problem(code, retry_after_s=UNAVAILABLE_RETRY_S if code == "unavailable" else None)
