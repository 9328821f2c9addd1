"""The base of every view under /v1: who, may they, how often, with what; then one service."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from apps.rest.body import BODY_LIMIT, raw_body
from apps.rest.parsing import parse_json
from apps.rest.problems import Problem
from apps.rest.schema import ViewSchema
from apps.rest.validation import Field, Shape, parse_body

NO_QUERY = Shape({})


class Allowance(Protocol):
    """What is left of a caller's limits, as headers."""

    @property
    def headers(self) -> dict[str, str]: ...


class Caller(Protocol):
    """What authentication leaves in `request.auth`."""

    def spend(self, *, requests: int = 0, recipients: int = 0) -> Allowance:
        """Raises Problem rate-limited or quota-exceeded."""
        ...


class ClientView(APIView):
    """Authenticates, checks scope and rate, refuses unknown query parameters; then the method runs.

    `scope`: one scope, or one per method. `bodies`: the shape of each method's body, read by `self.body()`.
    `queries`: the shape of each method's query (see `pagination.page_query`), parsed into `self.query`.
    `request_headers`: the shape of each method's own headers, for the OpenAPI file.
    `answers`: JSON Schema of the answers by method and status, for the OpenAPI file.
    `undocumented`: methods that the OpenAPI file leaves out.
    `upfront_recipients`: recipients that each request spends together with itself, in one round trip.
    `spends_with_body`: methods that call `self.spend` themselves, once their body says for how many; what is refused
    before that is counted as a request all the same.
    """

    scope: ClassVar[str | dict[str, str]]
    bodies: ClassVar[dict[str, Field]] = {}
    queries: ClassVar[dict[str, Shape]] = {}
    request_headers: ClassVar[dict[str, Shape]] = {}
    answers: ClassVar[dict[str, dict[int, dict[str, Any] | None]]] = {}
    undocumented: ClassVar[tuple[str, ...]] = ()
    body_limit: ClassVar[int] = BODY_LIMIT
    upfront_recipients: ClassVar[int] = 0
    spends_with_body: ClassVar[tuple[str, ...]] = ()

    http_method_names = ["get", "post", "put", "delete", "head"]
    schema = ViewSchema()
    query: dict[str, Any]
    _limits: Mapping[str, str] = MappingProxyType({})
    _owes_a_request = False

    def perform_authentication(self, request: Request) -> None:
        super().perform_authentication(request)
        if request.method in self.spends_with_body:
            self._owes_a_request = True
            return
        # Before the scope is looked at: refused requests count too, and every answer tells what is left.
        self.spend(requests=1, recipients=self.upfront_recipients if request.method == "POST" else 0)

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        method = "GET" if request.method == "HEAD" else str(request.method)
        self.query = self.queries.get(method, NO_QUERY).parse_query(request.query_params.lists())

    def handle_exception(self, exc: Exception) -> Response:
        if self._owes_a_request:
            try:
                self.spend(requests=1)
            except Problem as refused:
                exc = refused
        return super().handle_exception(exc)

    @property
    def caller(self) -> Any:
        """Whoever authentication found; see Caller."""
        return self.request.auth

    def body(self) -> Any:
        """The request's body in the normal form of its shape. Raises Problem: all of 400, 413, 415 and 422."""
        return parse_body(self.bodies[str(self.request.method)], self.document())

    def document(self) -> Any:
        """The body as parsed JSON, not looked at any further."""
        raw_body(self.request._request, self.body_limit)
        data = self.request.data
        # DRF answers an absent body with an empty one of its own kind; to us it is no JSON.
        return data if self.request.META.get("CONTENT_LENGTH") not in (None, "", "0") else parse_json(b"")

    def spend(self, *, requests: int = 0, recipients: int = 0) -> None:
        """Take from the caller's limits; what is left goes into the headers. Raises Problem, status 429."""
        caller: Caller = self.caller
        self._owes_a_request = False
        self._limits = caller.spend(requests=requests, recipients=recipients).headers

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Any:
        final = super().finalize_response(request, response, *args, **kwargs)
        for name, value in self._limits.items():
            final.setdefault(name, value)  # a refusal brought its own
        final.setdefault("Cache-Control", "no-store")
        if final.status_code == 204:
            del final["Content-Type"]
        return final


def created(data: Any, *, is_new: bool, location: str = "") -> Response:
    """201 for what was made, 200 for what was there already."""
    headers = {"Location": location} if location and is_new else None
    return Response(data, status=201 if is_new else 200, headers=headers)
