"""POST: one notification, a batch, a cancel."""

from __future__ import annotations

import re
from typing import Any, ClassVar, cast
from uuid import UUID

from rest_framework.request import Request
from rest_framework.response import Response

from apps.clients.callers import Caller
from apps.notifications import shapes, shown
from apps.notifications.services.accept import accept, accept_batch
from apps.notifications.services.holds import cancel_notification
from apps.notifications.services.keys import Answer, RequestKey
from apps.rest.body import BULK_BODY_LIMIT
from apps.rest.catalogue import FieldCode
from apps.rest.problems import MAX_ITEM_ERRORS, Problem
from apps.rest.validation import Errors, Field, Lazy, Shape, Text, parse_body
from apps.rest.views import ClientView

_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?", re.ASCII)


def _key_header(*, required: bool = False) -> Shape:
    return Shape({"Idempotency-Key": Text(min=1, max=255, pattern=_KEY.pattern, required=required)})


def caller_of(request: Request) -> Caller:
    """Who authenticated; DRF's stubs know only its own tokens."""
    return cast("Caller", request.auth)


def idempotency_key(request: Request, *, required: bool = False) -> str:
    """The header's value; "" when there is none. Raises Problem for one that cannot be a key."""
    key: str | None = request.META.get("HTTP_IDEMPOTENCY_KEY")
    if key is None:
        if required:
            raise Problem("idempotency-key-required")
        return ""
    if not _KEY.fullmatch(key):
        raise Problem("invalid-idempotency-key")
    return key


def request_key(request: Request, document: Any, *, required: bool = False) -> RequestKey | None:
    key = idempotency_key(request, required=required)
    if not key:
        return None
    caller = caller_of(request)
    return RequestKey.of(
        caller.client_id, caller.mode, key, method=str(request.method), path=request.path, body=document
    )


def answered(answer: Answer) -> Response:
    headers = {"Location": answer.location} if answer.location and answer.status == 202 else {}
    if answer.is_replay:
        headers["Idempotent-Replayed"] = "true"
    return Response(answer.body, status=answer.status, headers=headers)


class Send(ClientView):
    """`scope` send: the one call that most clients make. `reading.Notifications` adds the GET of the same address."""

    scope: ClassVar[str | dict[str, str]] = {"POST": "send"}
    bodies: ClassVar[dict[str, Field]] = {"POST": shapes.NOTIFICATION}
    request_headers: ClassVar[dict[str, Shape]] = {"POST": _key_header()}
    spends_with_body: ClassVar[tuple[str, ...]] = ("POST",)
    answers: ClassVar[dict[str, dict[int, dict[str, Any] | None]]] = {
        "POST": {202: shown.ACCEPTED_OUT, 200: shown.ACCEPTED_OUT}
    }

    def post(self, request: Request) -> Response:
        """Accept one notification of up to 100 recipients. 202: it is committed and will reach an end state."""
        body, raw = self.body(), self.document()
        key = request_key(request, raw)
        self.spend(requests=1, recipients=len(body["to"]))
        answer = accept(caller_of(request), body, raw=raw, key=key, request_id=getattr(request, "request_id", ""))
        return answered(answer)


class SendBatch(ClientView):
    scope = "send"
    bodies: ClassVar[dict[str, Field]] = {"POST": shapes.BATCH}
    request_headers: ClassVar[dict[str, Shape]] = {"POST": _key_header(required=True)}
    answers: ClassVar[dict[str, dict[int, dict[str, Any] | None]]] = {"POST": {202: shown.BATCH_OUT}}
    body_limit = BULK_BODY_LIMIT

    def post(self, request: Request) -> Response:
        """Accept up to 1,000 notifications, each for itself; the answer says what became of each, in order."""
        raw = self.document()
        parse_body(_FRAME, raw)
        _refuse_too_many_recipients(raw["items"])
        key = request_key(request, raw, required=True)
        assert key is not None  # noqa: S101 - it is required
        items = _items(raw["items"])
        # The request was paid for before any of this was read, which costs more than all of the others' together.
        self.spend(recipients=sum(len(body["to"]) for body, _, _ in items if body is not None))
        answer = accept_batch(caller_of(request), items, key=key, request_id=getattr(request, "request_id", ""))
        return answered(answer)


def _refuse_too_many_recipients(raw: list[Any]) -> None:
    """By the lists as they came: an address costs more to read than anything else here, a hundred thousand far more.

    A list that is too long by itself is not read, and refuses its item alone.
    """
    lists = (item.get("to") for item in raw if isinstance(item, dict))
    recipients = sum(len(to) for to in lists if isinstance(to, list) and len(to) <= shapes.MOST_RECIPIENTS)
    if recipients > shapes.MOST_BATCH_RECIPIENTS:
        errors = Errors()
        detail = f"at most {shapes.MOST_BATCH_RECIPIENTS} recipients in all, this has {recipients}"
        errors.add((None, "items"), FieldCode.TOO_MANY, detail)
        errors.raise_if_any()


def _items(raw: list[Any]) -> list[tuple[dict[str, Any] | None, Any, list[dict[str, str]]]]:
    """Each item parsed for itself: (normal form or None, as it came, its faults)."""
    items: list[tuple[dict[str, Any] | None, Any, list[dict[str, str]]]] = []
    for index, item in enumerate(raw):
        errors = Errors(most=MAX_ITEM_ERRORS)
        parsed = shapes.ITEM.parse(item, ((None, "items"), index), errors)
        faults = [{"pointer": e.pointer, "code": e.code, "detail": e.detail} for e in errors.items]
        items.append((None if faults else parsed, item, faults))
    return items


_FRAME = Shape({"items": Lazy(shapes.ITEM, min=1, max=shapes.MOST_ITEMS, required=True)})


class Cancel(ClientView):
    scope = "send"
    answers: ClassVar[dict[str, dict[int, dict[str, Any] | None]]] = {"POST": {200: shown.CANCELLED_OUT}}

    def post(self, request: Request, id: UUID) -> Response:
        """Stop what is not sent yet."""
        caller = caller_of(request)
        cancel_notification(id, client_id=caller.client_id, mode=caller.mode, by=caller.app_key)
        return Response({"id": str(id), "status": "cancelled"})
